"""Tiles: paths, which tiles a tree has, their bytes, and the tree that comes back out of them."""

import hashlib

import pytest

from polstore.errors import MalformedError, UsageError
from polstore.wire import merkle
from polstore.wire.checkpoint import MAX_SIZE
from polstore.wire.multi_proof import multi_proof
from polstore.wire.tiles import (
    ENTRIES,
    MAX_ENTRY,
    WIDTH,
    Tile,
    decode_entries,
    decode_hashes,
    encode_entries,
    encode_hashes,
    node_from_tiles,
    tile_of,
    tiles,
)

LARGEST = 66_000  # leaves: two levels of full tiles and the first hash of a third
SIZES = [1, 2, 3, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, LARGEST]


@pytest.fixture(scope="module")
def hashes():
    return [hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(LARGEST)]


@pytest.fixture(scope="module")
def node(hashes):
    return merkle.nodes_of(hashes)


def levels(hashes):
    """The slow reference: every level of tiles as one list of hashes, each found by hashing all leaves below it."""
    found, width = [], 1
    while len(hashes) >= width:
        full = len(hashes) // width
        found.append([merkle.root(hashes[number * width : (number + 1) * width]) for number in range(full)])
        width *= WIDTH
    return found


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 273, 112), "tile/0/273.p/112"),
        (Tile(2, 0, 1), "tile/2/000.p/1"),
        (Tile(ENTRIES, 999), "tile/entries/999"),
        (Tile(ENTRIES, 1000, 255), "tile/entries/x001/000.p/255"),
        (Tile(0, 1_234_067), "tile/0/x001/x234/067"),
        (Tile(5, 0, 255), "tile/5/000.p/255"),
    ],
)
def test_paths(tile, path):
    assert tile.path() == path
    assert Tile.parse(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tile",
        "tile/0/",
        "tile/0/0",
        "tile/0/0000",
        "tile/0/x000/000",
        "tile/0/001/000",
        "tile/0/x001/x000",
        "tile/00/000",
        "tile/6/000",
        "tile/-1/000",
        "tile/data/000",
        "tile/8/0/000",
        "/tile/0/000",
        "tile/0/000/",
        "tile/0/000\n",
        "tile/0/../000",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/001",
        "tile/0/000.p/1000",
        "tile/0/000.p",
        "tile/0/\u0660\u0660\u0660",
        "tile/0/X001/000",
        "tile/0/" + "x999/" * 5 + "999",
        "tile/5/001",
        "tile/5/000",  # its last leaf would be number 2**48 - 1, of a tree larger than any
        "tile/0/" + "x001/" * 100 + "000",
    ],
)
def test_paths_that_are_none(path):
    with pytest.raises(MalformedError, match="path of a tile"):
        Tile.parse(path)


@pytest.mark.parametrize("place", [(-2, 0, 1), (6, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257), (0, 2**40, 256)])
def test_places_that_no_tree_has(place):
    with pytest.raises(UsageError, match="tile"):
        Tile(*place)


def test_the_tiles_of_70_000_leaves():
    found = list(tiles(0, 70_000))
    assert len([tile for tile in found if tile.level == 0 and tile.width == WIDTH]) == 273
    assert found[-4:] == [Tile(0, 273, 112), Tile(1, 0), Tile(1, 1, 17), Tile(2, 0, 1)]
    assert {tile.level for tile in tiles(0, 70_000, entries=False)} == {0, 1, 2}
    assert list(tiles(0, 0)) == list(tiles(70_000, 70_000)) == []


@pytest.mark.parametrize("sizes", [(-1, 2), (3, 2), (0, MAX_SIZE + 1)])
def test_sizes_that_no_tree_has(sizes):
    with pytest.raises(UsageError, match="sizes"):
        list(tiles(*sizes))


def test_the_largest_tree_has_tiles_at_every_level():
    assert [tile.path() for tile in tiles(MAX_SIZE - 1, MAX_SIZE)] == [
        "tile/entries/x001/x099/x511/x627/775.p/255",
        "tile/0/x001/x099/x511/x627/775.p/255",
    ]
    assert tile_of(5, 0, MAX_SIZE) == Tile(5, 0, 255)


def test_growing_by_any_step_gives_the_tiles_of_the_whole():
    for new in range(1, 700, 23):
        whole = set(tiles(0, new))
        for old in range(0, new + 1, 7):
            added, before = set(tiles(old, new)), set(tiles(0, old))
            assert added == whole - before
            assert {tile for tile in before if tile.width == WIDTH} <= whole  # full tiles stay as they are


@pytest.mark.parametrize("size", SIZES)
def test_hash_tiles_are_those_of_the_reference(size, hashes, node):
    expected = levels(hashes[:size])
    seen = [0] * len(expected)
    for tile in tiles(0, size, entries=False):
        part = decode_hashes(tile, encode_hashes(tile, node))
        start = tile.index * WIDTH
        assert list(part) == expected[tile.level][start : start + WIDTH]
        seen[tile.level] += len(part)
    assert seen == [len(level) for level in expected]


@pytest.mark.parametrize("size", SIZES)
def test_a_tree_comes_back_out_of_its_tiles(size, hashes, node):
    read = {tile: decode_hashes(tile, encode_hashes(tile, node)) for tile in tiles(0, size, entries=False)}
    again = node_from_tiles(size, read.__getitem__)  # a tile that is not the tree's own would be a KeyError
    assert merkle.root_from_nodes(size, again) == merkle.root(hashes[:size])
    indices = sorted({0, size // 3, size // 2, size - 1})
    for index in indices:
        assert merkle.inclusion_proof(index, size, again) == merkle.inclusion_proof(index, size, node)
        assert merkle.consistency_proof(index, size, again) == merkle.consistency_proof(index, size, node)
    assert multi_proof(indices, size, again) == multi_proof(indices, size, node)


def test_a_tree_has_no_nodes_beyond_its_size(hashes, node):
    again = node_from_tiles(300, lambda tile: decode_hashes(tile, encode_hashes(tile, node)))
    assert again(8, 0) == node(8, 0)
    for place in [(8, 1), (0, 300), (-1, 0), (0, -1)]:
        with pytest.raises(UsageError, match="no full subtree"):
            again(*place)


@pytest.mark.parametrize("length", [0, 31, 33, 63, 65, 96])
def test_a_hash_tile_of_another_length(length):
    with pytest.raises(MalformedError, match=r"length of tile/0/000\.p/2"):
        decode_hashes(Tile(0, 0, 2), bytes(length))


def test_entry_bundles():
    leaves = [b"", b"a", bytes(MAX_ENTRY)]
    tile = Tile(ENTRIES, 0, 3)
    data = encode_entries(leaves)
    assert data == b"\0\0" + b"\0\1a" + b"\xff\xff" + bytes(MAX_ENTRY)
    assert list(decode_entries(tile, data)) == leaves
    for wrong in (data[:-1], data[:1], data[:4], b"", data + b"\0", data + b"\0\0", data[2:]):
        with pytest.raises(MalformedError, match="tile/entries"):
            decode_entries(tile, wrong)
    with pytest.raises(MalformedError, match="entries of"):
        decode_entries(Tile(ENTRIES, 0, 2), data)


@pytest.mark.parametrize("leaves", [[], [b""] * 257, [bytes(MAX_ENTRY + 1)]])
def test_entries_that_no_bundle_holds(leaves):
    with pytest.raises(UsageError, match="entr"):
        encode_entries(leaves)
