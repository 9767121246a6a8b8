"""Committing is killed at any moment: nothing acknowledged is lost, nothing is forked, and a verifier sees one log."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from polstore.fsck import check_store
from polstore.ledger import Ledger
from polstore.storage.store import open_store
from polstore.wire import merkle
from polstore.wire.checkpoint import open_root
from polstore.wire.keys import SigningKey
from polstore.wire.ledger import LedgerLeaf, consistency_lines, open_head
from polverify.log import check_log
from polverify.verdict import Decision
from tools.vectors import tiny_run

REPOSITORY = Path(__file__).parents[2]
KEY = SigningKey("example.org/archive", bytes(range(32)))
KEYS = KEY.verifier_keys()
ROUNDS = 12

# Records one segment after the other into a run of its own, and commits after each.
WRITER = """
import sys
from polstore.prover import commit
from polstore.storage import opening
from polstore.storage.store import open_store
from polstore.wire.keys import SigningKey

opening.INITIAL_MAP = 256 << 10  # so that growing is interrupted, too
path, run, manifest = sys.argv[1:]
key = SigningKey("example.org/archive", bytes(range(32)))

def grow(writer):
    if run not in writer.runs():
        writer.put_run(run, b"row")
        writer.append_leaf(run, bytes.fromhex(manifest))
    writer.append_leaf(run, b"segment %d" % writer.leaf_count(run))

with open_store(path, create=True) as store:
    while True:
        store.write(grow)
        print(commit(store, run, key).hex(), flush=True)
"""


def writer(path: Path, run: str) -> subprocess.Popen[str]:
    manifest = replace(tiny_run.MANIFEST, run=run).encode()
    words = [sys.executable, "-c", WRITER, str(path), run, manifest.hex()]
    return subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_commits_lose_and_fork_nothing(tmp_path):
    random_ = random.Random(11)
    path, state = tmp_path / "st", tmp_path / "state"
    open_store(path, create=True).close()
    acknowledged: set[bytes] = set()
    for number in range(ROUNDS):
        children = [writer(path, run) for run in ("a", "b")[: 1 + number % 2]]
        seen = []
        for child in children:
            seen += [child.stdout.readline() for _ in range(random_.randrange(1, 12))]
        time.sleep(random_.random() * 0.02)
        for child in children:
            child.send_signal(signal.SIGKILL)
        for child in children:
            with child:  # `communicate` would pass over what `readline` has buffered
                out, err = child.stdout.read(), child.stderr.read()
            assert child.returncode == -signal.SIGKILL, err
            seen += [line for line in out.splitlines(keepends=True) if line.endswith("\n")]
        assert all(seen)
        before = len(acknowledged)
        acknowledged |= {bytes.fromhex(line) for line in seen}
        assert len(acknowledged) >= before + len(children)
        audit(path, state, acknowledged)


def audit(path: Path, state: Path, acknowledged: set[bytes]) -> None:
    """Check the whole ledger, and follow it as a verifier does who was here after every round."""
    with open_store(path) as store:
        report = check_store(store, lambda *_: None)
        assert not [damage for damage in report.damages if "ledger" in damage.what]
        assert report.not_entered == []
        with store.read() as view:
            signed = {view.root(run, size) for run in view.runs() for size in view.roots(run)}
            heads = [open_head(view.ledger.head(size), KEYS).checkpoint for size in view.ledger.heads()]
        assert acknowledged <= signed
        log = Ledger(store)
        assert log.size == len(signed) == len(heads)  # each commit is there whole, or not at all
        hashes = [log.leaf(index).leaf_hash() for index in range(log.size)]
        for old, new in pairwise(heads):
            assert new.root == merkle.root(hashes[: new.size])
            proof = log.consistency_proof(old.size, new.size)
            merkle.verify_consistency(old.size, old.root, new.size, new.root, proof)
        for text in signed:
            root = open_root(text, KEYS).checkpoint
            run = root.origin.rpartition("/")[2]
            leaf = LedgerLeaf.of(root, replace(tiny_run.MANIFEST, run=run))
            log.proof_file(log.find(root.origin, root.size)).verify(leaf.leaf_hash(), KEYS)
        kept = open_head(state.read_bytes(), KEYS).checkpoint.size if state.exists() else log.size
        lines = consistency_lines(log.consistency_proof(kept)).encode()
        assert check_log(log.head(), KEYS, state, consistency=lines).decision is Decision.ACCEPT
