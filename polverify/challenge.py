"""Choosing segments: the largest updates of every epoch, norms that stand out, states that look odd; and the nonce.

What the rules choose follows from the leaves of the run's tree alone, so that check 7 can choose again. Norms are what
the prover wrote, and facts only where every snapshot is at hand. Draws no randomness. Implements specs/challenge.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from polstore.errors import ChallengeError, MerkleError, UsageError
from polstore.wire import note
from polstore.wire.challenge import ROOT, WITNESS, nonce_from_cosignature
from polstore.wire.keys import KeyKind
from polstore.wire.manifest import Manifest
from polverify.audit import audit
from polverify.continuity import check_continuity
from polverify.plausibility import norm_scores
from polverify.states import States

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from polstore.wire.bundle import Bundle
    from polstore.wire.challenge import Challenge, Rules
    from polstore.wire.checkpoint import Checkpoint, OpenedRoot
    from polstore.wire.keys import VerifierKey
    from polstore.wire.segment import SegmentRecord
    from polverify.bundle_file import BundleFile

__all__ = [
    "SOURCES",
    "choose",
    "odd_states",
    "random_of",
    "read_records",
    "require_chosen",
    "top_updates",
    "witness_nonce",
]

SOURCES = {  # where a nonce comes from that was not drawn freshly -> what the verdict says of it
    WITNESS: "non-interactive, witness: the challenge follows from a witness's cosignature; a prover who asks for "
    "another one draws again",
    ROOT: "weak: the challenge follows from the signed root alone, so a prover can sign roots until the draw suits him",
}


def read_records(bundle: Bundle, checkpoint: Checkpoint) -> tuple[Manifest, tuple[SegmentRecord, ...]]:
    """Return the manifest and all segment records of a bundle, which must be those of a signed root.

    Raises:
        MerkleError: the bundle is for another root, or its leaves do not hash to it.
        MalformedError: a leaf is not what it should be.
        ContinuityError: the records do not join up.
    """
    if (bundle.size, bundle.root) != (checkpoint.size, checkpoint.root):
        raise MerkleError(
            "bundle was made for another root",
            expected=f"{checkpoint.size} leaves, {checkpoint.root.hex()}",
            got=f"{bundle.size} leaves, {bundle.root.hex()}",
        )
    manifest = Manifest.parse(bundle.leaves[0])
    return manifest, check_continuity(bundle.leaves, checkpoint.root, manifest)


def choose(records: Sequence[SegmentRecord], rules: Rules) -> tuple[int, ...]:
    """Return the segments that are wanted in any case, ascending: the first, the last, and those of the rules."""
    chosen = {0, len(records) - 1}
    if rules.top:
        chosen |= top_updates(records, rules.top, rules.epoch_steps)
    if rules.odd:
        scores = norm_scores([_norms(record) for record in records])
        odd = sorted((-score, index) for index, score in scores.items())
        chosen.update(index for _, index in odd[: rules.odd])
    return tuple(sorted(chosen))


def top_updates(records: Sequence[SegmentRecord], top: int, epoch_steps: int) -> set[int]:
    """Return the ``top`` largest updates of each epoch under each distance (paper, Algorithm 2).

    Args:
        records: all of the run.
        top: the paper's Q.
        epoch_steps: steps of an epoch, to which a segment belongs by its first step; 0 makes the run one epoch.

    Returns:
        Their indices. NaN counts as larger than any number, and of equal ones the earlier segment comes first.
    """
    epochs: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        epochs.setdefault(record.start_step // epoch_steps if epoch_steps else 0, []).append(index)
    found: set[int] = set()
    for epoch in epochs.values():
        for distance in range(4):
            sizes = [(_norms(records[index])[distance], index) for index in epoch]
            ranked = sorted(
                (-math.inf, -1.0, index) if math.isnan(size) else (0.0, -size, index) for size, index in sizes
            )
            found.update(index for *_, index in ranked[:top])
    return found


def odd_states(
    file: BundleFile,
    records: Sequence[SegmentRecord],
    most: int,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[int, ...]:
    """Return the segments whose states look odd, of a bundle that carries every snapshot; all norms are checked.

    None of a bundle that shows the records alone, where at most snapshot 0 is carried.

    Args:
        file: a bundle made for an audit, or of the records alone.
        records: its segment records.
        most: segments to return at most: those with impossible second moments first, then those that moved against
            their moments most.
        progress: told (segments done, segments in all).

    Raises:
        ReplayError: a norm is not that of the snapshots.
        MalformedError: a snapshot is missing or does not decode to its state digest.
    """
    states = States(file.bundle.snapshots, file.blob)
    if not any(record.end_state in states for record in records):
        return ()
    found = []
    for index, seen in audit(records, range(len(records)), states, progress):
        if seen.decayed is not None or seen.against:
            found.append((seen.decayed is None, 1.0 if seen.cosine is None else seen.cosine, index))
    return tuple(index for *_, index in sorted(found)[:most])


def random_of(segments: int, fixed: int) -> int:
    """Return how many segments to draw where so many are wanted in all: at least one; raises `UsageError`."""
    if segments < 1:
        raise UsageError("number of segments", expected="1 or more", got=segments)
    return max(segments - fixed, 1)


def witness_nonce(opened: OpenedRoot, keys: Sequence[VerifierKey]) -> bytes:
    """Return the nonce that a witness's cosignature of a signed root gives.

    Args:
        opened: the signed root, whose own signatures were checked.
        keys: of the witness; one of them is a cosignature key.

    Raises:
        UsageError: not one cosignature key, or the signer's own.
        SignatureError: the witness has not cosigned, or falsely.
    """
    wanted = [key for key in keys if key.kind is KeyKind.COSIGNATURE]
    if len(wanted) != 1:
        raise UsageError("key of the witness", expected="one cosignature key", got=f"{len(wanted)} of them")
    if wanted[0].public in {key.public for key in opened.keys}:
        raise UsageError("key of the witness", expected="somebody else's than the signer's", got=wanted[0].line())
    note.verify(opened.note, wanted)
    of_witness = (wanted[0].name, wanted[0].key_id)
    line = next(item for item in opened.note.signatures if (item.name, item.key_id) == of_witness)
    checkpoint = opened.checkpoint
    return nonce_from_cosignature(checkpoint.origin, checkpoint.size, checkpoint.root, line)


def require_chosen(challenge: Challenge, records: Sequence[SegmentRecord]) -> None:
    """Require that a challenge names what its rules choose from these records; raises `ChallengeError`."""
    chosen = choose(records, challenge.rules)
    if chosen != challenge.named:
        raise ChallengeError("segments that the rules choose from the records", expected=chosen, got=challenge.named)


def _norms(record: SegmentRecord) -> tuple[float, float, float, float]:
    norms = record.norms
    return norms.l1, norms.l2, norms.linf, norms.cos
