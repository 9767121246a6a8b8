"""Importing trainings that were saved by other means: every bit, honest records, and nothing that runs code."""

import hashlib
import json
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from polstore.archive.copying import copy_runs
from polstore.archive.importing import choose_every, import_run
from polstore.archive.provenance import Provenance
from polstore.archive.sources import find_sources, step_of_name
from polstore.codec.live.recipe import RecipeFile
from polstore.codec.live.state import LiveState, parse_scalars
from polstore.errors import ExistsError, LockedError, MissingError, TrainingError, UsageError
from polstore.fsck import check_store
from polstore.prover import commit, prove
from polstore.reader import Run
from polstore.storage.store import open_store
from polstore.wire.fields import MAX_INDEX
from polstore.wire.keys import SigningKey
from polverify.verdict import Decision
from polverify.verify import Request, verify


def quiet(*_):
    pass


def build(named=False, groups=1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    parameters = list(model.named_parameters() if named else model.parameters())
    split = [parameters] if groups == 1 else [parameters[::2], parameters[1::2]]
    return model, torch.optim.AdamW([{"params": part} for part in split], lr=0.01)


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 6)).square().sum().backward()
        optimizer.step()


def training(steps, save, **options):
    """Train and call ``save`` at these steps."""
    model, optimizer = build(**options)
    done = 0
    for step in steps:
        train(model, optimizer, step - done)
        done = step
        save(step, model, optimizer)
    return model, optimizer


def assert_model(snapshot, state_dict):
    """Every tensor of a state_dict is in the snapshot, bit for bit, under its kind."""
    for name, tensor in state_dict.items():
        kind = (
            "buffer" if name.split(".")[-1] in ("running_mean", "running_var", "num_batches_tracked") else "parameter"
        )
        stored = snapshot.tensor(f"{kind}/{name}")
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert stored.entry().digest == hashlib.sha256(raw).digest()
        assert stored.shape == tuple(tensor.shape)


