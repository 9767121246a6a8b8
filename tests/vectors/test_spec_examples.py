"""The worked examples in specs/ are what polstore computes."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import torch

from polstore.codec.live.state import LiveState
from polstore.wire import archive_files as names
from polstore.wire import canonical, merkle
from polstore.wire import note as notes
from polstore.wire.checkpoint import open_root
from polstore.wire.keys import KeyKind, VerifierKey
from polstore.wire.lineage import names_blob
from polstore.wire.policy import Policy, evidence
from polstore.wire.randomness import sample_salt, stream_seed
from polstore.wire.sample import sample_leaf
from polstore.wire.state import TensorEntry, scalars_entry, state_digest
from polstore.wire.tiles import Tile, encode_entries, encode_hashes, node_from_tiles
from polstore.wire.tiles import tiles as tiles_of
from polverify.chain import drawn_for, share_of_each
from tools.vectors import archive_files, challenge, ledger, lineage, signed_root, tiles, tiny_run
from tools.vectors import state_digest as state_vectors
from tools.vectors import time as time_vectors

SPECS = Path(__file__).resolve().parents[2] / "specs"


def page(name: str) -> str:
    return (SPECS / name).read_text(encoding="utf-8")


def listings(name: str) -> list[bytes]:
    """Return the bytes that each indented listing of a page shows: hex, and after two spaces a remark."""
    return listings_of(page(name))


def listings_of(text: str) -> list[bytes]:
    found, rows = [], []
    for line in [*text.split("\n"), ""]:
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


def test_ledger() -> None:
    text = page("ledger.md")
    assert listings_of(text.split("The head over both")[0]) == [leaf.encode() for leaf in ledger.LEAVES]
    for leaf in ledger.LEAVES:
        assert f"`{leaf.leaf_hash().hex()}`" in text
        assert f"{len(leaf.encode())} bytes" in text
    proof = ledger.PROOF.encode().decode().split("\n\n")[0] + "\n"
    for part in (ledger.HEAD.decode(), proof, ledger.CONSISTENCY):
        assert "".join(f"    {line}\n" if line else "\n" for line in part.split("\n")[:-1]) in text


def test_time() -> None:
    text = page("time.md")
    request = next(case for case in time_vectors.vectors()["cases"] if case["id"] == "request_growth")
    for block in (time_vectors.WITNESSED.decode(), time_vectors.POLICY, request["body"].partition("\n\n")[0] + "\n"):
        assert "".join(f"    {line}\n" if line else "\n" for line in block.split("\n")[:-1]) in text
    note = notes.parse(time_vectors.WITNESSED)
    found = evidence(note, Policy.parse(time_vectors.POLICY.encode()))
    assert (found.existed_by, found.not_before) == (1_700_000_060, 1_700_000_040)
    assert sha256(note.text.encode()).hexdigest() in text


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
    assert challenge.EXAMPLE.segments == (0, 3, 4)


def test_bundle() -> None:
    data = tiny_run.bundle_file(tiny_run.bundle(0))
    assert listings("bundle.md") == [data]
    assert f"The whole file, {len(data)} bytes" in page("bundle.md")


def test_tiles() -> None:
    hashes = [merkle.leaf_hash(leaf) for leaf in tiles.EXAMPLE]
    assert listings("tiles.md") == [
        encode_entries(tiles.EXAMPLE),
        encode_hashes(Tile(0, 0, 3), merkle.nodes_of(hashes)),
    ]
    text = page("tiles.md")
    shown = [tile.path() for tile in tiles_of(0, 70_000) if tile.width < 256 or tile.index in (0, 272)]
    assert len(shown) == 9
    assert all(f"`{path}`" in text for path in shown)
    used: set[str] = set()

    def read(tile: Tile) -> list[bytes]:
        used.add(tile.path())
        return [bytes(32)] * tile.width

    merkle.inclusion_proof(69_999, 70_000, node_from_tiles(70_000, read))
    assert used == {"tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1"}
    assert f"{32 * (112 + 17 + 1)} bytes" in text


def test_archive_files() -> None:
    assert listings("archive-files.md") == [archive_files.EXAMPLE]
    text = page("archive-files.md")
    assert f"`run/tiny/salts/0`, {len(archive_files.EXAMPLE)} bytes" in text
    record = tiny_run.RECORDS[0]
    assert {index for index, _ in archive_files.SALTS} == tiny_run.STEPS[0].samples()
    assert f"`{names.blob_name(record.steps)}`" in text
    assert f"`{names.snapshot_name(record.end_state)}`" in text
    assert names.longest_salts(0) == 24
    assert names.longest_salts(1) - names.longest_salts(0) == 44


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
