"""Capturing the live state as it will be committed: quantised where it lives, written back, and copied out.

The values are those of `polstore.codec.quantise`, bit for bit; a property test compares the two. Here they come from
two passes of the compiled loops, or from a few passes of torch over blocks that stay in the cache: on the device of the
training, and only what has to be stored leaves it, 2 bytes of 4 for weights. What is committed as it is, is copied.
What is out of the ordinary (NaN, infinities, numbers near the largest) goes through the reference implementation.
Encoding, hashing and compressing are not done here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from polstore.codec import native
from polstore.codec.live.arrays import dtype_name, to_host, to_torch
from polstore.codec.live.copies import copy_exactly
from polstore.codec.live.host_lanes import HostLane
from polstore.codec.live.lanes import Lane, Row, Workspace
from polstore.codec.live.outgoing import Outgoing
from polstore.codec.live.rules import LARGEST, rule_for
from polstore.codec.proportion import salt_of
from polstore.codec.quantise import (
    Role,
    quantise_tensor,
    require_subnormals,
    roles_of,
    writes_back,
)
from polstore.codec.quantised import Quantised, Scheme
from polstore.codec.snapshot import Snapshot
from polstore.errors import MalformedError, TrainingError
from polstore.wire.fields import Fields
from polstore.wire.state import header, state_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from polstore.codec.live.lanes import Rule
    from polstore.codec.snapshot import Tensor

__all__ = ["Capture", "Captured"]

PINNED = None  # in place of a device


@dataclass(frozen=True)
class Captured:
    """A captured state: for each tensor how its committed values come about, and the canonical scalars.

    Its arrays are good until the next capture, those of weights until the one after that: the next segment's norms need
    them. From a CUDA device they may still be on their way to the host: call `wait` before reading them.
    """

    parts: tuple[Quantised, ...]
    scalars: bytes
    arrived: tuple[torch.cuda.Event, ...] = ()

    @property
    def digest(self) -> bytes:
        """The state digest of the committed snapshot."""
        self.wait()
        return state_digest([part.entry() for part in self.parts], self.scalars)

    @property
    def committed(self) -> Snapshot:
        """The committed snapshot; its arrays are made on the first call."""
        self.wait()
        return Snapshot(tuple(part.tensor for part in self.parts), self.scalars)

    def wait(self) -> None:
        """Wait until all items are on the host."""
        for event in self.arrived:
            event.synchronize()


class Capture:
    """Captures one training's state again and again; keeps working memory, and the base where it is needed.

    Args:
        fidelity: one of `polstore.codec.quantise.FIDELITIES`.
    """

    def __init__(self, fidelity: str) -> None:
        self._fidelity = fidelity
        self._writes_back = writes_back(fidelity)
        self._memory: dict[tuple[object, ...], torch.Tensor] = {}
        self._turn = 0  # which of the two memories for weights is in use
        self._bases: dict[str, tuple[Tensor, torch.Tensor]] = {}
        self._known: tuple[object, ...] = ()  # what the lanes were made for
        self._workspaces: dict[torch.device, Workspace] = {}
        self._outgoing = Outgoing()
        self._lanes: list[Lane | HostLane] = []
        self._exact: list[list[Row]] = []
        self._rest: list[tuple[Row, Role]] = []

    def take(self, tensors: Mapping[str, torch.Tensor], scalars: bytes, base: Snapshot | None) -> Captured:
        """Capture a live state; where the fidelity writes back, training goes on from the committed values.

        Args:
            tensors: by name, as `LiveState.walk` returns them.
            scalars: likewise.
            base: the committed snapshot that the values are quantised against; None makes a keyframe,
                whose weights are exact.

        Raises:
            TrainingError: a state that cannot be committed, or a thread that flushes subnormal numbers to zero.
        """
        if self._fidelity != "lossless":
            require_subnormals()
        names = sorted(tensors, key=str.encode)
        self._turn ^= 1
        self._outgoing.hold_back()  # the memory of what is still on its way is used again
        known = (base, *((name, *_place(tensors[name])) for name in names))
        with torch.no_grad():
            if base is None or known != self._known:
                self._arrange([(name, tensors[name].detach()) for name in names], base)
                self._known = known
            salt = salt_of(scalars)
            parts, arrived, rest = self._fused(salt)
            for rows in self._exact:
                copied, event = copy_exactly(rows, self._outgoing)
                parts.update((part.name, part) for part in copied)
                if event is not None:
                    arrived.append(event)
            parts.update((row.name, self._by_reference(row, role, salt)) for row, role in rest)
        return Captured(tuple(parts[name] for name in names), scalars, tuple(arrived))

    def _arrange(self, tensors: Sequence[tuple[str, torch.Tensor]], base: Snapshot | None) -> None:
        """Decide which tensors are worked on together."""
        if base is None:  # weights are copied as they are, so what was needed for deltas until now is in the way
            self._bases.clear()
            self._memory = {key: memory for key, memory in self._memory.items() if key[0] is not Role.WEIGHT}
        rows = []
        for name, live in tensors:
            dtype, shape = dtype_name(name, live), tuple(live.shape)
            _require_header(name, dtype, shape)
            rows.append(Row(name, dtype, shape, live, None if base is None else base.partner(name, dtype, shape)))
        lanes: dict[tuple[Role, torch.device], list[Row]] = {}
        exact: dict[tuple[bool, str, torch.device], list[Row]] = {}
        self._rest = []
        for row, role in zip(rows, roles_of(rows), strict=True):
            weight, device = role is Role.WEIGHT, row.live.device
            if rule_for(self._fidelity, role) is None or not row.live.numel() or (weight and row.partner is None):
                exact.setdefault((weight, row.dtype, device), []).append(row)  # weights apart: they may be kept longer
            elif not weight or self._has_ordinary_base(row):
                lanes.setdefault((role, device), []).append(row)
            else:
                self._rest.append((row, role))
        self._exact = list(exact.values())
        self._lanes = [
            self._lane(role, rule, own, device)
            for (role, device), own in lanes.items()
            if (rule := rule_for(self._fidelity, role)) is not None
        ]

    def _by_reference(self, row: Row, role: Role, salt: bytes) -> Quantised:
        """Quantise a tensor on the host."""
        part = quantise_tensor(to_host(row.name, row.live), row.partner, role, self._fidelity, salt)
        if self._writes_back and part.scheme is not Scheme.EXACT:
            row.live.copy_(to_torch(part.tensor))
        return part

    def _fused(self, salt: bytes) -> tuple[dict[str, Quantised], list[torch.cuda.Event], list[tuple[Row, Role]]]:
        """Quantise the tensors of each lane together, and return besides which ones only the reference can do."""
        parts: dict[str, Quantised] = {}
        arrived = []
        rest = list(self._rest)
        for lane in self._lanes:  # all begun before the first is asked
            lane.begin()
        for whole in self._lanes:
            ordinary, peaks = [], []
            for row, peak in zip(whole.rows, whole.peaks(), strict=True):
                if not peak <= LARGEST:  # NaN included
                    rest.append((row, whole.role))
                elif whole.role is Role.WEIGHT and peak == 0:
                    parts[row.name] = Quantised(row.name, row.dtype, row.shape, row.partner, Scheme.UNCHANGED)
                    if self._writes_back and row.base is not None:
                        row.put(row.base)  # zeros take the sign of the base's
                else:
                    ordinary.append(row)
                    peaks.append(peak)
            if ordinary:
                lane = whole.only(ordinary)
                exponents = lane.exponents(peaks)
                items = self._items(lane, lane.device)
                lane.quantise(exponents, salt, items, write_back=self._writes_back)
                if items.is_cuda:
                    pinned = self._items(lane, PINNED)
                    arrived.append(self._outgoing.send(items, pinned))
                    items = pinned
                parts.update((part.name, part) for part in lane.parts(exponents, items))
        return parts, arrived, rest

    def _lane(self, role: Role, rule: Rule, rows: list[Row], device: torch.device) -> Lane | HostLane:
        """Return a lane of these tensors, worked on where they are."""
        if device.type == "cpu" and native.compiled is not None:
            return HostLane(role, rule, rows, self._fidelity)
        return Lane(role, rule, rows, self._workspace(device))

    def _workspace(self, device: torch.device) -> Workspace:
        if device not in self._workspaces:
            self._workspaces[device] = Workspace.on(device)
        return self._workspaces[device]

    def _items(self, lane: Lane | HostLane, device: torch.device | None) -> torch.Tensor:
        """Return memory for a lane's items, the same each time: touching new memory costs more than filling it.

        On no device, it is host memory that a CUDA device can write to by itself.
        """
        turn = self._turn if lane.role is Role.WEIGHT else 0
        key = (lane.role, turn, lane.device, device)
        memory = self._memory.get(key)
        if memory is None or memory.numel() < lane.count:
            size, dtype = lane.count, lane.rule.dtype
            memory = torch.empty(size, dtype=dtype, device=device or "cpu", pin_memory=device is PINNED)
            self._memory[key] = memory
        return memory[: lane.count]

    def _has_ordinary_base(self, row: Row) -> bool:
        """Put the base's values of a weight beside it, and say whether they are small enough for the fused passes."""
        partner = row.partner
        if partner is None:
            return False
        kept, values = self._bases.get(row.name, (None, None))
        if kept is not partner or values is None:
            data = partner.data if partner.data.flags.writeable else partner.data.copy()  # torch has no read-only views
            values = torch.from_numpy(data).to(row.live.device)
            self._bases[row.name] = partner, values
        row.base = values
        return _peak(values) <= LARGEST


def _peak(values: torch.Tensor) -> float:
    """Return the largest magnitude of float32; NaN if there is one."""
    if values.device.type == "cpu" and native.compiled is not None:
        return native.compiled.peak(values.numpy())
    return float(values.abs().max())


def _require_header(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Require what a reader requires of a tensor's name and shape; raises `TrainingError`."""
    try:
        header(Fields((name, dtype, shape), "tensor", 3))
    except MalformedError as error:
        raise TrainingError(f"a tensor of this training cannot be committed: {error}") from error


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return what tells one tensor's memory from another's."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device
