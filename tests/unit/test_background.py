"""The thread beside the training."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

import polstore.background as module
from polstore.background import Background
from polstore.errors import UsageError


def test_jobs_are_done_in_order():
    done = []
    background = Background("test")
    for number in range(50):
        background.put(lambda number=number: done.append(number))
    background.flush()
    assert done == list(range(50))
    assert background.close() is None


def test_one_job_waits_and_putting_another_blocks_until_it_began():
    first, entered, put = threading.Event(), threading.Event(), threading.Event()
    background = Background("test")

    def busy():
        entered.set()
        first.wait()

    background.put(busy)
    entered.wait()
    background.put(lambda: None)  # waits behind the first, which is at work
    other = threading.Thread(target=lambda: (background.put(lambda: None), put.set()))
    other.start()
    assert not put.wait(0.1)
    first.set()
    assert put.wait(10)
    other.join()
    assert background.close() is None


def test_an_error_is_raised_at_every_later_call_and_ends_the_work():
    done = []
    background = Background("test")

    def fail():
        raise OSError("no room")

    background.put(fail)
    with pytest.raises(OSError, match="no room"):
        background.flush()
    with pytest.raises(OSError, match="no room"):
        background.put(lambda: done.append(1))
    assert isinstance(background.close(), OSError)
    assert not done


def test_a_job_pauses_between_items_while_nobody_waits_for_it(monkeypatch):
    pauses = []
    first, awaited = threading.Event(), threading.Event()
    background = Background("test")

    def pause(seconds):
        pauses.append((seconds, threading.current_thread().name))
        first.set()
        assert awaited.wait(10)

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=pause, perf_counter=time.perf_counter))  # of it alone
    monkeypatch.setattr(module, "SLICE", -1.0)  # whatever was done since the last pause is more
    done = []

    def job():
        for item in background.unhurried(range(5)):
            if item == 1:
                while not background._awaited:
                    pass
            done.append(item)

    background.put(job)
    assert first.wait(10)
    assert done == [0]
    awaited.set()
    background.flush()
    assert done == list(range(5))
    assert pauses == [(module.PAUSE, "test")]
    assert background.close() is None
    assert list(background.unhurried("ab")) == ["a", "b"]
    assert len(pauses) == 1


def test_a_job_that_has_hardly_worked_does_not_pause(monkeypatch):
    """Waking up takes longer than encoding one small tensor."""
    monkeypatch.setattr(module, "SLICE", 1e9)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=time.perf_counter))  # which cannot sleep
    assert list(Background("test").unhurried("ab")) == ["a", "b"]
    monkeypatch.setattr(module, "SLICE", -1.0)
    with pytest.raises(AttributeError, match="sleep"):
        list(Background("test").unhurried("ab"))


def test_a_thread_that_was_kept_from_starting_is_not_waited_for(monkeypatch):
    background = Background("test")

    def interrupted(_thread):
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        background.put(print)
    assert background.close() is None


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, for threads
def test_a_forked_child_is_told_instead_of_left_waiting():
    entered, leave = threading.Event(), threading.Event()
    background = Background("test")

    def busy():
        entered.set()
        leave.wait()

    background.put(busy)
    assert entered.wait(10)
    child = os.fork()
    if not child:
        signal.alarm(10)  # should it wait after all
        told = 0
        for call in (background.flush, lambda: background.put(print)):
            try:
                call()
            except UsageError:
                told += 1
        background.close()
        os._exit(told)
    leave.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    background.flush()
    assert background.close() is None


def test_closing_without_a_job_and_closing_finishes_what_waits():
    assert Background("test").close() is None
    done = []
    background = Background("test")
    background.put(lambda: done.append(1))
    assert background.close() is None
    assert done == [1]
