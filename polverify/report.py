"""The report: one HTML page for people out of a verdict's JSON.

The page needs nothing from anywhere: style and drawings are inline, there is no script, and a policy in its head
forbids the browser to load any. All that a proof says is hostile text: it is escaped, control characters and marks that
reorder text are shown as codes, and long text is cut. Parts that a verdict lacks are said to be lacking. Judges
nothing: whatever the page says of the proof, the verdict says.
"""

from __future__ import annotations

import datetime
import json
import math
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError

from polstore import terminal
from polstore.errors import CallerError
from polverify.charts import SIDE, dots, linear_axis, log_axis
from polverify.power import percent
from polverify.verdict import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["parse_verdict", "render"]

MAX_TEXT = 600  # characters of one value that are shown
MAX_ROWS = 200  # rows of one table that are shown
NORMS = {"l2": "l2", "l1": "l1", "linf": "l∞", "cos": "cosine distance"}  # as they are called on the page
OUTCOMES = {"passed": "ok", "failed": "failed", "undecided": "undecided", "not made": "not made", None: "no result"}
CHOSEN = {
    "random": "drawn by the nonce",
    "named": "first, last, or found by the challenge's rules",
    "picked": "the verifier's choice",
    "prover": "the prover's choice",
    "caller": "the verifier's choice, without a challenge",
}


def parse_verdict(data: bytes) -> dict[str, Any]:
    """Parse a verdict as `polverify check --json` printed it; raises `CallerError` if it is none."""
    try:
        verdict = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CallerError(f"not a verdict: {error}") from error
    schema = verdict.get("schema") if isinstance(verdict, dict) else None
    if schema != SCHEMA:
        raise CallerError("not a verdict: its schema", expected=SCHEMA, got=schema)
    found: dict[str, Any] = verdict
    return found


