"""Exporting a log as tiles: incremental, head last, and never over what a published head vouches for."""

import os
import stat

import pytest

from polstore.errors import DamagedError, ExistsError, FullError
from polstore.static_files import StaticFiles
from polstore.tile_files import export_log
from polstore.wire import merkle
from polstore.wire.archive_files import HEAD
from polstore.wire.checkpoint import Checkpoint, open_root, sign_root
from polstore.wire.keys import SigningKey
from polstore.wire.tiles import Tile, decode_entries, decode_hashes, node_from_tiles, tile_of, tiles

ORIGIN = "example.com/log"
KEY = SigningKey(ORIGIN, bytes(range(32)))


class Numbers:
    """A log whose leaf i is ``word`` and the number i."""

    def __init__(self, size, word=b"leaf", origin=ORIGIN):
        self.size, self.word, self.origin = size, word, origin
        self.hashes = [merkle.leaf_hash(b"%s %d" % (word, index)) for index in range(size)]

    def leaf(self, index):
        return b"%s %d" % (self.word, index)

    def node(self, level, index):
        return merkle.nodes_of(self.hashes)(level, index)

    def head(self):
        checkpoint = Checkpoint(self.origin, self.size, merkle.root(self.hashes))
        return sign_root(checkpoint, SigningKey(self.origin, KEY.seed), 1_800_000_000)


