"""A ledger of a million leaves: build, append and prove, against hashing alone and against pymerkle.

python -m tools.bench.ledger [--leaves N] [--json] [--save]

The bare limit is hashlib alone: every leaf and every inner node hashed once, in two plain list comprehensions. Bulk
build and limit alternate in rounds, and the median ratio counts. Store and rival run in a process each, so that the
memory that they take can be told apart. pymerkle is compared where it is installed (`pip install polstore[bench]`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polstore.ledger import Ledger, enter
from polstore.storage.ledger import Entry
from polstore.storage.store import open_store
from polstore.wire import merkle
from polstore.wire.checkpoint import Checkpoint, sign_root
from polstore.wire.keys import SigningKey
from polstore.wire.ledger import LedgerLeaf
from tools.bench.table import Result, compared, save, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from polstore.storage.writer import Writer

LEAVES = 1_000_000
BATCH = 16_384  # leaves per transaction: what LMDB then keeps in memory is small beside everything else
ROUNDS = 5
PROOFS = 2000
SMALL = 1000  # leaves of the store that shows whether a proof's cost depends on the size
LIMIT = "hashlib alone"
RIVAL = "pymerkle, in memory"
KEY = SigningKey("example.org/archive", bytes(32))


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaves", type=int, default=LEAVES, help=f"{LEAVES} unless given")
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects")
    parser.add_argument("--save", action="store_true", help="write tools/bench/results/ledger.*")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments.leaves)))
        return 0
    title = f"A ledger of {arguments.leaves:,} leaves"
    results = _compare(arguments.leaves)
    show(results, title, as_json=arguments.json)
    if arguments.save:
        save(results, "ledger", title, _notes())
    return 0


def _compare(leaves: int) -> list[Result]:
    hashing, small, large = _part("hashing", leaves), _part("store", min(SMALL, leaves)), _part("store", leaves)
    limit, small_name = hashing["limit"], f"{SMALL} leaves"

    def under(name: str, figure: float, aim: float) -> Result:
        return compared(name, figure, aim, "the aim", "ms", aim=1.0, aim_text=f"under {aim} ms")

    results = [
        compared(
            "build of all nodes, in memory",
            hashing["build"],
            limit,
            LIMIT,
            "s",
            aim=1 / 1.5,
            aim_text="within 1.5 times",
        ),
        compared("append into LMDB, indexed and synced", large["append"], limit, LIMIT, "s"),
        compared("most memory meanwhile", large["memory"], small["memory"], small_name, "MB"),
        under("inclusion proof from LMDB", large["prove"], 0.2),
        compared("the same, by size of the store", large["prove"], small["prove"], small_name, "ms"),
        under("consistency proof from LMDB", large["consistency"], 0.2),
        under("verify an inclusion proof", large["verify"], 0.1),
        compared("one commit: enter, sign, sync", large["enter"], small["enter"], small_name, "ms"),
    ]
    if importlib.util.find_spec("pymerkle") is None:
        print("pymerkle is not installed here, so it is left out: pip install polstore[bench]", file=sys.stderr)
        return results
    rival = _part("pymerkle", leaves)
    return [
        *results,
        compared("append, ours into LMDB", large["append"], rival["append"], RIVAL, "s", aim=1, aim_text="faster"),
        compared("inclusion proof", large["prove"], rival["prove"], RIVAL, "ms", aim=1, aim_text="faster"),
        compared("verify an inclusion proof", large["verify"], rival["verify"], RIVAL, "ms"),
        compared("most memory", large["memory"], rival["memory"], RIVAL, "MB", aim=1, aim_text="less"),
    ]


def _part(name: str, leaves: int) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "tools.bench.ledger", "--part", name, "--leaves", str(leaves)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[2])
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _entries(start: int, end: int) -> list[Entry]:
    """Return leaves as commits make them: a thousand signed roots per run."""
    return [Entry(_data(index), f"{KEY.name}/run-{index // 1000}", index % 1000 + 1) for index in range(start, end)]


def _data(index: int) -> bytes:
    """Return a leaf of 85 bytes, as long as that of a short origin."""
    return b"%085d" % index


def _batches(leaves: int) -> Iterator[tuple[int, int]]:
    for start in range(0, leaves, BATCH):
        yield start, min(start + BATCH, leaves)


def _hashing(leaves: int) -> dict[str, float]:
    """Alternate between hashing alone and building all nodes."""
    data = [_data(index) for index in range(leaves)]
    limits, ratios = [], []
    for _ in range(ROUNDS):
        limit = _timed(lambda: _bare(data))
        limits.append(limit)
        ratios.append(_timed(lambda: _build(data)) / limit)
    limit = statistics.median(limits)
    return {"limit": limit, "build": limit * statistics.median(ratios)}


def _bare(data: Sequence[bytes]) -> None:
    level = [sha256(b"\0" + item).digest() for item in data]
    while len(level) > 1:
        pairs = iter(level)
        level = [sha256(b"\1" + left + right).digest() for left, right in zip(pairs, pairs, strict=False)]


def _build(data: Sequence[bytes]) -> None:
    nodes = list(merkle.completed_levels(0, merkle.leaf_hashes(data), merkle.nodes_of(())))
    assert len(nodes) == len(data).bit_length()


def _store(leaves: int) -> dict[str, float]:
    """Fill a store in batches and prove from it."""
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "store", create=True) as store:
        seconds = memory = 0.0
        for start, end in _batches(leaves):
            entries = _entries(start, end)
            began = time.perf_counter()
            used = store.write(lambda transaction: _append(transaction, entries))  # noqa: B023 # called at once
            seconds += time.perf_counter() - began
            memory = max(memory, used)
        indices = _drawn(leaves)
        hashes = merkle.leaf_hashes(map(_data, indices))
        with store.read() as view:
            node, root = view.ledger.node, view.ledger.root(leaves)
            prove = _each(lambda index: merkle.inclusion_proof(index, leaves, node), indices)
            consistency = _each(lambda index: merkle.consistency_proof(index + 1, leaves, node), indices)
            paths = [merkle.inclusion_proof(index, leaves, node) for index in indices]
        proofs = list(zip(hashes, indices, paths, strict=True))
        verify = _each(lambda one: merkle.verify_inclusion(one[0], one[1], leaves, one[2], root), proofs)
        one = LedgerLeaf(f"{KEY.name}/first", 1, bytes(32))
        store.write(lambda transaction: _headed(transaction, one))
        ours = [LedgerLeaf(f"{KEY.name}/new", size, bytes(32)) for size in range(1, 31)]
        entered = _each(lambda leaf: store.write(lambda transaction: enter(transaction, [leaf], 1, KEY)), ours)
        assert Ledger(store).size == leaves + 31
    return {
        "append": seconds,
        "prove": prove,
        "consistency": consistency,
        "verify": verify,
        "enter": entered,
        "memory": memory,
    }


def _append(transaction: Writer, entries: Sequence[Entry]) -> float:
    """Append leaves and return the memory in use, all of the transaction's pages among it."""
    transaction.ledger.append(entries)
    return _memory()


