"""A log that lies: split view, rollback, stale head, backdating, foreign keys, and proofs of what is not there."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from polstore.errors import CallerError, KeyFileError, MalformedError
from polstore.keyfile import load_verifier_keys
from polstore.wire import merkle, note
from polstore.wire.checkpoint import Checkpoint, open_root, run_origin, sign_root
from polstore.wire.keys import KeyKind, SigningKey
from polstore.wire.ledger import LedgerLeaf, ParentRoot, consistency_lines
from polstore.wire.manifest import Parent
from polstore.wire.tlog_proof import TlogProof
from polverify.log import EVIDENCE, check_log
from polverify.verdict import Decision, Outcome
from tests.attacks.forge import KEY, NOW, OTHER_KEY, RUN, Evidence, Trainer

if TYPE_CHECKING:
    from pathlib import Path

LEDGER, INITIAL = 3, 5
EVE = SigningKey("example.com/eve", KEY.seed)
KEYS = KEY.verifier_keys()


class Log:
    """A ledger in memory, whose owner signs what he likes."""

    def __init__(self, leaves: list[LedgerLeaf]) -> None:
        self.leaves = leaves
        self.hashes = [leaf.leaf_hash() for leaf in leaves]
        self.node = merkle.nodes_of(self.hashes)

    def root(self, size: int) -> bytes:
        return merkle.root(self.hashes[:size])

    def head(self, leaves: int | None = None, key: SigningKey = KEY, time: int = NOW, **changes: Any) -> bytes:
        """Sign the head over the first leaves, or one of which some fields are others."""
        leaves = len(self.leaves) if leaves is None else leaves
        return sign_root(replace(Checkpoint(key.name, leaves, self.root(leaves)), **changes), key, time)

    def proof(self, leaf: int, **changes: Any) -> TlogProof:
        path = merkle.inclusion_proof(leaf, len(self.leaves), self.node)
        return replace(TlogProof(leaf, path, self.head()), **changes)

    def consistency(self, old: int, new: int) -> bytes:
        return consistency_lines(merkle.consistency_proof(old, new, self.node)).encode()


def filler(number: int, root: bytes = b"") -> LedgerLeaf:
    return LedgerLeaf(run_origin(KEY.name, f"other-{number}"), 3, merkle.leaf_hash(b"%d" % number + root))


# Is the signed root in the ledger?


@pytest.fixture(scope="module")
def proof() -> Evidence:
    return Trainer().run(opened=(1,))


def own_leaf(proof: Evidence) -> LedgerLeaf:
    return LedgerLeaf.of(open_root(proof.root, KEYS).checkpoint, proof.manifest())


@pytest.fixture(scope="module")
def log(proof: Evidence) -> Log:
    return Log([filler(0), filler(1), own_leaf(proof), filler(3), filler(4)])


def test_a_root_that_was_entered(judge, proof, log):
    verdict = judge(proof, ledger=log.proof(2).encode())
    assert verdict.decision is Decision.ACCEPT
    assert verdict.checks[LEDGER].outcome is Outcome.PASSED
    assert verdict.checks[LEDGER].detail == f"leaf 2 of 5 of {KEY.name}"
    assert judge(proof).checks[LEDGER].outcome is Outcome.NOT_MADE


def test_a_leaf_with_extensions_is_shown_whole(judge, rejects, proof):
    leaf = replace(own_leaf(proof), extensions=(("later", b"commitment"),))
    log = Log([filler(0), leaf])
    assert judge(proof, ledger=log.proof(1, extra=leaf.encode()).encode()).decision is Decision.ACCEPT
    assert rejects(proof, ledger=log.proof(1).encode()) == LEDGER
    other = replace(leaf, root=filler(1).root)
    log = Log([filler(0), other])
    assert rejects(proof, ledger=log.proof(1, extra=other.encode()).encode()) == LEDGER
    assert rejects(proof, ledger=log.proof(1, extra=leaf.encode()).encode()) == LEDGER
    assert rejects(proof, ledger=log.proof(1, extra=b"nonsense").encode()) == LEDGER


@pytest.mark.parametrize("index", [0, 1, 3, 4])
def test_the_place_of_another_leaf(rejects, proof, log, index):
    assert rejects(proof, ledger=log.proof(index).encode()) == LEDGER
    assert rejects(proof, ledger=log.proof(2, index=index).encode()) == LEDGER


def test_a_ledger_that_lacks_it(rejects, proof):
    log = Log([filler(number) for number in range(5)])
    assert rejects(proof, ledger=log.proof(2).encode()) == LEDGER


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": run_origin(KEY.name, "better")},
        {"size": 3},
        {"root": merkle.leaf_hash(b"other")},
        {"parents": (ParentRoot("example.com/eve/r", 3, bytes(32)),)},
    ],
)
def test_the_leaf_binds_origin_size_root_and_parents(rejects, proof, changes):
    log = Log([filler(0), replace(own_leaf(proof), **changes)])
    assert rejects(proof, ledger=log.proof(1).encode()) == LEDGER


def test_a_parent_that_is_kept_quiet(rejects, judge, proof):
    """The manifest names a parent, the ledger's leaf does not."""
    manifest = proof.manifest()
    parent = Parent("example.com/bob/r", 3, bytes(32), 10, manifest.initial.state, bytes(32))
    child = proof.declaring(initial=replace(manifest.initial, kind="parent", parent=parent))
    leaf = LedgerLeaf.of(open_root(child.root, KEYS).checkpoint, child.manifest())
    assert leaf.parents == (ParentRoot("example.com/bob/r", 3, bytes(32)),)
    assert rejects(child, ledger=Log([filler(0), replace(leaf, parents=())]).proof(1).encode()) == LEDGER
    told = judge(child, ledger=Log([filler(0), leaf]).proof(1).encode())
    assert told.checks[LEDGER].outcome is Outcome.PASSED


