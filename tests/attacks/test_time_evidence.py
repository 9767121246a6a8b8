"""Attacks on time: forged, missing and borrowed cosignatures, backdated roots, lower bounds that are none.

The tokens of time authorities have their own file, tests/interop/test_time_stamps.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from polstore.errors import TimestampError
from polstore.wire import note as notes
from polstore.wire.checkpoint import Checkpoint, open_root, sign_root
from polstore.wire.keys import KeyKind, SigningKey
from polstore.wire.merkle import EMPTY_ROOT
from polstore.wire.policy import Policy
from polverify.time import MAX_SKEW, Sources, gather
from polverify.verdict import Decision, Outcome
from tests.attacks.forge import KEY, NOW, OTHER_KEY, Evidence, Trainer

SIGNATURE, TIME = 1, 2
WITNESSES = [SigningKey(f"witness.example/{number}", bytes([number]) * 32) for number in range(3)]
LOG = SigningKey("log.example", bytes([9]) * 32)


@pytest.fixture(scope="module")
def proof() -> Evidence:
    return Trainer().run(opened=(1,))


def policy(quorum: str = "2", *, logs: tuple[SigningKey, ...] = (), witnesses: int = 3) -> Policy:
    """A policy that asks for a number of the witnesses, or for nobody."""
    lines = [f"log {key.verifier_key(KeyKind.ED25519).line()}" for key in logs]
    names = [f"w{number}" for number in range(witnesses)]
    for name, key in zip(names, WITNESSES, strict=False):
        lines.append(f"witness {name} {key.verifier_key(KeyKind.COSIGNATURE).line()}")
    if quorum == "none":
        lines.append("quorum none")
    else:
        lines += [f"group g {quorum} {' '.join(names)}", "quorum g"]
    return Policy.parse("".join(f"{line}\n" for line in lines).encode())


def cosigned(root: bytes, *signers: SigningKey, time: int = NOW) -> bytes:
    text = notes.parse(root).text
    return root + "".join(notes.cosign(text, key, time).line() for key in signers).encode()


def checkpoint(*signers: SigningKey, time: int) -> bytes:
    """A public log's head, as a run would commit to it."""
    return cosigned(sign_root(Checkpoint(LOG.name, 0, EMPTY_ROOT), LOG, 1), *signers, time=time)


def time_check(verdict: Any) -> Any:
    return next(check for check in verdict.checks if check.number == TIME)


# From above: witnesses.


def test_a_quorum_is_named_in_the_verdict(judge, proof):
    root = cosigned(proof.root, *WITNESSES[1:], time=NOW + 60)
    verdict = judge(proof, root=root, time=Sources(policy()))
    assert verdict.decision is Decision.ACCEPT
    kinds = [(piece["kind"], piece["by"], piece["time"]) for piece in verdict.claim["time"]]
    assert kinds == [
        ("self-asserted", KEY.name, NOW), ("witnessed", "w1", NOW + 60), ("witnessed", "w2", NOW + 60)
    ]  # fmt: skip
    detail = time_check(verdict).detail
    assert "self-asserted; witnessed by w1 at 2025-10-09T08:54:20+00:00 (signed root, quorum met)" in detail
    assert not any("no independent witness" in warning for warning in verdict.warnings)


def test_self_asserted_time_is_said_to_be_that(judge, proof):
    for sources in (Sources(), Sources(policy("none"))):
        verdict = judge(proof, time=sources)
        assert verdict.decision is Decision.ACCEPT
        assert [piece["kind"] for piece in verdict.claim["time"]] == ["self-asserted"]
        assert any("no independent witness" in warning for warning in verdict.warnings)
    bare = judge(proof, keys=KEY.verifier_keys()[:1])
    assert time_check(bare).outcome is Outcome.NOT_MADE
    assert bare.claim["time"] == []


def test_too_few_witnesses(rejects, judge, proof):
    for signers in ((), WITNESSES[:1]):
        assert rejects(proof, root=cosigned(proof.root, *signers), time=Sources(policy())) == TIME
    verdict = judge(proof, root=cosigned(proof.root, WITNESSES[0]), time=Sources(policy()))
    assert "cosigned by w0; missing: w1, w2" in verdict.reason
    assert verdict.claim["time"][1]["quorum_met"] is False


