"""The environment class: all that decides whether two machines compute the same bits.

In the same class a replayed state digest must equal the committed one; in another class exactness is not to be
expected. Implements specs/run-records.md, section "Environment class". Reads and sets nothing: `polstore.codec.live`
does that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore.wire.fields import Fields
from polstore.wire.state import check_order

if TYPE_CHECKING:
    from polstore.wire.canonical import Value

__all__ = ["Environment"]

MAX_TEXT = 256  # characters of a name, version or flag
MAX_THREADS = 65_536
MAX_FLAGS = 64


@dataclass(frozen=True)
class Environment:
    """One environment class.

    Attributes:
        device: ``cpu`` or ``cuda``.
        device_name: model name of the processor or accelerator.
        torch: version of torch, build tag included.
        capability: instruction set that torch dispatches to on the CPU, for instance ``AVX512``.
        threads: threads inside one operator.
        flags: sorted (name, value) pairs of math settings, for instance ``("float32_matmul_precision", "highest")``.
    """

    device: str
    device_name: str
    torch: str
    capability: str
    threads: int
    flags: tuple[tuple[str, str], ...]

    def value(self) -> Value:
        """Return the environment class as a canonical value."""
        return (self.device, self.device_name, self.torch, self.capability, self.threads, self.flags)

    @classmethod
    def from_value(cls, value: Value) -> Environment:
        """Parse an environment class; raises `MalformedError`."""
        fields = Fields(value, "environment class", 6)
        device = fields.text("device", 16, "[a-z]+")
        device_name = fields.text("device_name", MAX_TEXT)
        torch = fields.text("torch", MAX_TEXT)
        capability = fields.text("capability", MAX_TEXT)
        threads = fields.integer("threads", 1, MAX_THREADS)
        flags = []
        for item in fields.array("flags", MAX_FLAGS):
            pair = Fields(item, "environment class, flag", 2)
            flags.append((pair.text("name", MAX_TEXT), pair.text("value", MAX_TEXT)))
        check_order((name for name, _ in flags), "flags of an environment class")
        return cls(device, device_name, torch, capability, threads, tuple(flags))

    def differences(self, other: Environment) -> list[str]:
        """Say in which points ``other`` (this machine, as a rule) is not of this class; empty when it is."""
        found = [
            f"{name} is {theirs}, not {ours}"
            for name, ours, theirs in (
                ("device", self.device, other.device),
                ("device name", self.device_name, other.device_name),
                ("torch", self.torch, other.torch),
                ("CPU capability", self.capability, other.capability),
                ("thread count", self.threads, other.threads),
            )
            if ours != theirs
        ]
        ours_flags, their_flags = dict(self.flags), dict(other.flags)
        found += [
            f"{name} is {their_flags.get(name, 'unset')}, not {ours_flags.get(name, 'unset')}"
            for name in sorted(ours_flags.keys() | their_flags.keys())
            if ours_flags.get(name) != their_flags.get(name)
        ]
        return found
