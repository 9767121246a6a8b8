"""Manifest, segment record, step records, environment class, extensions: what the vectors are too small for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polstore.errors import MalformedError
from polstore.wire import canonical
from polstore.wire.environment import Environment
from polstore.wire.extensions import MAX_EXTENSIONS, parse_extensions
from polstore.wire.fields import MAX_INDEX, Fields
from polstore.wire.manifest import MAX_LEAF, Initial, Manifest, Parent, Recipe
from polstore.wire.segment import Norms, SegmentRecord
from polstore.wire.steps import Microbatch, Step, Steps, parse_groups
from tools.vectors import tiny_run
from tools.vectors.run_records import MANIFEST, RECORDS, SEGMENT, STEPS, replaced

DIGEST = bytes(32)
PARSERS = {"manifest": Manifest, "segment": SegmentRecord, "steps": Steps}


def positions(value: canonical.Value, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Return the path of every item of a record, at any depth."""
    if not isinstance(value, tuple):
        return [path]
    return [path, *(at for number, item in enumerate(value) for at in positions(item, (*path, number)))]


def at(value: canonical.Value, path: tuple[int, ...]) -> canonical.Value:
    for number in path:
        assert isinstance(value, tuple)
        value = value[number]
    return value


def environment_of(data: bytes) -> Environment:
    return Environment.from_value(canonical.decode(data, limit=len(data), what="test"))


@pytest.mark.parametrize("kind", RECORDS)
def test_no_integer_may_be_a_boolean_and_no_field_of_another_type(kind: str) -> None:
    record = RECORDS[kind]
    parse = environment_of if kind == "environment" else PARSERS[kind].parse
    paths = [path for path in positions(record) if path]
    assert len(paths) >= 10
    for path in paths:
        for wrong in (True, 1.5, "\n", b"?", (0, 0, 0, 0, 0, 0, 0), -1):
            old = at(record, path)
            if type(wrong) is type(old) and wrong != "\n" and wrong != -1:
                continue
            # These take any scalar: a setting of the recipe, a hyperparameter's value, the loss.
            if path in {(2, 2, 0, 1)} and kind == "manifest" and not isinstance(wrong, (tuple, bytes)):
                continue
            if kind == "steps" and (path[-2:] == (0, 1) and len(path) == 6 and path[2] == 1):
                continue
            if kind == "steps" and len(path) == 3 and path[2] == 2 and wrong == 1.5:
                continue
            if kind == "manifest" and path == (11,) and wrong == b"?":
                continue
            with pytest.raises(MalformedError):
                parse(canonical.encode(replaced(record, path, wrong)))


@pytest.mark.parametrize("kind", PARSERS)
def test_the_tag_keeps_records_apart(kind: str) -> None:
    data = canonical.encode(RECORDS[kind])
    for other, parser in PARSERS.items():
        if other == kind:
            assert parser.parse(data).encode() == data
        else:
            with pytest.raises(MalformedError):
                parser.parse(data)


@pytest.mark.parametrize("kind", PARSERS)
def test_one_field_more_or_less_is_refused(kind: str) -> None:
    record = RECORDS[kind]
    assert isinstance(record, tuple)
    for wrong in (record[:-1], (*record, ()), (), "record", None):
        with pytest.raises(MalformedError):
            PARSERS[kind].parse(canonical.encode(wrong))


@pytest.mark.parametrize("record", [tiny_run.MANIFEST, tiny_run.RECORDS[0]], ids=["manifest", "segment"])
def test_a_leaf_has_at_most_65535_bytes(record: Manifest | SegmentRecord) -> None:
    rest = len(replace(record, extensions=(("a", b""), ("b", bytes(32_768)))).encode()) + 1  # a longer length prefix
    fits = replace(record, extensions=(("a", bytes(MAX_LEAF - rest)), ("b", bytes(32_768))))
    leaf = fits.encode()
    assert len(leaf) == MAX_LEAF
    assert type(record).parse(leaf) == fits
    longer = replace(record, extensions=(("a", bytes(MAX_LEAF - rest + 1)), ("b", bytes(32_768))))
    with pytest.raises(MalformedError, match="too long"):
        longer.encode()
    value = canonical.decode(leaf, limit=MAX_LEAF, what="leaf")
    assert isinstance(value, tuple)
    with pytest.raises(MalformedError, match="too long"):
        type(record).parse(canonical.encode((*value[:-1], longer.extensions)))


def test_every_kind_of_initial_state_comes_back() -> None:
    parent = Parent("example.org/archive/base", 9, DIGEST, 400, DIGEST, DIGEST)
    for initial in (Initial("seed", DIGEST), Initial("distribution", DIGEST), Initial("parent", DIGEST, parent)):
        manifest = replace(tiny_run.MANIFEST, initial=initial, not_before=b"note")
        assert Manifest.parse(manifest.encode()) == manifest


def test_a_recipe_of_no_kind_is_empty() -> None:
    manifest = replace(tiny_run.MANIFEST, recipe=Recipe("none", DIGEST))
    assert Manifest.parse(manifest.encode()) == manifest
    for recipe in (Recipe("none", bytes([1]) * 32), Recipe("none", DIGEST, (("width", 3),))):
        with pytest.raises(MalformedError, match="none"):
            Manifest.parse(replace(manifest, recipe=recipe).encode())


