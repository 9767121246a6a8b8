"""Measuring noise beforehand: the opened segments of a bundle are replayed under several settings.

That happens in fresh processes, because the processor's capability has to be chosen before torch is loaded. The bundle
is as little trusted as by `polverify check`: each process makes checks 0 to 9 first. What passes between the processes
is this program's own. Implements specs/tolerance.md, section "polverify calibrate".
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
from polstore.errors import CallerError, ProofError, UsageError
from polstore.wire import canonical
from polverify.calibration import Calibration, DRef, machine_of, record_key
from polverify.capability import NARROWEST
from polverify.distance import METRICS, reproduction_error
from polverify.noise import Floor, Replayed, measure
from polverify.request import Request, silent
from polverify.verify import prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from polstore.codec.snapshot import Snapshot

__all__ = ["SETTINGS", "calibrate"]

CAPABILITY = "capability"
SETTINGS = (
    *("threads", "onednn", "kernels", CAPABILITY),
    *(f"{kind}-{number}" for kind in ("rounding", "start") for number in (1, 2, 3)),
)  # names of polverify.replay.settings, which loads torch
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Measured:
    """What the first process came to: by `record_key`, the replay that noise is measured against, and the noise."""

    machine: tuple[str, str, str]
    references: dict[str, Replayed]
    floors: dict[str, Floor]
    narrowable: set[str]


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
    request.progress("replaying under settings", 0, 2)
    measured = _in_process({}, _measure, asked, settings)
    request.progress("replaying under settings", 1, 2)
    floors = measured.floors
    if measured.narrowable and (settings is None or CAPABILITY in settings):
        with suppress(ProofError):  # where the recipe makes other data or another initial state; else it is as before
            for key, replayed in _in_process(NARROWEST, _narrowed, asked, measured.narrowable).items():
                floors[key] = floors[key].joined(measure(measured.references[key], [(CAPABILITY, replayed)]))
    floors = {key: floor for key, floor in floors.items() if floor.settings}
    request.progress("replaying under settings", 2, 2)
    d_ref = None
    if d_ref_steps is not None:
        request.progress("training twice for d_ref", 0, 1)
        d_ref = DRef(d_ref_steps, _in_process({}, _d_ref, asked, d_ref_steps))
    return Calibration(request.recipe.digest, measured.machine, floors, d_ref)


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


def _measure(request: Request, wanted: Sequence[str] | None) -> _Measured:
    """Replay all segments that need a tolerance, in their own class as far as possible and under every setting."""
    from polverify.replay.comparison import variations  # loads torch
    from polverify.replay.settings import settings_for

    found = _Measured(("", "", ""), {}, {}, set())
    with prepared(request) as verification:
        session, material = verification.session, verification.material()
        for opened in verification.file.bundle.opened:
            segment = material.segment(material.records[opened.index])
            environment, key = segment.record.environment, record_key(segment.record)
            another = bool(session.differences(environment))
            settings = settings_for(environment, another=another, rounded=segment.start_rounded)
            if not settings:
                continue
            if another and environment.device == "cpu":
                found.narrowable.add(key)
            settings = [setting for setting in settings if wanted is None or setting.name in wanted]
            reference = found.references[key] = session.replay(segment, _unseen, exact=False)
            found.floors[key] = measure(reference, variations(session, segment, settings, silent))
        return replace(found, machine=machine_of(session.here()))


def _narrowed(request: Request, keys: set[str]) -> dict[str, Replayed]:
    """Replay some segments in this process, which is of the narrowest capability."""
    found = {}
    with prepared(request) as verification:
        for opened in verification.file.bundle.opened:
            record = verification.records[opened.index]
            if (key := record_key(record)) in keys:
                verification.session.differences(record.environment)  # enters its class, but for the capability
                found[key] = verification.session.replay(verification.material().segment(record), _unseen, exact=False)
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
