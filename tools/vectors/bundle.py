"""Vectors of specs/bundle.md: whole bundle files, and what is wrong with them.

A fault in the index comes with a fresh digest of the index, and a fault in a leaf with a root over the faulty leaves,
so that nothing but the fault itself is there to be found.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polstore.errors import (
    ChallengeError,
    ContinuityError,
    DataError,
    MalformedError,
    MerkleError,
    PolstoreError,
)
from polstore.wire import canonical, merkle
from polstore.wire.bundle import HEADER_SIZE, MAGIC, Bundle, OpenedSegment, Samples
from polstore.wire.manifest import Manifest
from polstore.wire.sample import sample_leaf
from polstore.wire.steps import MAX_HYPERPARAMETERS, Step, Steps, parse_groups
from polverify.bundle_file import BundleFile
from polverify.continuity import check_continuity, state_at
from polverify.data import check_samples, check_steps
from polverify.states import States
from tools.vectors import tiny_run
from tools.vectors.cases import Case, File, expect, file, invalid, valid
from tools.vectors.run_records import REMOVE, replaced

if TYPE_CHECKING:
    from collections.abc import Callable

    from polstore.wire.canonical import Value

__all__ = ["run", "vectors"]

ONE, BOTH = tiny_run.bundle(0), tiny_run.bundle(0, 1)
GOOD = tiny_run.bundle_file(ONE)
INDEX = canonical.decode(ONE.head()[HEADER_SIZE:], limit=2**16, what="index")
BLOBS = GOOD[len(ONE.head()) :]
OTHER = sha256(b"another").digest()
DIGEST_AT = len(MAGIC)


def vectors() -> File:
    """Return the whole file."""
    largest = max(ONE.blobs, key=lambda blob: blob[1])
    leaf_blob = len(ONE.head()) + sum(length for _, length in ONE.blobs[: ONE.blobs.index(largest)])
    cases = [
        valid("example", "the worked example: one segment of two", **_case(GOOD, [0])),
        valid("second", "the other segment, which needs three snapshots", **_case(_whole(tiny_run.bundle(1)), [1])),
        valid("both", "both segments", **_case(_whole(BOTH), [0, 1])),
        valid("records", "no segment, for a verifier to choose by the records", **_case(_whole(tiny_run.bundle()), [])),
        valid("audit", "no segment, but all snapshots", audit=True, **_case(_whole(tiny_run.bundle(audit=True)), [])),
        valid(
            "audit_opened",
            "one segment, and all snapshots",
            audit=True,
            **_case(_whole(tiny_run.bundle(0, audit=True)), [0]),
        ),
    ]
    bytes_faults: list[tuple[str, str, bytes]] = [
        ("empty", "no bytes", b""),
        ("magic", "another version in the first line", GOOD.replace(b"v1\n", b"v2\n", 1)),
        ("header_cut", "the header ends early", GOOD[: HEADER_SIZE - 1]),
        ("index_cut", "the index ends early", GOOD[: HEADER_SIZE + 9]),
        ("index_length", "an index of 2**63 bytes is announced", GOOD[: HEADER_SIZE - 8] + b"\x80" + bytes(7)),
        ("index_digest", "a bit of the index's digest", _flipped(GOOD, DIGEST_AT)),
        ("index_changed", "a bit of the index", _flipped(GOOD, HEADER_SIZE + 40)),
        ("blob_changed", "a bit of a blob", _flipped(GOOD, leaf_blob + 3)),
        ("cut", "the last byte is missing", GOOD[:-1]),
        ("trailing", "a byte too many", GOOD + b"\0"),
    ]
    cases += [invalid(f"file_{name}", text, MalformedError, **_case(data, [0])) for name, text, data in bytes_faults]
    cases += [
        invalid(f"index_{name}", text, MalformedError, **_case(_indexed(path, new), [0]))
        for name, text, path, new in _index_faults()
    ]
    for name, text, error, data, change in _faults():
        cases.append(invalid(name, text, error, **(_case(data, [0]) | change)))
    return file("bundle", "specs/bundle.md", cases)


def run(case: Case) -> None:
    """Put one case through polverify's own checks, as far as they need neither a recipe nor torch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        path.write_bytes(bytes.fromhex(case["bytes"]))
        with BundleFile(path) as opened:
            _check(opened, case)


