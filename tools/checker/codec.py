"""Quantisation and stored snapshots from specs/codec.md, element by element, with struct's own float16 and float32.

The standard library cannot decompress zstd. Frames made of raw blocks and blocks that repeat one byte are read here;
of others only those in `KNOWN` are, and anything else stops the checker instead of passing unseen.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from math import frexp, inf, isfinite, isnan, ldexp, prod
from typing import Any

from tools.checker import canonical, merkle, records, state_digest
from tools.checker.faults import Case, require, same

__all__ = ["check", "decode", "parse"]

SAME, EXACT, DIFFERENCE, SCALED_DELTA, STEPPED_DELTA, BFLOAT16, SHORT_DIFFERENCE = range(7)
HIGHEST = {SCALED_DELTA: 113, STEPPED_DELTA: 124}  # exponents
NO_BASE = (EXACT, BFLOAT16)
WIDTHS = {"bool": 1, "uint8": 1, "int8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1}  # bytes of an item
WIDTHS |= {"int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2, "int32": 4, "uint32": 4, "float32": 4}
WIDTHS |= {"int64": 8, "uint64": 8, "float64": 8, "complex64": 8, "complex128": 8}
FLOATS = {"float16", "bfloat16", "float32", "float64"}
DIFFERING = FLOATS | {"int16", "uint16", "int32", "uint32", "int64", "uint64"}
SECOND_MOMENTS = {"acc_delta", "col_var", "exp_avg_sq", "exp_avg_sq_col", "exp_avg_sq_row", "exp_inf"}
SECOND_MOMENTS |= {"max_exp_avg_sq", "row_var", "square_avg", "sum", "variance"}
GROUP = 2**22
KNOWN = {bytes.fromhex("28b52ffd206445000010000001003f012c"): bytes(100)}  # an entropy-coded block, content by hand


def _formed(condition: object, message: str) -> None:
    require(condition, "MalformedError", message)


def _float(word: int) -> float:
    value: float = struct.unpack("<f", word.to_bytes(4, "little"))[0]
    return value


def _rounded(value: float) -> float:
    """Return the nearest float32."""
    try:
        result: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return inf if value > 0 else -inf
    return result


def _word(value: float) -> int:
    if isnan(value):
        return 0x7FC00000
    return int.from_bytes(struct.pack("<f", value), "little")


def _half(bits: int) -> float:
    value: float = struct.unpack("<e", bits.to_bytes(2, "little"))[0]
    return value


def _plus_half(base: int, bits: int, exponent: int) -> float:
    return _rounded(_float(base) + _rounded(ldexp(_half(bits), exponent)))


def _scaled(deltas: list[float]) -> tuple[int, list[int]]:
    """Return the exponent and the halves of a tensor's deltas."""
    exponent = max(frexp(max(map(abs, deltas)))[1] - 15, -126)
    return exponent, [int.from_bytes(struct.pack("<e", ldexp(delta, -exponent)), "little") for delta in deltas]


def _role(name: str, shape: list[int]) -> str:
    """Return the role of a float32 tensor that has no neighbours."""
    kind, _, path = name.partition("/")
    key = path.rpartition("/")[2]
    if kind == "parameter":
        return "weight"
    if kind != "optimizer" or not shape:
        return "exact"
    return "first" if key in ("exp_avg", "momentum_buffer") else "second" if key in SECOND_MOMENTS else "exact"


def _key(name: str, scalars: bytes) -> int:
    return int.from_bytes(sha256(sha256(scalars).digest() + name.encode()).digest()[:4], "little")


def _threshold(key: int, place: int) -> int:
    return (key + place * 0x9E3779B1) % 2**32


def _moment(live: list[int], key: int, dropped: int, *, kept: bool) -> list[int]:
    """Return moments without their low bits, rounded in proportion."""
    result = []
    for place, word in enumerate(live):
        upper = word + (_threshold(key, place) >> 32 - dropped) >> dropped
        if kept and word % 2**31 and not upper % 2 ** (31 - dropped):
            upper += 1
        result.append(upper << dropped)
    return result if all(isfinite(_float(word)) for word in live + result) else live


