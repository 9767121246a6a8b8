"""Bundles that were edited and sealed anew: every digest and table that nothing signs is right again.

The index is edited as the tree of values that it is: each leaf of it is changed, dropped, doubled and swapped with its
neighbour. What the numbers say is which check is allowed to find it.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from polstore.codec import frames
from polstore.codec.frames import StoredSnapshot
from polstore.codec.quantise import quantise
from polstore.errors import MalformedError
from polstore.wire import canonical
from polstore.wire.bundle import HEADER_SIZE, OpenedSegment, Samples
from polstore.wire.challenge import Challenge
from polverify.verdict import Decision
from tests.attacks import forge
from tests.attacks.forge import Evidence, raw_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator

FIELDS = ("tag", "size", "root", "leaves", "opened", "snapshots", "samples", "blobs")
FOUND_BY = {  # field of the index -> checks that may find an edit of it
    "tag": {0},
    "size": {0},
    "root": {0, 1},
    "leaves": {0, 4, 5, 6},
    "opened": {0, 7, 8, 9},
    "snapshots": {0, 9, 10},
    "samples": {0, 9},
    "blobs": {0},
}
Path = tuple[int, ...]


@pytest.fixture(scope="module")
def proof() -> Evidence:
    """Two segments opened of five; small, but with every kind of field."""
    return forge.Trainer().run(opened=(1, 3))


@pytest.fixture(scope="module")
def value(proof: Evidence) -> Any:
    return canonical.decode(proof.bundle.head()[HEADER_SIZE:], limit=2**20, what="index")


def leaves_of(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every node of a tree with its path."""
    yield path, value
    if isinstance(value, tuple):
        for place, item in enumerate(value):
            yield from leaves_of(item, (*path, place))


def put(value: Any, path: Path, new: tuple[Any, ...]) -> Any:
    """The tree with the node at ``path`` replaced by the nodes ``new``."""
    place, *rest = path
    if rest:
        new = (put(value[place], tuple(rest), new),)
    return (*value[:place], *new, *value[place + 1 :])


def other_values(value: Any) -> list[Any]:
    """Values of the same type nearby, and one of another type."""
    if isinstance(value, bool) or value is None:
        return [not value, 7]
    if isinstance(value, int):
        return [value + 1, value - 1, 2**40, str(value)]
    if isinstance(value, float):
        return [value * 2 + 1, float("nan"), 0]
    if isinstance(value, str):
        return [value + "x", "", value.encode()]
    if isinstance(value, bytes):
        return [value[:-1] + bytes((value[-1] ^ 1,)) if value else b"x", value + b"\x00", value[:-1] or b"xx", None]
    return [(), (*value, *value[-1:]) if value else (0,), None]


def edits(value: Any) -> Iterator[tuple[Path, Any]]:
    """Yield (path, edited tree) for each edit of each node below the root."""
    for path, node in leaves_of(value):
        if not path:
            continue
        for other in other_values(node):
            if (type(other), other) == (type(node), node):
                continue
            yield path, put(value, path, (other,))
        yield path, put(value, path, ())
        yield path, put(value, path, (node, node))


def swaps(value: Any) -> Iterator[tuple[Path, Any]]:
    """Yield (path, edited tree) with two neighbours that differ in one another's place."""
    for path, node in leaves_of(value):
        if path and isinstance(node, tuple):
            for place in range(len(node) - 1):
                if node[place] != node[place + 1]:
                    yield path, put(put(value, (*path, place), (node[place + 1],)), (*path, place + 1), (node[place],))


def blob_bytes(evidence: Evidence) -> bytes:
    return evidence.data()[evidence.head_size() :]


def test_every_field_of_the_index(rejects, proof, value):
    blobs, seen = blob_bytes(proof), set()
    for path, edited in [*edits(value), *swaps(value)]:
        found = rejects(proof, data=raw_bundle(edited, blobs))
        field = FIELDS[path[0]]
        assert found in FOUND_BY[field], (path, field, found)
        seen.add((field, found))
    assert {field for field, _ in seen} == set(FIELDS)
    assert {number for _, number in seen} >= {0, 1, 9}


def test_every_field_of_every_leaf(rejects, proof):
    """The manifest or a segment record is edited from inside, and stays canonical."""
    for index in (0, 3):
        inner = canonical.decode(proof.bundle.leaves[index], limit=2**16, what="leaf")
        for _, edited in edits(inner):
            leaves = list(proof.bundle.leaves)
            leaves[index] = canonical.encode(edited)
            assert rejects(proof.edited(leaves=tuple(leaves))) in {4, 5, 6}


