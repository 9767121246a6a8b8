from __future__ import annotations

import hashlib
import random
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard

from polstore.codec import encoding, estimate, frames, framing, planes, stored
from polstore.codec.frames import Encoding, StoredFrame, StoredGroup, StoredSnapshot, StoredTensor, decode, encode
from polstore.codec.quantise import FIDELITIES, quantise, quantise_tensors
from polstore.codec.quantised import Quantised, Scheme
from polstore.codec.snapshot import CARRIER, Snapshot, Tensor, carrier_count
from polstore.errors import DamagedError, MalformedError, PolstoreError, UsageError
from polstore.wire import canonical
from polstore.wire.state import ITEM_SIZE, MAX_SCALARS

pytestmark = pytest.mark.usefixtures("loops")

WRITEBACK = "float16-writeback"
SCALARS = canonical.encode(("lr", 0.1))


def tensor(name: str, dtype: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Any bit pattern at all: NaN payloads, infinities, negative zeros, subnormals."""
    carrier = np.dtype(CARRIER[dtype])
    raw = np.random.default_rng(seed).bytes(carrier_count(dtype, shape) * carrier.itemsize)
    return Tensor(name, dtype, shape, np.frombuffer(raw, carrier))


def floats(name: str, values: np.ndarray) -> Tensor:
    return Tensor(name, "float32", values.shape, np.ascontiguousarray(values, "<f4").reshape(-1))


def snapshot(*tensors: Tensor, scalars: bytes = SCALARS) -> Snapshot:
    return Snapshot(tuple(sorted(tensors, key=lambda t: t.name.encode())), scalars)


def training(step: int) -> Snapshot:
    """A small state that moves like a real one, with every role and encoding in it."""
    rng = np.random.default_rng(1)
    w, v = rng.standard_normal((12, 7)) * 0.02, np.exp(rng.standard_normal((12, 7)) - 14)
    moved = np.random.default_rng(100 + step)
    return snapshot(
        floats("parameter/w", w + 3e-4 * step * moved.standard_normal(w.shape)),
        floats("parameter/frozen", w),
        floats("optimizer/w/exp_avg", moved.standard_normal(w.shape) * 1e-3),
        floats("optimizer/w/exp_avg_sq", v * (1 + 0.01 * step * moved.standard_normal(w.shape))),
        floats("optimizer/w/step", np.array(float(step))),
        floats("buffer/mean", moved.standard_normal(7)),
        Tensor("buffer/count", "int64", (), np.array([step], "<i8")),
        Tensor("buffer/mask", "bool", (4,), np.array([0, 1, step % 2, 255], "|u1")),
        Tensor("extra/empty", "float32", (0, 3), np.empty(0, "<f4")),
    )


def bytes_of(snap: Snapshot) -> list[bytes]:
    return [t.data.tobytes() for t in snap.tensors]


def roundtrip(snap: Snapshot, base: Snapshot | None, fidelity: str) -> StoredSnapshot:
    record, blobs, committed = encode(snap, base, fidelity)
    again = StoredSnapshot.parse(record.encode())
    assert again == record
    assert set(blobs) == set(record.blobs)
    assert all(hashlib.sha256(frame).digest() == digest for digest, frame in blobs.items())
    assert record.stored_bytes == sum(map(len, blobs.values()))
    out = decode(again, base, blobs.__getitem__)
    wanted = quantise(snap, base, fidelity)
    assert bytes_of(out) == bytes_of(committed) == bytes_of(wanted)
    assert out.digest() == committed.digest() == wanted.digest() == record.state_digest
    assert [(t.name, t.dtype, t.shape) for t in out.tensors] == [(t.name, t.dtype, t.shape) for t in snap.tensors]
    assert out.scalars == snap.scalars
    return record


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_every_dtype_shape_and_bit_pattern(fidelity: str) -> None:
    def state(seed: int) -> Snapshot:
        shapes = [(), (0,), (1,), (3, 5), (2, 0, 4)]
        kinds = ["parameter/{}", "optimizer/{}/exp_avg", "optimizer/{}/exp_avg_sq", "buffer/{}"]
        return snapshot(
            *(
                tensor(kind.format(f"{dtype}{i}"), dtype, shape, seed + 17 * i)
                for dtype in CARRIER
                for i, shape in enumerate(shapes)
                for kind in kinds
            )
        )

    keyframe = state(1)
    found = {row.encoding for row in roundtrip(keyframe, None, fidelity).tensors}
    assert found == {Encoding.EXACT} | ({Encoding.BFLOAT16} if fidelity != "lossless" else set())
    roundtrip(state(2), keyframe, fidelity)
    again = roundtrip(keyframe, keyframe, fidelity)
    if fidelity == "lossless":
        assert again.blobs == ()


def test_carriers_cover_every_dtype_and_size() -> None:
    assert CARRIER.keys() == ITEM_SIZE.keys()
    for dtype, size in ITEM_SIZE.items():
        assert carrier_count(dtype, ()) * np.dtype(CARRIER[dtype]).itemsize == size


def test_encodings_of_a_training_state() -> None:
    base = encode(training(0), None, WRITEBACK)[2]
    record = roundtrip(training(1), base, WRITEBACK)
    assert {row.entry.name: row.encoding.name for row in record.tensors} == {
        "parameter/w": "SCALED_DELTA",
        "parameter/frozen": "SAME",
        "optimizer/w/exp_avg": "BFLOAT16",
        "optimizer/w/exp_avg_sq": "BFLOAT16",
        "optimizer/w/step": "BFLOAT16",  # a small integer as float32
        "buffer/mean": "DIFFERENCE",
        "buffer/count": "DIFFERENCE",
        "buffer/mask": "EXACT",
        "extra/empty": "EXACT",
    }
    assert [(g.encoding.name, g.item_size) for g in record.groups] == [
        ("EXACT", 1),
        ("DIFFERENCE", 4),
        ("DIFFERENCE", 8),
        ("SCALED_DELTA", 2),
        ("BFLOAT16", 2),
    ]


def upper(name: str, seed: int) -> Tensor:
    """A tensor of any bfloat16 at all, as float32."""
    words = np.random.default_rng(seed).integers(0, 1 << 16, 500, dtype="<u4") << 16
    return Tensor(name, "float32", (500,), words.astype("<u4").view("<f4"))


@pytest.mark.parametrize("name", ["optimizer/w/exp_avg", "buffer/b", "parameter/w"])
def test_what_is_a_bfloat16_is_stored_as_one_whatever_it_is(name: str) -> None:
    """Moments that are stored anew without loss, for one, with a base or without; half the bytes."""
    for base in (None, snapshot(upper(name, 1))):
        record = roundtrip(snapshot(upper(name, 2)), base, "lossless")
        assert [(row.encoding, row.exponent) for row in record.tensors] == [(Encoding.BFLOAT16, 0)]
        assert record.stored_bytes <= 2 * 501
    words = upper(name, 2).data.view("<u4").copy()
    words[499] |= 1
    record = roundtrip(snapshot(Tensor(name, "float32", (500,), words.view("<f4"))), None, "lossless")
    assert [row.encoding for row in record.tensors] == [Encoding.EXACT]
    same = roundtrip(snapshot(upper(name, 1)), snapshot(upper(name, 1)), "lossless")
    assert [row.encoding for row in same.tensors] == [Encoding.SAME]


def test_a_moment_that_is_not_finite_is_stored_against_its_base_or_whole() -> None:
    bad = snapshot(floats("optimizer/w/exp_avg_sq", np.array([np.nan, 1.00001])))
    good = snapshot(floats("optimizer/w/exp_avg_sq", np.array([1.0, 1.00002])))
    for fidelity in ("float16-writeback", "compact-writeback"):
        for base, wanted in ((None, Encoding.EXACT), (good, Encoding.DIFFERENCE)):
            assert [row.encoding for row in roundtrip(bad, base, fidelity).tensors] == [wanted]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int32"])
def test_what_has_little_in_common_with_its_base_is_stored_as_it_is(dtype: str) -> None:
    """The smaller of both ways, for many elements; for a few it is not worth looking."""

    def state(values: np.ndarray) -> Snapshot:
        wide = np.ascontiguousarray(values, "<f4").view("<u4") >> 16
        data = wide if dtype == "bfloat16" else np.abs(values) * 2.0**20 if dtype == "int32" else values
        return snapshot(Tensor("buffer/b", dtype, values.shape, np.ascontiguousarray(data).astype(CARRIER[dtype])))

    rng = np.random.default_rng(5)
    one, other = rng.standard_normal((2, 20_000))
    near = one * (1 + 1e-4 * other)
    for count, live, wanted in (
        (20_000, other, Encoding.EXACT),
        (20_000, near, Encoding.DIFFERENCE),
        (estimate.SAMPLE - 1, other, Encoding.DIFFERENCE),
    ):
        record = roundtrip(state(live[:count]), state(one[:count]), "lossless")
        assert [row.encoding for row in record.tensors] == [wanted]
    assert (
        roundtrip(state(near), state(one), "lossless").stored_bytes
        < roundtrip(state(near), None, "lossless").stored_bytes
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "smaller_as_difference", lambda *_: True)
        differences = roundtrip(state(other), state(one), "lossless")
    assert [row.encoding for row in differences.tensors] == [Encoding.DIFFERENCE]
    assert roundtrip(state(other), state(one), "lossless").stored_bytes < differences.stored_bytes


@pytest.mark.parametrize("rows", [1024, 2048])
def test_one_column_does_not_stand_for_the_whole_matrix(rows: int) -> None:
    """Where its values lie at equal distances, and change as no others do."""
    one, other = np.random.default_rng(6).standard_normal((2, rows, 20)).astype("<f4")
    for live, first, wanted in ((one * 1.0001, other, Encoding.DIFFERENCE), (other, one, Encoding.EXACT)):
        live[:, 0] = first[:, 0]
        record = roundtrip(snapshot(floats("buffer/b", live)), snapshot(floats("buffer/b", one)), "lossless")
        assert [row.encoding for row in record.tensors] == [wanted]


def test_a_chain_does_not_drift() -> None:
    base = None
    for step in range(6):
        live = training(step)
        record, blobs, committed = encode(live, base, WRITEBACK)
        base = decode(record, base, blobs.__getitem__)
        assert base.digest() == committed.digest()
    assert np.abs(base.tensor("parameter/w").data - live.tensor("parameter/w").data).max() < 1e-2 * 2**-11


def test_empty_snapshot_and_snapshot_without_elements() -> None:
    roundtrip(Snapshot((), b""), None, "lossless")
    roundtrip(snapshot(tensor("a", "float64", (0, 2), 0)), None, "lossless")


def test_a_tensor_larger_than_a_group_spans_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "GROUP", 40)
    for dtype in ("float32", "complex128", "uint8", "bfloat16"):
        tensors = [tensor(f"t{i}", dtype, (n,), i) for i, n in enumerate([3, 45, 0, 1, 10, 20])]
        record = roundtrip(snapshot(*tensors), None, "lossless")
        assert all(g.count * g.item_size <= 40 for g in record.groups)
        assert len(record.groups) == -(-sum(t.nbytes for t in tensors) // 40)


def test_another_cut_of_the_groups_decodes_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base = encode(training(0), None, WRITEBACK)[2]
    records = []
    for limit in (32, stored.MAX_GROUP):
        monkeypatch.setattr(encoding, "GROUP", limit)
        record, blobs, _ = encode(training(1), base, WRITEBACK)
        records.append(record)
        assert decode(record, base, blobs.__getitem__).digest() == record.state_digest
    assert records[0].groups != records[1].groups
    assert records[0].state_digest == records[1].state_digest


def test_compressible_planes_shrink_and_others_stay_raw() -> None:
    record, blobs, _ = encode(snapshot(floats("a", np.ones(1000))), None, "lossless")
    assert all(frame[0] == frames.ZSTD and len(frame) < 50 for frame in blobs.values())
    record, blobs, _ = encode(snapshot(tensor("a", "uint8", (1000,), 1)), None, "lossless")
    assert [(frame[0], len(frame)) for frame in blobs.values()] == [(frames.RAW, 1001)]
    assert record.groups[0].frames[0].size == 1001


def test_encode_notices_items_that_do_not_lead_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes, "unzigzag", lambda codes: np.zeros(codes.size, f"<i{codes.dtype.itemsize}"))
    with pytest.raises(DamagedError, match="buffer/count does not decode"):
        encode(training(1), training(0), WRITEBACK)


def test_encode_notices_frames_that_do_not_lead_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def decompress(self, data: bytes) -> bytes:
            return bytes(zstandard.get_frame_parameters(data).content_size)

    monkeypatch.setattr(framing.zstandard, "ZstdDecompressor", Broken)
    with pytest.raises(DamagedError, match="frame does not hold"):
        encode(snapshot(floats("a", np.ones(1000))), None, "lossless")


def encoded(parts, base: Snapshot, keep=lambda part: True):
    """Encode parts; return the record, the frames, and the committed tensors that are to be kept."""
    blobs: dict[bytes, bytes] = {}
    kept: list[Tensor] = []
    done = lambda part: kept.append(part.tensor) if keep(part) else None  # noqa: E731
    record = frames.encode_parts(parts, SCALARS, base.digest(), blobs.__setitem__, done)
    return record, blobs, Snapshot(tuple(kept), SCALARS)


def test_only_the_tensors_to_keep_are_held_afterwards() -> None:
    parts = tuple(quantise_tensors(training(1), training(0), WRITEBACK))
    base = training(0)
    whole = encoded(parts, base)
    made = {part.name: weakref.ref(part.tensor) for part in parts if part.scheme is not Scheme.EXACT}
    record, blobs, kept = encoded(parts, base, lambda part: part.name.startswith("parameter/"))
    assert (record, blobs) == whole[:2]
    assert record.state_digest == whole[2].digest()
    assert kept.names == ("parameter/frozen", "parameter/w")
    assert all(tensor.entry() == whole[2].tensor(tensor.name).entry() for tensor in kept.tensors)
    alive = {name for name, reference in made.items() if reference() is not None}
    assert alive == {"parameter/frozen", "parameter/w"}
    assert {"optimizer/w/exp_avg", "optimizer/w/exp_avg_sq"} <= made.keys()


def test_what_is_the_same_in_the_base_keeps_its_own_memory() -> None:
    again = Tensor("buffer/w", "float32", (3,), np.ones(3, "<f4"))
    base = snapshot(Tensor("buffer/w", "float32", (3,), np.ones(3, "<f4")))
    for fidelity in FIDELITIES:
        record, blobs, committed = encode(snapshot(again), base, fidelity)
        assert ([row.encoding for row in record.tensors], blobs) == ([Encoding.SAME], {})
        assert not np.shares_memory(committed.tensors[0].data, base.tensors[0].data)


def test_parts_are_taken_one_by_one_and_let_go_of() -> None:
    alive: list[weakref.ref] = []

    def parts():
        for part in quantise_tensors(training(1), training(0), WRITEBACK):
            assert not any(reference() for reference in alive)
            if part.scheme in (Scheme.SCALED_DELTA, Scheme.BFLOAT16):
                alive.append(weakref.ref(part.items))
            yield part
            del part

    record, blobs, committed = encoded(parts(), training(0))
    assert alive
    assert (record, blobs) == encode(training(1), training(0), WRITEBACK)[:2]
    assert committed.digest() == record.state_digest


def many_groups() -> Snapshot:
    """Streams of one and two bytes an item, each of several full groups and a rest."""
    generator = np.random.default_rng(1)
    moments = generator.standard_normal(3 << 19).astype("<f4")
    flags = generator.integers(0, 2, (5 << 19) + 7).astype("|u1")
    return snapshot(floats("optimizer/w/exp_avg", moments), Tensor("buffer/mask", "bool", flags.shape, flags))


def test_packing_in_another_thread_gives_the_same_frames_in_the_same_order() -> None:
    runs = []
    for beside in (False, True, True):
        put: list[tuple[bytes, bytes]] = []
        threads: set[int] = set()

        def note(digest, frame, put=put, threads=threads):
            put.append((digest, frame))
            threads.add(threading.get_ident())

        parts = quantise_tensors(many_groups(), None, WRITEBACK)
        record = frames.encode_parts(parts, SCALARS, None, note, lambda part: None, beside=beside)
        assert threads == {threading.get_ident()}  # a transaction belongs to one thread
        runs.append((record, put))
    assert len(runs[0][0].groups) == 6
    assert runs[0] == runs[1] == runs[2]
    assert frames.decode(runs[1][0], None, dict(runs[1][1]).__getitem__).digest() == runs[1][0].state_digest


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("fails", ["packing", "putting", "parts"])
def test_an_error_ends_the_packing_thread(beside, fails, monkeypatch) -> None:
    def broken(*_):
        raise DamagedError("broken here")

    def parts():
        yield from quantise_tensors(many_groups(), None, WRITEBACK)
        if fails == "parts":
            broken()

    if fails == "packing":
        monkeypatch.setattr(framing.Packer, "pack", broken)
    put = broken if fails == "putting" else lambda digest, frame: None
    with pytest.raises(DamagedError, match="broken here"):
        frames.encode_parts(parts(), SCALARS, None, put, lambda part: None, beside=beside)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("polstore-pack")]


def test_parts_that_contradict_their_scheme_are_refused() -> None:
    live, base = training(1).tensor("parameter/w"), training(0).tensor("parameter/w")
    about = (live.name, live.dtype, live.shape)
    for partner, scheme, items in (
        (base, Scheme.SHORT_DIFFERENCE, live.data),
        (None, Scheme.BFLOAT16, live.data),
        (None, Scheme.BFLOAT16, None),
        (None, Scheme.BFLOAT16, np.zeros(3, "<u2")),
        (None, Scheme.UNCHANGED, None),
        (None, Scheme.STEPPED_DELTA, np.ones(84, "<i2")),
        (base, Scheme.STEPPED_DELTA, live.data),
        (base, Scheme.STEPPED_DELTA, np.zeros(84, "<u2")),
        (base, Scheme.STEPPED_DELTA, np.zeros(3, "<i2")),
        (None, Scheme.SCALED_DELTA, live.data.view("<u2")[: live.data.size]),
        (base, Scheme.EXACT, None),
        (base, Scheme.EXACT, live.data[:-1]),
        (base, Scheme.EXACT, live.data.view("<u4")),
    ):
        with pytest.raises(UsageError, match=r"quantised tensor parameter/w, .*: expected items"):
            Quantised(*about, partner, scheme, items=items)
    for part, error, match in (
        (Quantised(*about, base, Scheme.SHORT_DIFFERENCE, items=np.ones(84, "<u2")), DamagedError, "does not decode"),
        (Quantised(*about, base, Scheme.STEPPED_DELTA, 125, np.ones(84, "<i2")), MalformedError, "exponent"),
    ):
        with pytest.raises(error, match=match):
            encoded([part], training(0))


def test_encode_refuses_an_unknown_fidelity() -> None:
    with pytest.raises(UsageError):
        encode(training(0), None, "zip")


def test_worked_example_of_the_spec() -> None:
    base = snapshot(floats("parameter/w", np.array([1.0, -2.0, 0.5])), scalars=b"\x90")
    live = snapshot(floats("parameter/w", np.array([1.001, -2.0005, 0.5])), scalars=b"\x90")
    record, blobs, _ = encode(live, base, WRITEBACK)
    text = " ".join((Path(__file__).parents[2] / "specs" / "codec.md").read_text().split())
    for digest, frame in blobs.items():
        assert f"00 {frame[1:].hex()} SHA-256 {digest.hex()}" in text
    assert f"base state digest {base.digest().hex()}" in text
    assert f"result state digest {record.state_digest.hex()}" in text
    data = record.encode()
    assert len(data) == 233
    known = data.hex()
    for digest in (record.state_digest, base.digest(), *blobs):
        known = known.replace(digest.hex(), "")
    entry = record.tensors[0].entry
    assert entry.digest.hex() in text
    assert known == (
        "96b4706f6c73746f72652f736e617073686f742f7631c420c420c4019091939500ab706172616d657465722f77a7666c6f617433329103c420"
        + entry.digest.hex()
        + "03e891940302039292c4200492c42004"
    )


# Hostile records and frames


@pytest.fixture(scope="module")
def honest() -> tuple[StoredSnapshot, dict[bytes, bytes], Snapshot]:
    base = encode(training(0), None, WRITEBACK)[2]
    record, blobs, _ = encode(training(1), base, WRITEBACK)
    return record, blobs, base


def fetcher(blobs: dict[bytes, bytes]):
    def fetch(digest: bytes) -> bytes:
        if digest not in blobs:
            raise MalformedError("no such blob", got=digest)
        return blobs[digest]

    return fetch


def refuse(record: StoredSnapshot, base: Snapshot | None, blobs: dict[bytes, bytes], match: str) -> None:
    with pytest.raises(MalformedError, match=match):
        decode(record, base, fetcher(blobs))


def test_every_flipped_byte_of_a_record_is_caught(honest) -> None:
    record, blobs, base = honest
    data = record.encode()
    for position in range(len(data)):
        for mask in (1, 0x80, 0xFF):
            bad = bytearray(data)
            bad[position] ^= mask
            with pytest.raises(MalformedError):
                decode(StoredSnapshot.parse(bytes(bad)), base, fetcher(blobs))


def test_every_truncation_and_extension_of_a_record_is_caught(honest) -> None:
    data = honest[0].encode()
    for length in range(len(data)):
        with pytest.raises(MalformedError):
            StoredSnapshot.parse(data[:length])
    with pytest.raises(MalformedError):
        StoredSnapshot.parse(data + b"\0")


def test_every_flipped_byte_of_every_frame_is_caught(honest) -> None:
    record, blobs, base = honest
    for digest, frame in blobs.items():
        for position in range(len(frame)):
            bad = bytearray(frame)
            bad[position] ^= 1 << position % 8
            try:
                out = decode(record, base, fetcher({**blobs, digest: bytes(bad)}))
            except MalformedError:
                continue
            # zstd ignores some header bits; then the content is what it should be.
            assert out.digest() == record.state_digest


def test_random_bytes_never_raise_anything_else(honest) -> None:
    record, blobs, base = honest
    rng = random.Random(9)
    for digest, frame in blobs.items():
        for _ in range(20):
            noise = frame[:1] + rng.randbytes(len(frame) - 1)
            with pytest.raises(MalformedError):
                decode(record, base, fetcher({**blobs, digest: noise}))
    for _ in range(200):
        with pytest.raises(PolstoreError):
            StoredSnapshot.parse(rng.randbytes(rng.randrange(64)))


def test_wrong_base(honest) -> None:
    record, blobs, base = honest
    refuse(record, None, blobs, "another base")
    refuse(record, encode(training(2), None, WRITEBACK)[2], blobs, "another base")
    keyframe, own, _ = encode(training(0), None, WRITEBACK)
    refuse(keyframe, base, own, "another base")


def test_base_that_lacks_the_tensor(honest) -> None:
    record, blobs, base = honest
    smaller = Snapshot(tuple(t for t in base.tensors if t.name != "parameter/w"), base.scalars)
    refuse(replace(record, base=smaller.digest()), smaller, blobs, "base has no tensor like parameter/w")


def test_declared_size_cap(honest) -> None:
    record, blobs, base = honest
    assert decode(record, base, fetcher(blobs), max_bytes=record.nbytes).nbytes == record.nbytes + len(SCALARS)
    with pytest.raises(MalformedError, match="too large"):
        decode(record, base, fetcher(blobs), max_bytes=record.nbytes - 1)


def one_plane(frame: bytes, count: int, *, size: int | None = None) -> tuple[StoredSnapshot, dict[bytes, bytes]]:
    """A record of one uint8 tensor of zeros whose single frame is ``frame``."""
    digest = hashlib.sha256(frame).digest()
    snap = snapshot(Tensor("a", "uint8", (count,), np.zeros(count, "|u1")))
    group = StoredGroup(Encoding.EXACT, 1, count, (StoredFrame(digest, len(frame) if size is None else size),))
    rows = tuple(StoredTensor(entry, Encoding.EXACT) for entry in snap.entries())
    return StoredSnapshot(snap.digest(), None, SCALARS, rows, (group,)), {digest: frame}


def zstd(content: bytes, *, with_size: bool = True) -> bytes:
    return b"\x01" + zstandard.ZstdCompressor(write_content_size=with_size).compress(content)


def test_frame_of_zeros_is_accepted_raw_and_compressed() -> None:
    for frame in (b"\0" + bytes(100), zstd(bytes(100))):
        record, blobs = one_plane(frame, 100)
        assert decode(record, None, blobs.__getitem__).tensors[0].data.tobytes() == bytes(100)


@pytest.mark.parametrize(
    ("frame", "match"),
    [
        (zstd(bytes(1 << 20)), "content of a zstd frame"),  # a bomb: 1 MiB where 100 bytes were declared
        (zstd(bytes(99)), "content of a zstd frame"),
        (zstd(bytes(100), with_size=False), "content of a zstd frame"),
        (zstd(bytes(100)) + b"\0", "not one zstd frame"),
        (zstd(bytes(100)) + zstd(bytes(100))[1:], "not one zstd frame"),
        (zstd(bytes(100))[:-1], "not one zstd frame"),
        (b"\x01" + b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstd(bytes(100))[1:], "zstd frame"),  # a skippable frame first
        (b"\x01abc", "not one zstd frame"),
        (b"\x00" + bytes(99), "raw frame"),
        (b"\x02" + bytes(100), "first byte"),
        (b"\x00" + b"\x01" + bytes(99), "decoded tensor a"),
    ],
)
def test_hostile_frames(frame: bytes, match: str) -> None:
    record, blobs = one_plane(frame, 100)
    refuse(record, None, blobs, match)


def test_zstd_frame_with_a_checksum_that_fails() -> None:
    good = b"\x01" + zstandard.ZstdCompressor(write_checksum=True).compress(bytes(100))
    record, blobs = one_plane(good, 100)
    assert decode(record, None, blobs.__getitem__).nbytes == 100 + len(SCALARS)
    record, blobs = one_plane(good[:-1] + bytes((good[-1] ^ 1,)), 100)
    refuse(record, None, blobs, "not one zstd frame")


@pytest.mark.parametrize("delta", [-1, 1])
def test_frame_of_another_size_than_declared(delta: int) -> None:
    frame = zstd(bytes(100))
    record, blobs = one_plane(frame, 100, size=len(frame) + delta)
    refuse(record, None, blobs, "size of a frame")


def test_huge_declared_shapes_allocate_nothing() -> None:
    entry = replace(snapshot(tensor("a", "uint8", (1,), 0)).entries()[0], shape=(1 << 40,))
    with pytest.raises(MalformedError, match="do not hold what the tensors need"):
        StoredSnapshot(bytes(32), None, SCALARS, (StoredTensor(entry, Encoding.EXACT),), ())
    frame = StoredFrame(bytes(32), 2)
    groups = tuple(StoredGroup(Encoding.EXACT, 1, stored.MAX_GROUP, (frame,)) for _ in range(1 << 18))
    digest = stored.state_digest([entry], SCALARS)
    record = StoredSnapshot(digest, None, SCALARS, (StoredTensor(entry, Encoding.EXACT),), groups)
    refuse(record, None, {}, "too large")
    with pytest.raises(MalformedError, match="no such blob"):
        decode(record, None, fetcher({}), max_bytes=1 << 60)


def values_of(record: StoredSnapshot) -> list:
    return list(canonical.decode(record.encode(), limit=1 << 20, what="record"))


@pytest.mark.parametrize(
    ("index", "value", "match"),
    [
        (0, "polstore/snapshot/v2", "format tag"),
        (1, bytes(31), "state digest"),
        (1, bytes(32), "contradicts its state digest"),
        (2, bytes(31), "base"),
        (2, None, "has none"),
        (2, 0, "base"),
        (3, b"other", "contradicts its state digest"),
        (3, "text", "scalars"),
        (4, (), "do not hold"),
        (5, (), "do not hold"),
    ],
)
def test_hostile_fields(honest, index: int, value: object, match: str) -> None:
    values = values_of(honest[0])
    values[index] = value
    with pytest.raises(MalformedError, match=match):
        StoredSnapshot.parse(canonical.encode(tuple(values)))


def test_duplicate_and_unsorted_names(honest) -> None:
    values = values_of(honest[0])
    rows = values[4]
    same = next(row for row in rows if row[1] == Encoding.SAME)
    at = rows.index(same)
    for bad in (rows[: at + 1] + rows[at:], rows[1:] + rows[:1]):
        values[4] = bad
        with pytest.raises(MalformedError, match="not sorted or not unique"):
            StoredSnapshot.parse(canonical.encode(tuple(values)))


@pytest.mark.parametrize(
    ("name", "encoding", "exponent", "match"),
    [
        ("parameter/w", Encoding.SCALED_DELTA, 114, "exponent"),
        ("parameter/w", Encoding.SCALED_DELTA, -127, "exponent"),
        ("parameter/frozen", Encoding.SAME, 1, "exponent"),
        ("parameter/w", 7, 0, "encoding"),
        ("parameter/w", Encoding.STEPPED_DELTA, 125, "exponent"),
        ("optimizer/w/exp_avg", Encoding.BFLOAT16, 1, "exponent"),
        ("optimizer/w/exp_avg", Encoding.SHORT_DIFFERENCE, -1, "exponent"),
        ("buffer/count", Encoding.BFLOAT16, 0, "encoding for float32"),
        ("buffer/count", Encoding.SHORT_DIFFERENCE, 0, "encoding for float32"),
        ("buffer/mask", Encoding.DIFFERENCE, 0, "wider numbers"),
        ("parameter/w", Encoding.BFLOAT16, 0, "do not hold"),
        ("extra/empty", Encoding.SAME, 0, "has no elements"),
    ],
)
def test_hostile_rows(honest, name: str, encoding: int, exponent: int, match: str) -> None:
    values = values_of(honest[0])
    values[4] = tuple((row[0], encoding, exponent) if row[0][1] == name else row for row in values[4])
    with pytest.raises(MalformedError, match=match):
        StoredSnapshot.parse(canonical.encode(tuple(values)))


def test_hostile_groups(honest) -> None:
    record = honest[0]
    first, *rest = record.groups
    frame = first.frames[0]
    for group, match in [
        (replace(first, count=first.count + 1), "do not hold"),
        (replace(first, count=0), "items of a stored group"),
        (replace(first, count=stored.MAX_GROUP + 1), "items of a stored group"),
        (replace(first, item_size=2), "frames of a stored group"),
        (replace(first, frames=()), "frames of a stored group"),
        (replace(first, frames=(replace(frame, size=1),)), "size of a frame"),
        (replace(first, frames=(replace(frame, size=first.count + 2),)), "size of a frame"),
    ]:
        with pytest.raises(MalformedError, match=match):
            replace(record, groups=(group, *rest))
    for groups in ((*rest, first), (first, first, *rest), (*record.groups[:-2], record.groups[-1], record.groups[-2])):
        with pytest.raises(MalformedError, match="do not hold"):
            replace(record, groups=groups)
    with pytest.raises(MalformedError, match="scalars"):
        replace(record, scalars=bytes(MAX_SCALARS + 1))


def test_record_too_long(monkeypatch: pytest.MonkeyPatch, honest) -> None:
    data = honest[0].encode()
    monkeypatch.setattr(stored, "MAX_RECORD", len(data) - 1)
    with pytest.raises(MalformedError, match="too long"):
        StoredSnapshot.parse(data)


def test_scaled_halves_that_are_nan_or_overflow_are_only_values(honest) -> None:
    record, blobs, base = honest
    group = next(g for g in record.groups if g.encoding is Encoding.SCALED_DELTA)
    frame = b"\0" + b"\xff" * group.count
    digest = hashlib.sha256(frame).digest()
    planes = tuple(StoredFrame(digest, len(frame)) for _ in group.frames)
    groups = tuple(replace(g, frames=planes) if g is group else g for g in record.groups)
    rows = tuple(replace(t, exponent=113) if t.encoding is Encoding.SCALED_DELTA else t for t in record.tensors)
    refuse(replace(record, groups=groups, tensors=rows), base, {**blobs, digest: frame}, "decoded tensor")
