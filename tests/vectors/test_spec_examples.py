"""The worked examples in specs/ are what polstore computes."""

from __future__ import annotations

from pathlib import Path

from polstore.wire import canonical, merkle
from polstore.wire.checkpoint import open_root
from polstore.wire.keys import KeyKind, VerifierKey
from tools.vectors import signed_root

SPECS = Path(__file__).resolve().parents[2] / "specs"


def page(name: str) -> str:
    return (SPECS / name).read_text(encoding="utf-8")


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