def test_every_field_of_a_stored_snapshot(rejects, judge, proof):
    """A stored snapshot may be encoded in any way, but whatever is edited, no other state comes out of it."""
    chosen = random.Random(4)
    for place, stored in enumerate(proof.bundle.snapshots[:2]):
        inner = canonical.decode(stored, limit=2**20, what="stored snapshot")
        everything = list(edits(inner))
        for _, edited in everything if place == 0 else chosen.sample(everything, 100):
            snapshots = list(proof.bundle.snapshots)
            snapshots[place] = canonical.encode(edited)
            assert rejects(proof.edited(snapshots=tuple(snapshots))) in FOUND_BY["snapshots"]


# Segments.


def test_opened_segments_that_are_not_those_asked_for(rejects, judge):
    """A challenge that is left unanswered in part, or answered with more than was asked."""
    proof = forge.Trainer().run(opened=(0, 2, 4))
    origin, bundle = f"{forge.KEY.name}/{forge.RUN}", proof.bundle
    asked = Challenge.draw(origin, bundle.size, bundle.root, random=0, nonce=bytes(32), picked=(2,))
    assert judge(proof, challenge=asked).decision is Decision.ACCEPT
    for opened in ((2,), (0, 4), (0, 1, 4), (0, 2), (0, 1, 2, 4), (0, 1, 2, 3, 4)):
        assert rejects(forge.Trainer().run(opened=opened), challenge=asked) == 7


def test_inclusion_proof_of_another_segment(rejects, proof):
    first, second = proof.bundle.opened
    swapped = (OpenedSegment(first.index, second.proof), OpenedSegment(second.index, first.proof))
    assert rejects(proof.edited(opened=swapped)) == 8


def test_inclusion_proof_one_hash_too_long_or_too_short(rejects, proof):
    first, second = proof.bundle.opened
    for changed in (first.proof[:-1], (*first.proof, bytes(32)), ()):
        assert rejects(proof.edited(opened=(OpenedSegment(first.index, changed), second))) == 8


# Snapshots.


def test_snapshot_left_out_or_too_many(rejects, proof, honest):
    snapshots = proof.bundle.snapshots
    for place in range(len(snapshots)):
        assert rejects(proof.edited(snapshots=snapshots[:place] + snapshots[place + 1 :])) == 9
    trainer = forge.Trainer(config={"lr": 0.3})
    trainer.run()
    record, parts, _ = frames.encode(trainer.snapshots[9], None, "lossless")
    more = sorted([*map(StoredSnapshot.parse, snapshots), record], key=lambda stored: stored.state_digest)
    with_it = proof.with_blobs(proof.blobs | parts).edited(snapshots=tuple(stored.encode() for stored in more))
    assert rejects(with_it) == 9


def test_frames_of_another_state(rejects, proof):
    """Two stored snapshots trade their frames, which are of the same sizes and all present."""
    one, two = (StoredSnapshot.parse(stored) for stored in proof.bundle.snapshots[1:3])
    for mine, theirs in ((one, two), (two, one)):
        try:
            lying = replace(mine, groups=theirs.groups).encode()
        except MalformedError:  # other tensors are stored, so the frames do not fit at all
            continue
        snapshots = tuple(lying if s == mine.encode() else s for s in proof.bundle.snapshots)
        left = {d for s in snapshots for d in StoredSnapshot.parse(s).blobs}
        dropped = {d for stored in (one, two) for d in stored.blobs} - left
        blobs = {digest: data for digest, data in proof.blobs.items() if digest not in dropped}
        assert rejects(proof.with_blobs(blobs).edited(snapshots=snapshots)) in {10, 11}


def test_another_way_to_store_the_same_state_is_no_attack(judge, honest):
    """Recompressed and keyed anew: nothing signed has changed, and the proof is as good as before."""
    blobs = dict(honest.blobs)
    stored = [StoredSnapshot.parse(data) for data in honest.bundle.snapshots]
    from polverify.states import States

    states = States(honest.bundle.snapshots, honest.blobs.__getitem__)
    for record in stored:
        for digest in record.blobs:
            blobs.pop(digest, None)
    again = []
    for record in stored:
        new, parts, _ = frames.encode(states.get(record.state_digest), None, "lossless")
        blobs |= parts
        again.append(new.encode())
    assert judge(honest.with_blobs(blobs).edited(snapshots=tuple(again))).decision is Decision.ACCEPT


# Samples.


