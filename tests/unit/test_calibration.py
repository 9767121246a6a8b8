"""Calibration files: what is written is read back, and whatever is odd is the caller's fault, in one clear line."""

import json
import math

import pytest

from polstore.errors import CallerError
from polverify.calibration import SCHEMA, Calibration, DRef
from polverify.noise import Floor

KEY = "ab" * 32
FLOOR = Floor(("threads", "rounding-1"), {"parameter/w": 1.5e-7, "parameter/b": math.inf}, (0.0, 1e-9), unstable=False)
WHOLE = Calibration(
    bytes(32), ("cpu", "a processor", "2.13"), {KEY: FLOOR}, DRef(9, {"l1": 3.0, "l2": 2.0, "linf": 1.0, "cos": 0.1})
)


def test_what_is_written_is_read_back():
    assert Calibration.parse(WHOLE.encode()) == WHOLE
    assert Calibration.parse(WHOLE.encode()).encode() == WHOLE.encode()
    bare = Calibration(bytes(32), ("cpu", "", ""))
    assert Calibration.parse(bare.encode()) == bare


def changed(*path, value):
    """The file with one value replaced, or removed where the value is ``...``."""
    whole = json.loads(WHOLE.encode())
    place = whole
    for name in path[:-1]:
        place = place[name]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(whole).encode()


SEGMENT = ("segments", KEY)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"schema": 1, "schema": 1}',
        changed("schema", value="polverify/calibration/v2"),
        changed("more", value=1),
        changed("recipe", value=...),
        changed("recipe", value="zz" * 32),
        changed("recipe", value="AB" * 32),
        changed("recipe", value="ab"),
        changed("recipe", value=7),
        changed("machine", value="cpu"),
        changed("machine", "torch", value=["2.13"]),
        changed("machine", "torch", value="2" * 513),
        changed("segments", value=[]),
        changed("segments", "short", value={}),
        changed(*SEGMENT, "settings", value=[]),
        changed(*SEGMENT, "settings", value=[7]),
        changed(*SEGMENT, "settings", value=["a"] * 17),
        changed(*SEGMENT, "unstable", value=0),
        changed(*SEGMENT, "unstable", value=...),
        changed(*SEGMENT, "losses", value={}),
        changed(*SEGMENT, "losses", value=[-1.0]),
        changed(*SEGMENT, "losses", value=["0"]),
        changed(*SEGMENT, "losses", value=[True]),
        changed(*SEGMENT, "losses", value=[float("nan")]),
        changed(*SEGMENT, "losses", value=[float("inf")]),
        changed(*SEGMENT, "losses", value=[10**400]),
        changed(*SEGMENT, "tensors", value=[]),
        changed(*SEGMENT, "tensors", "parameter/w", value=-1e-9),
        changed(*SEGMENT, "tensors", "w" * 513, value=1.0),
        changed("d_ref", value=1.0),
        changed("d_ref", "steps", value=0),
        changed("d_ref", "steps", value=1.5),
        changed("d_ref", "l2", value=0),
        changed("d_ref", "l2", value=None),
        changed("d_ref", "cos", value=...),
        WHOLE.encode().replace(b"1.5e-07", b"1e999"),
    ],
)
def test_whatever_is_odd_is_the_callers_fault(data):
    with pytest.raises(CallerError) as error:
        Calibration.parse(data)
    assert type(error.value) is CallerError
    assert error.value.exit_code == 4


def test_the_unchanged_file_is_none_of_these():
    assert Calibration.parse(changed("schema", value=SCHEMA)) == WHOLE


def test_a_calibration_of_another_recipe_is_refused():
    WHOLE.require_recipe(bytes(32))
    with pytest.raises(CallerError, match="another recipe"):
        WHOLE.require_recipe(bytes(31) + b"1")
