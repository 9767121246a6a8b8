"""Every rule of a verifier's policy: kept by an honest proof, broken by a forged one, and seen.

The forged runs are really trained, signed with a valid key, and accepted where the policy has no such rule; so what
rejects them is the rule, and nothing in the proof relaxes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from polstore.errors import PolicyError
from polstore.wire.challenge import ROOT, WITNESS, Challenge, Rules, nonce_from_root
from polstore.wire.checkpoint import Checkpoint, sign_root
from polstore.wire.keys import SigningKey
from polstore.wire.merkle import EMPTY_ROOT
from polverify.challenge import choose
from polverify.policy import VerifierPolicy
from polverify.policy_file import parse_policy
from polverify.time import Sources
from polverify.verdict import Decision, Outcome
from tests.attacks import forge
from tests.attacks.forge import KEY, NOW, Evidence, Trainer, between
from tests.attacks.test_time_evidence import WITNESSES, checkpoint, cosigned
from tests.attacks.test_time_evidence import policy as tlog_policy

SIGNATURE, TIME, LEDGER, MANIFEST, CONTINUITY, CHALLENGE, DATA = 1, 2, 3, 4, 6, 7, 9
ORIGIN = f"{KEY.name}/{forge.RUN}"
DAY = 86_400


def rules(text: str) -> VerifierPolicy:
    return parse_policy(text.encode(), Path("policy.toml"))


@pytest.fixture(scope="module")
def proof() -> Evidence:
    return Trainer().run(opened=(1,))


def draw(evidence: Evidence, random: int, nonce: bytes = bytes(32), **more: Any) -> Challenge:
    size, root = evidence.bundle.size, evidence.bundle.root
    return Challenge.draw(ORIGIN, size, root, random=random, nonce=nonce, **more)


def test_a_policy_without_rules_changes_nothing(judge, proof):
    without, empty = judge(proof), judge(proof, policy=rules("# nothing\n"), now=NOW)
    assert empty.decision is without.decision is Decision.ACCEPT
    assert (empty.checks, empty.claim, empty.warnings) == (without.checks, without.claim, without.warnings)
    assert without.policy is None
    assert empty.policy is not None
    assert (empty.policy["rules"], empty.policy["judged_at"]) == ({}, NOW)


# Rules that reject: what the proof declares, or did.

REJECTING = [
    ("trust", 'origins = ["example.com/mallory/*"]', 'origins = ["example.com/mallory/r", "a.b/*"]', SIGNATURE),
    ("recipe", f'sha256 = ["{"00" * 32}", "{forge.RECIPE.digest.hex()}"]', f'sha256 = ["{"00" * 32}"]', MANIFEST),
    ("run", 'fidelities = ["lossless", "float16-writeback"]', 'fidelities = ["lossless"]', MANIFEST),
    ("run", 'optimizers = ["torch.optim.sgd.SGD"]', 'optimizers = ["torch.optim.adam.Adam"]', MANIFEST),
    ("run", 'initial = ["seed"]', 'initial = ["parent", "distribution"]', MANIFEST),
    ("run", 'samplers = ["free"]', 'samplers = ["seed"]', MANIFEST),
    ("run", "max_every = 3", "max_every = 2", MANIFEST),
    ("run", "min_steps = 14", "min_steps = 15", CONTINUITY),
    ("run", "max_short_segments = 1", "max_short_segments = 0", CONTINUITY),
    ("environment", 'devices = ["cpu"]', 'devices = ["cuda"]', MANIFEST),
    ("environment", f'torch = ["{torch.__version__}"]', 'torch = ["1.0"]', MANIFEST),
    ("environment", None, 'device_names = ["Abacus"]', MANIFEST),
    ("hyperparameters", "lr = {min = 0.025, max = 0.1}", "lr = {min = 0.11}", MANIFEST),
    ("hyperparameters", "momentum = {max = 0.9}", "momentum = {max = 0.89}", MANIFEST),
    ("hyperparameters", "lr = {min = 0.1, from_step = 99}", "lr = {min = 0.1, from_step = 4}", DATA),
    ("hyperparameters", None, "no_such = {max = 1.0}", MANIFEST),
    ("hyperparameters", None, "nesterov = {min = 0.0}", MANIFEST),
    ("dataset", None, f'roots = ["{"00" * 32}"]', MANIFEST),
]  # fmt: skip


@pytest.mark.parametrize(("table", "kept", "broken", "check"), REJECTING, ids=lambda value: str(value)[:24])
def test_a_rule_that_rejects(judge, rejects, proof, table, kept, broken, check):
    if kept is not None:
        assert judge(proof, policy=rules(f"[{table}]\n{kept}\n")).decision is Decision.ACCEPT
    assert rejects(proof, policy=rules(f"[{table}]\n{broken}\n")) == check


def test_the_dataset_that_is_allowed(judge, proof):
    root = proof.manifest().dataset.root.hex()
    assert judge(proof, policy=rules(f'[dataset]\nroots = ["{root}"]\n')).decision is Decision.ACCEPT


def test_another_origin(rejects, judge, proof):
    """The same run, under a name that its signer may use and the policy does not know."""
    policy = rules(f'[trust]\norigins = ["{ORIGIN}"]\n')
    assert judge(proof, policy=policy).decision is Decision.ACCEPT
    renamed = proof.declaring(run="other").signed(proof.declaring(run="other").bundle.leaves, run="other")
    assert judge(renamed).decision is Decision.ACCEPT
    assert rejects(renamed, policy=policy) == SIGNATURE


@pytest.mark.parametrize(
    ("pattern", "covered"),
    [
        (ORIGIN, True),
        ("example.com/*", True),
        ("example.com/mallory/*", True),
        ("example.com/mallory/run/*", False),
        ("example.com/mall/*", False),
        ("example.com/mallory", False),
        ("*", False),
    ],
)
def test_what_a_pattern_of_origins_covers(judge, proof, pattern, covered):
    policy = VerifierPolicy(origins=(pattern,))
    assert (judge(proof, policy=policy).decision is Decision.ACCEPT) is covered


def test_relaxed_k(rejects, judge):
    """One long segment hides more than many short ones: k = 7 instead of 3."""
    relaxed = Trainer(every=7).run(opened=(1,))
    assert judge(relaxed).decision is Decision.ACCEPT
    assert rejects(relaxed, policy=rules("[run]\nmax_every = 3\n")) == MANIFEST


def test_truncated_run(rejects, judge):
    """The first half of the training, signed as a run of its own, is an honest proof of a shorter run."""
    shorter = Trainer(steps=6).run(opened=(1,))
    assert judge(shorter).decision is Decision.ACCEPT
    assert rejects(shorter, policy=rules("[run]\nmin_steps = 14\n")) == CONTINUITY


def test_many_short_segments(rejects, judge):
    """Segments of one step, as many resumptions would leave them, dilute a challenge that counts segments."""

    class Diluted(Trainer):
        def assemble(self, all_steps: Any, edges: Any, opened: Any) -> Evidence:
            self.every = 3
            return super().assemble(all_steps, edges, opened)

    diluted = Diluted(every=1, steps=6).run(opened=(1,))
    assert judge(diluted).decision is Decision.ACCEPT
    assert rejects(diluted, policy=rules("[run]\nmax_short_segments = 1\n")) == CONTINUITY


class Interpolated(Trainer):
    """Infinitesimal update: every segment is trained, at a learning rate near 0, from a point on the way to W_T."""

    def aim(self, victim: Trainer) -> Interpolated:
        self.victim = victim.snapshots[victim.steps]
        self.origin = None
        return self

    def commit(self, index: int, committed: Any) -> Any:
        self.origin = self.origin or self.live.capture(0)
        moved = between(committed, self.victim, 0.25)
        self.live.restore(moved)
        return moved


def test_infinitesimal_updates_fall_under_the_floor_of_the_learning_rate(judge, rejects, trained):
    """What lies between the states goes by the replay; what the policy adds is that lr near 0 is no training at all.

    Even a run that honestly trained at such a rate, and so replays, is one that the floor refuses.
    """
    floor = rules("[hyperparameters]\nlr = {min = 1e-4}\n")
    forged = Interpolated(config={"lr": 1e-9}).aim(trained).run()
    assert rejects(forged, policy=floor) == MANIFEST
    honest = Trainer(config={"lr": 1e-9}).run(opened=(1,))
    assert judge(honest).decision is Decision.ACCEPT
    assert rejects(honest, policy=floor) == MANIFEST


class Scheduled(Trainer):
    """Declares the learning rate of its recipe; a scheduler of his own takes it to nearly nothing after three steps."""

    def train(self, batches: Any, number: int) -> Any:
        if number >= 3:
            for group in self.training.optimizer.param_groups:
                group["lr"] = 1e-9
        return super().train(batches, number)


def test_another_schedule_falls_under_the_floor_in_the_step_records(rejects, judge):
    """The declared rate is above the floor, and the replay of the later segments starts from what the states say."""
    floor = rules("[hyperparameters]\nlr = {min = 1e-4}\n")
    assert rejects(Scheduled().run(opened=(2,)), policy=floor) == DATA
    decaying = Trainer().run(opened=(4,))  # the recipe's own schedule: 0.025 in the last segment
    assert judge(decaying, policy=floor).decision is Decision.ACCEPT
    assert rejects(decaying, policy=rules("[hyperparameters]\nlr = {min = 0.03}\n")) == DATA


def test_hyperparameters_that_are_no_numbers():
    """Text, true, NaN or nothing in the place of a bounded number keeps no bound."""
    policy = rules("[hyperparameters]\nlr = {min = 0.0, max = 1.0}\n")
    for value in ("0.1", True, float("nan"), None, (0.1,)):
        with pytest.raises(PolicyError, match="lr"):
            policy.bounds["lr"].require("step 1", 1, {"lr": value}, "lr")
    policy.bounds["lr"].require("step 1", 1, {"lr": 1}, "lr")


# Rules that leave it open: evidence that does not reach far enough.


def lacks(verdict: Any, check: int, says: str) -> None:
    assert verdict.decision is Decision.INCONCLUSIVE, verdict.reason
    assert verdict.reason.startswith(f"check {check} (")
    assert says in verdict.reason
    if check < 12:
        assert verdict.checks[check].outcome is Outcome.UNDECIDED


def test_time_has_to_be_witnessed(judge, proof):
    policy, witnesses = rules('[time]\nrequire = ["witnessed"]\n'), Sources(tlog_policy())
    lacks(judge(proof, policy=policy), TIME, "no evidence from above that is witnessed")
    lacks(judge(proof, policy=policy, time=Sources(tlog_policy("none"))), TIME, "no evidence")
    root = cosigned(proof.root, *WITNESSES[:2], time=NOW + 60)
    assert judge(proof, root=root, policy=policy, time=witnesses).decision is Decision.ACCEPT
    lacks(
        judge(proof, root=root, policy=rules('[time]\nrequire = ["timestamped"]\n'), time=witnesses),
        TIME,
        "timestamped",
    )
    nobody = Sources(tlog_policy("none"))  # a cosignature that the verifier asks for nothing from is no evidence
    lacks(judge(proof, root=root, policy=policy, time=nobody), TIME, "no evidence")


def test_how_old_evidence_may_be(judge, proof):
    policy, witnesses = rules(f"[time]\nmax_age_seconds = {DAY}\n"), Sources(tlog_policy())
    root = cosigned(proof.root, *WITNESSES[:2], time=NOW)

    def at(now: int | None) -> Any:
        return judge(proof, root=root, policy=policy, time=witnesses, now=now)

    for now in (NOW - 3600, NOW, NOW + DAY):
        assert at(now).decision is Decision.ACCEPT
    lacks(at(NOW + DAY + 1), TIME, f"the latest is {DAY + 1} s old")
    lacks(at(NOW - 3601), TIME, "the latest is -3601 s old")
    lacks(at(None), TIME, "of unknown age")
    lacks(judge(proof, policy=policy, now=NOW), TIME, "no evidence")  # the signer's own word has no age that counts


def test_by_when_the_root_has_to_have_existed(judge, proof):
    policy, witnesses = rules("[time]\nexisted_by = 2025-10-10T00:00:00Z\n"), Sources(tlog_policy())
    in_time, late = (cosigned(proof.root, *WITNESSES[:2], time=NOW + days * DAY) for days in (0, 1))
    assert judge(proof, root=in_time, policy=policy, time=witnesses).decision is Decision.ACCEPT
    lacks(judge(proof, root=late, policy=policy, time=witnesses), TIME, "existed by 2025-10-10")


def test_a_lower_bound_may_be_required(judge, proof):
    policy, witnesses = rules("[time]\nlower_bound = true\n"), Sources(tlog_policy())
    bounded = proof.declaring(not_before=checkpoint(*WITNESSES[:2], time=NOW - DAY))
    unknown = proof.declaring(
        not_before=sign_root(Checkpoint("log.example", 0, EMPTY_ROOT), SigningKey("log.example", bytes(32)), 1)
    )

    def with_quorum(evidence: Evidence) -> Any:
        root = cosigned(evidence.root, *WITNESSES[:2], time=NOW)
        return judge(evidence, root=root, policy=policy, time=witnesses)

    assert with_quorum(bounded).decision is Decision.ACCEPT
    for lacking in (proof, unknown):
        lacks(with_quorum(lacking), TIME, "when the run began")


def test_a_ledger_may_be_required(judge, proof):
    lacks(judge(proof, policy=rules("[trust]\nledger = true\n")), LEDGER, "has to be in a ledger")


def test_a_challenge_may_be_required(judge):
    policy = rules('[challenge]\nnonce = ["fresh"]\n')
    whole = Trainer()
    asked = draw(whole.run(), 1)
    answer = Trainer().run(opened=asked.segments)
    lacks(judge(answer, policy=policy), CHALLENGE, "there is none")
    assert judge(answer, policy=policy, challenge=asked).decision is Decision.ACCEPT
    lacks(judge(answer, policy=rules('[challenge]\nnonce = ["witness"]\n'), challenge=asked), CHALLENGE, "is fresh")


@pytest.mark.parametrize("source", [WITNESS, ROOT])
def test_where_the_nonce_has_to_come_from(judge, source):
    """A draw that follows from the root, or from a witness's cosignature, counts where the policy says so."""
    shown = Trainer().run()
    nonce = nonce_from_root(ORIGIN, shown.bundle.size, shown.bundle.root)
    asked = draw(shown, 1, nonce, source=source)
    answer = Trainer().run(opened=asked.segments)
    fresh, allowed = (rules(f"[challenge]\nnonce = {kinds}\n") for kinds in ('["fresh"]', f'["fresh", "{source}"]'))
    lacks(judge(answer, policy=fresh, challenge=asked), CHALLENGE, f"its nonce is {source}")
    assert judge(answer, policy=allowed, challenge=asked).decision is Decision.ACCEPT


