"""A static archive of an honest run, and asking a server for it that misbehaves in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polstore.wire.archive_files import blob_name, snapshot_name
from polstore.wire.manifest import Manifest
from polstore.wire.segment import SegmentRecord
from polstore.wire.tiles import ENTRIES, Tile
from polverify.remote import verify_archive
from polverify.verdict import Decision, Verdict
from polverify.verify import Request
from tests.attacks import forge
from tests.static_server import Handler, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = forge.SEGMENTS + 1
ENTRY_TILE = "run/run/" + Tile(ENTRIES, 0, SIZE).path()
OPENED = [1]


@dataclass(frozen=True)
class Archive:
    """The honest archive, and the names of a few of its files that segment 1 needs."""

    directory: Path
    root: bytes
    leaves: tuple[bytes, ...]

    @property
    def record(self) -> SegmentRecord:
        return SegmentRecord.parse(self.leaves[2])

    def names(self) -> dict[str, str]:
        """One file of each kind that is read."""
        frames = [
            name
            for name in (str(path.relative_to(self.directory)) for path in (self.directory / "blob").rglob("*"))
            if name.count("/") == 2 and name not in self.others()
        ]
        return {
            "entries": ENTRY_TILE,
            "salts": "run/run/salts/1",
            "dataset": "run/run/dataset/" + Tile(0, 0, 64).path(),
            "snapshot": snapshot_name(self.record.end_state),
            "steps": blob_name(self.record.steps),
            "hyperparameters": blob_name(Manifest.parse(self.leaves[0]).optimizer.hyperparameters),
            "frame": sorted(frames, key=lambda name: -(self.directory / name).stat().st_size)[0],
        }

    def others(self) -> set[str]:
        records = [SegmentRecord.parse(leaf) for leaf in self.leaves[1:]]
        return {blob_name(record.steps) for record in records} | {
            blob_name(Manifest.parse(self.leaves[0]).optimizer.hyperparameters)
        }


KINDS = ("entries", "salts", "dataset", "snapshot", "steps", "hyperparameters", "frame")


def ask(archive: Archive, location: str, **options: Any) -> Verdict:
    root, keys = options.pop("root", archive.root), options.pop("keys", forge.KEY.verifier_keys())
    request = Request(root, keys, location, forge.RECIPE, options.pop("challenge", None))
    return verify_archive(request, None if request.challenge else options.pop("segments", OPENED), **options)


def served(archive: Archive, hook: Callable[[Handler], bool] | None = None, **options: Any) -> Verdict:
    with serving(archive.directory, hook) as server:
        return ask(archive, server.address, **options)


def only(name: str, answer: Callable[[Handler], bool]) -> Callable[[Handler], bool]:
    """A hook that answers for one file and leaves the others alone."""
    return lambda handler: handler.path == f"/{name}" and answer(handler)


def rejected(verdict: Verdict) -> str:
    assert verdict.decision is Decision.REJECT, (verdict.decision, verdict.reason)
    assert verdict.reason.startswith("check 0 (well-formed bundle): "), verdict.reason
    assert verdict.claim["bytes_fetched"] > 0
    return verdict.reason
