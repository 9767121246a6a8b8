"""What every benchmark prints: one result per line, as a terminal table, as JSON, or as a page of Markdown.

Measures nothing.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Result", "compared", "hardware", "save", "show"]

RESULTS = Path(__file__).resolve().parent / "results"
CPUINFO = Path("/proc/cpuinfo")
FILE_WIDTH = 180  # columns of a table that goes to a file or a pipe


@dataclass(frozen=True)
class Result:
    """One figure beside a rival's.

    Attributes:
        name: workload and what was measured, for instance ``gpt: training blocked per snapshot``.
        ours: our figure, in ``unit``.
        rival: the rival's figure, in the same unit.
        rival_name: who or what that is.
        unit: unit of both figures.
        ratio: how much better ours is; above 1 is better for us.
        aim: the least ratio that was aimed at, or None where there is no aim.
        aim_text: the aim in words; empty where there is none.
    """

    name: str
    ours: float
    rival: float
    rival_name: str
    unit: str
    ratio: float
    aim: float | None = None
    aim_text: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None where there is none."""
        return None if self.aim is None else self.ratio >= self.aim

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data, with figures of four digits."""
        plain = {key: _rounded(value) if isinstance(value, float) else value for key, value in vars(self).items()}
        return {**plain, "met": self.met}


def compared(
    name: str,
    ours: float,
    rival: float,
    rival_name: str,
    unit: str,
    *,
    aim: float | None = None,
    aim_text: str = "",
) -> Result:
    """Return the result for figures of which the smaller one is better."""
    return Result(name, ours, rival, rival_name, unit, rival / ours if ours else float("inf"), aim, aim_text)


def show(results: Sequence[Result], title: str, *, as_json: bool = False) -> None:
    """Print results to standard output, as a table or as a JSON list of objects."""
    if as_json:
        print(json.dumps([result.as_json() for result in results], indent=1))
        return
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("measured", overflow="fold")
    for heading in ("ours", "rival", "unit"):
        table.add_column(heading, justify="left" if heading == "unit" else "right", no_wrap=True)
    table.add_column("against", overflow="fold")
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("aim", overflow="fold")
    for result in results:
        mark = {True: "[green]met[/]: ", False: "[red]MISSED[/]: ", None: ""}[result.met]
        ours, rival, ratio = (_text(value) for value in (result.ours, result.rival, result.ratio))
        table.add_row(result.name, ours, rival, result.unit, result.rival_name, ratio, mark + result.aim_text)
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    console.print(table)


def save(results: Sequence[Result], name: str, title: str, notes: Sequence[str]) -> list[Path]:
    """Write results as ``results/NAME.json`` and, with date, hardware and ``notes``, as ``results/NAME.md``."""
    RESULTS.mkdir(exist_ok=True)
    data, page = RESULTS / f"{name}.json", RESULTS / f"{name}.md"
    data.write_text(json.dumps([result.as_json() for result in results], indent=1) + "\n")
    missed = sum(result.met is False for result in results)
    aims = sum(result.met is not None for result in results)
    today = datetime.datetime.now(datetime.UTC)
    lines = [
        f"# {title}",
        "",
        f"{today:%Y-%m-%d}; {hardware()}. Above 1 is better for us; {aims - missed} of {aims} aims met.",
        "",
        *(f"- {note}" for note in notes),
        "",
        "| measured | ours | rival | unit | against | ratio | aim |",
        "|---|---:|---:|---|---|---:|---|",
    ]
    for result in results:
        mark = {True: "met: ", False: "**missed**: ", None: ""}[result.met]
        ours, rival, ratio = (_text(value) for value in (result.ours, result.rival, result.ratio))
        lines.append(
            f"| {result.name} | {ours} | {rival} | {result.unit} | {result.rival_name} | {ratio} "
            f"| {mark}{result.aim_text} |"
        )
    page.write_text("\n".join(lines) + "\n")
    return [data, page]


def hardware() -> str:
    """Return the processor, its cores and the versions that matter, without anything that names the machine."""
    model = platform.machine()
    if CPUINFO.exists():
        models = [line.partition(":")[2].strip() for line in CPUINFO.read_text().splitlines() if "model name" in line]
        model = models[0] if models else model
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
