"""Vectors of specs/tiles.md: paths, which tiles a tree has, their bytes, and proofs made from them."""

from __future__ import annotations

from polstore.errors import MalformedError, MerkleError
from polstore.wire import merkle
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
from tools.vectors.cases import Case, File, expect, file, invalid, valid

__all__ = ["EXAMPLE", "run", "vectors"]

EXAMPLE = (b"", b"\x00", b"\x10")  # the worked example's leaves
LARGEST = 70_000
LEAVES = [b"%d" % index for index in range(LARGEST)]  # leaf i is i in decimal
HASHES = [merkle.leaf_hash(leaf) for leaf in LEAVES]
NODE = merkle.nodes_of(HASHES)


def vectors() -> File:
    """Return the whole file."""
    return file("tiles", "specs/tiles.md", [*_paths(), *_lists(), *_hashes(), *_entries(), *_inclusions()])


def run(case: Case) -> None:
    """Put one case through polstore."""
    match case["kind"]:
        case "path":
            tile = Tile.parse(case["path"])
            expect("place", [tile.level, tile.index, tile.width], case["place"])
            expect("path", tile.path(), case["path"])
        case "tiles":
            paths = [tile.path() for tile in tiles(case["old_size"], case["new_size"])]
            expect("paths", paths, case["paths"])
        case "hashes":
            tile, data = Tile.parse(case["path"]), bytes.fromhex(case["bytes"])
            expect("hashes", decode_hashes(tile, data), decode_hashes(tile, encode_hashes(tile, NODE)))
        case "entries":
            found = decode_entries(Tile.parse(case["path"]), bytes.fromhex(case["bytes"]))
            expect("entries", [entry.hex() for entry in found], case["entries"])
            expect("bytes", encode_entries(found).hex(), case["bytes"])
        case "inclusion":
            index, size = case["index"], case["size"]
            node = node_from_tiles(size, lambda tile: decode_hashes(tile, bytes.fromhex(case["tiles"][tile.path()])))
            proof = merkle.inclusion_proof(index, size, node)
            leaf = merkle.leaf_hash(b"%d" % index)
            merkle.verify_inclusion(leaf, index, size, proof, bytes.fromhex(case["root"]))
        case kind:
            raise AssertionError(f"unknown kind {kind}")


def _paths() -> list[Case]:
    places = [
        (0, 0, 256),
        (0, 0, 1),
        (0, 273, 112),
        (1, 1, 17),
        (2, 0, 1),
        (0, 999, 256),
        (0, 1000, 256),
        (0, 1_234_067, 44),
        (ENTRIES, 1_234_067, 256),
        (5, 0, 255),
        (0, 2**40 - 1, 255),
    ]
    faults = [
        ("empty", ""),
        ("short_number", "tile/0/0"),
        ("long_number", "tile/0/0000"),
        ("leading_group", "tile/0/x000/001"),
        ("no_x", "tile/0/001/000"),
        ("x_last", "tile/0/x001"),
        ("x_upper", "tile/0/X001/000"),
        ("level_6", "tile/6/000"),
        ("level_zeros", "tile/00/000"),
        ("level_name", "tile/data/000"),
        ("height", "tile/8/0/000"),
        ("width_0", "tile/0/000.p/0"),
        ("width_256", "tile/0/000.p/256"),
        ("width_zeros", "tile/0/000.p/01"),
        ("width_missing", "tile/0/000.p"),
        ("slash_before", "/tile/0/000"),
        ("slash_after", "tile/0/000/"),
        ("newline", "tile/0/000\n"),
        ("dots", "tile/0/../000"),
        ("digits_of_another_script", "tile/0/00\u0660"),
        ("beyond", "tile/5/001"),
        ("beyond_full", "tile/5/000"),
    ]
    return [
        *(
            valid(f"path_{number}", "a place and its path", kind="path", place=list(place), path=Tile(*place).path())
            for number, place in enumerate(places)
        ),
        *(
            invalid(f"path_{name}", "not the path of a tile", MalformedError, kind="path", path=path, place=[0, 0, 1])
            for name, path in faults
        ),
    ]


def _lists() -> list[Case]:
    sizes = [
        (0, 1),
        (0, 255),
        (0, 256),
        (0, 257),
        (255, 257),
        (256, 256),
        (300, 600),
        (65_535, 65_537),
        (69_990, 70_000),
    ]
    return [
        valid(
            f"tiles_{old}_to_{new}",
            "what an export of the new tree adds to one of the old",
            kind="tiles",
            old_size=old,
            new_size=new,
            paths=[tile.path() for tile in tiles(old, new)],
        )
        for old, new in sizes
    ]