def test_torch_files_in_the_order_of_their_numbers(store, saved):
    states = {}

    def save(step, model, optimizer):
        states[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        content = {
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "epoch": step,
        }
        torch.save(content, saved / f"run1-{step}.pt")

    model, optimizer = training((4, 9, 10, 12), save)
    (saved / "notes.txt").write_text("not a snapshot")
    done = import_run(saved, store, "r", quiet)
    assert (done.layout, done.first_step, done.snapshots, done.added) == ("torch", 4, 4, 4)
    run = Run(store, "r")
    assert run.snapshots == [0, 5, 6, 8]
    assert run.complete
    for step, state in states.items():
        assert_model(run.state(step - 4), state)
    assert check_store(store, quiet).damages == []
    # what nobody knows is not claimed
    manifest = run.manifest
    assert (manifest.recipe.kind, manifest.initial.kind, manifest.sampler) == ("none", "distribution", "free")
    assert manifest.dataset.size == 0
    assert manifest.environment.device == "unknown"
    assert Provenance.find(manifest.extensions) == Provenance("torch", 4)
    assert run.steps(0).steps == ()
    # the state is as a recorder would have it, so it goes back into live objects
    live_model, live_optimizer = build()
    train(live_model, live_optimizer, 1)
    last = run.state(8)
    step, _, extras = parse_scalars(last.scalars)
    assert step == 8
    assert "epoch" in str(extras)
    LiveState(live_model, live_optimizer, {})._restore_model(last)
    for name, tensor in live_model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    name, parameter = next(iter(model.named_parameters()))
    moment = optimizer.state[parameter]["exp_avg"].numpy().tobytes()
    assert last.tensor(f"optimizer/{name}/exp_avg").data.tobytes() == moment


def test_an_imported_run_can_be_signed_opened_and_copied_but_never_accepted(store, saved, tmp_path):
    training((1, 2, 3), lambda step, model, _: torch.save(model.state_dict(), saved / f"{step}.pth"))
    import_run(saved, store, "r", quiet)
    key = SigningKey("example.org/archive", bytes(32))
    signed = commit(store, "r", key)
    assert b"example.org/archive/r" in signed
    prove(Run(store, "r"), [1]).write(tmp_path / "bundle")
    (tmp_path / "recipe.py").write_text("def build(device): ...\ndef step(training, batches): ...\n")
    recipe = RecipeFile.read(tmp_path / "recipe.py")
    verdict = verify(Request(signed, key.verifier_keys(), tmp_path / "bundle", recipe))
    assert verdict.decision is Decision.REJECT
    assert verdict.reason.startswith("check 4 (manifest): kind of the run's recipe")
    with open_store(tmp_path / "copy", create=True) as other:
        copy_runs(store, other, None, quiet)
        assert Run(other, "r").signed_root() == signed
        assert check_store(other, quiet).damages == []


def test_hugging_face_folders(store, saved):
    def save(step, model, optimizer):
        folder = saved / f"checkpoint-{step}"
        folder.mkdir()
        if step == 5:
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
        else:
            save_file(model.state_dict(), folder / "model.safetensors")
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        torch.save({"last_epoch": step, "_last_lr": [0.1]}, folder / "scheduler.pt")
        state = {"global_step": step, "epoch": 0.5, "log_history": [{"loss": 1.0}] * step}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        (folder / "rng_state.pth").write_bytes(b"is not read")

    model, _ = training((5, 10, 15, 17), save, groups=2)
    (saved / "model.safetensors").write_bytes(b"the final model, not a snapshot")
    done = import_run(saved, store, "r", quiet)
    assert (done.layout, done.first_step) == ("huggingface", 5)
    run = Run(store, "r")
    assert run.snapshots == [0, 5, 10, 12]
    assert run.manifest.every == 5
    assert_model(run.state(12), model.state_dict())
    assert "optimizer/#1.2/exp_avg_sq" in run.state(0).names  # two groups: whose it is cannot be known
    assert "last_epoch" in str(parse_scalars(run.state(0).scalars)[2])
    assert "loss" not in str(parse_scalars(run.state(0).scalars)[2])
    single = import_run(saved / "checkpoint-10", store, "one", quiet)
    assert (single.layout, single.first_step, single.snapshots) == ("huggingface", 10, 1)


def test_shards_of_a_hugging_face_model(store, saved):
    folder = saved / "checkpoint-7"
    folder.mkdir()
    tensors = build()[0].state_dict()
    names = sorted(tensors)
    for number, part in enumerate((names[:3], names[3:]), 1):
        save_file({name: tensors[name] for name in part}, folder / f"model-{number:05}-of-00002.safetensors")
    import_run(saved, store, "r", quiet)
    assert_model(Run(store, "r").state(0), tensors)


def test_lightning_files(store, saved):
    def save(step, model, optimizer):
        content = {
            "epoch": 1,
            "global_step": step,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [{"last_epoch": step}],
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
            "loops": {"fit_loop": {"state_dict": {}}},
            "hparams_name": "kwargs",
            "hyper_parameters": {"lr": 0.01},
        }
        torch.save(content, saved / ("last.ckpt" if step == 6 else f"epoch=1-step={step}.ckpt"))

    model, _ = training((2, 4, 6), save)
    done = import_run(saved, store, "r", quiet)
    assert (done.layout, done.first_step, done.snapshots) == ("lightning", 2, 3)
    last = Run(store, "r").state(4)
    assert_model(last, {f"model.{name}": tensor for name, tensor in model.state_dict().items()})
    assert "extra/callbacks/ModelCheckpoint{'monitor': None}/best_model_score" in last.names
    assert "optimizer/model.0.weight/exp_avg" in last.names


def test_the_layout_of_the_paper(store, saved):
    def save(step, model, optimizer):
        torch.save({"net": model.state_dict(), "optimizer": optimizer.state_dict()}, saved / f"model_step_{step}")

    training((0, 10, 20, 25), save)
    indices = np.random.default_rng(0).integers(0, 50_000, (25, 8))
    np.save(saved / "indices.npy", indices)
    (saved / "hash.txt").write_text("00")
    done = import_run(saved, store, "r", quiet)
    assert (done.layout, done.samples, done.first_step) == ("paper", True, 0)
    run = Run(store, "r")
    assert run.manifest.every == 10
    got = [step.microbatches[0].ranks[0] for segment in range(3) for step in run.steps(segment).steps]
    assert got == [tuple(row) for row in indices.tolist()]
    assert check_store(store, quiet).damages == []
    commit(store, "r", SigningKey("example.org/archive", bytes(32)))
    assert prove(run, [0]).bundle.samples.salts == ()


@pytest.mark.parametrize(
    "indices", [np.zeros((9, 2), int), np.zeros(10, int), np.zeros((10, 2)), np.array([{}] * 10), np.full((10, 2), -1)]
)
def test_sample_indices_that_cannot_be_right_are_refused(store, saved, indices):
    training((5, 10), lambda step, model, _: torch.save({"net": model.state_dict()}, saved / f"model_step_{step}"))
    np.save(saved / "indices.npy", indices, allow_pickle=True)
    with pytest.raises(TrainingError, match=r"indices\.npy"):
        import_run(saved, store, "r", quiet)


def test_what_was_exported_comes_back_the_same(store, saved, make_run):
    make_run(store, "r")
    for step in (2, 4, 6):
        Run(store, "r").export(step, saved / f"weights-{step}.safetensors")
    import_run(saved, store, "again", quiet)
    again = Run(store, "again")
    assert again.snapshots == [0, 2, 4]
    for step in (2, 4, 6):
        exported = {
            entry.name: entry for entry in Run(store, "r").state(step).entries() if "optimizer" not in entry.name
        }
        assert {entry.name: entry for entry in again.state(step - 2).entries()} == exported
    file = saved / "weights-6.safetensors"
    single = import_run(file, store, "single", quiet)
    assert (single.snapshots, single.first_step) == (1, 6)  # the step comes from the file's own metadata
    Run(store, "single").export(0, saved / "back.safetensors")
    first, second = load_file(file), load_file(saved / "back.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.bfloat16, "parameter"), (torch.float8_e4m3fn, "parameter"), (torch.complex64, "parameter"),
     (torch.int64, "buffer"), (torch.bool, "buffer")],
)  # fmt: skip
def test_every_dtype_keeps_its_bits(store, saved, dtype, kind):
    raw = torch.tensor([number % 2 if dtype is torch.bool else 255 - number for number in range(64)], dtype=torch.uint8)
    tensor = raw.view(dtype)
    torch.save({"x": tensor, "odd": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])}, saved / "1.pt")
    import_run(saved, store, "r", quiet)
    state = Run(store, "r").state(0)
    assert state.tensor(f"{kind}/x").data.tobytes() == raw.numpy().tobytes()


