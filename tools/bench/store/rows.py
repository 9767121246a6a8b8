"""From what was measured to rows of the table: which figure stands beside which rival, and what is aimed at.

Pure: measures nothing, reads nothing.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from tools.bench.store.rivals import DCP, FLAT, TORCH, ZIPNN, ZSTD
from tools.bench.table import Result, compared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.bench.store.growth import Times
    from tools.bench.store.memory import Extra
    from tools.bench.store.training import Rounds
    from tools.bench.store.trajectory import Figures

__all__ = ["growth_rows", "memory_rows", "scale_rows", "training_rows", "trajectory_rows"]

MEGA, GIGA, MILLI, MICRO = 1e6, 1e9, 1e-3, 1e-6
LOSSLESS_RIVALS = (TORCH, ZSTD, ZIPNN)  # shown beside the fidelities that are not the default
BLOCKED_AIMS = {TORCH: (3.0, "a third as long"), FLAT: (0.25, "at most 4 times as long"), DCP: (None, "")}
MEMORY_AIM = 1.5  # copies of the state beyond what training itself takes
LEAST_COPIES = 0.01  # a peak moves by more from one run to the next, even below that of the plain loop
GROWTH_AIM = 0.8  # the same, but for noise


def trajectory_rows(name: str, fidelity: str, figures: Figures, aim: float | None, *, default: bool) -> list[Result]:
    """Return all rows of one training; of a fidelity that is not the default, size, blocked time and restoring."""
    rows = size_rows(name, fidelity, figures, aim, default=default)
    rows += blocked_rows(f"{name}, {fidelity}", figures)
    if default:
        rows += [
            compared(
                f"{name}: CPU time per snapshot", statistics.median(figures.cpu) / MILLI,
                statistics.median(cost.cpu for cost in figures.costs[TORCH]) / MILLI, TORCH, "ms", aim=0.5,
                aim_text="at most twice",
            )
        ]  # fmt: skip
    rows += restoring_rows(f"{name}, {fidelity}", figures)
    return rows + limit_rows(name, figures) if default else rows


def size_rows(name: str, fidelity: str, figures: Figures, aim: float | None, *, default: bool) -> list[Result]:
    """Return a snapshot's size against every rival's; of the default fidelity the whole store's as well."""
    what = f"{name}, {fidelity}: stored snapshot"
    rows = []
    for rival, sizes in figures.sizes.items():
        if default or rival in LOSSLESS_RIVALS:
            least, text = (aim, f"{aim:g} times smaller") if rival == TORCH and aim else (1.0, "smaller")
            rows.append(
                compared(
                    what, figures.stored / MEGA, statistics.mean(sizes) / MEGA, rival, "MB", aim=least, aim_text=text
                )
            )
    for rival, kept in figures.kept.items():
        against = f"{rival}, what one more file adds"
        rows.append(
            compared(what, figures.stored / MEGA, kept.added / MEGA, against, "MB", aim=1.0, aim_text="smaller")
        )
    what = f"{name}, {fidelity}: whole store, {figures.snapshots} snapshots"
    files = statistics.mean(figures.sizes[TORCH]) * figures.snapshots
    rows.append(compared(what, figures.store / MEGA, files / MEGA, f"{TORCH}, as many files", "MB"))
    for rival, kept in figures.kept.items():
        rows.append(
            compared(
                what, figures.store / MEGA, kept.whole / MEGA, f"{rival}, whole repository", "MB", aim=1.0,
                aim_text="smaller",
            )
        )  # fmt: skip
    return rows


def blocked_rows(name: str, figures: Figures) -> list[Result]:
    """Return how long training is blocked per snapshot, median and worst."""
    rows = []
    for choose, word in ((statistics.median, "median"), (max, "worst")):
        for rival, (aim, text) in BLOCKED_AIMS.items():
            if rival in figures.costs and (word == "median" or rival == TORCH):
                theirs = choose([cost.blocked for cost in figures.costs[rival]])
                rows.append(
                    compared(
                        f"{name}: training blocked, {word}", choose(figures.blocked) / MILLI, theirs / MILLI, rival,
                        "ms", aim=aim if word == "median" else None, aim_text=text if word == "median" else "",
                    )
                )  # fmt: skip
    return rows


def restoring_rows(name: str, figures: Figures) -> list[Result]:
    """Return how long restoring takes over all snapshots of the run, median and worst."""
    return [
        compared(
            f"{name}: restoring a snapshot, {word}", choose(figures.restored) / MILLI, choose(figures.loaded) / MILLI,
            "torch.load", "ms", aim=1.0, aim_text="as fast",
        )
        for choose, word in ((statistics.median, "median"), (max, "worst"))
    ]  # fmt: skip


