"""The store: content addressing, growth, locks, and every fault that it claims to catch."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import lmdb
import pytest

from polstore.errors import (
    CallerError,
    DamagedError,
    ExistsError,
    FullError,
    LockedError,
    MissingError,
    UsageError,
)
from polstore.storage import environment, keys, opening
from polstore.storage import store as store_module
from polstore.storage.store import open_store
from polstore.wire import merkle

REPOSITORY = Path(__file__).parents[2]
DIGEST = bytes(range(32))


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store", create=True) as opened:
        yield opened


@contextmanager
def raw(path):
    """The LMDB data itself, to break it; the store must be closed."""
    with lmdb.open(str(path), map_size=0, max_readers=1024) as opened, opened.begin(write=True) as transaction:
        yield transaction


def in_child(code, *arguments):
    """Run Python code in another process; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def put_blobs(count, size=100_000):
    blobs = [bytes([number]) * size for number in range(count)]
    return lambda writer: [writer.put_blob(blob) for blob in blobs]


def test_the_names_of_new_directories_survive_a_power_failure(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(store_module, "sync_directory", synced.append)
    with open_store(tmp_path / "a" / "b", create=True):
        assert set(synced) == {tmp_path, tmp_path / "a"}
    synced.clear()
    with open_store(tmp_path / "a" / "b", create=True):
        assert not synced


def test_blobs_are_addressed_by_their_content(store):
    blobs = [b"", b"a", os.urandom(3_000_000)]
    digests = store.write(lambda writer: [writer.put_blob(blob) for blob in blobs])
    assert digests == [hashlib.sha256(blob).digest() for blob in blobs]
    with store.read() as reader:
        assert [reader.get_blob(digest) for digest in digests] == blobs
        assert [reader.blob_size(digest) for digest in digests] == [0, 1, 3_000_000]
        assert list(reader.blob_digests()) == sorted(digests)
        assert reader.has_blob(digests[0])
        assert not reader.has_blob(DIGEST)
        for method in (reader.get_blob, reader.blob_size):
            with pytest.raises(MissingError, match=DIGEST.hex()):
                method(DIGEST)
            with pytest.raises(UsageError):
                method(b"short")


def test_a_blob_is_stored_once(store):
    first, second = store.write(lambda writer: (writer.put_blob(b"same"), writer.put_blob(b"same")))
    assert store.write(lambda writer: writer.put_blob(b"same")) == first == second
    with store.read() as reader:
        assert len(list(reader.blob_digests())) == 1


@pytest.mark.parametrize("value", [b"othername", b"", b"samE"])
def test_a_damaged_blob_is_named_when_read_and_healed_when_put_again(tmp_path, value):
    with open_store(tmp_path / "s", create=True) as store:
        digest = store.write(lambda writer: writer.put_blob(b"same"))
    with raw(tmp_path / "s") as transaction:
        transaction.put(b"b" + digest, value)
    with open_store(tmp_path / "s") as store:
        with store.read() as reader, pytest.raises(DamagedError, match=digest.hex()):
            reader.get_blob(digest)
        store.write(lambda writer: writer.put_blob(b"same"))
        with store.read() as reader:
            assert reader.get_blob(digest) == b"same"


def test_runs_leaves_snapshots_and_roots(store):
    leaves = [os.urandom(length % 300) for length in range(70)]

    def work(writer):
        writer.put_run("a", b"metadata")
        writer.put_run("a.b", b"first")
        writer.put_run("a.b", b"other")
        for number, leaf in enumerate(leaves):
            assert writer.append_leaf("a", leaf) == number
            assert writer.append_leaf("a.b", leaf[::-1]) == number
        for step in (300, 5, 256, 0):
            writer.put_snapshot("a", step, DIGEST)
        writer.put_stored_snapshot(DIGEST, b"record")
        writer.put_stored_snapshot(DIGEST, b"record, recompressed")
        for size in (70, 1, 0):
            writer.put_root("a", size, b"root %d" % size)

    store.write(work)
    hashes = [merkle.leaf_hash(leaf) for leaf in leaves]
    with store.read() as reader:
        assert reader.runs() == ["a", "a.b"]
        assert [reader.run(name) for name in reader.runs()] == [b"metadata", b"other"]
        assert reader.leaf_count("a") == 70
        assert list(reader.leaves("a")) == leaves
        assert list(reader.leaves("a.b")) == [leaf[::-1] for leaf in leaves]
        for size in range(71):
            assert reader.tree_root("a", size) == merkle.root(hashes[:size])
            assert reader.hashed_leaves("a", size) == (leaves[:size], hashes[:size])
        proof = merkle.inclusion_proof(33, 70, reader.tree("a"))
        merkle.verify_inclusion(hashes[33], 33, 70, proof, reader.tree_root("a", 70))
        assert reader.snapshot_steps("a") == [0, 5, 256, 300]
        assert reader.snapshot_at("a", 256) == DIGEST
        assert reader.snapshot_steps("a.b") == []
        assert reader.has_snapshot(DIGEST)
        assert not reader.has_snapshot(bytes(32))
        assert reader.stored_snapshot(DIGEST) == b"record, recompressed"
        assert reader.roots("a") == [0, 1, 70]
        assert reader.root("a", 70) == b"root 70"


def test_what_is_not_there_is_missing(store):
    store.write(lambda writer: writer.put_run("r", b""))
    with store.read() as reader:
        for lookup in (
            lambda: reader.run("x"),
            lambda: reader.leaf_count("x"),
            lambda: list(reader.leaves("x")),
            lambda: reader.leaf("r", 0),
            lambda: reader.node("r", 0, 0),
            lambda: reader.tree_root("r", 1),
            lambda: reader.hashed_leaves("r", 1),
            lambda: reader.hashed_leaves("a", 2**48),
            lambda: reader.newest_snapshot("x"),
            lambda: reader.snapshot_steps("x"),
            lambda: reader.snapshot_at("r", 0),
            lambda: reader.stored_snapshot(DIGEST),
            lambda: reader.roots("x"),
            lambda: reader.root("r", 0),
        ):
            with pytest.raises(MissingError, match=r"no .* in store"):
                lookup()
        assert reader.leaf_count("r") == 0
        assert reader.tree_root("r", 0) == merkle.EMPTY_ROOT
    for put in (
        lambda writer: writer.append_leaf("x", b""),
        lambda writer: writer.put_snapshot("x", 0, DIGEST),
        lambda writer: writer.put_root("x", 0, b""),
    ):
        with pytest.raises(MissingError, match="no run x"):
            store.write(put)


def test_nothing_committed_is_overwritten(store):
    def work(writer):
        writer.put_run("r", b"")
        for _ in range(2):  # the same again is no conflict
            writer.put_snapshot("r", 1, DIGEST)
            writer.put_root("r", 0, b"text")

    store.write(work)
    with pytest.raises(ExistsError, match="step 1 of run r"):
        store.write(lambda writer: writer.put_snapshot("r", 1, bytes(32)))
    with pytest.raises(ExistsError, match="over 0 leaves of run r"):
        store.write(lambda writer: writer.put_root("r", 0, b"other"))
    with pytest.raises(UsageError, match="at most 0 leaves"):
        store.write(lambda writer: writer.put_root("r", 1, b"text"))


def test_a_leaf_has_a_cap(store):
    store.write(lambda writer: (writer.put_run("r", b""), writer.append_leaf("r", bytes(65535))))
    with pytest.raises(UsageError, match="65535"):
        store.write(lambda writer: writer.append_leaf("r", bytes(65536)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (keys.number_key(keys.LEAF, "r", 1), b"forged", "leaf 1 of run r"),
        (keys.node_key("r", 0, 1), bytes(32), "leaf 1 of run r"),
        (keys.node_key("r", 0, 1), b"short", "tree node 1 at level 0"),
        (keys.node_key("r", 0, 1), None, "tree node 1 at level 0"),
    ],
)
def test_a_damaged_leaf_or_node_is_caught(tmp_path, key, value, message):
    with open_store(tmp_path / "s", create=True) as store:
        store.write(lambda w: (w.put_run("r", b""), [w.append_leaf("r", b"%d" % number) for number in range(3)]))
    with raw(tmp_path / "s") as transaction:
        assert transaction.delete(key) if value is None else transaction.put(key, value)
    with open_store(tmp_path / "s") as store, store.read() as reader:
        assert reader.leaf("r", 0) == b"0"
        for read in (lambda: list(reader.leaves("r")), lambda: reader.hashed_leaves("r", 3)):
            with pytest.raises(DamagedError, match=message):
                read()
        assert reader.hashed_leaves("r", 1) == ([b"0"], [merkle.leaf_hash(b"0")])


@pytest.mark.parametrize(
    ("level", "index", "leaf"), [(0, 0, 1), (0, 1, 0), (1, 0, 2), (1, 1, 0), (1, 1, 4), (2, 0, 4), (0, 4, 0)]
)
def test_a_proof_is_never_made_of_a_damaged_node(tmp_path, level, index, leaf):
    with open_store(tmp_path / "s", create=True) as store:
        store.write(lambda w: (w.put_run("r", b""), [w.append_leaf("r", b"%d" % number) for number in range(5)]))
        with store.read() as reader:
            assert len(merkle.inclusion_proof(leaf, 5, reader.tree("r"))) in (1, 3)
    with raw(tmp_path / "s") as transaction:
        assert transaction.put(keys.node_key("r", level, index), bytes(32))
    with open_store(tmp_path / "s") as store, store.read() as reader, pytest.raises(DamagedError, match="is damaged"):
        merkle.inclusion_proof(leaf, 5, reader.tree("r"))


def test_a_lost_last_leaf_is_caught_when_the_next_is_appended(tmp_path):
    with open_store(tmp_path / "s", create=True) as store:
        store.write(lambda w: (w.put_run("r", b""), w.append_leaf("r", b"0")))
    with raw(tmp_path / "s") as transaction:
        transaction.delete(keys.number_key(keys.LEAF, "r", 0))
    with open_store(tmp_path / "s") as store, pytest.raises(DamagedError, match="beyond its last leaf"):
        store.write(lambda writer: writer.append_leaf("r", b"other"))


@pytest.mark.parametrize("name", ["", ".a", "-a", "a/b", "a b", "a\n", "a\0", "é", "a" * 65, None])
def test_names_that_no_run_can_have(store, name):
    with pytest.raises(UsageError, match="not a name for a run"):
        store.write(lambda writer: writer.put_run(name, b""))


@pytest.mark.parametrize("number", [-1, 2**48 + 1, 1.0, True])
def test_numbers_that_no_run_can_have(store, number):
    store.write(lambda writer: writer.put_run("r", b""))
    with pytest.raises(UsageError, match="out of bounds"):
        store.write(lambda writer: writer.put_snapshot("r", number, DIGEST))


def test_longest_keys_fit_into_lmdb():
    assert len(keys.node_key("a" * 64, 48, 2**48)) < 511


def test_an_exception_in_the_work_undoes_all_of_it(store):
    def work(writer):
        writer.put_run("r", b"")
        writer.put_blob(b"blob")
        assert writer.runs() == ["r"]
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        store.write(work)
    with store.read() as reader:
        assert reader.runs() == []
        assert list(reader.blob_digests()) == []
    store.write(lambda writer: writer.put_run("r", b""))


def test_views_end_with_their_block(store):
    digests = store.write(put_blobs(3, 10))
    with store.read() as reader:
        iterator = reader.blob_digests()
        next(iterator)
    with pytest.raises(UsageError, match="has ended"):
        reader.get_blob(digests[0])
    with pytest.raises(UsageError, match="has ended"):
        next(iterator)
    kept = []
    store.write(kept.append)
    with pytest.raises(UsageError, match="has ended"):
        kept[0].put_blob(b"late")


def test_a_closed_store_is_not_used_but_its_open_view_is(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    digest = store.write(lambda writer: writer.put_blob(b"blob"))
    with store.read() as reader:
        store.close()
        store.close()
        assert reader.get_blob(digest) == b"blob"
        with open_store(tmp_path / "s") as again, again.read() as other:
            assert other.get_blob(digest) == b"blob"
    for use in (lambda: store.write(len), lambda: store.read().__enter__(), lambda: store.exclusive().__enter__()):
        with pytest.raises(UsageError, match="is closed"):
            use()
    with raw(tmp_path / "s"):  # nothing of this process has it open any more
        pass


# Growth


def test_the_map_grows_and_the_work_runs_again(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "INITIAL_MAP", 64 << 10)
    calls = []
    with open_store(tmp_path / "s", create=True) as store:

        def work(writer):
            calls.append(None)
            writer.put_run("r", b"%d" % len(calls))
            return [writer.put_blob(os.urandom(200_000)) for _ in range(20)]

        digests = store.write(work)
        assert len(calls) > 1
        with store.read() as reader:
            assert reader.run("r") == b"%d" % len(calls)
            assert list(reader.blob_digests()) == sorted(digests)  # nothing is left of the earlier tries
            for digest in digests:
                reader.get_blob(digest)


def test_a_full_map_counts_even_when_the_work_swallows_the_error(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "INITIAL_MAP", 64 << 10)
    with open_store(tmp_path / "s", create=True) as store:

        def work(writer):
            try:
                return writer.put_blob(bytes(1 << 20))
            except CallerError:
                return None

        digest = store.write(work)
        with store.read() as reader:
            assert reader.get_blob(digest) == bytes(1 << 20)


def test_growing_waits_for_the_readers_of_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "INITIAL_MAP", 64 << 10)
    with open_store(tmp_path / "s", create=True) as store:
        digest = store.write(lambda writer: writer.put_blob(b"old"))
        opened, finish = threading.Event(), threading.Event()
        seen = []

        def reading():
            with store.read() as reader:
                opened.set()
                finish.wait(30)
                with store.read() as nested:  # must not wait for the growth that waits for this thread
                    seen.append(nested.get_blob(digest))
                seen.append(len(list(reader.blob_digests())))

        thread = threading.Thread(target=reading)
        writer = threading.Thread(target=lambda: store.write(put_blobs(20)))
        thread.start()
        opened.wait(30)
        writer.start()
        wait_until(lambda: store._environment._resizing)
        assert writer.is_alive()
        finish.set()
        thread.join(30)
        writer.join(30)
        assert seen == [b"old", 1]
        with store.read() as reader:
            assert len(list(reader.blob_digests())) == 21


def test_growing_gives_up_on_a_view_that_stays_open(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "INITIAL_MAP", 64 << 10)
    monkeypatch.setattr(environment, "RESIZE_WAIT", 0.2)
    with open_store(tmp_path / "s", create=True) as store:
        store.write(lambda writer: writer.put_run("r", b""))
        with store.read() as reader:
            failures = in_thread(lambda: store.write(put_blobs(20)))
            assert reader.runs() == ["r"]
        assert isinstance(failures[0], LockedError)
        assert "1 of its views" in str(failures[0])
        with store.read() as reader:
            assert list(reader.blob_digests()) == []
        store.write(put_blobs(20))


def test_a_write_inside_a_view_of_the_same_thread_is_refused(store):
    with store.read(), pytest.raises(UsageError, match="inside an open view"):
        store.write(len)
    with pytest.raises(UsageError, match="inside an open view"):
        store.write(lambda writer: store.write(len))
    assert store.write(lambda writer: 1) == 1


GROW_ELSEWHERE = """
import sys, os
from polstore.storage.store import open_store
with open_store(sys.argv[1]) as store:
    print(store.write(lambda writer: writer.put_blob(bytes(2_000_000))).hex())
"""


def test_a_map_grown_by_another_process_is_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "INITIAL_MAP", 256 << 10)
    with open_store(tmp_path / "s", create=True) as store:
        digest = bytes.fromhex(in_child(GROW_ELSEWHERE, store.path))
        with store.read() as reader:
            assert len(reader.get_blob(digest)) == 2_000_000
    with open_store(tmp_path / "t", create=True) as store:
        digest = bytes.fromhex(in_child(GROW_ELSEWHERE, store.path))
        store.write(lambda writer: writer.put_blob(b"after"))
        with store.read() as reader:
            assert len(list(reader.blob_digests())) == 2


