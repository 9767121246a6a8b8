"""What is trained, and loops around it whose fetching of batches can be timed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polstore
from polstore.codec.live.recipe import RecipeFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from polstore.codec.live.recipe import Recipe, Training
    from polstore.recorder import Recorder

__all__ = ["SCALE", "WORKLOADS", "Loop", "Workload"]

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
RECIPE = Path(__file__).with_name("recipe.py")
SEED = 1


@dataclass(frozen=True)
class Workload:
    """A recipe, how it is configured, and what is aimed at.

    Attributes:
        name: what the figures are filed under.
        recipe: its file.
        config: what ``build`` is called with.
        quick: what to change of that for a trial.
        before: steps trained before anything is recorded: the first steps are like no others.
        every: steps from one snapshot to the next where size, blocked time and CPU time are measured.
        snapshots: snapshots measured there, after the keyframe and one more that warms up.
        large: whether the state is large enough to be seen in the memory of a process.
        size_aims: by fidelity, how many times smaller than torch.save a snapshot should be.
    """

    name: str
    recipe: Path
    config: Mapping[str, Any]
    quick: Mapping[str, Any]
    before: int = 10
    every: int = 10
    snapshots: int = 6
    large: bool = False
    size_aims: Mapping[str, float] = field(default_factory=dict)

    def small(self) -> Workload:
        """Return the workload as it is tried out: the same program in seconds."""
        return replace(self, config={**self.config, **self.quick}, before=min(self.before, 2), every=2, snapshots=2)

    def load(self) -> Recipe:
        """Execute the recipe's file."""
        return RecipeFile.read(self.recipe).load()


SMALL_GPT = {"layers": 2, "width": 64, "heads": 2}
GPT = {"layers": 8, "width": 512, "heads": 8, "context": 32, "batch_size": 4, "megabytes": 0.2}
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "resnet20",
            EXAMPLES / "resnet20_fashion_mnist.py",
            {"images": 5120, "batch_size": 16, "total_steps": 1000},
            {"images": 512, "batch_size": 4},
            size_aims={"float16-writeback": 2.3},
        ),
        Workload(
            "gpt",
            RECIPE,
            GPT,
            {**SMALL_GPT, "megabytes": 0.02},
            large=True,
            size_aims={"float16-writeback": 2.8, "compact-writeback": 5.0},
        ),
        Workload(
            "finetune",
            RECIPE,
            {**GPT, "trained_blocks": 1},
            {**SMALL_GPT, "megabytes": 0.02},
        ),
    )
}

# The GPT again, from small to large: 1, 4 and 25 million parameters.
SCALE = tuple(
    Workload(
        f"gpt, {width} wide",
        RECIPE,
        {**GPT, "layers": layers, "width": width, "heads": 4},
        {"layers": 1, "width": width // 4, "megabytes": 0.02},
        snapshots=4,
    )
    for layers, width in ((5, 128), (5, 256), (8, 512))
)


class Loop:
    """One training whose next batch can be fetched apart from the step that uses it.

    A snapshot is taken when the next batch is fetched, so the time of that fetch, less that of an ordinary one, is the
    time for which training is blocked.
    """

    def __init__(self, workload: Workload, loaded: Recipe | None = None) -> None:
        self._recipe = workload.load() if loaded is None else loaded
        self._workload = workload
        polstore.seed_initial(SEED)
        self.training: Training = self._recipe.build("cpu", workload.config)
        self.ordinary: list[float] = []  # seconds of the fetches by `steps`, at which no snapshot is due
        self._source = self._endless()
        self._fetched: list[Any] = []
        self._batches = self._handed_out()
        self.steps(workload.before)

    def record(self, store: Path, *, every: int, fidelity: str) -> Recorder:
        """Begin to record this training, from here on and with a new pass over the data."""
        self._source = self._endless()
        self.ordinary.clear()
        return polstore.record(
            self.training.model,
            self.training.optimizer,
            self.training.loader,
            extras=self.training.extras,
            every=every,
            store=store,
            run="bench",
            recipe=self._workload.recipe,
            config=self._workload.config,
            seed=SEED,
            fidelity=fidelity,
        )

    def fetch(self) -> None:
        """Fetch the batch that the next step will use."""
        self._fetched.append(next(self._source))

    def steps(self, count: int) -> None:
        """Train ``count`` steps; the first of them uses what was fetched."""
        for _ in range(count):
            self._recipe.step(self.training, self._batches)

    def _handed_out(self) -> Iterator[Any]:
        while True:
            if not self._fetched:
                began = time.perf_counter()
                self.fetch()
                self.ordinary.append(time.perf_counter() - began)
            yield self._fetched.pop()

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.training.loader