def _check(opened: BundleFile, case: Case) -> None:
    bundle, root = opened.bundle, bytes.fromhex(case["root"])
    states = States(bundle.snapshots, opened.blob)
    if (bundle.size, bundle.root) != (case["size"], root):
        raise MerkleError("bundle was made for another root")
    manifest = Manifest.parse(bundle.leaves[0])
    parse_groups(
        canonical.decode(
            opened.blob(manifest.optimizer.hyperparameters), limit=MAX_HYPERPARAMETERS, what="hyperparameters"
        )
    )
    records = check_continuity(bundle.leaves, root, manifest)
    indices = [segment.index for segment in bundle.opened]
    if indices != case["challenge"]:
        raise ChallengeError("opened segments", expected=case["challenge"], got=indices)
    used: set[int] = set()
    wanted: set[bytes] = set()
    needed = {manifest.optimizer.hyperparameters}
    for segment in bundle.opened:
        leaf = merkle.leaf_hash(bundle.leaves[segment.index + 1])
        merkle.verify_inclusion(leaf, segment.index + 1, bundle.size, segment.proof, root)
        record = records[segment.index]
        used |= check_steps(record, opened.blob(record.steps), manifest.dataset).samples()
        wanted |= {record.start_state, record.end_state}
        wanted |= set() if record.base_step is None else {state_at(records, record.base_step)}
        needed.add(record.steps)
    for record in records if case.get("audit") else ():
        wanted |= {record.start_state, record.end_state}
    if {digest for digest, _ in bundle.blobs} != needed | states.closure(wanted):
        raise MalformedError("blobs of the bundle")
    contents = [canonical.decode(bytes.fromhex(item), limit=2**16, what="content") for item in case["contents"]]

    def own_hash(index: int, salt: bytes) -> bytes:
        return merkle.leaf_hash(sample_leaf(salt, contents[index]))

    check_samples(manifest.dataset, used, bundle.samples, len(contents), own_hash, lambda _done, _all: None)
    for digest in sorted(wanted):
        expect("state digest", states.get(digest).digest(), digest)


def _case(data: bytes, challenge: list[int]) -> dict[str, Any]:
    return {
        "bytes": data.hex(),
        "size": len(tiny_run.LEAVES),
        "root": tiny_run.ROOT.hex(),
        "challenge": challenge,
        "contents": [canonical.encode(content).hex() for content in tiny_run.CONTENTS],
    }


def _whole(index: Bundle) -> bytes:
    return tiny_run.bundle_file(index)


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _headed(index: bytes, blobs: bytes = BLOBS) -> bytes:
    return MAGIC + sha256(index).digest() + len(index).to_bytes(8, "big") + index + blobs


def _indexed(path: tuple[int, ...], new: object) -> bytes:
    return _headed(canonical.encode(replaced(INDEX, path, new)))


def _index_faults() -> list[tuple[str, str, tuple[int, ...], object]]:
    twice = (*ONE.snapshots, ONE.snapshots[-1])
    salts = ONE.samples.salts
    return [
        ("short", "a field less", (7,), REMOVE),
        ("tag", "another tag", (0,), "polstore/bundle/v2"),
        ("size_one", "no segment at all", (1,), 1),
        ("size_other", "a leaf less than the size says", (3, 2), REMOVE),
        ("root", "31 bytes", (2,), bytes(31)),
        ("leaf_text", "text for bytes", (3, 1), "leaf"),
        ("opened_doubled", "one segment twice", (4,), ((0, ()), (0, ()))),
        ("opened_unsorted", "segments in another order", (4,), ((1, ()), (0, ()))),
        ("opened_outside", "a segment that the tree does not have", (4, 0, 0), 2),
        ("opened_boolean", "false for 0", (4, 0, 0), False),
        ("proof_hash", "a hash of 31 bytes", (4, 0, 1, 0), bytes(31)),
        ("snapshots_unsorted", "snapshots in another order", (5,), ONE.snapshots[::-1]),
        ("snapshots_doubled", "one snapshot twice", (5,), twice),
        ("snapshot_cut", "a snapshot's record without its last byte", (5, 0), ONE.snapshots[0][:-1]),
        ("samples_unsorted", "samples in another order", (6, 0), salts[::-1]),
        ("samples_doubled", "one sample twice", (6, 0), (salts[0], salts[0], *salts[1:])),
        ("salt_short", "a salt of 31 bytes", (6, 0, 0, 1), bytes(31)),
        ("sample_boolean", "false for 0", (6, 0, 0, 0), False),
        ("blobs_unsorted", "blobs in another order", (7,), ONE.blobs[::-1]),
        ("blob_negative", "a negative length", (7, 0, 1), -1),
        ("snapshot_missing", "the snapshot at the start is left out", (5,), ONE.snapshots[1:]),
    ]


