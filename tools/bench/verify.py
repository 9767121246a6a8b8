"""What verifying a segment costs, against the same steps in a plain loop and against the paper's own verifier.

python -m tools.bench.verify [--device DEVICE] [--json] [--save] [--quick]

All three work on the same segments of the same run and take turns, all segments in a row each time, since ours works on
the neighbours of the segment that trains; the median round counts, because absolute times on a shared machine say
little. The paper's verifier (Algorithm 2) loads two `torch.save` files, trains the steps between and takes the four
distances of the weights; ours decodes the snapshots, trains, compares the whole state's digest, and takes the same
distances, as `polverify check` does once the recipe is built.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import polstore
from polstore.codec.live.environment import detect
from polstore.codec.live.recipe import RecipeFile
from polstore.recording import record_recipe
from polstore.storage.store import open_store
from polstore.wire.keys import SigningKey
from polverify.bundle_file import BundleFile
from polverify.replaying import replay_in_turn
from polverify.request import Request
from polverify.verdict import Outcome
from polverify.workers import open_material
from tools.bench.table import Result, compared, save, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from polstore.codec.live.recipe import Recipe, Training
    from polstore.wire.segment import SegmentRecord

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PAPER = "the paper's verifier"
PLAIN = "the same steps in a plain loop"
SEED = 1
SEGMENTS = 4  # checked in a row


@dataclass(frozen=True)
class Workload:
    """A recipe of ``examples/`` and how it is configured here."""

    name: str
    recipe: str
    config: Mapping[str, Any]


WORKLOADS = (
    Workload("ResNet-20, SGD", "resnet20_fashion_mnist.py", {"images": 5120, "total_steps": 1000}),
    Workload("GPT, AdamW", "gpt.py", {"megabytes": 0.2, "layers": 4, "width": 256, "heads": 4}),
)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects")
    parser.add_argument("--device", default="cpu", help="where to train and replay; each kind keeps figures of its own")
    parser.add_argument("--save", action="store_true", help="write tools/bench/results/verify.*, or verify-DEVICE.*")
    parser.add_argument("--quick", action="store_true", help="one round of four short segments")
    arguments = parser.parse_args()
    rounds, every = (1, 10) if arguments.quick else (3, 20)
    device: str = arguments.device
    results = [result for workload in WORKLOADS for result in measure(workload, device, every, rounds)]
    title = "Verifying a segment: decoding, replaying, quantising, hashing, norms"
    show(results, title, as_json=arguments.json)
    if arguments.save:
        kind = torch.device(device).type
        notes = [f"torch {torch.__version__}, {torch.get_num_threads()} threads, device {detect(device).device_name}"]
        save(results, "verify" if kind == "cpu" else f"verify-{kind}", title, notes)
    return 0


def measure(workload: Workload, device: str, every: int, rounds: int) -> list[Result]:
    """Record one run of `SEGMENTS` segments and a first one, and return what checking them costs."""
    recipe = RecipeFile.read(EXAMPLES / workload.recipe)
    with tempfile.TemporaryDirectory() as folder:
        store, saved, bundle = (Path(folder) / name for name in ("store", "saved", "bundle"))
        saved.mkdir()
        recorder, training, loaded = record_recipe(
            recipe, every=every, store=store, run="bench", config=workload.config, seed=SEED, device=device
        )
        with recorder:
            for number in range(SEGMENTS + 1):  # the first segment makes the optimizer's state
                recorder.train(training, loaded.step, number * every, _ignore)
                torch.save(_states(training), saved / str(number))
        with open_store(store) as writing:
            polstore.commit(writing, "bench", SigningKey("example.com/bench", bytes(32)))
        with polstore.open(store) as archive:
            run = archive.run("bench")
            records = run.segments[1:]
            polstore.prove(run, [record.index for record in records]).write(bundle)
        ours = _Ours(recipe, bundle, device)
        paper = _Paper(loaded, loaded.build(device, workload.config), saved, every)
        plain = _Plain(loaded, loaded.build(device, workload.config), every)
        works = (ours.check, paper.check, plain.train)
        times: tuple[list[float], ...] = tuple([] for _ in works)
        for _ in range(rounds):
            for work, taken in zip(works, times, strict=True):
                taken.append(work(records) / every / SEGMENTS * 1e3)
    ours_step, paper_step, plain_step = (statistics.median(taken) for taken in times)
    name = f"{workload.name}, k = {every}"
    return [
        compared(f"{name}: per step of a checked segment", ours_step, plain_step, PLAIN, "ms", aim=1 / 1.05,
                 aim_text="at most 5 % slower"),
        compared(f"{name}: per step of a checked segment", ours_step, paper_step, PAPER, "ms"),
    ]  # fmt: skip


class _Ours:
    """Checks segments as `polverify check` does, once the recipe is built and checks 0 to 9 are made."""

    def __init__(self, recipe: RecipeFile, bundle: Path, device: str) -> None:
        self._bundle = bundle
        self._request = Request(b"", (), bundle, recipe, device=device)

    def check(self, records: Sequence[SegmentRecord]) -> float:
        """Return the seconds that it took."""
        with BundleFile(self._bundle) as file:
            digest = file.digest
        with open_material(self._request, self._bundle, digest) as material:  # anew: nothing is decoded yet
            began = time.perf_counter()
            found = list(replay_in_turn(material, [record.index for record in records]))
            taken = time.perf_counter() - began
        if not all(each.result.outcome is Outcome.PASSED and each.norms for each in found):
            sys.exit("a segment did not replay: nothing that was measured here counts")
        return taken


class _Paper:
    """Checks segments as Algorithm 2 of the paper does."""

    def __init__(self, recipe: Recipe, training: Training, saved: Path, every: int) -> None:
        self._recipe, self._training, self._saved, self._every = recipe, training, saved, every
        self._batches = _endless(training)

    def check(self, records: Sequence[SegmentRecord]) -> float:
        """Return the seconds that it took."""
        began = time.perf_counter()
        for record in records:
            self._check(record)
        return time.perf_counter() - began

    def _check(self, record: SegmentRecord) -> None:
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

    def __init__(self, recipe: Recipe, training: Training, every: int) -> None:
        self._recipe, self._training, self._every = recipe, training, every
        self._batches = _endless(training)

    def train(self, records: Sequence[SegmentRecord]) -> float:
        """Return the seconds that it took."""
        began = time.perf_counter()
        for _ in range(self._every * len(records)):
            self._recipe.step(self._training, self._batches)
        next(self._training.model.parameters()).sum().item()  # a GPU may still be at work until it is asked
        return time.perf_counter() - began


def _states(training: Training) -> dict[str, Any]:
    return {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}


def _endless(training: Training) -> Iterator[Any]:
    while True:
        yield from training.loader


def _ignore(_step: int, _loss: float | None) -> None:
    """Take no notice of progress."""


if __name__ == "__main__":
    sys.exit(main())