@pytest.mark.parametrize(
    ("start", "end", "base", "sound"),
    [
        (0, 1, None, True),
        (0, 1, 0, True),
        (0, 0, None, False),
        (5, 4, None, False),
        (0, 1_000_000, 0, True),
        (0, 1_000_001, 0, False),
        (7, 8, 7, True),
        (7, 8, 8, False),
        (MAX_INDEX - 1, MAX_INDEX, 3, True),
        (MAX_INDEX, MAX_INDEX + 1, 3, False),
    ],
)
def test_the_steps_of_a_segment(start: int, end: int, base: int | None, sound: bool) -> None:
    record = replace(tiny_run.RECORDS[0], start_step=start, end_step=end, base_step=base)
    if sound:
        assert SegmentRecord.parse(record.encode()) == record
    else:
        with pytest.raises(MalformedError):
            SegmentRecord.parse(record.encode())


def test_norms_of_a_diverged_run_come_back() -> None:
    for value in (float("nan"), float("inf"), -0.0, 5e-324):
        record = replace(tiny_run.RECORDS[0], norms=Norms(value, value, value, value))
        assert SegmentRecord.parse(record.encode()).encode() == record.encode()


def test_samples_of_step_records() -> None:
    steps = Steps(4, (Step((Microbatch(0, ((3, 1), (4,))), Microbatch(1, ((1,),))), (), None), Step((), (), 0.5)))
    assert Steps.parse(steps.encode()) == steps
    assert steps.samples() == {1, 3, 4}
    assert tiny_run.STEPS[0].samples() == {0, 1, 2}


def test_hyperparameters_have_their_caps() -> None:
    assert parse_groups(((("a" * 128, 1),),))
    for wrong in (
        ((("a" * 129, 1),),),
        (tuple((f"{number:03}", 1) for number in range(257)),),
        ((("a", 1, 2),),),
        ("lr",),
        "lr",
    ):
        with pytest.raises(MalformedError):
            parse_groups(wrong)


def test_extensions_are_kept_and_bounded() -> None:
    most = tuple((f"{number:03}", b"") for number in range(MAX_EXTENSIONS))
    assert parse_extensions(most, "test") == most
    for wrong in ((("a" * 129, b""),), (("a", bytes(32_769)),), (("a",),), ("a",), (("", b""),), (("a\u2028", b""),)):
        with pytest.raises(MalformedError):
            parse_extensions(wrong, "test")


def test_names_are_sorted_by_their_utf_8_bytes() -> None:
    # U+FF5E comes before U+1F600 in UTF-8, and after it in UTF-16.
    assert parse_extensions((("\uff5e", b""), ("\U0001f600", b"")), "test")
    with pytest.raises(MalformedError, match="sorted"):
        parse_extensions((("\U0001f600", b""), ("\uff5e", b"")), "test")


@pytest.mark.parametrize("code", [0, 0x1F, 0x7F, 0x9F, 0x61C, 0x200E, 0x200F, 0x2028, 0x202E, 0x2066, 0x2069])
def test_text_has_no_controls(code: int) -> None:
    with pytest.raises(MalformedError, match="controls"):
        Fields((f"a{chr(code)}b",), "test", 1).text("name", 8)


@pytest.mark.parametrize("code", [0x20, 0x7E, 0xA0, 0xAD, 0x200D, 0x202F, 0x2065, 0x206A, 0xE000, 0x10FFFF, 0x378])
def test_text_is_not_judged_by_the_unicode_version(code: int) -> None:
    assert Fields((f"a{chr(code)}b",), "test", 1).text("name", 3) == f"a{chr(code)}b"


def test_environment_differences() -> None:
    ours = tiny_run.ENVIRONMENT
    assert ours.differences(ours) == []
    changes: dict[str, object] = {
        "device": "cuda",
        "device_name": "Another CPU",
        "torch": "2.6.0",
        "capability": "AVX512",
        "threads": 1,
        "flags": (("autocast", "torch.bfloat16"), ("onednn", "true")),
    }
    for name, value in changes.items():
        assert len(ours.differences(replace(ours, **{name: value}))) == 1  # type: ignore[arg-type]
    assert len(ours.differences(replace(ours, **changes))) == len(changes)  # type: ignore[arg-type]
    assert ours.differences(replace(ours, flags=ours.flags[:1])) == ["onednn is unset, not true"]
    assert replace(ours, flags=ours.flags[:1]).differences(ours) == ["onednn is true, not unset"]


def test_the_tiny_run_is_what_its_records_say() -> None:
    assert canonical.encode(MANIFEST) == tiny_run.MANIFEST.encode()
    assert canonical.encode(SEGMENT) == tiny_run.RECORDS[0].encode()
    assert canonical.encode(STEPS) == tiny_run.STEPS[0].encode()
    assert [record.norms.l1 for record in tiny_run.RECORDS] == [0.25, 0.25]
