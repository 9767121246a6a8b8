"""Reproduction error in the paper's terms: ε_repr between replayed and committed parameters, d_ref, and ε ≤ δ.

Reported for every replayed segment. It decides nothing by itself: the paper's criterion is applied only where the
verifier asks for it, beside the checks of its own, so it can make a verdict stricter and never looser. Implements
specs/tolerance.md, section "The paper's distances" (paper, section V and Tables I to III). Does no I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore.codec.norms import distances
from polstore.errors import ReplayError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from polstore.codec.snapshot import Snapshot

__all__ = ["METRICS", "Criterion", "check_d_ref", "normalised", "reproduction_error"]

METRICS = ("l1", "l2", "linf", "cos")


def reproduction_error(replayed: Snapshot, committed: Snapshot) -> dict[str, float]:
    """Return ε_repr: how far the parameters of two snapshots are apart, for each of `METRICS`, in float64.

    All are 0 where the state digests are equal; ``cos`` would otherwise show the rounding of its own sum.

    Raises:
        MalformedError: the snapshots do not have the same parameters.
    """
    if replayed.digest() == committed.digest():
        return dict.fromkeys(METRICS, 0.0)
    norms = distances(committed, replayed)
    return {metric: float(getattr(norms, metric)) for metric in METRICS}


def normalised(error: Mapping[str, float], d_ref: Mapping[str, float]) -> dict[str, float]:
    """Return ‖ε_repr‖, the error over d_ref, for each metric of which d_ref is known."""
    return {metric: error[metric] / d_ref[metric] for metric in METRICS if metric in d_ref}


def check_d_ref(d_ref: Mapping[str, float]) -> None:
    """Require reference distances that can be divided by; raises `UsageError`."""
    for metric, value in d_ref.items():
        if metric not in METRICS or not (math.isfinite(value) and value > 0):
            raise UsageError(f"d_ref, {metric}", expected=f"a positive number for one of {METRICS}", got=value)


@dataclass(frozen=True)
class Criterion:
    """The paper's criterion for one segment, ε ≤ δ.

    Attributes:
        delta: δ; of the normalised error where d_ref is given for the metric, of the raw one otherwise.
        metric: one of `METRICS`.

    Raises:
        UsageError: another metric, or a δ that is negative or no number.
    """

    delta: float
    metric: str = "l2"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UsageError("metric", expected=" or ".join(METRICS), got=self.metric)
        if not self.delta >= 0:
            raise UsageError("delta", expected="a number, 0 or more", got=self.delta)

    def require(self, name: str, error: Mapping[str, float], d_ref: Mapping[str, float]) -> None:
        """Require ε ≤ δ of the segment ``name``; an error that is NaN is not. Raises `ReplayError`."""
        kind, values = ("normalised", normalised(error, d_ref)) if self.metric in d_ref else ("raw", error)
        value = values[self.metric]
        if not value <= self.delta:
            raise ReplayError(
                f"{name}: the paper's criterion, {kind} {self.metric}",
                expected=f"at most {self.delta}",
                got=f"{value:.6g}",
            )
