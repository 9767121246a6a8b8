"""Vectors of specs/codec.md: quantised tensors, and stored snapshots good and bad.

All frames are raw but for literal zstd frames, so the file comes out the same with every version of zstd.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from polstore.codec.frames import Encoding, StoredFrame, StoredGroup, StoredSnapshot, StoredTensor, decode, encode
from polstore.codec.items import read_values
from polstore.codec.proportion import salt_of, tensor_key
from polstore.codec.quantise import quantise
from polstore.codec.snapshot import CARRIER, Snapshot, Tensor
from polstore.errors import MalformedError
from tools.vectors.cases import Case, File, expect, file, invalid, valid

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run", "vectors"]

FIDELITY = "float16-writeback"
COMPACT = "compact-writeback"
SCALARS = b"\x90"
OTHER_SCALARS = b"\x91\x01"
ZSTD_RUN_OF_100_ZEROS = bytes.fromhex("28b52ffd206423030000")  # one block that repeats a byte
ZSTD_OF_100_ZEROS = bytes.fromhex("28b52ffd206445000010000001003f012c")
WEIGHT, FIRST, SECOND = "parameter/w", "optimizer/w/exp_avg", "optimizer/w/exp_avg_sq"


_ODD = [1 << 31, 1, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFF800001, 0x7F7FFFFF]  # -0.0 to the largest
_Row = tuple[str, str, str, list[int], list[int] | None]  # identifier, comment, name, live words and the base's


def vectors() -> File:
    """Return the whole file."""
    return file("codec", "specs/codec.md", [*_quantised(), *_stored()])


def run(case: Case) -> None:
    """Put one case through polstore."""
    if case["kind"] == "quantise":
        base = None if case["base"] is None else _one(case, case["base"])
        live = _one(case, case["live"])
        committed = quantise(live, base, case["fidelity"]).tensors[0].data.tobytes()
        expect("committed", committed.hex(), case["committed"])
        return
    frames = {bytes.fromhex(digest): bytes.fromhex(frame) for digest, frame in case["frames"].items()}
    record = StoredSnapshot.parse(bytes.fromhex(case["record"]))
    expect("record", record.encode().hex(), case["record"])
    snapshot = decode(record, _base(case), frames.__getitem__)
    expect("tensors", _listed(snapshot), case["tensors"])


def _one(case: Case, data: str) -> Snapshot:
    tensor = Tensor(case["name"], "float32", tuple(case["shape"]), np.frombuffer(bytes.fromhex(data), "<f4"))
    return Snapshot((tensor,), bytes.fromhex(case["scalars"]))


def _base(case: Case) -> Snapshot | None:
    if case["base_tensors"] is None:
        return None
    tensors = (
        Tensor(
            item["name"],
            item["dtype"],
            tuple(item["shape"]),
            np.frombuffer(bytes.fromhex(item["data"]), CARRIER[item["dtype"]]),
        )
        for item in case["base_tensors"]
    )
    return Snapshot(tuple(tensors), bytes.fromhex(case["base_scalars"]))


def _floats(name: str, words: list[int]) -> Tensor:
    return Tensor(name, "float32", (len(words),), np.array(words, "<u4").view("<f4"))


def _quantised() -> Iterator[Case]:
    example = [0x3F8020C5, 0xC0000831, 0x3F000000], [0x3F800000, 0xC0000000, 0x3F000000]
    rows: list[_Row] = [
        ("weight-example", "the worked example", WEIGHT, *example),
        ("weight-keyframe", "no base: exact", WEIGHT, example[0], None),
        (
            "weight-unchanged",
            "no delta: the base, negative zero included",
            WEIGHT,
            [0, 0x3F800000],
            [1 << 31, 0x3F800000],
        ),
        ("weight-negative-zero", "base -0.0 plus half +0.0", WEIGHT, [1 << 31, 0x40000000], [1 << 31, 0x3F800000]),
        ("weight-small-deltas", "subnormal halves", WEIGHT, [0x44800000, 0x33800001, 0x2F000000], [0, 0, 0]),
        ("weight-subnormal", "the exponent stops at -126", WEIGHT, [1, 0x80000003], [0, 0]),
        ("weight-nan", "a NaN makes the tensor exact", WEIGHT, [0x7FC00001, 0x3F9E0652], [0, 0]),
        ("weight-infinite", "so does an infinity", WEIGHT, [0xFF800000, 0x3F9E0652], [0, 0]),
        ("weight-infinite-in-both", "of which the delta is a NaN", WEIGHT, [0x7F800000, 0x3F9E0652], [0x7F800000, 0]),
        ("weight-base-infinite", "so does an infinity in the base", WEIGHT, [0x3F800000, 0x3F9E0652], [0x7F800000, 0]),
        ("weight-delta-overflows", "so does a delta too large", WEIGHT, [0x7F61B1E6, 0x3F9E0652], [0xFF61B1E6, 0]),
        ("weight-result-overflows", "so does a result", WEIGHT, [0x7F7FFFFF, 0x3F9E0652], [0x7F000000, 0]),
        *_moments("", 16, 16),
        ("unknown-key", "exact", "optimizer/w/master_weight", [0x3F9E0652], [0]),
        ("buffer", "exact", "buffer/running_mean", [0x3F9E0652], [0]),
    ]
    for row in rows:
        yield _quantise(FIDELITY, *row)
    yield _quantise(FIDELITY, "moment-scalar", "no dimension: exact", FIRST, [0x3F9E0652], None, shape=[])
    yield _quantise("float16", "float16", "the same values as with write-back", WEIGHT, *example)
    yield _quantise("float16", "float16-moment", "likewise", FIRST, [0x3F9E0652] * 4, None)
    yield _quantise("float16", "float16-weight-infinite", "exact", WEIGHT, [0xFF800000, 0x3F9E0652], [0, 0])
    yield _quantise("float16", "float16-moment-nan", "exact", SECOND, [0x7FC00001, 0x322BCC77], None)
    yield _quantise("lossless", "lossless-moment", "exact", FIRST, [0x3F9E0652] * 4, None)
    yield _quantise("lossless", "lossless-weight", "exact, whatever it is", WEIGHT, _ODD, [0x3F800000] * len(_ODD))
    compact: list[_Row] = [
        ("compact-weight", "the worked example", WEIGHT, *example),
        ("compact-weight-keyframe", "no base: exact", WEIGHT, example[0], None),
        ("compact-weight-other-name", "another key", "parameter/v", *example),
        ("compact-weight-unchanged", "no delta: the base", WEIGHT, [0, 0x3F800000], [1 << 31, 0x3F800000]),
        ("compact-weight-negative-zero", "base -0.0 plus step 0", WEIGHT, [1 << 31, 0x40000000], [1 << 31, 0x3F800000]),
        ("compact-weight-sparse", "one of twenty moves", WEIGHT, [0x3F8020C5, *_ONES], [0x3F800000, *_ONES]),
        (
            "compact-weight-uneven",
            "the exponent is bounded by the largest",
            WEIGHT,
            [0x3F800000, *[1] * 600],
            [0] * 601,
        ),
        ("compact-weight-subnormal", "the exponent stops at -126", WEIGHT, [1, 0x80000003, 0x00700000], [0, 0, 0]),
        ("compact-weight-nan", "a NaN makes the tensor exact", WEIGHT, [0x7FC00001, 0x3F9E0652], [0, 0]),
        ("compact-weight-live-infinite", "so does an infinity", WEIGHT, [0xFF800000, 0x3F9E0652], [0, 0]),
        ("compact-weight-base-infinite", "so does the base's", WEIGHT, [0x3F800000, 0x3F9E0652], [0x7F800000, 0]),
        ("compact-weight-overflow", "so does a delta too large", WEIGHT, [0x7F61B1E6, 0x3F9E0652], [0xFF61B1E6, 0]),
        ("compact-weight-infinite", "so does a result", WEIGHT, [0x7F7FFFFF] * 20, [0] * 20),
        *_moments("compact-", 20, 18),
    ]
    for row in compact:
        yield _quantise(COMPACT, *row)
    for fidelity, identifier, name, live, base in (
        (FIDELITY, "first-other-scalars", FIRST, [0x3F808000] * 16, None),
        (COMPACT, "compact-weight-other-scalars", WEIGHT, *example),
        (COMPACT, "compact-first-other-scalars", FIRST, [0x3F880000] * 16, None),
        (COMPACT, "compact-second-other-scalars", SECOND, [0x3F820000] * 16, None),
    ):
        yield _quantise(fidelity, identifier, "another snapshot, another key", name, live, base, OTHER_SCALARS)


def _moments(prefix: str, first: int, second: int) -> Iterator[_Row]:
    """Yield cases of the moments of a fidelity that drops so many of their low bits."""
    for key, name, dropped, example in (
        ("first", FIRST, first, [0x3F9E0652, 0xBF9E0652]),
        ("second", SECOND, second, [0x322BCC77, 0x32D6BF95]),
    ):
        unit = 1 << dropped
        rows: tuple[tuple[str, str, list[int], list[int] | None], ...] = (
            ("example", "the worked example; a keyframe", example, None),
            ("base", "the base's values play no part", [*example, 1 << 31], [0, example[1], 0x7FC00000]),
            ("zeros", "zeros keep their signs", [0, 1 << 31, 0x3F800000 + unit // 2], None),
            ("ladder", "half way, at sixteen places", [0x3F800000 + unit // 2] * 16, None),
            ("edges", "what the threshold is just enough for, and one less, in turns", _edges(name, dropped), None),
            ("short", "what has no low bits stays", [0x3F800000 + unit, 0x7F800000 - unit, unit], None),
            ("carry", "into the exponent, and out of the subnormal numbers", _CARRIES, None),
            ("subnormal", "to zero, if it may be, or up", [unit // 2] * 8 + [unit // 2 | 1 << 31] * 8, None),
            ("smallest", "to zero, if it may be", [1, 0x80000001, 3, 0], None),
            ("overflow", "would round to infinity: exact", [0x7F7FFFFF] * 8, None),
            ("overflow-negative", "likewise", [*example, *[0xFF7FFFFF] * 8], None),
            ("infinite", "exact", [0xFF800000, *example], None),
            ("nan", "exact; its bits would carry into the sign", [0x7FFFFFFF, *example], None),
            ("nan-negative", "exact; its bits would carry out of the word", [0xFFFFFFFF, *example], None),
        )
        for identifier, comment, live, base in rows:
            yield f"{prefix}{key}-{identifier}", comment, name, live, base
    name = "optimizer/wé/momentum_buffer"
    yield (
        f"{prefix}first-utf-8",
        "the key is made of the name's bytes",
        name,
        [0x3F800000 + (1 << first - 1)] * 16,
        None,
    )


def _edges(name: str, dropped: int) -> list[int]:
    """Return words whose low bits reach the next number with their thresholds, and in turns are one short of it."""
    key = tensor_key(name, salt_of(SCALARS))
    thresholds = [(key + place * 0x9E3779B1 & 0xFFFFFFFF) >> 32 - dropped for place in range(8)]
    return [0x3F800000 + (1 << dropped) - threshold - place % 2 for place, threshold in enumerate(thresholds)]


_CARRIES = [0x3FFFFFFF, 0xBFFFFFFF, 0x007FFFFF, 0x807FFFFF, 0x3FFFFFFE]
_ONES = [0x3F800000] * 19


def _quantise(
    fidelity: str,
    identifier: str,
    comment: str,
    name: str,
    live: list[int],
    base: list[int] | None,
    scalars: bytes = SCALARS,
    shape: list[int] | None = None,
) -> Case:
    case: Case = {
        "kind": "quantise",
        "fidelity": fidelity,
        "name": name,
        "shape": [len(live)] if shape is None else shape,
        "scalars": scalars.hex(),
        "base": None if base is None else np.array(base, "<u4").tobytes().hex(),
        "live": np.array(live, "<u4").tobytes().hex(),
    }
    before = None if base is None else _one(case, case["base"])
    committed = quantise(_one(case, case["live"]), before, fidelity).tensors[0].data.tobytes().hex()
    return valid(identifier, comment, **case, committed=committed)


def _stored() -> list[Case]:
    base = Snapshot((_floats(WEIGHT, [0x3F800000, 0xC0000000, 0x3F000000]),), SCALARS)
    live = Snapshot((_floats(WEIGHT, [0x3F8020C5, 0xC0000831, 0x3F000000]),), SCALARS)
    record, frames, _ = encode(live, base, FIDELITY)
    good = record.encode()
    many_base, many_live = _all_encodings(0), _all_encodings(1)
    many, many_frames, _ = encode(many_live, many_base, FIDELITY)
    low = record.groups[0].frames[0]
    zeros = b"\x01" + ZSTD_RUN_OF_100_ZEROS
    return [
        _case("stored-example", "the worked example", good, base, frames),
        _case("stored-every-encoding", "five encodings, 7 dtypes", many.encode(), many_base, many_frames),
        _case("stored-keyframe-moments", "no base: moments as bfloat16, the rest exact", *_keyframe(many_live)),
        _case("stored-bfloat16", "every kind of number, its sign last", *_bfloat16([0, 1, 0x7F00, 0x0101, 2, 3])),
        _case("stored-bfloat16-not-finite", "as good as others", *_bfloat16([0xFF00, 0xFF01, 0xFF80, 0xFFFF])),
        _case("stored-moments-exact", "moments may be stored exactly as well", *_moments_exact()),
        _case("stored-short-difference", "against a base whose low 18 bits count for nothing", *_short_difference()),
        _case("stored-short-difference-wraps", "beyond all numbers, modulo 2^32", *_short_wraps()),
        _case("stored-compact", "the encodings of compact-writeback", *_compact()),
        _case("stored-compact-example", "the worked example of compact-writeback", *_compact_example()),
        _case("stored-compact-overflow", "a step of 2^124 times 16 384, of which nothing comes", *_steps_overflow()),
        _case("stored-scaled-nan", "halves and a base of which one NaN comes, or infinity", *_halves_nan()),
        _case("stored-stepped-nan", "a base that is NaN, and another that is infinite", *_steps_nan()),
        _case("stored-low-precision", "float8, bfloat16 and float16, each kept to the bit", *_low_precision()),
        _case("stored-bfloat16-on-integers", "an encoding for float32 on another dtype", *_short_of_integers()),
        _case("stored-short-difference-no-base", "a difference, but the record names no base", *_short_without_base()),
        _case("stored-bfloat16-exponent", "an exponent where nothing is scaled", *_bfloat16([0, 1], exponent=1)),
        _case("stored-bfloat16-sign", "the sign first, as in the word itself", *_bfloat16_sign_first()),
        _case("stored-unknown-encoding", "code 7", *_unknown_encoding()),
        _case("stored-keyframe", "no base", *_keyframe(base)),
        _case("stored-zstd", "a compressed frame", *_zeros(zeros)),
        _case("stored-zstd-huffman", "a frame with an entropy-coded block", *_zeros(b"\x01" + ZSTD_OF_100_ZEROS)),
        _case("stored-wrong-base", "another base than the record names", good, live, frames),
        _case("stored-no-base", "no base at hand", good, None, frames),
        _case("stored-truncated", "the last byte is missing", good[:-1], base, frames),
        _case("stored-extended", "a byte too many", good + b"\0", base, frames),
        _case("stored-exponent", "exponent -23", good.replace(b"\x03\xe8", b"\x03\xe9"), base, frames),
        _case("stored-encoding", "halves read as steps", _as_steps(good), base, frames),
        _case("stored-name", "another tensor's name", good.replace(b"meter/w", b"meter/v"), base, frames),
        _case("stored-scalars", "other scalars", good.replace(b"\xc4\x01\x90", b"\xc4\x01\xc0"), base, frames),
        _case(
            "stored-count", "a group of two items", good.replace(b"\x94\x03\x02\x03", b"\x94\x03\x02\x02"), base, frames
        ),
        _case("stored-frame-changed", "a bit of a frame", good, base, frames | {low.digest: b"\0\x1b\x18\0"}),
        _case(
            "stored-frame-equivalent",
            "a delta of 2^-48 that 0.5 absorbs: other bytes, the same state",
            good,
            base,
            frames | {low.digest: b"\0\x19\x18\x01"},
        ),
        _case("stored-frame-short", "a frame too short", good, base, frames | {low.digest: b"\0\x19\x18"}),
        _case("stored-frame-kind", "a frame neither raw nor zstd", good, base, frames | {low.digest: b"\2\x19\x18\0"}),
        _case("stored-zstd-bomb", "states 1 GiB of content", *_zeros(b"\x01" + _stating(1 << 30))),
        _case("stored-zstd-trailing", "a byte after the zstd frame", *_zeros(zeros + b"\0")),
        _case("stored-zstd-twice", "two zstd frames", *_zeros(zeros + ZSTD_RUN_OF_100_ZEROS)),
    ]


def _all_encodings(step: int) -> Snapshot:
    moved = [1.0, 1.0 + step / 1000, 3.0 - step / 7]

    def tensor(name: str, dtype: str, values: Any) -> Tensor:
        data = np.array(values, CARRIER[dtype]).reshape(-1)
        return Tensor(name, dtype, (data.size,), data)

    return Snapshot(
        (
            tensor("buffer/a", "bool", [step, 1]),
            tensor("buffer/b", "int64", [step - 5]),
            tensor("buffer/c", "float64", moved),
            tensor("buffer/d", "float16", moved),
            Tensor("buffer/e", "complex128", (1,), np.array([step, 2], "<u8")),
            tensor("buffer/f", "bfloat16", []),
            tensor(FIRST, "float32", moved),
            tensor(SECOND, "float32", moved),
            tensor("parameter/frozen", "float32", [1.0]),
            tensor(WEIGHT, "float32", moved),
        ),
        SCALARS,
    )


def _as_steps(record: bytes) -> bytes:
    return record.replace(b"\x03\xe8", b"\x04\xe8").replace(b"\x94\x03\x02\x03", b"\x94\x04\x02\x03")


_Stored = tuple[bytes, Snapshot | None, dict[bytes, bytes]]


def _items(encoding: Encoding, items: list[int], base: Snapshot | None, exponent: int = 0) -> _Stored:
    """Return a record of one second moment whose items are these, and whose content is what they stand for."""
    held, out = np.array(items, "<u2"), np.empty(len(items), "<f4")
    read_values(encoding, "float32", 0, held, None if base is None else base.tensors[0].data, out)
    result = Snapshot((Tensor(SECOND, "float32", (len(items),), out),), SCALARS)
    low, high = (b"\0" + plane.tobytes() for plane in ((held & 0xFF).astype("|u1"), (held >> 8).astype("|u1")))
    frames = {hashlib.sha256(frame).digest(): frame for frame in (low, high)}
    listed = tuple(StoredFrame(hashlib.sha256(frame).digest(), len(frame)) for frame in (low, high))
    rows = tuple(StoredTensor(entry, encoding) for entry in result.entries())
    group = StoredGroup(encoding, 2, len(items), listed)
    digest = None if base is None else base.digest()
    record = StoredSnapshot(result.digest(), digest, SCALARS, rows, (group,)).encode()
    if exponent:  # which polstore would not write
        code = int(encoding)
        record = record.replace(bytes((code, 0, 0x91, 0x94, code)), bytes((code, exponent, 0x91, 0x94, code)))
    return record, base, frames


def _bfloat16(items: list[int], exponent: int = 0) -> _Stored:
    return _items(Encoding.BFLOAT16, items, None, exponent)


def _bfloat16_sign_first() -> _Stored:
    record, base, frames = _bfloat16([0x7F3C, 0x7F3D])
    other = b"\0\x3f\xbf"  # the high plane of 3f9e and bf9e, in place of 7f3c and 7f3d
    return record, base, {digest: other if frame == b"\0\x7f\x7f" else frame for digest, frame in frames.items()}


def _unknown_encoding() -> _Stored:
    record, base, frames = _bfloat16([0, 1])
    return record.replace(b"\x05\x00\x91\x94\x05", b"\x07\x00\x91\x94\x07"), base, frames


def _short_without_base() -> _Stored:
    record, base, frames = _bfloat16([0, 1])
    return record.replace(b"\x05\x00\x91\x94\x05", b"\x06\x00\x91\x94\x06"), base, frames


def _short_difference() -> _Stored:
    base = Snapshot((_floats(SECOND, [0x322BDFFF, 0x322BDFFF, 0xFFFFFFFF, 0x80000001]),), SCALARS)
    live = Snapshot((_floats(SECOND, [0x322BCC77, 0x322BF000, 0x322BCC77, 0x80000001]),), SCALARS)
    record, frames, _ = encode(live, base, COMPACT)
    return record.encode(), base, frames


def _short_wraps() -> _Stored:
    base = Snapshot((_floats(SECOND, [0, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000001, 0x3F800000, 0x3F800000]),), SCALARS)
    return _items(Encoding.SHORT_DIFFERENCE, [0xFFFF, 2, 1, 0xFFFE, 0x8000, 0x7FFF], base)


def _moments_exact() -> _Stored:
    result = quantise(Snapshot((_floats(FIRST, [0x3F9E0652, 0x322BCC77]),), SCALARS), None, FIDELITY)
    planes = result.tensors[0].data.view("|u1").reshape(-1, 4).T
    frames = [b"\0" + plane.tobytes() for plane in planes]
    listed = tuple(StoredFrame(hashlib.sha256(frame).digest(), len(frame)) for frame in frames)
    rows = tuple(StoredTensor(entry, Encoding.EXACT) for entry in result.entries())
    group = StoredGroup(Encoding.EXACT, 4, 2, listed)
    record = StoredSnapshot(result.digest(), None, SCALARS, rows, (group,)).encode()
    return record, None, {hashlib.sha256(frame).digest(): frame for frame in frames}


def _compact() -> tuple[bytes, Snapshot, dict[bytes, bytes]]:
    base, live = _all_encodings(0), _all_encodings(1)
    record, frames, _ = encode(live, base, COMPACT)
    return record.encode(), base, frames


def _compact_example() -> tuple[bytes, Snapshot, dict[bytes, bytes]]:
    base = Snapshot((_floats(WEIGHT, [0x3F800000, 0xC0000000, 0x3F000000]),), SCALARS)
    live = Snapshot((_floats(WEIGHT, [0x3F8020C5, 0xC0000831, 0x3F000000]),), SCALARS)
    record, frames, _ = encode(live, base, COMPACT)
    return record.encode(), base, frames


def _steps_overflow() -> tuple[bytes, Snapshot, dict[bytes, bytes]]:
    """Return a record whose steps lead to infinity, which is stated as the tensor's content: a value like others."""
    base = Snapshot((_floats(WEIGHT, [0, 0]),), SCALARS)
    result = Snapshot((_floats(WEIGHT, [0x7F800000, 0xFF800000]),), SCALARS)
    frames = {hashlib.sha256(frame).digest(): frame for frame in (b"\0\x00\xff", b"\0\x80\x7f")}
    low, high = (StoredFrame(digest, len(frame)) for digest, frame in frames.items())
    rows = tuple(StoredTensor(entry, Encoding.STEPPED_DELTA, 124) for entry in result.entries())
    group = StoredGroup(Encoding.STEPPED_DELTA, 2, 2, (low, high))
    return StoredSnapshot(result.digest(), base.digest(), SCALARS, rows, (group,)).encode(), base, frames


