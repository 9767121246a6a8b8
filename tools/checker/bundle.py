"""Bundles from specs/bundle.md: the file, its index, and all that follows from them without training anything."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from tools.checker import canonical, codec, merkle, records
from tools.checker.faults import Case, RefusedError, refuse, require, same

__all__ = ["check"]

MAGIC = b"polstore bundle v1\n"
HEADER = len(MAGIC) + 40


def _formed(condition: object, message: str) -> None:
    require(condition, "MalformedError", message)


def _joins(condition: object, message: str) -> None:
    require(condition, "ContinuityError", message)


def _trained(condition: object, message: str) -> None:
    require(condition, "DataError", message)


def _file(data: bytes) -> tuple[Any, dict[bytes, bytes]]:
    """Return the index's fields and the blobs by digest."""
    _formed(data[: len(MAGIC)] == MAGIC and len(data) >= HEADER, "header")
    digest, length = data[len(MAGIC) : HEADER - 8], int.from_bytes(data[HEADER - 8 : HEADER], "big")
    _formed(length <= 2**28 and len(data) >= HEADER + length, "length of the index")
    index = data[HEADER : HEADER + length]
    _formed(sha256(index).digest() == digest, "digest of the index")
    value = canonical.decode(index)
    _index(value)
    blobs, at = {}, HEADER + length
    for name, size in value[7]:
        blobs[name] = data[at : at + size]
        at += size
    _formed(at == len(data), "length of the file")
    return value, blobs


def _pair(value: Any) -> None:
    _formed(isinstance(value, list) and len(value) == 2, "not an array of 2")


def _index(value: Any) -> None:
    _formed(isinstance(value, list) and len(value) == 8, "not an array of 8")
    tag, size, root, leaves, opened, snapshots, samples, blobs = value
    _formed(isinstance(tag, str) and tag == "polstore/bundle/v1", "another tag")
    records.integer(2, 2**24)(size)
    records.digest(root)
    records.items(records.blob(0, 65_535), 2**24)(leaves)
    _formed(len(leaves) == size, "number of leaves")
    records.items(_pair, size - 1)(opened)
    for index, proof in opened:
        records.integer(0, size - 2)(index)
        records.items(records.digest, 48)(proof)
    records.ascending([index for index, _ in opened])
    records.items(records.blob(0, 2**28), 2**20)(snapshots)
    _pair(samples)
    records.items(_pair, 2**26)(samples[0])
    for index, salt in samples[0]:
        records.integer(0, 2**48)(index)
        records.digest(salt)
    records.ascending([index for index, _ in samples[0]])
    records.items(records.digest, 2**26)(samples[1])
    records.items(_pair, 2**24)(blobs)
    for digest, length in blobs:
        records.digest(digest)
        records.integer(0, 2**40)(length)
    records.ascending([digest for digest, _ in blobs])


def _blob(blobs: dict[bytes, bytes], digest: bytes) -> bytes:
    _formed(digest in blobs, "a blob is missing")
    _formed(sha256(blobs[digest]).digest() == digest, "a blob is damaged")
    return blobs[digest]