def test_strangers_are_no_witnesses(rejects, proof):
    """As many as one likes, under the witnesses' own names, and the signer's own cosignature is not one either."""
    fakes = [SigningKey(key.name, bytes([100 + number]) * 32) for number, key in enumerate(WITNESSES)]
    assert rejects(proof, root=cosigned(proof.root, *fakes), time=Sources(policy("any"))) == TIME


def test_false_and_borrowed_cosignatures(rejects, proof):
    line = notes.cosign(notes.parse(proof.root).text, WITNESSES[0], NOW)
    false = notes.Signature(line.name, line.key_id, line.blob[:-1] + bytes([line.blob[-1] ^ 1]))
    redated = notes.Signature(line.name, line.key_id, (NOW - 9).to_bytes(8, "big") + line.blob[8:])
    borrowed = notes.cosign("another text\n", WITNESSES[0], NOW)
    for signature in (false, redated, borrowed):
        root = proof.root + signature.line().encode()
        for quorum in ("any", "none"):
            assert rejects(proof, root=root, time=Sources(policy(quorum))) == TIME


def test_one_witness_twice_is_one(rejects, proof):
    twice = cosigned(cosigned(proof.root, WITNESSES[0]), WITNESSES[0], time=NOW + 1)
    assert rejects(proof, root=twice, time=Sources(policy())) == TIME


def test_a_time_that_is_no_date(rejects, proof):
    root = cosigned(proof.root, WITNESSES[0], time=2**62)
    assert rejects(proof, root=root, time=Sources(policy("any"))) == TIME


def test_a_quorum_on_the_ledger_head_will_do(proof):
    """What the ledger's check is to hand over: witnesses see the ledger, not each run."""
    opened = open_root(proof.root, KEY.verifier_keys())
    head = notes.parse(cosigned(sign_root(Checkpoint(KEY.name, 0, EMPTY_ROOT), KEY, NOW), *WITNESSES[:2]))
    found = gather(opened, Sources(policy()), heads=[head])
    found.require()
    assert [piece["on"] for piece in found.pieces[1:]] == ["ledger head"] * 2
    split = cosigned(proof.root, WITNESSES[2])  # one on each: neither is seen by a quorum
    head = notes.parse(cosigned(sign_root(Checkpoint(KEY.name, 0, EMPTY_ROOT), KEY, NOW), WITNESSES[0]))
    assert gather(open_root(split, KEY.verifier_keys()), Sources(policy()), heads=[head]).faults


# Keys of a policy.


def test_one_of_a_policys_logs_has_to_sign(judge, rejects, proof):
    for logs in ((KEY,), (KEY, OTHER_KEY), (OTHER_KEY, LOG, KEY)):
        assert judge(proof, keys=(), time=Sources(policy("none", logs=logs))).decision is Decision.ACCEPT
    for logs in ((OTHER_KEY,), (LOG,), (OTHER_KEY, LOG)):
        assert rejects(proof, keys=(), time=Sources(policy("none", logs=logs))) == SIGNATURE
        assert rejects(proof, time=Sources(policy("none", logs=logs))) == SIGNATURE


def test_during_a_rotation_either_key_is_enough(judge, rejects, proof):
    text = notes.parse(proof.root).text
    rotated = sign_root(Checkpoint(f"{KEY.name}/run", proof.bundle.size, proof.bundle.root), KEY, NOW, OTHER_KEY)
    assert notes.parse(rotated).text == text
    for keys in (KEY.verifier_keys(), OTHER_KEY.verifier_keys(), [*KEY.verifier_keys(), *OTHER_KEY.verifier_keys()]):
        assert judge(proof, root=rotated, keys=keys).decision is Decision.ACCEPT
    line = notes.parse(rotated).signatures[2]
    false = rotated.replace(line.line().encode(), notes.Signature(line.name, line.key_id, bytes(64)).line().encode())
    assert rejects(proof, root=false, keys=(), time=Sources(policy("none", logs=(KEY, OTHER_KEY)))) == SIGNATURE


