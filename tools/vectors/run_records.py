"""Vectors of specs/run-records.md: manifest, segment record, step records, environment class, dataset, random streams.

A faulty record is a good one with one place of its array replaced, so each case has one fault.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from polstore.errors import MalformedError
from polstore.wire import canonical, merkle
from polstore.wire.environment import Environment
from polstore.wire.manifest import Manifest
from polstore.wire.randomness import sample_salt, stream_seed
from polstore.wire.sample import sample_leaf
from polstore.wire.segment import SegmentRecord
from polstore.wire.steps import Steps
from tools.vectors import tiny_run
from tools.vectors.canonical import described
from tools.vectors.cases import Case, File, expect, file, invalid, valid

if TYPE_CHECKING:
    from polstore.wire.canonical import Value

__all__ = ["run", "vectors"]

PARSERS: dict[str, type[Manifest] | type[SegmentRecord] | type[Steps]] = {
    "manifest": Manifest,
    "segment": SegmentRecord,
    "steps": Steps,
}
DIGEST = bytes(32)
PARENT: Value = ("example.org/archive/base", 9, DIGEST, 400, DIGEST, DIGEST)
LONG = 2**48 + 1
REMOVE = object()


def replaced(value: Value, path: tuple[int, ...], new: object) -> Value:
    """Return ``value`` with the item at ``path`` replaced, or left out."""
    if not path:
        return new  # type: ignore[return-value]  # a value, as the callers see to
    assert isinstance(value, tuple)
    inner = () if new is REMOVE and len(path) == 1 else (replaced(value[path[0]], path[1:], new),)
    return (*value[: path[0]], *inner, *value[path[0] + 1 :])


MANIFEST, SEGMENT = (canonical.decode(leaf, limit=2**16, what="leaf") for leaf in tiny_run.LEAVES[:2])
STEPS = canonical.decode(tiny_run.STEPS[0].encode(), limit=2**16, what="steps")
ENVIRONMENT = tiny_run.ENVIRONMENT.value()
TWICE = (("a", b""), ("a", b""))

# name, comment, path of what is replaced, its replacement
VALID: dict[str, list[tuple[str, str, tuple[int, ...], Value]]] = {
    "manifest": [
        ("example", "the worked example", (), MANIFEST),
        ("recipe_none", "a run that cannot be replayed", (2,), ("none", DIGEST, ())),
        ("dataset_none", "a run that commits to no dataset", (3,), (merkle.EMPTY_ROOT, 0)),
        ("config", "one setting of each type", (2, 2), (("a", None), ("b", True), ("c", -1), ("d", 0.5), ("e", ""))),
        ("parent", "initial state from another run", (7,), ("parent", DIGEST, PARENT)),
        ("distribution", "initial state by distribution", (7, 0), "distribution"),
        ("sampler_free", "an order of samples that does not follow from the seed", (6,), "free"),
        ("fidelity_later", "a fidelity of a later version", (9,), "bfloat16-2"),
        ("not_before", "a checkpoint note", (11,), b"note"),
        ("extensions", "two extensions, one empty", (12,), (("a", b"\x01"), ("b", b""))),
        ("device_name", "letters of any script, spaces, format characters", (8, 1), "Beschleuniger \u2116 1\u200d"),
    ],
    "segment": [
        ("example", "the worked example", (), SEGMENT),
        ("keyframe", "a snapshot quantised against none", (6,), None),
        ("diverged", "norms of a diverged run", (9,), (math.nan, math.inf, -math.inf, math.nan)),
        ("extensions", "two extensions", (10,), (("a", b"\x01"), ("b", b"\x02"))),
        ("longest", "a million steps", (3,), 1_000_000),
    ],
    "steps": [
        ("example", "the worked example", (), STEPS),
        ("skipped", "a step that the optimizer skipped", (2, 0, 1), ()),
        ("diverged", "a loss that is not a number", (2, 0, 2), math.nan),
        ("two_ranks", "a microbatch on two ranks", (2, 0, 0, 0, 1), ((0, 1), (2,))),
        ("nested", "hyperparameters that are trees", (2, 0, 1), ((("betas", (1, 0.9, 0.999)), ("foreach", None)),)),
        ("none", "no steps", (2,), ()),
    ],
    "environment": [
        ("example", "the worked example", (), ENVIRONMENT),
        ("no_flags", "no flags", (5,), ()),
    ],
}
INVALID: dict[str, list[tuple[str, str, tuple[int, ...], object]]] = {
    "manifest": [
        ("short", "a field less", (12,), REMOVE),
        ("tag", "the tag of a segment record", (0,), "polstore/segment/v1"),
        ("run_slash", "a slash in the run's name", (1,), "tiny/1"),
        ("run_dot", "a run's name that begins with a dot", (1,), ".tiny"),
        ("run_long", "65 characters", (1,), "a" * 65),
        ("recipe_kind", "a kind that this version does not know", (2, 0), "registry"),
        ("recipe_digest", "31 bytes", (2, 1), DIGEST[:31]),
        ("recipe_none_digest", "the digest of no recipe", (2, 0), "none"),
        ("config_array", "a setting that is an array", (2, 2), (("a", ()),)),
        ("config_bytes", "a setting that is bytes", (2, 2), (("a", b""),)),
        ("config_name", "a setting's name that is no identifier", (2, 2), (("a-b", 1),)),
        ("config_unsorted", "settings in another order", (2, 2), (("b", 1), ("a", 1))),
        ("config_doubled", "one setting twice", (2, 2), (("a", 1), ("a", 1))),
        ("config_long", "a text of 4097 characters", (2, 2), (("a", "b" * 4097),)),
        ("dataset_empty", "size 0 with another root than the empty tree's", (3, 1), 0),
        ("dataset_boolean", "true for 1", (3, 1), True),
        ("optimizer_name", "no name", (4, 0), ""),
        ("seed_short", "31 bytes", (5,), DIGEST[:31]),
        ("sampler", "a sampler that this version does not know", (6,), "shuffled"),
        ("initial_kind", "a kind that this version does not know", (7, 0), "pretrained"),
        ("initial_parent", "a parent for kind seed", (7, 2), PARENT),
        ("initial_no_parent", "no parent for kind parent", (7, 0), "parent"),
        ("parent_size", "a parent under an empty root", (7,), ("parent", DIGEST, replaced(PARENT, (1,), 0))),
        ("environment", "an environment class of five fields", (8, 5), REMOVE),
        ("fidelity", "capital letters", (9,), "Float16"),
        ("every_zero", "no steps between snapshots", (10,), 0),
        ("every_large", "a million and one", (10,), 1_000_001),
        ("every_boolean", "true for 1", (10,), True),
        ("not_before_empty", "nothing, in place of nil", (11,), b""),
        ("not_before_text", "text for bytes", (11,), "note"),
        ("not_before_long", "16,385 bytes", (11,), bytes(16_385)),
        ("extensions_unsorted", "in another order", (12,), (("b", b""), ("a", b""))),
        ("extensions_doubled", "one name twice", (12,), TWICE),
        ("extensions_many", "65 of them", (12,), tuple((f"{number:02}", b"") for number in range(65))),
        ("extension_text", "text for bytes", (12,), (("a", "b"),)),
        ("extensions_nil", "nil for an empty array", (12,), None),
    ],
    "segment": [
        ("short", "a field less", (10,), REMOVE),
        ("tag", "the tag of a manifest", (0,), "polstore/manifest/v1"),
        ("index_negative", "a negative index", (1,), -1),
        ("index_large", "above 2**48", (1,), LONG),
        ("index_boolean", "false for 0", (1,), False),
        ("start_float", "0.0 for 0", (2,), 0.0),
        ("no_steps", "it ends where it starts", (3,), 0),
        ("too_long", "a million and one steps", (3,), 1_000_001),
        ("start_state", "33 bytes", (4,), bytes(33)),
        ("end_state", "text for bytes", (5,), "0" * 32),
        ("base_later", "a base after its start", (6,), 1),
        ("base_boolean", "false for 0", (6,), False),
        ("steps", "31 bytes", (7,), DIGEST[:31]),
        ("norms_short", "three norms", (9, 3), REMOVE),
        ("norms_integer", "0 for 0.0", (9, 0), 0),
        ("norms_nil", "nil for a norm", (9, 3), None),
        ("extensions_doubled", "one name twice", (10,), TWICE),
    ],
    "steps": [
        ("long", "a field more", (), (*(STEPS if isinstance(STEPS, tuple) else ()), None)),
        ("tag", "another tag", (0,), "polstore/steps/v2"),
        ("start_negative", "a negative step", (1,), -1),
        ("step_short", "a step of two fields", (2, 0, 2), REMOVE),
        ("loss_integer", "1 for 1.0", (2, 0, 2), 1),
        ("number_boolean", "false for 0", (2, 0, 0, 0, 0), False),
        ("rank_flat", "sample indices without ranks", (2, 0, 0, 0, 1), (2, 0)),
        ("sample_negative", "a negative sample index", (2, 0, 0, 0, 1, 0), (-1,)),
        ("sample_boolean", "true for 1", (2, 0, 0, 0, 1, 0), (True,)),
        ("sample_float", "1.0 for 1", (2, 0, 0, 0, 1, 0), (1.0,)),
        ("sample_large", "above 2**48", (2, 0, 0, 0, 1, 0), (LONG,)),
        ("pair_short", "a hyperparameter without a value", (2, 0, 1, 0, 0, 1), REMOVE),
        ("hyperparameters_unsorted", "in another order", (2, 0, 1), ((("b", 1), ("a", 1)),)),
        ("hyperparameters_doubled", "one name twice", (2, 0, 1), ((("a", 1), ("a", 1)),)),
        ("hyperparameters_nil", "nil for an empty array", (2, 0, 1), None),
    ],
    "environment": [
        ("short", "a field less", (5,), REMOVE),
        ("device", "an index beside the kind", (0,), "cuda:0"),
        ("device_name", "no name", (1,), ""),
        ("control", "a newline in a name", (1,), "a\nb"),
        ("delete", "the control character 7f", (1,), "a\x7fb"),
        ("reordering", "a mark that reverses what a terminal shows", (1,), "a\u202eb"),
        ("torch_long", "257 characters", (2,), "2" * 257),
        ("capability_bytes", "bytes for text", (3,), b"AVX2"),
        ("threads_zero", "no thread", (4,), 0),
        ("threads_boolean", "true for 1", (4,), True),
        ("threads_many", "65,537", (4,), 65_537),
        ("flag_boolean", "true for the text", (5, 0, 1), True),
        ("flags_unsorted", "in another order", (5,), (("b", "1"), ("a", "1"))),
        ("flags_doubled", "one name twice", (5,), (("a", "1"), ("a", "1"))),
        ("flags_many", "65 of them", (5,), tuple((f"{number:02}", "1") for number in range(65))),
    ],
}
RECORDS: dict[str, Value] = {"manifest": MANIFEST, "segment": SEGMENT, "steps": STEPS, "environment": ENVIRONMENT}


def vectors() -> File:
    """Return the whole file."""
    cases = []
    for kind, record in RECORDS.items():
        for name, comment, path, new in VALID[kind]:
            value = replaced(record, path, new)
            encoded = canonical.encode(value).hex()
            cases.append(valid(f"{kind}_{name}", comment, kind=kind, bytes=encoded, value=described(value)))
        cases += [
            invalid(
                f"{kind}_{name}",
                comment,
                MalformedError,
                kind=kind,
                bytes=canonical.encode(replaced(record, path, new)).hex(),
            )
            for name, comment, path, new in INVALID[kind]
        ]
    return file("run_records", "specs/run-records.md", [*cases, *_dataset(), *_streams()])


def run(case: Case) -> None:
    """Put one case through polstore."""
    match case["kind"]:
        case "environment":
            data = bytes.fromhex(case["bytes"])
            value = canonical.decode(data, limit=2**16, what=case["id"])
            expect("encoding", canonical.encode(Environment.from_value(value).value()), data)
            expect("value", described(value), case["value"])
        case "dataset":
            salts = [sample_salt(bytes.fromhex(case["salt"]), index) for index in range(len(case["contents"]))]
            contents = [canonical.decode(bytes.fromhex(item), limit=2**16, what="content") for item in case["contents"]]
            leaves = [sample_leaf(salt, content) for salt, content in zip(salts, contents, strict=True)]
            expect("salts", [salt.hex() for salt in salts], case["salts"])
            expect("leaves", [leaf.hex() for leaf in leaves], case["leaves"])
            expect("root", merkle.root([merkle.leaf_hash(leaf) for leaf in leaves]).hex(), case["root"])
        case "stream":
            seed = stream_seed(bytes.fromhex(case["seed"]), case["stream"], *case["numbers"])
            expect("seed of the stream", seed.hex(), case["stream_seed"])
        case kind:
            data = bytes.fromhex(case["bytes"])
            expect("encoding", PARSERS[kind].parse(data).encode(), data)
            expect("value", described(canonical.decode(data, limit=len(data), what=kind)), case["value"])


def _dataset() -> list[Case]:
    salts = [sample_salt(tiny_run.DATASET_SALT, index) for index in range(4)]
    leaves = [sample_leaf(salt, content) for salt, content in zip(salts, tiny_run.CONTENTS, strict=True)]
    return [
        valid(
            "dataset_example",
            "the four samples of the worked example",
            kind="dataset",
            salt=tiny_run.DATASET_SALT.hex(),
            contents=[canonical.encode(content).hex() for content in tiny_run.CONTENTS],
            salts=[salt.hex() for salt in salts],
            leaves=[leaf.hex() for leaf in leaves],
            root=tiny_run.MANIFEST.dataset.root.hex(),
        )
    ]


def _streams() -> list[Case]:
    rows: list[tuple[bytes, str, tuple[int, ...]]] = [
        (tiny_run.SEED, "initial", ()),
        (tiny_run.SEED, "epoch", (0,)),
        (tiny_run.SEED, "fetch", (3, 0)),
        (tiny_run.SEED, "step", (2, 0, 0)),
        (tiny_run.SEED, "step", (1000, 1, 0)),
        (b"", "sample", (2,)),
    ]
    return [
        valid(
            "_".join(("stream", stream, *map(str, numbers))),
            "the seed of one stream",
            kind="stream",
            seed=seed.hex(),
            stream=stream,
            numbers=list(numbers),
            stream_seed=stream_seed(seed, stream, *numbers).hex(),
        )
        for seed, stream, numbers in rows
    ]
