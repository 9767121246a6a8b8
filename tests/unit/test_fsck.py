"""The store's check: each kind of damage is named with what it costs, and the rest stays readable."""

import base64
import hashlib
import json
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest
import tiny_archive

import polstore
from polstore.cli.main import main
from polstore.fsck import check_store
from polstore.storage.store import open_store
from polstore.wire.keys import SigningKey
from polstore.wire.lineage import names_blob
from polstore.wire.manifest import Initial, Parent


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny_archive.make(tmp_path_factory.mktemp("fsck"), runs=("a", "b"))


@pytest.fixture
def path(tmp_path, original):
    return Path(shutil.copytree(original, tmp_path / "st"))


@contextmanager
def raw(path):
    with lmdb.open(str(path), map_size=0, max_readers=1024) as opened, opened.begin(write=True) as transaction:
        yield transaction


def check(path):
    with open_store(path, readonly=True) as store:
        return check_store(store, lambda _what, _done, _total: None)


def number(value):
    return value.to_bytes(8, "big")


def test_a_sound_store(path):
    seen = []
    with open_store(path, readonly=True) as store:
        report = check_store(store, lambda *told: seen.append(told))
        with store.read() as view:
            assert report.blobs == len(list(view.blob_digests()))
    assert (report.runs, report.snapshots, report.damages) == (2, 12, [])
    assert (report.ledger, report.not_entered) == (2, [])
    assert seen[-2:] == [("snapshots", 6, 6), ("ledger", 2, 2)]
    assert {told[0] for told in seen} == {"blobs", "records", "snapshots", "ledger"}


def keys(path):
    """Return the keys of the things that can be damaged in run a, by what they are."""
    with polstore.open(path) as archive:
        run = archive.run("a")
        record = run.segment(2)
        (stored, *_) = run.stored_snapshots(record.end_state)
        frame = next(iter(stored.blobs))
        return {
            "steps": b"b" + record.steps,
            "frame": b"b" + frame,
            "sample hashes": b"b" + run.row.sample_hashes,
            "hyperparameters": b"b" + run.manifest.optimizer.hyperparameters,
            "row": b"ra",
            "manifest": b"la\0" + number(0),
            "leaf": b"la\0" + number(3),
            "last leaf": b"la\0" + number(5),
            "leaf hash": b"na\0\0" + number(3),
            "last leaf's hash": b"na\0\0" + number(5),
            "node": b"na\0\1" + number(1),
            "snapshot": b"sa\0" + number(6),
            "last snapshot": b"sa\0" + number(9),
            "description": b"d" + record.end_state,
            "root": b"ta\0" + number(6),
        }


EXPECTED = {  # thing -> (what names it, what it costs); both runs may share blobs, so run a is looked at
    "steps": ("segment 2 of run a, steps", "segment 2 of run a"),
    "frame": ("snapshot at step 6 of run a", "segments 2 and 3 of run a"),
    "sample hashes": ("run a, data for proofs", "all its proofs"),
    "hyperparameters": ("run a, data for proofs", "all its proofs"),
    "row": ("run a", "the whole run"),
    "manifest": ("run a, manifest", "the whole run"),
    "leaf": ("segment 2 of run a", "all proofs of run a"),
    "last leaf": ("segment 4 of run a", "all proofs of run a"),
    "leaf hash": ("segment 2 of run a", "all proofs of run a"),
    "last leaf's hash": ("segment 4 of run a", "all proofs of run a"),
    "node": ("run a, tree", "its inclusion proofs"),
    "snapshot": ("snapshot at step 6 of run a", "segments 2 and 3 of run a"),
    "last snapshot": ("snapshot at step 9 of run a", "segment 4 of run a"),
    "description": ("snapshot at step 6 of run a", "segments 2 and 3 of run a"),
    "root": ("run a, signed root of size 6", "that root"),
}


