"""Starting a run from another run's last snapshot, and proving it: what the child's manifest says of its parent, which
tensors are taken over, and the evidence for a verifier.

Reads the parent's store and writes nothing. Implements specs/lineage.md, sections "Inheriting" and "Format".
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polstore.errors import DamagedError, MissingError, UsageError
from polstore.reader import open_archive
from polstore.wire import canonical, merkle
from polstore.wire.checkpoint import parse_text
from polstore.wire.lineage import Lineage, ProvenLeaf, names_blob, parse_names
from polstore.wire.manifest import RUN_NAME, Parent
from polstore.wire.multi_proof import multi_proof
from polstore.wire.note import parse as parse_note
from polstore.wire.state import scalars_entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.codec.snapshot import Snapshot
    from polstore.reader import Run

__all__ = ["ParentState", "find_parent", "lineage", "named_parent"]


@dataclass(frozen=True)
class ParentState:
    """A parent's last snapshot under one of its signed roots.

    Attributes:
        origin, size, root: what that signed root states.
        step: step of the snapshot.
        snapshot: the snapshot.
    """

    origin: str
    size: int
    root: bytes
    step: int
    snapshot: Snapshot

    def reference(self, names: Sequence[str]) -> Parent:
        """Return what a child's manifest says of this parent, ``names`` being those of the inherited tensors."""
        inherited = hashlib.sha256(names_blob(names)).digest()
        return Parent(self.origin, self.size, self.root, self.step, self.snapshot.digest(), inherited)


def named_parent(text: Path | str) -> tuple[Path, str | None]:
    """Split ``STORE[:RUN]``; a store whose own path ends like this is taken as a store."""
    path, colon, run = str(text).rpartition(":")
    if colon and path and re.fullmatch(RUN_NAME, run, re.ASCII) and not Path(text).exists():
        return Path(path), run
    return Path(text), None


def find_parent(text: Path | str, signed_root: bytes | None = None) -> ParentState:
    """Return the last snapshot of a run under its newest signed root, or under the one given.

    Args:
        text: ``STORE`` or ``STORE:RUN``; without a name the store has to hold one run.
        signed_root: a signed root of it; signatures are not checked here.

    Raises:
        MissingError: no such store, run or signed root, or nothing was trained under it.
        UsageError: the store holds several runs, and none was named.
        DamagedError: what the store holds is not what was signed.
    """
    path, name = named_parent(text)
    with open_archive(path) as archive:
        runs = archive.runs()
        if name is None and len(runs) != 1:
            raise UsageError(f"runs in {path}", expected="one, or STORE:RUN", got=", ".join(runs[:8]))
        run = archive.run(runs[0] if name is None else name)
        stated = None if signed_root is None else parse_text(parse_note(signed_root).text)
        size = run.signed_size(None if stated is None else stated.size)
        checkpoint = run.signed_checkpoint(size)
        if stated not in (None, checkpoint):
            raise MissingError(f"signed root of run {run.name} over {size} leaves", expected=stated, got=checkpoint)
        if size < 2:
            raise MissingError(f"run {run.name} has no segment under its signed root", expected="one", got=0)
        run.proof_file(size - 2, size)  # raises unless the last record is under that root
        record = run.segment(size - 2)
        snapshot = run.snapshot(record.end_state)
        return ParentState(checkpoint.origin, size, checkpoint.root, record.end_step, snapshot)


def lineage(run: Run, parent: Run, size: int | None = None) -> Lineage:
    """Return the evidence that a run began with its parent's tensors.

    Args:
        run: the child.
        parent: the run that its manifest names.
        size: leaves under the child's signed root; the newest if None.

    Raises:
        UsageError: the run has no parent.
        MissingError: a signed root is not there, or ``parent`` is another run.
        DamagedError: what the store holds is not what was signed.
    """
    wanted = run.manifest.initial.parent
    if wanted is None:
        raise UsageError(f"run {run.name} has no parent", expected="parent", got=run.manifest.initial.kind)
    size = run.signed_size(size)
    checkpoint = parent.signed_checkpoint(parent.signed_size(wanted.size))
    if (checkpoint.origin, checkpoint.root) != (wanted.origin, wanted.root):
        raise MissingError(f"run {parent.name} is not the parent", expected=wanted.origin, got=checkpoint.origin)
    own = run.stored_snapshots(run.manifest.initial.state)[0]
    theirs = parent.stored_snapshots(wanted.state)[0]
    values = [row.entry.value() for row in theirs.tensors]
    values.append(scalars_entry(theirs.scalars))
    hashes = [merkle.leaf_hash(canonical.encode(value)) for value in values]
    places = {row.entry.name: number for number, row in enumerate(theirs.tensors)}
    names = parse_names(run.blob(wanted.inherited))
    if not places.keys() >= set(names):
        raise DamagedError(f"inherited tensors of run {run.name}", expected="those of its parent", got="others")
    inherited = tuple((places[name], name) for name in names)
    numbers = [number for number, _ in inherited]
    return Lineage(
        child_root=run.signed_root(size),
        child_manifest=_proven(run, 0, size),
        parent_root=parent.signed_root(wanted.size),
        parent_manifest=_proven(parent, 0, wanted.size),
        parent_record=_proven(parent, wanted.size - 1, wanted.size),
        entries=tuple(row.entry for row in own.tensors),
        scalars=hashlib.sha256(own.scalars).digest(),
        parent_size=len(hashes),
        inherited=inherited,
        proof=multi_proof(numbers, len(hashes), merkle.nodes_of(hashes)),
    )


def _proven(run: Run, leaf: int, size: int) -> ProvenLeaf:
    return ProvenLeaf(run.leaves(size)[leaf], run.inclusion_proof(leaf, size))