def limit_rows(name: str, figures: Figures) -> list[Result]:
    """Return our speeds beside those at which the same bytes can be worked on at all."""
    capture, encoding, restoring = (
        figures.state / max(statistics.median(seconds), MICRO) / GIGA
        for seconds in (figures.blocked, figures.cpu, figures.restored)
    )
    shown = (
        ("state by time blocked", capture, "memcpy"),
        ("state by CPU time", encoding, "SHA-256"),
        ("state by CPU time", encoding, "zstd level 1"),
        ("state by time to restore", restoring, "SHA-256"),
    )
    return [
        Result(
            f"{name}: {what}", speed, figures.limits[limit] / GIGA, f"limit: {limit} of the same bytes", "GB/s",
            speed * GIGA / figures.limits[limit],
        )
        for what, speed, limit in shown
    ]  # fmt: skip


def training_rows(name: str, rounds: Rounds) -> list[Result]:
    """Return a recorded step against a plain one."""
    recorded, plain = (statistics.median(times) / rounds.every / MILLI for times in (rounds.recorded, rounds.plain))
    title = f"{name}: a step on {rounds.threads} threads, with a snapshot every {rounds.every}"
    return [
        compared(
            title, recorded, plain, "the same in a plain loop", "ms",
            aim=0.95, aim_text="at most 5 % slower",
        )
    ]  # fmt: skip


def memory_rows(name: str, extra: Extra) -> list[Result]:
    """Return memory beyond the plain loop's, in copies of the state."""
    rows: list[Result] = []
    for what, modes, aim in (
        ("extra memory", extra.own, 1.0),
        ("extra memory with mapped files", extra.resident, None),
    ):
        copies = {mode: max(taken / extra.state, LEAST_COPIES) for mode, taken in modes.items()}
        ours = copies.pop("recorded")
        title, unit = f"{name}: {what} while recording", "copies of the state"
        text = f"at most {MEMORY_AIM}" if aim else ""
        rows.append(compared(title, ours, MEMORY_AIM, f"limit: {MEMORY_AIM} copies", unit, aim=aim, aim_text=text))
        rows += [compared(title, ours, theirs, rival, unit) for rival, theirs in copies.items()]
    return rows


def growth_rows(times: Sequence[Times]) -> list[Result]:
    """Return each operation on a store of many snapshots against the same on the smallest one."""
    first = times[0]
    rows = [
        compared(
            f"growth: {operation} of {later.snapshots}", later.operations[operation] / MILLI, seconds / MILLI,
            f"ours with {first.snapshots}", "ms", aim=GROWTH_AIM, aim_text="no slower, but for noise",
        )
        for operation, seconds in first.operations.items()
        for later in times[1:]
    ]  # fmt: skip
    rows += [
        compared(
            f"growth: prove a segment of {later.snapshots}", later.operations["prove a segment"] / MILLI,
            later.limit / MILLI, "limit: read, sha256 of the same bytes", "ms",
        )
        for later in times[1:]
    ]  # fmt: skip
    return rows + [
        compared(
            f"growth: bundle of one segment of {later.snapshots - 1}", later.bundle / MEGA, first.bundle / MEGA,
            f"ours with {first.snapshots}", "MB",
        )
        for later in times[1:]
    ]  # fmt: skip


def scale_rows(sizes: Sequence[Figures]) -> list[Result]:
    """Return each cost per parameter against that of the smallest model: a ratio of 1 is growth in proportion."""
    first, rows = sizes[0], []
    for later in sizes[1:]:
        for what, ours, smallest, unit in (
            ("stored snapshot", later.stored, first.stored, "B/parameter"),
            ("training blocked", _nano(later.blocked), _nano(first.blocked), "ns/parameter"),
            ("CPU time per snapshot", _nano(later.cpu), _nano(first.cpu), "ns/parameter"),
            ("restoring a snapshot", _nano(later.restored), _nano(first.restored), "ns/parameter"),
        ):
            rows.append(
                compared(
                    f"scale: {what}, {later.parameters / MEGA:.1f} M parameters", ours / later.parameters,
                    smallest / first.parameters, f"ours with {first.parameters / MEGA:.1f} M", unit,
                )
            )  # fmt: skip
    return rows


def _nano(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * GIGA