def _faults() -> list[tuple[str, str, type[PolstoreError], bytes, dict[str, Any]]]:
    """Return faults in what the index says: name, comment, error, file, and what else differs in the case."""
    steps, record, manifest = tiny_run.STEPS[0], tiny_run.RECORDS[0], tiny_run.MANIFEST
    unused = tuple(snapshot.encode() for snapshot in sorted(tiny_run.SNAPSHOTS, key=lambda item: item.state_digest))
    added = tuple(sorted((*ONE.blobs, (sha256(b"").digest(), 0))))
    contents = _case(GOOD, [0])["contents"]
    short_proof = replace(ONE, opened=(OpenedSegment(0, ONE.opened[0].proof[:-1]),))
    false_proof = replace(ONE, opened=(OpenedSegment(0, (ONE.opened[0].proof[0], OTHER)),))
    fewer = replace(BOTH, opened=ONE.opened)
    salts = ONE.samples.salts
    alone = replace(ONE, samples=Samples(salts[:1], ONE.samples.proof))
    unsalted = replace(ONE, samples=Samples(((salts[0][0], OTHER), *salts[1:]), ONE.samples.proof))
    proven = replace(ONE, samples=Samples(salts, (OTHER,)))
    proven_nothing = replace(tiny_run.bundle(), samples=Samples((), (OTHER,)))
    changed_leaves = (tiny_run.LEAVES[0], tiny_run.LEAVES[2], tiny_run.LEAVES[1])
    records: list[tuple[str, str, type[PolstoreError], Callable[[], tuple[bytes, ...]]]] = [
        ("start_state", "a segment that starts elsewhere", ContinuityError, lambda: _second(start_state=OTHER)),
        ("index", "a segment's number out of order", ContinuityError, lambda: _second(index=2)),
        ("gap", "a step between two segments", ContinuityError, lambda: _second(start_step=3, end_step=4)),
        ("base", "a base that is no snapshot", ContinuityError, lambda: _second(base_step=1)),
        ("every", "a segment longer than the manifest says", ContinuityError, lambda: _second(end_step=5)),
        ("initial", "another initial state than the manifest's", ContinuityError, lambda: _first(start_state=OTHER)),
        (
            "no_record",
            "a manifest for a segment record",
            MalformedError,
            lambda: (*tiny_run.LEAVES[:2], manifest.encode()),
        ),
        (
            "no_manifest",
            "a segment record for the manifest",
            MalformedError,
            lambda: (tiny_run.LEAVES[1], *tiny_run.LEAVES[1:]),
        ),
    ]
    found: list[tuple[str, str, type[PolstoreError], bytes, dict[str, Any]]] = [
        ("root_other", "made for another root", MerkleError, GOOD, {"root": OTHER.hex()}),
        ("size_other", "made for an earlier root", MerkleError, GOOD, {"size": 4}),
        ("leaves_other", "leaves in another order", MerkleError, _whole(replace(ONE, leaves=changed_leaves)), {}),
        ("proof_short", "a hash too few", MerkleError, _whole(short_proof), {}),
        ("proof_false", "a false hash", MerkleError, _whole(false_proof), {}),
        ("challenge_other", "not the segment that was asked for", ChallengeError, GOOD, {"challenge": [1]}),
        ("challenge_fewer", "one segment of the two asked for", ChallengeError, _whole(fewer), {"challenge": [0, 1]}),
        ("snapshot_unused", "a snapshot that no segment needs", MalformedError, _unused(unused), {}),
        ("audit_missing", "an audit that lacks a snapshot", MalformedError, GOOD, {"audit": True}),
        ("audit_unasked", "all snapshots, but no audit", MalformedError, _whole(tiny_run.bundle(0, audit=True)), {}),
        ("records_proof", "no sample, but a proof", DataError, _whole(proven_nothing), {"challenge": []}),
        ("blob_unused", "an empty blob that nothing needs", MalformedError, _headed(_index(blobs=added), BLOBS), {}),
        ("blob_missing", "the step records are left out", MalformedError, _without(record.steps), {}),
        ("sample_missing", "a sample of the segment is not opened", DataError, _whole(alone), {}),
        ("salt_false", "another salt", DataError, _whole(unsalted), {}),
        ("sample_proof_false", "a false hash", DataError, _whole(proven), {}),
        ("sample_other", "the verifier holds another sample", DataError, GOOD, {"contents": contents[::-1]}),
        ("dataset_smaller", "the verifier holds fewer samples", DataError, GOOD, {"contents": contents[:3]}),
    ]
    for name, comment, error, leaves in records:
        found.append((f"record_{name}", comment, error, *_rooted(leaves())))
    for name, comment, error, other in (
        ("first", "step records that begin at another step", DataError, replace(steps, start_step=1)),
        ("count", "step records of one step for two", DataError, replace(steps, steps=steps.steps[:1])),
        ("batch", "a batch number twice", DataError, replace(steps, steps=(steps.steps[0], steps.steps[0]))),
        ("no_batch", "a step without a batch", DataError, replace(steps, steps=(steps.steps[0], Step((), (), None)))),
        ("outside", "a sample outside the dataset", DataError, _outside(steps)),
    ):
        found.append((f"steps_{name}", comment, error, *_stepped(other)))
    return found


