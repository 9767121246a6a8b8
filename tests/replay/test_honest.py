"""Honest recordings of all kinds are accepted: every segment of every run here is replayed bit for bit."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from polstore.reader import open_archive
from tests.replay.harness import Bench, threads
from tests.replay.recipes import mlp

LOSSLESS = {"fidelity": "lossless"}
COMPACT = {"fidelity": "compact-writeback"}
OPTIMIZERS = sorted(mlp.OPTIMIZERS.keys() - {"momentum", "adamw"})  # those that no other case has
SCHEDULERS = sorted(mlp.SCHEDULERS)

CASES = {
    "plain": {},
    "plain, lossless": LOSSLESS,
    "plain, compact": COMPACT,
    "compact, over a keyframe": {"every": 1, "steps": 70, "optimizer": "adamw", **COMPACT},
    "compact, buffers of all kinds": {"kind": "buffers", "optimizer": "adamw", **COMPACT},
    "compact, optimizer state that appears late": {"kind": "late", "every": 1, "optimizer": "adam", **COMPACT},
    "compact, diverging to NaN": {"lr": 1e30, "explode": 1e8, "optimizer": "adamw", "every": 2, **COMPACT},
    "snapshot after each step": {"every": 1},
    "one segment": {"every": 50},
    "uneven last batch and segment": {"every": 5, "steps": 13},
    "dropout": {"kind": "dropout"},
    "batch norm and dropout": {"kind": "batchnorm"},
    "batch norm and dropout, lossless": {"kind": "batchnorm", **LOSSLESS},
    "tied weights": {"kind": "tied"},
    "frozen layers": {"kind": "frozen"},
    "buffers of all kinds, an empty parameter": {"kind": "buffers"},
    "buffers of all kinds, lossless": {"kind": "buffers", **LOSSLESS},
    "bfloat16 parameters": {"kind": "bfloat16", "optimizer": "adamw"},
    "bfloat16 parameters, lossless": {"kind": "bfloat16", **LOSSLESS},
    "optimizer state that appears late": {"kind": "late", "every": 1, "optimizer": "adam"},
    "parameters without gradients in some steps": {"kind": "late", "every": 2, "zero_to_none": False, "steps": 14},
    "augmentation in the dataset": {"augment": True},
    "augmentation in the step": {"mixup": True},
    "accumulation across passes": {"accumulate": 2, "steps": 11, "every": 3},
    "clipping": {"clip": 0.1},
    "averaged weights": {"ema": True, "kind": "batchnorm"},
    "the whole recipe of a language model": {
        "optimizer": "adamw",
        "scheduler": "sequential",
        "clip": 1.0,
        "accumulate": 2,
        "ema": True,
        "kind": "dropout",
    },
    "bfloat16 autocast": {"autocast": True, "optimizer": "adamw"},
    "gradient scaler that skips steps": {"scaler": True, "every": 1, "optimizer": "adam"},
    "gradient scaler under autocast": {"scaler": True, "autocast": True, "scheduler": "cosine"},
    "several parameter groups": {"groups": True, "optimizer": "adamw", "scheduler": "cosine"},
    "learning rate zero": {"lr": 0.0},
    "learning rate zero, adam": {"lr": 0.0, "optimizer": "adam"},
    "learning rate now and then zero": {"scheduler": "zero", "every": 1},
    "tiny updates": {"lr": 1e-9},
    "infinitesimal updates": {"lr": 1e-30, "optimizer": "sgd"},
    "diverging to NaN": {"lr": 1e6, "explode": 1e6, "optimizer": "sgd", "every": 2},
    "diverging to NaN, adam": {"lr": 1e30, "explode": 1e8, "optimizer": "adamw", "every": 2},
    "a second model with its own optimizer": {"twin": True, "kind": "batchnorm"},
    **{f"optimizer {name}": {"optimizer": name, "lr": 0.01, "kind": "batchnorm", "every": 3} for name in OPTIMIZERS},
    **{
        f"optimizer {name}, lossless": {"optimizer": name, "lr": 0.01, "every": 3, **LOSSLESS}
        for name in ("rmsprop", "asgd", "lbfgs")
    },
    **{f"scheduler {name}": {"scheduler": name, "optimizer": "adamw", "every": 3, "steps": 10} for name in SCHEDULERS},
    "tensor learning rate with scheduler and groups": {
        "optimizer": "tensor_lr",
        "scheduler": "cosine",
        "groups": True,
    },
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_honest_recordings_are_accepted(bench: Bench, settings):
    bench.record(**settings)
    verdict = bench.require_accepted()
    assert verdict.claim["steps_replayed"] == settings.get("steps", 9)


@pytest.mark.parametrize("segments", [(30,), (3, 20, 21, 39)])
def test_compact_segments_out_of_a_long_chain_are_accepted(bench: Bench, segments):
    bench.record(every=1, steps=40, optimizer="adamw", **COMPACT)
    bench.segments = segments
    assert bench.require_accepted().claim["steps_replayed"] == len(segments)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("fidelity", ["float16-writeback", "lossless"])
def test_thread_counts_are_entered(bench: Bench, count, fidelity):
    with threads(count):
        bench.record(kind="batchnorm", optimizer="adamw", fidelity=fidelity)
    with threads(3 - count):
        bench.require_accepted()


LOADERS = {
    "one worker": {"workers": 1},
    "two workers": {"workers": 2},
    "long prefetch": {"workers": 2, "prefetch": 5},
    "persistent workers": {"workers": 2, "persistent": True, "prefetch": 3},
}


@pytest.mark.parametrize("settings", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_workers_and_prefetching_change_nothing(bench: Bench, settings, accumulate):
    common = {"augment": True, "kind": "batchnorm", "steps": 15 // accumulate, "accumulate": accumulate}
    expected = bench.record("quiet", **common)
    assert bench.record("busy", **common, **settings) == expected
    with open_archive(bench.store) as archive:
        quiet, busy = archive.run("quiet"), archive.run("busy")
        assert [quiet.blob(s.steps) for s in quiet.segments] == [busy.blob(s.steps) for s in busy.segments]
        assert (quiet.row.epoch, quiet.row.batch, quiet.row.number) == (
            busy.row.epoch,
            busy.row.batch,
            busy.row.number,
        )
    bench.require_accepted("busy")


def test_the_gradient_scaler_really_skipped_steps_and_nan_really_came(bench: Bench):
    bench.record("scaled", scaler=True, every=1)
    bench.record("diverged", lr=1e6, explode=1e6, optimizer="sgd", every=2)
    with open_archive(bench.store) as archive:
        run = archive.run("scaled")
        steps = [run.steps(index).steps[0] for index in range(len(run.segments))]
        assert {bool(step.hyperparameters) for step in steps} == {True, False}
        run = archive.run("diverged")
        assert math.isnan(run.steps(len(run.segments) - 1).steps[-1].loss)
        assert math.isnan(run.segments[-1].norms.l2)


def test_a_recipe_that_draws_when_it_is_executed_still_rebuilds_its_initial_state(tmp_path):
    bench = Bench(tmp_path)
    recipe = tmp_path / "recipe.py"
    recipe.write_text("import torch\ntorch.randn(5)\n" + bench.recipe.read_text())
    bench.recipe = recipe
    bench.record()
    bench.require_accepted()


FRESH = {
    "plain": {"kind": "batchnorm", "optimizer": "adamw", "scheduler": "sequential", "clip": 1.0},
    "augmented by workers": {"workers": 2, "augment": True, "mixup": True, "kind": "dropout"},
    "scaled and averaged": {"scaler": True, "autocast": True, "ema": True, "fidelity": "lossless"},
    "two threads": {"kind": "batchnorm"},
}


@pytest.mark.parametrize("name", FRESH)
def test_a_fresh_process_accepts(bench: Bench, name):
    with threads(2 if name == "two threads" else 1):
        bench.record(**FRESH[name])
    root, bundle = bench.prove()
    done = subprocess.run(
        [
            Path(sys.executable).with_name("polverify"),
            "check",
            root,
            "--key",
            bench.public,
            "--bundle",
            bundle,
            "--recipe",
            bench.recipe,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
