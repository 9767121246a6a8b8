"""Publishing a run: every file it needs, once, its signed root last, and nothing of another run's overwritten."""

import hashlib
from dataclasses import replace

import pytest

from polstore.archive.repack import repack
from polstore.codec.frames import StoredSnapshot, decode
from polstore.errors import DamagedError, ExistsError, MissingError
from polstore.prover import commit
from polstore.publish import publish
from polstore.reader import Archive
from polstore.static_files import StaticFiles
from polstore.storage.store import open_store
from polstore.wire import merkle
from polstore.wire.archive_files import blob_name, decode_salts, decode_size, snapshot_name
from polstore.wire.checkpoint import open_root
from polstore.wire.keys import SigningKey
from polstore.wire.manifest import Manifest
from polstore.wire.randomness import sample_salt
from polstore.wire.segment import SegmentRecord
from polstore.wire.steps import Steps
from polstore.wire.tiles import decode_entries, decode_hashes, node_from_tiles, tile_of

KEY = SigningKey("example.com/alice", bytes(range(32)))
SILENT = lambda *_: None  # noqa: E731


@pytest.fixture
def store(tmp_path, make_run):
    with open_store(tmp_path / "st", create=True) as opened:
        make_run(opened, "a")
        commit(opened, "a", KEY)
        yield opened


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def published(store, out, *runs):
    return publish(Archive(store), out, runs, SILENT)