def mutations(log: Log) -> dict[str, TlogProof]:
    sound = log.proof(2)
    path = sound.proof
    doubled = Log([*log.leaves, log.leaves[-1]])
    posing = Log(log.leaves[:4])
    return {
        "truncated": replace(sound, proof=path[:-1]),
        "truncated below": replace(sound, proof=path[1:]),
        "extended": replace(sound, proof=(*path, path[0])),
        "swapped": replace(sound, proof=(path[1], path[0], *path[2:])),
        "empty": replace(sound, proof=()),
        "index of the size": replace(sound, index=5),
        "size doubled": replace(sound, signed_root=log.head(5, size=10)),
        "last leaf twice, under the honest head": doubled.proof(2, signed_root=log.head()),
        "node as a leaf": replace(posing.proof(2), index=1, proof=posing.proof(2).proof[1:]),
    }


@pytest.mark.parametrize("name", mutations(Log([filler(number) for number in range(5)])))
def test_a_mutated_proof(rejects, proof, log, name):
    assert rejects(proof, ledger=mutations(log)[name].encode()) == LEDGER


def heads(log: Log) -> dict[str, bytes]:
    parsed = note.parse(log.head())
    first, second = parsed.signatures
    false = replace(first, blob=bytes([first.blob[0] ^ 1]) + first.blob[1:])
    twin = note.Note(parsed.text, (note.sign(parsed.text, OTHER_KEY), note.cosign(parsed.text, OTHER_KEY, NOW)))
    return {
        "another key of the same name": twin.encode(),
        "another signer": log.head(key=EVE),
        "no cosignature": note.Note(parsed.text, (first,)).encode(),
        "no signature": note.Note(parsed.text, (second,)).encode(),
        "a false signature": note.Note(parsed.text, (false, second)).encode(),
        "the origin of a run": log.head(origin=run_origin(KEY.name, RUN)),
        "an extension line": log.head(extensions=("x",)),
        "another root": log.head(root=bytes(32)),
        "older than the root that it has": log.head(time=NOW - 1),
    }


@pytest.mark.parametrize("name", heads(Log([filler(0)])))
def test_a_head_that_proves_nothing(rejects, proof, log, name):
    assert rejects(proof, ledger=replace(log.proof(2), signed_root=heads(log)[name]).encode()) == LEDGER


def test_the_signed_root_itself_is_no_ledger(rejects, proof):
    """The run's own tree, whose head has the right signatures, shown as if it were the log."""
    hashes = [merkle.leaf_hash(leaf) for leaf in proof.bundle.leaves]
    path = merkle.inclusion_proof(0, len(hashes), merkle.nodes_of(hashes))
    assert rejects(proof, ledger=TlogProof(0, path, proof.root).encode()) == LEDGER


@pytest.mark.parametrize("data", [b"", b"nonsense", b"c2sp.org/tlog-proof@v1\nindex 2\n\n"])
def test_a_malformed_proof_file(rejects, proof, data):
    assert rejects(proof, ledger=data) == LEDGER


def test_a_false_ledger_is_found_before_anything_is_executed(judge, proof, log):
    verdict = judge(proof, ledger=log.proof(1).encode())
    assert all(check.outcome is Outcome.NOT_MADE for check in verdict.checks[INITIAL:])


# Is it the log that was seen before?


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


