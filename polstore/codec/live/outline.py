"""The outline of a state: what has to stay as it was when the recording began, so that any snapshot can be restored.

A replay and a resumed run begin with what a recipe or a script builds and put a snapshot into it. That works only where
both have the same tensors in the model, the same parameter groups and the same entries in the state of each extra. What
the optimizer keeps of each parameter may come later, as it does with all optimizers of torch. Knows no snapshot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from polstore.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

__all__ = ["Outline", "outline", "require_same"]

Outline: TypeAlias = "dict[str, object]"
"""By what is described: a shape and dtype, or names."""


def outline(
    model: Mapping[str, torch.Tensor], groups: Sequence[Mapping[str, Any]], states: Mapping[str, Any]
) -> Outline:
    """Describe a state.

    Args:
        model: parameters and buffers by name.
        groups: the optimizer's, the names of their parameters under ``params``.
        states: of each extra, by name.

    Raises:
        TrainingError: the state of an extra is no dictionary.
    """
    found: Outline = {f"tensor {name}": (tuple(tensor.shape), tensor.dtype) for name, tensor in model.items()}
    for number, group in enumerate(groups):
        found[f"parameters of the optimizer's group {number}"] = group["params"]
        found[f"hyperparameters of the optimizer's group {number}"] = sorted(group)
    for name, state in states.items():
        if not isinstance(state, dict):
            raise TrainingError(f"state of extra {name}", expected="a dictionary", got=type(state).__name__)
        found[f"entries of extra {name}"] = sorted(map(str, state))
    return found


def require_same(before: Outline, now: Outline) -> None:
    """Require the outline with which a recording began; raises `TrainingError`."""
    for what in (*before, *now):
        if before.get(what) != now.get(what):
            raise TrainingError(
                f"{what} changed after the recording had begun, so no snapshot could be restored from here on",
                expected=before.get(what, "none"),
                got=now.get(what, "none"),
            )
