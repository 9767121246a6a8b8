"""Runs that begin with a parent's tensors: what an honest one shows, and every way to claim a parent falsely."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest
import torch

from polstore.ancestry import lineage
from polstore.codec.live.arrays import to_torch
from polstore.errors import UsageError
from polstore.prover import commit, prove
from polstore.reader import open_archive
from polstore.recording import record_recipe, seed_initial
from polstore.storage.store import open_store
from polstore.wire.checkpoint import Checkpoint, parse_text, sign_root
from polstore.wire.keys import SigningKey
from polstore.wire.ledger import LedgerLeaf
from polstore.wire.lineage import Lineage
from polstore.wire.manifest import Initial
from polstore.wire.merkle import root as tree_root
from polstore.wire.note import parse as parse_note
from polstore.wire.segment import SegmentRecord
from polstore.wire.state import TensorEntry
from polstore.wire.tlog_proof import TlogProof
from polverify.chain import OwnVerdict, check_chain
from polverify.initial import WEAK
from polverify.verdict import Decision, Outcome
from tests.attacks import forge
from tests.attacks.forge import KEY, OTHER_KEY, Evidence

INITIAL = 5  # number of the check
HEAD = ("parameter/6.bias", "parameter/6.weight")


def record(path, run, *, steps=forge.STEPS, parent=None, seed=5, **config):
    recorder, training, recipe = record_recipe(
        forge.RECIPE, every=forge.EVERY, store=path, run=run, seed=seed, config=config, parent=parent
    )
    with recorder:
        recorder.train(training, recipe.step, steps, lambda _step, _loss: None)
    with open_store(path) as store:
        commit(store, run, KEY, now=lambda: forge.NOW)


def evidence(path, run, segments):
    with open_archive(path) as archive:
        found = archive.run(run)
        proof = prove(found, segments)
        blobs = {digest: proof.carried.blob(digest) for digest, _ in proof.bundle.blobs}
        return Evidence(found.signed_root(), proof.bundle, blobs)


def link(path, child, parent):
    with open_archive(path) as archive:
        return lineage(archive.run(child), archive.run(parent))


class Family:
    """A grandparent, a parent with another head, and a child with the same one, in one store."""

    def __init__(self, path):
        self.path = path
        record(path, "first")
        record(path, "second", parent=f"{path}:first", classes=5, seed=6)
        record(path, "third", parent=f"{path}:second", classes=5, seed=7)
        self.second = evidence(path, "second", (1, 3))
        self.link = link(path, "second", "first")
        self.above = link(path, "third", "second")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return Family(tmp_path_factory.mktemp("family") / "store")


def test_an_inherited_initial_state_is_accepted(family, judge):
    verdict = judge(family.second, lineage=family.link.encode())
    assert verdict.decision is Decision.ACCEPT, verdict.reason
    check = verdict.checks[INITIAL]
    assert check.outcome is Outcome.PASSED
    assert check.detail.startswith("9 tensors are those of example.com/mallory/first after its last of 5 segments")
    assert "2 tensors rebuilt from the seed" in check.detail
    assert set(HEAD).isdisjoint(family.link.names())
    assert verdict.claim["parent"]["initial"] == "seed"
    assert any("not shown to be in a ledger" in warning for warning in verdict.warnings)
    assert not any(WEAK in warning for warning in verdict.warnings)


def test_without_the_lineage_nothing_is_accepted(family, judge):
    verdict = judge(family.second)
    assert verdict.decision is Decision.INCONCLUSIVE
    assert verdict.reason.startswith("check 5")


def test_the_child_really_has_the_parents_weights(family):
    with open_archive(family.path) as archive:
        first, second = archive.run("first"), archive.run("second")
        last, begun = first.state(first.snapshots[-1]), second.state(0)
    for name in family.link.names():
        assert last.tensor(name).entry() == begun.tensor(name).entry()
    assert not any(name.startswith("optimizer/") for name in begun.names)
    assert to_torch(begun.tensor("parameter/6.weight")).shape == (5, 8)
    with open_archive(family.path) as archive:
        assert archive.run("second").manifest.initial.parent.step == forge.STEPS


def test_a_resumed_child_keeps_its_parent_and_takes_no_other(family, tmp_path):
    options = {"every": forge.EVERY, "store": family.path, "seed": 7, "config": {"classes": 5}, "resume": True}
    recorder, *_ = record_recipe(forge.RECIPE, run="third", parent=f"{family.path}:second", **options)
    with recorder:
        pass
    with pytest.raises(UsageError, match="another parent"):
        record_recipe(forge.RECIPE, run="third", parent=f"{family.path}:first", **options)


def test_parent_shown_in_a_ledger(family, judge):
    root = family.link.parent_root
    with open_archive(family.path) as archive:
        manifest = archive.run("first").manifest
        leaf = LedgerLeaf.of(archive.run("first").signed_checkpoint(6), manifest).leaf_hash()
    head = sign_root(Checkpoint(KEY.name, 1, tree_root([leaf])), KEY, forge.NOW)
    proof = TlogProof(0, (), head).encode()
    verdict = judge(family.second, lineage=family.link.encode(), parent_proof=proof, parent_root=root)
    assert verdict.decision is Decision.ACCEPT, verdict.reason
    assert f"in the ledger {KEY.name}" in verdict.checks[INITIAL].detail
    assert not any("ledger" in warning for warning in verdict.warnings)
    other = sign_root(Checkpoint(KEY.name, 1, tree_root([bytes(32)])), KEY, forge.NOW)
    refused = judge(family.second, lineage=family.link.encode(), parent_proof=TlogProof(0, (), other).encode())
    assert refused.decision is Decision.REJECT


# False claims. Each is one edit of the honest evidence.


def swapped(link, name):
    """The evidence with another entry for one tensor of the child."""
    entries = tuple(
        TensorEntry(entry.name, entry.dtype, entry.shape, bytes(32)) if entry.name == name else entry
        for entry in link.entries
    )
    return replace(link, entries=entries)


def other_record(link):
    record = SegmentRecord.parse(link.parent_record.leaf)
    return replace(link, parent_record=replace(link.parent_record, leaf=replace(record, end_step=13).encode()))


EDITS = {
    "a child's tensor that is another": lambda f: swapped(f.link, "parameter/0.weight"),
    "a child's own tensor that is another": lambda f: swapped(f.link, HEAD[0]),
    "a tensor too few": lambda f: replace(f.link, entries=f.link.entries[1:]),
    "a name less": lambda f: replace(f.link, inherited=f.link.inherited[1:]),
    "another number": lambda f: replace(
        f.link, inherited=((f.link.inherited[0][0] + 1, f.link.inherited[0][1]), *f.link.inherited[2:])
    ),
    "another size of the parent's state": lambda f: replace(f.link, parent_size=f.link.parent_size + 1),
    "a hash less": lambda f: replace(f.link, proof=f.link.proof[1:]),
    "other scalars": lambda f: replace(f.link, scalars=bytes(32)),
    "the parent of another": lambda f: f.above,
    "another run as the parent": lambda f: replace(f.link, parent_root=f.above.parent_root),
    "another manifest of the parent": lambda f: replace(f.link, parent_manifest=f.above.parent_manifest),
    "another record": lambda f: replace(f.link, parent_record=f.above.parent_record),
    "an edited record": lambda f: other_record(f.link),
    "an earlier record": lambda f: replace(f.link, parent_record=f.link.parent_manifest),
    "another child": lambda f: replace(f.link, child_manifest=f.above.child_manifest),
}


@pytest.mark.parametrize("edit", EDITS)
def test_evidence_with_one_thing_false(family, rejects, edit):
    assert rejects(family.second, lineage=EDITS[edit](family).encode()) == INITIAL


def test_damaged_evidence(family, rejects):
    data = family.link.encode()
    for wrong in (b"", data[:-1], data + b"\0", data.replace(b"lineage/v1", b"lineage/v2")):
        assert rejects(family.second, lineage=wrong) == INITIAL


def test_a_parent_that_somebody_else_signed(family, rejects):
    assert rejects(family.second, lineage=family.link.encode(), parent_keys=OTHER_KEY.verifier_keys()) == INITIAL


def test_a_parents_root_other_than_the_verifiers_own(family, rejects):
    assert rejects(family.second, lineage=family.link.encode(), parent_root=family.above.parent_root) == INITIAL


class Heir(forge.Trainer):
    """Claims a parent, and begins with weights of which some are not the parent's."""

    def of(self, family, change):
        self.family, self.change = family, change
        return self

    def begin(self):
        with open_archive(self.family.path) as archive:
            first = archive.run("first")
            self.live.inherit(first.state(first.snapshots[-1]))
        with torch.no_grad():
            self.change(self.training.model)

    def claim(self):
        """Return the proof, and the lineage that comes closest to the truth."""
        proof = self.run()
        manifest = proof.manifest()
        parent = Lineage.parse(self.family.link.encode())
        with open_archive(self.family.path) as archive:
            named = archive.run("second").manifest.initial.parent
        proof = proof.declaring(initial=Initial("parent", manifest.initial.state, named))
        initial = self.snapshots[0]
        claimed = replace(
            parent,
            child_manifest=replace(parent.child_manifest, leaf=proof.bundle.leaves[0]),
            entries=initial.entries(),
            scalars=sha256(initial.scalars).digest(),
        )
        return proof, claimed.encode()


