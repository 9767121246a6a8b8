"""The verifier's own file of measured noise: written by `polverify calibrate`, read by `polverify check --calibration`.

It holds noise for particular segments, each named by the hash of its record, so a floor can serve no other segment,
data or start than it was measured for. A file that is broken, or for another recipe or machine, is the verifier's own
fault and never the proof's. Implements specs/tolerance.md, section "Calibration file". Does no I/O.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polstore.errors import CallerError
from polstore.wire.merkle import leaf_hash
from polverify.distance import METRICS
from polverify.noise import Floor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from polstore.wire.environment import Environment
    from polstore.wire.segment import SegmentRecord
    from polverify.noise import Segment

__all__ = ["MAX_BYTES", "Calibration", "DRef", "record_key"]

SCHEMA = "polverify/calibration/v1"
MAX_BYTES = 64 * 2**20  # of a file: a thousand segments of a thousand tensors
MAX_SEGMENTS = 65_536
MAX_TENSORS = 2**20  # of one segment
MAX_STEPS = 2**20  # of one segment
MAX_TEXT = 512  # characters of a name
MAX_SETTINGS = 16


def record_key(record: SegmentRecord) -> str:
    """Return what names a segment in a calibration: the leaf hash of its record, in hex."""
    return leaf_hash(record.encode()).hex()


@dataclass(frozen=True)
class DRef:
    """The paper's d_ref: how far two independent trainings of the recipe end from each other after ``steps`` steps."""

    steps: int
    distances: dict[str, float]


@dataclass(frozen=True)
class Calibration:
    """Noise that was measured beforehand.

    Attributes:
        recipe: SHA-256 of the recipe file.
        machine: device, device name and torch version where it was measured.
        segments: floors, by `record_key`.
        d_ref: reference distances, if they were measured.
    """

    recipe: bytes
    machine: tuple[str, str, str]
    segments: dict[str, Floor] = field(default_factory=dict)
    d_ref: DRef | None = None

    def floor(self, segment: Segment) -> Floor | None:
        """Return the noise of a segment, or None if it was not measured; raises `CallerError` if it does not fit."""
        found = self.segments.get(record_key(segment.record))
        if found is not None and len(found.losses) != len(segment.steps.steps):
            raise CallerError(
                f"calibration of {segment.name}, steps", expected=len(segment.steps.steps), got=len(found.losses)
            )
        return found

    def require_recipe(self, digest: bytes) -> None:
        """Require that it is for this recipe; raises `CallerError`."""
        if self.recipe != digest:
            raise CallerError("calibration was made with another recipe", expected=digest, got=self.recipe)

    def require_machine(self, here: Environment) -> None:
        """Require that it was made on this device, with this torch; raises `CallerError`."""
        ours = machine_of(here)
        if self.machine != ours:
            raise CallerError("calibration was made on another machine", expected=ours, got=self.machine)

    def encode(self) -> bytes:
        """Return the file's bytes."""
        value = {
            "schema": SCHEMA,
            "recipe": self.recipe.hex(),
            "machine": dict(zip(("device", "device_name", "torch"), self.machine, strict=True)),
            "segments": {
                key: {
                    "settings": list(floor.settings),
                    "unstable": floor.unstable,
                    "losses": [_finite(value) for value in floor.losses],
                    "tensors": {name: _finite(value) for name, value in floor.tensors.items()},
                }
                for key, floor in sorted(self.segments.items())
            },
            "d_ref": None if self.d_ref is None else {"steps": self.d_ref.steps, **self.d_ref.distances},
        }
        return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes) -> Calibration:
        """Parse a file; raises `CallerError`."""
        try:
            value = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            raise CallerError(f"not a calibration: {error}") from error
        fields = _object(value, "calibration", {"schema", "recipe", "machine", "segments", "d_ref"})
        if fields["schema"] != SCHEMA:
            raise CallerError("schema of a calibration", expected=SCHEMA, got=fields["schema"])
        machine = _object(fields["machine"], "machine of a calibration", {"device", "device_name", "torch"})
        segments = _mapping(fields["segments"], "segments of a calibration", MAX_SEGMENTS)
        return cls(
            _digest(fields["recipe"], "recipe of a calibration"),
            (
                _text(machine["device"], "device of a calibration"),
                _text(machine["device_name"], "device name of a calibration"),
                _text(machine["torch"], "torch of a calibration"),
            ),
            {_digest(key, "segment of a calibration").hex(): _floor(item) for key, item in segments.items()},
            None if fields["d_ref"] is None else _d_ref(fields["d_ref"]),
        )


def machine_of(here: Environment) -> tuple[str, str, str]:
    """Return what of an environment class a calibration is bound to."""
    return here.device, here.device_name, here.torch


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _floor(value: Any) -> Floor:
    fields = _object(value, "segment of a calibration", {"settings", "unstable", "losses", "tensors"})
    settings, losses = fields["settings"], fields["losses"]
    if not isinstance(settings, list) or not 0 < len(settings) <= MAX_SETTINGS:
        raise CallerError("settings of a calibration", expected=f"a list of 1 to {MAX_SETTINGS}", got=settings)
    if not isinstance(losses, list) or len(losses) > MAX_STEPS:
        raise CallerError("losses of a calibration", expected="a list", got=type(losses).__name__)
    if not isinstance(fields["unstable"], bool):
        raise CallerError("field unstable of a calibration", expected="true or false", got=fields["unstable"])
    tensors = _mapping(fields["tensors"], "tensors of a calibration", MAX_TENSORS)
    return Floor(
        tuple(_text(name, "setting of a calibration") for name in settings),
        {_text(name, "tensor of a calibration"): _noise(item) for name, item in tensors.items()},
        tuple(_noise(item) for item in losses),
        fields["unstable"],
    )


def _d_ref(value: Any) -> DRef:
    fields = _object(value, "d_ref of a calibration", {"steps", *METRICS})
    steps = fields["steps"]
    if type(steps) is not int or not 0 < steps < 2**63:
        raise CallerError("steps of d_ref", expected="a positive number", got=steps)
    found = {metric: _noise(fields[metric]) for metric in METRICS}
    for metric, distance in found.items():
        if not 0 < distance < math.inf:
            raise CallerError(f"d_ref, {metric}", expected="a positive number", got=distance)
    return DRef(steps, found)


def _noise(value: Any) -> float:
    """Return a distance: null stands for an infinite one, of which nothing can be told."""
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        raise CallerError("distance in a calibration", expected="a number, 0 or more, or null", got=value)
    return float(value)


def _object(value: Any, what: str, names: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict) or value.keys() != names:
        got = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise CallerError(what, expected=f"the fields {', '.join(sorted(names))}", got=got)
    return value


def _mapping(value: Any, what: str, limit: int) -> Mapping[str, Any]:
    if not isinstance(value, dict) or len(value) > limit:
        raise CallerError(what, expected=f"an object of at most {limit} entries", got=type(value).__name__)
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise CallerError(what, expected=f"text of at most {MAX_TEXT} characters", got=value)
    return value


def _digest(value: Any, what: str) -> bytes:
    try:
        digest = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        digest = b""
    if len(digest) != 32 or digest.hex() != value:
        raise CallerError(what, expected="64 hex digits", got=value)
    return digest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _refuse(name: str) -> Callable[[], None]:
    raise ValueError(f"{name} is no number")
