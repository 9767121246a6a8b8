"""Stores that may only be read: files without write permission, and media that are mounted read-only."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import children
import pytest
import training

from polstore.cli.main import main
from polstore.prover import commit
from polstore.storage.store import open_store
from polstore.wire.keys import SigningKey

KEY = SigningKey("example.com/alice", bytes(range(32)))
NOBODY = 65534


def make(_, recipe, store):
    training.record(recipe, store, 6)
    with open_store(store) as opened:
        commit(opened, "r", KEY)


READING = {
    "ls": ("ls", "--json"),
    "show": ("show", "--json"),
    "segment": ("show", "--segment", "1", "--json"),
    "prove": ("prove", "--segment", "1", "--out", "bundle"),
    "export": ("export", "--step", "4", "weights.safetensors"),
    "stats": ("stats", "--json"),
    "fsck": ("fsck", "--json"),
}
WRITING = {"gc": ("gc", "--yes")}


def run(commands, store):
    """Run commands in this process; return (exit code, stdout, stderr) by name."""
    results = {}
    for name, words in commands.items():
        sys.argv = ["polstore", *words, "--store", str(store)]
        with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
            try:
                main()
            except SystemExit as ended:
                results[name] = ended.code, stdout.getvalue(), stderr.getvalue()
    return results


def as_nobody(_, store, out):
    os.chdir(out)
    if os.getuid() == 0:
        run(READING, store)  # loads all modules while Python's own files may be read
        for file in out.iterdir():
            file.unlink()
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    return run(READING | WRITING, store)


def as_ever(_, store, out):
    os.chdir(out)
    return run(READING | WRITING, store)


def contents(store):
    return {file.name: file.read_bytes() for file in sorted(store.iterdir()) if file.name != "lock.mdb"}


def check(results, out, store, before):
    writing = results.pop("gc")
    assert {name: code for name, (code, _, _) in results.items()} == dict.fromkeys(results, 0), results
    assert json.loads(results["ls"][1])[0]["segments"] == 3
    assert json.loads(results["fsck"][1])["damages"] == []
    assert {file.name for file in out.iterdir()} == {"bundle", "weights.safetensors"}
    assert writing[0] == 4
    assert "may not be written" in writing[2]
    assert contents(store) == before


@pytest.fixture
def out(tmp_path):
    """A directory that anybody may write to."""
    path = tmp_path / "out"
    path.mkdir()
    path.chmod(0o777)
    return path


def test_a_store_without_write_permission(tmp_path, out):
    store = tmp_path / "st"
    children.call(make, training.recipe_file(tmp_path), store)
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_mode & 0o007 == 0:  # made by pytest for its user alone
            directory.chmod(0o755)
    for file in store.iterdir():
        file.chmod(0o444)
    store.chmod(0o555)
    before = contents(store)
    try:
        check(children.call(as_nobody, store, out), out, store, before)
    finally:
        store.chmod(0o755)


@pytest.mark.parametrize("lock_file", [True, False])
def test_media_that_are_mounted_read_only(tmp_path, out, lock_file):
    """By a mount where that is permitted; elsewhere the files' permissions stand in for it."""
    media = tmp_path / "media"
    media.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(media)], capture_output=True, check=False
    )
    if made.returncode:
        test_a_store_without_write_permission(tmp_path, out)
        return
    try:
        store = media / "st"
        children.call(make, training.recipe_file(tmp_path), store)
        if not lock_file:
            (store / "lock.mdb").unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(media)], check=True)
        before = contents(store)
        check(children.call(as_ever, store, out), out, store, before)
        assert (store / "lock.mdb").exists() == lock_file
    finally:
        subprocess.run(["umount", "-l", str(media)], check=True)