def _halves_nan() -> _Stored:
    """Of two NaN, or of opposite infinities, processors make different ones; the last sum is infinite."""
    words = [0x7F800001, 0xFFC12345, 0xFFFFFFFF, 0x3F800000, 0x3F800000, 0x7F800000, 0xFF800000, 0x3F800000]
    base = Snapshot((_floats(SECOND, words),), SCALARS)
    return _items(Encoding.SCALED_DELTA, [0x3C00, 0xFE33, 0x7C01, 0x7C01, 0xFFFF, 0xFC00, 0x7C00, 0xFC00], base)


def _steps_nan() -> _Stored:
    base = Snapshot((_floats(SECOND, [0x7F800001, 0xFFC12345, 0x7F800000]),), SCALARS)
    return _items(Encoding.STEPPED_DELTA, [0, 1, 0xFFFF], base)


def _low_precision() -> tuple[bytes, Snapshot, dict[bytes, bytes]]:
    def state(words: list[int]) -> Snapshot:
        tensors = (
            Tensor(f"parameter/{dtype}", dtype, (len(words),), np.array(words, f"<u{size}").view(CARRIER[dtype]))
            for dtype, size in (("bfloat16", 2), ("float16", 2), ("float8_e4m3fn", 1), ("float8_e5m2", 1))
        )
        return Snapshot(tuple(tensors), SCALARS)

    base, live = state([0, 0x3F, 0x80, 0x7F]), state([0x7F, 0xFF, 0x80, 0x7D])
    record, frames, _ = encode(live, base, COMPACT)
    return record.encode(), base, frames


