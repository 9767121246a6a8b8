"""Whether the opened segments were trained on the committed samples, and carry the data that their records name.

Implements specs/verification.md, check 9. The verifier's own copy of the dataset is what is hashed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polstore.errors import DataError, MerkleError
from polstore.wire.multi_proof import verify_multi_proof
from polstore.wire.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from polstore.wire.bundle import Samples
    from polstore.wire.manifest import Dataset, Manifest
    from polstore.wire.segment import SegmentRecord
    from polverify.replay.session import Session

__all__ = ["check_order", "check_samples", "check_steps"]


def check_steps(record: SegmentRecord, blob: bytes, dataset: Dataset) -> Steps:
    """Parse a segment's step records and hold them against its record and the dataset.

    Raises:
        MalformedError: not step records.
        DataError: other steps than the record's, samples outside the dataset, or batches out of order.
    """
    steps = Steps.parse(blob)
    name = f"segment {record.index}"
    if (steps.start_step, len(steps.steps)) != (record.start_step, record.end_step - record.start_step):
        raise DataError(
            f"{name}: step records",
            expected=f"{record.end_step - record.start_step} from step {record.start_step}",
            got=f"{len(steps.steps)} from step {steps.start_step}",
        )
    last = -1
    for number, step in enumerate(steps.steps, record.start_step):
        if not step.microbatches:
            raise DataError(f"step {number}: batches", expected="at least one", got=0)
        for microbatch in step.microbatches:
            if len(microbatch.ranks) != 1 or not microbatch.ranks[0]:
                raise DataError(f"step {number}: samples", expected="one rank's, at least one", got=microbatch.ranks)
            if microbatch.number <= last:
                raise DataError(f"step {number}: batch number", expected=f"more than {last}", got=microbatch.number)
            last = microbatch.number
            largest = max(microbatch.ranks[0])
            if largest >= dataset.size:
                raise DataError(f"step {number}: sample", expected=f"below {dataset.size}", got=largest)
    return steps


def check_samples(
    dataset: Dataset,
    used: set[int],
    samples: Samples,
    own_size: int,
    own_hash: Callable[[int, bytes], bytes],
    progress: Callable[[int, int], None],
) -> None:
    """Hash the used samples of the verifier's own copy and hold them against the committed root.

    Args:
        dataset: root and size, from the manifest.
        used: indices of all samples that the opened segments used.
        samples: the bundle's salts and proof.
        own_size: samples in the verifier's copy.
        own_hash: returns the leaf hash of one of them under a salt.
        progress: told (samples hashed, samples in all).

    Raises:
        DataError: another dataset, or other samples opened than used.
    """
    if own_size != dataset.size:
        raise DataError("size of the dataset that the recipe gives", expected=dataset.size, got=own_size)
    opened = {index for index, _ in samples.salts}
    if opened != used:
        wrong = min(opened ^ used)
        expected, got = ("opened", "missing") if wrong in used else ("not opened", "opened without use")
        raise DataError(f"sample {wrong}", expected=expected, got=got)
    if not used:
        if samples.proof:
            raise DataError("proof of samples where none is used", expected=0, got=len(samples.proof))
        return
    leaves = []
    for done, (index, salt) in enumerate(samples.salts, 1):
        leaves.append((index, own_hash(index, salt)))
        if done % 64 == 0 or done == len(samples.salts):
            progress(done, len(samples.salts))
    try:
        verify_multi_proof(leaves, dataset.size, samples.proof, dataset.root)
    except MerkleError as error:
        raise DataError(f"samples are not the committed ones: {error}") from error


def check_order(manifest: Manifest, opened: Sequence[Steps], session: Session) -> tuple[str, tuple[str, ...]]:
    """Hold the order of samples in the opened segments against the one that the seed gives, where that was declared.

    Returns:
        What to say of it, and warnings.

    Raises:
        DataError: other samples than the own recipe's sampler draws.
    """
    if not opened:
        return "no order to look at", ()
    if manifest.sampler != "seed":
        return "their order free", ("the order of samples was the prover's free choice",)
    left_out = session.check_order(opened)
    if left_out is None:
        warning = "the order of samples was not re-derived: the recipe's sampler is none of PyTorch's own"
        return "their order not re-derived", (warning,)
    derived = "their order re-derived from the seed"
    if left_out:
        how = "the loop broke off passes, or chose among them"
        return derived, (f"{left_out} batches of the order were left out: {how}",)
    return derived, ()