HONEST = Log([filler(number) for number in range(9)])
FORKED = Log([*(filler(number) for number in range(4)), *(filler(number, b"other") for number in range(4, 9))])


def see(state: Path, head: bytes, consistency: bytes | None = None, keys: Any = KEYS, **options: Any) -> Any:
    return check_log(head, keys, state, consistency=consistency, **options)


def refused(state: Path, head: bytes, consistency: bytes | None = None, *, says: str, **options: Any) -> None:
    """Require a rejection that leaves the state alone and keeps both notes."""
    kept = state.read_bytes()
    verdict = see(state, head, consistency, **options)
    assert verdict.decision is Decision.REJECT, verdict.reason
    assert says in verdict.reason
    assert state.read_bytes() == kept
    pair = [path for path in evidence_of(state) if path.name.endswith("-seen") and path.read_bytes() == head]
    assert pair
    assert pair[0].with_name(pair[0].name.replace("-seen", "-kept")).read_bytes() == kept
    if consistency is not None:
        assert consistency in [path.read_bytes() for path in evidence_of(state)]


def evidence_of(state: Path) -> list[Path]:
    folder = state.with_name(state.name + EVIDENCE)
    return sorted(folder.iterdir()) if folder.exists() else []


def test_an_honest_log_is_followed(state):
    first = see(state, HONEST.head(3))
    assert first.decision is Decision.ACCEPT
    assert "first use" in first.warnings[0]
    assert state.read_bytes() == HONEST.head(3)
    again = see(state, HONEST.head(3))
    assert (again.decision, again.warnings) == (Decision.ACCEPT, ())
    for old, new in ((3, 4), (4, 8), (8, 9)):
        assert see(state, HONEST.head(new), HONEST.consistency(old, new)).decision is Decision.ACCEPT
        assert state.read_bytes() == HONEST.head(new)
    assert evidence_of(state) == []


def test_a_larger_head_without_a_proof_is_undecided(state):
    see(state, HONEST.head(3))
    assert see(state, HONEST.head(8)).decision is Decision.INCONCLUSIVE
    assert state.read_bytes() == HONEST.head(3)
    assert evidence_of(state) == []


def test_split_view_of_one_size(state):
    see(state, HONEST.head(6))
    refused(state, FORKED.head(6), says="split view")
    refused(state, FORKED.head(6), FORKED.consistency(4, 6), says="split view")


def test_split_view_with_a_larger_head(state):
    see(state, HONEST.head(6))
    refused(state, FORKED.head(9), FORKED.consistency(6, 9), says="not shown to extend")


def test_views_agree_as_long_as_they_do(state):
    see(state, HONEST.head(4))
    assert see(state, FORKED.head(9), FORKED.consistency(4, 9)).decision is Decision.ACCEPT
    refused(state, HONEST.head(9), HONEST.consistency(4, 9), says="split view")


@pytest.mark.parametrize("size", [0, 1, 5])
def test_rollback(state, size):
    see(state, HONEST.head(6))
    refused(state, HONEST.head(size), says="rollback")
    refused(state, HONEST.head(size, time=NOW + 9), HONEST.consistency(size, 6), says="rollback")


def test_evidence_is_never_overwritten(state):
    see(state, HONEST.head(6))
    for _ in range(2):
        see(state, HONEST.head(2))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in evidence_of(state)}
    assert len(before) == 2
    see(state, FORKED.head(6))
    see(state, HONEST.head(2))
    assert len(evidence_of(state)) == 4
    assert all((path.read_bytes(), path.stat().st_mtime_ns) == found for path, found in before.items())


def test_a_rejection_stands_where_evidence_cannot_be_kept(state):
    see(state, HONEST.head(6))
    state.with_name(state.name + EVIDENCE).write_text("in the way")
    verdict = see(state, HONEST.head(2))
    assert verdict.decision is Decision.REJECT
    assert "could not be kept" in verdict.warnings[0]


@pytest.mark.parametrize("fault", ["cut", "extended", "swapped", "other", "empty", "malformed", "the other way round"])
def test_false_consistency_proofs(state, fault):
    see(state, HONEST.head(3))
    lines = HONEST.consistency(3, 8).splitlines(keepends=True)
    changed = {
        "cut": lines[:-1],
        "extended": [*lines, lines[0]],
        "swapped": [lines[1], lines[0], *lines[2:]],
        "other": [base64.b64encode(bytes(32)) + b"\n", *lines[1:]],
        "empty": [],
        "malformed": [lines[0].replace(b"\n", b"\r\n"), *lines[1:]],
        "the other way round": lines[::-1],
    }[fault]
    refused(state, HONEST.head(8), b"".join(changed), says="consistency proof")
    assert see(state, HONEST.head(8), HONEST.consistency(3, 8)).decision is Decision.ACCEPT


