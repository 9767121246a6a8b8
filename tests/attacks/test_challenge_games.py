"""Forgers who know how segments are chosen: what the challenge catches, and that the verdict claims no more."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from polstore.errors import SignatureError, UsageError
from polstore.wire.challenge import ROOT, WITNESS, Challenge, Rules, nonce_from_root
from polstore.wire.checkpoint import open_root
from polstore.wire.keys import SigningKey
from polstore.wire.note import Note, cosign
from polstore.wire.note import parse as parse_note
from polverify.challenge import choose, odd_states, witness_nonce
from polverify.power import caught, percent
from polverify.verdict import Decision, Verdict
from tests.attacks import forge
from tests.attacks.forge import KEY, Evidence, Trainer
from tests.attacks.test_forged_runs import ForgedMoments, Jump

CHALLENGE, DATA, REPLAY, PLAUSIBILITY = 7, 9, 10, 11  # numbers of checks
TOP = Rules(top=1)


def ask(
    evidence: Evidence, rules: Rules | None = None, *, random: int = 0, nonce: bytes = bytes(32), **more: Any
) -> Challenge:
    """The challenge of a verifier who has seen all records."""
    named = choose(evidence.records(), rules or Rules())
    bundle, origin = evidence.bundle, f"{KEY.name}/{forge.RUN}"
    return Challenge.draw(
        *(origin, bundle.size, bundle.root), random=random, nonce=nonce, rules=rules, named=named, **more
    )


def ask_passing_by(segment: int, evidence: Evidence, rules: Rules | None = None, **more: Any) -> Challenge:
    """A challenge that leaves a segment out. Which nonce does that depends on the root, thus on the machine's name."""
    tried = (ask(evidence, rules, nonce=number.to_bytes(32), **more) for number in range(100))
    return next(asked for asked in tried if segment not in asked.segments)


def about_top(verdict: Verdict) -> dict[str, Any]:
    assert verdict.power is not None
    found: dict[str, Any] = verdict.power.as_json()["concatenation"]
    return found


# One bad segment among N.