def test_names_that_an_optimizer_states_itself_are_used(store, saved):
    def save(_, model, optimizer):
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, saved / "1.pt")

    training((1,), save, named=True, groups=2)
    import_run(saved, store, "r", quiet)
    assert "optimizer/2.weight/exp_avg" in Run(store, "r").state(0).names


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("evil"),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_needs_more_than_weights_is_refused(store, saved, monkeypatch, zipped):
    monkeypatch.chdir(saved)
    training((1,), lambda step, model, _: torch.save(model.state_dict(), saved / "1.pt"))
    torch.save({"model": {"w": torch.zeros(1)}, "x": Evil()}, saved / "2.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(TrainingError, match=r"2\.pt cannot be loaded with weights_only=True"):
        import_run(saved, store, "r", quiet)
    assert not (saved / "evil").exists()
    with store.read() as view:
        assert view.runs() == []


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"PK\x03\x04garbage", pickle.dumps({"a": 1}), pickle.dumps([Evil()])],
)
@pytest.mark.parametrize("suffix", ["pt", "ckpt", "safetensors"])
def test_files_that_are_something_else_are_named(store, saved, monkeypatch, content, suffix):
    monkeypatch.chdir(saved)
    (saved / f"1.{suffix}").write_bytes(content)
    with pytest.raises(TrainingError, match=rf"1\.{suffix}"):
        import_run(saved, store, "r", quiet)
    assert not (saved / "evil").exists()


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(2)], {"epoch": 3}, {"model": {"w": torch.zeros(2)}, "x": {1.5: 2}}, {"w": torch.zeros(2).to_sparse()},
     {"model": {"w": torch.zeros(2)}, "x": 2**70}, {"bad\nname": torch.zeros(1)}],
)  # fmt: skip
def test_content_that_cannot_be_committed_is_named(store, saved, content):
    torch.save(content, saved / "1.pt")
    with pytest.raises(TrainingError, match=r"1\.pt"):
        import_run(saved, store, "r", quiet)


def test_files_of_different_models_are_refused(store, saved):
    torch.save({"w": torch.zeros(2)}, saved / "1.pt")
    torch.save({"v": torch.zeros(2)}, saved / "2.pt")
    with pytest.raises(TrainingError, match=r"2\.pt does not go with"):
        import_run(saved, store, "r", quiet)


