"""A small checker of JSON against specs/verdict.schema.json: the keywords that it uses, and not one more.

Stricter than JSON Schema in one point: a field that the schema does not describe is a fault, unless it says that there
may be others. Readers have to ignore such fields; a program of ours that writes one has to describe it first.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

SCHEMA = json.loads((Path(__file__).parents[1] / "specs" / "verdict.schema.json").read_text())
TYPES = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip
KEYWORDS = {
    "$schema", "$defs", "$ref", "title", "description", "type", "properties", "required", "additionalProperties",
    "items", "prefixItems", "minItems", "maxItems", "anyOf", "enum", "const", "pattern", "minimum", "maximum",
}  # fmt: skip


def check_verdict(verdict: Any) -> None:
    """Assert that a verdict, after a way through JSON, is what the schema says."""
    faults = list(_faults(json.loads(json.dumps(verdict, allow_nan=False)), SCHEMA, "verdict"))
    assert not faults, faults[:5]


def _faults(value: Any, schema: dict[str, Any], where: str) -> Any:
    assert schema.keys() <= KEYWORDS, schema.keys() - KEYWORDS
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema and all(list(_faults(value, each, where)) for each in schema["anyOf"]):
        nearest = min((list(_faults(value, each, where)) for each in schema["anyOf"]), key=len)
        yield f"{where}: none of the alternatives: {nearest[0]}"
    if "const" in schema and value != schema["const"]:
        yield f"{where}: {value!r}, not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r}, not one of {schema['enum']}"
    kind = schema.get("type")
    if kind is not None and (
        not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind in ("integer", "number"))
    ):
        yield f"{where}: {type(value).__name__}, not {kind}"
        return
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{where}: {value!r} does not match"
    if kind in ("integer", "number") and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{where}: {value!r} out of range"
    if kind == "object":
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", False)
        yield from (f"{where}: lacks {name}" for name in schema.get("required", ()) if name not in value)
        for name, item in value.items():
            if name in properties:
                yield from _faults(item, properties[name], f"{where}.{name}")
            elif isinstance(others, dict):
                yield from _faults(item, others, f"{where}.{name}")
            elif not others:
                yield f"{where}: {name} is not described"
    if kind == "array":
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{where}: {len(value)} items"
        listed = schema.get("prefixItems", [])
        for number, item in enumerate(value):
            own = listed[number] if number < len(listed) else schema.get("items", {})
            yield from _faults(item, own, f"{where}[{number}]")
