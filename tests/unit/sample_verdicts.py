"""Verdicts as JSON to make reports of: a long honest run, one with tolerances and a parent, one of hostile text."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> {{ 7*7 }} {% raw %} \u202egnp.exe\u2066 \x1b[31m\x00"
    " </style></title></svg> https://evil.example/ " + "W" * 5000
)


def accepted(segments: int = 390, every: int = 10, opened: int = 24) -> dict[str, Any]:
    """An accepted run of many segments, whose updates shrink as it converges."""
    chance = random.Random(5)
    drawn = set(chance.sample(range(1, segments - 1), opened - 2))
    coverage, results, losses = [], [], []
    for index in range(segments):
        start, end = index * every, (index + 1) * every
        size = 0.4 * math.exp(-index / segments * 3) * chance.uniform(0.7, 1.3)
        chosen = "random" if index in drawn else "named" if index in (0, segments - 1) else None
        coverage.append(
            {
                "index": index, "count": 1, "start_step": start, "end_step": end,
                "l1": 300 * size, "l2": size, "linf": size / 20, "cos": size * size / 50,
                "opened": chosen, "outcome": "passed" if chosen else None,
            }
        )  # fmt: skip
        if chosen:
            detail = "state digests are equal"
            results.append(
                {"index": index, "start_step": start, "end_step": end, "outcome": "passed", "detail": detail}
            )
            losses += [
                [step, 2.3 * math.exp(-step / every / segments * 2) + chance.uniform(-0.1, 0.1)]
                for step in range(start, end)
            ]
    names = [
        "well-formed bundle", "signature", "time", "ledger", "manifest", "initial state", "continuity", "challenge",
        "inclusion", "data", "replay", "plausibility",
    ]  # fmt: skip
    return {
        "schema": "polverify/verdict/v2",
        "decision": "ACCEPT",
        "reason": f"{opened} of {segments} segments replayed bit for bit",
        "claim": {
            "origin": "example.com/alice/digits", "size": segments + 1, "root": "5d" * 32,
            "signed_by": ["example.com/alice"],
            "time": [
                {"kind": "self-asserted", "by": "example.com/alice", "time": 1_760_000_000},
                {"kind": "witnessed", "by": "w1", "time": 1_760_000_060, "on": "signed root", "quorum_met": True},
                {"kind": "not before", "by": ["w1", "w2"], "time": 1_759_000_000, "verified": True},
            ],
            "run": "digits", "fidelity": "float16-writeback", "every": every, "recipe": "ab" * 32,
            "config": {"lr": 0.1, "optimizer": "sgd"}, "dataset": {"root": "cd" * 32, "size": 50_000},
            "optimizer": "torch.optim.sgd.SGD", "initial": "seed", "segments": segments, "steps": segments * every,
            "steps_replayed": opened * every,
        },
        "checks": [
            {"number": number, "name": name, "outcome": "not made" if number == 3 else "passed", "detail": f"{name}: 1"}
            for number, name in enumerate(names)
        ],
        "segments": results,
        "warnings": ["the order of samples was the prover's free choice"],
        "power": {
            "segments": segments, "fixed": 2, "drawn": opened - 2, "population": segments - 2, "nonce_from": "fresh",
            "detection": [
                {"share": 0.01, "segments": 4, "p": 0.2084}, {"share": 0.05, "segments": 20, "p": 0.7010},
                {"share": 0.1, "segments": 39, "p": 0.9206},
            ],
            "one_bad_segment": 0.0567,
            "concatenation": {"top": 0, "norms": "claims", "by_drawing": 0.0567, "with_top": 0.0567},
            "steps_replayed": opened * every, "steps_trained": segments * every, "bytes_moved": 75_608_100,
            "tolerated": 0,
        },
        "coverage": coverage,
        "losses": losses,
        "policy": {
            "sha256": "ef" * 32, "judged_at": 1_760_100_000,
            "rules": {"run": {"max_every": 100}, "hyperparameters": {"lr": {"min": 0.0001}}},
        },
    }  # fmt: skip


def in_another_class() -> dict[str, Any]:
    """Compared within tolerances, with a parent; one tensor is over its bound, one norm is not finite."""
    verdict = copy.deepcopy(accepted(40, 7, 8))
    verdict |= {"decision": "INCONCLUSIVE", "reason": "check 10 (replay): segment 7: over its bound", "policy": None}
    verdict["claim"] |= {
        "initial": "parent",
        "parent": {
            "origin": "example.com/alice/base",
            "size": 12,
            "root": "01" * 32,
            "initial": "seed",
            "inherited": 60,
        },
    }
    verdict["checks"][10]["outcome"] = "undecided"
    for number, segment in enumerate(verdict["segments"]):
        if number == 0:
            continue  # that one was bit for bit
        tensors = [
            {"name": f"parameter/layer{layer}.weight", "epsilon": 1e-7 * (layer + 1) * (number + 1), "bound": 5e-6}
            for layer in range(8)
        ]
        segment["tolerance"] = {
            "settings": ["threads", "rounding-1"], "compared": {"parameter": 0.99}, "bounded": [], "bounded_count": 0,
            "worst": tensors[-1]["name"], "worst_error": tensors[-1]["epsilon"], "worst_floors": 9.5,
            "worst_share": 0.01, "largest_tolerance": 0.03, "tensors": tensors,
        }  # fmt: skip
        segment["epsilon"] = {"raw": {"l1": 1e-5, "l2": 1e-6, "linf": 1e-7, "cos": 1e-12}, "normalised": {"l2": 1e-4}}
        segment["evaluation"] = {"start": {"accuracy": 0.8}, "end": {"accuracy": 0.82}}
    verdict["segments"][-1]["outcome"] = verdict["coverage"][-1]["outcome"] = "undecided"
    verdict["coverage"][9] |= {"l2": "nan", "l1": "inf", "linf": 0.0, "cos": -1e-17}
    return verdict


def rejected_early() -> dict[str, Any]:
    """Rejected at the signature: there is no more than that."""
    verdict = copy.deepcopy(accepted(3, 1, 2))
    return verdict | {
        "decision": "REJECT", "reason": "check 1 (signature): a key has not signed: expected a, got b", "claim": {},
        "checks": [
            check | {"outcome": ["passed", "failed"][check["number"]] if check["number"] < 2 else "not made"}
            for check in verdict["checks"]
        ],
        "segments": [], "warnings": [], "power": None, "coverage": [], "losses": [], "policy": None,
    }  # fmt: skip


def hostile() -> dict[str, Any]:
    """Every text is an attack on the page."""

    def poisoned(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: poisoned(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [poisoned(item, key) for item in value]
        keep = key in {"schema", "decision", "outcome", "opened", "kind"}
        return HOSTILE if isinstance(value, str) and not keep else value

    verdict = poisoned(accepted(12, 3, 4))
    verdict["claim"]["config"] = {f"{HOSTILE[:200]}{number}": HOSTILE for number in range(3)}
    verdict["claim"]["parent"] = {"origin": HOSTILE}
    verdict["segments"][0]["tolerance"] = {"tensors": [{"name": HOSTILE, "epsilon": 1.0, "bound": 0.0}]}
    return verdict


ALL = {"accepted": accepted, "other-class": in_another_class, "rejected": rejected_early, "hostile": hostile}
