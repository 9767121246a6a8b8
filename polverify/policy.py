"""The verifier's policy: what a proof may declare, and how much evidence ACCEPT takes.

Each rule belongs to one numbered check of specs/verification.md. What the proof did wrong raises `PolicyError`, which
rejects it; evidence that does not reach far enough is returned as a line of text, which makes the verdict INCONCLUSIVE.
A policy only ever adds: without rules nothing changes, and nothing in a proof is asked whether a rule applies.
Implements specs/policy.md. Reads no file (that is `polverify.policy_file`) and no clock.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polstore.errors import PolicyError
from polverify.power import forged_segments

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from fractions import Fraction
    from pathlib import Path

    from polstore.wire.environment import Environment
    from polstore.wire.keys import VerifierKey
    from polstore.wire.manifest import Manifest
    from polstore.wire.segment import SegmentRecord
    from polstore.wire.steps import Groups, Steps
    from polverify.power import Power
    from polverify.time import Findings

__all__ = ["Bounds", "VerifierPolicy"]

MAX_SKEW = 3600  # seconds that evidence may lie in the future of the verifier's clock, as in polverify.time


@dataclass(frozen=True)
class Bounds:
    """Bounds of one hyperparameter, both inclusive; None for none. They hold from ``from_step`` on."""

    minimum: float | None = None
    maximum: float | None = None
    from_step: int = 0

    def require(self, what: str, step: int, group: Mapping[str, object], name: str) -> None:
        """Require that a parameter group keeps within the bounds; raises `PolicyError`.

        A group without that hyperparameter, or with something in its place that is no number, does not: else a proof
        would choose which rules apply to it.
        """
        if step < self.from_step:
            return
        value = group.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise PolicyError(f"{what}: {name}", expected="a number", got=value)
        low = self.minimum is None or value >= self.minimum  # NaN is neither, and one of the two is given
        high = self.maximum is None or value <= self.maximum
        if not (low and high):
            ends = ("any" if end is None else f"{end:g}" for end in (self.minimum, self.maximum))
            raise PolicyError(f"{what}: {name}", expected=" to ".join(ends), got=value)


@dataclass(frozen=True)
class VerifierPolicy:
    """A policy; None stands for no rule, everywhere.

    Attributes:
        digest: SHA-256 of the file in hex; None where there is none.
        rules: the file's content as plain data, for the verdict.
        keys: keys, or files of keys, that all must have signed the root.
        key_name: name of the signer, where a key file does not state one.
        tlog_policy: file with log keys, witnesses and their quorum (specs/time.md).
        origins: what a signed root may be called; an entry that ends in ``/*`` stands for all below.
        ledger: whether the root has to be in a ledger.
        recipes: SHA-256 of the recipes.
        datasets: roots of the datasets.
        fidelities, optimizers, initial, samplers: what a manifest may declare.
        max_every: largest k, in steps.
        min_steps: fewest steps of the run.
        max_short_segments: most segments with fewer steps than k.
        devices, device_names, torch: environment classes, of every segment.
        bounds: by name of the hyperparameter.
        time_kinds: kinds of evidence from above of which there has to be one: ``witnessed``, ``timestamped``.
        existed_by: seconds since 1970 by which the root has to be known to have existed.
        max_age: seconds that the latest evidence from above may be old.
        lower_bound: whether a witnessed checkpoint has to show when the run began at the earliest.
        nonces: sources of the challenge's nonce; any entry asks for a challenge.
        share, detection: forged part of the segments that has to be caught with this probability.
        one_bad_segment, concatenation: probabilities with which these have to be caught.
        replayed_share: least part of the steps that has to be replayed.
    """

    digest: str | None = None
    rules: Mapping[str, Any] = field(default_factory=dict)
    keys: tuple[VerifierKey | Path, ...] = ()
    key_name: str | None = None
    tlog_policy: Path | None = None
    origins: tuple[str, ...] | None = None
    ledger: bool = False
    recipes: tuple[bytes, ...] | None = None
    datasets: tuple[bytes, ...] | None = None
    fidelities: tuple[str, ...] | None = None
    optimizers: tuple[str, ...] | None = None
    initial: tuple[str, ...] | None = None
    samplers: tuple[str, ...] | None = None
    max_every: int | None = None
    min_steps: int | None = None
    max_short_segments: int | None = None
    devices: tuple[str, ...] | None = None
    device_names: tuple[str, ...] | None = None
    torch: tuple[str, ...] | None = None
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    time_kinds: tuple[str, ...] | None = None
    existed_by: int | None = None
    max_age: int | None = None
    lower_bound: bool = False
    nonces: tuple[str, ...] | None = None
    share: Fraction | None = None
    detection: float | None = None
    one_bad_segment: float | None = None
    concatenation: float | None = None
    replayed_share: float | None = None

    def check_origin(self, origin: str) -> None:
        """[check 1] The signed root is called as it may be; raises `PolicyError`."""
        if self.origins is not None and not any(_covers(pattern, origin) for pattern in self.origins):
            raise PolicyError("origin", expected=" or ".join(self.origins), got=origin)

    def time_lacking(self, found: Findings, now: int | None) -> str | None:
        """[check 2] Say what the evidence of time lacks.

        Args:
            found: the evidence, each piece checked.
            now: the verifier's clock, seconds since 1970; None is later than any evidence can prove.
        """
        times = [time for kind, time in found.existed_by if self.time_kinds is None or kind in self.time_kinds]
        wanted = " or ".join(self.time_kinds or ("witnessed", "timestamped"))
        if not times and (self.time_kinds is not None or self.existed_by is not None or self.max_age is not None):
            return f"policy: no evidence from above that is {wanted}"
        if self.existed_by is not None and min(times) > self.existed_by:
            return f"policy: existed by {_date(self.existed_by)} is not shown, only by {_date(min(times))}"
        if self.max_age is not None and (now is None or not -MAX_SKEW <= now - max(times) <= self.max_age):
            age = "of unknown age" if now is None else f"{now - max(times)} s old"
            return f"policy: evidence of time may be {self.max_age} s old, the latest is {age}"
        if self.lower_bound and not found.began_after:
            return "policy: no witnessed checkpoint shows when the run began at the earliest"
        return None

    def ledger_lacking(self) -> str | None:
        """[check 3] Say what is lacking where the root was not shown to be in a ledger."""
        return "policy: the signed root has to be in a ledger, and no proof of it was given" if self.ledger else None

    def check_manifest(self, manifest: Manifest, declared: Groups) -> None:
        """[check 4] What was declared before training is allowed; raises `PolicyError`."""
        for what, allowed, got in (
            ("fidelity", self.fidelities, manifest.fidelity),
            ("optimizer", self.optimizers, manifest.optimizer.name),
            ("kind of the initial state", self.initial, manifest.initial.kind),
            ("sampler", self.samplers, manifest.sampler),
        ):
            _among(what, allowed, got)
        _among_digests("recipe", self.recipes, manifest.recipe.digest)
        _among_digests("dataset", self.datasets, manifest.dataset.root)
        if self.max_every is not None and manifest.every > self.max_every:
            raise PolicyError("steps of a segment", expected=f"at most {self.max_every}", got=manifest.every)
        self._check_environment("manifest", manifest.environment)
        self._check_groups("declared hyperparameters", 0, declared)

    def check_records(self, manifest: Manifest, records: Sequence[SegmentRecord]) -> None:
        """[check 6] The run is long enough, and all of it was made where it may be; raises `PolicyError`."""
        for record in records:
            self._check_environment(f"segment {record.index}", record.environment)
        steps = records[-1].end_step
        if self.min_steps is not None and steps < self.min_steps:
            raise PolicyError("steps of the run", expected=f"at least {self.min_steps}", got=steps)
        short = sum(record.end_step - record.start_step < manifest.every for record in records)
        if self.max_short_segments is not None and short > self.max_short_segments:
            what = f"segments of fewer than {manifest.every} steps"
            raise PolicyError(what, expected=f"at most {self.max_short_segments}", got=short)

    def challenge_lacking(self, nonce_from: str | None) -> str | None:
        """[check 7] Say what the challenge lacks; ``nonce_from`` is the source of its nonce, None for no challenge."""
        if self.nonces is None or nonce_from in self.nonces:
            return None
        got = "there is none" if nonce_from is None else f"its nonce is {nonce_from}"
        return f"policy: a challenge has to have a nonce that is {' or '.join(self.nonces)}, and {got}"

    def check_steps(self, steps: Steps) -> None:
        """[check 9] The hyperparameters that an opened segment used keep within bounds; raises `PolicyError`."""
        for number, step in enumerate(steps.steps, steps.start_step):
            self._check_groups(f"step {number}", number, step.hyperparameters)

    def power_lacking(self, power: Power) -> str | None:
        """[check 12] Say what the power lacks of what is required."""
        wanted: list[tuple[str, float, float | None]] = []
        if self.share is not None:
            name = f"{100 * float(self.share):g} % forged segments"
            wanted.append((name, power.against(forged_segments(power.segments, self.share)), self.detection))
        wanted.append(("one bad segment", power.against(1), self.one_bad_segment))
        wanted.append(("a concatenation", power.against_concatenation(), self.concatenation))
        for name, got, least in wanted:
            if least is not None and got < least:
                return f"policy: {name} must be caught with probability {least:g} at least, and is with {got:.6g}"
        if self.replayed_share is not None and power.steps_replayed < self.replayed_share * power.steps_trained:
            return (
                f"policy: {100 * self.replayed_share:g} % of the steps must be replayed at least, and "
                f"{power.steps_replayed} of {power.steps_trained} were"
            )
        return None

    def _check_environment(self, what: str, environment: Environment) -> None:
        _among(f"{what}: device", self.devices, environment.device)
        _among(f"{what}: device name", self.device_names, environment.device_name)
        _among(f"{what}: torch", self.torch, environment.torch)

    def _check_groups(self, what: str, step: int, groups: Groups) -> None:
        for group in groups:  # none at all: a step that the grad scaler skipped, which check 10 sees to
            for name, bounds in self.bounds.items():
                bounds.require(what, step, dict(group), name)


def _covers(pattern: str, origin: str) -> bool:
    if pattern.endswith("/*"):
        return origin.startswith(pattern[:-1]) and len(origin) >= len(pattern)
    return origin == pattern


def _among(what: str, allowed: Collection[str] | None, got: str) -> None:
    if allowed is not None and got not in allowed:
        raise PolicyError(what, expected=" or ".join(allowed), got=got)


def _among_digests(what: str, allowed: Collection[bytes] | None, got: bytes) -> None:
    if allowed is not None and got not in allowed:
        raise PolicyError(what, expected=f"one of {len(allowed)} that the policy lists", got=got)


def _date(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()