def _first(**changes: Any) -> tuple[bytes, ...]:
    return tiny_run.LEAVES[0], replace(tiny_run.RECORDS[0], **changes).encode(), tiny_run.LEAVES[2]


def _second(**changes: Any) -> tuple[bytes, ...]:
    return *tiny_run.LEAVES[:2], replace(tiny_run.RECORDS[1], **changes).encode()


def _rooted(leaves: tuple[bytes, ...]) -> tuple[bytes, dict[str, Any]]:
    """Return the good bundle over other leaves, and the root over them."""
    hashes = [merkle.leaf_hash(leaf) for leaf in leaves]
    proof = merkle.inclusion_proof(1, len(leaves), merkle.nodes_of(hashes))
    index = replace(ONE, root=merkle.root(hashes), leaves=leaves, opened=(OpenedSegment(0, proof),))
    return _headed(index.head()[HEADER_SIZE:]), {"root": merkle.root(hashes).hex()}


def _stepped(steps: Steps) -> tuple[bytes, dict[str, Any]]:
    """Return the good bundle with other step records, which its leaf commits to."""
    blob = steps.encode()
    digest = sha256(blob).digest()
    data, change = _rooted(_first(steps=digest))
    old = tiny_run.RECORDS[0].steps
    blobs = {item: blob if item == old else tiny_run.BLOBS[item] for item, _ in ONE.blobs}
    blobs[digest] = blobs.pop(old)
    index = canonical.decode(data[HEADER_SIZE : -len(BLOBS)], limit=2**16, what="index")
    listed = tuple((item, len(blobs[item])) for item in sorted(blobs))
    encoded = canonical.encode(replaced(index, (7,), listed))
    return _headed(encoded, b"".join(blobs[item] for item in sorted(blobs))), change


def _outside(steps: Steps) -> Steps:
    first = steps.steps[0]
    batch = replace(first.microbatches[0], ranks=((2, 4),))
    return replace(steps, steps=(replace(first, microbatches=(batch,)), steps.steps[1]))


def _index(**changes: Any) -> bytes:
    return replace(ONE, **changes).head()[HEADER_SIZE:]


def _unused(snapshots: tuple[bytes, ...]) -> bytes:
    """Return the bundle with a third snapshot and its frames."""
    digests = {digest for digest, _ in ONE.blobs} | set(tiny_run.SNAPSHOTS[2].blobs)
    listed: Value = tuple((digest, len(tiny_run.BLOBS[digest])) for digest in sorted(digests))
    index = canonical.encode(replaced(replaced(INDEX, (5,), snapshots), (7,), listed))
    return _headed(index, b"".join(tiny_run.BLOBS[digest] for digest in sorted(digests)))


def _without(blob: bytes) -> bytes:
    return _whole(replace(ONE, blobs=tuple(item for item in ONE.blobs if item[0] != blob)))
