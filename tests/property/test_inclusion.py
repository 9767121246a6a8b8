"""Inclusion proofs of single segments: read from a store of any size, verified with the wire-level verifier alone."""

import hashlib

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import polstore
from polstore.errors import DamagedError, MalformedError, MerkleError, MissingError, SignatureError
from polstore.run_row import RunRow
from polstore.storage import keys
from polstore.storage.store import open_store
from polstore.wire import merkle
from polstore.wire.checkpoint import Checkpoint, run_origin, sign_root
from polstore.wire.keys import SigningKey
from polstore.wire.tlog_proof import TlogProof

KEY = SigningKey("example.com/alice", bytes(range(32)))
LEAVES = [b"leaf %d of the run" % number for number in range(140)]
SIGNED = [*range(1, 70), 100, 127, 128, 129, 140]


def slow_root(leaves):
    """RFC 6962, 2.1, as it is written."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = largest_power_below(len(leaves))
    return hashlib.sha256(b"\1" + slow_root(leaves[:k]) + slow_root(leaves[k:])).digest()


def slow_path(index, leaves):
    """RFC 6962, 2.1.1, as it is written."""
    if len(leaves) == 1:
        return []
    k = largest_power_below(len(leaves))
    if index < k:
        return [*slow_path(index, leaves[:k]), slow_root(leaves[k:])]
    return [*slow_path(index - k, leaves[k:]), slow_root(leaves[:k])]


def largest_power_below(number):
    power = 1
    while power * 2 < number:
        power *= 2
    return power


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("inclusion") / "st"
    row = RunRow(bytes(32), bytes(32), 0, 0, 0, complete=True)

    def fill(writer):
        writer.put_run("r", row.encode())
        for leaf in LEAVES:
            writer.append_leaf("r", leaf)
        for size in SIGNED:
            checkpoint = Checkpoint(run_origin(KEY.name, "r"), size, slow_root(LEAVES[:size]))
            writer.put_root("r", size, sign_root(checkpoint, KEY, 1_800_000_000))

    with open_store(path, create=True, sync=False) as store:
        store.write(fill)
    return path


@pytest.fixture(scope="module")
def run(path):
    with polstore.open(path) as archive:
        yield archive.run("r")


@st.composite
def places(draw):
    """A signed size and a segment under it."""
    size = draw(st.sampled_from(SIGNED[1:]))
    return size, draw(st.integers(0, size - 2))


def verified(data):
    """What whoever received the file does with it."""
    file = TlogProof.parse(data)
    return file, file.verify(merkle.leaf_hash(file.extra or b""), KEY.verifier_keys())


@settings(max_examples=200, deadline=None)
@given(places())
def test_a_proof_is_what_the_rfc_says_and_verifies(run, place):
    size, index = place
    file, opened = verified(run.proof_file(index, size).encode())
    assert (file.index, file.extra) == (index + 1, LEAVES[index + 1])
    assert list(file.proof) == slow_path(index + 1, LEAVES[:size])
    assert len(file.proof) <= (size - 1).bit_length()
    assert (opened.checkpoint.size, opened.checkpoint.root) == (size, slow_root(LEAVES[:size]))
    merkle.verify_inclusion(merkle.leaf_hash(file.extra), index + 1, size, file.proof, opened.checkpoint.root)


@settings(max_examples=200, deadline=None)
@given(places(), st.data())
def test_a_flipped_bit_is_caught(run, place, data):
    size, index = place
    whole = run.proof_file(index, size).encode()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises((MalformedError, MerkleError, SignatureError)):
        verified(bytes(flipped))


def test_the_newest_root_is_the_one_meant(run):
    assert run.proof_file(5) == run.proof_file(5, 140)
    assert (run.signed_size(), run.newest_signed_size) == (140, 140)


@pytest.mark.parametrize(("index", "size"), [(139, None), (-1, None), (0, 1), (6, 7), (0, 139)])
def test_what_no_signed_root_covers(run, index, size):
    with pytest.raises(MissingError):
        run.proof_file(index, size)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (keys.number_key(keys.LEAF, "r", 6), b"forged"),
        (keys.node_key("r", 0, 6), bytes(32)),
        (keys.node_key("r", 0, 7), bytes(32)),  # its sibling
        (keys.node_key("r", 1, 2), bytes(32)),
        (keys.node_key("r", 6, 1), None),
        (keys.number_key(keys.ROOT, "r", 140), b"nonsense"),
    ],
)
def test_a_damaged_store_gives_no_proof(tmp_path, path, key, value):
    (tmp_path / "st").mkdir()
    for name in ("VERSION", "data.mdb"):
        (tmp_path / "st" / name).write_bytes((path / name).read_bytes())
    with (
        lmdb.open(str(tmp_path / "st"), map_size=0, max_readers=1024) as opened,
        opened.begin(write=True) as transaction,
    ):
        assert transaction.put(key, value) if value is not None else transaction.delete(key)
    with polstore.open(tmp_path / "st") as archive, pytest.raises(DamagedError):
        archive.run("r").proof_file(5)


def test_a_root_of_other_leaves_gives_no_proof(tmp_path):
    row = RunRow(bytes(32), bytes(32), 0, 0, 0, complete=True)

    def fill(writer):
        writer.put_run("r", row.encode())
        for leaf in LEAVES[:5]:
            writer.append_leaf("r", leaf)
        checkpoint = Checkpoint(run_origin(KEY.name, "r"), 5, slow_root(LEAVES[1:6]))
        writer.put_root("r", 5, sign_root(checkpoint, KEY, 1_800_000_000))

    with open_store(tmp_path / "st", create=True) as store:
        store.write(fill)
    with polstore.open(tmp_path / "st") as archive, pytest.raises(DamagedError, match="leads to another root"):
        archive.run("r").proof_file(3)