def test_a_forger_who_changes_nothing_is_an_honest_heir(family, judge):
    proof, claimed = Heir(config={"classes": 5}).of(family, lambda model: None).claim()
    assert judge(proof, lineage=claimed).decision is Decision.ACCEPT


def test_one_inherited_weight_changed_by_one_unit(family, rejects):
    def change(model):
        model[0].weight[0, 0] = torch.nextafter(model[0].weight[0, 0], torch.tensor(9.0))

    proof, claimed = Heir(config={"classes": 5}).of(family, change).claim()
    assert rejects(proof, lineage=claimed) == INITIAL


def test_an_inherited_buffer_changed(family, rejects):
    proof, claimed = Heir(config={"classes": 5}).of(family, lambda model: model[1].running_mean.add_(1)).claim()
    assert rejects(proof, lineage=claimed) == INITIAL


def test_a_new_head_that_is_not_the_seeds_is_tested_and_labelled(family, judge, rejects):
    def drawn(model):
        seed_initial(99)
        model[6].reset_parameters()

    proof, claimed = Heir(config={"classes": 5}).of(family, drawn).claim()
    verdict = judge(proof, lineage=claimed)
    assert verdict.decision is Decision.ACCEPT, verdict.reason
    assert any(WEAK in warning for warning in verdict.warnings)

    def bent(model):
        model[6].weight.abs_()

    proof, claimed = Heir(config={"classes": 5}).of(family, bent).claim()
    assert rejects(proof, lineage=claimed) == INITIAL


