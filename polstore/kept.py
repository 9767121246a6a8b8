"""What a run's writer keeps of a snapshot while it is encoded: what the next snapshots need of it, and no more.

Those are the tensors that others are quantised against, and the parameters, of which the next segment's norms are
taken. Parameters are kept as they were quantised, half the size of their values, and made anew when they are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polstore.codec.norms import Distances
from polstore.codec.quantised import Scheme, settled
from polstore.codec.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from polstore.codec.quantised import Quantised
    from polstore.codec.snapshot import Tensor
    from polstore.wire.segment import Norms

__all__ = ["Kept"]


class Kept:
    """Takes the parts of one snapshot, in order.

    Args:
        previous: parameters of the snapshot before, by name.
        serves: whether later snapshots are stored against this one.

    Attributes:
        parameters: of this snapshot, by name.
    """

    def __init__(self, previous: Mapping[str, Quantised], *, serves: bool) -> None:
        self.parameters: dict[str, Quantised] = {}
        self._base: list[Tensor] = []
        self._previous = dict(previous)
        self._serves = serves
        self._distances = Distances()

    @property
    def base(self) -> Snapshot:
        """Of this snapshot, the tensors that later ones are quantised against; none if it does not serve."""
        return Snapshot(tuple(self._base), b"")

    def add(self, part: Quantised) -> None:
        """Take a part that is about to be encoded."""
        if self._serves and part.scheme is not Scheme.BFLOAT16:  # which later snapshots do without
            self._base.append(part.tensor)
        if part.name.startswith("parameter/"):
            before = self._previous.pop(part.name, None)
            if before is not None:
                self._distances.add(before, part)
            self.parameters[part.name] = settled(part.tensor) if self._serves else part

    def norms(self) -> Norms:
        """Return the distances between the parameters of both snapshots; raises `MalformedError` if some are gone."""
        for part in self._previous.values():
            self._distances.add(part, None)
        return self._distances.norms()