def render(verdict: Mapping[str, Any]) -> str:
    """Return the page for a verdict, given as `polverify.verdict.Verdict.as_json` returns it.

    Raises:
        CallerError: it is not built as a verdict is.
    """
    environment = Environment(
        loader=PackageLoader("polverify"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": _shown, "date": _date, "number": _figure, "percent": _percent, "item": _item}
    try:
        return environment.get_template("report.html").render(_view(verdict))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, TemplateError) as error:
        raise CallerError(f"a verdict that is not built as one: {type(error).__name__}: {error}") from error


def _view(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template shows; every name in it is set."""
    claim = verdict["claim"]
    rows = [dict(row) | {name: _number(row[name]) for name in NORMS} for row in verdict.get("coverage") or ()]
    time = claim.get("time")
    return {
        "decision": verdict["decision"],
        "reason": verdict["reason"],
        "claim": claim,
        "checks": verdict["checks"],
        "outcomes": OUTCOMES,
        "time": time if isinstance(time, list) else [],
        "signed_at": _signed_at(time),
        "coverage": _coverage(rows),
        "opened": _opened(rows, verdict["segments"]),
        "exact": sum(each["outcome"] == "passed" and "tolerance" not in each for each in verdict["segments"]),
        "charts": [_norm_chart(name, title, rows) for name, title in NORMS.items()] if rows else [],
        "losses": _loss_chart(verdict.get("losses") or []),
        "tensors": _tensors(verdict["segments"]),
        "power": verdict.get("power"),
        "audited": _audited(verdict.get("power")),
        "policy": verdict.get("policy"),
        "warnings": verdict["warnings"],
        "max_rows": MAX_ROWS,
        "side": SIDE,
    }


def _audited(power: Mapping[str, Any] | None) -> bool:
    """Say whether every snapshot was looked at, so that all norms are facts."""
    return power is not None and power["concatenation"]["norms"] == "facts"


def _signed_at(time: Any) -> int | None:
    """Return when the signer says that he signed: a list of evidence for a run, a number for a ledger's head."""
    if isinstance(time, list):
        return next((piece["time"] for piece in time if piece["kind"] == "self-asserted"), None)
    return time if isinstance(time, int) else None


def _coverage(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the bar along the run: where each opened segment lies, as it came out."""
    if not rows:
        return None
    steps = max(row["end_step"] for row in rows)
    opened = [row for row in rows if row["opened"]]
    bars = [
        {
            "x": round(SIDE * row["start_step"] / steps, 2),
            "width": max(round(SIDE * (row["end_step"] - row["start_step"]) / steps, 2), 2.0),  # else out of sight
            "outcome": OUTCOMES[row["outcome"]].replace(" ", "-"),
            "chosen": row["opened"],
        }
        for row in opened
    ]
    return {
        "bars": bars,
        "steps": steps,
        "segments": sum(row["count"] for row in rows),
        "opened": sum(row["count"] for row in opened),
        "random": sum(row["count"] for row in opened if row["opened"] == "random"),
        "edges": [round(SIDE * row["start_step"] / steps, 2) for row in rows[1:]] if len(rows) <= MAX_ROWS else [],
    }


def _opened(rows: Iterable[Mapping[str, Any]], results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the opened segments, each with how it was chosen and what its replay came to."""
    found = {result["index"]: result for result in results}
    return [
        {
            "name": str(row["index"]) if row["count"] == 1 else f"{row['count']} segments from {row['index']}",
            "steps": f"{row['start_step']} to {row['end_step']}",
            "chosen": CHOSEN[row["opened"]],
            "outcome": OUTCOMES[row["outcome"]],
            "detail": found.get(row["index"], {}).get("detail", "it failed, or a check before it did"),
            "figures": _figures(found.get(row["index"], {})),
        }
        for row in rows
        if row["opened"]
    ]


def _figures(result: Mapping[str, Any]) -> list[str]:
    """Return a line for each figure of a segment: ε in the paper's terms, unless all is 0, and the own evaluation."""
    lines = []
    epsilon = result.get("epsilon") or {"raw": {}}
    if any(_number(value) for value in epsilon["raw"].values()):
        lines.append(f"ε of all parameters: {_listed(epsilon['raw'])}")
        if epsilon["normalised"]:
            lines.append(f"in units of d_ref: {_listed(epsilon['normalised'])}")
    evaluation = result.get("evaluation")
    if evaluation:
        ends = [(evaluation[end], result[f"{end}_step"]) for end in ("start", "end")]
        own = "; ".join(f"{_listed(values)} after step {step}" for values, step in ends)
        lines.append(f"the recipe's own evaluation: {own}")
    return lines


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{NORMS.get(name, name)} {_figure(value)}" for name, value in values.items())


def _norm_chart(name: str, title: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the updates of all segments under one distance, on a logarithmic axis (paper, Figure 5)."""
    values = [row[name] for row in rows]
    axis, steps = log_axis(values), max(row["end_step"] for row in rows)

    def placed(*, opened: bool) -> list[tuple[float, float]]:
        chosen = (row for row in rows if bool(row["opened"]) is opened)
        return [
            (round(SIDE * (row["start_step"] + row["end_step"]) / 2 / steps, 1), axis.place(row[name]))
            for row in chosen
        ]

    finite = [value for value in values if math.isfinite(value)]
    peak = max(rows, key=lambda row: math.inf if math.isnan(row[name]) else row[name])
    middle = median(finite) if finite else math.nan
    challenged = placed(opened=True)
    return {
        "name": name,
        "title": title,
        "axis": axis,
        "steps": steps,
        "others": dots(placed(opened=False)),
        "opened": dots(challenged),
        "stems": "".join(f"M{x:g} {SIDE}V{y:g}" for x, y in challenged),
        "peak": peak,
        "peak_value": peak[name],
        "ratio": peak[name] / middle if middle > 0 and math.isfinite(peak[name]) else None,
        "median": middle,
        "odd": len(values) - len(finite),
    }


def _loss_chart(losses: Sequence[Sequence[Any]]) -> dict[str, Any] | None:
    points = [(int(step), _number(loss)) for step, loss in losses]
    if not points:
        return None
    axis = linear_axis([loss for _, loss in points])
    first, last = points[0][0], points[-1][0]
    width = max(last - first, 1)
    return {
        "axis": axis,
        "first": first,
        "last": last,
        "first_loss": points[0][1],
        "last_loss": points[-1][1],
        "count": len(points),
        "dots": dots([(round(SIDE * (step - first) / width, 1), axis.place(loss)) for step, loss in points]),
        "odd": sum(not math.isfinite(loss) for _, loss in points),
    }


def _tensors(segments: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return ε of each tensor against its bound, the worst first; None where no segment was compared so."""
    found = []
    for segment in segments:
        for tensor in (segment.get("tolerance") or {}).get("tensors") or ():
            epsilon, bound = _number(tensor["epsilon"]), _number(tensor["bound"])
            part = 0.0 if epsilon == 0 else epsilon / bound if bound > 0 else math.inf
            part = math.inf if math.isnan(part) else part
            found.append(
                {
                    "segment": segment["index"],
                    "name": tensor["name"],
                    "epsilon": epsilon,
                    "bound": bound,
                    "part": part,
                    "bar": round(100 * min(part, 1.0), 1),
                }
            )
    found.sort(key=lambda each: -each["part"])
    return {"rows": found[:MAX_ROWS], "count": len(found)} if found else None


def _number(value: Any) -> float:
    """Return a number of a verdict: JSON has no NaN and no infinities, so they are text there."""
    return float(value)


def _shown(value: Any) -> str:
    """Return any value as one line: control characters and marks that reorder text as codes, cut if it is long."""
    text = terminal.text(value)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text)} characters)"


def _date(seconds: Any) -> str:
    """Return a time in UTC; whatever is none as it is."""
    if isinstance(seconds, bool) or not isinstance(seconds, int):
        return "not stated" if seconds is None else _shown(seconds)
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{seconds} s since 1970"


def _figure(value: Any) -> str:
    """Return a number with three digits."""
    return f"{_number(value):.3g}"


def _percent(part: Any) -> str:
    return percent(_number(part))


def _item(mapping: Mapping[str, Any], limit: int) -> list[tuple[str, Any]]:
    return list(islice(mapping.items(), limit))
