"""Parts worked on in several threads, with the outcome of doing them one after the other."""

from __future__ import annotations

import random
import threading
import time

import pytest

from polstore.codec.threads import MAX_THREADS, available, in_order

THREADS = pytest.mark.parametrize("threads", [None, 0, 1, 2, 3, 8, 100])


class Chosen(Exception):
    """Raised on purpose."""


def dawdle(number: int) -> None:
    """Take longer for some parts than for others, so that threads overtake each other."""
    time.sleep(random.Random(number).random() / 2000)


@THREADS
@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_results_come_in_the_order_of_the_parts(threads, count):
    worked_on = []

    def work(part: str) -> str:
        dawdle(int(part))
        worked_on.append(part)
        return part * 2

    parts = [str(number) for number in range(count)]
    assert in_order(work, parts, threads) == [part * 2 for part in parts]
    assert sorted(worked_on) == sorted(parts)  # each once


@THREADS
def test_parts_and_results_may_be_anything(threads):
    parts = (None, 0, False, None, (), "x")
    assert in_order(lambda part: part, parts, threads) == list(parts)


@pytest.mark.parametrize("threads", [0, 1])
def test_one_thread_is_the_calling_one(threads):
    assert set(in_order(lambda _: threading.get_ident(), range(5), threads)) == {threading.get_ident()}


def test_one_part_needs_no_other_thread():
    assert in_order(lambda _: threading.get_ident(), ["part"], 8) == [threading.get_ident()]


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_so_many_threads_work_at_once_the_calling_one_among_them(threads):
    together = threading.Barrier(threads, timeout=60)

    def work(_: int) -> int:
        together.wait()
        return threading.get_ident()

    found = in_order(work, range(threads), threads)
    assert len(set(found)) == threads
    assert threading.get_ident() in found


def test_no_more_threads_than_parts_or_than_asked_for():
    def work(_: int) -> int:
        time.sleep(0.001)
        return threading.active_count()

    before = threading.active_count()
    assert max(in_order(work, range(2), 100)) <= before + 1
    assert max(in_order(work, range(50), 3)) <= before + 2
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_of_all_that_is_raised_it_is_what_the_first_part_raises(threads):
    def work(number: int) -> int:
        dawdle(number)
        if number in (13, 14, 15, 16, 40):
            raise Chosen(number)
        return number

    for _ in range(5):
        with pytest.raises(Chosen) as caught:
            in_order(work, range(50), threads)
        assert caught.value.args == (13,)


def test_an_earlier_part_that_fails_later_comes_first():
    """Part 0 fails only when part 1 has."""
    failed = threading.Event()

    def work(number: int) -> None:
        if number == 0:
            assert failed.wait(60)
        else:
            failed.set()
        raise Chosen(number)

    with pytest.raises(Chosen) as caught:
        in_order(work, range(2), 2)
    assert caught.value.args == (0,)


@pytest.mark.parametrize("in_caller", [False, True])
def test_an_error_in_any_thread_is_raised_in_the_calling_one_when_all_have_stopped(in_caller):
    caller = threading.get_ident()
    together = threading.Barrier(2, timeout=60)
    through = []

    def work(number: int) -> None:
        together.wait()
        if (threading.get_ident() == caller) is in_caller:
            raise Chosen(number)
        time.sleep(0.02)
        through.append(number)

    before = threading.active_count()
    with pytest.raises(Chosen):
        in_order(work, range(2), 2)
    assert len(through) == 1
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_after_an_error_no_thread_begins_another_part(threads):
    begun = []

    def work(number: int) -> None:
        begun.append(number)
        raise Chosen(number)

    with pytest.raises(Chosen) as caught:
        in_order(work, range(1000), threads)
    assert caught.value.args == (0,)
    assert len(begun) <= threads


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, StopIteration, GeneratorExit])
def test_whatever_is_raised_arrives(threads, kind):
    def work(number: int) -> None:
        if number == 3:
            raise kind("here")

    with pytest.raises(kind, match="here"):
        in_order(work, range(6), threads)


def test_work_may_share_out_parts_of_its_own():
    def work(number: int) -> int:
        return sum(in_order(lambda part: part * number, range(4), 2))

    assert in_order(work, range(4), 2) == [0, 6, 12, 18]


def test_how_many_threads_there_are_by_default():
    assert 1 <= available() <= MAX_THREADS
