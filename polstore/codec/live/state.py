"""Capturing and restoring the whole training state of live torch objects.

A snapshot holds, under these names: ``parameter/<path>``, ``buffer/<path>`` (those that a ``state_dict`` leaves out,
too), ``optimizer/<parameter path>/<key>``, ``extra/<name>/<path>`` for whatever else has a state (schedulers, gradient
scalers, averaged weights), and as scalars the step, the optimizer's hyperparameters and the trees of optimizer and
extras. Randomness is keyed by step, so the step is all there is to commit of it. Implements specs/state-digest.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from polstore.codec.live.arrays import dtype_name, same_bits, to_host, to_torch
from polstore.codec.live.outline import outline, require_same
from polstore.codec.live.tree import flatten, unflatten
from polstore.codec.snapshot import Snapshot
from polstore.errors import MalformedError, TrainingError
from polstore.wire import canonical
from polstore.wire.fields import Fields
from polstore.wire.state import MAX_SCALARS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from polstore.codec.live.outline import Outline
    from polstore.wire.canonical import Value
    from polstore.wire.steps import Groups

__all__ = ["TAG", "LiveState", "hyperparameters", "loss_value"]

TAG = "polstore/scalars/v1"
# Hyperparameters that choose a kernel. They are the recipe's, never a snapshot's: fused kernels trust the shapes of the
# optimizer's state, so a hostile state with fused=True would have them write out of bounds.
KERNEL_CHOICES = ("capturable", "differentiable", "foreach", "fused")


class LiveState:
    """The live objects of one training, seen as one state."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, extras: Mapping[str, Any]) -> None:
        for name, extra in extras.items():
            if not (hasattr(extra, "state_dict") and hasattr(extra, "load_state_dict")):
                raise TrainingError(f"extra {name} has no state", expected="state_dict() and load_state_dict()")
        self.model = model
        self.optimizer = optimizer
        self.extras = dict(extras)
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._outline: Outline | None = None  # of the first state that was looked at

    def capture(self, step: int) -> Snapshot:
        """Copy the whole state after ``step`` steps into a snapshot on the host; raises `TrainingError`."""
        live, scalars = self.walk(step)
        tensors = [to_host(name, live[name]) for name in sorted(live, key=str.encode)]
        return Snapshot(tuple(tensors), scalars)

    def walk(self, step: int) -> tuple[dict[str, torch.Tensor], bytes]:
        """Return every live tensor by name, and the canonical scalars.

        Raises:
            TrainingError: a state that cannot be committed, or another outline than that of the first one.
        """
        live: dict[str, torch.Tensor] = {}

        def add(name: str, tensor: torch.Tensor) -> Value:
            if name in live:
                raise TrainingError("two tensors of the state have the same name", expected="different names", got=name)
            dtype_name(name, tensor)
            live[name] = tensor
            return name

        for name, parameter in self.model.named_parameters():
            add(f"parameter/{name}", parameter)
        for name, buffer in self.model.named_buffers():
            add(f"buffer/{name}", buffer)
        for name, tensor in live.items():
            _require_writable(name, tensor)
        state = self._optimizer_state()
        states = {name: extra.state_dict() for name, extra in self.extras.items()}
        now = outline(live, state["#groups"], states)
        if self._outline is None:
            self._outline = now
        require_same(self._outline, now)
        try:
            optimizer = flatten(state, "optimizer", add)
            extras = flatten(states, "extra", add)
            scalars = canonical.encode((TAG, step, optimizer, extras))
        except (MalformedError, RecursionError) as error:
            raise TrainingError(f"this state cannot be committed: {error}") from error
        if len(scalars) > MAX_SCALARS:
            raise TrainingError("scalars of the state", expected=f"at most {MAX_SCALARS} bytes", got=len(scalars))
        self._require_whole(live)
        return live, scalars

    def restore(self, snapshot: Snapshot) -> int:
        """Make the live objects equal to ``snapshot`` and return its step.

        Raises:
            TrainingError: the snapshot does not fit these objects.
            MalformedError: its scalars are not what they should be.
        """
        step, optimizer, extras = parse_scalars(snapshot.scalars)
        self._restore_model(snapshot)

        def tensor(name: Value) -> torch.Tensor:
            if not isinstance(name, str):
                raise MalformedError("state tree, tensor", expected="a name", got=name)
            return to_torch(snapshot.tensor(name))

        self._restore_optimizer(unflatten(optimizer, tensor))
        states = unflatten(extras, tensor)
        _require_keys("extras", self.extras, states)
        for name, extra in self.extras.items():
            _require_keys(f"extra {name}", extra.state_dict(), states[name])
            extra.load_state_dict(states[name])
        self.drop_gradients()
        if not self._holds(snapshot, step):
            got = _difference(snapshot, self.capture(step))
            raise TrainingError("state did not survive being restored", expected=snapshot.digest(), got=got)
        return step

    def _holds(self, snapshot: Snapshot, step: int) -> bool:
        """Say whether the live state is this very snapshot, bit for bit; comparing is faster than hashing."""
        live, scalars = self.walk(step)
        if scalars != snapshot.scalars or len(live) != len(snapshot.tensors):
            return False
        return all(tensor.name in live and same_bits(live[tensor.name], tensor) for tensor in snapshot.tensors)

    def inherit(self, snapshot: Snapshot) -> tuple[str, ...]:
        """Take over the model's parameters and buffers that ``snapshot`` has under the same name, shape and dtype.

        Everything else stays as it was built, optimizer and extras included. Returns the names, sorted.
        """
        live: dict[str, torch.Tensor] = {f"parameter/{name}": t for name, t in self.model.named_parameters()}
        live.update({f"buffer/{name}": tensor for name, tensor in self.model.named_buffers()})
        names = []
        with torch.no_grad():
            for name in sorted(live, key=str.encode):
                found = snapshot.partner(name, dtype_name(name, live[name]), tuple(live[name].shape))
                if found is not None:
                    live[name].copy_(to_torch(found))
                    names.append(name)
        return tuple(names)

    def versions(self) -> int:
        """Return a number that grows whenever a parameter or buffer is written in place.

        What was made in inference mode has no such number; the next snapshot refuses it.
        """
        tensors = (*self.model.parameters(), *self.model.buffers())
        try:  # no public way
            return sum(tensor._version for tensor in tensors)
        except RuntimeError:  # asking each first would take as long as all the rest
            return sum(tensor._version for tensor in tensors if not tensor.is_inference())

    def gradient_versions(self) -> tuple[tuple[int, int], ...]:
        """Return what is another value once gradients were computed."""
        grads = (parameter.grad for parameter in self.model.parameters())
        return tuple((id(grad), grad._version) for grad in grads if grad is not None)

    def drop_gradients(self) -> None:
        """Set all gradients to None: they are no part of the state."""
        for parameter in (*self.model.parameters(), *self._optimized()):
            parameter.grad = None

    def _optimized(self) -> list[torch.Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _require_whole(self, live: Mapping[str, torch.Tensor]) -> None:
        """Require that nothing the optimizer changes is left out, and that no memory belongs to two parts of the state.

        A parameter that an extra or a buffer shares would be written back under one name and committed under both.
        """
        places: dict[int, str] = {}  # of parameters, which come first
        others: set[int] = set()
        for name, tensor in live.items():
            if not tensor.numel():
                continue
            place = tensor.data_ptr()
            if place in places:
                raise TrainingError(
                    f"{places[place]} and {name} are the same memory",
                    expected="a copy in one of them, or one parameter in both places",
                    got="one",
                )
            if name.startswith("parameter/"):
                places[place] = name
            else:
                others.add(place)
        optimized = self._optimized()
        for tensor in optimized:
            if id(tensor) not in self._names and tensor.numel() and tensor.data_ptr() not in others:
                raise TrainingError(
                    "the optimizer changes a tensor that is no part of the state",
                    expected="a parameter of the model or of an extra",
                    got=f"one of shape {tuple(tensor.shape)}",
                )
        known = {id(tensor) for tensor in optimized}
        unknown = [key for key in self.optimizer.state if id(key) not in known]
        if unknown:
            raise TrainingError("the optimizer keeps state beside its parameters", expected="none", got=unknown[0])

    def _parameter_names(self) -> list[list[str]]:
        """Return the names of every group's parameters; one outside the model gets its place as a name."""
        return [
            [self._names.get(id(parameter), f"#{number}.{place}") for place, parameter in enumerate(group["params"])]
            for number, group in enumerate(self.optimizer.param_groups)
        ]

    def _optimizer_state(self) -> dict[str, Any]:
        names = self._parameter_names()
        state: dict[str, Any] = {}
        groups = []
        for group, group_names in zip(self.optimizer.param_groups, names, strict=True):
            groups.append({**group, "params": group_names})
            for parameter, name in zip(group["params"], group_names, strict=True):
                if parameter in self.optimizer.state:
                    state[name] = self.optimizer.state[parameter]
        # The state's own entries come first in the path, so a tensor is called optimizer/<parameter>/<key>.
        _require_free(state)
        return {"#groups": groups, **state}

    def _restore_model(self, snapshot: Snapshot) -> None:
        live: dict[str, torch.Tensor] = {f"parameter/{name}": t for name, t in self.model.named_parameters()}
        live.update({f"buffer/{name}": tensor for name, tensor in self.model.named_buffers()})
        stored = {t.name: t for t in snapshot.tensors if t.name.startswith(("parameter/", "buffer/"))}
        _require_keys("model", live, stored)
        with torch.no_grad():
            for name, target in live.items():
                source = to_torch(stored[name])
                if (source.shape, source.dtype) != (target.shape, target.dtype):
                    raise TrainingError(
                        f"tensor {name} does not fit",
                        expected=f"{tuple(target.shape)} {target.dtype}",
                        got=f"{tuple(source.shape)} {source.dtype}",
                    )
                target.copy_(source)

    def _restore_optimizer(self, tree: Any) -> None:
        if not isinstance(tree, dict) or not isinstance(tree.get("#groups"), list):
            raise MalformedError("optimizer's scalars", expected="its groups", got=type(tree).__name__)
        groups, names = tree.pop("#groups"), self._parameter_names()
        if [group.get("params") if isinstance(group, dict) else None for group in groups] != names:
            raise TrainingError("optimizer has other parameters", expected=f"{len(names)} groups of this model's")
        parameters = {}
        for live, stored, group_names in zip(self.optimizer.param_groups, groups, names, strict=True):
            _require_keys("optimizer's hyperparameters", live, stored)
            for key in KERNEL_CHOICES:
                if live.get(key) is not stored.get(key):
                    raise TrainingError(
                        f"optimizer's hyperparameter {key}", expected=live.get(key), got=stored.get(key)
                    )
            live.update({key: value for key, value in stored.items() if key != "params"})
            parameters.update(dict(zip(group_names, ((parameter, live) for parameter in live["params"]), strict=True)))
        self.optimizer.state.clear()
        for name in sorted(tree.keys() - parameters.keys(), key=str):
            raise TrainingError("optimizer has state for an unknown parameter", expected="one of the model", got=name)
        for name, (parameter, group) in parameters.items():  # in the order in which optimizers make it
            if name not in tree:
                continue
            state = tree[name]
            if not isinstance(state, dict):
                raise MalformedError(f"optimizer's state of {name}", expected="a dictionary", got=type(state).__name__)
            if group.get("fused"):
                _require_shapes(name, state, parameter)
            self.optimizer.state[parameter] = {
                key: _to_device(key, value, parameter, group) for key, value in state.items()
            }


def hyperparameters(optimizer: torch.optim.Optimizer) -> Groups:
    """Return the hyperparameters in use: per group, sorted (name, value) pairs without the parameters.

    Raises:
        TrainingError: one that is no number, text or the like.
    """
    return tuple(
        tuple((name, flatten(group[name], f"optimizer/{name}", _number)) for name in sorted(group) if name != "params")
        for group in optimizer.param_groups
    )


def loss_value(loss: Any) -> float | None:
    """Return a loss, a number or a tensor of one element, as it stands in a step record; None stays None.

    Raises:
        TrainingError: a tensor of several elements.
    """
    return None if loss is None else float(_number("loss", loss) if isinstance(loss, torch.Tensor) else loss)


def _number(path: str, tensor: torch.Tensor) -> Any:
    if tensor.numel() != 1:
        raise TrainingError(path, expected="a tensor of one element", got=f"one of shape {tuple(tensor.shape)}")
    return tensor.item()


def parse_scalars(scalars: bytes) -> tuple[int, Value, Value]:
    """Return (step, optimizer tree, extras tree) of a snapshot's scalars; raises `MalformedError`."""
    fields = Fields(canonical.decode(scalars, limit=MAX_SCALARS, what="scalars"), "scalars", 4)
    fields.tag(TAG)
    return fields.integer("step"), fields.value(), fields.value()


def _to_device(key: object, value: Any, parameter: torch.Tensor, group: Mapping[str, Any]) -> Any:
    """Put restored optimizer state where torch keeps it: with its parameter, but step counters on the CPU."""
    if isinstance(value, (list, tuple)):  # such as the directions that LBFGS remembers
        return type(value)(_to_device(key, item, parameter, group) for item in value)
    if isinstance(value, torch.Tensor):
        if key == "step" and not (group.get("capturable") or group.get("fused")):
            return value
        if value.shape == parameter.shape:  # laid out in memory like the parameter, as optimizers make it
            return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        return value.to(parameter.device)
    return value


def _require_writable(name: str, tensor: torch.Tensor) -> None:
    """Require a tensor of the model that restoring can put values into."""
    if tensor.is_inference():
        raise TrainingError(
            f"tensor {name} cannot be restored", expected="one made under no_grad", got="inference mode"
        )
    if not tensor.is_contiguous() and any(
        stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ):
        raise TrainingError(
            f"tensor {name} cannot be restored", expected="memory for every element, as clone() gives", got="expanded"
        )


def _require_shapes(name: str, state: Mapping[object, Any], parameter: torch.Tensor) -> None:
    """Require state that a fused kernel can walk along with its parameter: it checks nothing itself."""
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or (key == "step" and value.numel() == 1):
            continue
        if (value.shape, value.dtype) != (parameter.shape, parameter.dtype):
            raise TrainingError(
                f"optimizer's state {key} of {name} does not fit a fused kernel",
                expected=f"{tuple(parameter.shape)} {parameter.dtype}",
                got=f"{tuple(value.shape)} {value.dtype}",
            )


def _require_free(state: Mapping[str, Any]) -> None:
    if "#groups" in state:
        raise TrainingError("a parameter has a reserved name", expected="any other name", got="#groups")


def _require_keys(what: str, live: Mapping[str, Any], stored: Any) -> None:
    """Require that stored state has exactly the entries of the live one: no attribute can be smuggled in."""
    if not isinstance(stored, dict) or live.keys() != stored.keys():
        names = sorted(map(str, live.keys() ^ stored.keys())) if isinstance(stored, dict) else []
        raise TrainingError(f"{what}: stored state does not fit", expected="the same entries", got=", ".join(names[:8]))


def _difference(expected: Snapshot, got: Snapshot) -> str:
    """Name the first entries in which two snapshots differ."""
    theirs = {entry.name: entry for entry in got.entries()}
    names = [entry.name for entry in expected.entries() if theirs.get(entry.name) != entry]
    return ", ".join(names[:4]) or "other tensors or scalars"