def test_a_map_grown_elsewhere_while_this_thread_has_a_view(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "INITIAL_MAP", 256 << 10)
    with open_store(tmp_path / "s", create=True) as store:
        with store.read() as reader:
            in_child(GROW_ELSEWHERE, store.path)
            assert list(reader.blob_digests()) == []
            with pytest.raises(UsageError, match="another process grew it"), store.read():
                pass
        with store.read() as reader:
            assert len(list(reader.blob_digests())) == 1


def test_the_data_file_holds_every_page_that_counts_as_used(store):
    """Pages freed in the transaction that took them are never written; the next opening must not call that damage."""
    import random

    random_ = random.Random(3)
    opened = store._environment
    for _ in range(40):

        def work(handle):
            for _ in range(random_.randrange(1, 1500)):
                key = b"x%d" % random_.randrange(2000)
                if random_.random() < 0.6:
                    handle._transaction.delete(key)
                else:
                    handle.put(key, bytes(random_.choice([10, 300, 1500, 300_000])), overwrite=True)

        if random_.random() < 0.3:
            opened.transact(work)
        else:
            opened.transact(lambda handle: (work(handle), handle.put(b"x1", bytes(10), overwrite=True)))
        assert opened._missing_length() <= 0


# Readers, locks, forks


def test_readers_see_the_old_view_while_a_write_is_under_way(store):
    store.write(lambda writer: writer.put_run("r", b"old"))
    inside, finish = threading.Event(), threading.Event()

    def work(writer):
        writer.put_run("r", b"new")
        inside.set()
        finish.wait(30)

    thread = threading.Thread(target=store.write, args=(work,))
    thread.start()
    inside.wait(30)
    with store.read() as reader:
        assert reader.run("r") == b"old"
        finish.set()
        thread.join(30)
        assert reader.run("r") == b"old"
    with store.read() as reader:
        assert reader.run("r") == b"new"