def _run(leaves: list[bytes], manifest: Any) -> list[Any]:
    """Return all segment records, which join up into one run."""
    found: list[Any] = []
    step, state, snapshots = 0, manifest[7][1], [0]
    for number, leaf in enumerate(leaves[1:]):
        record = records.segment(leaf)
        _, index, start, end, before, after, base, *_ = record
        _joins((index, start, before) == (number, step, state), "a segment starts elsewhere")
        _joins(end <= (step // manifest[10] + 1) * manifest[10], "a segment is too long")
        _joins(base is None or (base in snapshots[-64:] and manifest[9] != "lossless"), "a base that is no snapshot")
        step, state = end, after
        snapshots.append(end)
        found.append(record)
    return found


def _used(record: Any, blobs: dict[bytes, bytes], size: int) -> set[int]:
    """Return the samples that a segment's step records name."""
    _, start, steps = records.steps(_blob(blobs, record[7]))
    _trained((start, len(steps)) == (record[2], record[3] - record[2]), "other steps")
    used: set[int] = set()
    last = -1
    for microbatches, _, _ in steps:
        _trained(microbatches, "a step without a batch")
        for number, ranks in microbatches:
            _trained(number > last and len(ranks) == 1 and ranks[0], "batches")
            last = number
            _trained(max(ranks[0]) < size, "a sample outside the dataset")
            used |= set(ranks[0])
    return used


def _snapshots(stored: list[bytes], wanted: set[bytes], blobs: dict[bytes, bytes]) -> set[bytes]:
    """Decode the snapshots that are wanted, each from its base, and return the digests of all frames."""
    rows = [codec.parse(data) for data in stored]
    records.ascending([row[0] for row in rows])
    by_digest = {row[0]: row for row in rows}
    decoded: dict[bytes, Any] = {}
    frames: set[bytes] = set()

    def get(digest: bytes, depth: int = 0) -> Any:
        _formed(digest in by_digest and depth < 1024, "a snapshot is missing, or its bases are too many")
        row = by_digest[digest]
        base = None if row[1] is None else get(row[1], depth + 1)
        own = {frame for group in row[4] for frame, _ in group[3]}
        frames.update(own)
        decoded[digest] = codec.decode(row, base, {frame: _blob(blobs, frame) for frame in own})
        return decoded[digest]

    for digest in wanted:
        get(digest)
    _formed(decoded.keys() == by_digest.keys(), "a snapshot that nothing needs")
    return frames


def _samples(case: Case, manifest: Any, used: set[int], samples: Any) -> None:
    """Check the opened samples, of which there may be none."""
    contents = [canonical.decode(bytes.fromhex(content)) for content in case["contents"]]
    root, size = manifest[3]
    _trained(len(contents) == size, "a dataset of another size")
    _trained({index for index, _ in samples[0]} == used, "other samples opened than used")
    if not used:
        _trained(not samples[1], "a proof of no samples")
        return
    leaves = [
        (index, merkle.leaf_hash(canonical.encode(["polstore/sample/v1", salt, contents[index]])))
        for index, salt in samples[0]
    ]
    try:
        merkle.multi(leaves, size, samples[1], root)
    except RefusedError as fault:
        refuse("DataError", str(fault))


def check(case: Case) -> None:
    """Check one case."""
    (_, size, root, leaves, opened, snapshots, samples, listed), blobs = _file(bytes.fromhex(case["bytes"]))
    stored = [codec.parse(data) for data in snapshots]
    records.ascending([row[0] for row in stored])
    require((size, root.hex()) == (case["size"], case["root"]), "MerkleError", "made for another root")
    manifest = records.manifest(leaves[0])
    records.groups(canonical.decode(_blob(blobs, manifest[4][1])))
    whole = merkle.root([merkle.leaf_hash(leaf) for leaf in leaves])
    require(whole == root, "MerkleError", "leaves under another root")
    segments = _run(leaves, manifest)
    indices = [index for index, _ in opened]
    require(indices == case["challenge"], "ChallengeError", "other segments than asked for")
    for index, proof in opened:
        merkle.inclusion(merkle.leaf_hash(leaves[index + 1]), index + 1, size, proof, root)
    states = {0: manifest[7][1]} | {record[3]: record[5] for record in segments}
    used: set[int] = set()
    wanted: set[bytes] = set() if manifest[7][0] == "seed" else {manifest[7][1]}
    needed = {manifest[4][1]}
    for record in (segments[index] for index in indices):
        used |= _used(record, blobs, manifest[3][1])
        needed.add(record[7])
        wanted |= {record[4], record[5]} | ({states[record[6]]} if record[6] is not None else set())
    for record in segments if case.get("audit") else []:
        wanted |= {record[4], record[5]}
    needed |= _snapshots(snapshots, wanted, blobs)
    _formed({digest for digest, _ in listed} == needed, "other blobs than needed")
    _samples(case, manifest, used, samples)
    same("blobs", sum(map(len, blobs.values())), sum(length for _, length in listed))
