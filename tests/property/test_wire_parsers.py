"""Every parser of records under arbitrary bytes, mutated encodings, and generated values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polstore.codec.frames import StoredSnapshot
from polstore.errors import MalformedError
from polstore.wire import canonical
from polstore.wire.bundle import HEADER_SIZE, Bundle, OpenedSegment, Samples, parse_header
from polstore.wire.challenge import Challenge, Rules
from polstore.wire.environment import Environment
from polstore.wire.fields import MAX_INDEX
from polstore.wire.ledger import LedgerLeaf
from polstore.wire.manifest import Dataset, Initial, Manifest, Optimizer, Parent, Recipe
from polstore.wire.segment import Norms, SegmentRecord
from polstore.wire.state import TensorEntry
from polstore.wire.steps import Microbatch, Step, Steps, parse_groups
from tools.vectors import challenge, ledger, tiny_run

if TYPE_CHECKING:
    from collections.abc import Callable


def decoded(data: bytes) -> canonical.Value:
    return canonical.decode(data, limit=2**16, what="test")


def bundle_again(data: bytes) -> bytes:
    digest, length = parse_header(data[:HEADER_SIZE])
    if len(data) - HEADER_SIZE != length:
        raise MalformedError("length of the file")
    return Bundle.parse_index(digest, data[HEADER_SIZE:]).head()


# name: (parse and encode again, a valid encoding)
PARSERS: dict[str, tuple[Callable[[bytes], bytes], bytes]] = {
    "manifest": (lambda data: Manifest.parse(data).encode(), tiny_run.LEAVES[0]),
    "segment": (lambda data: SegmentRecord.parse(data).encode(), tiny_run.LEAVES[1]),
    "steps": (lambda data: Steps.parse(data).encode(), tiny_run.STEPS[0].encode()),
    "ledger leaf": (lambda data: LedgerLeaf.parse(data).encode(), ledger.LEAVES[1].encode()),
    "challenge": (lambda data: Challenge.parse(data).encode(), challenge.LARGE.encode()),
    "bundle": (bundle_again, tiny_run.bundle(0).head()),
    "snapshot": (lambda data: StoredSnapshot.parse(data).encode(), tiny_run.SNAPSHOTS[1].encode()),
    "environment": (
        lambda data: canonical.encode(Environment.from_value(decoded(data)).value()),
        canonical.encode(tiny_run.ENVIRONMENT.value()),
    ),
    "hyperparameters": (
        lambda data: canonical.encode(parse_groups(decoded(data))),
        tiny_run.HYPERPARAMETERS_BLOB,
    ),
    "entry": (
        lambda data: canonical.encode(TensorEntry.from_value(decoded(data)).value()),
        canonical.encode(tiny_run.SNAPSHOTS[0].tensors[0].entry.value()),
    ),
}


def accepted(again: Callable[[bytes], bytes], data: bytes) -> bool:
    """Return whether ``data`` is parsed, in which case encoding must give it back; any other error is a failure."""
    try:
        assert again(data) == data
    except MalformedError:
        return False
    return True


@pytest.mark.parametrize("name", PARSERS)
def test_the_valid_encoding_is_one(name: str) -> None:
    again, valid = PARSERS[name]
    assert accepted(again, valid)


@pytest.mark.parametrize("name", PARSERS)
@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=80))
def test_arbitrary_bytes(name: str, data: bytes) -> None:
    accepted(PARSERS[name][0], data)


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS | st.binary(max_size=40), lambda inner: st.lists(inner, max_size=13).map(tuple), max_leaves=30
)


@pytest.mark.parametrize("name", [name for name in PARSERS if name != "bundle"])
@settings(deadline=None, max_examples=30)
@given(VALUES)
def test_arbitrary_values(name: str, value: canonical.Value) -> None:
    accepted(PARSERS[name][0], canonical.encode(value))


@pytest.mark.parametrize("name", PARSERS)
@settings(deadline=None, max_examples=100)
@given(st.data())
def test_mutated_bytes(name: str, data: st.DataObject) -> None:
    again, valid = PARSERS[name]
    at = data.draw(st.integers(0, len(valid) - 1))
    match data.draw(st.sampled_from(("flip", "insert", "delete", "cut", "repeat"))):
        case "flip":
            changed = valid[:at] + bytes([valid[at] ^ data.draw(st.integers(1, 255))]) + valid[at + 1 :]
        case "insert":
            changed = valid[:at] + data.draw(st.binary(min_size=1, max_size=4)) + valid[at:]
        case "delete":
            changed = valid[:at] + valid[at + data.draw(st.integers(1, 4)) :]
        case "cut":
            changed = valid[:at]
        case _:
            changed = valid[: at + 1] + valid[at:]
    accepted(again, changed)


def test_no_flipped_byte_of_a_bundle_or_challenge_is_accepted() -> None:
    for name in ("bundle", "challenge"):
        again, valid = PARSERS[name]
        for at in range(len(valid)):
            changed = valid[:at] + bytes([valid[at] ^ 1]) + valid[at + 1 :]
            # A challenge's origin and rules are not part of what its nonce draws from: others are another challenge.
            origin = valid.index(tiny_run.ORIGIN.encode()) if name == "challenge" else -1
            rules = valid.index(challenge.NONCE) + len(challenge.NONCE) if name == "challenge" else -1
            if name == "challenge" and (origin <= at < origin + len(tiny_run.ORIGIN) or rules <= at < rules + 3):
                continue
            assert not accepted(again, changed), (name, at)


@pytest.mark.parametrize("name", [name for name in PARSERS if name != "bundle"])
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_field_replaced_by_any_value(name: str, data: st.DataObject) -> None:
    again, valid = PARSERS[name]
    value = decoded(valid)

    def replaced(old: canonical.Value) -> canonical.Value:
        if not isinstance(old, tuple) or not old or data.draw(st.integers(0, 3)) == 0:
            return data.draw(VALUES)
        at = data.draw(st.integers(0, len(old) - 1))
        return (*old[:at], replaced(old[at]), *old[at + 1 :])

    accepted(again, canonical.encode(replaced(value)))


DIGESTS = st.binary(min_size=32, max_size=32)
NUMBERS = st.integers(0, 1000) | st.integers(0, MAX_INDEX)
CONTROLS = "".join(map(chr, [0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)]))
TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters=CONTROLS), min_size=1, max_size=20)


def pairs(names: Any, values: Any) -> Any:
    return st.dictionaries(names, values, max_size=4).map(
        lambda found: tuple(sorted(found.items(), key=lambda item: item[0].encode()))
    )


ENVIRONMENTS = st.builds(
    Environment,
    st.sampled_from(("cpu", "cuda", "xpu")),
    TEXTS,
    TEXTS,
    TEXTS,
    st.integers(1, 65_536),
    pairs(TEXTS, TEXTS),
)
EXTENSIONS = pairs(TEXTS, st.binary(max_size=40))
IDENTIFIERS = st.from_regex("[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True)
SETTINGS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20)
PARENTS = st.builds(Parent, TEXTS, st.integers(1, MAX_INDEX), DIGESTS, NUMBERS, DIGESTS, DIGESTS)
MANIFESTS = st.builds(
    Manifest,
    run=st.from_regex("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    recipe=st.builds(Recipe, st.just("file"), DIGESTS, pairs(IDENTIFIERS, SETTINGS))
    | st.just(Recipe("none", bytes(32))),
    dataset=st.builds(Dataset, DIGESTS, st.integers(1, MAX_INDEX)) | st.just(Dataset.not_committed()),
    optimizer=st.builds(Optimizer, TEXTS, DIGESTS),
    seed=DIGESTS,
    sampler=st.sampled_from(("seed", "free")),
    initial=st.builds(Initial, st.sampled_from(("seed", "distribution")), DIGESTS)
    | st.builds(Initial, st.just("parent"), DIGESTS, PARENTS),
    environment=ENVIRONMENTS,
    fidelity=st.from_regex("[a-z0-9-]{1,64}", fullmatch=True),
    every=st.integers(1, 1_000_000),
    not_before=st.none() | st.binary(min_size=1, max_size=40),
    extensions=EXTENSIONS,
)
HYPERPARAMETERS = st.lists(pairs(IDENTIFIERS, SCALARS | st.just((1, 0.9, 0.999))), max_size=2).map(tuple)
MICROBATCHES = st.builds(Microbatch, NUMBERS, st.lists(st.lists(NUMBERS, max_size=5).map(tuple), max_size=3).map(tuple))
STEPS = st.builds(
    Step, st.lists(MICROBATCHES, max_size=3).map(tuple), HYPERPARAMETERS, st.none() | st.floats(allow_nan=False)
)


@settings(deadline=None, max_examples=100)
@given(MANIFESTS)
def test_manifests_come_back(manifest: Manifest) -> None:
    again = Manifest.parse(manifest.encode())
    assert again.encode() == manifest.encode()
    assert repr(again) == repr(manifest)  # equal but for NaN among the settings


@settings(deadline=None, max_examples=100)
@given(st.data(), NUMBERS, st.integers(1, 1_000_000), ENVIRONMENTS, st.lists(st.floats(), min_size=4, max_size=4))
def test_segment_records_come_back(
    data: st.DataObject, start: int, length: int, environment: Environment, norms: list[float]
) -> None:
    start = min(start, MAX_INDEX - length)
    record = SegmentRecord(
        index=data.draw(NUMBERS),
        start_step=start,
        end_step=start + length,
        start_state=data.draw(DIGESTS),
        end_state=data.draw(DIGESTS),
        base_step=data.draw(st.none() | st.integers(0, start)),
        steps=data.draw(DIGESTS),
        environment=environment,
        norms=Norms(*norms),
        extensions=data.draw(EXTENSIONS),
    )
    again = SegmentRecord.parse(record.encode())
    assert again.encode() == record.encode()
    assert repr(again) == repr(record)


@settings(deadline=None, max_examples=50)
@given(NUMBERS, st.lists(STEPS, max_size=3).map(tuple))
def test_step_records_come_back(start: int, found: tuple[Step, ...]) -> None:
    steps = Steps(start, found)
    again = Steps.parse(steps.encode())
    assert again.encode() == steps.encode()
    assert repr(again) == repr(steps)
    assert again.samples() == steps.samples()


@settings(deadline=None, max_examples=100)
@given(st.data(), st.integers(1, 200), st.integers(0, 60), TEXTS, DIGESTS, DIGESTS)
def test_challenges_come_back(
    data: st.DataObject, count: int, random: int, origin: str, root: bytes, nonce: bytes
) -> None:
    some = st.sets(st.integers(0, count - 1), max_size=9)
    rules = Rules(data.draw(st.integers(1, 9)), data.draw(st.integers(0, 2**48)), data.draw(st.integers(0, 9)))
    named, picked = data.draw(some), data.draw(some)
    drawn = Challenge.draw(origin, count + 1, root, random=random, nonce=nonce, rules=rules, named=named, picked=picked)
    assert Challenge.parse(drawn.encode()) == drawn
    assert set(drawn.named) == named | {0, count - 1}
    assert set(drawn.picked) == picked - set(drawn.named)
    assert drawn.random == min(random, drawn.population)
    assert {*drawn.named, *drawn.picked} <= set(drawn.segments) <= set(range(count))
    assert len(set(drawn.segments)) == len(drawn.named) + len(drawn.picked) + drawn.random


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_bundles_come_back(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 6))

    def ascending(values: Any) -> Any:
        return data.draw(st.sets(values, max_size=4).map(lambda found: tuple(sorted(found))))

    hashes = st.lists(DIGESTS, max_size=4).map(tuple)
    opened = data.draw(st.sets(st.integers(0, size - 2)).map(sorted))
    bundle = Bundle(
        size=size,
        root=data.draw(DIGESTS),
        leaves=tuple(data.draw(st.lists(st.binary(max_size=20), min_size=size, max_size=size))),
        opened=tuple(OpenedSegment(index, data.draw(hashes)) for index in opened),
        snapshots=tuple(data.draw(st.lists(st.binary(max_size=20), max_size=3))),
        samples=Samples(tuple((index, data.draw(DIGESTS)) for index in ascending(NUMBERS)), data.draw(hashes)),
        blobs=tuple((digest, data.draw(st.integers(0, 2**40))) for digest in ascending(DIGESTS)),
    )
    head = bundle.head()
    digest, length = parse_header(head[:HEADER_SIZE])
    assert length == len(head) - HEADER_SIZE
    assert Bundle.parse_index(digest, head[HEADER_SIZE:]) == bundle