def test_writers_of_one_process_take_turns(store):
    store.write(lambda writer: writer.put_run("r", b""))
    threads = [
        threading.Thread(target=lambda: [store.write(lambda w: w.append_leaf("r", b"x")) for _ in range(10)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with store.read() as reader:
        assert reader.leaf_count("r") == 40


def test_one_process_may_open_a_store_often(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "s")
    with open_store(tmp_path / "s", create=True) as first, open_store(tmp_path / "link", readonly=True) as second:
        digest = first.write(lambda writer: writer.put_blob(b"x"))
        with second.read() as reader:
            assert reader.get_blob(digest) == b"x"
        for use in (lambda: second.write(len), lambda: second.exclusive().__enter__()):
            with pytest.raises(UsageError, match="reading only"):
                use()
    with open_store(tmp_path / "s", readonly=True), open_store(tmp_path / "s") as writable:
        writable.write(lambda writer: writer.put_blob(b"y"))


HOLD = """
import sys, time
from polstore.storage.store import open_store
with open_store(sys.argv[1]) as store, store.exclusive():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_recorder_is_told_who_holds_the_lock(tmp_path):
    with open_store(tmp_path / "s", create=True) as store:
        with store.exclusive():
            with open_store(tmp_path / "s") as other, pytest.raises(LockedError, match=f"pid {os.getpid()} on "):
                other.exclusive().__enter__()
            with pytest.raises(LockedError, match=f"pid {os.getpid()} on "):
                store.exclusive().__enter__()
            store.write(lambda writer: writer.put_run("r", b""))
        with store.exclusive():
            pass
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(store.path)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdout.readline() == b"held\n"
            with pytest.raises(LockedError, match=f"pid {child.pid} on "):
                store.exclusive().__enter__()
            child.kill()
        with store.exclusive():
            pass


FORK = """
import os, sys, gc, time
from polstore.errors import UsageError, LockedError
from polstore.storage.store import open_store

store = open_store(sys.argv[1])

def refused(use):
    try:
        use()
    except UsageError as error:
        assert "before a fork" in str(error), error
        return
    raise AssertionError(use)

def forked(leave):
    pid = os.fork()
    if not pid:
        try:
            leave()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

reading, recording = store.read(), store.exclusive()
reader = reading.__enter__()
recording.__enter__()

def child():
    for use in (reader.runs, lambda: store.write(len), store.read().__enter__, lambda: open_store(sys.argv[1])):
        refused(use)
    reading.__exit__(None, None, None)
    recording.__exit__(None, None, None)
    store.close()
    gc.collect()

slots = store._environment._lmdb.readers()
assert str(os.getpid()) in slots
forked(child)
assert reader.runs() == ["r"]
assert store._environment._lmdb.readers() == slots  # the child has not freed our view's slot
try:
    with store.exclusive():
        raise AssertionError("the child has dropped the lock")
except LockedError:
    pass
reading.__exit__(None, None, None)

def inside(writer):
    writer.put_run("s", b"")
    pid = os.fork()  # the child leaves the transaction to its parent
    if not pid:
        refused(writer.runs)
        raise KeyError
    assert os.waitpid(pid, 0)[1] == 0

try:
    store.write(inside)
except KeyError:
    os._exit(0)
with store.read() as reader:
    assert reader.runs() == ["r", "s"]
recording.__exit__(None, None, None)
with store.exclusive():
    pass
store.close()
"""


def test_a_forked_child_is_refused_and_harms_nothing(tmp_path):
    with open_store(tmp_path / "s", create=True) as store:
        store.write(lambda writer: writer.put_run("r", b""))
    assert in_child(FORK, tmp_path / "s") == ""


ORPHAN = """
import os, sys
from polstore.storage.store import open_store
store = open_store(sys.argv[1])
with store.exclusive():
    if os.fork():
        os._exit(0)  # dies without unlocking, as by SIGKILL
os.close(1)  # a data loader's worker that lives on
os.close(2)
sys.stdin.read()
"""


def test_a_dead_recorder_s_workers_do_not_hold_its_lock(tmp_path):
    with (
        open_store(tmp_path / "s", create=True) as store,
        subprocess.Popen(
            [sys.executable, "-c", ORPHAN, str(store.path)], cwd=REPOSITORY, stdin=subprocess.PIPE
        ) as parent,
    ):
        parent.wait(30)
        wait_until(lambda: can_record(store))


# Opening


def test_opening_what_is_no_store(tmp_path):
    with pytest.raises(MissingError):
        open_store(tmp_path / "none")
    with pytest.raises(MissingError):
        open_store(tmp_path)
    with pytest.raises(UsageError):
        open_store(tmp_path / "new", create=True, readonly=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExistsError, match="'file'"):
        open_store(tmp_path, create=True)
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CallerError):
            open_store(target, create=True)
        with pytest.raises(MissingError):
            open_store(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_foreign_lmdb_data_is_left_alone(tmp_path):
    with lmdb.open(str(tmp_path / "f")) as foreign, foreign.begin(write=True) as transaction:
        transaction.put(b"mine", b"1")
    with pytest.raises(ExistsError, match="not a store"):
        open_store(tmp_path / "f", create=True)
    assert not (tmp_path / "f" / "VERSION").exists()


def test_a_creation_cut_short_is_taken_up_again(tmp_path):
    open_store(tmp_path / "s", create=True).close()
    (tmp_path / "s" / "VERSION").rename(tmp_path / "s" / ".VERSION.0.tmp")
    with pytest.raises(MissingError):
        open_store(tmp_path / "s")
    open_store(tmp_path / "s", create=True).close()
    (tmp_path / "s" / "VERSION").unlink()
    (tmp_path / "s" / "data.mdb").write_bytes(b"")
    with open_store(tmp_path / "s", create=True) as store:
        store.write(put_blobs(20))


@pytest.mark.parametrize("text", [b"polstore store v2\n", b"", b"polstore store v1", b"\xff"])
def test_another_version_is_refused(tmp_path, text):
    open_store(tmp_path / "s", create=True).close()
    (tmp_path / "s" / "VERSION").write_bytes(text)
    with pytest.raises(CallerError, match="unknown version") as failure:
        open_store(tmp_path / "s")
    assert failure.value.expected == "polstore store v1\n"
    assert failure.value.got == text.decode("utf-8", "replace")


@pytest.mark.parametrize("create", [False, True])
def test_damaged_files_are_caught_when_opened(tmp_path, create, monkeypatch):
    monkeypatch.setattr(environment, "LENGTH_WAIT", 0.1)
    with open_store(tmp_path / "s", create=True) as store:
        store.write(put_blobs(3))
    data = tmp_path / "s" / "data.mdb"
    good = data.read_bytes()
    for bad, message in (
        (good[: len(good) // 2], "cut short"),  # mapped beyond its end it would be SIGBUS
        (good[:-1], "cut short by 1 bytes"),
        (b"\1" * len(good), "is damaged"),
        (b"", "has lost its data.mdb"),
    ):
        data.write_bytes(bad)
        with pytest.raises(DamagedError, match=message):
            open_store(tmp_path / "s", create=create)
    data.unlink()
    with pytest.raises(DamagedError, match=r"has lost its data\.mdb"):
        open_store(tmp_path / "s", create=create)
    data.write_bytes(good)
    with open_store(tmp_path / "s", create=create) as store, store.read() as reader:
        assert len([reader.get_blob(digest) for digest in reader.blob_digests()]) == 3


@contextmanager
def mounted(path, *options):
    """A small tmpfs, for the tests that fill it or make it read-only."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_device_changes_nothing(tmp_path):
    with mounted(tmp_path / "m") as small, open_store(small / "s", create=True) as store:
        digest = store.write(lambda w: (w.put_run("r", b""), w.append_leaf("r", b"0"), w.put_blob(bytes(300_000)))[2])
        for _ in range(2):
            with pytest.raises(FullError, match="no room left"):
                store.write(lambda writer: (writer.append_leaf("r", b"1"), writer.put_blob(os.urandom(5_000_000))))
        with store.read() as reader:
            assert reader.leaf_count("r") == 1
            assert list(reader.blob_digests()) == [digest]
            assert len(reader.get_blob(digest)) == 300_000
        store.write(lambda writer: writer.append_leaf("r", b"1"))
        fill(small / "filling")
        with pytest.raises(FullError):
            open_store(small / "t", create=True)
        store.close()
        with open_store(small / "s") as store:
            with store.read() as reader:
                assert list(reader.leaves("r")) == [b"0", b"1"]
            with pytest.raises(FullError):
                store.write(lambda writer: writer.put_blob(os.urandom(5_000_000)))


def test_a_file_size_limit_is_no_room_either(tmp_path):
    code = """
import resource, sys
from polstore.errors import FullError
from polstore.storage.store import open_store
with open_store(sys.argv[1], create=True) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        store.write(lambda writer: writer.put_blob(bytes(5_000_000)))
    except FullError:
        print(store.write(lambda writer: writer.put_blob(b"x")).hex())
"""
    assert in_child(code, tmp_path / "s").strip() == hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize("lock_file", [True, False])
def test_read_only_media(tmp_path, lock_file):
    with mounted(tmp_path / "m") as small:
        with open_store(small / "s", create=True) as store:
            store.write(lambda writer: writer.put_run("r", b"x"))
        if not lock_file:
            (small / "s" / "lock.mdb").unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        with open_store(small / "s", readonly=True) as store, store.read() as reader:
            assert reader.run("r") == b"x"
        with pytest.raises(CallerError, match="may not be written"):
            open_store(small / "s")
        with pytest.raises(CallerError, match="Read-only file system"):
            open_store(small / "new", create=True)


UNPRIVILEGED = """
import os, sys
sys.path.insert(0, os.getcwd())
from polstore.storage.store import open_store
from polstore.errors import CallerError
os.setgid(65534); os.setuid(65534)
try:
    with open_store(sys.argv[1], readonly=True) as store, store.read() as reader:
        print(reader.runs())
except CallerError as error:
    print(error)
try:
    open_store(sys.argv[1])
except CallerError as error:
    print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody who may not write")
def test_a_user_without_write_permission(tmp_path):
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_mode & 0o007 == 0:  # made by pytest for its user alone
            directory.chmod(0o755)
    with open_store(tmp_path / "s", create=True) as store:
        store.write(lambda writer: writer.put_run("r", b"x"))
    lines = in_child(UNPRIVILEGED, tmp_path / "s").splitlines()
    assert all("ermission denied" in line for line in lines)  # a writer could be at work, and no lock be taken
    for file in (tmp_path / "s").iterdir():
        file.chmod(0o444)
    lines = in_child(UNPRIVILEGED, tmp_path / "s").splitlines()
    assert lines[0] == "['r']"
    assert "may not be written" in lines[1]


def can_record(store):
    with suppress(LockedError), store.exclusive():
        return True
    return False


def fill(path):
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def in_thread(work):
    """Run ``work`` in a thread and return what it raised."""
    failures = []

    def run():
        try:
            work()
        except CallerError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    return failures


def wait_until(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def test_without_sync_nothing_is_lost_when_the_program_dies(tmp_path):
    path = tmp_path / "store"
    program = f"""
import os
from polstore.storage.store import open_store
store = open_store({str(path)!r}, create=True, sync=False)
print(store.write(lambda transaction: transaction.put_blob(b"x" * 100000)).hex(), flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -9
    with open_store(path) as store, store.read() as view:
        assert view.get_blob(bytes.fromhex(done.stdout.strip())) == b"x" * 100000


def test_a_store_that_is_open_without_sync_is_not_written_to_by_who_counts_on_it(tmp_path):
    path = tmp_path / "store"
    with open_store(path, create=True, sync=False):
        with pytest.raises(UsageError, match="without sync"):
            open_store(path)
        with open_store(path, readonly=True) as reader, reader.read() as view:
            assert view.runs() == []
    with open_store(path), open_store(path, sync=False) as careful:  # the first one decides, to the safe side
        careful.write(lambda transaction: transaction.put_blob(b"y"))
