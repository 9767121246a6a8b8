"""Reading an archive: types, order, laziness, and every error that it promises."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import tiny_archive
from safetensors import safe_open

import polstore
from polstore.arrays import to_numpy
from polstore.codec.snapshot import Snapshot, Tensor
from polstore.errors import CallerError, MissingError, UsageError
from polstore.wire import merkle
from polstore.wire.checkpoint import open_root
from polstore.wire.manifest import Manifest
from polstore.wire.segment import SegmentRecord
from polstore.wire.steps import Steps
from polstore.wire.tlog_proof import TlogProof


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_archive.make(tmp_path_factory.mktemp("reader"), runs=("a", "b"))


@pytest.fixture
def archive(path):
    with polstore.open(path) as opened:
        yield opened


@pytest.fixture
def run(archive):
    return archive.run("a")


def test_states_as_arrays_and_as_torch_tensors(run):
    state, arrays, tensors = run.state(4), run.arrays(4), run.torch_tensors(4)
    assert tuple(arrays) == tuple(tensors) == state.names
    for tensor in state.tensors:
        array = arrays[tensor.name]
        assert (array.shape, array.tobytes()) == (tensor.shape, tensor.data.tobytes())
        assert not array.flags.writeable
        assert tensors[tensor.name].numpy().tobytes() == array.tobytes()
        assert np.array_equal(run.array(4, tensor.name), array)
    assert arrays["parameter/0.weight"].dtype == np.float32
    assert state.tensors[0].data.flags.writeable  # only the view is not


@pytest.mark.parametrize(
    ("dtype", "values", "seen"),
    [
        ("bool", np.array([1, 0], "|u1"), np.array([True, False])),
        ("complex64", np.array([1 + 2j, -3j], "<c8").view("<u8"), np.array([1 + 2j, -3j], "<c8")),
        ("complex128", np.array([1 + 2j, -3j], "<c16").view("<u8"), np.array([1 + 2j, -3j], "<c16")),
        ("bfloat16", np.array([0x3F80, 0xC000], "<u2"), np.array([0x3F80, 0xC000], "<u2")),
    ],
)
def test_arrays_have_the_dtype_that_numpy_has(dtype, values, seen):
    array = to_numpy(Tensor("parameter/x", dtype, (2, 1), values))
    assert (array.dtype, array.shape) == (seen.dtype, (2, 1))
    assert np.array_equal(array[:, 0], seen)


def test_weights_that_fit_no_safetensors_file_are_named(run, tmp_path, monkeypatch):
    odd = Snapshot((Tensor("parameter/x", "complex128", (1,), np.zeros(2, "<u8")),), b"\x90")
    monkeypatch.setattr(polstore.Run, "state", lambda _run, _step: odd)
    with pytest.raises(CallerError, match=r"step 4 fits no safetensors file: .*complex128"):
        run.export(4, tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_runs_and_what_they_declared(archive, path):
    assert isinstance(archive, polstore.Archive)
    assert archive.runs() == ["a", "b"]
    for name in archive.runs():
        run = archive.run(name)
        assert isinstance(run, polstore.Run)
        assert (run.name, run.complete, run.size()) == (name, True, 6)
        assert isinstance(run.manifest, Manifest)
        assert (run.manifest.run, run.manifest.every) == (name, tiny_archive.EVERY)
        assert run.manifest.recipe.digest == hashlib.sha256((path.parent / "recipe.py").read_bytes()).digest()


def test_segments_are_a_sequence(run):
    segments = run.segments
    assert len(segments) == 5
    listed = list(segments)
    assert all(isinstance(record, SegmentRecord) for record in listed)
    assert [record.index for record in listed] == [0, 1, 2, 3, 4]
    assert [segments[index] for index in range(-5, 5)] == listed + listed
    for part in (slice(None), slice(1, 3), slice(-2, None), slice(None, None, -2), slice(4, 1), slice(3, 99)):
        assert segments[part] == listed[part]
    assert listed[2] in segments
    assert segments.index(listed[2]) == 2
    for index in (5, -6):
        with pytest.raises(IndexError):
            segments[index]
    for index in (5, -1):
        with pytest.raises(MissingError, match=f"expected 0 to 4, got {index}"):
            run.segment(index)


def test_records_and_snapshots_fit_together(run):
    assert run.snapshots == tiny_archive.SNAPSHOTS
    assert run.state(0).digest() == run.manifest.initial.state
    for index, record in enumerate(run.segments):
        assert (record.start_step, record.end_step) == tuple(tiny_archive.SNAPSHOTS[index : index + 2])
        state = run.state(record.end_step)
        assert isinstance(state, Snapshot)
        assert state.digest() == record.end_state
        assert run.snapshot(record.end_state).digest() == record.end_state
        steps = run.steps(index)
        assert isinstance(steps, Steps)
        assert (steps.start_step, len(steps.steps)) == (record.start_step, record.end_step - record.start_step)
        assert steps.samples() <= set(range(16))


def test_the_tree_is_that_of_the_leaves(run):
    hashes = [merkle.leaf_hash(leaf) for leaf in run.leaves(6)]
    for size in range(1, 7):
        root = run.tree_root(size)
        assert root == merkle.root(hashes[:size])
        for leaf in range(size):
            merkle.verify_inclusion(hashes[leaf], leaf, size, run.inclusion_proof(leaf, size), root)
    assert run.signed_sizes() == [6]
    opened = open_root(run.signed_root(), tiny_archive.KEY.verifier_keys())
    assert opened.checkpoint == run.signed_checkpoint(6)
    assert (opened.checkpoint.size, opened.checkpoint.root) == (6, run.tree_root(6))
    assert opened.timestamp == tiny_archive.NOW


def test_a_segment_can_be_shown_alone(run):
    """As README has it: the file and the key, and neither store nor bundle."""
    for index in range(5):
        data = run.proof_file(index).encode()
        file = TlogProof.parse(data)
        root = file.verify(merkle.leaf_hash(file.extra), tiny_archive.KEY.verifier_keys())
        record = SegmentRecord.parse(file.extra)
        assert (record.index, file.index) == (index, index + 1)
        assert record == run.segment(index)
        assert root.checkpoint == run.signed_checkpoint(6)
    assert (run.newest_snapshot, run.newest_signed_size, run.signed_size()) == (tiny_archive.SNAPSHOTS[-1], 6, 6)


def test_what_is_not_there(archive, run, tmp_path):
    for use in (
        lambda: polstore.open(tmp_path / "none"),
        lambda: archive.run("c"),
        lambda: run.state(3),
        lambda: run.export(3, tmp_path / "w"),
        lambda: run.snapshot(bytes(32)),
        lambda: run.blob(bytes(32)),
        lambda: run.leaves(7),
        lambda: run.tree_root(7),
        lambda: run.signed_root(5),
        lambda: run.signed_checkpoint(5),
        lambda: run.signed_size(5),
        lambda: run.proof_file(5),
        lambda: run.proof_file(-1),
        lambda: run.proof_file(0, 5),
        lambda: run.steps(5),
        lambda: run.export(0, tmp_path / "none" / "w"),
    ):
        with pytest.raises(MissingError):
            use()
    for use in (lambda: archive.run("no name"), lambda: run.state(-1), lambda: run.blob(b"short")):
        with pytest.raises(UsageError):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_signed_root(tmp_path):
    with polstore.open(tiny_archive.make(tmp_path, steps=2, signed=False)) as archive:
        run = archive.run("r")
        assert run.signed_sizes() == []
        assert run.newest_signed_size is None
        with pytest.raises(MissingError, match="run polstore commit"):
            run.signed_root()


def test_a_closed_archive_is_not_used(path):
    with polstore.open(path) as archive:
        run = archive.run("a")
    for use in (archive.runs, lambda: archive.run("a"), lambda: run.snapshots, lambda: run.state(0)):
        with pytest.raises(UsageError, match="closed"):
            use()


@pytest.mark.parametrize("step", [0, 4, 9])
def test_exports_hold_the_weights_and_nothing_else(run, tmp_path, step):
    run.export(step, tmp_path / "w.safetensors")
    run.export(step, tmp_path / "w.safetensors")  # replaced, not refused
    state = {tensor.name: tensor for tensor in run.state(step).tensors}
    expected = {name.partition("/")[2] for name in state if name.startswith(("parameter/", "buffer/"))}
    with safe_open(tmp_path / "w.safetensors", "np") as file:
        assert set(file.keys()) == expected
        assert file.metadata() == {"run": "a", "step": str(step), "format": "pt"}
        for name in expected:
            tensor = state.get(f"parameter/{name}") or state[f"buffer/{name}"]
            np.testing.assert_array_equal(file.get_tensor(name), tensor.data.reshape(tensor.shape))
    assert [item.name for item in tmp_path.iterdir()] == ["w.safetensors"]


def test_reading_needs_no_torch(path, tmp_path):
    code = """
import sys, polstore
with polstore.open(sys.argv[1]) as archive:
    run = archive.run("a")
    state = run.state(run.snapshots[-1])
    run.export(4, sys.argv[2])
    polstore.prove(run, [1]).write(sys.argv[3])
    assert run.segments[-1].end_state == state.digest()
assert "torch" not in sys.modules
"""
    arguments = [path, tmp_path / "w", tmp_path / "bundle"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_reader_sees_a_run_grow(tmp_path):
    path = tiny_archive.make(tmp_path, runs=("a",), steps=2)
    with polstore.open(path) as archive:
        assert archive.runs() == ["a"]
        tiny_archive.make(tmp_path, runs=("b",), steps=2)
        assert archive.runs() == ["a", "b"]


def test_tensors_one_by_one(run):
    for step in run.snapshots:
        state = run.state(step)
        assert run.tensors(step) == state.entries()
        for entry in run.tensors(step):
            tensor = run.tensor(step, entry.name)
            assert tensor.entry() == entry
            assert tensor.data.tobytes() == state.tensor(entry.name).data.tobytes()
    for ask in (lambda: run.tensor(step, "parameter/none"), lambda: run.tensor(999, "x"), lambda: run.tensors(999)):
        with pytest.raises(MissingError):
            ask()
