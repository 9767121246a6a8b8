"""The report: every part of a verdict has its place, what lacks is said to lack, and no text gets out of its place."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from typing import Any

import pytest

from polstore.errors import CallerError
from polverify.charts import SIDE, linear_axis, log_axis
from polverify.report import MAX_ROWS, MAX_TEXT, parse_verdict, render
from tests.unit import sample_verdicts

NO_END = {"meta", "input", "br"}


class Page(HTMLParser):
    """The elements of a page, with what they hold; fails where they are not nested."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.style = ""
        self._open: list[str] = []
        self._section = ""
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in NO_END:
            self._open.append(tag)
        if tag == "section":
            self._section = dict(attrs).get("id") or "decision"
            assert self._section not in self.sections
            self.sections[self._section] = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
        elif self._section:
            self.sections[self._section] += " ".join(data.split()) + " "


@pytest.mark.parametrize("name", sample_verdicts.ALL)
def test_a_page_is_nested_and_needs_nothing_else(name):
    text = render(sample_verdicts.ALL[name]())
    page = Page(text)
    assert text.startswith("<!doctype html>\n<html lang")
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a", "image", "use"}
    for _, attributes in page.elements:
        assert not any(each.startswith("on") or each in {"src", "href", "xlink:href", "action"} for each in attributes)
    assert "@import" not in page.style
    assert "url(" not in page.style
    assert "http" not in page.style
    policy = [each["content"] for tag, each in page.elements if tag == "meta" and "http-equiv" in each]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    ids = [each["id"] for _, each in page.elements if "id" in each]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", sample_verdicts.ALL)
def test_drawings_have_names_and_controls_have_labels(name):
    elements = Page(render(sample_verdicts.ALL[name]())).elements
    for tag, attributes in elements:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes.get("aria-label") or attributes.get("aria-labelledby")
    inputs = {each["id"] for tag, each in elements if tag == "input"}
    assert inputs == {each["for"] for tag, each in elements if tag == "label"}


def test_what_the_page_of_an_accepted_run_says():
    sections = Page(render(sample_verdicts.accepted())).sections
    assert "ACCEPT 24 of 390 segments replayed bit for bit" in " ".join(sections["decision"].split())
    assert "Signed by example.com/alice" in " ".join(sections["claim"].split())
    assert "2025-10-09 08:53:20 UTC" in sections["claim"]
    assert "witnessed 2025-10-09 08:54:20 UTC w1, on the signed root" in " ".join(sections["time"].split())
    assert "24 of 390 segments were opened, 22 of them drawn at random" in sections["coverage"]
    assert "times the median of" in sections["updates"]
    assert "24 of the replayed segments end in the committed state, bit for bit: there ε is 0" in sections["epsilon"]
    assert "240 losses" in sections["losses"]
    assert "claims no parent" in sections["lineage"]
    assert "5 % of the segments 20 70.1 %" in " ".join(sections["power"].split())
    assert "run max_every=100" in " ".join(sections["policy"].split())
    assert "free choice" in sections["warnings"]
    assert "Segments that were not opened were not replayed" in sections["limits"]


def test_what_is_no_figure_takes_no_line():
    verdict = sample_verdicts.accepted()
    for segment in verdict["segments"]:
        segment["epsilon"] = {"raw": dict.fromkeys(("l1", "l2", "linf", "cos"), 0.0), "normalised": {}}
    assert "ε" not in Page(render(verdict)).sections["coverage"]
    verdict["segments"][0]["epsilon"]["raw"]["l2"] = "nan"
    assert "l2 nan" in Page(render(verdict)).sections["coverage"]


def test_norms_are_called_facts_after_a_full_audit_only():
    verdict = sample_verdicts.accepted()
    for norms, says in (("claims", "what the signer wrote"), ("facts", "All norms were computed again")):
        verdict["power"]["concatenation"]["norms"] = norms
        sections = Page(render(verdict)).sections
        assert says in sections["updates"]
        assert ("only its record was looked at" in sections["coverage"]) is (norms == "claims")
        assert ("only the records were looked at" in sections["limits"]) is (norms == "claims")


def test_epsilon_is_shown_against_its_bound_the_worst_first():
    sections = Page(render(sample_verdicts.in_another_class())).sections
    words = " ".join(sections["epsilon"].split())
    assert words.index("over 1.28") < words.index("within 0.98")
    assert "1 of the replayed segments end in the committed state, bit for bit" in words
    coverage = " ".join(sections["coverage"].split())
    assert "ε of all parameters: l1 1e-05, l2 1e-06, l∞ 1e-07, cosine distance 1e-12 in units of d_ref: l2" in coverage
    assert "the recipe's own evaluation: accuracy 0.8 after step 14; accuracy 0.82 after step 21" in coverage
    lineage = " ".join(sections["lineage"].split())
    assert "Origin of the parent example.com/alice/base Tensors that are the parent's, bit for bit 60" in lineage
    assert "Initial state of the parent, as it declares seed" in lineage
    assert "01" * 32 in lineage
    assert "Largest l2: nan, in segment 9, which was not opened. Not finite, and drawn at the top: 1." in " ".join(
        sections["updates"].split()
    )


