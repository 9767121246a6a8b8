"""A recording that finds no more room: it stops with one clear error, loses nothing, and goes on when there is room.

No room is a small tmpfs that is full, and a limit on a file's size, which needs no right to mount anything.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import children
import pytest
import training

from polstore.errors import FullError

POLSTORE = Path(sys.executable).with_name("polstore")
STEPS, EVERY = 12, 2
SPARE = 8192  # bytes that still fit: less than a snapshot takes
WIDTH = 64


@contextmanager
def mounted(path):
    """A tmpfs of 4 MB where that is permitted, else None."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        done = None
    if done is None or done.returncode:
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


class Room:
    """Takes the room away and gives it back, in the process that uses it or, as a limit, in one that it starts."""

    def __init__(self, kind, path):
        self.store = path / "st"
        self._filling = path / "filling" if kind == "tmpfs" else None

    def take(self):
        if self._filling is None:
            length = (self.store / "data.mdb").stat().st_size + SPARE
            resource.setrlimit(resource.RLIMIT_FSIZE, (length, resource.RLIM_INFINITY))
            return
        with self._filling.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def give(self):
        if self._filling is None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        else:
            self._filling.unlink()


@pytest.fixture(params=["tmpfs", "limit"])
def room(request, tmp_path):
    """Room for a store; by a limit in either case where nothing may be mounted."""
    (tmp_path / "plain").mkdir()
    with mounted(tmp_path / "small") as small:
        use_mount = request.param == "tmpfs" and small is not None
        yield Room("tmpfs" if use_mount else "limit", small if use_mount else tmp_path / "plain")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The recipe, and the facts of a run that always had room."""
    path = tmp_path_factory.mktemp("whole")
    recipe = training.recipe_file(path)
    return recipe, children.call(undisturbed, recipe, path / "st")


def undisturbed(_, recipe, store):
    training.record(recipe, store, STEPS, every=EVERY, width=WIDTH)
    return training.facts(store)


def starve(_, recipe, room, kept, full_after, raise_after):
    """Record until there is no room after snapshot ``kept``; return the error with its notes, and what is stored."""
    written = training.Written()

    def each(step):
        if step == full_after:
            written.wait(kept)  # it may still be under way
            room.take()
        if step == raise_after:
            raise ZeroDivisionError("the loop's own")

    try:
        training.record(recipe, room.store, STEPS, every=EVERY, width=WIDTH, each=each)
    except (FullError, ZeroDivisionError) as error:
        caught = type(error).__name__, str(error), getattr(error, "__notes__", [])
    else:
        caught = None
    room.give()
    assert not training.damages(room.store)
    return caught, training.facts(room.store)


def resume(_, recipe, room):
    training.record(recipe, room.store, STEPS, every=EVERY, width=WIDTH)
    assert not training.damages(room.store)
    return training.facts(room.store)


# full after step 5: the snapshot of step 6 fails in the background, and the next one, at step 8, has to tell of it;
# after step 11: only the end can; the loop that raises by itself after step 7 has the news added
@pytest.mark.parametrize(
    ("full_after", "raise_after", "kept"), [(5, None, 4), (STEPS - 1, None, STEPS - 2), (5, 7, 4)], ids=str
)
def test_a_recording_stops_and_goes_on_when_there_is_room(room, whole, full_after, raise_after, kept):
    recipe, (digests, leaves, _) = whole
    (kind, message, notes), (held, held_leaves, complete) = children.call(
        starve, recipe, room, kept, full_after, raise_after
    )
    told = message
    if raise_after is not None:
        assert (kind, message) == ("ZeroDivisionError", "the loop's own")
        (told,) = notes
    else:
        assert kind == "FullError"
    assert f"store {room.store}" in told
    assert "no room" in told
    assert max(held) == kept
    assert not complete
    assert held == {step: digest for step, digest in digests.items() if step <= kept}
    assert held_leaves == leaves[: len(held_leaves)]
    assert children.call(resume, recipe, room) == (digests, leaves, True)


def test_the_command_line_says_so_and_exits_with_4(room, whole):
    recipe, (digests, leaves, _) = whole
    children.call(partly, recipe, room)
    words = [POLSTORE, "record", recipe, "--store", room.store, "--run", "r", "--every", EVERY, "--steps", STEPS]
    words += ["--resume", "--config", f"width={WIDTH}"]
    done = subprocess.run(
        [str(word) for word in words], preexec_fn=room.take, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (4, ""), done
    assert f"error: store {room.store}: no room left" in done.stderr
    if room._filling is not None:
        room.give()
    assert children.call(resume, recipe, room) == (digests, leaves, True)


def partly(_, recipe, room):
    training.record(recipe, room.store, 4, every=EVERY, width=WIDTH)


def test_the_limit_does_not_end_the_process():
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # Python's own choice; ending it would be no FullError
