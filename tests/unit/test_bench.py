"""Benchmarks say which side is better, and never call a missed aim met."""

from __future__ import annotations

import json

import pytest

from tools.bench.table import compared, save, show


def test_a_smaller_figure_is_a_larger_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    result = compared("bytes", 2.0, 5.0, "torch.save", "MB", aim=2.3, aim_text="2.3 times smaller")
    show([result], "title", as_json=True)
    (printed,) = json.loads(capsys.readouterr().out)
    assert printed == {
        "name": "bytes",
        "ours": 2.0,
        "rival": 5.0,
        "rival_name": "torch.save",
        "unit": "MB",
        "ratio": 2.5,
        "aim": 2.3,
        "aim_text": "2.3 times smaller",
        "met": True,
    }


@pytest.mark.parametrize(("ours", "met"), [(1.0, True), (1.05, True), (1.06, False)])
def test_aims(ours: float, met: bool, capsys: pytest.CaptureFixture[str]) -> None:
    result = compared("step", ours, 1.0, "a plain loop", "ms", aim=1 / 1.05, aim_text="at most 5 % slower")
    assert result.met is met
    show([result], "title")
    assert ("MISSED" in capsys.readouterr().out) is not met


def test_results_are_kept_with_date_and_hardware(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.bench.table.RESULTS", tmp_path)
    save([compared("step", 2.0, 1.0, "a plain loop", "ms", aim=1.0, aim_text="as fast")], "x", "Title", ["a note"])
    page = (tmp_path / "x.md").read_text()
    assert "0 of 1 aims met" in page
    assert "cores of" in page
    assert "**missed**: as fast" in page
    assert json.loads((tmp_path / "x.json").read_text())[0]["met"] is False