def test_samples(rejects, proof):
    samples = proof.bundle.samples
    (first, salt), rest = samples.salts[0], samples.salts[1:]
    unused = next(index for index in range(64) if index not in dict(samples.salts))
    wrong = [
        Samples(rest, samples.proof),
        Samples(((first, bytes(32)), *rest), samples.proof),
        Samples(tuple(sorted([*samples.salts, (unused, salt)])), samples.proof),
        Samples(tuple(sorted([*rest, (unused, salt)])), samples.proof),
        Samples((*samples.salts, (64, salt)), samples.proof),
        Samples(samples.salts, samples.proof[::-1]),
        Samples(samples.salts, samples.proof[:-1]),
        Samples(samples.salts, (*samples.proof, bytes(32))),
        Samples((), ()),
    ]
    for changed in wrong:
        assert rejects(proof.edited(samples=changed)) == 9


# Blobs.


def test_blobs_extra_missing_or_swapped(rejects, proof):
    extra = b"\x80\x04N."
    assert rejects(proof.with_blobs(proof.blobs | {hashlib.sha256(extra).digest(): extra})) == 9
    for digest in proof.blobs:
        left = {key: data for key, data in proof.blobs.items() if key != digest}
        assert rejects(proof.with_blobs(left)) in {4, 9}
    names = sorted(proof.blobs)
    for one, two in pairwise(names):
        traded = proof.blobs | {one: proof.blobs[two], two: proof.blobs[one]}
        if proof.blobs[one] != proof.blobs[two]:
            assert rejects(proof.with_blobs(traded)) == 0


def test_step_records_of_another_segment(rejects, proof):
    """The blob is genuine, but the record names another one."""
    one, two = (proof.records()[segment.index].steps for segment in proof.bundle.opened)
    left = {key: data for key, data in proof.blobs.items() if key != one}
    assert rejects(proof.with_blobs(left | {two: proof.blobs[two]})) == 9


def test_bundle_of_another_segment_run_or_root(rejects, honest, other):
    assert rejects(other, root=honest.root) == 1
    assert rejects(honest, root=other.root) == 1
    assert rejects(honest.edited(size=honest.bundle.size - 1, leaves=honest.bundle.leaves[:-1])) in {0, 1}
    assert rejects(other.edited(root=honest.bundle.root), root=honest.root) in {4, 6}
    mixed = other.edited(root=honest.bundle.root, leaves=(honest.bundle.leaves[0], *other.bundle.leaves[1:]))
    assert rejects(mixed, root=honest.root) in {4, 5, 6}


def test_frame_that_decompresses_to_more_than_it_says(rejects, proof):
    """A zstd frame of 256 MiB of zeros in 8 KiB, in the place of a plane of a few hundred bytes."""
    bomb = b"\x01" + zstandard.ZstdCompressor(level=19).compress(bytes(2**24))
    stored = StoredSnapshot.parse(proof.bundle.snapshots[0])
    group = stored.groups[-1]
    victim = group.frames[0].digest
    name = hashlib.sha256(bomb).digest()
    lying = canonical.encode(
        put_frame(canonical.decode(stored.encode(), limit=2**20, what="snapshot"), victim, (name, len(bomb)))
    )
    snapshots = (lying, *proof.bundle.snapshots[1:])
    blobs = {key: data for key, data in proof.blobs.items() if key != victim} | {name: bomb}
    assert rejects(proof.with_blobs(blobs).edited(snapshots=snapshots)) in {0, 9, 10}


def put_frame(value: Any, old: bytes, new: tuple[bytes, int]) -> Any:
    """Replace each (digest, size) of a frame in a stored snapshot's tree."""
    if isinstance(value, tuple):
        if len(value) == 2 and value[0] == old:
            return new
        return tuple(put_frame(item, old, new) for item in value)
    return value


def test_stored_in_a_narrower_way_than_it_holds(rejects, proof):
    """A quantised stand-in for an exact state decodes, but to another digest than the one committed."""
    from polverify.states import States

    states = States(proof.bundle.snapshots, proof.blobs.__getitem__)
    digests = [StoredSnapshot.parse(data).state_digest for data in proof.bundle.snapshots]
    base, exact = states.get(digests[0]), states.get(digests[1])
    record, parts, rounded = frames.encode(exact, base, "float16-writeback")
    assert rounded.digest() == quantise(exact, base, "float16-writeback").digest()
    if record.state_digest != exact.digest():
        snapshots = sorted([*proof.bundle.snapshots[:1], record.encode(), *proof.bundle.snapshots[2:]])
        assert rejects(proof.with_blobs(proof.blobs | parts).edited(snapshots=tuple(snapshots))) in {0, 9, 10}
