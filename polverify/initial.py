"""How a run's initial state came to be: rebuilt from the seed, inherited from a parent, or drawn from a distribution.

Every tensor of snapshot 0 has to be accounted for. What the verifier's own recipe builds from the run's seed is the
strongest, what a parent's proven snapshot holds is next, and a parameter that merely looks drawn is the weakest: a
forger can make weights that pass (paper, V-D4), so that is said wherever it is all there is. Implements
specs/verification.md, check 5, and specs/lineage.md, section "Initial state". Executes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore.errors import ReplayError
from polverify.distribution import FAMILY_LEVEL, Kind, Report, run_tests
from polverify.verdict import Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from polstore.codec.snapshot import Snapshot, Tensor
    from polstore.wire.state import TensorEntry

__all__ = ["WEAK", "Rebuilt", "check_tensors"]

WEAK = "weak: distribution only"
LIMIT = "weights can be made to look drawn, so it may be somebody else's model; a seed or a proven parent excludes that"
DEFAULTS = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}  # buffers of PyTorch's norms, by name


@dataclass(frozen=True)
class Rebuilt:
    """The initial state that the verifier's own recipe builds from the run's seed: its entries by name, its scalars."""

    entries: Mapping[str, TensorEntry]
    scalars: bytes


def check_tensors(
    initial: Snapshot, rebuilt: Rebuilt, inherited: Collection[str] = ()
) -> tuple[Outcome, str, tuple[str, ...]]:
    """Account for every tensor of an initial state that does not come from a parent.

    Args:
        initial: the committed snapshot 0.
        rebuilt: what the seed gives.
        inherited: names of the tensors that were shown to be a parent's.

    Returns:
        The outcome, what was found in one line, and warnings about what it is worth.

    Raises:
        ReplayError: a state that does not fit the recipe, is not fresh, or is not drawn from the pool.
    """
    _require_structure(initial, rebuilt)
    doubtful = [
        tensor
        for tensor in initial.tensors
        if tensor.name not in inherited and tensor.entry() != rebuilt.entries[tensor.name]
    ]
    seeded = len(initial.tensors) - len(inherited) - len(doubtful)
    own = f"{seeded} tensors rebuilt from the seed"
    if not doubtful:
        return Outcome.PASSED, own, ()
    copies = _copies(initial)
    to_test = [tensor for tensor in doubtful if _needs_test(tensor, copies)]
    report = run_tests(to_test, {tensor.name: tensor.shape for tensor in initial.tensors})
    return _judged(report, own if seeded else "")


def _require_structure(initial: Snapshot, rebuilt: Rebuilt) -> None:
    """Require the recipe's own tensors, and a training that has just begun."""
    wrong = sorted(set(initial.names) ^ rebuilt.entries.keys(), key=str.encode)
    if wrong:
        got = "absent" if wrong[0] in rebuilt.entries else "present"
        expected = "present" if got == "absent" else "absent"
        raise ReplayError(f"tensor {wrong[0]} of the initial state", expected=expected, got=got)
    for tensor in initial.tensors:
        own = rebuilt.entries[tensor.name]
        if (tensor.dtype, tensor.shape) != (own.dtype, own.shape):
            raise ReplayError(
                f"tensor {tensor.name} of the initial state",
                expected=f"{own.dtype} of shape {own.shape}",
                got=f"{tensor.dtype} of shape {tensor.shape}",
            )
    if initial.scalars != rebuilt.scalars:
        raise ReplayError(
            "scalars of the initial state (step, hyperparameters, schedulers)",
            expected="those that the recipe builds",
            got="others",
        )


def _copies(initial: Snapshot) -> set[tuple[str, tuple[int, ...], bytes]]:
    """Return dtype, shape and digest of what belongs to the model: averaged weights begin as copies of it."""
    model = (tensor.entry() for tensor in initial.tensors if tensor.name.startswith(("parameter/", "buffer/")))
    return {(entry.dtype, entry.shape, entry.digest) for entry in model}


def _needs_test(tensor: Tensor, copies: Collection[tuple[str, tuple[int, ...], bytes]]) -> bool:
    """Say whether a tensor that the seed does not give is to be tested; raises `ReplayError` if it may not differ."""
    part, _, path = tensor.name.partition("/")
    leaf = path.rpartition(".")[2]
    if part == "buffer" and leaf in DEFAULTS:
        if not (tensor.data == DEFAULTS[leaf]).all():
            raise ReplayError(f"{tensor.name} of the initial state", expected=DEFAULTS[leaf], got="another value")
        return False
    if part == "extra":
        entry = tensor.entry()
        if (entry.dtype, entry.shape, entry.digest) in copies:
            return False
    if part == "optimizer" or not tensor.dtype.startswith(("float", "bfloat", "complex")):
        raise ReplayError(
            f"{tensor.name} of the initial state", expected="what the recipe builds from the seed", got="another value"
        )
    return True


def _judged(report: Report, rest: str) -> tuple[Outcome, str, tuple[str, ...]]:
    for test in report.of(Kind.NOT_FINITE):
        raise ReplayError(f"{test.name} of the initial state", expected="finite numbers", got="NaN or infinity")
    worst, tested = report.smallest, report.of(Kind.TESTED)
    if report.fails and worst is not None:
        raise ReplayError(
            f"{worst.name} is not drawn from any known initialisation (Kolmogorov-Smirnov, {len(tested)} tests at "
            f"{FAMILY_LEVEL:.0%} over all)",
            expected=f"p of at least {report.level:.2g}",
            got=f"{worst.p_value:.2g}",
        )
    small, odd = report.of(Kind.SMALL), report.of(Kind.UNTESTABLE)
    counts = [f"{len(report.of(Kind.CONSTANT))} constant", f"{len(small)} too small to test"]
    smallest = "" if worst is None else f", smallest p {worst.p_value:.2g}"
    detail = f"{WEAK}; {len(tested)} tests passed{smallest}; {', '.join(counts)}" + (f"; {rest}" if rest else "")
    warnings = [f"initial state, {WEAK}: {LIMIT}"]
    if small:
        warnings.append(f"{len(small)} tensors of the initial state are too small to be tested, {small[0].name} is one")
    if odd:
        return Outcome.UNDECIDED, f"{odd[0].name} holds no real numbers and cannot be tested; {detail}", tuple(warnings)
    if small and not tested:
        return Outcome.UNDECIDED, f"nothing is large enough to be tested; {detail}", tuple(warnings)
    return Outcome.PASSED, detail, tuple(warnings)
