"""A verdict for people: as lines of text, as a table on a terminal, as a page.

Adds nothing to it; whatever came out of a proof is escaped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from polstore import terminal
from polverify.verdict import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from polverify.verdict import Verdict

__all__ = ["page_of", "print_verdict"]

MARKS = {
    Outcome.PASSED: ("ok", "green"),
    Outcome.FAILED: ("FAILED", "red"),
    Outcome.UNDECIDED: ("undecided", "yellow"),
    Outcome.NOT_MADE: ("-", "dim"),
}


def print_verdict(verdict: Verdict) -> None:
    """Print the verdict: its one line first, then how it came about."""
    console = Console()
    if not console.is_terminal:
        terminal.emit(f"{verdict.decision.name}: {terminal.text(verdict.reason)}")
        for item in verdict.checks:
            terminal.emit(f"{item.number:2} {item.name}: {MARKS[item.outcome][0]}: {terminal.text(item.detail)}")
        for line in _figures(verdict):
            terminal.emit(line)
        for warning in verdict.warnings:
            terminal.emit(f"note: {terminal.text(warning)}")
        for line in verdict.power.lines() if verdict.power is not None else ():
            terminal.emit(f"power: {line}")
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # never cut a digest
    for item in verdict.checks:
        mark, style = MARKS[item.outcome]
        table.add_row(str(item.number), item.name, Text(mark, style), Text(terminal.text(item.detail)))
    color = {"ACCEPT": "bold green", "REJECT": "bold red"}.get(verdict.decision.name, "bold yellow")
    console.print(Text.assemble((verdict.decision.name, color), " ", terminal.text(verdict.reason)))
    console.print(table)
    for line in _figures(verdict):
        console.print(Text(line))
    for warning in verdict.warnings:
        console.print(Text(f"note: {terminal.text(warning)}", "dim"))
    for line in verdict.power.lines() if verdict.power is not None else ():
        console.print(Text(f"power: {line}"))


def _figures(verdict: Verdict) -> list[str]:
    """Return a line for each segment that was measured: ε in the paper's terms, and the recipe's own evaluation."""
    lines = []
    for segment in verdict.segments:
        epsilon = segment.measured.get("epsilon")
        if epsilon is not None and any(epsilon["raw"].values()):
            kinds = [f"{kind} {_numbers(epsilon[kind])}" for kind in ("raw", "normalised") if epsilon[kind]]
            lines.append(f"segment {segment.index}: ε {'; '.join(kinds)}")
        for end, values in segment.measured.get("evaluation", {}).items():
            step = segment.start_step if end == "start" else segment.end_step
            lines.append(f"segment {segment.index}: evaluation after step {step}: {_numbers(values)}")
    return lines


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{terminal.text(name)} {value:.4g}" for name, value in values.items())


def page_of(verdict: Mapping[str, Any]) -> bytes:
    """Return a verdict, as its JSON is, as an HTML page."""
    from polverify.report import render  # loads jinja2, which nothing else needs

    return render(verdict).encode()