# From below: the checkpoint in the manifest.


def declaring(proof: Evidence, *signers: SigningKey, time: int) -> Evidence:
    return proof.declaring(not_before=checkpoint(*signers, time=time))


def test_a_lower_bound_by_known_witnesses(judge, proof):
    bounded = declaring(proof, *WITNESSES, time=NOW - 500)
    root = cosigned(bounded.root, *WITNESSES)
    verdict = judge(bounded, root=root, time=Sources(policy()))
    assert verdict.decision is Decision.ACCEPT
    piece = verdict.claim["time"][-1]
    assert (piece["kind"], piece["time"], piece["verified"]) == ("not before", NOW - 500, True)
    assert piece["by"] == ["w0", "w1", "w2"]
    assert "not before 2025-10-09T08:45:00+00:00 (log.example, 0 leaves, witnessed by w0, w1, w2)" in (
        time_check(verdict).detail
    )


def test_a_lower_bound_that_nobody_vouches_for_is_said_to_be_that(judge, proof):
    unknown = declaring(proof, SigningKey("stranger.example", bytes(32)), time=NOW - 500)
    few = declaring(proof, WITNESSES[0], time=NOW - 500)
    for evidence, sources in (
        (unknown, Sources()),
        (unknown, Sources(policy("none"))),
        (few, Sources(policy("none"))),
    ):
        verdict = judge(evidence, time=sources)
        assert verdict.decision is Decision.ACCEPT
        piece = verdict.claim["time"][-1]
        assert (piece["kind"], piece["time"], piece["verified"]) == ("not before", None, False)
        assert "unverified" in time_check(verdict).detail
        assert any("began after" in warning for warning in verdict.warnings)


def test_a_quorum_of_late_cosignatures_bounds_by_the_quorum_not_by_the_last(judge, proof):
    """One witness with a clock in the future cannot move a bound for which two are needed."""
    note = cosigned(checkpoint(*WITNESSES[:2], time=NOW - 500), WITNESSES[2], time=NOW + 10**6)
    verdict = judge(
        (bounded := proof.declaring(not_before=note)),
        root=cosigned(bounded.root, *WITNESSES),
        time=Sources(policy()),
    )
    assert verdict.claim["time"][-1]["time"] == NOW - 500


def test_backdated_roots(judge, rejects, proof):
    """The signer's own time, and a witness's, lie before what the manifest shows to have come first."""
    late = declaring(proof, *WITNESSES, time=NOW + MAX_SKEW + 1)
    fresh = cosigned(late.root, *WITNESSES, time=NOW + 2 * MAX_SKEW)
    assert rejects(late, root=fresh, time=Sources(policy())) == TIME, "the signer's clock"
    bare = KEY.verifier_keys()[:1]
    assert judge(late, root=fresh, keys=bare, time=Sources(policy())).decision is Decision.ACCEPT
    stale = cosigned(late.root, *WITNESSES, time=NOW)
    assert rejects(late, root=stale, keys=bare, time=Sources(policy())) == TIME, "the witnesses' clocks"
    within = declaring(proof, *WITNESSES, time=NOW + MAX_SKEW)
    assert judge(within, root=cosigned(within.root, *WITNESSES), time=Sources(policy())).decision is Decision.ACCEPT
    found = gather(open_root(late.root, KEY.verifier_keys()), Sources(policy("any")), late.manifest().not_before)
    assert isinstance(found.faults[-1], TimestampError)


def test_lower_bounds_that_are_none(rejects, proof):
    sound = checkpoint(WITNESSES[0], time=NOW - 500)
    line = notes.cosign(notes.parse(sound).text, WITNESSES[1], NOW)
    false = sound + notes.Signature(line.name, line.key_id, line.blob[:-1] + bytes([line.blob[-1] ^ 1])).line().encode()
    root = "any"
    for note, sources in ((b"note", Sources()), (sound[:-1], Sources()), (false, Sources(policy(root)))):
        bounded = proof.declaring(not_before=note)
        assert rejects(bounded, root=cosigned(bounded.root, *WITNESSES), time=sources) == TIME
