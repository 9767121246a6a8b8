"""The worked examples in specs/ are what polstore computes."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import torch

from polstore.codec.live.state import LiveState
from polstore.wire import canonical, merkle
from polstore.wire.checkpoint import open_root
from polstore.wire.keys import KeyKind, VerifierKey
from polstore.wire.lineage import names_blob
from polstore.wire.randomness import sample_salt, stream_seed
from polstore.wire.sample import sample_leaf
from polstore.wire.state import TensorEntry, scalars_entry, state_digest
from polverify.chain import drawn_for, share_of_each
from tools.vectors import challenge, lineage, signed_root, tiny_run
from tools.vectors import state_digest as state_vectors

SPECS = Path(__file__).resolve().parents[2] / "specs"


def page(name: str) -> str:
    return (SPECS / name).read_text(encoding="utf-8")


def listings(name: str) -> list[bytes]:
    """Return the bytes that each indented listing of a page shows: hex, and after two spaces a remark."""
    found, rows = [], []
    for line in [*page(name).split("\n"), ""]:
        row = re.fullmatch("    ([0-9a-f]+)(?:  .*)?", line)
        if row is not None:
            rows.append(row[1])
        elif rows:
            found.append(bytes.fromhex("".join(rows)))
            rows = []
    return found


def test_merkle() -> None:
    text = page("merkle.md")
    leaves = [merkle.leaf_hash(data) for data in (b"", b"\x00", b"\x10")]
    for value in (*leaves, merkle.root(leaves[:2]), merkle.root(leaves), merkle.EMPTY_ROOT):
        assert value.hex() in text


def test_canonical() -> None:
    value = (0, "fc.weight", "float32", (2, 300), b"\x00\xff", True, None, 0.1, -1)
    text = page("canonical.md")
    assert f"`{canonical.encode(value).hex()}`" in text
    listed = text.split("## Example")[1].split("together")[0]
    rows = [line.split("  ")[2].replace(" ", "") for line in listed.split("\n") if line.startswith("    ")]
    assert "".join(rows) == canonical.encode(value).hex()


def test_signed_root() -> None:
    text = page("signed-root.md")
    block = "".join(f"    {line}\n" if line else "\n" for line in signed_root.SIGNED.decode().split("\n")[:-1])
    assert block in text
    for key in signed_root.KEY.verifier_keys():
        assert f"    {key.line()}\n" in text
    assert signed_root.KEY.seed.hex() in text
    assert signed_root.KEY.private_key(KeyKind.COSIGNATURE).private_bytes_raw().hex() in text
    keys = [VerifierKey.parse(line) for line in signed_root.KEYS]
    assert open_root(signed_root.SIGNED, keys).timestamp == 1_700_000_000


def test_run_records() -> None:
    example = (*tiny_run.LEAVES[:2], tiny_run.STEPS[0].encode())
    leaf = sample_leaf(sample_salt(tiny_run.DATASET_SALT, 0), tiny_run.CONTENTS[0])
    place = canonical.encode(("polstore/randomness/v1", tiny_run.SEED, "step", (2, 0, 0)))
    assert listings("run-records.md") == [*example, leaf, place]
    assert sha256(place).digest() == stream_seed(tiny_run.SEED, "step", 2, 0, 0)
    for value in (tiny_run.ROOT, tiny_run.MANIFEST.dataset.root, sha256(place).digest()):
        assert value.hex() in page("run-records.md")
    for data, length in zip(example, (325, 222), strict=False):
        assert len(data) == length


def test_challenge() -> None:
    block = canonical.encode(("polstore/challenge/v1", challenge.NONCE, tiny_run.ROOT, 0))
    assert listings("challenge.md") == [challenge.EXAMPLE.encode(), block]
    assert f"The file, {len(challenge.EXAMPLE.encode())} bytes" in page("challenge.md")
    assert sha256(block).hexdigest() in page("challenge.md")
    assert challenge.EXAMPLE.segments == (0,)


def test_bundle() -> None:
    data = tiny_run.bundle_file(tiny_run.bundle(0))
    assert listings("bundle.md") == [data]
    assert f"The whole file, {len(data)} bytes" in page("bundle.md")


def test_state_digest() -> None:
    text = page("state-digest.md")
    scalars = canonical.encode(state_vectors.EXAMPLE_SCALARS)
    entries = [
        TensorEntry(name, dtype, shape, sha256(data).digest())
        for name, dtype, shape, data in state_vectors.EXAMPLE_TENSORS
    ]
    leaves = [*(canonical.encode(entry.value()) for entry in entries), canonical.encode(scalars_entry(scalars))]
    assert listings("state-digest.md") == [scalars, b"".join(leaves)]
    for value in (*map(merkle.leaf_hash, leaves), state_digest(entries, scalars)):
        assert value.hex() in text


class Scheduler:
    def state_dict(self) -> dict[str, int]:
        return {"last_epoch": 2}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert state == self.state_dict()


def test_live_objects_have_the_state_digest_of_the_example() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.75, 1.5]]))
    optimizer.state[model.weight]["momentum_buffer"] = torch.tensor([[0.5, -1.0]])
    group = optimizer.param_groups[0]  # a page has no room for all that torch keeps there
    for key in set(group) - {"lr", "momentum", "params"}:
        del group[key]
    snapshot = LiveState(model, optimizer, {"scheduler": Scheduler()}).capture(2)
    assert snapshot.digest().hex() in page("state-digest.md")
    assert snapshot.scalars == canonical.encode(state_vectors.EXAMPLE_SCALARS)


def test_lineage() -> None:
    text = page("lineage.md")
    assert listings("lineage.md") == [lineage.EXAMPLE.encode()]
    assert f"{len(lineage.EXAMPLE.encode())} bytes" in text
    assert lineage.PARENT.state.hex() in text
    assert f"`{names_blob(lineage.NAMES).hex()}`" in text
    for runs in (1, 2, 5, 10, 100):
        each = share_of_each(0.99, runs)
        counts = " | ".join(str(drawn_for(1000, forged, each)) for forged in (10, 50, 100, 1))
        assert f"| {runs} | {100 * each:.4g} % | {counts} |" in text
