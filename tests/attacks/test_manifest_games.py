"""What a signer declares, which challenge is answered, and who signed: nothing that a prover sends selects a check."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polstore.codec.live.recipe import RecipeFile
from polstore.errors import MalformedError
from polstore.wire import canonical
from polstore.wire.challenge import Challenge
from polstore.wire.checkpoint import Checkpoint, sign_root
from polstore.wire.keys import KeyKind, SigningKey
from polstore.wire.manifest import Dataset, Initial, Optimizer, Recipe
from polstore.wire.merkle import EMPTY_ROOT
from polverify.verdict import Decision
from tests.attacks import forge
from tests.attacks.forge import KEY, OTHER_KEY, Evidence, Trainer

SIGNATURE, MANIFEST, INITIAL, CONTINUITY, CHALLENGE, DATA, REPLAY = 1, 4, 5, 6, 7, 9, 10


@pytest.fixture(scope="module")
def proof() -> Evidence:
    return Trainer().run(opened=(1,))


# Keys.


def test_signed_with_another_key_of_the_same_name(rejects, proof):
    assert rejects(proof.signed(proof.bundle.leaves, key=OTHER_KEY)) == SIGNATURE
    assert rejects(proof, keys=OTHER_KEY.verifier_keys()) == SIGNATURE


def test_signed_by_somebody_else(rejects, proof):
    eve = SigningKey("example.com/eve", KEY.seed)
    assert rejects(proof.signed(proof.bundle.leaves, key=eve)) == SIGNATURE
    assert rejects(proof, keys=eve.verifier_keys()) == SIGNATURE


def test_a_key_that_is_wanted_besides_has_not_signed(rejects, proof):
    assert rejects(proof, keys=[*KEY.verifier_keys(), OTHER_KEY.verifier_key(KeyKind.ED25519)]) == SIGNATURE


def test_name_that_only_begins_like_the_key(rejects, proof):
    """example.com/mallory2/run is not example.com/mallory's."""
    longer = SigningKey("example.com/mallory2", KEY.seed)
    assert rejects(proof.signed(proof.bundle.leaves, key=longer)) == SIGNATURE


# Names and manifests.


def test_proof_replayed_under_another_name(rejects, proof):
    assert rejects(proof.signed(proof.bundle.leaves, run="better")) == MANIFEST


def test_manifest_of_another_run(rejects, honest, other):
    mixed = honest.signed((other.bundle.leaves[0], *honest.bundle.leaves[1:]))
    assert rejects(mixed) == MANIFEST
    renamed = replace(other.manifest(), run=forge.RUN).encode()
    blobs = other.blobs | honest.blobs
    assert rejects(honest.with_blobs(blobs).signed((renamed, *honest.bundle.leaves[1:]))) in {INITIAL, CONTINUITY}


def test_records_of_another_run(rejects, honest, other):
    assert rejects(honest.signed((honest.bundle.leaves[0], *other.bundle.leaves[1:]))) == CONTINUITY


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"recipe": Recipe("file", forge.RECIPE.digest, (("lr", 0.05),))}, INITIAL),
        ({"recipe": Recipe("file", forge.RECIPE.digest, (("optimizer", "adam"),))}, INITIAL),
        ({"recipe": Recipe("file", forge.RECIPE.digest, (("no_such", 1),))}, INITIAL),
        ({"recipe": Recipe("file", forge.RECIPE.digest, (("device", "meta"),))}, INITIAL),
        ({"recipe": Recipe("file", bytes(32))}, MANIFEST),
        ({"recipe": Recipe("none", bytes(32))}, MANIFEST),
        ({"dataset": Dataset(bytes(32), 64)}, DATA),
        ({"dataset": Dataset.not_committed()}, DATA),
        ({"seed": bytes(32)}, INITIAL),
        ({"initial": Initial("seed", bytes(32))}, INITIAL),
        ({"fidelity": "compact-writeback"}, CONTINUITY),
        ({"fidelity": "approximately"}, MANIFEST),
        ({"fidelity": "lossless"}, CONTINUITY),
        ({"every": 2}, CONTINUITY),
        ({"every": 1}, CONTINUITY),
    ],
)
def test_manifest_that_declares_something_else(rejects, proof, changes, check):
    assert rejects(proof.declaring(**changes)) == check


@pytest.mark.parametrize("size", [63, 65, 2**48])
def test_dataset_of_another_size(rejects, proof, size):
    assert rejects(proof.declaring(dataset=Dataset(proof.manifest().dataset.root, size))) == DATA


def test_hyperparameters_that_are_declared_are_those_of_the_recipe(rejects, proof):
    """A policy reads the manifest, so what it declares has to be what the recipe builds."""
    optimizer = proof.manifest().optimizer
    declared = proof.blobs[optimizer.hyperparameters]
    relaxed = canonical.encode(replaced(canonical.decode(declared, limit=2**16, what="hyperparameters"), "lr", 1.0))
    digest = hashlib.sha256(relaxed).digest()
    blobs = {key: data for key, data in proof.blobs.items() if key != optimizer.hyperparameters} | {digest: relaxed}
    forged = proof.with_blobs(blobs).declaring(optimizer=Optimizer(optimizer.name, digest))
    assert rejects(forged) == INITIAL
    assert rejects(proof.declaring(optimizer=replace(optimizer, name="torch.optim.adam.Adam"))) == INITIAL


def replaced(groups: Any, name: str, value: Any) -> Any:
    return tuple(tuple((key, value if key == name else old) for key, old in group) for group in groups)