def _headed(transaction: Writer, leaf: LedgerLeaf) -> None:
    """Append a leaf and sign the head over all that was appended without one, which `enter` insists on."""
    transaction.ledger.append([Entry(leaf.encode(), leaf.origin, leaf.size)])
    size = transaction.ledger.size()
    transaction.ledger.put_head(size, sign_root(Checkpoint(KEY.name, size, transaction.ledger.root(size)), KEY, 1))


def _pymerkle(leaves: int) -> dict[str, float]:
    """Do the same with pymerkle's tree in memory, one entry at a time, as it has no other way."""
    pymerkle: Any = importlib.import_module("pymerkle")
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    seconds = 0.0
    for start, end in _batches(leaves):
        data = [_data(index) for index in range(start, end)]
        seconds += _timed(lambda: [tree.append_entry(item) for item in data])  # noqa: B023 # called at once
    memory = _memory()
    indices = [index + 1 for index in _drawn(leaves)]  # it counts from 1
    prove = _each(lambda index: tree.prove_inclusion(index, leaves), indices)
    root = tree.get_root(leaves)
    proofs = [(tree.get_leaf(index), tree.prove_inclusion(index, leaves)) for index in indices]
    verify = _each(lambda one: pymerkle.verify_inclusion(one[0], root, one[1]), proofs)
    return {"append": seconds, "prove": prove, "verify": verify, "memory": memory}


PARTS = {"hashing": _hashing, "store": _store, "pymerkle": _pymerkle}


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _each(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Return the median time of one call, in ms."""
    return statistics.median(_timed(lambda: work(item)) for item in items) * 1000  # noqa: B023 # called at once


def _memory() -> float:
    """Return the memory of this process in MB, without pages of files that the kernel may drop at any time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1000


def _drawn(leaves: int) -> list[int]:
    drawn = random.Random(1)  # noqa: S311 # the same leaves for both sides
    return [drawn.randrange(leaves) for _ in range(PROOFS)]


def _notes() -> list[str]:
    return [
        f"The bare limit hashes every leaf of 85 bytes and every inner node once; medians of {ROUNDS} rounds.",
        f"Into LMDB go all leaves and nodes, and an index by origin and size; {BATCH} leaves per transaction.",
        f"Proofs and verification: medians over {PROOFS} leaves drawn at random.",
        "Memory is that of the process without pages of mapped files, measured before each transaction ends.",
        "pymerkle keeps its tree in memory and appends one entry at a time.",
    ]


if __name__ == "__main__":
    sys.exit(main())