# Chains.


def own(link_root, decision="ACCEPT", drawn=2, nonce_from="fresh", tolerated=0, policy=None):
    """A verdict as `polverify check --json` prints one, on the run with this signed root."""
    at = parse_text(parse_note(link_root).text)
    segments = at.size - 1
    claim = {"origin": at.origin, "size": at.size, "root": at.root.hex(), "segments": segments}
    power = {"segments": segments, "drawn": drawn, "population": segments - 2, "nonce_from": nonce_from}
    power["tolerated"] = tolerated
    value = {"schema": "polverify/verdict/v2", "decision": decision, "claim": claim, "power": power, "policy": policy}
    return OwnVerdict.from_json(value, "verdict")


@pytest.fixture
def links(family):
    return [family.link.encode(), family.above.encode()]


@pytest.fixture
def verdicts(family):
    return [own(root) for root in (family.above.child_root, family.link.child_root, family.link.parent_root)]


KEYS = KEY.verifier_keys()


def test_chain_to_the_root_of_the_lineage(links, verdicts):
    for given in (links, links[::-1]):
        chain = check_chain(given, KEYS, verdicts)
        assert chain.decision is Decision.ACCEPT, chain.reason
        assert [run.origin.rpartition("/")[2] for run in chain.runs] == ["third", "second", "first"]
        assert [run.initial for run in chain.runs] == ["parent", "parent", "seed"]
        (one, *_) = chain.as_json()["probability"]
        assert one["weakest"] == pytest.approx(2 / 3)
        assert one["chain"] == pytest.approx((2 / 3) ** 3)
        assert one["any"] == pytest.approx(1 - (1 / 3) ** 3)
        assert one["needed"] == [3, 3, 3]
        assert len(chain.lines()) == 7


