"""Snapshots and single tensors found through their bases: what comes out, what is fetched, what is refused."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest

from polstore.codec import chain, decoding, encoding, threads
from polstore.codec.chain import Chain
from polstore.codec.frames import RAW, Encoding, StoredSnapshot, StoredTensor, encode
from polstore.codec.snapshot import CARRIER, Snapshot, Tensor
from polstore.errors import MalformedError, MissingError
from polstore.wire.state import state_digest

FIDELITY = "float16-writeback"
GROUP = 64  # bytes, so that every tensor spans groups and shares some


def state(step: int) -> Snapshot:
    rng = np.random.default_rng(step)

    def tensor(name: str, dtype: str, count: int) -> Tensor:
        carrier = np.dtype(CARRIER[dtype])
        values = rng.standard_normal(count) if carrier.kind == "f" else rng.integers(0, 100, count)
        return Tensor(name, dtype, (count,), values.astype(carrier))

    tensors = [
        Tensor("buffer/fixed", "int64", (20,), np.arange(20, dtype="<i8")),
        tensor("buffer/half", "float16", 41),
        tensor("buffer/mask", "bool", 100),
        *(tensor(f"optimizer/{i}/exp_avg", "float32", 10 + i) for i in range(4)),
        *(tensor(f"optimizer/{i}/exp_avg_sq", "float32", 10 + i) for i in range(4)),
        *(tensor(f"parameter/{i}", "float32", 7 * i) for i in range(6)),
    ]
    return Snapshot(tuple(sorted(tensors, key=lambda t: t.name)), b"\x90")


class Stored:
    """Four snapshots, each stored against the one before it or all against the first, and what was fetched of them."""

    def __init__(self, length: int = 4, *, keyframe: bool = False) -> None:
        self.records: dict[bytes, StoredSnapshot] = {}
        self.frames: dict[bytes, bytes] = {}
        self.snapshots: list[Snapshot] = []
        self.asked: list[bytes] = []
        self.fetched: list[bytes] = []
        base = None
        for step in range(length):
            record, frames, committed = encode(state(step), base, FIDELITY)
            self.add(record, frames)
            self.snapshots.append(committed)
            base = base if keyframe and step else committed

    def add(self, record: StoredSnapshot, frames: dict[bytes, bytes]) -> None:
        self.records[record.state_digest] = record
        self.frames |= frames

    def chain(self, kept: int = 0) -> Chain:
        return Chain(self.record, self.fetch, kept=kept)

    def record(self, digest: bytes) -> StoredSnapshot:
        self.asked.append(digest)
        if digest not in self.records:
            raise MissingError("no such record")
        return self.records[digest]

    def fetch(self, digest: bytes) -> bytes:
        self.fetched.append(digest)
        return self.frames[digest]


@pytest.fixture
def stored(monkeypatch) -> Stored:
    monkeypatch.setattr(encoding, "GROUP", GROUP)
    return Stored()


def frames_of(record: StoredSnapshot, *names: str) -> list[bytes]:
    """Item by item: the frames that hold some of these tensors."""
    owners: dict[tuple[int, int], list[str]] = {}
    for row in record.tensors:
        if row.encoding is not Encoding.SAME:
            owners.setdefault(row.stream, []).extend([row.entry.name] * row.count)
    found = []
    for group in record.groups:
        owner = owners[group.encoding, group.item_size]
        held, owner[:] = owner[: group.count], owner[group.count :]
        if not set(names).isdisjoint(held):
            found += [frame.digest for frame in group.frames]
    return found


def test_a_tensor_is_that_of_the_whole_snapshot_and_fetches_no_other_frame(stored) -> None:
    digests = list(stored.records)
    for position, snapshot in enumerate(stored.snapshots):
        for wanted in snapshot.tensors:
            stored.fetched.clear()
            stored.asked.clear()
            got = stored.chain().tensor(digests[position], wanted.name)
            assert got.entry() == wanted.entry()
            assert got.data.tobytes() == wanted.data.tobytes()
            expected: list[bytes] = []
            for back in range(position, -1, -1):
                record = stored.records[digests[back]]
                expected = frames_of(record, wanted.name) + expected
                row = record.row(wanted.name)
                if row.encoding in (Encoding.EXACT, Encoding.BFLOAT16):
                    break
            assert stored.fetched == expected
            assert len(stored.asked) == position - back + 1
    everything = {frame for record in stored.records.values() for frame in record.blobs}
    assert len(everything) > 4 * len(set(expected))  # so this saves something


def test_a_snapshot_comes_out_of_its_chain(stored) -> None:
    for digest, snapshot in zip(stored.records, stored.snapshots, strict=True):
        assert stored.chain().get(digest).digest() == digest == snapshot.digest()


def test_kept_snapshots_are_decoded_once_bases_first(stored, monkeypatch) -> None:
    digests = list(stored.records)
    one_by_one = stored.chain(kept=2)
    for digest in digests:
        one_by_one.get(digest)
    assert stored.asked == digests
    monkeypatch.setattr(encoding, "GROUP", GROUP)
    around = Stored(keyframe=True)
    keyframe, *others = around.records
    for kept, again in ((1, []), (0, [keyframe])):
        chained = around.chain(kept=kept)
        around.asked.clear()
        for digest in others:
            chained.get(digest)
        assert around.asked == [others[0], keyframe, others[1], *again, others[2], *again]


def needed(stored: Stored, position: int) -> list[set[str]]:
    """Return the names that are needed of a snapshot and of each of its bases, nearest first."""
    names, found = set(stored.snapshots[0].names), []
    for digest in list(stored.records)[position::-1]:
        found.append(names)
        rows = (row for row in stored.records[digest].tensors if row.entry.name in names)
        names = {row.entry.name for row in rows if row.encoding not in (Encoding.EXACT, Encoding.BFLOAT16)}
    return found


def test_of_a_base_only_that_is_fetched_that_the_next_link_needs(stored) -> None:
    digests = list(stored.records)
    wanted = needed(stored, 3)
    assert wanted[0] > wanted[1] >= wanted[2] >= wanted[3]
    expected = []
    for digest, names in zip(digests[::-1], wanted, strict=True):
        expected += frames_of(stored.records[digest], *names)
    stored.chain().get(digests[3])
    assert sorted(stored.fetched) == sorted(expected)  # each group once: this is too small for two threads
    moments = [row.entry.name for row in stored.records[digests[0]].tensors if row.entry.name.startswith("optimizer/")]
    assert len(moments) == 8
    for digest in digests[:3]:
        assert set(expected).isdisjoint(frames_of(stored.records[digest], *moments))


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_frames_of_a_bases_moments_may_be_gone(stored, kept) -> None:
    """As damage in them, that is of no matter to what is stored against it, and is found once the base is asked for."""
    digests = list(stored.records)
    for digest in digests[:3]:
        for row in stored.records[digest].tensors:
            if row.entry.name.startswith("optimizer/"):
                for frame in frames_of(stored.records[digest], row.entry.name):
                    stored.frames.pop(frame, None)
    chained = stored.chain(kept=kept)
    for _ in range(2):
        assert chained.get(digests[3]).digest() == digests[3]
        with pytest.raises(KeyError):
            chained.get(digests[2])
        assert chained.tensor(digests[2], "parameter/5").entry() == stored.snapshots[2].tensor("parameter/5").entry()


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_what_was_decoded_in_part_is_decoded_whole_when_it_is_asked_for(stored, kept) -> None:
    digests = list(stored.records)
    for order in ((3, 2, 1, 0), (3, 0, 3, 1), (2, 1, 3), (1, 0, 0, 2)):
        chained = stored.chain(kept=kept)
        for position in order:
            got = chained.get(digests[position])
            assert got.names == stored.snapshots[position].names
            assert got.digest() == digests[position]
            del got


@pytest.mark.parametrize("kept", [1, 4])
def test_a_base_in_part_does_not_do_for_what_needs_more_of_it(stored, kept) -> None:
    """A second snapshot on the same base, stored without loss, is stored against its moments as well."""
    first, second = list(stored.records)[:2]
    other, frames, _ = encode(state(9), stored.snapshots[0], "lossless")
    moments = {row.encoding for row in other.tensors if row.entry.name.startswith("optimizer/")}
    assert moments == {Encoding.DIFFERENCE}
    stored.add(other, frames)
    chained = stored.chain(kept=kept)
    assert chained.get(second).digest() == second
    stored.asked.clear()
    assert chained.get(other.state_digest).digest() == other.state_digest
    assert stored.asked == [other.state_digest, first]  # the base once more
    stored.asked.clear()
    assert chained.get(second).digest() == second  # for which that does
    assert stored.asked == [second] or kept == 4


def test_snapshots_that_somebody_holds_are_used_again_and_others_go(stored) -> None:
    digests = list(stored.records)
    nothing_kept = stored.chain()
    held = nothing_kept.get(digests[1])
    assert nothing_kept.get(digests[1]) is held
    stored.asked.clear()
    nothing_kept.get(digests[2])
    assert stored.asked == [digests[2]]
    del held
    gc.collect()
    stored.asked.clear()
    nothing_kept.get(digests[2])
    assert stored.asked == digests[2::-1]


def test_max_bytes_bounds_snapshots_and_tensors(stored) -> None:
    digest = next(iter(stored.records))
    bounded = stored.chain()
    bounded.max_bytes = 5 * 7 * 4
    assert bounded.tensor(digest, "parameter/5").nbytes == 5 * 7 * 4
    with pytest.raises(MalformedError, match="too large"):
        bounded.get(digest)
    bounded.max_bytes -= 1
    stored.fetched.clear()
    with pytest.raises(MalformedError, match=r"tensor parameter/5 is too large"):
        bounded.tensor(digest, "parameter/5")
    assert stored.fetched == []


def test_what_is_missing(stored) -> None:
    digests = list(stored.records)
    with pytest.raises(MissingError, match="no tensor 'parameter/9'"):
        stored.chain().tensor(digests[3], "parameter/9")
    with pytest.raises(MissingError, match="no such record"):
        stored.chain().get(bytes(32))
    del stored.records[digests[1]]
    for ask in (lambda chained: chained.get(digests[3]), lambda chained: chained.tensor(digests[3], "parameter/1")):
        with pytest.raises(MissingError, match="no such record"):
            ask(stored.chain())


def test_hostile_records(stored, monkeypatch) -> None:
    digests = list(stored.records)
    first, last = stored.records[digests[0]], stored.records[digests[3]]

    def refuse(match: str) -> None:
        for ask in (lambda chained: chained.get(digests[3]), lambda chained: chained.tensor(digests[3], "parameter/1")):
            with pytest.raises(MalformedError, match=match):
                ask(stored.chain())

    stored.records[digests[0]] = replace(last, base=digests[1])
    refuse("not the one it stands for")
    # Every record of a circle is well-formed by itself.
    rows = tuple(replace(row, encoding=Encoding.SAME) if row.count else row for row in first.tensors)
    stored.records[digests[0]] = replace(first, base=digests[3], tensors=rows, groups=())
    refuse("stored against itself")
    stored.records[digests[0]] = first
    monkeypatch.setattr(chain, "MAX_CHAIN", 2)
    refuse("too many bases")


def test_bases_that_lack_the_tensor_or_have_another_shape(stored) -> None:
    other = state(0)
    for shape in ((), (7, 1)):
        kept = [t for t in other.tensors if t.name != "parameter/1"]
        if shape:
            kept.append(Tensor("parameter/1", "float32", shape, other.tensor("parameter/1").data))
        record, frames, base = encode(Snapshot(tuple(sorted(kept, key=lambda t: t.name)), b"\x90"), None, FIDELITY)
        hostile = replace(stored.records[stored.snapshots[1].digest()], base=base.digest())
        stored.records |= {record.state_digest: record, hostile.state_digest: hostile}
        stored.frames |= frames
        for ask in (
            lambda chained, digest: chained.get(digest),
            lambda chained, digest: chained.tensor(digest, "parameter/1"),
        ):
            with pytest.raises(MalformedError, match="base has no tensor like parameter/1"):
                ask(stored.chain(), hostile.state_digest)


def test_a_frame_of_another_tensor_is_not_noticed_and_one_of_this_tensor_is(stored) -> None:
    digest = next(iter(stored.records))
    record = stored.records[digest]
    own = set(frames_of(record, "parameter/3"))
    for frame in record.blobs:
        good = stored.frames[frame]
        stored.frames[frame] = good[:1] + bytes(byte ^ 255 for byte in good[1:])
        if frame in own:
            with pytest.raises(MalformedError):
                stored.chain().tensor(digest, "parameter/3")
        else:
            assert stored.chain().tensor(digest, "parameter/3").entry() == record.row("parameter/3").entry
        stored.frames[frame] = good


@pytest.mark.parametrize("portion", [1, 500, 1 << 20])
def test_however_a_snapshot_is_shared_out_among_threads_the_outcome_is_the_same(stored, monkeypatch, portion) -> None:
    monkeypatch.setattr(decoding, "PORTION", portion)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 5)
    for digest, snapshot in zip(stored.records, stored.snapshots, strict=True):
        assert stored.chain().get(digest).digest() == digest
        assert [t.data.tobytes() for t in stored.chain().get(digest).tensors] == [
            t.data.tobytes() for t in snapshot.tensors
        ]
    digest = next(iter(stored.records))
    bad = sorted(frames_of(stored.records[digest], "parameter/1") + frames_of(stored.records[digest], "parameter/4"))
    for frame in bad:
        stored.frames[frame] += b"x"
    for _ in range(5):
        with pytest.raises(MalformedError, match="size of a frame") as caught:
            stored.chain().get(digest)
        first = frames_of(stored.records[digest], "parameter/1")[0]
        wrong = stored.frames[first]
        assert (caught.value.expected, caught.value.got) == (f"{len(wrong) - 1} bytes", f"{len(wrong)} bytes")


def test_bases_are_hashed_only_when_somebody_asks_for_them(stored, monkeypatch) -> None:
    digests = list(stored.records)
    hashed: list[str] = []
    original = Tensor.entry
    monkeypatch.setattr(Tensor, "entry", lambda tensor: hashed.append(tensor.name) or original(tensor))
    held = stored.chain(kept=4)
    for position in (3, 1):
        hashed.clear()
        held.get(digests[position])
        assert sorted(hashed) == sorted(stored.snapshots[position].names)
    stored.asked.clear()
    held.get(digests[1])
    assert sorted(hashed) == sorted(stored.snapshots[1].names)
    assert stored.asked == []


def test_a_base_that_was_decoded_whole_is_hashed_when_it_is_asked_for(monkeypatch) -> None:
    """One of weights alone, of which the next snapshot needs everything: it is not decoded again."""
    base, live = (Snapshot((state(step).tensor("parameter/5"),), b"\x90") for step in range(2))
    stored = Stored(0)
    stored.add(*encode(base, None, FIDELITY)[:2])
    stored.add(*encode(live, base, FIDELITY)[:2])
    first, second = stored.records
    held = stored.chain(kept=2)
    held.get(second)
    stored.asked.clear()
    hashed: list[str] = []
    original = Tensor.entry
    monkeypatch.setattr(Tensor, "entry", lambda tensor: hashed.append(tensor.name) or original(tensor))
    for _ in range(2):
        assert held.get(first).names == ("parameter/5",)
        assert (stored.asked, hashed) == ([], ["parameter/5"])


@pytest.mark.parametrize("damaged", range(4))
def test_the_damaged_snapshot_of_a_chain_is_named(stored, damaged) -> None:
    digests = list(stored.records)
    frame = frames_of(stored.records[digests[damaged]], "parameter/5")[0]
    good = stored.frames[frame]
    stored.frames[frame] = good[:1] + bytes(byte ^ 1 for byte in good[1:])
    held = stored.chain(kept=4)
    for _ in range(2):
        for wanted in range(damaged, 4):
            match = "decoded tensor|zstd"
            if wanted != damaged:
                match = f"snapshot {digests[damaged].hex()[:16]}, which it is stored against: .*({match})"
            with pytest.raises(MalformedError, match=match):
                held.get(digests[wanted])
        for wanted in range(damaged):
            assert held.get(digests[wanted]).digest() == digests[wanted]


def test_a_base_that_was_only_used_is_not_handed_out_damaged(stored) -> None:
    """Its one damaged tensor, a first moment, plays no part in what is decoded from it."""
    digests = list(stored.records)
    frame = frames_of(stored.records[digests[0]], "optimizer/0/exp_avg")[0]
    good = stored.frames[frame]
    assert good[0] == RAW
    stored.frames[frame] = good[:1] + bytes((good[1] ^ 1,)) + good[2:]  # of the tensor's first element
    held = stored.chain(kept=4)
    assert held.get(digests[1]).digest() == digests[1]
    with pytest.raises(MalformedError, match="decoded tensor optimizer/0/exp_avg:"):
        held.get(digests[0])


def test_an_entry_that_lies_about_its_hash_is_refused(stored) -> None:
    """A consistent record whose one entry names another content than its frames hold."""
    record = next(iter(stored.records.values()))
    entries = [
        replace(row.entry, digest=bytes(32)) if row.entry.name == "parameter/3" else row.entry for row in record.tensors
    ]
    rows = tuple(
        StoredTensor(entry, row.encoding, row.exponent) for entry, row in zip(entries, record.tensors, strict=True)
    )
    lying = replace(record, state_digest=state_digest(entries, record.scalars), tensors=rows)
    stored.records[lying.state_digest] = lying
    with pytest.raises(MalformedError, match="decoded tensor parameter/3"):
        stored.chain().tensor(lying.state_digest, "parameter/3")
    assert stored.chain().tensor(lying.state_digest, "parameter/4").data.size == 28
