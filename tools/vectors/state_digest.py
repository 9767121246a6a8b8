"""Vectors of specs/state-digest.md: entries of tensors, their order, and the digest of a whole snapshot."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

from polstore.errors import MalformedError
from polstore.wire import canonical
from polstore.wire.state import TensorEntry, scalars_entry, state_digest
from tools.vectors.cases import Case, File, expect, file, invalid, valid

if TYPE_CHECKING:
    from polstore.wire.canonical import Value

__all__ = ["run", "vectors"]

WEIGHT = ("parameter/fc.weight", "float32", (2, 2), struct.pack("<4f", 0.5, -1.0, 0.0, 3.25))
BIAS = ("parameter/fc.bias", "float16", (2,), struct.pack("<2e", 0.25, -0.0))
COUNT = ("buffer/bn.num_batches_tracked", "int64", (), struct.pack("<q", 1000))
NOTHING = ("buffer/empty", "float64", (0, 7), b"")
ACCENT = ("parameter/é", "bool", (3,), b"\x01\x00\x01")
SCALARS: Value = (("lr", 0.1), ("step", 1000))
Tensor = tuple[str, str, tuple[int, ...], bytes]

# What a recorder commits to of one SGD step on one weight of shape (1, 2), with a scheduler as an extra.
EXAMPLE_TENSORS: list[Tensor] = [
    ("optimizer/weight/momentum_buffer", "float32", (1, 2), struct.pack("<2f", 0.5, -1.0)),
    ("parameter/weight", "float32", (1, 2), struct.pack("<2f", 0.75, 1.5)),
]
EXAMPLE_SCALARS: Value = (
    "polstore/scalars/v1",
    2,
    (
        2,
        ("#groups", (0, (2, ("lr", 0.5), ("momentum", 0.9), ("params", (0, "weight"))))),
        ("weight", (2, ("momentum_buffer", (3, "optimizer/weight/momentum_buffer")))),
    ),
    (2, ("scheduler", (2, ("last_epoch", 2)))),
)
DIGEST = hashlib.sha256(WEIGHT[3]).digest()


def vectors() -> File:
    """Return the whole file."""
    cases = [_snapshot(*item) for item in SNAPSHOTS]
    cases += [
        invalid(
            f"snapshot_{name}",
            comment,
            MalformedError,
            kind="snapshot",
            tensors=[_tensor(tensor) for tensor in tensors],
            scalars=canonical.encode(SCALARS).hex(),
        )
        for name, comment, tensors in (
            ("unsorted", "names descend", [WEIGHT, BIAS]),
            ("doubled", "one name twice", [BIAS, BIAS]),
        )
    ]
    cases += [
        invalid(f"entry_{name}", comment, MalformedError, kind="entry", bytes=canonical.encode(value).hex())
        for name, comment, value in FAULTS
    ]
    return file("state_digest", "specs/state-digest.md", cases)


def run(case: Case) -> None:
    """Put one case through polstore."""
    if case["kind"] == "entry":
        TensorEntry.from_value(canonical.decode(bytes.fromhex(case["bytes"]), limit=2**16, what=case["id"]))
        return
    entries = [
        TensorEntry(
            item["name"], item["dtype"], tuple(item["shape"]), hashlib.sha256(bytes.fromhex(item["data"])).digest()
        )
        for item in case["tensors"]
    ]
    scalars = bytes.fromhex(case["scalars"])
    digest = state_digest(entries, scalars)
    for entry in entries:
        expect("entry read back", TensorEntry.from_value(entry.value()), entry)
    encoded = [canonical.encode(entry.value()).hex() for entry in entries]
    expect("entries", [*encoded, canonical.encode(scalars_entry(scalars)).hex()], case["entries"])
    expect("digest", digest.hex(), case["digest"])


def _tensor(tensor: Tensor) -> Case:
    name, dtype, shape, data = tensor
    return {"name": name, "dtype": dtype, "shape": list(shape), "data": data.hex()}


def _snapshot(name: str, comment: str, tensors: list[Tensor], scalars: Value) -> Case:
    entries = [TensorEntry(label, dtype, shape, hashlib.sha256(data).digest()) for label, dtype, shape, data in tensors]
    packed = canonical.encode(scalars)
    encoded = [canonical.encode(entry.value()).hex() for entry in entries]
    return valid(
        f"snapshot_{name}",
        comment,
        kind="snapshot",
        tensors=[_tensor(tensor) for tensor in tensors],
        scalars=packed.hex(),
        entries=[*encoded, canonical.encode(scalars_entry(packed)).hex()],
        digest=state_digest(entries, packed).hex(),
    )


SNAPSHOTS: list[tuple[str, str, list[Tensor], Value]] = [
    ("example", "the worked example", EXAMPLE_TENSORS, EXAMPLE_SCALARS),
    ("layer", "one linear layer and two scalars", [BIAS, WEIGHT], SCALARS),
    ("scalars_only", "no tensor at all", [], SCALARS),
    ("one_ulp", "one weight differs in its last bit", [BIAS, (*WEIGHT[:3], b"\x01" + WEIGHT[3][1:])], SCALARS),
    ("reshaped", "the same bytes in another shape", [BIAS, (*WEIGHT[:2], (4,), WEIGHT[3])], SCALARS),
    (
        "mixed",
        "a number, an empty tensor, names sorted by UTF-8 bytes",
        [COUNT, NOTHING, BIAS, WEIGHT, ACCENT],
        SCALARS,
    ),
    ("other_scalars", "one scalar differs", [BIAS, WEIGHT], (("lr", 0.1), ("step", 1001))),
]
FAULTS: list[tuple[str, str, Value]] = [
    ("no_array", "text in place of an entry", "parameter/fc.weight"),
    ("short", "four fields", (0, WEIGHT[0], "float32", (2, 2))),
    ("long", "six fields", (0, WEIGHT[0], "float32", (2, 2), DIGEST, None)),
    ("kind", "the kind of the scalars' entry", (1, WEIGHT[0], "float32", (2, 2), DIGEST)),
    ("kind_boolean", "false in place of 0", (False, WEIGHT[0], "float32", (2, 2), DIGEST)),
    ("name_empty", "no name", (0, "", "float32", (2, 2), DIGEST)),
    ("name_control", "a newline in a name", (0, "a\nb", "float32", (2, 2), DIGEST)),
    ("name_reordering", "a mark that reverses what a terminal shows", (0, "a\u202eb", "float32", (2, 2), DIGEST)),
    ("name_long", "513 characters", (0, "a" * 513, "float32", (2, 2), DIGEST)),
    ("name_bytes", "bytes for text", (0, b"a", "float32", (2, 2), DIGEST)),
    ("dtype_unknown", "no such dtype", (0, WEIGHT[0], "float12", (2, 2), DIGEST)),
    ("dtype_spelling", "numpy's spelling", (0, WEIGHT[0], "<f4", (2, 2), DIGEST)),
    ("size_negative", "a negative size", (0, WEIGHT[0], "float32", (2, -2), DIGEST)),
    ("size_float", "a size that is no integer", (0, WEIGHT[0], "float32", (2, 2.0), DIGEST)),
    ("elements_many", "more than 2**40 elements", (0, WEIGHT[0], "float32", (2**21, 2**21), DIGEST)),
    ("dimensions_many", "17 dimensions", (0, WEIGHT[0], "float32", (1,) * 17, DIGEST)),
    ("digest_short", "31 bytes", (0, WEIGHT[0], "float32", (2, 2), DIGEST[:31])),
]