@pytest.mark.parametrize(
    ("segments", "bad", "random"), [(52, 1, 10), (52, 3, 10), (392, 1, 39), (392, 4, 39), (392, 20, 39), (12, 1, 5)]
)
def test_measured_detection_is_the_stated_probability(segments, bad, random):
    """Over 500 seeded challenges; the interval is the binomial one of 95 %, by its normal approximation."""
    draws, root = 500, hashlib.sha256(b"a run").digest()
    forged = set(range(segments // 2, segments // 2 + bad))
    hits = 0
    for number in range(draws):
        nonce = hashlib.sha256(b"seed" + number.to_bytes(4, "big")).digest()
        drawn = Challenge.draw("example.com/m/r", segments + 1, root, random=random, nonce=nonce)
        assert drawn.population == segments - 2
        hits += not forged.isdisjoint(drawn.segments)
    stated = caught(segments - 2, bad, random)
    assert abs(hits / draws - stated) <= 1.96 * math.sqrt(stated * (1 - stated) / draws)


def test_the_verdict_states_the_probability_that_is_measured_on_real_forgeries(judge):
    """One bad segment of five, one of the three between drawn: of the three possible challenges one finds it."""
    records = bad_segment(2, opened=())
    possible = {ask(records, random=1, nonce=number.to_bytes(32)).segments: number for number in range(30)}
    assert sorted(possible) == [(0, 1, 4), (0, 2, 4), (0, 3, 4)]
    caught_in = []
    for segments, number in possible.items():
        asked = ask(records, random=1, nonce=number.to_bytes(32))
        verdict = judge(bad_segment(2, opened=segments), challenge=asked)
        if verdict.decision is Decision.REJECT:
            caught_in.append(segments)
        else:
            assert verdict.power.against(1) == 1 / 3
    assert caught_in == [(0, 2, 4)]


def bad_segment(bad: int, *, opened: tuple[int, ...]) -> Evidence:
    trainer = Trainer()
    model = trainer.training.model
    trainer.end = lambda index: model[1].running_mean.add_(1) if index == bad else None  # type: ignore[method-assign]
    return trainer.run(opened=opened)


def test_segments_that_were_not_replayed_do_not_count(judge):
    """Who names a machine that nobody has for his bad segment gets no ACCEPT, and no power is claimed for the draw."""
    honest = Trainer().run(opened=())
    elsewhere = replace(honest.records()[2].environment, device_name="a machine that nobody has")
    asked = ask(honest.recording(2, environment=elsewhere), random=3)
    verdict = judge(Trainer().run().recording(2, environment=elsewhere), challenge=asked)
    assert verdict.decision is Decision.INCONCLUSIVE
    power = verdict.power.as_json()
    assert (power["drawn"], power["fixed"], power["population"], power["one_bad_segment"]) == (0, 4, 1, 0.0)
    assert power["steps_replayed"] == 11 == verdict.claim["steps_replayed"]


# Concatenation.


@pytest.mark.parametrize("segment", range(forge.SEGMENTS))  # the last one is uneven
def test_concatenation_is_caught_by_the_largest_update(rejects, trained, segment):
    """The jump is the largest update of the run, so Q = 1 opens it, without any luck."""
    asked = ask(Jump().aim(trained, at=segment).run(), TOP)
    assert segment in asked.named
    assert asked.random == 0
    assert rejects(Jump().aim(trained, at=segment).run(opened=asked.segments), challenge=asked) == REPLAY


def lying(trained: Trainer, *, opened: tuple[int, ...] = (), audit: bool = False, base: int | None = None) -> Evidence:
    """A concatenation whose jump, in segment 2, is written down as the smallest update of the run."""
    forged = Jump(audit=audit, base=base).aim(trained, at=2).run(opened=opened)
    small = replace(forged.records()[1].norms, l1=1e-6, l2=1e-6, linf=1e-6, cos=1e-9)
    return forged.recording(2, norms=small)


def test_concatenation_with_a_small_norm_is_not_claimed_as_caught(judge, trained):
    """Top-Q does not find it, and the verdict says so: a concatenation is caught by drawing alone."""
    asked = ask_passing_by(2, lying(trained), TOP, random=1)
    verdict = judge(lying(trained, opened=asked.segments), challenge=asked)
    assert verdict.decision is Decision.ACCEPT
    stated = about_top(verdict)
    assert (stated["norms"], stated["with_top"]) == ("claims", stated["by_drawing"])
    assert stated["by_drawing"] == asked.random / asked.population
    assert any("add nothing against a forger who writes a small norm" in line for line in verdict.power.lines())


def test_a_base_before_the_jump_gives_the_small_norm_away(rejects, trained):
    """Segment 3 is honest, but snapshot 0, its base, is farther off than the norms from there on add up to."""
    assert rejects(lying(trained, opened=(3,), base=0)) == PLAUSIBILITY
    assert rejects(lying(trained, opened=(3,), base=0), jobs=2) == PLAUSIBILITY


def test_a_full_audit_finds_the_small_norm(rejects, trained):
    asked = ask(lying(trained), TOP, random=0)
    assert rejects(lying(trained, opened=asked.segments, audit=True), challenge=asked, audit=True) == PLAUSIBILITY


def test_a_full_audit_makes_top_count(judge):
    asked = ask(Trainer().run(opened=()), TOP, random=1)
    verdict = judge(Trainer(audit=True).run(opened=asked.segments), challenge=asked, audit=True)
    assert verdict.decision is Decision.ACCEPT
    assert (about_top(verdict)["norms"], about_top(verdict)["with_top"]) == ("facts", 1.0)
    assert about_top(verdict)["by_drawing"] == asked.random / asked.population
    assert verdict.checks[PLAUSIBILITY].detail == "norms of all segments"


def test_top_is_not_claimed_against_a_jump_that_a_forged_optimizer_state_carries_out(judge, trained):
    """The largest update replays, and no norm tells of the segment before it, which ends in the forged state."""
    forged = ForgedMoments(fidelity="lossless", audit=True).aim(trained)
    asked = ask_passing_by(1, forged.run(opened=()), TOP, random=1)
    assert 2 in asked.named
    verdict = judge(
        ForgedMoments(fidelity="lossless", audit=True).aim(trained).run(asked.segments), challenge=asked, audit=True
    )
    assert verdict.decision is Decision.ACCEPT, verdict.reason
    one = verdict.power.as_json()["one_bad_segment"]
    assert one < about_top(verdict)["with_top"] == 1
    assert verdict.power.lines()[1].endswith(f"it is caught as one bad segment is, with {percent(one)}")


def test_audits_that_are_not_delivered_or_not_asked_for(rejects, judge):
    asked = ask_passing_by(2, Trainer().run(opened=()), random=1)  # 0, 2 and 4 touch every snapshot, as an audit does
    opened = asked.segments
    assert judge(Trainer().run(opened=opened), challenge=asked).decision is Decision.ACCEPT
    assert rejects(Trainer().run(opened=opened), challenge=asked, audit=True) == DATA
    assert rejects(Trainer(audit=True).run(opened=opened), challenge=asked) == DATA


def test_a_bundle_that_opens_nothing_is_never_accepted(judge):
    for trainer, audit in ((Trainer(), False), (Trainer(audit=True), True)):
        verdict = judge(trainer.run(opened=()), audit=audit)
        assert verdict.decision is Decision.INCONCLUSIVE
        assert "no segment is opened" in verdict.reason
        assert verdict.power is not None
        assert verdict.power.against(1) == 0


def test_a_bundle_that_opens_nothing_answers_no_challenge(rejects):
    records = Trainer().run(opened=())
    assert rejects(records, challenge=ask(records, random=1)) == CHALLENGE


def test_named_segments_are_chosen_again(rejects):
    """A challenge that names other segments than the rules choose: a file that somebody else made up."""
    honest = Trainer().run(opened=())
    largest = set(choose(honest.records(), TOP)) - {0, 4}
    assert largest
    made_up = ask(honest, random=0, picked=largest)  # the same segments, but not for the same reason
    swapped = replace(made_up, rules=Rules(top=1), named=(0, 4))
    proof = Trainer().run(opened=made_up.segments)
    assert rejects(proof, challenge=swapped) == CHALLENGE
    assert rejects(proof, challenge=replace(ask(honest, TOP), rules=Rules(top=4))) == CHALLENGE


# Blindfold: real training where the largest updates are, interpolation everywhere else.


class Blindfold(Trainer):
    """Trains for real in segments 0, 2 and 4; in 1 and 3 the weights creep along a straight line."""

    def train(self, batches: Any, number: int) -> Any:
        parameters = list(self.training.model.parameters())
        before = [parameter.detach().clone() for parameter in parameters]
        loss = super().train(batches, number)
        if number // self.every in (1, 3):
            with torch.no_grad():
                for parameter, old in zip(parameters, before, strict=True):
                    parameter.copy_(old + 1e-4 * (parameter - old))
        return loss


def test_blindfold(rejects, judge):
    """The largest updates are all sound, and so is the verdict on them: it claims nothing. Drawn segments find it."""
    records = Blindfold().run(opened=())
    blind = ask(records, Rules(top=3))
    assert blind.segments == (0, 2, 4)
    verdict = judge(Blindfold().run(opened=blind.segments), challenge=blind)
    assert verdict.decision is Decision.ACCEPT
    assert [each["p"] for each in verdict.power.as_json()["detection"]] == [0.0, 0.0, 0.0]
    drawn = ask(records, Rules(top=3), random=1)
    assert len({1, 3} & set(drawn.segments)) == 1
    assert rejects(Blindfold().run(opened=drawn.segments), challenge=drawn) == REPLAY


# Seed grinding.


def test_grinding_beats_a_nonce_from_the_root_and_no_other():
    """Roots are cheap to vary. Of challenges that follow from the root, one that misses is soon found."""
    segments, bad, random, misses = 392, 100, 39, 0
    fresh = 0
    for number in range(300):
        head = ("example.com/m/r", segments + 1, hashlib.sha256(number.to_bytes(4, "big")).digest())
        weak = Challenge.draw(*head, random=random, nonce=nonce_from_root(*head), source=ROOT)
        if bad in weak.segments:
            continue
        misses += 1  # a root that the forger would sign; what a nonce draws that he does not know is another matter
        nonce = hashlib.sha256(b"fresh" + number.to_bytes(4, "big")).digest()
        fresh += bad in Challenge.draw(*head, random=random, nonce=nonce).segments
    stated = caught(segments - 2, 1, random)
    assert misses > 200  # the first or second try does it
    assert abs(fresh / misses - stated) <= 1.96 * math.sqrt(stated * (1 - stated) / misses)


def test_a_nonce_from_the_root_is_called_weak(judge):
    records = Trainer().run(opened=())
    head = (f"{KEY.name}/{forge.RUN}", records.bundle.size, records.bundle.root)
    asked = ask(records, random=1, nonce=nonce_from_root(*head), source=ROOT)
    verdict = judge(Trainer().run(opened=asked.segments), challenge=asked)
    assert verdict.decision is Decision.ACCEPT
    assert any(warning.startswith("weak: ") for warning in verdict.warnings)
    assert verdict.power.as_json()["nonce_from"] == "root"


def test_a_nonce_from_a_cosignature(judge):
    witness, records = SigningKey("example.net/witness", bytes(32)), Trainer().run(opened=())
    note = parse_note(records.root)

    def cosigned(time: int, text: str = note.text) -> bytes:
        line = cosign(text, witness, time)
        return Note(note.text, (*note.signatures, line)).encode()

    own, keys = KEY.verifier_keys(), witness.verifier_keys()
    nonces = {witness_nonce(open_root(cosigned(time), own), keys) for time in (1, 1, 2)}
    assert len(nonces) == 2  # another time is another nonce
    for root, wrong in ((records.root, keys), (cosigned(1, note.text + "x\n"), keys)):
        with pytest.raises(SignatureError):
            witness_nonce(open_root(root, own), wrong)
    for wrong in (own, keys[:0], [key for key in keys if key.kind.name != "COSIGNATURE"]):
        with pytest.raises(UsageError, match="key of the witness"):
            witness_nonce(open_root(cosigned(1), own), wrong)
    asked = ask(records, random=1, nonce=nonces.pop(), source=WITNESS)
    verdict = judge(Trainer().run(opened=asked.segments), challenge=asked)
    assert verdict.decision is Decision.ACCEPT
    assert any(warning.startswith("non-interactive, witness: ") for warning in verdict.warnings)


# States that look odd.


class Forgetful(Trainer):
    """Adam's second moments are made small at the end of segment 2, so that the next steps are huge."""

    def end(self, index: int) -> None:
        if index == 2:
            for state in self.training.optimizer.state.values():
                state["exp_avg_sq"].mul_(0.01)


def test_impossible_second_moments_are_found_without_a_replay(judge, rejects, tmp_path):
    from polverify.bundle_file import BundleFile

    config = {"optimizer": "adam"}
    shown = Forgetful(config=config, audit=True).run(opened=())
    (tmp_path / "bundle").write_bytes(shown.data())
    with BundleFile(tmp_path / "bundle") as file:
        assert odd_states(file, shown.records(), 9) == (2,)
        assert odd_states(file, shown.records(), 0) == ()
    blind = ask(shown)
    verdict = judge(Forgetful(config=config, audit=True).run(opened=blind.segments), challenge=blind, audit=True)
    assert verdict.decision is Decision.INCONCLUSIVE
    assert verdict.reason.startswith(f"check {PLAUSIBILITY} ")
    assert "segment 2;" in verdict.reason
    asked = ask(shown, picked=(2,))
    opened = Forgetful(config=config, audit=True).run(opened=asked.segments)
    assert rejects(opened, challenge=asked, audit=True) == REPLAY


@pytest.mark.parametrize("config", [{}, {"optimizer": "adam"}, {"momentum": 0.0}])
@pytest.mark.parametrize("fidelity", ["float16-writeback", "lossless"])
def test_an_honest_run_passes_an_audit_with_nothing_odd(judge, config, fidelity):
    asked = ask(Trainer(config=config, fidelity=fidelity).run(opened=()))
    proof = Trainer(config=config, fidelity=fidelity, audit=True).run(opened=asked.segments)
    verdict = judge(proof, challenge=asked, audit=True)
    assert verdict.decision is Decision.ACCEPT
    assert not any("moments" in warning for warning in verdict.warnings)