@pytest.fixture(scope="module")
def answered() -> tuple[Evidence, Challenge]:
    asked = draw(Trainer().run(), 1)
    return Trainer().run(opened=asked.segments), asked


@pytest.mark.parametrize(
    ("kept", "broken", "says"),
    [
        # 1 drawn of the 3 between first and last: one bad one is found with 1/3, two (0.3 of 5 is rounded up) with 2/3
        ("share = 0.3\ndetection = 0.66", "share = 0.3\ndetection = 0.67", "30 % forged segments"),
        ("share = 0.2\ndetection = 0.33", "share = 0.2\ndetection = 0.34", "20 % forged segments"),
        ("one_bad_segment = 0.33", "one_bad_segment = 0.34", "one bad segment"),
        ("concatenation = 0.33", "concatenation = 0.34", "a concatenation"),
        ("replayed_share = 0.5", "replayed_share = 0.7", "70 % of the steps"),
    ],
)
def test_required_power(judge, answered, kept, broken, says):
    answer, asked = answered
    assert judge(answer, policy=rules(f"[power]\n{kept}\n"), challenge=asked).decision is Decision.ACCEPT
    lacks(judge(answer, policy=rules(f"[power]\n{broken}\n"), challenge=asked), 12, says)


def test_largest_updates_count_where_norms_are_facts(judge):
    """Without an audit top-Q adds nothing, so a policy that wants concatenations caught is not content with it."""
    policy = rules("[power]\nconcatenation = 1.0\n")
    shown, top = Trainer().run(opened=()), Rules(top=1)
    asked = draw(shown, 1, rules=top, named=choose(shown.records(), top))
    lacks(judge(Trainer().run(opened=asked.segments), policy=policy, challenge=asked), 12, "a concatenation")
    audited = Trainer(audit=True).run(opened=asked.segments)
    assert judge(audited, policy=policy, challenge=asked, audit=True).decision is Decision.ACCEPT


