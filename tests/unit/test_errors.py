"""The tree of errors: its exit codes, its drawing, and messages that say expected and got."""

import re

import pytest

from polstore import errors

CODES = {errors.ProofError: 1, errors.UsageError: 2, errors.CallerError: 4}


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_has_the_exit_code_of_its_branch(name):
    kind = getattr(errors, name)
    assert issubclass(kind, errors.PolstoreError)
    assert kind.__doc__
    for branch, code in CODES.items():
        if issubclass(kind, branch):
            assert kind.exit_code == code
    assert kind is errors.PolstoreError or sum(issubclass(kind, branch) for branch in CODES) == 1


def test_the_drawing_shows_the_tree():
    parents = []
    drawn = {}
    for line in errors.__doc__.splitlines():
        if match := re.match(r"    ([│ ├└─]*)(\w+Error)\b", line):
            depth = len(match[1]) // 4
            parents[depth:] = [match[2]]
            drawn[match[2]] = parents[depth - 1] if depth else "Exception"
    defined = {name: getattr(errors, name).__base__.__name__ for name in errors.__all__}
    assert drawn == defined
    assert sorted(name for name in vars(errors) if name.endswith("Error")) == sorted(errors.__all__)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "what"),
        ({"expected": 1, "got": 2}, "what: expected 1, got 2"),
        ({"expected": b"\x01", "got": b""}, "what: expected 01, got nothing"),
        ({"got": "a\nb"}, "what: got 'a\\nb'"),
        ({"expected": "é", "got": None}, "what: expected é, got None"),
        ({"expected": 0, "got": "x" * 999}, "what: expected 0, got " + "x" * 200 + "…"),
    ],
)
def test_messages_say_expected_and_got(options, message):
    error = errors.MalformedError("what", **options)
    assert str(error) == message
    assert (error.expected, error.got) == (options.get("expected"), options.get("got"))
