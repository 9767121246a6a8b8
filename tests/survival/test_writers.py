"""Several processes at one store: one records, one more is refused, others sign and read meanwhile."""

from __future__ import annotations

import children
import training

import polstore
from polstore.errors import LockedError
from polstore.prover import commit
from polstore.storage.store import open_store
from polstore.wire import merkle
from polstore.wire.checkpoint import parse_text
from polstore.wire.keys import SigningKey
from polstore.wire.note import parse as parse_note

STEPS = 60  # a snapshot every 2
KEY = SigningKey("example.com/alice", bytes(range(32)))


def record(pipe, recipe, store, steps=STEPS):
    training.announce(pipe)

    def each(step):
        if step == 4:  # the others are at it from here on
            pipe.send(("under way", step))
            pipe.recv()

    training.record(recipe, store, steps, each=each)


def record_too(_, recipe, store):
    try:
        training.record(recipe, store, STEPS, run="other")
    except LockedError as error:
        return str(error)
    return None


def sign(pipe, store, times):
    """Sign again and again; return the signed roots."""
    signed = []
    with open_store(store) as opened:
        for _ in range(times):
            signed.append(commit(opened, "r", KEY))
            pipe.send(("signed", len(signed)))
    return signed


def watch(pipe, store, last):
    """Read until snapshot ``last`` is there; return how many states of the store were seen."""
    seen = {}
    with polstore.open(store) as archive:
        run = archive.run("r")
        while last not in seen:
            with run._store.read() as view:  # one view: what it shows belongs together
                count, steps = view.leaf_count("r"), view.snapshot_steps("r")
                assert len(steps) == count
                leaves = list(view.leaves("r"))
                assert view.tree_root("r", count) == merkle.root([merkle.leaf_hash(leaf) for leaf in leaves])
            assert set(seen) <= set(steps)
            for number, step in enumerate(steps):
                if step not in seen:
                    seen[step] = run.state(step).digest()
                    if number:
                        assert seen[step] == run.segment(number - 1).end_state
            pipe.send(("seen", len(steps)))
    return seen


def whole(_, recipe, store):
    training.record(recipe, store, STEPS)
    return training.facts(store)


def results(started):
    """Return what a child returns; what it says before goes into a list."""
    said = []
    while True:
        kind, value = started.receive()
        if kind == "done":
            return value, said
        said.append((kind, value))


def until(started, wanted):
    """Wait until a child says so, and return that."""
    while (said := started.receive())[0] != wanted:
        pass
    return said


def test_one_records_while_others_are_refused_sign_and_read(tmp_path):
    recipe, store = training.recipe_file(tmp_path), tmp_path / "st"
    with children.child(record, recipe, store) as recorder:
        until(recorder, "under way")
        refusal = children.call(record_too, recipe, store)
        assert f"{store} is being recorded to by pid {recorder.process.pid} on " in refusal
        with children.child(watch, store, STEPS) as reader, children.child(sign, store, 10) as signer:
            with children.child(sign, store, 10) as other:
                first = until(reader, "seen")  # of a recording that waits
                recorder.send("go on")
                _, written = results(recorder)
                assert ("written", STEPS) in written
                signed = results(signer)[0] + results(other)[0]
            seen, looks = results(reader)
    assert len({first, *looks}) > 1
    digests, leaves, complete = children.call(whole, recipe, tmp_path / "whole")
    assert complete
    assert children.call(facts, store) == (digests, leaves, True)
    assert seen == digests
    assert not children.call(damages, store)
    texts = {}
    for root in signed:  # whoever signs a size first has signed it; the other is given the same text
        size = parse_text(parse_note(root).text).size
        assert texts.setdefault(size, root) == root


def facts(_, store):
    return training.facts(store)


def damages(_, store):
    return training.damages(store)


def check_often(pipe, store, last):
    """Check the store until it has snapshot ``last``; return how many checks that were."""
    checks = 0
    while True:
        assert not training.damages(store)
        checks += 1
        with polstore.open(store) as archive:
            ended = last in archive.run("r").snapshots
        pipe.send(("checked", checks))
        if ended:
            return checks


def test_a_check_during_the_recording_finds_nothing(tmp_path):
    recipe, store = training.recipe_file(tmp_path), tmp_path / "st"
    with children.child(record, recipe, store) as recorder:
        until(recorder, "under way")
        with children.child(check_often, store, STEPS) as checker:
            until(checker, "checked")
            recorder.send("go on")
            results(recorder)
            assert results(checker)[0] > 1


def sign_now(pipe, store, now):
    with open_store(store) as opened:
        pipe.send(("ready", None))
        pipe.recv()
        return commit(opened, "r", KEY, now=lambda: now)


def test_two_commits_at_once_sign_a_size_once(tmp_path):
    recipe, store = training.recipe_file(tmp_path), tmp_path / "st"
    for steps in (2, 4, 6, 8, 10):
        children.call(record_quietly, recipe, store, steps)
        with children.child(sign_now, store, 10**9) as one, children.child(sign_now, store, 2 * 10**9) as other:
            for signer in (one, other):
                until(signer, "ready")
            for signer in (one, other):
                signer.send("now")
            first, second = results(one)[0], results(other)[0]
        assert first == second


def record_quietly(_, recipe, store, steps):
    training.record(recipe, store, steps)