def test_segments_that_a_verifier_picks_are_no_draws(judge):
    """All of them replayed, and the coverage says why; but against a forger who foresaw them only the draw counts."""
    shown = Trainer().run(opened=())
    asked = draw(shown, 1, picked=[2])
    verdict = judge(
        Trainer().run(opened=asked.segments), policy=rules("[power]\none_bad_segment = 0.5\n"), challenge=asked
    )
    assert verdict.decision is Decision.ACCEPT  # 1 drawn of the other 2
    chosen = [row.opened for row in verdict.coverage]
    assert (chosen[0], chosen[2], chosen[4], sorted(map(str, (chosen[1], chosen[3])))) == (
        *("named", "picked", "named"),
        ["None", "random"],
    )


def test_kinds_of_initial_states(judge, rejects):
    """One declared as drawn from a distribution is accepted, and is worth less: whether it will do, the policy says."""
    drawn = Trainer(config={"hidden": 96}, initial_kind="distribution").run(opened=(1,))
    only_seed, both = rules('[run]\ninitial = ["seed"]\n'), rules('[run]\ninitial = ["seed", "distribution"]\n')
    assert rejects(drawn, policy=only_seed) == MANIFEST
    assert judge(drawn, policy=both).decision is Decision.ACCEPT


def test_without_a_challenge_nothing_was_drawn(judge, proof):
    lacks(judge(proof, policy=rules("[power]\none_bad_segment = 0.01\n")), 12, "and is with 0")


def test_a_fault_beats_what_is_lacking(rejects, proof):
    policy = rules('[time]\nrequire = ["witnessed"]\n[run]\nmax_every = 1\n[power]\none_bad_segment = 1.0\n')
    assert rejects(proof, policy=policy) == MANIFEST


def test_nothing_in_a_proof_relaxes_a_rule(rejects, proof):
    """Extensions and a configuration that are called like rules are data, and no rules."""
    promising = proof.declaring(extensions=(("max_every", b"9"), ("policy", b"[run]\nmax_every = 9\n")))
    assert rejects(promising, policy=rules("[run]\nmax_every = 2\n")) == MANIFEST
