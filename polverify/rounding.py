"""Whether rounding left anything of a segment's training: a base that lies far off makes it as coarse as one likes.

The prover chooses what the end of a segment is quantised against. Against a base with one huge weight, or with weights
far from all others, small differences are rounded away, and every training ends in the base's own weights, bit for bit.
Equal digests say nothing then. Implements specs/verification.md, check 10, part "rounding". Pure numpy, no torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from polstore.codec.quantise import Role, roles_of
from polverify.noise import distance

if TYPE_CHECKING:
    from polstore.codec.snapshot import Snapshot

__all__ = ["hides_training"]

# Halves of the difference from the base are off by 2^-12 of it, so in the midst of a training, 64 segments away from
# the base, rounding takes about a hundredth of a segment's update.
PART = 1 / 8  # of the update that rounding may take
# Where the learning rate comes to its end, updates become as small as rounding; but that is small against the weights,
# unless these were a dozen times larger in the base.
SMALL = 2.0**-8  # of the weights


def hides_training(start: Snapshot, trained: Snapshot, rounded: Snapshot) -> str | None:
    """Say that rounding has moved the weights of a segment's end too far for the end to tell of its training.

    Args:
        start: snapshot at the start.
        trained: what the replay led to.
        rounded: that, quantised as committed ends are.

    Returns:
        One line, or None where it has not. Tensors with NaN or infinities do not count: such are not rounded.
    """
    off = moved = whole = 0.0
    for tensor, role in zip(trained.tensors, roles_of(trained.tensors), strict=True):
        about = (tensor.name, tensor.dtype, tensor.shape)
        before, after = start.partner(*about), rounded.partner(*about)
        if role is not Role.WEIGHT or before is None or after is None:
            continue
        squares = [distance(*pair) ** 2 for pair in ((after, tensor), (tensor, before), (after, None))]
        if all(map(math.isfinite, squares)):
            off, moved, whole = off + squares[0], moved + squares[1], whole + squares[2]
    if off <= PART**2 * moved or off <= SMALL**2 * whole:
        return None
    return (
        f"rounding against its base moved the weights by {math.sqrt(off):.2g}, training by {math.sqrt(moved):.2g}: "
        "what it ends in says too little of the training"
    )