def test_nothing_is_bound_by_an_empty_log(state):
    see(state, HONEST.head(0))
    assert see(state, HONEST.head(5)).decision is Decision.ACCEPT
    refused(state, HONEST.head(0), says="rollback")


def test_backdated_head(state):
    see(state, HONEST.head(6, time=NOW))
    refused(state, HONEST.head(8, time=NOW - 1), HONEST.consistency(6, 8), says="backdated")
    assert see(state, HONEST.head(8, time=NOW), HONEST.consistency(6, 8)).decision is Decision.ACCEPT


def test_stale_head(state):
    old = see(state, HONEST.head(6, time=NOW), not_before=NOW + 1)
    assert (old.decision, "stale" in old.reason) == (Decision.REJECT, True)
    assert not state.exists()
    untimed = see(state, HONEST.head(6), keys=KEYS[:1], not_before=NOW)
    assert untimed.decision is Decision.REJECT
    assert see(state, HONEST.head(6, time=NOW), not_before=NOW).decision is Decision.ACCEPT


def test_a_stale_head_that_was_rolled_back_is_kept_as_evidence(state):
    see(state, HONEST.head(6))
    refused(state, HONEST.head(5), says="rollback", not_before=NOW + 1)


@pytest.mark.parametrize("name", list(heads(Log([filler(0)])))[:-2])
def test_heads_that_are_not_signed_as_they_should_be(state, name):
    see(state, HONEST.head(6))
    verdict = see(state, heads(HONEST)[name], HONEST.consistency(6, 9))
    assert verdict.decision is Decision.REJECT
    assert verdict.reason.startswith("check 1 (signature)")
    assert state.read_bytes() == HONEST.head(6)
    assert evidence_of(state) == []  # whoever wrote it, the log's owner did not


def test_unknown_key(state):
    verdict = see(state, HONEST.head(6), keys=OTHER_KEY.verifier_keys())
    assert verdict.decision is Decision.REJECT
    assert not state.exists()


def test_small_order_key(tmp_path):
    """A key under which one signature fits every message is refused where it is read."""
    public = bytes.fromhex("01" + 31 * "00")
    kind = bytes([KeyKind.ED25519])
    key_id = hashlib.sha256(b"example.com/weak\n" + kind + public).hexdigest()[:8]
    line = f"example.com/weak+{key_id}+{base64.b64encode(kind + public).decode()}"
    (tmp_path / "key.pub").write_text(line + "\n")
    with pytest.raises(KeyFileError, match="large order"):
        load_verifier_keys(tmp_path / "key.pub")


def test_one_comparison_at_a_time(state):
    """Of two at once, the one with the smaller head must not write last."""
    see(state, HONEST.head(3))
    with state.with_name(f".{state.name}.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        late = threading.Thread(target=see, args=(state, HONEST.head(4), HONEST.consistency(3, 4)))
        late.start()
        late.join(0.2)
        assert late.is_alive()
        state.write_bytes(HONEST.head(6))
    late.join()
    assert state.read_bytes() == HONEST.head(6)
    assert evidence_of(state)


@pytest.mark.parametrize("head", [b"", b"nonsense", HONEST.head(6)[:-1], HONEST.head(6).replace(b"\n6\n", b"\n+6\n")])
def test_malformed_heads(state, head):
    verdict = see(state, head)
    assert verdict.decision is Decision.REJECT
    assert not state.exists()


def test_a_state_of_another_log_decides_nothing(state):
    eve = Log(HONEST.leaves)
    see(state, eve.head(6, key=EVE), keys=EVE.verifier_keys())
    with pytest.raises(CallerError, match="another log"):
        see(state, HONEST.head(6))


@pytest.mark.parametrize("data", [b"", b"nonsense", HONEST.head(6)[:-1]])
def test_a_damaged_state_decides_nothing(state, data):
    state.write_bytes(data)
    with pytest.raises(CallerError, match="state") as caught:
        see(state, HONEST.head(6))
    assert not isinstance(caught.value, MalformedError)
    assert state.read_bytes() == data


def test_another_key_of_the_same_name_may_go_on(state):
    """A rotated key: what was kept is the verifier's own, and the tree speaks for itself."""
    see(state, HONEST.head(6))
    verdict = see(state, HONEST.head(8, key=OTHER_KEY), HONEST.consistency(6, 8), keys=OTHER_KEY.verifier_keys())
    assert verdict.decision is Decision.ACCEPT
