"""What both command lines share: exit codes, one line for every error, and text that is safe to show."""

import json
import math
import os
import re
import sys
import warnings
from pathlib import Path

import pytest
import typer

from polstore import errors, terminal


def run(work, capsys):
    app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    app.command()(work)
    argv, sys.argv = sys.argv, ["program"]
    try:
        with pytest.raises(SystemExit) as ended:
            terminal.run(app)
    finally:
        sys.argv = argv
    return ended.value.code, *capsys.readouterr()


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.MalformedError("bad", expected=1, got=2), 1, "error: bad: expected 1, got 2\n"),
        (errors.UsageError("bad"), 2, "error: bad\n"),
        (errors.FullError("bad"), 4, "error: bad\n"),
        (errors.ProofError("two\nlines\x1b[31m"), 1, "error: two lines\\x1b[31m\n"),
        (MemoryError(), 4, "error: out of memory\n"),
        (OSError(28, "No space left on device"), 4, "error: [Errno 28] No space left on device\n"),
        (typer.BadParameter("bad"), 2, "error: Invalid value: bad\n"),
        (typer.Exit(3), 3, ""),
        (typer.Exit(0), 0, ""),
        (typer.Abort(), 130, ""),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 4, "error: output cannot be written: nobody reads it\n"),
    ],
)
def test_errors_become_one_line_and_a_code(capsys, error, code, line):
    got, out, err = run(raising(error), capsys)
    if isinstance(error, typer.BadParameter):
        err = re.sub("; see .* --help", "", err)
    assert (got, out, err) == (code, "", line)


def test_a_fault_of_our_own_is_never_exit_code_1(capsys):
    code, out, err = run(raising(ZeroDivisionError("oh")), capsys)
    assert (code, out) == (4, "")
    assert "Traceback" in err
    assert err.endswith("error: internal fault: ZeroDivisionError: oh\n")


def test_a_path_that_may_not_be_read_is_no_wrong_usage(capsys, monkeypatch, tmp_path):
    app = typer.Typer()

    @app.command()
    def read(path: Path):
        raise AssertionError

    monkeypatch.setattr(sys, "argv", ["program", str(tmp_path)])
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # root may read everything
    with pytest.raises(SystemExit) as end:
        terminal.run(app)
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (4, "")
    assert err.startswith("error: ")
    assert err.endswith("is not readable\n")
    assert err.count("\n") == 1


def test_warnings_are_lines(capsys):
    def work():
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("take\ncare", UserWarning, stacklevel=1)

    before = warnings.showwarning
    assert run(work, capsys) == (0, "", "warning: take care\n")
    assert warnings.showwarning is before


def test_streams_that_are_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    terminal.note("lost")
    with pytest.raises(errors.CallerError, match="stdout is closed"):
        terminal.emit("lost")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "yes"),
        (False, "no"),
        (3, "3"),
        (1.5, "1.5"),
        (b"\x01\xff", "01ff"),
        ("é", "é"),
        ("a\nb\x1b\x9b\u202e\ud800", "a\\nb\\x1b\\x9b\\u202e\\ud800"),
        ((), "none"),
        ({}, "none"),
        ((1, b"\0"), "1, 00"),
        ({"a": 1, "b\n": (1, 2)}, "a=1, b\\n=1, 2"),
        ([{"a": 1}, {"a": 2}], "a=1; a=2"),
    ],
)
def test_any_value_is_one_safe_line(value, text):
    assert terminal.text(value) == text


def test_json_is_json(capsys):
    terminal.emit_json({"a": b"\0", "b": (1.5, math.nan, -math.inf), 3: None, "c": "é"})
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=pytest.fail) == {"a": "00", "b": [1.5, "nan", "-inf"], "3": None, "c": "é"}


def test_a_recipe_neither_prints_data_nor_ends_the_program(capsys):
    with terminal.recipe_at_work():
        print("progress")  # noqa: T201 # as a recipe may
    assert capsys.readouterr() == ("", "progress\n")
    with pytest.raises(errors.TrainingError, match=r"exit\(0\)"), terminal.recipe_at_work():
        sys.exit(0)


def test_progress_away_from_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 5.0, 20.0, 21.0, 40.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    with terminal.progress() as progress:
        for done in range(5):
            progress("training", done, 8)
    assert capsys.readouterr().err == "training: 2 of 8, about 57 s left\ntraining: 4 of 8, about 39 s left\n"