def _weight(base: list[int], live: list[int], key: int | None) -> list[int]:
    """Return weights as halves from their base, or given a key as steps."""
    deltas = [_rounded(_float(one) - _float(other)) for one, other in zip(live, base, strict=True)]
    if not all(map(isfinite, deltas)):
        return live
    if not any(deltas):
        return base
    if key is None:
        exponent, halves = _scaled(deltas)
        values = [_plus_half(word, half, exponent) for word, half in zip(base, halves, strict=True)]
    else:
        exponent, values = _step_exponent(deltas), []
        for place, (delta, under) in enumerate(zip(deltas, base, strict=True)):
            between = ldexp(_threshold(key, place) >> 8, -24)
            steps = int(_rounded(_rounded(ldexp(abs(delta), -exponent)) + between))
            step = _rounded(ldexp(-steps if delta < 0 else steps, exponent))
            values.append(_rounded(_float(under) + step))
    return [_word(value) for value in values] if all(map(isfinite, values)) else live


def _step_exponent(deltas: list[float]) -> int:
    top = frexp(max(map(abs, deltas)))[1]
    squares = sum(int(ldexp(abs(delta), 12 - top)) ** 2 for delta in deltas)
    count, spread = sum(delta != 0 for delta in deltas), 40
    while 4 ** (spread + 40) * count > 2 * squares * 4**40:
        spread -= 1
    return max(top - 12 + spread - 4, top - 14, -126)


def _quantised(case: Case, base: list[int] | None, live: list[int]) -> list[int]:
    """Return the committed words of a float32 tensor."""
    role, compact = _role(case["name"], case["shape"]), case["fidelity"] == "compact-writeback"
    key = _key(case["name"], bytes.fromhex(case["scalars"]))
    if case["fidelity"] == "lossless" or role == "exact":
        return live
    if role == "weight":
        return live if base is None else _weight(base, live, key if compact else None)
    dropped = 16 if not compact else 20 if role == "first" else 18
    return _moment(live, key, dropped, kept=role == "second")


def parse(data: bytes) -> Any:
    """Return a stored snapshot's fields: digest, base, scalars, tensors, groups."""
    _formed(len(data) <= 2**28, "record too long")
    value = canonical.decode(data)
    _formed(isinstance(value, list) and len(value) == 6, "not an array of 6")
    tag, digest, base, scalars, tensors, groups = value
    _formed(isinstance(tag, str) and tag == "polstore/snapshot/v1", "another tag")
    records.digest(digest)
    if base is not None:
        records.digest(base)
    records.blob(0, 2**24)(scalars)
    _formed(isinstance(tensors, list) and len(tensors) <= 1_000_000, "tensors")
    _formed(isinstance(groups, list) and len(groups) <= 2**18, "groups")
    needed: dict[tuple[int, int], int] = {}
    for tensor in tensors:
        _tensor(tensor, based=base is not None)
        if tensor[1] != SAME and _count(tensor):
            needed[_stream(tensor)] = needed.get(_stream(tensor), 0) + _count(tensor)
    held: dict[tuple[int, int], int] = {}
    for group in groups:
        _group(group)
        _formed(not held or (group[0], group[1]) >= max(held), "groups in another order")
        held[group[0], group[1]] = held.get((group[0], group[1]), 0) + group[2]
    _formed(held == needed, "other items than the tensors need")
    records.ascending([tensor[0][1] for tensor in tensors])
    leaves = [canonical.encode(tensor[0]) for tensor in tensors]
    leaves.append(canonical.encode([1, sha256(scalars).digest()]))
    _formed(merkle.root([merkle.leaf_hash(leaf) for leaf in leaves]) == digest, "another state digest")
    return value[1:]


