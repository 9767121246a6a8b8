"""How the codec's compiled loops take wrong arguments: with an exception, and holding on to nothing."""

from __future__ import annotations

import ast
import contextlib
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.native_calls import CALLS, SIZES, Call, Memory, any_words

native = pytest.importorskip("polstore.codec._native")

COUNT = 24
EACH = pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.name}-{len(call.sizes)}-{abs(call.sizes[0])}")


def refused(call: Call, kind: type[Exception], buffers, numbers=None, match=None) -> None:
    """Call a function that must raise, and require that it has let go of all arguments."""
    arguments = (*buffers, *(call.numbers if numbers is None else numbers))
    counts = references(arguments)
    for _ in range(3):
        with pytest.raises(kind, match=match):
            getattr(native, call.name)(*arguments)
    assert references(arguments) == counts
    assert all(free(buffer) for buffer in buffers if isinstance(buffer, bytearray))


def references(arguments) -> list[int]:
    """Count who holds each argument, but for small numbers and the like, which everybody does."""
    own = (bytes, bytearray, memoryview, np.ndarray, float, list)
    return [sys.getrefcount(argument) for argument in arguments if isinstance(argument, own)]


def free(buffer: bytearray) -> bool:
    """Say whether nobody looks at a bytearray's memory."""
    with contextlib.suppress(BufferError):
        buffer.append(0)
        del buffer[-1]
        return True
    return False


def test_the_stub_and_these_tests_know_every_function():
    functions = {name for name in dir(native) if not name.startswith("__")}
    stub = ast.parse(Path(native.__file__).with_name("_native.pyi").read_text(encoding="utf-8"))
    assert {node.name for node in stub.body if isinstance(node, ast.FunctionDef)} == functions
    assert {call.name for call in CALLS} == functions


@EACH
def test_what_is_called_as_it_should_be(call):
    for count in (0, COUNT, 20000):
        buffers = call.buffers(count)
        arguments = (*buffers, *call.numbers)
        counts = references(arguments)
        for _ in range(3):
            getattr(native, call.name)(*arguments)
        assert references(arguments) == counts
        assert all(map(free, buffers))


@EACH
def test_a_buffer_of_another_size(call):
    for place, size in enumerate(map(abs, call.sizes)):
        for change in {-size, size, -1, 1, 20000 * size}:
            buffers = call.buffers(COUNT)
            buffers[place] = bytearray(len(buffers[place]) + change)
            if len(buffers) == 1 and change % size == 0:
                continue  # nothing to compare it with
            refused(call, ValueError, buffers, match="bytes")


@EACH
def test_a_buffer_that_must_not_be_written_to(call):
    for place in range(len(call.sizes)):
        buffers = call.buffers(COUNT)
        owned = np.frombuffer(bytes(buffers[place]), "|u1")
        for fixed, kind in ((bytes(buffers[place]), BufferError), (owned, ValueError)):
            buffers[place] = fixed
            if place in call.written:
                refused(call, kind, buffers, match=r"not writable|read-only")
            else:
                getattr(native, call.name)(*buffers, *call.numbers)


@EACH
def test_a_buffer_with_gaps(call):
    for place, size in enumerate(map(abs, call.sizes)):
        for gaps, kind in (
            (memoryview(bytearray(size * COUNT * 2))[::2], BufferError),
            (np.zeros(COUNT * 2, f"V{size}")[::2], ValueError),
            (np.zeros(COUNT, f"V{size}")[::-1], ValueError),
        ):
            buffers = call.buffers(COUNT)
            buffers[place] = gaps
            refused(call, kind, buffers, match="contiguous")


@EACH
def test_what_is_no_buffer(call):
    for place in range(len(call.sizes)):
        for other in (None, "text", 5, [0] * COUNT):
            buffers = call.buffers(COUNT)
            buffers[place] = other
            refused(call, TypeError, buffers)


