"""Tiles and archive files over many inputs: what is read is written again the same, and nothing else is read."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from polstore.errors import MalformedError
from polstore.wire import merkle
from polstore.wire.archive_files import decode_salts, decode_size, encode_salts, encode_size, longest_salts
from polstore.wire.checkpoint import MAX_SIZE
from polstore.wire.multi_proof import multi_proof, verify_multi_proof
from polstore.wire.tiles import (
    ENTRIES,
    Tile,
    decode_entries,
    decode_hashes,
    encode_entries,
    encode_hashes,
    node_from_tiles,
    tile_of,
    tiles,
)

MANY = settings(max_examples=200, deadline=None)
HASHES = [merkle.leaf_hash(b"%d" % index) for index in range(1500)]
NODE = merkle.nodes_of(HASHES)


@st.composite
def places(draw: st.DrawFn) -> Tile:
    size = draw(st.one_of(st.integers(1, 2000), st.integers(1, MAX_SIZE)))
    levels = [level for level in range(ENTRIES, 6) if size >> 8 * max(level, 0)]
    level = draw(st.sampled_from(levels))
    last = ((size >> 8 * max(level, 0)) - 1) >> 8
    return tile_of(level, draw(st.integers(0, last)), size)


@MANY
@given(places())
def test_paths(tile: Tile) -> None:
    assert Tile.parse(tile.path()) == tile


@MANY
@given(places(), st.data())
def test_a_changed_path_is_another_tile_or_none(tile: Tile, data: st.DataObject) -> None:
    path = tile.path()
    at = data.draw(st.integers(0, len(path)))
    new = data.draw(st.sampled_from("0123456789x/.p-+ e\n\u0663"))
    for changed in (path[:at] + new + path[at:], path[:at] + path[at + 1 :], path[:at] + new + path[at + 1 :]):
        with suppress(MalformedError):
            found = Tile.parse(changed)
            assert found.path() == changed
            assert (found == tile) == (changed == path)


@MANY
@given(st.integers(0, 2000), st.integers(0, 2000))
def test_a_tree_grows_by_the_tiles_it_lacks(one: int, other: int) -> None:
    old, new = sorted((one, other))
    assert set(tiles(old, new)) == set(tiles(0, new)) - set(tiles(0, old))


@MANY
@given(st.integers(1, 1500), st.data())
def test_proofs_from_tiles(size: int, data: st.DataObject) -> None:
    own = set(tiles(0, size, entries=False))

    def read(tile: Tile) -> tuple[bytes, ...]:
        assert tile in own
        return decode_hashes(tile, encode_hashes(tile, NODE))

    node, root = node_from_tiles(size, read), merkle.root(HASHES[:size])
    index = data.draw(st.integers(0, size - 1))
    merkle.verify_inclusion(HASHES[index], index, size, merkle.inclusion_proof(index, size, node), root)
    indices = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=12)))
    verify_multi_proof([(each, HASHES[each]) for each in indices], size, multi_proof(indices, size, node), root)


@MANY
@given(st.lists(st.binary(max_size=600), min_size=1, max_size=256), st.data())
def test_entries(leaves: list[bytes], data: st.DataObject) -> None:
    tile, encoded = Tile(ENTRIES, 0, len(leaves)), encode_entries(leaves)
    assert list(decode_entries(tile, encoded)) == leaves
    at = data.draw(st.integers(0, len(encoded) - 1))
    changed = encoded[:at] + data.draw(st.binary(max_size=2)) + encoded[at + 1 :]
    with suppress(MalformedError):
        assert encode_entries(decode_entries(tile, changed)) == changed


@MANY
@given(st.dictionaries(st.integers(0, 2**48), st.binary(min_size=32, max_size=32), max_size=20), st.data())
def test_salts(salts: dict[int, bytes], data: st.DataObject) -> None:
    encoded = encode_salts(sorted(salts.items()))
    assert decode_salts(encoded) == tuple(sorted(salts.items()))
    assert len(encoded) <= longest_salts(len(salts))
    at = data.draw(st.integers(0, len(encoded) - 1))
    changed = encoded[:at] + data.draw(st.binary(max_size=2)) + encoded[at + 1 :]
    with suppress(MalformedError):
        assert encode_salts(decode_salts(changed)) == changed


@MANY
@given(st.one_of(st.integers(0, 10**19 - 1).map(encode_size), st.binary(max_size=24)))
def test_sizes(data: bytes) -> None:
    with suppress(MalformedError):
        assert encode_size(decode_size(data)) == data
