"""The ledger in a store: what commits enter, that nothing is rewritten, and that damage is found and not signed."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from polstore import ledger
from polstore.archive.copying import copy_runs
from polstore.archive.garbage import collect
from polstore.archive.stats import stats
from polstore.errors import DamagedError, ExistsError, MalformedError, MissingError, UsageError
from polstore.fsck import check_store
from polstore.ledger import Ledger
from polstore.prover import commit
from polstore.reader import Archive
from polstore.storage.ledger import Entry
from polstore.storage.store import open_store
from polstore.wire import merkle, note
from polstore.wire.checkpoint import Checkpoint, open_root, parse_text, sign_root
from polstore.wire.keys import SigningKey
from polstore.wire.ledger import LedgerLeaf, open_head

REPOSITORY = Path(__file__).parents[2]
KEY = SigningKey("example.org/archive", bytes(range(32)))
ROTATED = SigningKey(KEY.name, bytes(32))
EVE = SigningKey("example.org/eve", bytes(range(32)))
NOW = 1_700_000_000
SIZES = range(1, 131)
TABLES = (b"L", b"N", b"H", b"E")


def quiet(_what, _done, _total):
    pass


def at(seconds):
    return lambda: NOW + seconds


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "st", create=True) as opened:
        yield opened


def contents(store, tables=TABLES):
    with store.read() as view:
        return {key: view._handle.get(key) for table in tables for key in view._handle.keys(table)}


def change(store, key, value):
    """Put what nothing of ours would: other bytes under a key, or None to delete it."""
    if value is None:
        assert store.write(lambda transaction: transaction._handle.delete(key))
    else:
        store.write(lambda transaction: transaction._handle.put(key, value, overwrite=True))


def number(value):
    return value.to_bytes(8, "big")


def grow(store, count, start=0, key=KEY):
    """Enter made-up signed roots, one head for all."""
    leaves = [LedgerLeaf(f"{KEY.name}/r", size + 1, merkle.leaf_hash(b"%d" % size)) for size in range(start, count)]
    store.write(lambda transaction: ledger.enter(transaction, leaves, NOW, key))
    return leaves


def commit_three(store, make_run, extend_run):
    """Commit one run three times while it grows, and another one between."""
    writer = make_run(store, "r", 2, complete=False)
    make_run(store, "s", 1, seed=2)
    commit(store, "r", KEY, now=at(1))
    extend_run(writer, 2, 3)
    commit(store, "s", KEY, now=at(2))
    commit(store, "r", KEY, now=at(3))
    extend_run(writer, 3, 5)
    commit(store, "r", KEY, now=at(4))


def test_every_commit_is_entered(store, make_run, extend_run):
    commit_three(store, make_run, extend_run)
    log = Ledger(store)
    entered = [(log.leaf(index).origin, log.leaf(index).size) for index in range(log.size)]
    name = KEY.name
    assert entered == [(f"{name}/r", 3), (f"{name}/s", 2), (f"{name}/r", 4), (f"{name}/r", 6)]
    archive = Archive(store)
    for index, (origin, size) in enumerate(entered):
        leaf, signed = log.leaf(index), archive.run(origin[-1]).signed_checkpoint(size)
        assert (leaf.root, leaf.parents) == (signed.root, ())
        assert log.find(origin, size) == index
    assert log.find(f"{name}/r", 5) is None
    heads = [open_head(log.head(size), KEY.verifier_keys()) for size in range(1, 5)]
    assert [head.timestamp for head in heads] == [NOW + 1, NOW + 2, NOW + 3, NOW + 4]
    assert log.head() == log.head(4)
    for old in range(1, 5):
        for new in range(old, 5):
            proof = log.consistency_proof(old, new)
            merkle.verify_consistency(old, heads[old - 1].checkpoint.root, new, heads[new - 1].checkpoint.root, proof)
    for index in range(4):
        file = log.proof_file(index)
        assert file.verify(log.leaf(index).leaf_hash(), KEY.verifier_keys()).checkpoint.size == 4
        assert log.inclusion_proof(index) == file.proof
    assert check_store(store, quiet).damages == []


def test_runs_roots_are_consistent_with_each_other(store, make_run, extend_run):
    commit_three(store, make_run, extend_run)
    run = Archive(store).run("r")
    roots = [run.signed_checkpoint(size) for size in run.signed_sizes()]
    with store.read() as view:
        for old, new in pairwise(roots):
            proof = merkle.consistency_proof(old.size, new.size, view.tree("r"))
            merkle.verify_consistency(old.size, old.root, new.size, new.root, proof)


def test_a_commit_without_a_new_segment_changes_nothing(store, make_run):
    make_run(store)
    first = commit(store, "r", KEY, now=at(0))
    before = contents(store, (b"",))
    assert commit(store, "r", KEY, now=at(9)) == first
    assert contents(store, (b"",)) == before


def test_a_store_older_than_its_ledger_is_taken_in(store, make_run, extend_run):
    writer = make_run(store, "r", 2, complete=False)
    for end in (3, 4):
        commit(store, "r", KEY, now=at(end))
        extend_run(writer, end - 1, end)
    commit(store, "r", KEY, now=at(5))
    for key in contents(store):
        change(store, key, None)
    report = check_store(store, quiet)
    assert (report.damages, report.ledger) == ([], 0)
    assert report.not_entered == [f"{KEY.name}/r, {size} leaves" for size in (3, 4, 5)]
    signed = Archive(store).run("r").signed_root()
    assert commit(store, "r", KEY, now=at(9)) == signed
    log = Ledger(store)
    assert [log.leaf(index).size for index in range(log.size)] == [3, 4, 5]
    assert open_head(log.head(), KEY.verifier_keys()).timestamp == NOW + 9
    report = check_store(store, quiet)
    assert (report.damages, report.ledger, report.not_entered) == ([], 3, [])


def test_the_ledger_belongs_to_one_name(store, make_run):
    make_run(store, "r")
    make_run(store, "s", seed=2)
    commit(store, "r", KEY)
    before = contents(store, (b"",))
    with pytest.raises(UsageError, match=r"expected a key of example\.org/archive, got example\.org/eve"):
        commit(store, "s", EVE)
    assert contents(store, (b"",)) == before


def test_another_key_of_the_same_name_goes_on(store, make_run):
    make_run(store, "r")
    make_run(store, "s", seed=2)
    commit(store, "r", KEY, now=at(5))
    commit(store, "s", ROTATED, now=at(6))
    log = Ledger(store)
    assert open_head(log.head(), ROTATED.verifier_keys()).timestamp == NOW + 6
    assert open_head(log.head(1), KEY.verifier_keys()).timestamp == NOW + 5
    assert check_store(store, quiet).damages == []


def test_time_never_runs_backwards_in_the_log(store, make_run):
    make_run(store, "r")
    make_run(store, "s", seed=2)
    commit(store, "r", KEY, now=at(50))
    signed = commit(store, "s", KEY, now=at(-50))
    assert open_root(signed, KEY.verifier_keys()).timestamp == NOW + 50
    assert open_head(Ledger(store).head(), KEY.verifier_keys()).timestamp == NOW + 50


def test_an_empty_ledger(store, make_run):
    log = Ledger(store)
    assert log.size == 0
    for call in (log.head, lambda: log.leaf(0), lambda: log.head(1), lambda: log.proof_file(0)):
        with pytest.raises(MissingError):
            call()
    with pytest.raises(UsageError):
        log.inclusion_proof(0)
    assert log.consistency_proof(0) == ()


@pytest.mark.parametrize("wrong", [-1, 3, 2**48 + 1])
def test_no_such_leaf_or_head(store, wrong):
    grow(store, 3)
    log = Ledger(store)
    for call in (lambda: log.leaf(wrong), lambda: log.proof_file(wrong), lambda: log.inclusion_proof(wrong)):
        with pytest.raises((MissingError, UsageError)):
            call()


def test_no_proof_beyond_the_ledger(store):
    grow(store, 3)
    log = Ledger(store)
    for call in (
        lambda: log.consistency_proof(1, 4),
        lambda: log.inclusion_proof(0, 4),
        lambda: log.head(2),
        lambda: log.proof_file(0, 2),
    ):
        with pytest.raises(MissingError):
            call()
    with pytest.raises(UsageError):
        log.consistency_proof(3, 2)


# The stored tree against the tree of all leaves


def test_every_size_and_pair_is_proven_from_stored_nodes(store):
    leaves = grow(store, 1)
    for size in SIZES[1:]:
        leaves += grow(store, size, size - 1)
    hashes = [leaf.leaf_hash() for leaf in leaves]
    roots = [merkle.root(hashes[:size]) for size in range(len(hashes) + 1)]
    with store.read() as view:
        for size in SIZES:
            assert view.ledger.root(size) == roots[size]
            assert ledger.head_checkpoint(view, size).root == roots[size]
            for index in range(size):
                proof = merkle.inclusion_proof(index, size, view.ledger.node)
                merkle.verify_inclusion(hashes[index], index, size, proof, roots[size])
            for old in range(1, size + 1):
                proof = ledger.consistency(view, old, size)
                merkle.verify_consistency(old, roots[old], size, roots[size], proof)
    assert check_store(store, quiet).ledger == len(leaves)


@pytest.mark.parametrize("batches", [(130,), (1, 129), (64, 66), (63, 2, 65), (7, 1, 1, 50, 71), (3,) * 43])
def test_leaves_in_bulk_are_leaves_one_by_one(tmp_path, batches):
    with open_store(tmp_path / "one", create=True) as one, open_store(tmp_path / "bulk", create=True) as bulk:
        done = 0
        for batch in batches:
            grow(bulk, done + batch, done)
            done += batch
        for size in range(done):
            grow(one, size + 1, size)
        same = (b"L", b"N", b"E")
        assert contents(one, same) == contents(bulk, same)
        assert Ledger(one).head() == Ledger(bulk).head()


def test_a_proof_reads_few_nodes_however_large_the_store(store):
    grow(store, 5000)
    reads = []
    with store.read() as view:
        get = view._handle.get
        view._handle.get = lambda key: reads.append(key) or get(key)
        log = view.ledger
        for index in (0, 1, 2499, 4998, 4999):
            reads.clear()
            merkle.inclusion_proof(index, 5000, log.sound_node)
            ledger.consistency(view, index + 1, 5000)
            assert len(reads) < 2 * 13 * 4  # two proofs; each node is compared with the two that it is made of


# Appending and heads


def test_a_signed_root_is_entered_once(store):
    leaves = grow(store, 3)
    before = contents(store)
    for again in (leaves[1:2], [leaves[0], replace(leaves[0], size=9), replace(leaves[0], size=9)]):
        with pytest.raises(ExistsError):
            store.write(lambda transaction: ledger.enter(transaction, again, NOW, KEY))  # noqa: B023 # called at once
    assert contents(store) == before


def test_a_leaf_has_a_cap(store):
    with pytest.raises(UsageError, match="too long"):
        store.write(lambda transaction: transaction.ledger.append([Entry(bytes(65_536), "o", 1)]))


def witnessed(signed, *keys):
    parsed = note.parse(signed)
    extra = tuple(note.cosign(parsed.text, key, NOW) for key in keys)
    return note.Note(parsed.text, (*parsed.signatures, *extra)).encode()


def test_a_head_may_gain_signatures_only(store):
    grow(store, 3)
    signed = Ledger(store).head()
    one, two = witnessed(signed, EVE), witnessed(signed, EVE, SigningKey("w", bytes(32)))

    def put(data, size=3):
        store.write(lambda transaction: transaction.ledger.put_head(size, data))

    for data in (signed, one, one, two):
        put(data)
        assert Ledger(store).head() == data
    other = sign_root(Checkpoint(KEY.name, 3, merkle.leaf_hash(b"other")), KEY, NOW)
    for data in (one, signed, other, sign_root(parse_text(note.parse(signed).text), KEY, NOW + 1)):
        with pytest.raises(ExistsError):
            put(data)
    with pytest.raises(MalformedError):
        put(b"nonsense")
    with pytest.raises(UsageError):
        put(signed, 4)
    assert Ledger(store).head() == two
    assert not any(what.startswith("head") for what in damages(store))
    grow(store, 4, 3)
    assert Ledger(store).size == 4


# Damage: nothing is signed over it, and the audit names it


def damages(store):
    return [damage.what for damage in check_store(store, quiet).damages]


BROKEN = {
    "the newest head is of another root": lambda store: (
        b"H" + number(4),
        sign_root(Checkpoint(KEY.name, 4, merkle.leaf_hash(b"other")), KEY, NOW),
    ),
    "the newest head is of another size": lambda store: (
        b"H" + number(4),
        sign_root(Checkpoint(KEY.name, 3, _root(store, 3)), KEY, NOW),
    ),
    "the newest head is nonsense": lambda _store: (b"H" + number(4), b"nonsense"),
    "the newest head has a false signature": lambda store: (b"H" + number(4), _false(Ledger(store).head())),
    "the newest head is lost": lambda _store: (b"H" + number(4), None),
    "the last leaf is lost": lambda _store: (b"L" + number(3), None),
    "a node of the root is another": lambda _store: (b"N\x02" + number(0), bytes(32)),
    "a node of the root is lost": lambda _store: (b"N\x02" + number(0), None),
    "a node of the root is short": lambda _store: (b"N\x02" + number(0), bytes(31)),
}


def _root(store, size):
    with store.read() as view:
        return view.ledger.root(size)


def _false(signed):
    parsed = note.parse(signed)
    first = parsed.signatures[0]
    wrong = replace(first, blob=first.blob[:-1] + bytes([first.blob[-1] ^ 1]))
    return note.Note(parsed.text, (wrong, *parsed.signatures[1:])).encode()


@pytest.mark.parametrize("thing", BROKEN)
def test_nothing_is_signed_over_a_damaged_ledger(store, make_run, extend_run, thing):
    commit_three(store, make_run, extend_run)
    make_run(store, "t", 2, seed=3)
    change(store, *BROKEN[thing](store))
    before = contents(store, (b"",))
    with pytest.raises((DamagedError, MissingError)):
        commit(store, "t", KEY, now=at(9))
    assert contents(store, (b"",)) == before
    if thing != "the newest head has a false signature":  # which needs a key to see
        assert any("ledger" in what for what in damages(store))


def test_a_new_root_that_hides_the_old_leaves_is_not_signed(store, make_run, extend_run):
    """The old root can still be computed; only the consistency proof shows that the new one is of other leaves."""
    writer = make_run(store, "r", 2, complete=False)
    commit(store, "r", KEY, now=at(1))
    extend_run(writer, 2, 3)
    change(store, b"nr\0\x02" + number(0), merkle.leaf_hash(b"another tree"))
    before = contents(store, (b"",))
    with pytest.raises(DamagedError, match="does not extend what was signed"):
        commit(store, "r", KEY, now=at(9))
    assert contents(store, (b"",)) == before


@pytest.mark.parametrize("lost", ["leaf", "node", "root"])
def test_nothing_is_signed_over_a_rewritten_run(store, make_run, extend_run, lost):
    writer = make_run(store, "r", 3, complete=False)
    commit(store, "r", KEY, now=at(1))
    extend_run(writer, 3, 5)
    if lost == "leaf":  # cut back to less than what was signed
        for index in (5, 4, 3):
            change(store, b"lr\0" + number(index), None)
    elif lost == "node":
        change(store, b"nr\0\x02" + number(0), bytes(32))
    else:
        other = sign_root(Checkpoint(f"{KEY.name}/r", 4, merkle.leaf_hash(b"other")), KEY, NOW)
        change(store, b"tr\0" + number(4), other)
    before = contents(store, (b"",))
    with pytest.raises(DamagedError):
        commit(store, "r", KEY, now=at(9))
    assert contents(store, (b"",)) == before


AUDITED = {
    "leaf changed": (b"L" + number(1), b"nonsense", "leaf 1 of the ledger"),
    "leaf lost": (b"L" + number(1), None, "leaf 1 of the ledger"),
    "leaf hash changed": (b"N\x00" + number(1), bytes(32), "leaf 1 of the ledger"),
    "leaf hash lost": (b"N\x00" + number(1), None, "node 1 of level 0 of the ledger"),
    "node changed": (b"N\x01" + number(0), bytes(32), "node 0 of level 1 of the ledger"),
    "node short": (b"N\x01" + number(1), bytes(31), "node 1 of level 1 of the ledger"),
    "node lost": (b"N\x02" + number(0), None, "node 0 of level 2 of the ledger"),
    "node beyond": (b"N\x02" + number(1), bytes(32), "ledger, tree"),
    "older head changed": (b"H" + number(2), b"nonsense", "head of the ledger over 2 leaves"),
    "head of a lost leaf": (b"H" + number(5), None, "head of the ledger over 5 leaves"),
    "index changed": (None, number(3), "leaf 0 of the ledger"),
    "index short": (None, b"", "leaf 0 of the ledger"),
    "index lost": (None, None, "leaf 0 of the ledger"),
    "index has one more": (b"E" + bytes(40), number(0), "ledger, index"),
    "signed root lost": (b"tr\0" + number(4), None, "leaf 2 of the ledger"),
    "run lost": (b"rs", None, "leaf 1 of the ledger"),
}


@pytest.mark.parametrize("thing", AUDITED)
def test_the_audit_names_each_damage(store, make_run, extend_run, thing):
    commit_three(store, make_run, extend_run)
    key, value, what = AUDITED[thing]
    if thing == "head of a lost leaf":
        value = sign_root(Checkpoint(KEY.name, 5, merkle.leaf_hash(b"x")), KEY, NOW)
    if key is None:
        key = next(key for key, found in contents(store, (b"E",)).items() if found == number(0))
    change(store, key, value)
    assert what in damages(store)


def test_the_audit_finds_a_leaf_that_was_replaced_with_its_hashes(store, make_run, extend_run):
    """Everything in the store is made to fit the other leaf; only the signed heads are not."""
    commit_three(store, make_run, extend_run)
    forged = replace(Ledger(store).leaf(1), root=merkle.leaf_hash(b"forged"))
    change(store, b"L" + number(1), forged.encode())
    hashes = [
        leaf.leaf_hash() for leaf in (Ledger(store).leaf(0), forged, Ledger(store).leaf(2), Ledger(store).leaf(3))
    ]
    for level, first, nodes in merkle.completed_levels(0, hashes, merkle.nodes_of(())):
        for index, node in enumerate(nodes, first):
            change(store, b"N" + bytes([level]) + number(index), node)
    found = damages(store)
    assert [f"head of the ledger over {size} leaves" for size in (4, 3, 2)] == found[:3]
    assert "leaf 1 of the ledger" in found


def test_heads_have_signatures_of_the_right_shape(store):
    grow(store, 3)
    parsed = note.parse(Ledger(store).head())
    short = replace(parsed.signatures[0], blob=bytes(63))
    change(store, b"H" + number(3), note.Note(parsed.text, (short,)).encode())
    assert damages(store)[0] == "head of the ledger over 3 leaves"


# Other parts of the archive


def test_gc_keeps_the_ledger_and_stats_count_it(store, make_run, extend_run):
    commit_three(store, make_run, extend_run)
    store.write(lambda transaction: transaction.put_blob(b"nobody needs me"))
    before = contents(store)
    assert len(collect(store, quiet).blobs) == 1
    assert contents(store) == before
    assert stats(store, None, quiet).ledger == 4


def test_a_copy_starts_a_ledger_of_its_own(store, tmp_path, make_run, extend_run):
    commit_three(store, make_run, extend_run)
    with open_store(tmp_path / "copy", create=True) as other:
        copy_runs(store, other, None, quiet)
        assert Ledger(other).size == 0
        report = check_store(other, quiet)
        assert (report.damages, len(report.not_entered)) == ([], 4)
        commit(other, "r", KEY, now=at(9))
        assert [Ledger(other).leaf(index).size for index in range(3)] == [3, 4, 6]
        assert check_store(other, quiet).not_entered == [f"{KEY.name}/s, 2 leaves"]


def test_what_another_signer_signed_is_not_entered(store, tmp_path, make_run, extend_run):
    writer = make_run(store, "r", 2, complete=False)
    commit(store, "r", EVE)
    with open_store(tmp_path / "copy", create=True) as other:
        extend_run(writer, 2, 3)
        copy_runs(store, other, None, quiet)
        commit(other, "r", KEY)
        assert [Ledger(other).leaf(index).origin for index in range(Ledger(other).size)] == [f"{KEY.name}/r"]
        report = check_store(other, quiet)
        assert (report.damages, report.not_entered) == ([], [f"{EVE.name}/r, 3 leaves"])


# Two at once

COMMITTER = """
import sys
from polstore.prover import commit
from polstore.storage.store import open_store
from polstore.wire.keys import SigningKey

