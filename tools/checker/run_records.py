"""Records, dataset and random streams from specs/run-records.md."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Any

from tools.checker import canonical, merkle, records
from tools.checker.faults import Case, same

__all__ = ["check"]


def _environment(data: bytes) -> Any:
    value = canonical.decode(data)
    records.environment(value)
    return value


PARSERS = {
    "manifest": records.manifest,
    "segment": records.segment,
    "steps": records.steps,
    "environment": _environment,
}


def check(case: Case) -> None:
    """Check one case."""
    if case["kind"] == "dataset":
        secret = bytes.fromhex(case["salt"])
        salts = [hmac.digest(secret, index.to_bytes(8, "big"), "sha256") for index in range(len(case["contents"]))]
        same("salts", [salt.hex() for salt in salts], case["salts"])
        leaves = [
            canonical.encode(["polstore/sample/v1", salt, canonical.decode(bytes.fromhex(content))])
            for salt, content in zip(salts, case["contents"], strict=True)
        ]
        same("leaves", [leaf.hex() for leaf in leaves], case["leaves"])
        same("root", merkle.root([merkle.leaf_hash(leaf) for leaf in leaves]).hex(), case["root"])
    elif case["kind"] == "stream":
        place = ["polstore/randomness/v1", bytes.fromhex(case["seed"]), case["stream"], case["numbers"]]
        same("seed of the stream", sha256(canonical.encode(place)).hexdigest(), case["stream_seed"])
    else:
        data = bytes.fromhex(case["bytes"])
        value = PARSERS[case["kind"]](data)
        same("value", canonical.described(value), case["value"])
        same("encoding", canonical.encode(value), data)
