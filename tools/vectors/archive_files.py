"""Vectors of specs/archive-files.md: names of files, salts, and sizes."""

from __future__ import annotations

from polstore.errors import MalformedError
from polstore.wire import canonical
from polstore.wire.archive_files import (
    blob_name,
    decode_salts,
    decode_size,
    encode_salts,
    encode_size,
    run_folder,
    salts_name,
    snapshot_name,
)
from polstore.wire.randomness import sample_salt
from tools.vectors import tiny_run
from tools.vectors.cases import Case, File, expect, file, invalid, valid

__all__ = ["EXAMPLE", "run", "vectors"]

SALTS = tuple((index, sample_salt(tiny_run.DATASET_SALT, index)) for index in range(3))
EXAMPLE = encode_salts(SALTS)  # of the samples that segment 0 of the run `tiny` used
TAG = "polstore/salts/v1"


def vectors() -> File:
    """Return the whole file."""
    return file("archive_files", "specs/archive-files.md", [*_names(), *_salts(), *_sizes()])


def run(case: Case) -> None:
    """Put one case through polstore."""
    match case["kind"]:
        case "run":
            expect("folder", run_folder(case["run"]), case["name"])
        case "name":
            digest = bytes.fromhex(case["digest"])
            expect("blob", blob_name(digest), case["blob"])
            expect("snapshot", snapshot_name(digest), case["snapshot"])
            expect("salts", salts_name(case["segment"]), case["salts"])
        case "salts":
            found = decode_salts(bytes.fromhex(case["bytes"]))
            expect("salts", [[index, salt.hex()] for index, salt in found], case["salts"])
            expect("bytes", encode_salts(found).hex(), case["bytes"])
        case "size":
            size = decode_size(bytes.fromhex(case["bytes"]))
            expect("size", size, case["size"])
            expect("bytes", encode_size(size).hex(), case["bytes"])
        case kind:
            raise AssertionError(f"unknown kind {kind}")


def _names() -> list[Case]:
    faults = [
        "",
        ".",
        "..",
        "../a",
        "a/b",
        "/a",
        ".a",
        "-a",
        "a b",
        "a\n",
        "a%2fb",
        "a\\b",
        "a\x00",
        "\u00e9",
        "x" * 65,
    ]
    digest = tiny_run.RECORDS[0].steps
    return [
        *(
            valid(f"run_{number}", "a run's folder", kind="run", run=name, name=f"run/{name}")
            for number, name in enumerate(["tiny", "0", "A.b_c-9", "a..b", "x" * 64])
        ),
        *(
            invalid(f"run_fault_{number}", "no run has this name", MalformedError, kind="run", run=name, name="")
            for number, name in enumerate(faults)
        ),
        valid(
            "names",
            "of a blob, of a stored snapshot with this state digest, and of the salts of a segment",
            kind="name",
            digest=digest.hex(),
            blob=blob_name(digest),
            snapshot=snapshot_name(digest),
            segment=1234,
            salts=salts_name(1234),
        ),
    ]


def _salts() -> list[Case]:
    def fields(data: bytes) -> Case:
        return {"kind": "salts", "bytes": data.hex(), "salts": [[index, salt.hex()] for index, salt in SALTS]}

    one, two, three = SALTS
    faults = [
        ("tag", "another tag", canonical.encode(("polstore/salts/v2", SALTS))),
        ("short", "no salts field", canonical.encode((TAG,))),
        ("long", "a field more", canonical.encode((TAG, SALTS, 0))),
        ("order", "not ascending", canonical.encode((TAG, (two, one, three)))),
        ("doubled", "one sample twice", canonical.encode((TAG, (one, two, two)))),
        ("salt_short", "a salt of 31 bytes", canonical.encode((TAG, (one, (1, two[1][:31]), three)))),
        ("salt_text", "text for a salt", canonical.encode((TAG, ((0, "x" * 32),)))),
        ("index_negative", "no such sample", canonical.encode((TAG, ((-1, one[1]), two)))),
        ("index_huge", "above 2**48", canonical.encode((TAG, ((2**48 + 1, one[1]),)))),
        ("index_boolean", "true for 1", canonical.encode((TAG, ((True, one[1]),)))),
        ("pair_long", "a pair of three", canonical.encode((TAG, ((0, one[1], 0),)))),
        ("not_canonical", "an index in a longer form than it needs", EXAMPLE[:21] + b"\xcc\x00" + EXAMPLE[22:]),
        ("cut", "a byte less", EXAMPLE[:-1]),
        ("more", "a byte more", EXAMPLE + b"\x00"),
        ("empty", "nothing", b""),
    ]
    return [
        valid("salts_example", "the worked example", **fields(EXAMPLE)),
        valid("salts_none", "a segment of no samples", **fields(encode_salts(())) | {"salts": []}),
        *(invalid(f"salts_{name}", comment, MalformedError, **fields(data)) for name, comment, data in faults),
    ]


def _sizes() -> list[Case]:
    faults = [
        b"",
        b"12",
        b"12\n\n",
        b"012\n",
        b"-1\n",
        b"+1\n",
        b"1_0\n",
        b" 1\n",
        b"1.0\n",
        b"1" * 20 + b"\n",
        b"\xd9\xa1\n",
    ]
    return [
        *(
            valid(f"size_{size}", "bytes of a run", kind="size", bytes=encode_size(size).hex(), size=size)
            for size in (0, 1618854, 10**19 - 1)
        ),
        *(
            invalid(f"size_fault_{number}", "not a size", MalformedError, kind="size", bytes=data.hex(), size=12)
            for number, data in enumerate(faults)
        ),
    ]
