"""One flipped bit in the data file, on every page: noticed and named, or harmless; never wrong data taken for right.

LMDB itself believes its file, so a reader may die of a damaged page; the check, which reads without LMDB, must not.
"""

from __future__ import annotations

import os
import random
import shutil
import signal

import children
import pytest
import training

import polstore
from polstore.errors import PolstoreError
from polstore.fsck import check_store
from polstore.prover import commit
from polstore.storage import environment
from polstore.storage.store import open_store
from polstore.storage.survey import survey
from polstore.wire.keys import SigningKey

PAGE = 4096
RUNS = {"a": 8, "b": 4}  # run -> its steps, a snapshot every 2
KEY = SigningKey("example.com/alice", bytes(range(32)))
FLIPS = 120  # in the second test; each costs a check of the store and a reading
LIMIT = 20  # seconds for reading a store of 1 MB, after which it counts as hanging
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE)


def make(_, recipe, store):
    for seed, (run, steps) in enumerate(RUNS.items()):
        training.record(recipe, store, steps, run=run, seed=seed, width=40)
        with open_store(store) as opened:
            commit(opened, run, KEY)


def read(run, count):
    """Return all that a reader gets of a run of ``count`` segments: lists and values, or the errors in their place."""
    found = {}

    def note(what, work):
        try:
            found[what] = work()
        except PolstoreError as error:
            found[what] = error
        return found[what]

    note("complete", lambda: run.complete)
    note("size", run.size)
    for step in values(note("snapshots", lambda: tuple(run.snapshots))):
        note(("state", step), lambda: run.state(step).digest())  # noqa: B023 # called at once
    for index in range(count):
        note(("segment", index), lambda: run.segment(index).encode())  # noqa: B023
        note(("steps", index), lambda: run.steps(index).encode())  # noqa: B023
        note(("proof", index), lambda: run.inclusion_proof(index + 1, count + 1))  # noqa: B023
    for size in values(note("signed", lambda: tuple(run.signed_sizes()))):
        note(("root", size), lambda: run.signed_root(size))  # noqa: B023
    return found


def values(found):
    return found if isinstance(found, tuple) else ()


