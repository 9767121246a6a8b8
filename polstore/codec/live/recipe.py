"""Recipes: a Python file that says how to build what is trained, and what one step of training is.

    def build(device: str, **config) -> polstore.Training: ...
    def step(training: polstore.Training, batches: Iterator[Batch]) -> loss: ...
    def evaluate(training: polstore.Training) -> dict[str, float]: ...  # may be left out

``build`` is called with the generators seeded. ``step`` takes as many batches as one optimizer step needs (more than
one to accumulate gradients) and leaves the training ready for the next. ``evaluate`` measures how good the model is,
with the generators seeded; it is called last, for ``polverify check --evaluate``. A recipe is executed: only ever one
that its user has at hand. Implements specs/run-records.md, section "Recipe".
"""

from __future__ import annotations

import hashlib
import sys
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polstore.errors import MissingError, PolstoreError, TrainingError, UsageError
from polstore.files import read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import torch
    from torch.utils.data import DataLoader

__all__ = ["RecipeFile", "Training"]

MAX_RECIPE = 16 * 2**20  # bytes; a file that somebody is to review
MAX_VALUES = 64  # of one evaluation: a line or two of a verdict
MAX_NAME = 64  # characters of the name of one


@dataclass
class Training:
    """What a recipe builds.

    Attributes:
        model: the model; its parameters and buffers are the state.
        optimizer: the optimizer.
        loader: the batches, over a map-style dataset.
        extras: whatever else has a ``state_dict``: schedulers, gradient scalers, averaged weights.
        context: anything else that ``step`` needs and that does not change.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loader: DataLoader[Any]
    extras: Mapping[str, Any] = field(default_factory=dict)
    context: Any = None


@dataclass(frozen=True)
class RecipeFile:
    """A recipe file as it was read; hashing and executing it cannot see different bytes."""

    path: Path
    source: bytes

    @classmethod
    def read(cls, path: Path) -> RecipeFile:
        """Read a recipe without executing it; raises `MissingError`."""
        return cls(path, read_file(path, MAX_RECIPE))

    @property
    def digest(self) -> bytes:
        """SHA-256 of the file."""
        return hashlib.sha256(self.source).digest()

    def load(self) -> Recipe:
        """Execute the file; raises `TrainingError` if it fails or is no recipe."""
        module = types.ModuleType("polstore_recipe")
        module.__file__ = str(self.path)
        sys.modules[module.__name__] = module  # dataclasses and pickling inside the recipe look it up there
        try:
            exec(compile(self.source, str(self.path), "exec"), module.__dict__)  # noqa: S102 # the user's own file
        except Exception as error:
            raise TrainingError(f"recipe {self.path} failed: {type(error).__name__}: {error}") from error
        for name in ("build", "step"):
            if not callable(getattr(module, name, None)):
                raise TrainingError(f"{self.path} is no recipe", expected="functions build and step", got=f"no {name}")
        return Recipe(self.path, module.build, module.step, getattr(module, "evaluate", None))


@dataclass(frozen=True)
class Recipe:
    """A recipe, ready to run."""

    path: Path
    build_function: Callable[..., Training]
    step: Callable[[Training, Iterator[Any]], Any]
    evaluate_function: Callable[[Training], Mapping[str, float]] | None = None

    def build(self, device: str, config: Mapping[str, Any]) -> Training:
        """Build the training; the caller seeds the generators first. Raises `TrainingError`."""
        try:
            training = self.build_function(device=device, **config)
        except PolstoreError:
            raise
        except FileNotFoundError as error:
            raise MissingError(f"recipe {self.path} misses a file: {error}") from error
        except Exception as error:
            raise TrainingError(f"recipe {self.path}, build: {type(error).__name__}: {error}") from error
        if not isinstance(training, Training):
            raise TrainingError(f"recipe {self.path}, build", expected="a polstore.Training", got=type(training))
        return training

    def evaluate(self, training: Training) -> dict[str, float]:
        """Run the recipe's own evaluation.

        Raises:
            UsageError: it has none.
            TrainingError: it fails, or returns something else than numbers by name.
        """
        if self.evaluate_function is None:
            raise UsageError(f"recipe {self.path} cannot evaluate", expected="a function evaluate", got="none")
        try:
            found = {name: float(value) for name, value in self.evaluate_function(training).items()}
        except PolstoreError:
            raise
        except Exception as error:
            raise TrainingError(f"recipe {self.path}, evaluate: {type(error).__name__}: {error}") from error
        if not all(isinstance(name, str) and len(name) <= MAX_NAME for name in found) or len(found) > MAX_VALUES:
            raise TrainingError(f"recipe {self.path}, evaluate", expected="a few numbers by name", got=list(found)[:8])
        return found
