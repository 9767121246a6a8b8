"""A store whose writer is killed at any moment: it opens, everything in it is whole, nothing acknowledged is lost."""

import random
import signal
import subprocess
import sys
from pathlib import Path

from polstore.storage.store import open_store
from polstore.wire import merkle

REPOSITORY = Path(__file__).parents[2]
ROUNDS = 15

WRITER = """
import hashlib, os, sys
from polstore.storage import opening
from polstore.storage.store import open_store

opening.INITIAL_MAP = 256 << 10  # so that growing is interrupted, too
with open_store(sys.argv[1], create=True) as store, store.exclusive():
    store.write(lambda writer: "r" in writer.runs() or writer.put_run("r", b"run"))
    while True:
        blobs = [os.urandom(int.from_bytes(os.urandom(2), "big") * 4) for _ in range(3)]

        def work(writer):
            digests = [writer.put_blob(blob) for blob in blobs]
            step = len(writer.snapshot_steps("r"))
            state = hashlib.sha256(b"".join(digests)).digest()
            writer.put_stored_snapshot(state, b"".join(digests))
            writer.put_snapshot("r", step, state)
            return writer.append_leaf("r", b"".join(digests))

        print(store.write(work), flush=True)
"""


def test_killed_writers_lose_nothing_that_they_acknowledged(tmp_path):
    random_ = random.Random(7)
    path = tmp_path / "s"
    acknowledged = -1
    for _ in range(ROUNDS):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            for _ in range(random_.randrange(1, 12)):
                line = child.stdout.readline()
                assert line, child.stderr.read().decode()
            try:
                child.wait(random_.random() * 0.05)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
            lines = [int(line), *map(int, child.stdout.read().split())]
            assert child.wait() == -signal.SIGKILL, child.stderr.read().decode()
        assert max(lines) > acknowledged
        acknowledged = max(lines)
        check(path, acknowledged)
    assert acknowledged >= ROUNDS


def check(path, acknowledged):
    with open_store(path) as store, store.read() as reader:
        leaves = list(reader.leaves("r"))
        assert len(leaves) > acknowledged
        assert reader.leaf_count("r") == len(leaves)
        assert reader.snapshot_steps("r") == list(range(len(leaves)))
        assert reader.tree_root("r", len(leaves)) == merkle.root([merkle.leaf_hash(leaf) for leaf in leaves])
        named = set()
        for step, leaf in enumerate(leaves):
            assert reader.stored_snapshot(reader.snapshot_at("r", step)) == leaf
            named.update(leaf[start : start + 32] for start in range(0, len(leaf), 32))
        assert set(reader.blob_digests()) == named
        for digest in reader.blob_digests():
            reader.get_blob(digest)