def read_all(store):
    """Return what LMDB gives of each run; the error in its place if a run, or the store, cannot be opened."""
    found = {}
    try:
        with polstore.open(store) as archive:
            found["runs"] = tuple(archive.runs())
            for name in RUNS:
                try:
                    found[name] = read(archive.run(name), RUNS[name] // 2)
                except PolstoreError as error:
                    found[name] = error
    except PolstoreError as error:
        found["runs"] = error
    return found


def differences(found, expected):
    """Return what is not as it should be, as (what, whether it was noticed)."""
    if isinstance(found, PolstoreError):
        return [("all", True)]
    out = []
    for what in {**expected, **found}:
        one, other = found.get(what), expected.get(what)
        if isinstance(one, dict) and isinstance(other, dict):
            out += [((what, inner), noticed) for inner, noticed in differences(one, other)]
        elif one != other:
            out.append((what, one is None or isinstance(one, PolstoreError)))  # None: in a list that was refused
    return out


def check(store):
    """Return what the check says of a store, or the error that refuses it."""
    try:
        with open_store(store, readonly=True) as opened:
            report = check_store(opened, lambda *_: None)
            return [f"{damage.what}: {damage.error}; {damage.cost}" for damage in report.damages]
    except PolstoreError as error:
        return [f"{type(error).__name__}: {error}"]


def serve(pipe, store):
    """Flip the bits that are asked for, one after the other, and send what came of it."""
    environment.LENGTH_WAIT = 0.01
    expected = read_all(store)
    data = store / "data.mdb"
    while (bit := pipe.recv()) is not None:
        with data.open("r+b", buffering=0) as file:
            byte = os.pread(file.fileno(), 1, bit // 8)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 1 << bit % 8]), bit // 8)
            pipe.send(("checked", check(store)))
            pipe.send(("read", differences(read_all(store), expected)))
            os.pwrite(file.fileno(), bytes([byte]), bit // 8)


def look(_, store):
    return check(store)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("flips")
    children.call(make, training.recipe_file(path), path / "st")
    assert not children.call(look, path / "st")
    return path / "st"


class Flipper:
    """Flips bits in copies of a store, in a child that is started anew when it dies."""

    def __init__(self, store, path):
        self._store, self._path = store, path
        self._child = None
        self.deaths = []

    def flip(self, bit):
        """Return what the check said, and what reading gave that is not as it was; None if LMDB did not survive it."""
        if self._child is None:
            shutil.rmtree(self._path, ignore_errors=True)
            shutil.copytree(self._store, self._path)
            self._child = children.Child(serve, self._path)
        self._child.send(bit)
        kind, said = self._child.receive(LIMIT)
        assert kind == "checked"
        try:
            return said, self._child.receive(LIMIT)[1]
        except (children.DiedError, TimeoutError) as error:
            if getattr(error, "signal", None) not in (*CRASHES, None):
                raise
            self.deaths.append((bit, error))
            self.close()
            return said, None

    def close(self):
        if self._child is not None:
            self._child.close()
            self._child = None


@pytest.fixture
def flipper(store, tmp_path):
    made = Flipper(store, tmp_path / "copy")
    yield made
    made.close()


def judge(said, differences, bit):
    """What must hold after one bit was flipped."""
    place = f"bit {bit}, page {bit // 8 // PAGE}, byte {bit // 8 % PAGE}"
    if differences is None or differences:
        assert said, f"{place}: unnoticed by the check: {differences}"
    for what, noticed in differences or ():
        # Values are right or refused. A list can be too short, and so can a count; then the check says so.
        assert noticed or what == "runs" or what[1] in ("size", "snapshots", "signed"), f"{place}: {what} is wrong"


def test_a_flipped_bit_on_every_page(store, flipper):
    random_ = random.Random(5)
    pages = (store / "data.mdb").stat().st_size // PAGE
    assert 36 < pages < 600, pages
    noticed = 0
    for page in range(pages):
        bit = (page * PAGE + random_.randrange(PAGE)) * 8 + random_.randrange(8)
        said, differences = flipper.flip(bit)
        judge(said, differences, bit)
        noticed += bool(said)
    assert noticed > pages // 4


def structural(path, count):
    """Return bits in the headers, pointers and nodes of the pages that LMDB goes by."""
    data = path.read_bytes()
    random_ = random.Random(6)
    bits = [(page * PAGE + byte) * 8 + random_.randrange(8) for page in (0, 1) for byte in range(16 + 136)]
    for page in range(2, len(data) // PAGE):
        kind = int.from_bytes(data[page * PAGE + 10 : page * PAGE + 12], "little")
        if int.from_bytes(data[page * PAGE : page * PAGE + 8], "little") == page and kind in (1, 2, 4):
            bits += [(page * PAGE + byte) * 8 + random_.randrange(8) for byte in range(16 if kind == 4 else 40)]
    return random_.sample(bits, count)


def test_flipped_bits_in_what_lmdb_goes_by(store, flipper):
    for bit in structural(store / "data.mdb", FLIPS):
        judge(*flipper.flip(bit), bit)


def needs(_, store):
    """Return where a blob lies that only some snapshots need, in bytes, and the steps of those."""
    with polstore.open(store) as archive, open_store(store, readonly=True) as opened, survey(opened) as found:
        run = archive.run("a")
        needed = {}
        for step in run.snapshots:
            digest = run.state(step).digest()
            for stored in run.stored_snapshots(digest):
                for blob in stored.blobs:
                    needed.setdefault(blob, set()).add(step)
        blob, steps = next((blob, steps) for blob, steps in needed.items() if steps == {6})
        return found._lookup._places[b"b" + blob].offset, steps


def test_a_flipped_blob_is_named_and_the_rest_is_read(store, flipper):
    place, steps = children.call(needs, store)
    said, differences = flipper.flip(place * 8 + 1)
    assert sorted(differences) == [(("a", ("state", step)), True) for step in sorted(steps)]
    assert said[0].startswith("blob ")
    assert [line.partition(":")[0] for line in said[1:]] == ["snapshot at step 6 of run a"]
    assert said[1].endswith("segments 2 and 3 of run a")
