"""What verifying a segment costs, against the same steps in a plain loop and against the paper's own verifier.

python -m tools.bench.verify [--json] [--save] [--quick]

All three work on the same run and take turns, segment by segment; the median segment counts, because absolute times on
a shared machine say little. The paper's verifier (Algorithm 2) loads two `torch.save` files, trains the steps between
and takes the four distances of the weights; ours decodes the snapshots, trains, and compares the whole state's digest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import polstore
from polstore.codec.live.recipe import RecipeFile
from polstore.codec.norms import distances
from polstore.recording import record_recipe
from polverify.noise import Segment
from polverify.replay.session import Session
from tools.bench.recording import EXAMPLES, PLAIN, SEED, WORKLOADS, Workload
from tools.bench.table import Result, compared, save, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from polstore.codec.live.recipe import Recipe, Training
    from polstore.reader import Run
    from polstore.wire.segment import SegmentRecord

PAPER = "the paper's verifier"


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects")
    parser.add_argument("--save", action="store_true", help="write tools/bench/results/verify.*")
    parser.add_argument("--quick", action="store_true", help="two short segments in place of five of two lengths")
    arguments = parser.parse_args()
    segments, lengths = (2, (10,)) if arguments.quick else (5, (20, 100))
    results = [result for workload in WORKLOADS for every in lengths for result in measure(workload, every, segments)]
    title = "Verifying a segment: decoding, replaying, quantising, hashing, norms"
    show(results, title, as_json=arguments.json)
    if arguments.save:
        save(results, "verify", title, [f"torch {torch.__version__}, {torch.get_num_threads()} threads"])
    return 0


def measure(workload: Workload, every: int, segments: int) -> list[Result]:
    """Record one run of ``segments`` segments and a first one, and return what checking one costs."""
    recipe = RecipeFile.read(EXAMPLES / workload.recipe)
    with tempfile.TemporaryDirectory() as folder:
        store, saved = Path(folder) / "store", Path(folder) / "saved"
        saved.mkdir()
        recorder, training, loaded = record_recipe(
            recipe, every=every, store=store, run="bench", config=workload.config, seed=SEED
        )
        with recorder:
            for number in range(segments + 2):  # the first segment makes the optimizer's state
                recorder.train(training, loaded.step, number * every, _ignore)
                torch.save(_states(training), saved / str(number))
        with polstore.open(store) as archive:
            run = archive.run("bench")
            ours, paper, plain = (
                _Ours(recipe, run),
                _Paper(loaded, workload, saved, every),
                _Plain(loaded, workload, every),
            )
            times: dict[Callable[[SegmentRecord], None], list[float]] = {
                ours.check: [],
                paper.check: [],
                plain.train: [],
            }
            for record in run.segments[1 : segments + 1]:
                for work, taken in times.items():
                    began = time.perf_counter()
                    work(record)
                    taken.append((time.perf_counter() - began) / every * 1e3)
    ours_step, paper_step, plain_step = (statistics.median(taken) for taken in times.values())
    name = f"{workload.name}, k = {every}"
    return [
        compared(f"{name}: per step of a checked segment", ours_step, plain_step, PLAIN, "ms", aim=1 / 1.05,
                 aim_text="at most 5 % slower"),
        compared(f"{name}: per step of a checked segment", ours_step, paper_step, PAPER, "ms"),
    ]  # fmt: skip


class _Ours:
    """Checks segments as `polverify check` does, once the recipe is built and the bundle read."""

    def __init__(self, recipe: RecipeFile, run: Run) -> None:
        self._run = run
        self._session = Session(recipe, run.manifest, "cpu")

    def check(self, record: SegmentRecord) -> None:
        start = self._run.snapshot(record.start_state)
        base = None if record.base_step is None else self._run.state(record.base_step)
        segment = Segment(record, self._run.steps(record.index), start, base)
        replayed = self._session.replay(segment, lambda _done: None, exact=True)
        if replayed.end.digest() != record.end_state:
            sys.exit(f"segment {record.index} did not replay: nothing that was measured here counts")
        distances(start, replayed.end)


class _Paper:
    """Checks segments as Algorithm 2 of the paper does."""

    def __init__(self, recipe: Recipe, workload: Workload, saved: Path, every: int) -> None:
        self._recipe, self._saved, self._every = recipe, saved, every
        self._training = recipe.build("cpu", workload.config)
        self._batches = _endless(self._training)

    def check(self, record: SegmentRecord) -> None:
        training = self._training
        start, end = (torch.load(self._saved / str(number)) for number in (record.index, record.index + 1))
        training.model.load_state_dict(start["model"])
        training.optimizer.load_state_dict(start["optimizer"])
        for _ in range(self._every):
            self._recipe.step(training, self._batches)
        names = [name for name, _ in training.model.named_parameters()]
        got, wanted = (
            torch.cat([state[name].detach().reshape(-1) for name in names])
            for state in (training.model.state_dict(), end["model"])
        )
        for order in (1, 2, float("inf")):
            torch.linalg.vector_norm(got - wanted, order).item()
        torch.nn.functional.cosine_similarity(got, wanted, dim=0).item()


class _Plain:
    """Trains the same number of steps and nothing else."""

    def __init__(self, recipe: Recipe, workload: Workload, every: int) -> None:
        self._recipe, self._every = recipe, every
        self._training = recipe.build("cpu", workload.config)
        self._batches = _endless(self._training)

    def train(self, _record: SegmentRecord) -> None:
        for _ in range(self._every):
            self._recipe.step(self._training, self._batches)


def _states(training: Training) -> dict[str, Any]:
    return {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}


def _endless(training: Training) -> Iterator[Any]:
    while True:
        yield from training.loader


def _ignore(_step: int, _loss: float | None) -> None:
    """Take no notice of progress."""


if __name__ == "__main__":
    sys.exit(main())
