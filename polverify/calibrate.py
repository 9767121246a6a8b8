"""Measuring noise beforehand: the opened segments of a bundle are replayed under several settings, each in a process.

A process of its own can enter what has to be chosen before torch is loaded. The bundle is as little trusted as by
`polverify check`: each process makes checks 0 to 9 first. What passes between the processes is this program's own.
Implements specs/tolerance.md, section "polverify calibrate".
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from polstore import terminal
from polstore.errors import CallerError, ProofError, ReplayError, UsageError
from polstore.wire import canonical
from polverify.calibration import Calibration, DRef, machine_of, record_key
from polverify.capability import NARROWEST
from polverify.distance import METRICS, reproduction_error
from polverify.noise import Replayed, measure
from polverify.verify import Request, prepared, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from polstore.codec.snapshot import Snapshot

__all__ = ["SETTINGS", "calibrate"]

SETTINGS = (
    *("threads", "onednn", "kernels", "capability"),
    *(f"{kind}-{number}" for kind in ("rounding", "start") for number in (1, 2, 3)),
)  # names of polverify.replay.settings, which loads torch
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Reference:
    """What the process without any setting came to, by `record_key`."""

    machine: tuple[str, str, str]
    replayed: dict[str, Replayed]
    settings: dict[str, list[str]]


def calibrate(request: Request, settings: Sequence[str] | None = None, d_ref_steps: int | None = None) -> Calibration:
    """Measure the noise of all opened segments that cannot be replayed bit for bit here, and d_ref if wanted.

    Args:
        request: as for `verify`.
        settings: names of the settings to try, of `SETTINGS`; None for all that make a difference.
        d_ref_steps: how many steps to train twice for d_ref, or None to leave it out.

    Raises:
        UsageError: an unknown setting, or no step.
        ProofError: the bundle fails one of checks 0 to 9, or a segment cannot be replayed at all.
        CallerError: as for `verify`.
    """
    unknown = sorted(set(settings or ()) - set(SETTINGS))
    if unknown or (settings is not None and not settings):
        raise UsageError("settings", expected=", ".join(SETTINGS), got=", ".join(unknown) or "none")
    if d_ref_steps is not None and d_ref_steps < 1:
        raise UsageError("steps for d_ref", expected="at least 1", got=d_ref_steps)
    asked = replace(request, progress=silent)
    request.progress("replaying under settings", 0, 1)
    reference = _in_process({}, _reference, asked)
    needed = sorted({name for names in reference.settings.values() for name in names})
    wanted = [name for name in needed if settings is None or name in settings]
    found: dict[str, list[tuple[str, Replayed]]] = {key: [] for key in reference.replayed}
    for done, name in enumerate(wanted, 1):
        request.progress("replaying under settings", done, len(wanted) + 1)
        variables = NARROWEST if name == "capability" else {}
        keys = {key for key, names in reference.settings.items() if name in names}
        with suppress(ProofError):  # where the recipe makes other data or another initial state; else it is as before
            for key, replayed in _in_process(variables, _vary, asked, name, keys).items():
                found[key].append((name, replayed))
    floors = {key: measure(reference.replayed[key], pairs) for key, pairs in found.items() if pairs}
    d_ref = None
    if d_ref_steps is not None:
        request.progress("training twice for d_ref", 0, 1)
        d_ref = DRef(d_ref_steps, _in_process({}, _d_ref, asked, d_ref_steps))
    return Calibration(request.recipe.digest, reference.machine, floors, d_ref)


def _in_process(variables: dict[str, str], work: Callable[..., _Result], *arguments: object) -> _Result:
    """Run ``work`` in a fresh process with some environment variables set."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_quietly, work, *arguments).result()
    except (BrokenPipeError, EOFError, RuntimeError) as error:  # BrokenProcessPool is a RuntimeError
        raise CallerError(f"a process that was measuring noise ended early: {error or type(error).__name__}") from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _quietly(work: Callable[..., _Result], *arguments: object) -> _Result:
    with terminal.recipe_at_work():
        return work(*arguments)


def _reference(request: Request) -> _Reference:
    """Replay all segments that need a tolerance, in their own class as far as possible."""
    from polverify.replay.settings import settings_for  # loads torch

    replayed, settings = {}, {}
    with prepared(request) as verification:
        session = verification.session
        for opened in verification.file.bundle.opened:
            segment = verification.segment(verification.records[opened.index])
            another = bool(session.differences(segment.record.environment))
            found = settings_for(segment.record.environment, another=another, rounded=segment.start_rounded, fresh=True)
            if found:
                key = record_key(segment.record)
                replayed[key] = session.replay(segment, _unseen, exact=False)
                settings[key] = [setting.name for setting in found]
        return _Reference(machine_of(session.here()), replayed, settings)


def _vary(request: Request, name: str, keys: set[str]) -> dict[str, Replayed]:
    """Replay some segments under one setting."""
    from polverify.replay.settings import settings_for  # loads torch

    found = {}
    with prepared(request) as verification:
        for record in verification.records:
            key = record_key(record)
            if key not in keys:
                continue
            settings = settings_for(record.environment, another=True, rounded=True, fresh=True)
            setting = next(setting for setting in settings if setting.name == name)
            verification.session.differences(record.environment)  # enters its class, but for what the setting changes
            with suppress(ReplayError):  # the recipe cannot run so; the reference shows that it can run
                found[key] = verification.session.vary(verification.segment(record), setting, _unseen)
    return found


def _d_ref(request: Request, steps: int) -> dict[str, float]:
    """Train the recipe twice from seeds of the verifier's own and return how far apart the two end."""
    from polverify.replay.session import Session  # loads torch

    ends: list[Snapshot] = []
    with prepared(request) as verification:
        for number in (1, 2):
            seed = hashlib.sha256(canonical.encode(("polverify/d_ref/v1", number))).digest()
            session = Session(request.recipe, replace(verification.manifest, seed=seed), request.device)
            ends.append(session.train_afresh(steps, _unseen))
    found = reproduction_error(*ends)
    if not all(value > 0 and math.isfinite(value) for value in found.values()):
        raise CallerError(
            "d_ref: two trainings from different seeds", expected="a distance that one can divide by", got=found
        )
    return {metric: found[metric] for metric in METRICS}


def _unseen(_done: int) -> None:
    """Show no progress: another process has the terminal."""