def content(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def check(directory, size=None):
    """Follow the head as a reader does, and return its size."""
    head = open_root((directory / HEAD).read_bytes(), KEY.verifier_keys()).checkpoint
    read = lambda tile: decode_hashes(tile, (directory / tile.path()).read_bytes())  # noqa: E731
    node = node_from_tiles(head.size, read)
    assert merkle.root_from_nodes(head.size, node) == head.root
    leaves = []
    for start in range(0, head.size, 256):
        tile = tile_of(-1, start // 256, head.size)
        leaves += decode_entries(tile, (directory / tile.path()).read_bytes())
    assert merkle.root([merkle.leaf_hash(leaf) for leaf in leaves]) == head.root
    return head.size


@pytest.mark.parametrize("sizes", [(1,), (256,), (1, 2, 255, 256, 257, 600), (300, 512, 513)])
def test_growing_exports_end_in_the_same_files(tmp_path, sizes):
    before = {}
    for size in sizes:
        files = StaticFiles(tmp_path / "grown")
        head = export_log(Numbers(size), files)
        assert (head.origin, head.size) == (ORIGIN, size)
        now = content(tmp_path / "grown")
        assert {name: data for name, data in before.items() if name != HEAD}.items() <= now.items()
        assert files.written == len(now) - len(before) + bool(before)
        assert files.written_bytes == sum(len(now[name]) for name in now if before.get(name) != now[name])
        assert check(tmp_path / "grown") == size
        before = now
    export_log(Numbers(sizes[-1]), StaticFiles(tmp_path / "whole"))
    whole = content(tmp_path / "whole")
    assert {name for name in whole if name != HEAD} == {tile.path() for tile in tiles(0, sizes[-1])}
    assert whole.items() <= before.items()


def test_nothing_new_writes_nothing(tmp_path):
    export_log(Numbers(300), StaticFiles(tmp_path))
    files = StaticFiles(tmp_path)
    export_log(Numbers(300), files)
    assert (files.written, files.written_bytes) == (0, 0)


def test_sizes_that_were_signed_keep_their_partial_tiles(tmp_path):
    export_log(Numbers(600), StaticFiles(tmp_path), [10, 300, 600, 700])
    for size in (10, 300, 600):
        for tile in tiles(0, size):
            assert (tmp_path / tile.path()).exists(), (size, tile)
    assert not (tmp_path / Tile(0, 2, 188).path()).exists()  # of size 700, which is not of this log yet


def test_an_export_that_is_cut_short_leaves_the_old_head_valid(tmp_path, monkeypatch):
    """Stopped before each file in turn; then finished."""
    write = StaticFiles._write
    for most in range(6):  # five tiles and the head
        directory, left = tmp_path / str(most), [most]
        export_log(Numbers(300), StaticFiles(directory))

        def stop(self, name, data, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write(self, name, data)

        with monkeypatch.context() as patch:
            patch.setattr(StaticFiles, "_write", stop)
            with pytest.raises(KeyboardInterrupt):
                export_log(Numbers(600), StaticFiles(directory))
        assert check(directory) == 300
        export_log(Numbers(800), StaticFiles(directory))
        assert check(directory) == 800


def test_the_head_comes_last(tmp_path, monkeypatch):
    names = []
    write = StaticFiles._write
    monkeypatch.setattr(StaticFiles, "_write", lambda *args: (names.append(args[1]), write(*args)))
    export_log(Numbers(300), StaticFiles(tmp_path))
    assert names.index(HEAD) == len(names) - 1
    assert len(names) == 6


def test_what_an_unfinished_export_left_is_written_again(tmp_path):
    """Only what a head vouches for is kept: without one, files of another log are no harm."""
    export_log(Numbers(300, b"other"), StaticFiles(tmp_path))
    (tmp_path / HEAD).unlink()
    export_log(Numbers(300), StaticFiles(tmp_path))
    assert check(tmp_path) == 300


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (Numbers(299), "ahead of the log"),
        (Numbers(300, b"other"), "its first 300 leaves are others"),
        (Numbers(400, b"other"), "its first 300 leaves are others"),
        (Numbers(400, origin="example.com/log2"), "of another log"),
    ],
)
def test_another_log_is_never_written_over_this_one(tmp_path, log, message):
    export_log(Numbers(300), StaticFiles(tmp_path))
    before = content(tmp_path)
    with pytest.raises(ExistsError, match=message):
        export_log(log, StaticFiles(tmp_path))
    assert content(tmp_path) == before


@pytest.mark.parametrize("fault", ["leaf", "level 0", "level 8", "level 3", "root", "head", "directory's head"])
def test_a_damaged_log_is_not_exported(tmp_path, fault):
    export_log(Numbers(10), StaticFiles(tmp_path))
    log = Numbers(600)
    leaf, node, head = log.leaf, log.node, log.head
    match fault:
        case "leaf":
            log.leaf = lambda index: leaf(index) if index != 300 else b"another"
        case "level 0":
            log.node = lambda level, index: node(level, index) if (level, index) != (0, 300) else bytes(32)
        case "level 8":
            log.node = lambda level, index: node(level, index) if (level, index) != (8, 1) else bytes(32)
        case "level 3":
            log.node = lambda level, index: node(level, index) if (level, index) != (3, 0) else bytes(32)
        case "root":
            log.head = lambda: sign_root(Checkpoint(ORIGIN, 600, bytes(32)), KEY, 1)
        case "head":
            log.head = lambda: head()[:40]
        case "directory's head":
            (tmp_path / HEAD).write_bytes(b"nothing of the kind")
    signed = (tmp_path / HEAD).read_bytes()
    with pytest.raises((DamagedError, ExistsError)):
        export_log(log, StaticFiles(tmp_path))
    assert (tmp_path / HEAD).read_bytes() == signed


def test_a_tile_that_was_damaged_after_its_export_is_noticed(tmp_path):
    export_log(Numbers(600), StaticFiles(tmp_path))
    path = tmp_path / Tile(1, 0, 2).path()
    path.write_bytes(bytes(64))
    with pytest.raises(DamagedError, match="not what was signed"):
        export_log(Numbers(601), StaticFiles(tmp_path))
    path.write_bytes(b"")
    with pytest.raises(DamagedError, match="length of"):
        export_log(Numbers(601), StaticFiles(tmp_path))


def test_files_that_are_named_after_their_content(tmp_path):
    files = StaticFiles(tmp_path / "made" / "when needed")
    assert files.read("blob/aa", 10) is None
    files.add("blob/aa", 3, lambda: b"abc")
    files.add("blob/aa", 3, lambda: pytest.fail("it is there"))
    assert (files.written, files.written_bytes) == (1, 3)
    assert files.read("blob/aa", 3) == b"abc"
    with pytest.raises(DamagedError, match="too long"):
        files.read("blob/aa", 2)
    with pytest.raises(DamagedError, match="remove it"):
        files.add("blob/aa", 4, lambda: b"abcd")
    files.replace("head", b"long one")
    files.replace("head", b"short")
    assert files.read("head", 10) == b"short"
    assert stat.S_IMODE((files.directory / "head").stat().st_mode) & 0o444 == 0o444  # a web server may read it


def test_no_room_is_the_caller_s_side(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FullError):
        export_log(Numbers(3), StaticFiles(tmp_path))
    assert not (tmp_path / HEAD).exists()