def test_chain_with_a_link_missing(links, verdicts):
    chain = check_chain(links[1:], KEYS, verdicts[:2])
    assert chain.decision is Decision.INCONCLUSIVE
    assert "has a parent, and no link to it was given" in chain.reason


def test_chain_without_all_verdicts(links, verdicts):
    for missing in range(3):
        given = verdicts[:missing] + verdicts[missing + 1 :]
        chain = check_chain(links, KEYS, given)
        assert chain.decision is Decision.INCONCLUSIVE
        assert not chain.as_json()["probability"]


@pytest.mark.parametrize("decision", ["REJECT", "INCONCLUSIVE"])
def test_chain_with_a_run_that_was_not_accepted(family, links, verdicts, decision):
    verdicts[1] = own(family.link.child_root, decision)
    assert check_chain(links, KEYS, verdicts).decision is Decision[decision]


def test_chain_with_a_verdict_on_something_else(links, verdicts):
    with pytest.raises(UsageError, match="not in the chain"):
        check_chain(links, KEYS, [*verdicts, replace(verdicts[0], root="00" * 32)])
    with pytest.raises(UsageError, match="links of a chain"):
        check_chain([], KEYS)


def test_chain_with_two_verdicts_on_one_run(family, links, verdicts):
    """Of a rejection and an acceptance none may win by its place."""
    rejected = own(family.link.child_root, "REJECT")
    for given in ([*verdicts, rejected], [rejected, *verdicts]):
        with pytest.raises(UsageError, match="verdicts on one signed root: expected one each, got 4 on 3"):
            check_chain(links, KEYS, given)


def test_chain_says_what_its_verdicts_rest_on(family, links, verdicts):
    assert not [text for text in check_chain(links, KEYS, verdicts).warnings if "tolerance" in text or "policy" in text]
    verdicts[1] = own(family.link.child_root, tolerated=3, policy={"sha256": "ab", "judged_at": None, "rules": {}})
    found = check_chain(links, KEYS, verdicts, policy="ab")
    assert found.decision is Decision.ACCEPT
    above, within, below = found.warnings[1:]
    assert within.startswith("3 segments of example.com/mallory/second are within a tolerance only")
    assert [text.split()[3].rpartition("/")[2] for text in (above, below)] == ["third", "first"]
    assert all("was not judged by this policy" in text for text in (above, below))


def test_chain_with_a_nonce_that_a_prover_can_grind(family, links, verdicts):
    assert not any("weak" in warning for warning in check_chain(links, KEYS, verdicts).warnings)
    verdicts[1] = own(family.link.child_root, nonce_from="root")
    (warning,) = (warning for warning in check_chain(links, KEYS, verdicts).warnings if "weak" in warning)
    assert "the segments of example.com/mallory/second" in warning


def test_chain_under_a_policy_s_logs(links, verdicts):
    logs = KEYS[:1]
    assert check_chain(links, (), verdicts, any_of=logs).decision is Decision.ACCEPT
    assert check_chain(links, KEYS, verdicts, any_of=logs).decision is Decision.ACCEPT
    others = SigningKey(KEY.name, bytes(32)).verifier_keys()
    assert check_chain(links, (), verdicts, any_of=(*logs, *others)).decision is Decision.ACCEPT
    for keys in ((), KEYS):  # no log of the policy has signed, whoever else has
        assert check_chain(links, keys, verdicts, any_of=others).decision is Decision.REJECT
    elsewhere = SigningKey("example.org/elsewhere", bytes(32)).verifier_keys()
    assert check_chain(links, (), verdicts, any_of=elsewhere).decision is Decision.REJECT


def test_chain_with_a_false_link(family, links, verdicts):
    for edit in set(EDITS) - {"the parent of another"}:
        assert check_chain([EDITS[edit](family).encode(), links[1]], KEYS, verdicts).decision is Decision.REJECT
    assert check_chain([links[0], links[0]], KEYS).decision is Decision.REJECT
    assert check_chain(links, OTHER_KEY.verifier_keys()).decision is Decision.REJECT
    forged = replace(family.link, child_root=family.above.child_root).encode()
    assert check_chain([forged, links[1]], KEYS).decision is Decision.REJECT
