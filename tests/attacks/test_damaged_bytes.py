"""Every byte of a proof is covered: flipped, deleted, duplicated, inserted, cut off or appended, it is rejected."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from polstore.errors import MalformedError
from polstore.wire.bundle import HEADER_SIZE
from polverify.bundle_file import BundleFile
from tests.attacks import forge

if TYPE_CHECKING:
    from collections.abc import Callable

WELL_FORMED, SIGNATURE = 0, 1


@pytest.fixture(scope="module")
def small():
    """An honest proof that opens one segment."""
    return forge.Trainer().run(opened=(1,))


def test_signed_root_with_a_flipped_bit(rejects, small):
    for place in range(len(small.root)):
        damaged = bytearray(small.root)
        damaged[place] ^= 1 << (place % 8)
        assert rejects(small, root=bytes(damaged)) == SIGNATURE


def test_signed_root_with_a_byte_deleted_or_duplicated(rejects, small):
    for place in range(len(small.root)):
        assert rejects(small, root=small.root[:place] + small.root[place + 1 :]) == SIGNATURE
        doubled = small.root[: place + 1] + small.root[place:]
        assert rejects(small, root=doubled) == SIGNATURE


@pytest.mark.parametrize(
    "root", [b"", b"\n", b"\xff" * 99, b"\x80\x04N.", bytes(2**20), b"a\n" * 1000, "\N{EM DASH} ".encode() * 1000]
)
def test_something_else_for_a_signed_root(rejects, small, root):
    assert rejects(small, root=root) == SIGNATURE


def places(evidence, data: bytes) -> list[int]:
    """The header, both ends of the index and of the blobs, and a sample in between."""
    head = evidence.head_size()
    dense = [*range(HEADER_SIZE + 20), *range(head - 20, head + 20), *range(len(data) - 20, len(data))]
    return sorted({*dense, *range(0, len(data), 97)})


@pytest.fixture(scope="module")
def refuses(tmp_path_factory) -> Callable[[bytes], None]:
    """Read a bundle as check 0 does, without the rest of the verification, and require that it is refused.

    Every byte is put to this; `test_what_is_refused_is_rejected` shows that it makes the verdict.
    """
    path = tmp_path_factory.mktemp("damaged") / "bundle"

    def refused(data: bytes) -> None:
        path.write_bytes(data)
        with pytest.raises(MalformedError), BundleFile(path) as file:
            file.check_blobs(lambda _done, _total: None)

    return refused


def test_what_is_refused_is_rejected(rejects, small):
    data = small.data()
    for place in places(small, data)[::2]:
        damaged = bytearray(data)
        damaged[place] ^= 0x80
        assert rejects(small, data=bytes(damaged)) == WELL_FORMED
        assert rejects(small, data=data[:place] + data[place + 1 :]) == WELL_FORMED


def test_bundle_with_a_flipped_bit(tmp_path, small):
    data, path = small.data(), tmp_path / "bundle"
    path.write_bytes(data)
    with path.open("r+b", buffering=0) as target:
        for place, byte in enumerate(data):
            os.pwrite(target.fileno(), bytes([byte ^ 1 << (place % 8)]), place)
            with pytest.raises(MalformedError), BundleFile(path) as file:
                file.check_blobs(lambda _done, _total: None)
            os.pwrite(target.fileno(), bytes([byte]), place)
    assert path.read_bytes() == data


def test_bundle_with_a_byte_deleted(refuses, small):
    data = small.data()
    for place in {*range(0, len(data), 11), *places(small, data)}:
        refuses(data[:place] + data[place + 1 :])


def test_bundle_with_a_byte_inserted(refuses, small):
    data = small.data()
    for place in {*range(0, len(data), 11), *places(small, data)}:
        refuses(data[:place] + b"\x00" + data[place:])


def test_bundle_cut_short(refuses, small):
    data = small.data()
    for length in places(small, data):
        refuses(data[:length])


def test_bundle_with_something_behind_it(rejects, small):
    data = small.data()
    for more in (b"\x00", b"\n", data, data[: small.head_size()], bytes(4096)):
        assert rejects(small, data=data + more) == WELL_FORMED


@pytest.mark.parametrize("data", [b"", b"\x80\x04\x95", b"PK\x03\x04" + bytes(99), b"polstore bundle v1", bytes(200)])
def test_something_else_for_a_bundle(rejects, small, data):
    assert rejects(small, data=data) == WELL_FORMED


def test_header_that_promises_a_huge_index(rejects, small):
    data = small.data()
    for length in (2**29 - 1, 2**29 + 1, 2**40, 2**64 - 1):
        head = data[: HEADER_SIZE - 8] + length.to_bytes(8, "big")
        assert rejects(small, data=head + data[HEADER_SIZE:]) == WELL_FORMED
