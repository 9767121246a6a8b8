"""Turning saved state into snapshots that look like recorded ones.

A ``state_dict`` does not say which of its tensors are parameters. The rule: integer and bool tensors, and those whose
name ends in ``running_mean``, ``running_var`` or ``num_batches_tracked``, are called ``buffer/<name>``, all others
``parameter/<name>``. Nor does an optimizer's state say whose it is. It goes by the names that it holds itself (torch
2.6 and later can), or, for one group of exactly the model's parameters whose shapes fit, by their order; otherwise a
parameter is called ``#<group>.<place>``. Nothing that was loaded is left out, and nothing is guessed beyond this.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from polstore.codec.live.arrays import to_host
from polstore.codec.live.state import TAG
from polstore.codec.live.tree import flatten
from polstore.codec.snapshot import Snapshot
from polstore.errors import TrainingError
from polstore.wire import canonical
from polstore.wire.state import MAX_SCALARS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from polstore.archive.loading import Loaded
    from polstore.wire.canonical import Value
    from polstore.wire.steps import Groups

__all__ = ["hyperparameters", "to_snapshot"]

BUFFERS = frozenset({"running_mean", "running_var", "num_batches_tracked"})  # of torch's normalisation layers
GROUPS = "#groups"


def to_snapshot(loaded: Loaded, step: int) -> Snapshot:
    """Return saved state as a snapshot at ``step`` of its run.

    Raises:
        TrainingError: something in it cannot be committed, named by its path.
        MalformedError: a tensor's name or shape, or a number, that no snapshot may hold.
    """
    tensors: dict[str, torch.Tensor] = {}

    def add(name: str, tensor: torch.Tensor) -> Value:
        if name in tensors:
            raise TrainingError("two tensors have the same name", expected="different names", got=name)
        tensors[name] = tensor
        return name

    for name, tensor in loaded.model.items():
        add(f"{kind_of(name, tensor)}/{name}", tensor)
    seen = count()
    optimizer = flatten(_plain(_optimizer_state(loaded), seen), "optimizer", add)
    extras = flatten(_plain(loaded.extras, seen), "extra", add)
    scalars = canonical.encode((TAG, step, optimizer, extras))
    return Snapshot(tuple(to_host(name, tensors[name]) for name in sorted(tensors, key=str.encode)), scalars)


def hyperparameters(loaded: Loaded) -> Groups:
    """Return the optimizers' hyperparameters: per group, sorted (name, value) pairs without the parameters."""

    def number(path: str, tensor: torch.Tensor) -> Value:
        if tensor.numel() != 1:
            raise TrainingError(f"{path} is no hyperparameter", expected="a number", got=f"shape {tuple(tensor.shape)}")
        value: Value = tensor.item()
        return value

    return tuple(
        tuple(
            (name, flatten(group[name], f"optimizer/{name}", number))
            for name in sorted(group)
            if name not in ("params", "param_names")
        )
        for state in loaded.optimizers
        for group in state["param_groups"]
    )


def kind_of(name: str, tensor: torch.Tensor) -> str:
    """Return ``buffer`` or ``parameter``, by the rule above."""
    number = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    return "buffer" if name.rpartition(".")[2] in BUFFERS or not number else "parameter"


def _optimizer_state(loaded: Loaded) -> dict[str, Any]:
    """Return the optimizers' state as a recorder captures it: groups that name their parameters, and state by name."""
    groups: list[dict[str, Any]] = []
    states: dict[str, Any] = {}
    for saved in loaded.optimizers:
        names: dict[Any, str] = {}
        for group, group_names in zip(saved["param_groups"], _names(loaded, saved, len(groups)), strict=True):
            groups.append({**group, "params": group_names})
            names.update(zip(group["params"], group_names, strict=True))
        for key, state in saved["state"].items():
            name = names.get(key)
            if name is None or name in states or name == GROUPS:
                raise TrainingError("optimizer state", expected="one entry per parameter of its groups", got=key)
            states[name] = state
    return {GROUPS: groups, **states}


def _names(loaded: Loaded, saved: Mapping[str, Any], first: int) -> list[list[str]]:
    """Return the names of every group's parameters; ``first`` is the number of the first group."""
    groups = saved["param_groups"]
    own = [group.get("param_names", group["params"]) for group in groups]
    flat = [name for group in own for name in group]
    fits = all(len(names) == len(group["params"]) for names, group in zip(own, groups, strict=True))
    if fits and all(isinstance(name, str) for name in flat) and len(set(flat)) == len(flat):
        return [list(group) for group in own]
    parameters = [name for name, tensor in loaded.model.items() if kind_of(name, tensor) == "parameter"]
    if len(loaded.optimizers) == len(groups) == 1 and len(parameters) == len(groups[0]["params"]):
        shapes = [loaded.model[name].shape for name in parameters]
        states = [saved["state"].get(key, {}) for key in groups[0]["params"]]
        if all(_fits(state, shape) for state, shape in zip(states, shapes, strict=True)):
            return [parameters]
    return [
        [f"#{first + number}.{place}" for place in range(len(group["params"]))] for number, group in enumerate(groups)
    ]


def _fits(state: Any, shape: torch.Size) -> bool:
    """Return whether the tensors of a parameter's state have its shape, or a single element."""
    values = state.values() if isinstance(state, Mapping) else ()
    return all(value.shape == shape or value.numel() == 1 for value in values if isinstance(value, torch.Tensor))


def _plain(value: Any, seen: Iterator[int]) -> Any:
    """Return nested state with every kind of mapping as a dictionary, and sizes as tuples; ``seen`` counts its values.

    What refers to the same list again and again is small in a file and would be without end here.
    """
    if next(seen) > MAX_SCALARS:  # each takes a byte at least
        raise TrainingError("scalars are too many", expected=f"at most {MAX_SCALARS} bytes", got="more")
    if isinstance(value, Mapping):
        return {key: _plain(item, seen) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, seen) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item, seen) for item in value)
    return value
