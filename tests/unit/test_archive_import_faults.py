"""Saved trainings that are damaged, incomplete or malformed: refused by name, never imported as something else."""

import errno
import json
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from polstore.archive import mapping
from polstore.archive.importing import import_run
from polstore.errors import CallerError, MissingError, TrainingError
from polstore.reader import Run

VALUES = torch.arange(64.0)


def quiet(*_):
    pass


def optimizer(**other):
    return {"state": {}, "param_groups": [{"lr": 0.5, "params": [0]}], **other}


def imported(store):
    return Run(store, "r").state(0).tensor("parameter/w").data.tobytes()


def written_anew(path, compression=zipfile.ZIP_STORED, change=lambda name, data: data):
    """Write a zip file again, its members changed and its checksums right."""
    with zipfile.ZipFile(path) as file:
        members = {name: change(name, file.read(name)) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)


def test_a_flipped_bit_in_a_torch_file_is_refused(store, saved):
    path = saved / "1.pt"
    torch.save({"w": VALUES}, path)
    data = bytearray(path.read_bytes())
    data[data.index(VALUES.numpy().tobytes()) + 100] ^= 4
    path.write_bytes(data)
    assert not torch.equal(torch.load(path, weights_only=True)["w"], VALUES)  # torch itself does not look
    with pytest.raises(TrainingError, match=r"1\.pt: a part of it is damaged.*data/0"):
        import_run(path, store, "r", quiet)


def test_a_torch_file_without_checksums_is_taken(store, saved):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": VALUES}, saved / "1.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    import_run(saved, store, "r", quiet)
    assert imported(store) == VALUES.numpy().tobytes()


def test_a_torch_file_that_was_compressed_keeps_its_values(store, saved):
    torch.save({"w": VALUES, "step": torch.tensor(7)}, saved / "x.pt")
    written_anew(saved / "x.pt", zipfile.ZIP_DEFLATED)
    assert import_run(saved, store, "r", quiet).first_step == 7
    assert imported(store) == VALUES.numpy().tobytes()


def test_a_tensor_that_is_too_short_is_refused(store, saved):
    torch.save({"w": VALUES, "v": VALUES}, saved / "1.pt")
    written_anew(saved / "1.pt", change=lambda name, data: data[:16] if name.endswith("/data/0") else data)
    with pytest.raises(TrainingError, match=r"1\.pt"):
        import_run(saved, store, "r", quiet)


CYCLE = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"w": VALUES}, "x": CYCLE},
        {"\ud800": VALUES},
        {"w": torch.zeros(1).expand(10**14)},
        {"model": {"w": VALUES}, "optimizer": optimizer(param_groups=[{"params": [0], "lr": torch.zeros(3)}])},
        {"model": {"w": VALUES}, "optimizer": optimizer(state={5: {}})},
    ],
)
def test_content_that_no_snapshot_can_hold_is_named(store, saved, content):
    torch.save(content, saved / "1.pt")
    with pytest.raises(TrainingError, match=r"1\.pt cannot be committed"):
        import_run(saved, store, "r", quiet)


def test_content_that_grows_without_end_is_refused(store, saved, monkeypatch):
    monkeypatch.setattr(mapping, "MAX_SCALARS", 1000)
    many = [1]
    for _ in range(40):  # 10 to the power of 40 numbers
        many = [many] * 10
    torch.save({"model": {"w": VALUES}, "x": many}, saved / "1.pt")
    with pytest.raises(TrainingError, match=r"1\.pt cannot be committed: scalars are too many"):
        import_run(saved, store, "r", quiet)


@pytest.mark.parametrize(
    "other",
    [
        {"param_groups": 3},
        {"param_groups": {"a": 1}},
        {"param_groups": [1]},
        {"param_groups": [{"params": 1}]},
        {"param_groups": [{"params": [[0]]}]},
        {"param_groups": [{"params": [0], 1: 2, "lr": 1}]},
        {"param_groups": [{"params": [0], "param_names": 3}]},
        {"state": [1]},
        {"state": None},
    ],
)
def test_what_only_looks_like_an_optimizer_is_kept_as_it_is(store, saved, other):
    torch.save({"model": {"w": VALUES}, "optimizer": optimizer(**other)}, saved / "1.pt")
    import_run(saved, store, "r", quiet)
    assert imported(store) == VALUES.numpy().tobytes()
    assert b"optimizer" in Run(store, "r").state(0).scalars


def shards(folder, numbers, count):
    folder.mkdir()
    for number in numbers:
        save_file({f"w{number}": VALUES}, folder / f"model-{number:05}-of-{count:05}.safetensors")


def test_a_model_that_lacks_a_shard_is_refused(store, saved):
    shards(saved / "checkpoint-5", (1, 3), 3)
    with pytest.raises(MissingError, match=r"checkpoint-5 lacks parts of its model: expected 1 to 3, got \[1, 3\]"):
        import_run(saved, store, "r", quiet)


def test_shards_that_hold_the_same_tensor_are_refused(store, saved):
    shards(saved / "checkpoint-5", (1,), 2)
    save_file({"w1": VALUES}, saved / "checkpoint-5" / "model-00002-of-00002.safetensors")
    with pytest.raises(TrainingError, match="another part has, too"):
        import_run(saved, store, "r", quiet)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_adapters_in_hugging_face_folders(store, saved, name):
    folder = saved / "checkpoint-5"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 5}))
    (save_file if name.endswith("safetensors") else torch.save)({"w": VALUES}, folder / name)
    assert import_run(saved, store, "r", quiet).layout == "huggingface"
    assert imported(store) == VALUES.numpy().tobytes()


def test_files_that_may_not_be_read_are_the_callers_affair(store, saved, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    torch.save({"w": VALUES}, saved / "1.pt")
    monkeypatch.setattr(torch, "load", refused)  # not by its permissions: root may read everything
    with pytest.raises(CallerError, match=r"1\.pt cannot be read: Permission denied"):
        import_run(saved, store, "r", quiet)