def test_lossless_states_declared_as_quantised(rejects):
    """Trained without rounding; what rounding would have made of it is another state."""
    forged = Trainer(fidelity="lossless").run()
    leaves = [replace(forged.manifest(), fidelity="float16-writeback").encode()]
    leaves += [replace(record, base_step=0).encode() for record in forged.records()]
    assert rejects(forged.signed(tuple(leaves))) == REPLAY


def test_quantised_states_declared_as_lossless(rejects):
    forged = Trainer().run()
    leaves = [replace(forged.manifest(), fidelity="lossless").encode()]
    leaves += [replace(record, base_step=None).encode() for record in forged.records()]
    assert rejects(forged.signed(tuple(leaves))) == REPLAY


@pytest.mark.parametrize("base", [None, 3, 6])
def test_another_base_than_was_used(rejects, base):
    """The base decides how the end is rounded, and a record names it."""
    forged = Trainer().run(opened=(0, 1, 2))
    assert rejects(forged.recording(2, base_step=base)) in {DATA, REPLAY}


@pytest.mark.parametrize("base", [1, 5])
def test_base_that_is_no_snapshot(rejects, proof, base):
    assert rejects(proof.recording(2, base_step=base)) == CONTINUITY


def test_truncated_run(rejects, proof):
    """The root of an earlier size goes with a bundle for that size only, and never with the whole run's."""
    shorter = proof.signed(proof.bundle.leaves[:4])
    assert rejects(proof, root=shorter.root) == SIGNATURE
    assert rejects(shorter, root=proof.root) == SIGNATURE


def test_segments_in_another_order_left_out_or_twice(rejects, proof):
    first, *leaves = proof.bundle.leaves
    for changed in (leaves[1:], leaves[:2] + leaves[3:], [leaves[1], leaves[0], *leaves[2:]], [*leaves, leaves[-1]]):
        assert rejects(proof.signed((first, *changed))) == CONTINUITY


def test_recipe_that_the_verifier_does_not_have(rejects, proof):
    theirs = RecipeFile(Path("recipe.py"), forge.RECIPE.source + b"\n")
    assert rejects(proof, recipe=theirs) == MANIFEST


def test_extensions_and_unknown_declarations_change_no_check(judge, rejects, proof):
    """What is unknown is ignored, wherever it promises to loosen a check; nobody has to know a checkpoint's log."""
    stranger = sign_root(Checkpoint("log.example", 0, EMPTY_ROOT), SigningKey("log.example", bytes(32)), 1)
    promises = (("accept", b"1"), ("tolerance", b"1e9"))
    assert judge(proof.declaring(extensions=promises)).decision is Decision.ACCEPT
    bad = Trainer()
    bad.end = lambda index: bad.training.model[1].running_mean.add_(1) if index == 1 else None
    assert rejects(bad.run(opened=(1,)).declaring(extensions=promises, not_before=stranger)) == REPLAY


# Challenges.


def draw(evidence: Evidence, nonce: int, random: int) -> Challenge:
    """The first segment, the last one, and so many of the others."""
    bundle, origin = evidence.bundle, f"{KEY.name}/{forge.RUN}"
    return Challenge.draw(origin, bundle.size, bundle.root, random=random, nonce=nonce.to_bytes(32))


def test_one_bad_segment_is_rejected_exactly_when_it_is_opened(rejects, judge):
    found = set()
    for nonce in range(6):
        trainer = Trainer()
        trainer.end = lambda index, model=trainer.training.model: model[1].running_mean.add_(1) if index == 2 else None
        asked = draw(trainer.run(), nonce, 1)
        trainer = Trainer()
        trainer.end = lambda index, model=trainer.training.model: model[1].running_mean.add_(1) if index == 2 else None
        evidence = trainer.run(opened=asked.segments)
        if 2 in asked.segments:
            assert rejects(evidence, challenge=asked) == REPLAY
        else:
            assert judge(evidence, challenge=asked).decision is Decision.ACCEPT
        found.add(2 in asked.segments)
    assert found == {True, False}


def test_challenge_that_the_prover_drew_himself(rejects, judge):
    """He grinds nonces until his good segment comes out; the verifier holds his own challenge against it."""
    proof = Trainer().run(opened=(0, 1, 4))
    theirs = next(drawn for drawn in (draw(proof, nonce, 1) for nonce in range(99)) if drawn.segments == (0, 1, 4))
    mine = next(drawn for drawn in (draw(proof, nonce, 1) for nonce in range(99, 199)) if drawn.segments != (0, 1, 4))
    assert judge(proof, challenge=theirs).decision is Decision.ACCEPT  # it does answer that one
    assert rejects(proof, challenge=mine) == CHALLENGE


def test_challenge_file_edited_by_the_prover(proof):
    drawn = draw(proof, 1, 1)
    for segments in ((0, 1, 4), (0, 2, 4), (0, 3, 4), (0, 4), (1,)):
        if segments != drawn.segments:
            with pytest.raises(MalformedError):
                Challenge.parse(replace(drawn, segments=segments).encode())


def test_challenge_for_another_root(rejects, proof, honest):
    assert rejects(proof, challenge=draw(honest, 1, 1)) == CHALLENGE
    named = replace(draw(proof, 1, 1), origin=f"{KEY.name}/other", segments=(1,))
    assert rejects(proof, challenge=named) == CHALLENGE


def test_without_a_challenge_the_verdict_says_who_chose(judge, proof):
    verdict = judge(proof)
    assert verdict.decision is Decision.ACCEPT
    assert any("the prover chose which segments to open" in warning for warning in verdict.warnings)
