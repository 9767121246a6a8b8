"""The storage benchmark puts the right figures side by side, and waits for work that goes on in the background."""

from __future__ import annotations

import _thread
import threading
import time

import pytest
import torch

from tools.bench.store import repositories, rows
from tools.bench.store.clock import Cost, measured, settle
from tools.bench.store.files import room
from tools.bench.store.growth import Times
from tools.bench.store.memory import STATUS, Extra, in_status, own_peak
from tools.bench.store.repositories import Kept, kept
from tools.bench.store.rivals import DCP, FLAT, TORCH, ZIPNN, FlatCopy
from tools.bench.store.training import Rounds
from tools.bench.store.trajectory import Figures
from tools.bench.store.workloads import SCALE, WORKLOADS, Loop


def figures(**changes):
    given = {
        "parameters": 1_000_000,
        "state": 12_000_000,
        "blocked": [0.01, 0.02, 0.09],
        "cpu": [0.4, 0.2, 0.3],
        "stored": 4e6,
        "snapshots": 5,
        "store": 40_000_000,
        "restored": [0.01, 0.03, 0.02],
        "loaded": [0.02, 0.01, 0.06],
        "costs": {TORCH: [Cost(0.06, 0.15)], FLAT: [Cost(0.005, 0.005)], DCP: [Cost(0.04, 0.5)]},
        "sizes": {TORCH: [12_000_000], ZIPNN: [10_000_000]},
        "kept": {"restic": Kept(50_000_000, 3e6)},
        "limits": {"memcpy": 12e9, "SHA-256": 1e9, "zstd level 1": 4e8},
    }
    return Figures(**{**given, **changes})


def by_name(results):
    return {(result.name, result.rival_name): result for result in results}


def test_a_training_stands_beside_each_rival_with_the_aim_it_has() -> None:
    found = by_name(rows.trajectory_rows("gpt", "float16-writeback", figures(), 2.8, default=True))
    stored = "gpt, float16-writeback: stored snapshot"
    assert (found[stored, TORCH].ratio, found[stored, TORCH].aim, found[stored, TORCH].met) == (3.0, 2.8, True)
    assert (found[stored, ZIPNN].ratio, found[stored, ZIPNN].aim) == (2.5, 1.0)
    assert found[stored, "restic, what one more file adds"].met is False
    whole = "gpt, float16-writeback: whole store, 5 snapshots"
    assert found[whole, "restic, whole repository"].ratio == 1.25
    assert found[whole, f"{TORCH}, as many files"].rival == 60.0
    blocked = "gpt, float16-writeback: training blocked, median"
    assert found[blocked, TORCH].ratio == pytest.approx(3.0)
    assert (found[blocked, FLAT].ratio, found[blocked, FLAT].met) == (pytest.approx(0.25), True)
    assert found[blocked, DCP].met is None
    assert found["gpt, float16-writeback: training blocked, worst", TORCH].ours == pytest.approx(90)
    assert found["gpt: CPU time per snapshot", TORCH].met
    assert found["gpt, float16-writeback: restoring a snapshot, median", "torch.load"].met
    assert found["gpt, float16-writeback: restoring a snapshot, worst", "torch.load"].ratio == pytest.approx(2)
    assert found["gpt: state by time blocked", "limit: memcpy of the same bytes"].ratio == pytest.approx(0.05)


def test_another_fidelity_stands_beside_the_compressors_only() -> None:
    sizes = {TORCH: [12_000_000], "safetensors": [12_000_000], ZIPNN: [10_000_000]}
    results = rows.trajectory_rows("gpt", "lossless", figures(sizes=sizes, kept={}), None, default=False)
    assert {result.rival_name for result in results if "stored snapshot" in result.name} == {TORCH, ZIPNN}
    assert not [result for result in results if "CPU" in result.name or "limit" in result.rival_name]


@pytest.mark.parametrize(("recorded", "met"), [(1.05, True), (1.06, False)])
def test_whole_training_may_be_five_percent_slower(recorded: float, met: bool) -> None:
    (result,) = rows.training_rows("gpt", Rounds(20, 2, [recorded, 9.0, recorded], [1.0, 0.1, 1.0]))
    assert (result.rival, result.met) == (50.0, met)


@pytest.mark.parametrize(("copies", "met"), [(1.4, True), (1.6, False), (-0.2, True)])
def test_memory_is_counted_in_copies_of_the_state(copies: float, met: bool) -> None:
    own = {"recorded": int(1000 * copies), TORCH: 2000}
    aimed, rival, whole, _ = rows.memory_rows("gpt", Extra(1000, {"recorded": 1700, TORCH: 2000}, own))
    assert (aimed.met, rival.rival, rival.met) == (met, 2.0, None)
    assert (whole.ours, whole.met) == (1.7, None)