def _short_of_integers() -> tuple[bytes, None, dict[bytes, bytes]]:
    record, _, frames = _zeros(b"\0" + bytes(100))
    return record.replace(b"\x01\x00\x91\x94\x01", b"\x05\x00\x91\x94\x05"), None, frames


def _keyframe(snapshot: Snapshot) -> tuple[bytes, None, dict[bytes, bytes]]:
    record, frames, _ = encode(snapshot, None, FIDELITY)
    return record.encode(), None, frames


def _zeros(frame: bytes) -> tuple[bytes, None, dict[bytes, bytes]]:
    """Return a record of 100 zero bytes whose one frame is ``frame``."""
    snapshot = Snapshot((Tensor("buffer/z", "uint8", (100,), np.zeros(100, "|u1")),), SCALARS)
    digest = hashlib.sha256(frame).digest()
    group = StoredGroup(Encoding.EXACT, 1, 100, (StoredFrame(digest, len(frame)),))
    rows = tuple(StoredTensor(entry, Encoding.EXACT) for entry in snapshot.entries())
    return StoredSnapshot(snapshot.digest(), None, SCALARS, rows, (group,)).encode(), None, {digest: frame}


def _stating(size: int) -> bytes:
    """Return the zstd frame of zeros with another content size in its header (4 bytes, single segment)."""
    return ZSTD_RUN_OF_100_ZEROS[:4] + b"\xa0" + size.to_bytes(4, "little") + ZSTD_RUN_OF_100_ZEROS[6:]


def _case(identifier: str, comment: str, record: bytes, base: Snapshot | None, frames: dict[bytes, bytes]) -> Case:
    """Return a decode case, with the outcome that the reference implementation has."""
    case: Case = {
        "kind": "decode",
        "record": record.hex(),
        "frames": {digest.hex(): frame.hex() for digest, frame in frames.items()},
        "base_tensors": _listed(base) if base is not None else None,
        "base_scalars": base.scalars.hex() if base is not None else None,
    }
    try:
        out = decode(StoredSnapshot.parse(record), base, frames.__getitem__)
    except MalformedError:
        return invalid(identifier, comment, MalformedError, **case)
    return valid(identifier, comment, **case, tensors=_listed(out))


def _listed(snapshot: Snapshot) -> list[dict[str, Any]]:
    return [
        {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "data": t.data.tobytes().hex()}
        for t in snapshot.tensors
    ]