with open_store(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for run in sys.argv[2].split(","):
        commit(store, run, SigningKey("example.org/archive", bytes(range(32))))
"""


def test_two_processes_that_commit_at_once_fork_nothing(store, make_run):
    runs = [f"r{number}" for number in range(8)]
    for seed, run in enumerate(runs):
        make_run(store, run, 1, seed=seed)
    order = [",".join(runs), ",".join(runs[::-1])]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", COMMITTER, str(store.path), runs_of_one],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for runs_of_one in order
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        child.communicate()
        assert child.returncode == 0
    require_whole(store, runs)


def test_threads_that_commit_at_once_fork_nothing(store, make_run):
    runs = [f"r{number}" for number in range(6)]
    for seed, run in enumerate(runs):
        make_run(store, run, 1, seed=seed)
    threads = [threading.Thread(target=commit, args=(store, run, KEY)) for run in runs * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    require_whole(store, runs)


def require_whole(store, runs):
    log = Ledger(store)
    assert sorted(log.leaf(index).origin for index in range(log.size)) == [f"{KEY.name}/{run}" for run in runs]
    report = check_store(store, quiet)
    assert (report.damages, report.not_entered) == ([], [])
    for size in range(1, log.size + 1):  # each commit left a head of its own
        assert open_head(log.head(size), KEY.verifier_keys()).checkpoint.size == size