@pytest.mark.parametrize("thing", EXPECTED)
def test_damaged_things_are_named_with_their_cost(path, thing):
    key = keys(path)[thing]
    with raw(path) as transaction:
        value = bytearray(transaction.get(key))
        # Without a key nothing vouches for the signatures under a root: not in the middle there.
        value[{"root": 25}.get(thing, len(value) // 2)] ^= 4
        transaction.put(key, bytes(value))
    report = check(path)
    found = {(damage.what, damage.cost) for damage in report.damages}
    assert EXPECTED[thing] in found, report.damages
    if key.startswith(b"b"):
        assert (f"blob {key[1:].hex()}", "what is named below") in found
    assert all(damage.error for damage in report.damages)
    assert report.runs == 2
    assert not any(damage.what.startswith("run b") for damage in report.damages if thing != "hyperparameters")
    with polstore.open(path) as archive:
        assert archive.run("b").segments[-1].end_step == tiny_archive.STEPS
        if thing not in ("row",):
            assert archive.run("a").snapshots
            assert archive.run("a").state(2).digest()


# Nothing else names a run's row or a signed root: a store without them looks as if they had never been.
@pytest.mark.parametrize("thing", [thing for thing in EXPECTED if thing not in ("row", "root")])
def test_lost_things_are_named(path, thing):
    key = keys(path)[thing]
    with raw(path) as transaction:
        transaction.delete(key)
    report = check(path)
    assert any("run a" in damage.what for damage in report.damages), report.damages
    with polstore.open(path) as archive:
        assert archive.run("b").segments[-1].end_step == tiny_archive.STEPS


def run_command(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["polstore", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, *capsys.readouterr()


def test_the_command_names_damages_on_stdout_and_exits_with_4(path, monkeypatch, capsys):
    key = keys(path)["steps"]
    with raw(path) as transaction:
        transaction.put(key, b"other")
    code, out, err = run_command(["fsck", "--store", path], monkeypatch, capsys)
    assert code == 4
    lines = out.splitlines()
    assert lines[0].startswith(f"damaged: blob {key[1:].hex()}: ")
    assert lines[1].startswith("damaged: segment 2 of run a, steps: ")
    assert lines[1].endswith("; affects segment 2 of run a")
    assert err.startswith(f"error: {len(lines)} damages in ")
    assert err.count("\n") == 1
    code, out, _ = run_command(["fsck", "--store", path, "--json"], monkeypatch, capsys)
    assert code == 4
    assert json.loads(out)["damages"][1]["cost"] == "segment 2 of run a"


KEYS = {"row": b"ra", "manifest": b"la\0" + number(0), "last leaf": b"la\0" + number(5)}


@pytest.mark.parametrize("thing", KEYS)
def test_a_damaged_run_does_not_hide_the_others(path, monkeypatch, capsys, thing):
    with raw(path) as transaction:
        transaction.put(KEYS[thing], b"nonsense")
    code, out, err = run_command(["ls", "--store", path, "--json"], monkeypatch, capsys)
    rows = {row["run"]: row for row in json.loads(out)}
    assert rows["b"]["segments"] == 5
    if thing == "last leaf":  # nothing that a list shows
        assert code == 0
    else:
        assert code == 4
        assert "damage" in rows["a"]
        assert err.startswith("error: 1 of 2 runs cannot be read, see polstore fsck")


def test_a_lost_hash_of_the_last_leaf_hides_nothing_else(path):
    found = keys(path)
    with raw(path) as transaction:
        transaction.delete(found["last leaf's hash"])
        transaction.put(found["frame"], b"other")
    named = {damage.what: damage.cost for damage in check(path).damages}
    assert named["run a, tree"] == "all proofs of run a"
    assert named["snapshot at step 6 of run a"] == "segments 2 and 3 of run a"


def test_a_record_that_no_run_needs_is_checked_too(path):
    """A repack reads it, to know which blobs it must leave alone."""
    description = keys(path)["description"]
    with raw(path) as transaction:
        transaction.put(b"d" + bytes(32), b"no record")
        transaction.put(b"d" + bytes(31) + b"1", transaction.get(description))
    first, second = check(path).damages
    assert first.what == f"record of snapshot {bytes(32).hex()}"
    assert (second.what[-2:], "is not the one it stands for" in second.error) == ("31", True)


def test_lost_snapshots_are_named_with_their_segments(path):
    with raw(path) as transaction:
        for step in (2, 6, 9):
            transaction.delete(b"sa\0" + number(step))
    found = {(damage.what, damage.cost) for damage in check(path).damages}
    assert found == {
        ("snapshot at step 2 of run a", "segments 0 and 1 of run a"),
        ("snapshot at step 6 of run a", "segments 2 and 3 of run a"),
        ("snapshot at step 9 of run a", "segment 4 of run a"),
    }


def test_a_snapshot_of_another_step_is_named(path):
    with raw(path) as transaction:
        transaction.put(b"sa\0" + number(6), transaction.get(b"sa\0" + number(4)))
        transaction.put(b"sa\0" + number(7), transaction.get(b"sa\0" + number(4)))
    found = {damage.what: damage for damage in check(path).damages}
    assert set(found) == {"snapshot at step 6 of run a", "snapshot at step 7 of run a"}
    assert "is not the one that the segment records name" in found["snapshot at step 6 of run a"].error
    assert found["snapshot at step 6 of run a"].cost == "segments 2 and 3 of run a"
    assert found["snapshot at step 7 of run a"].error == "belongs to no segment"


def test_records_that_name_a_step_twice_are_named(path):
    with polstore.open(path) as archive:
        again = archive.run("a").segment(4)
    with open_store(path) as store:
        store.write(lambda writer: writer.append_leaf("a", again.encode()))
    (damage,) = check(path).damages
    assert (damage.what, damage.error) == ("segment 5 of run a", "does not follow the segment before it")


def test_a_lost_list_of_inherited_tensors_is_named(path):
    with polstore.open(path) as archive:
        parent = archive.run("a")
        signed = parent.signed_checkpoint(6)
        record = parent.segments[-1]
        names = names_blob(("parameter/0.weight",))
        manifest = replace(
            parent.manifest,
            run="child",
            initial=Initial(
                "parent",
                record.end_state,
                Parent(
                    signed.origin,
                    signed.size,
                    signed.root,
                    record.end_step,
                    record.end_state,
                    hashlib.sha256(names).digest(),
                ),
            ),
        )
        row = parent.row.encode()
    with open_store(path) as store:

        def work(writer):
            writer.put_run("child", row)
            writer.append_leaf("child", manifest.encode())
            writer.put_snapshot("child", 0, record.end_state)
            writer.put_blob(names)

        store.write(work)
        assert check_store(store, lambda *_: None).damages == []
        store.write(lambda writer: writer.delete_blob(hashlib.sha256(names).digest()))
        (damage,) = check_store(store, lambda *_: None).damages
    assert (damage.what, damage.cost) == ("run child, data for proofs", "all its proofs")


def test_signatures_are_checked_under_the_keys_that_are_given(path, tmp_path, monkeypatch, capsys):
    mine, other = tmp_path / "mine.pub", tmp_path / "other.pub"
    mine.write_text("".join(f"{key.line()}\n" for key in tiny_archive.KEY.verifier_keys()))
    stranger = SigningKey("example.com/stranger", bytes(32))
    other.write_text("".join(f"{key.line()}\n" for key in stranger.verifier_keys()))

    def fsck(*words):
        code, out, err = run_command(["fsck", "--store", path, *words, "--json"], monkeypatch, capsys)
        return code, json.loads(out), err

    code, report, _ = fsck()
    assert (code, report["signatures"], report["other_signers"]) == (0, 0, [])
    code, report, err = fsck("--key", mine, "--key", other)
    assert (code, report["signatures"], report["other_signers"]) == (0, 4, [])  # two roots and two heads
    assert "; 4 signed roots and heads hold under these keys" in err
    code, report, _ = fsck("--key", other)
    assert (code, report["signatures"], len(report["other_signers"])) == (0, 0, 4)

    with raw(path) as transaction:  # a forger can make all hashes fit, and no signature
        text, digest = transaction.get(b"ta\0" + number(6))[:-32], hashlib.sha256
        line = text.splitlines(keepends=True)[-1]
        blob = bytearray(base64.b64decode(line.split()[-1]))
        blob[-1] ^= 1
        forged = text.replace(line.split()[-1], base64.b64encode(blob))
        transaction.put(b"ta\0" + number(6), forged + digest(forged).digest())
    assert fsck()[0] == 0
    code, report, _ = fsck("--key", mine)
    assert code == 4
    (damage,) = report["damages"]
    assert (damage["what"], damage["cost"]) == ("run a, signed root of size 6", "that signature")
    assert "is false" in damage["error"]
