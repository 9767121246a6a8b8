"""What recording and replaying cost, against the same training in a plain loop and against torch.save.

python -m tools.bench.recording [--json] [--save] [--quick]

Plain and recorded training alternate in rounds of 20 steps, each recorded round with one snapshot, and the median round
counts, because absolute times on a shared machine say little.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import polstore
from polstore.codec.live.recipe import RecipeFile
from polstore.recording import record_recipe
from polverify.noise import Segment
from polverify.replay.session import Session
from tools.bench.table import Result, compared, save, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from polstore.codec.live.recipe import Training
    from polstore.reader import Run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EVERY = 20  # steps per round and per snapshot
SEED = 1
PLAIN = "the same steps in a plain loop"


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
    parser.add_argument("--save", action="store_true", help="write tools/bench/results/recording.*")
    parser.add_argument("--quick", action="store_true", help="three rounds in place of seven")
    arguments = parser.parse_args()
    results = [result for workload in WORKLOADS for result in measure(workload, rounds=3 if arguments.quick else 7)]
    title = f"Recording and replaying, a snapshot every {EVERY} steps"
    show(results, title, as_json=arguments.json)
    if arguments.save:
        save(results, "recording", title, [f"torch {torch.__version__}, {torch.get_num_threads()} threads"])
    return 0


def measure(workload: Workload, rounds: int) -> list[Result]:
    """Train one workload both ways and return its figures."""
    recipe = RecipeFile.read(EXAMPLES / workload.recipe)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        recorder, training, loaded = record_recipe(
            recipe, every=EVERY, store=store, run="bench", config=workload.config, seed=SEED
        )
        plain = loaded.build("cpu", workload.config)
        batches = _endless(plain)
        plain_times, recorded_times = [], []
        with recorder:
            # The first round warms up, and its snapshot is a keyframe: the optimizer's state has just been made.
            for number in range(rounds + 1):
                target = (number + 1) * EVERY
                recorded = _timed(lambda: recorder.train(training, loaded.step, target, _ignore))  # noqa: B023 # called at once
                unrecorded = _timed(lambda: [loaded.step(plain, batches) for _ in range(EVERY)])
                if number:
                    recorded_times.append(recorded)
                    plain_times.append(unrecorded)
        with polstore.open(store) as archive:
            run = archive.run("bench")
            replayed_times = _replay(recipe, run, rounds)
            stored = _stored_bytes(run)
    plain_step = statistics.median(plain_times) / EVERY * 1e3
    recorded_step = statistics.median(recorded_times) / EVERY * 1e3
    replayed_step = statistics.median(replayed_times) / EVERY * 1e3
    return [
        compared(
            f"{workload.name}: recorded step", recorded_step, plain_step, PLAIN, "ms", aim=1 / 1.05,
            aim_text="at most 5 % slower",
        ),
        compared(
            f"{workload.name}: replayed step", replayed_step, plain_step, PLAIN, "ms", aim=1 / 1.05,
            aim_text="at most 5 % slower",
        ),
        compared(
            f"{workload.name}: stored snapshot", stored / 1e6, _saved_bytes(training) / 1e6, "torch.save of the state",
            "MB", aim=2.3 if "SGD" in workload.name else 2.8,
            aim_text="2.3 times smaller" if "SGD" in workload.name else "2.8 times smaller (at a snapshot every 10)",
        ),
    ]  # fmt: skip


def _replay(recipe: RecipeFile, run: Run, rounds: int) -> list[float]:
    """Replay the last segments and return the seconds that each took, without decoding its snapshots."""
    session = Session(recipe, run.manifest, "cpu")
    times = []
    for record in run.segments[-rounds - 1 :]:
        start, end = run.snapshot(record.start_state), record.end_state
        base = None if record.base_step is None else run.state(record.base_step)
        steps = run.steps(record.index)
        began = time.perf_counter()
        replayed = session.replay(Segment(record, steps, start, base), lambda _done: None, exact=True)
        times.append(time.perf_counter() - began)
        if replayed.end.digest() != end:
            sys.exit(f"segment {record.index} did not replay: nothing that was measured here counts")
    return times[1:]


def _stored_bytes(run: Run) -> float:
    """Return what one snapshot between keyframes takes: its frames and its description."""
    stored = [run.stored_snapshots(record.end_state)[0] for record in run.segments]
    sizes = [snapshot.stored_bytes + len(snapshot.encode()) for snapshot in stored if snapshot.base is not None]
    return statistics.mean(sizes)


def _saved_bytes(training: Training) -> int:
    file = io.BytesIO()
    torch.save({"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}, file)
    return file.tell()


def _endless(training: Training) -> Iterator[Any]:
    while True:
        yield from training.loader


def _timed(work: Callable[[], Sequence[Any] | None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _ignore(_step: int, _loss: float | None) -> None:
    """Take no notice of progress."""


if __name__ == "__main__":
    sys.exit(main())
