"""The archive's commands: exit codes, what they print, and that none but import loads torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from polstore.archive.provenance import Provenance
from polstore.cli.main import app
from polstore.errors import DamagedError, ExistsError, MalformedError, MissingError, TrainingError, UsageError
from polstore.storage.store import open_store
from polstore.wire import canonical
from polstore.wire.manifest import Dataset
from polstore.wire.merkle import EMPTY_ROOT

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path, make_run):
    with open_store(tmp_path / "s", create=True) as store:
        make_run(store, "a", count=3)
        make_run(store, "b", count=2, seed=2)
        store.write(lambda writer: writer.put_blob(b"of no use"))
    return tmp_path / "s"


def run(*arguments):
    """Run a command in this process and return what it printed to stdout; raises what it raises."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_stats(path):
    text = run("stats", "--store", path)
    assert text.startswith("run\tsnapshots")
    assert "1 of 9 B unreferenced" in text
    found = json.loads(run("stats", "--store", path, "--json"))
    assert [row["run"] for row in found["runs"]] == ["a", "b"]
    assert [row["run"] for row in json.loads(run("stats", "--store", path, "--run", "b", "--json"))["runs"]] == ["b"]


def test_gc_deletes_only_with_yes(path):
    assert run("gc", "--store", path).count("blob ") == 1
    assert not json.loads(run("gc", "--store", path, "--dry-run", "--json"))["deleted"]
    with pytest.raises(UsageError):
        run("gc", "--store", path, "--yes", "--dry-run")
    gone = json.loads(run("gc", "--store", path, "--yes", "--json"))
    assert (gone["deleted"], gone["blob_bytes"], len(gone["blobs"])) == (True, 9, 1)
    assert run("gc", "--store", path) == ""
    run("fsck", "--store", path)


def test_repack(path):
    dry = json.loads(run("repack", "--store", path, "--dry-run", "--level", "9", "--json"))
    done = json.loads(run("repack", "--store", path, "--level", "9", "--json"))
    assert dry == done | {"written": False}
    run("fsck", "--store", path)
    with open_store(path) as store:
        with store.read() as view:
            digest = view.snapshot_at("b", 1)
        store.write(lambda writer: writer.put_stored_snapshot(digest, b"?"))
    with pytest.raises(DamagedError):
        run("repack", "--store", path)


def test_copy(path, tmp_path, make_run):
    copied = json.loads(run("copy", "--from", path, "--to", tmp_path / "other", "--json"))
    assert [each["segments"] for each in copied] == [3, 2]
    run("fsck", "--store", tmp_path / "other")
    run("copy", "--from", tmp_path / "other", "--to", path, "--run", "a")
    with pytest.raises(MissingError, match="no such run"):
        run("copy", "--from", path, "--to", tmp_path / "nothing", "--run", "c")
    assert not (tmp_path / "nothing").exists()
    with open_store(tmp_path / "third", create=True) as store:
        make_run(store, "a", count=1, seed=9)
    with pytest.raises(ExistsError):
        run("copy", "--from", path, "--to", tmp_path / "third")


def test_a_store_cannot_be_copied_into_itself(path, tmp_path):
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "hard").mkdir()  # as cp -al makes it
    for file in path.iterdir():
        (tmp_path / "hard" / file.name).hardlink_to(file)
    for same in (path, tmp_path / "link", tmp_path / "hard"):
        with pytest.raises(UsageError, match="the same store"):
            run("copy", "--from", path, "--to", same)
    run("fsck", "--store", path)


def test_show_says_where_an_imported_run_comes_from(path, tmp_path):
    torch.save({"w": torch.zeros(3)}, tmp_path / "model-70.pt")
    done = json.loads(run("import", tmp_path / "model-70.pt", "--store", path, "--run", "i", "--json"))
    assert (done["layout"], done["first_step"], done["snapshots"]) == ("torch", 70, 1)
    shown = json.loads(run("show", "--store", path, "--run", "i", "--json"))
    assert shown["imported"] == {"layout": "torch", "first_step": 70}
    assert (shown["recipe"]["kind"], shown["dataset"]["size"]) == ("none", 0)
    assert json.loads(run("show", "--store", path, "--run", "a", "--json"))["imported"] is None
    run("fsck", "--store", path)


@pytest.mark.parametrize("data", [b"", canonical.encode(("torch",)), canonical.encode(("torch", -1)), b"\xc1"])
def test_damaged_provenance_is_the_stores_fault(data):
    with pytest.raises(DamagedError, match="polstore/imported"):
        Provenance.find(((Provenance.NAME, data),))


def test_only_import_loads_torch(path, tmp_path):
    code = f"""
import sys
from typer.testing import CliRunner
from polstore.cli.main import app
for arguments in (["stats"], ["gc"], ["gc", "--yes"], ["repack"]):
    assert CliRunner().invoke(app, [*arguments, "--store", {str(path)!r}]).exit_code == 0, arguments
copied = CliRunner().invoke(app, ["copy", "--from", {str(path)!r}, "--to", {str(tmp_path / "other")!r}])
assert copied.exit_code == 0 and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_to_import_makes_no_store(tmp_path):
    with pytest.raises(MissingError):
        run("import", tmp_path / "none", "--store", tmp_path / "new", "--run", "x")
    (tmp_path / "1.pt").touch()
    with pytest.raises(UsageError):
        run("import", tmp_path / "1.pt", "--store", tmp_path / "new", "--run", "x/y")
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_imported_is_named(path, tmp_path):
    (tmp_path / "1.pt").write_bytes(b"no snapshot")
    with pytest.raises(TrainingError, match=r"1\.pt cannot be loaded with weights_only=True"):
        run("import", tmp_path / "1.pt", "--store", path, "--run", "x")


def test_a_manifest_may_commit_to_no_dataset_in_one_way_only():
    nothing = Dataset.not_committed()
    assert nothing == Dataset(EMPTY_ROOT, 0)
    assert Dataset.from_value(nothing.value()) == nothing
    with pytest.raises(MalformedError, match="root of no dataset"):
        Dataset.from_value((bytes(32), 0))