def test_steps_that_are_unclear_are_refused(store, saved):
    for name in ("a.pt", "b.pt"):
        torch.save({"w": torch.zeros(2)}, saved / name)
    with pytest.raises(TrainingError, match="states no step"):
        import_run(saved, store, "r", quiet)
    (saved / "a.pt").rename(saved / "a1.pt")
    (saved / "b.pt").rename(saved / "b1.pt")
    with pytest.raises(TrainingError, match="same step"):
        import_run(saved, store, "r", quiet)
    (saved / "a1.pt").rename(saved / f"a{MAX_INDEX + 1}.pt")
    with pytest.raises(TrainingError, match=rf"up to {MAX_INDEX} .*got {MAX_INDEX + 1}"):
        import_run(saved, store, "r", quiet)


@pytest.mark.parametrize("name", ["w2.pt", "w2.ckpt", "w2.safetensors", "model_step_2", "checkpoint-2"])
def test_a_link_that_leads_nowhere_is_not_left_out(store, saved, name):
    other = saved / name.replace("2", "1")
    if name.endswith(".safetensors"):
        save_file({"w": torch.zeros(2)}, other)
    elif name.startswith("checkpoint"):
        other.mkdir()
        save_file({"w": torch.zeros(2)}, other / "model.safetensors")
    else:
        torch.save({"w": torch.zeros(2)}, other)
    (saved / name).symlink_to(saved / "what an annex has not fetched")
    with pytest.raises(MissingError, match=name):
        import_run(saved, store, "r", quiet)
    with store.read() as view:
        assert view.runs() == []


def test_a_stopped_import_goes_on(store, saved):
    training((1, 2, 3, 4), lambda step, model, _: torch.save(model.state_dict(), saved / f"{step}.pt"))

    def interrupt(what, done, _total):
        if what == "importing snapshots" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_run(saved, store, "r", interrupt)
    assert Run(store, "r").snapshots == [0, 1, 2]
    assert not Run(store, "r").complete
    done = import_run(saved, store, "r", quiet)
    assert (done.snapshots, done.added) == (4, 1)
    with open_store(saved.parent / "whole", create=True) as whole:
        import_run(saved, whole, "r", quiet)
        assert Run(whole, "r").tree_root(4) == Run(store, "r").tree_root(4)
    assert import_run(saved, store, "r", quiet).added == 0
    assert check_store(store, quiet).damages == []


def test_another_run_of_that_name_is_left_alone(store, saved, make_run):
    make_run(store, "r")
    training((1, 2), lambda step, model, _: torch.save(model.state_dict(), saved / f"{step}.pt"))
    root = Run(store, "r").tree_root(7)
    with pytest.raises(ExistsError):
        import_run(saved, store, "r", quiet)
    assert Run(store, "r").tree_root(7) == root
    import_run(saved, store, "s", quiet)
    torch.save(build()[0].state_dict(), saved / "2.pt")
    with pytest.raises(ExistsError, match=r"2\.pt"):
        import_run(saved, store, "s", quiet)
    with store.exclusive(), pytest.raises(LockedError):
        import_run(saved, store, "t", quiet)


def test_finding_files(tmp_path):
    with pytest.raises(MissingError):
        find_sources(tmp_path / "none", None)
    with pytest.raises(MissingError):
        find_sources(tmp_path, None)
    for name in ("w10.pt", "w9.pt", "w9.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match="--layout torch or safetensors"):
        find_sources(tmp_path, None)
    layout, found = find_sources(tmp_path, "torch")
    assert (layout, [(source.path.name, source.named_step) for source in found]) == (
        "torch",
        [("w9.pt", 9), ("w10.pt", 10)],
    )
    with pytest.raises(MissingError):
        find_sources(tmp_path, "lightning")
    with pytest.raises(UsageError):
        find_sources(tmp_path, "onnx")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("epoch=3-step=1200.ckpt", 1200),
        ("model_7.pt", 7),
        ("v2-step_40-loss0.3.pt", 40),
        ("last.pt", None),
        ("9" * 16, None),
    ],
)
def test_steps_of_names(name, step):
    assert step_of_name(name) == step


@pytest.mark.parametrize(
    ("steps", "every"),
    [([0], 1), ([0, 5], 5), ([0, 5, 10, 12], 5), ([0, 2, 3, 4, 6], 2), ([0, 3, 10], 10), ([0, 1, 2, 3], 1)],
)
def test_the_spacing_fits_the_rule_of_verification(steps, every):
    assert choose_every(steps) == every
    for start, end in pairwise(steps):  # as polverify's check of continuity has it
        assert end <= (start // every + 1) * every
    with pytest.raises(TrainingError):
        choose_every([0, 700_000, 1_500_000])