def _hashes() -> list[Case]:
    kept = [Tile(0, 0, 3), Tile(0, 1, 44), Tile(1, 0, 1), Tile(1, 1, 17), Tile(2, 0, 1)]
    sound = encode_hashes(kept[0], NODE)
    cases = [
        valid(
            f"hashes_{number}",
            "a hash tile of the tree of decimal numbers",
            kind="hashes",
            path=tile.path(),
            bytes=encode_hashes(tile, NODE).hex(),
        )
        for number, tile in enumerate(kept)
    ]
    faults = [
        ("cut", "a byte less", sound[:-1]),
        ("hash_missing", "a hash less", sound[:-32]),
        ("hash_more", "a hash more", sound + sound[:32]),
        ("empty", "nothing", b""),
    ]
    cases += [
        invalid(f"hashes_{name}", comment, MalformedError, kind="hashes", path=kept[0].path(), bytes=data.hex())
        for name, comment, data in faults
    ]
    return cases


def _entries() -> list[Case]:
    def case(leaves: tuple[bytes, ...]) -> Case:
        return {
            "kind": "entries",
            "path": Tile(ENTRIES, 0, len(leaves)).path(),
            "entries": [leaf.hex() for leaf in leaves],
            "bytes": encode_entries(leaves).hex(),
        }

    sound = case(EXAMPLE)
    data = sound["bytes"]
    faults = [
        ("empty", "no entry at all", {"bytes": ""}),
        ("cut", "the last byte is missing", {"bytes": data[:-2]}),
        ("cut_length", "half a length", {"bytes": data[:-4]}),
        ("entry_missing", "an entry less than the width says", {"bytes": data[:-6]}),
        ("entry_more", "an entry more than the width says", {"bytes": data + "0000"}),
        ("byte_more", "a byte after the last entry", {"bytes": data + "00"}),
        ("length_large", "a length beyond the end", {"bytes": data[:-6] + "ffff10"}),
        ("little_endian", "lengths with their bytes swapped", {"bytes": "0000010000010010"}),
    ]
    return [
        valid("entries_example", "the worked example", **sound),
        valid("entries_long", "an entry of 300 bytes", **case((bytes(300),))),
        valid("entries_256", "a full bundle", **case(tuple(LEAVES[:256]))),
        *(invalid(f"entries_{name}", comment, MalformedError, **sound | change) for name, comment, change in faults),
    ]


def _inclusions() -> list[Case]:
    def fields(index: int, size: int) -> Case:
        used: dict[str, str] = {}

        def read(tile: Tile) -> tuple[bytes, ...]:
            data = encode_hashes(tile, NODE)
            used[tile.path()] = data.hex()
            return decode_hashes(tile, data)

        merkle.inclusion_proof(index, size, node_from_tiles(size, read))
        root = merkle.root_from_nodes(size, NODE).hex()
        return {"kind": "inclusion", "index": index, "size": size, "tiles": used, "root": root}

    sound = fields(256, 257)
    path, wrong = Tile(1, 0, 1).path(), HASHES[0].hex()
    partial = fields(299, 300)
    edge = tile_of(0, 1, 300).path()
    data = partial["tiles"][edge]
    swapped = partial["tiles"] | {edge: data[:-128] + data[-64:] + data[-128:-64]}
    cut = partial["tiles"] | {edge: data[:-64]}
    faults = [
        ("root_other", "another root", MerkleError, sound | {"root": wrong}),
        ("tile_other", "another hash in a tile", MerkleError, sound | {"tiles": {path: wrong}}),
        ("leaves_swapped", "two hashes change places", MerkleError, partial | {"tiles": swapped}),
        ("tile_cut", "a hash less than the width says", MalformedError, partial | {"tiles": cut}),
    ]
    return [
        *(
            valid(f"inclusion_{index}_of_{size}", "a proof from tiles alone", **fields(index, size))
            for index, size in [(0, 1), (2, 3), (0, 257), (256, 257), (299, 300), (65_536, 65_537), (69_999, LARGEST)]
        ),
        *(invalid(f"inclusion_{name}", comment, error, **case) for name, comment, error, case in faults),
    ]
