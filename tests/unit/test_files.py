"""Files written whole or not at all, and read with a cap."""

import errno
import os
import resource
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from polstore import files
from polstore.errors import CallerError, ExistsError, FullError, MalformedError, MissingError
from polstore.files import read_file, write_atomic

REPOSITORY = Path(__file__).parents[2]


def names(path):
    return sorted(entry.name for entry in path.iterdir())


@pytest.mark.parametrize("data", [b"", b"text", bytes(3 << 20)])
def test_what_is_written_is_read(tmp_path, data):
    path = tmp_path / "file"
    write_atomic(path, data)
    assert read_file(path, len(data)) == data
    write_atomic(str(path), (bytes([byte]) for byte in b"pieces"))
    assert read_file(str(path), 100) == b"pieces"
    assert names(tmp_path) == ["file"]


def test_the_mode_is_that_of_the_new_file(tmp_path):
    write_atomic(tmp_path / "key", b"secret", mode=0o600)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_without_overwrite_a_taken_name_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"first", overwrite=False)
    with pytest.raises(ExistsError, match="exists"):
        write_atomic(path, b"second", overwrite=False)
    monkeypatch.setattr(files.os.path, "lexists", lambda path: False)  # taken between the look and the rename
    with pytest.raises(ExistsError):
        write_atomic(path, b"second", overwrite=False)
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["file"]


def test_without_overwrite_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    write_atomic(tmp_path / "file", b"first", overwrite=False)
    assert read_file(tmp_path / "file", 5) == b"first"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["n" * 255, "名" * 85], ids=["ASCII", "wide"])
def test_the_longest_names_can_be_written(tmp_path, name):
    write_atomic(tmp_path / name, b"data")
    assert names(tmp_path) == [name]


def test_places_where_no_file_can_be(tmp_path):
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "directory", Path(), Path("/")):  # the last two have no name
        with pytest.raises(ExistsError):
            write_atomic(path, b"")
    for path in (tmp_path / "none" / "file", tmp_path / "file" / "file"):
        with pytest.raises(MissingError):
            write_atomic(path, b"")
        with pytest.raises(MissingError):
            read_file(path, 10)
    with pytest.raises(MissingError):
        read_file(tmp_path / "directory", 10)
    assert names(tmp_path) == ["directory", "file"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, FullError),
        (errno.EDQUOT, FullError),
        (errno.EFBIG, FullError),
        (errno.EACCES, CallerError),
        (errno.EIO, CallerError),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "open", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, number, kind, call):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "replace", fail) if call == "replace" else (files.os, call, fail)))
        with pytest.raises(kind, match=os.strerror(number)) as failure:
            write_atomic(path, b"new")
    assert type(failure.value) is kind
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_an_iterator_that_fails_leaves_nothing(tmp_path):
    def pieces():
        yield b"some"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", pieces())
    assert names(tmp_path) == []


def test_a_real_file_size_limit(tmp_path):
    code = f"""
import resource
from pathlib import Path
from polstore.files import write_atomic
from polstore.errors import FullError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    write_atomic(Path({str(tmp_path)!r}) / "file", (bytes(1 << 16) for _ in range(1000)))
except FullError:
    print("full")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "full\n"
    assert names(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1 << 20


def test_reading_has_a_cap(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(3 << 20))
    assert len(read_file(path, 3 << 20)) == 3 << 20
    for limit in (0, 1, (3 << 20) - 1):
        with pytest.raises(MalformedError, match=f"at most {limit} bytes"):
            read_file(path, limit)


def test_a_pipe_is_read_to_its_end_or_the_cap(tmp_path):
    for limit, length in ((10, 5), (10, 100_000)):
        pipe = tmp_path / f"pipe{length}"
        os.mkfifo(pipe)

        def feed(pipe=pipe, length=length):
            with suppress(BrokenPipeError):
                pipe.write_bytes(bytes(length))

        thread = threading.Thread(target=feed)
        thread.start()
        if length <= limit:
            assert read_file(pipe, limit) == bytes(length)
        else:
            with pytest.raises(MalformedError):
                read_file(pipe, limit)
        thread.join(30)


def test_devices_and_pipes_are_written_into_and_not_replaced(tmp_path):
    device, pipe, standing = tmp_path / "null", tmp_path / "pipe", tmp_path / "stdout"
    device.symlink_to("/dev/null")
    os.mkfifo(pipe)
    with (tmp_path / "regular").open("wb") as regular:
        standing.symlink_to(f"/proc/self/fd/{regular.fileno()}")
        write_atomic(standing, b"for whom it concerns")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomic(device, b"nothing")
        write_atomic(pipe, [b"one", b"two"])
        assert os.read(reader, 100) == b"onetwo"
    finally:
        os.close(reader)
    assert device.is_symlink()
    assert standing.is_symlink()
    assert pipe.is_fifo()
    assert (tmp_path / "regular").read_bytes() == b"for whom it concerns"
    with pytest.raises(ExistsError):
        write_atomic(device, b"", overwrite=False)
    assert len(list(tmp_path.iterdir())) == 4