def content(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def check(out, run="a"):
    """Follow a run's signed root to every file that it needs, as a reader does; return its size and those files."""
    folder, used = out / "run" / run, {f"run/{run}/checkpoint"}

    def read(name):
        used.add(name)
        return (out / name).read_bytes()

    head = open_root((folder / "checkpoint").read_bytes(), KEY.verifier_keys()).checkpoint
    leaves = []
    for start in range(0, head.size, 256):
        tile = tile_of(-1, start // 256, head.size)
        leaves += decode_entries(tile, read(f"run/{run}/{tile.path()}"))
    hashes = [merkle.leaf_hash(leaf) for leaf in leaves]
    assert merkle.root(hashes) == head.root
    own = node_from_tiles(head.size, lambda tile: decode_hashes(tile, read(f"run/{run}/{tile.path()}")))
    assert merkle.root_from_nodes(head.size, own) == head.root
    manifest = Manifest.parse(leaves[0])
    data = node_from_tiles(
        manifest.dataset.size, lambda tile: decode_hashes(tile, read(f"run/{run}/dataset/{tile.path()}"))
    )
    assert merkle.root_from_nodes(manifest.dataset.size, data) == manifest.dataset.root

    def blob(digest):
        found = read(blob_name(digest))
        assert hashlib.sha256(found).digest() == digest
        return found

    def snapshot(digest):
        stored = StoredSnapshot.parse(read(snapshot_name(digest)))
        base = None if stored.base is None else snapshot(stored.base)
        decoded = decode(stored, base, blob)
        assert decoded.digest() == digest
        return decoded

    blob(manifest.optimizer.hyperparameters)
    snapshot(manifest.initial.state)
    for leaf in leaves[1:]:
        record = SegmentRecord.parse(leaf)
        snapshot(record.end_state)
        salts = decode_salts(read(f"run/{run}/salts/{record.index}"))
        assert {index for index, _ in salts} == Steps.parse(blob(record.steps)).samples()
    return head.size, used


def test_an_archive_holds_what_its_roots_need_and_no_more(store, out, make_run):
    make_run(store, "b", seed=2)
    commit(store, "b", KEY)
    found = published(store, out, "a", "b")
    assert [(each.run, each.segments, each.added) for each in found] == [("a", 6, 6), ("b", 6, 6)]
    used = set()
    for run in ("a", "b"):
        size, names = check(out, run)
        assert size == 7
        used |= names | {f"run/{run}/size"}
    files = content(out)
    assert used == set(files)
    assert sum(each.files for each in found) == len(files)
    assert sum(each.bytes for each in found) == sum(map(len, files.values()))
    for each in found:
        assert decode_size(files[f"run/{each.run}/size"]) == each.size
    only_a = [len(data) for name, data in files.items() if name in check(out)[1]]
    assert found[0].size == sum(only_a)


def test_the_salts_are_those_of_the_samples_used(store, out):
    published(store, out, "a")
    row = Archive(store).run("a").row
    for segment in range(6):
        salts = decode_salts((out / f"run/a/salts/{segment}").read_bytes())
        assert salts == ((segment, sample_salt(row.salt, segment)),)
    files = content(out)
    assert not any(row.salt in data for data in files.values())
    unused = sample_salt(row.salt, 7)  # six segments use samples 0 to 5
    assert not any(unused in data for data in files.values())


def test_publishing_again_writes_only_what_is_new(store, out, make_run, extend_run):
    writer = make_run(store, "grows", count=3, complete=False)
    commit(store, "grows", KEY)
    (first,) = published(store, out, "grows")
    before = content(out)
    (same,) = published(store, out, "grows")
    assert (same.files, same.bytes, same.added, same.size) == (0, 0, 0, first.size)
    extend_run(writer, 3, 5)
    (unsigned,) = published(store, out, "grows")
    assert (unsigned.files, unsigned.segments) == (0, 3)
    commit(store, "grows", KEY)
    (second,) = published(store, out, "grows")
    after = content(out)
    assert (second.segments, second.added) == (5, 2)
    replaced = {name for name in before if before[name] != after[name]}
    assert replaced == {"run/grows/checkpoint", "run/grows/size"}
    assert second.files == len(after) - len(before) + len(replaced)
    assert check(out, "grows")[0] == 6


def test_runs_share_snapshots_and_blobs(store, out, make_run):
    make_run(store, "b")  # the same seed: the same states
    commit(store, "b", KEY)
    one, two = published(store, out, "a", "b")
    assert two.files < one.files
    assert two.size == one.size  # as its own reader sees it
    check(out, "b")


def test_every_signed_size_is_served(store, out, make_run, extend_run):
    writer = make_run(store, "grows", count=2, complete=False)
    commit(store, "grows", KEY)
    extend_run(writer, 2, 5)
    commit(store, "grows", KEY)
    published(store, out, "grows")
    assert (out / "run/grows/tile/entries/000.p/3").exists()
    assert (out / "run/grows/tile/0/000.p/6").exists()


def test_being_stopped_anywhere_leaves_valid_archives(store, tmp_path, make_run, extend_run, monkeypatch):
    writer = make_run(store, "grows", count=1, complete=False)
    commit(store, "grows", KEY)
    write = StaticFiles._write
    names = []
    monkeypatch.setattr(StaticFiles, "_write", lambda files, name, data: (names.append(name), write(files, name, data)))
    published(store, tmp_path / "counted", "grows")
    count = len(names)
    extend_run(writer, 1, 3)
    commit(store, "grows", KEY)
    names.clear()
    published(store, tmp_path / "counted", "grows")
    assert names[-2:] == ["checkpoint", "size"]
    monkeypatch.setattr(StaticFiles, "_write", write)

    def stopped_after(most, out):
        left = [most]

        def stop(self, name, data):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write(self, name, data)

        with monkeypatch.context() as patch:
            patch.setattr(StaticFiles, "_write", stop)
            with pytest.raises(KeyboardInterrupt):
                published(store, out, "grows")

    assert len(names) > 6
    for most in range(0, count, 5):  # nothing was published before
        out = tmp_path / f"new {most}"
        stopped_after(most, out)
        assert not (out / "run/grows/checkpoint").exists()
        published(store, out, "grows")
        assert check(out, "grows")[0] == 4
    for most in range(0, len(names), 2):  # the first segment was
        out = tmp_path / f"grown {most}"
        with store.read() as view:
            old, new = (view.root("grows", size) for size in (2, 4))
        with monkeypatch.context() as patch:
            patch.setattr("polstore.reader.Run.signed_sizes", lambda self: [2])
            published(store, out, "grows")
        assert (out / "run/grows/checkpoint").read_bytes() == old
        stopped_after(most, out)
        size, _ = check(out, "grows")
        assert size == (4 if most == len(names) - 1 else 2)
        published(store, out, "grows")
        assert (out / "run/grows/checkpoint").read_bytes() == new
        assert check(out, "grows")[0] == 4


def test_a_repacked_store_leaves_published_snapshots_alone(store, out, extend_run):
    published(store, out, "a")
    before = content(out)
    done = repack(store, None, SILENT, level=19, keyframe_every=2)
    assert done.rewritten > 0
    (again,) = published(store, out, "a")
    assert again.files == 0
    assert content(out) == before
    published(store, out.parent / "anew", "a")
    assert content(out.parent / "anew") != before
    check(out.parent / "anew")


def test_another_run_of_that_name_is_refused_before_anything_is_written(store, out, tmp_path, make_run):
    published(store, out, "a")
    before = content(out)
    with open_store(tmp_path / "other", create=True) as other:
        make_run(other, "a", seed=5)
        commit(other, "a", KEY)
        with pytest.raises(ExistsError, match="are others"):
            published(other, out, "a")
    with open_store(tmp_path / "another", create=True) as other:
        make_run(other, "a", count=2)
        commit(other, "a", SigningKey("example.com/eve", bytes(32)))
        with pytest.raises(ExistsError, match="another log"):
            published(other, out, "a")
    with open_store(tmp_path / "older", create=True) as other:
        make_run(other, "a", count=2)
        commit(other, "a", KEY)
        with pytest.raises(ExistsError, match="ahead"):
            published(other, out, "a")
    assert content(out) == before


def test_a_run_without_a_signed_root_is_not_published(store, out, make_run):
    make_run(store, "unsigned")
    with pytest.raises(MissingError, match="no signed root yet"):
        published(store, out, "a", "unsigned")
    assert not out.exists()
    with pytest.raises(MissingError, match="no run"):
        published(store, out, "nobody")


@pytest.mark.parametrize("fault", ["salt", "root", "snapshot", "frame"])
def test_damage_is_not_published(store, out, fault, monkeypatch):
    match fault:
        case "salt":  # of the dataset, in the row
            row = Archive(store).run("a").row
            row = replace(row, sample_hashes=Archive(store).run("a").manifest.optimizer.hyperparameters)
            store.write(lambda transaction: transaction.put_run("a", row.encode()))
        case "root":
            store.write(lambda transaction: transaction.put_root("a", 3, transaction.root("a", 7)))
            monkeypatch.setattr("polstore.reader.Run.signed_sizes", lambda self: [3])
        case "snapshot":
            published(store, out, "a")
            path = next((out / "snapshot").iterdir())
            path.write_bytes(path.read_bytes()[:-1])
        case "frame":
            published(store, out, "a")
            path = next(path for path in (out / "blob").rglob("*") if path.is_file())
            path.write_bytes(b"")
            for each in (out / "snapshot").iterdir():
                each.unlink()
    with pytest.raises(DamagedError):
        published(store, out, "a")
    if fault in ("salt", "root"):
        assert not (out / "run").exists()