def test_what_is_lacking_is_said_to_be_lacking():
    sections = Page(render(sample_verdicts.rejected_early())).sections
    for name in ("coverage", "updates", "epsilon", "losses", "lineage", "power", "time"):
        words = " ".join(sections[name].split())
        assert "did not get as far" in words or words.endswith(
            ("No replay was compared tensor by tensor.", "what would have been missed.", "when the root was signed.")
        )
    assert "policy" not in sections


@pytest.mark.parametrize("name", ["power", "coverage", "losses", "policy"])
def test_fields_of_later_versions_may_be_absent(name):
    verdict = sample_verdicts.accepted()
    del verdict[name]
    assert "ACCEPT" in render(verdict)


def test_hostile_text_stays_text():
    text = render(sample_verdicts.hostile())
    page = Page(text)
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "\\u202egnp.exe" in text
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7*7 }}" in page.sections["claim"]
    assert "W" * (MAX_TEXT + 1) not in text
    honest = Page(render(sample_verdicts.accepted(12, 3, 4)))
    assert {tag for tag, _ in page.elements} - {tag for tag, _ in honest.elements} <= {"i"}  # a meter


def test_long_lists_are_cut_and_counted():
    verdict = sample_verdicts.accepted(600, 1, 500)
    verdict["warnings"] = ["w"] * 10_000
    verdict["claim"]["config"] = {f"name{number}": number for number in range(256)}
    page = Page(render(verdict))
    assert f"and {500 - MAX_ROWS} more" in page.sections["coverage"]
    assert f"and {256 - MAX_ROWS} more" in page.sections["claim"]
    assert sum(tag == "li" for tag, _ in page.elements) < MAX_ROWS + 50
    assert sum(tag == "tr" for tag, _ in page.elements) < MAX_ROWS + 50


def test_rendering_changes_nothing():
    verdict = sample_verdicts.in_another_class()
    before = copy.deepcopy(verdict)
    assert render(verdict) == render(verdict)
    assert verdict == before


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"schema": "polverify/verdict/v9"}', b'{"schema": 2}']
)
def test_a_file_that_is_no_verdict(data):
    with pytest.raises(CallerError, match="not a verdict"):
        parse_verdict(data)


@pytest.mark.parametrize(
    "change",
    [
        {"claim": None}, {"claim": []}, {"checks": 5}, {"checks": [{}]}, {"checks": [1]}, {"segments": [{"index": 1}]},
        {"coverage": [{"index": 1}]}, {"coverage": [None]}, {"losses": [[1]]}, {"losses": [["a", "b"]]},
        {"coverage": 7}, {"warnings": 5}, {"decision": None, "claim": {"time": [1]}}, {"policy": {"a": 1}},
        {"power": {"a": 1}}, {"claim": {"dataset": 3}},
    ],
)  # fmt: skip
def test_a_verdict_that_is_not_built_as_one(change):
    verdict = parse_verdict(json.dumps(sample_verdicts.accepted() | change).encode())
    with pytest.raises(CallerError, match="not built as one"):
        render(verdict)


# Charts.


def test_places_on_a_logarithmic_axis():
    axis = log_axis([0.001, 0.1, 5.0])
    assert [label for label, _ in axis.ticks] == ["1e1", "1e0", "1e-1", "1e-2", "1e-3"]
    assert [top for _, top in axis.ticks] == [0, 25, 50, 75, 100]
    assert [axis.place(value) for value in (10, 1, 0.1, 0.001)] == [0, SIDE / 4, SIDE / 2, SIDE]
    assert [axis.place(value) for value in (0.0, -1.0, float("inf"), float("nan"), 1e9)] == [SIDE, SIDE, 0, 0, 0]


def test_places_on_a_linear_axis():
    axis = linear_axis([1.0, 3.0, float("nan")])
    assert (axis.place(1.0), axis.place(2.0), axis.place(3.0)) == (SIDE, SIDE / 2, 0)
    assert (axis.place(float("-inf")), axis.place(float("inf"))) == (SIDE, 0)
    assert axis.ticks[0] == ("3", 0.0)


EDGES: list[list[float]] = [
    [], [0.0], [1.0], [float("nan")], [5.0, 5.0], [-1e308, 1e308], [5e-324, 1.7e308], [1e-300], [float("inf"), -1.0],
]  # fmt: skip


@pytest.mark.parametrize("values", EDGES, ids=str)
@pytest.mark.parametrize("kind", [log_axis, linear_axis])
def test_every_number_has_a_place(kind: Any, values):
    axis = kind(values)
    assert axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 6
    for value in (*values, 0.0, -1.0, 1e300, float("inf"), float("nan")):
        assert 0 <= axis.place(value) <= SIDE