def test_growth_and_scale_compare_with_the_smallest() -> None:
    small = Times(11, {"prove a segment": 0.001}, 1000, 0.0001)
    large = Times(101, {"prove a segment": 0.002}, 4000, 0.0004)
    proven, limit, bundle = rows.growth_rows([small, large])
    assert (proven.name, proven.ratio, proven.met) == ("growth: prove a segment of 101", 0.5, False)
    assert (limit.name, limit.ratio, limit.met) == (proven.name, pytest.approx(0.2), None)
    assert bundle.ratio == 0.25
    twice = figures(parameters=2_000_000, stored=8e6, blocked=[0.08])
    ratios = {result.name.partition(",")[0]: result.ratio for result in rows.scale_rows([figures(), twice])}
    assert ratios["scale: stored snapshot"] == pytest.approx(1)
    assert ratios["scale: training blocked"] == pytest.approx(0.5)


def test_work_in_the_background_is_counted() -> None:
    taken = []

    def work() -> None:
        for _ in range(10_000):
            sum(range(1000))
        taken.append(time.thread_time())

    thread = threading.Thread(target=work)
    cost, _ = measured(thread.start)
    assert not thread.is_alive()
    assert cost.cpu >= taken[0] > 0


def test_threads_that_python_did_not_start_are_not_waited_for() -> None:
    """OpenMP's spin after their last work; here one that Python does not know of stands for them."""
    stop = threading.Event()
    spin = lambda: [None for _ in iter(stop.is_set, True)]  # noqa: E731
    _thread.start_new_thread(spin, ())
    try:
        assert settle() == 0
    finally:
        stop.set()


def test_sizes_of_repositories(tmp_path) -> None:
    assert kept(first=300, whole=1000, further=7) == Kept(1000, 100.0)
    (tmp_path / "a").write_bytes(bytes(5000))
    (tmp_path / "hole").touch()
    with (tmp_path / "hole").open("r+b") as file:
        file.truncate(1 << 30)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert room(tmp_path) == 5000
    assert room(tmp_path / "a") == 5000


def test_a_missing_rival_is_named(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("tools.bench.store.repositories.shutil.which", lambda _name: None)
    assert repositories.keep_all([tmp_path / "a"] * 3, tmp_path) == {}
    said = capsys.readouterr()
    assert [line.split()[1] for line in said.err.splitlines()] == ["restic", "borg", "dvc"]
    assert not said.out


def test_peak_memory() -> None:
    assert in_status("Name:\tpython\nVmPeak:\t 9 kB\nVmHWM:\t  20 kB\n", "VmHWM") == 20480
    before = in_status(STATUS.read_text(), "RssAnon")
    with own_peak() as seen:
        touched = torch.ones(16 << 20, dtype=torch.float64)
    assert seen[-1] - before > 0.9 * touched.nbytes


def test_a_flat_copy_holds_every_tensor() -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7), "b": torch.ones(2)}
    flat = FlatCopy(tensors)
    flat.copy()
    assert flat.buffers[torch.float32].tolist() == [0, 1, 2, 3, 4, 5, 1, 1]
    assert flat.buffers[torch.int64].tolist() == [7]
    assert flat.nbytes == 8 * 4 + 8
    assert flat.fits(tensors)
    assert not flat.fits({**tensors, "b": torch.ones(2)})


def test_the_gpt_is_as_large_as_is_said() -> None:
    sizes = [12 * workload.config["layers"] * workload.config["width"] ** 2 for workload in SCALE]
    assert 12 * WORKLOADS["gpt"].config["layers"] * WORKLOADS["gpt"].config["width"] ** 2 >= 25_000_000
    assert [round(size / 1e6) for size in sizes] == [1, 4, 25]


def test_a_snapshot_is_taken_when_the_next_batch_is_fetched(tmp_path) -> None:
    generator = torch.get_rng_state()
    loop = Loop(WORKLOADS["finetune"].small())
    trained = [parameter.requires_grad for parameter in loop.training.model.parameters()]
    assert 0 < sum(trained) < len(trained) / 2 + 1
    with loop.record(tmp_path / "store", every=2, fidelity="lossless") as recorder:
        loop.steps(1)
        loop.fetch()
        loop.steps(1)
        assert recorder.steps_done == 2
        assert len(loop.ordinary) == 1
    torch.set_rng_state(generator)
