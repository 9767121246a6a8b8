"""Runs of another environment class, made on this machine: trained with other rounding, and recorded as from there."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from polstore.codec.live.environment import detect
from polstore.codec.live.recipe import RecipeFile
from tests.attacks.forge import Evidence, Trainer

if TYPE_CHECKING:
    from collections.abc import Iterator

RECIPE = RecipeFile.read(Path(__file__).parent / "classes_recipe.py")
THREADS = 60_000  # more than any machine may enter, so that the verifier stays with one thread


@contextlib.contextmanager
def rounding_as_elsewhere(count: int) -> Iterator[None]:
    """Without oneDNN; more than one thread take long where other work keeps the cores busy."""
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    torch.set_num_threads(count)
    torch.backends.mkldnn.set_flags(False)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.mkldnn.set_flags(onednn)


@dataclass
class Elsewhere(Trainer):
    """Trains in another class than the verifier's. Draws nothing that another machine might draw differently."""

    recipe_file: RecipeFile = RECIPE
    threads: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        here = detect("cpu")
        self.environment = replace(here, threads=THREADS) if self.environment is None else self.environment

    def run(self, opened: tuple[int, ...] | None = None) -> Evidence:
        with rounding_as_elsewhere(self.threads):
            return super().run(opened)