@EACH
def test_memory_that_is_written_to_and_shared(call):
    for place in call.written:
        size = abs(call.sizes[place])
        for other in range(len(call.sizes)):
            if other == place:
                continue
            width = abs(call.sizes[other])
            room = np.zeros(COUNT * (size + width), "|u1")
            for start in (0, 1, COUNT * size - 1):  # the last byte of one is the first of the other
                buffers = call.buffers(COUNT)
                buffers[place], buffers[other] = room[: COUNT * size], room[start:][: COUNT * width]
                refused(call, ValueError, buffers, match="share memory")
                buffers[place], buffers[other] = room[start:][: COUNT * size], room[: COUNT * width]
                if start < COUNT * width:
                    refused(call, ValueError, buffers, match="share memory")
            buffers[place], buffers[other] = room[: COUNT * size], room[COUNT * size :]
            getattr(native, call.name)(*buffers, *call.numbers)  # side by side
            buffers = [room[:0] for _ in buffers]
            getattr(native, call.name)(*buffers, *call.numbers)


def test_memory_that_is_only_read_may_be_shared():
    values = np.arange(COUNT, dtype="<f4")
    assert native.peak(values, values) == 0
    assert native.distances(values, values, 4)[0] == 0
    out = np.ones(COUNT, "<u4")
    native.difference(values, values, out)
    assert not out.any()


@EACH
def test_too_few_arguments_and_too_many(call):
    buffers = call.buffers(COUNT)
    arguments = (*buffers, *call.numbers)
    possible = {len(other.sizes) + len(other.numbers) for other in CALLS if other.name == call.name}
    for count in range(len(arguments) + 3):
        if count not in possible:
            some = (*arguments, bytearray(COUNT), 1)[:count]
            refused(call, TypeError, some, numbers=())
    with pytest.raises(TypeError, match="keyword"):
        getattr(native, call.name)(*buffers, *call.numbers, out=buffers[-1])


@EACH
def test_numbers_of_another_kind(call):
    for place, number in enumerate(call.numbers):
        if isinstance(number, bool):  # whatever is true or not
            continue
        for other in ("1", None, b"\1"):
            refused(call, TypeError, call.buffers(COUNT), [*call.numbers[:place], other, *call.numbers[place + 1 :]])


@pytest.mark.parametrize("size", [-4, -1, 0, 1, 3, 16])
def test_items_of_other_sizes(size):
    for name, sizes in (("split", (1, -1)), ("distances", (1, 1))):
        refused(Call(name, sizes), ValueError, [bytearray(48), bytearray(48)], (size,), match=f"items of {size} bytes")


def test_bytes_that_are_no_whole_items():
    refused(Call("split", (1, -1)), ValueError, [bytearray(6), bytearray(6)], (4,), match="6 bytes are not items of 4")
    refused(Call("distances", (8, 8)), ValueError, [bytearray(12), bytearray(12)], (8,), match="multiple of 8")


@pytest.mark.parametrize("dropped", [-1, 0, 15, 32, 33, 1 << 20])
def test_other_numbers_of_bits_to_drop(dropped):
    buffers = [bytearray(4 * COUNT), bytearray(2 * COUNT)]
    refused(Call("to_upper", (-4, -2)), ValueError, buffers, (1, dropped, True, True), match="expected 16 to 31")


def test_thresholds_are_modulo_2_to_the_32():
    live = any_words(COUNT, "<f4")
    found = []
    for threshold in (7, 7 + 2**32, 7 - 2**32):
        items = np.zeros(COUNT, "<u2")
        native.to_upper(live, items, threshold, 20, True, False)
        found.append(items.tolist())
    assert found[0] == found[1] == found[2]


@EACH
def test_nothing_is_written_but_what_should_be(call):
    """Any bits will do: what comes out for NaN and infinities may mean nothing, but goes where it should."""
    for count in SIZES[:7]:
        for offset in range(4):
            held = [
                Memory(any_words(count * abs(size), "|u1", number), offset) for number, size in enumerate(call.sizes)
            ]
            before = [memory.array.tobytes() for memory in held]
            getattr(native, call.name)(*(memory.array for memory in held), *call.numbers)
            assert all(memory.untouched_around() for memory in held)
            for place, memory in enumerate(held):
                assert place in call.written or memory.array.tobytes() == before[place]


@EACH
def test_several_threads_at_once(call):
    """With so many elements the interpreter's lock is let go of."""
    given = [any_words(20000 * abs(size), "|u1", number).tobytes() for number, size in enumerate(call.sizes)]

    def run() -> list[bytes]:
        buffers = [bytearray(data) for data in given]
        found = getattr(native, call.name)(*buffers, *call.numbers)
        return [*map(bytes, buffers), repr(found).encode()]

    wanted = run()
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.extend(run() == wanted for _ in range(10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 40