def _tensor(tensor: Any, *, based: bool) -> None:
    _formed(isinstance(tensor, list) and len(tensor) == 3, "a tensor's row")
    entry, encoding, exponent = tensor
    state_digest.entry(entry)
    records.integer(0, 6)(encoding)
    records.integer(-126 if encoding in HIGHEST else 0, HIGHEST.get(encoding, 0))(exponent)
    _formed(based or encoding in NO_BASE, "an encoding that needs a base")
    _formed(encoding < SCALED_DELTA or entry[2] == "float32", "an encoding for float32")
    _formed(encoding != DIFFERENCE or entry[2] in DIFFERING, "an encoding for wider numbers")
    _formed(encoding == EXACT or _count(tensor), "an encoding of nothing")


def _group(group: Any) -> None:
    _formed(isinstance(group, list) and len(group) == 4, "a group")
    encoding, size, count, frames = group
    records.integer(1, 6)(encoding)
    records.integer(1, 16)(size)
    records.integer(1, GROUP // size)(count)
    _formed(isinstance(frames, list) and len(frames) == size, "frames of a group")
    for frame in frames:
        _formed(isinstance(frame, list) and len(frame) == 2, "a frame")
        records.digest(frame[0])
        records.integer(2, 1 + count)(frame[1])


def _count(tensor: Any) -> int:
    elements: int = prod(tensor[0][3])
    return elements * (2 if tensor[0][2] == "complex128" else 1)


def _stream(tensor: Any) -> tuple[int, int]:
    narrow = tensor[1] >= SCALED_DELTA
    return tensor[1], 2 if narrow else WIDTHS[tensor[0][2]]


def _plane(frame: bytes, size: int, count: int) -> bytes:
    _formed(len(frame) == size, "size of a frame")
    if frame[0] == 0:
        _formed(len(frame) == 1 + count, "size of a raw frame")
        return frame[1:]
    _formed(frame[0] == 1, "kind of a frame")
    return _decompressed(frame[1:], count)


def _decompressed(data: bytes, count: int) -> bytes:
    """Return the content of a zstd frame (RFC 8878) of raw and repeating blocks, or of one that is known."""
    _formed(data[:4] == bytes.fromhex("28b52ffd"), "no zstd frame")
    descriptor = data[4]
    if descriptor & 0x3F != 0x20:  # single segment, neither checksum nor dictionary
        raise NotImplementedError("the checker does not read such a zstd frame")
    width = {0: 1, 1: 2, 2: 4, 3: 8}[descriptor >> 6]
    size = int.from_bytes(data[5 : 5 + width], "little") + (256 if width == 2 else 0)
    _formed(size == count, "content of a zstd frame")
    if data in KNOWN:
        return KNOWN[data]
    content, at, last = b"", 5 + width, False
    while not last:
        header = int.from_bytes(data[at : at + 3], "little")
        last, kind, length = bool(header & 1), header >> 1 & 3, header >> 3
        if kind > 1:
            raise NotImplementedError("the checker does not read entropy-coded blocks")
        content += data[at + 3 : at + 3 + length] if kind == 0 else data[at + 3 : at + 4] * length
        at += 3 + (length if kind == 0 else 1)
        _formed(at <= len(data) and len(content) <= count, "a block that is cut, or too long")
    _formed(at == len(data) and len(content) == count, "bytes after a zstd frame, or other content")
    return content


def _signed(word: int, width: int) -> int:
    return word - (1 << width) if word >> (width - 1) else word


def _ordered(word: int, width: int, dtype: str) -> int:
    """Return the ordered integer of a float's word, or the integer itself."""
    if dtype in FLOATS and word >> (width - 1):
        word ^= (1 << (width - 1)) - 1
    return _signed(word, width)


def _element(tensor: Any, item: int, partner: int) -> int:
    """Return the word of an element, given its item and the partner's word."""
    encoding, exponent, dtype = tensor[1], tensor[2], tensor[0][2]
    if encoding == EXACT:
        return item
    if encoding == SCALED_DELTA:
        return _word(_plus_half(partner, item, exponent))
    if encoding == BFLOAT16:
        return (item >> 1 | item << 15 & 0x8000) << 16
    width = 8 * WIDTHS[dtype]
    step = item >> 1 ^ -(item & 1)
    if encoding == STEPPED_DELTA:
        return _word(_rounded(_float(partner) + _rounded(ldexp(step, exponent))))
    if encoding == SHORT_DIFFERENCE:
        whole = ((_ordered(partner, 32, dtype) >> 18) + step << 18) & 0xFFFFFFFF
        return (whole ^ 0x7FFFFFFF if whole >> 31 else whole) & 0xFFFC0000
    whole = _ordered(partner, width, dtype) + step & (1 << width) - 1
    return whole ^ ((1 << (width - 1)) - 1) if dtype in FLOATS and whole >> (width - 1) else whole


def decode(record: Any, base: dict[str, Any] | None, frames: dict[bytes, bytes]) -> dict[str, Any]:
    """Return a snapshot: its ``digest``, and its ``tensors`` by name as (dtype, shape, bytes)."""
    digest, base_digest, _, tensors, groups = record
    _formed((base["digest"] if base else None) == base_digest, "another base")
    streams: dict[tuple[int, int], list[int]] = {}
    for encoding, size, count, listed in groups:
        _formed(all(frame in frames for frame, _ in listed), "a frame is missing")
        planes = [_plane(frames[frame], length, count) for frame, length in listed]
        items = [int.from_bytes(bytes(item), "little") for item in zip(*planes, strict=True)]
        streams.setdefault((encoding, size), []).extend(items)
    found = {}
    for tensor in tensors:
        (_, name, dtype, shape, stated), encoding, _ = tensor
        width, partner = WIDTHS[dtype], base["tensors"].get(name) if base else None
        like = partner is not None and partner[:2] == (dtype, shape)
        _formed(like or encoding in NO_BASE, "no partner in the base")
        data = partner[2] if partner is not None and like else bytes(width * _count(tensor))
        if encoding != SAME:
            words = [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]
            items = [streams[_stream(tensor)].pop(0) for _ in words]
            pairs = zip(items, words, strict=True)
            data = b"".join(_element(tensor, *pair).to_bytes(width, "little") for pair in pairs)
        _formed(sha256(data).digest() == stated, "another tensor than stated")
        found[name] = (dtype, shape, data)
    return {"digest": digest, "tensors": found}


def _given(tensors: list[Any], scalars: bytes) -> dict[str, Any]:
    """Return a snapshot as a case lists it."""
    by_name = {item["name"]: (item["dtype"], item["shape"], bytes.fromhex(item["data"])) for item in tensors}
    entries = [[0, name, dtype, shape, sha256(data).digest()] for name, (dtype, shape, data) in by_name.items()]
    leaves = [canonical.encode(item) for item in [*entries, [1, sha256(scalars).digest()]]]
    return {"digest": merkle.root([merkle.leaf_hash(leaf) for leaf in leaves]), "tensors": by_name}


def check(case: Case) -> None:
    """Check one case."""
    if case["kind"] == "quantise":
        base = None if case["base"] is None else _words(case["base"])
        committed = _quantised(case, base, _words(case["live"]))
        same("committed", b"".join(word.to_bytes(4, "little") for word in committed).hex(), case["committed"])
        return
    record = parse(bytes.fromhex(case["record"]))
    frames = {bytes.fromhex(digest): bytes.fromhex(frame) for digest, frame in case["frames"].items()}
    listed = case["base_tensors"]
    given = None if listed is None else _given(listed, bytes.fromhex(case["base_scalars"]))
    tensors = decode(record, given, frames)["tensors"]
    stated = {item["name"]: (item["dtype"], item["shape"], bytes.fromhex(item["data"])) for item in case["tensors"]}
    same("tensors", tensors, stated)


def _words(data: str) -> list[int]:
    whole = bytes.fromhex(data)
    return [int.from_bytes(whole[at : at + 4], "little") for at in range(0, len(whole), 4)]
