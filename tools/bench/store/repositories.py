"""Rivals that keep the files of torch.save in a repository of their own: restic, borg, DVC.

Each is given the same files in two goes, the state where recording began with the first snapshot, then all others, so
that what a further snapshot adds can be told from the whole.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tools.bench.store.files import report, room

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Kept", "keep_all", "kept"]

PACKAGES = {
    "restic": "Debian's package restic",
    "borg": "Debian's package borgbackup",
    "dvc": "the extra bench",
}


@dataclass(frozen=True)
class Kept:
    """What a repository takes.

    Attributes:
        whole: bytes of all of it.
        added: bytes that each further snapshot added, on average.
    """

    whole: int
    added: float


def kept(first: int, whole: int, further: int) -> Kept:
    """Return what a repository takes that grew from ``first`` to ``whole`` bytes by ``further`` snapshots."""
    return Kept(whole, (whole - first) / further)


def keep_all(files: Sequence[Path], folder: Path) -> dict[str, Kept]:
    """Keep ``files`` in a repository of each rival that is installed, one after the other, and remove it again.

    Args:
        files: at least three: the state where recording began, the first snapshot, further ones.
        folder: an existing folder on a disk with room for twice the files.
    """
    outcome = {}
    for name, keep in (("restic", _restic), ("borg", _borg), ("dvc", _dvc)):
        if shutil.which(name) is None:
            report(f"skipped: {name} (no program of that name; install {PACKAGES[name]})")
            continue
        report(f"  {name}: {len(files)} files")
        place = folder / name
        place.mkdir()
        sizes = keep(files[:2], files[2:], place)
        outcome[name] = kept(*sizes, len(files) - 2)
        shutil.rmtree(place)
    return outcome


def _restic(first: Sequence[Path], further: Sequence[Path], place: Path) -> tuple[int, int]:
    repository = place / "repository"
    command = ["restic", "--quiet", "--no-cache", "--repo", str(repository)]
    variables = {"RESTIC_PASSWORD": "benchmark"}
    _run([*command, "init"], place, variables)
    return _grow(lambda files: _run([*command, "backup", *files], place, variables), first, further, repository)


def _borg(first: Sequence[Path], further: Sequence[Path], place: Path) -> tuple[int, int]:
    repository = place / "repository"
    variables = {"BORG_BASE_DIR": str(place / "base"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
    _run(["borg", "init", "--encryption", "none", str(repository)], place, variables)
    names = iter(("first", "further"))

    def create(files: Sequence[str]) -> None:
        _run(["borg", "create", "--compression", "zstd,3", f"{repository}::{next(names)}", *files], place, variables)

    return _grow(create, first, further, repository)


def _dvc(first: Sequence[Path], further: Sequence[Path], place: Path) -> tuple[int, int]:
    variables = {"DVC_NO_ANALYTICS": "1", "PYTHONPATH": ""}
    variables |= {f"DVC_{kind}_DIR": str(place / kind) for kind in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG")}
    _run(["dvc", "init", "--quiet", "--no-scm"], place, variables)

    def add(files: Sequence[str]) -> None:
        copies = [
            str(shutil.copy(file, place)) for file in files
        ]  # it takes files of its own directory only, and moves them
        _run(["dvc", "add", "--quiet", *copies], place, variables)

    return _grow(add, first, further, place / ".dvc" / "cache")


def _grow(
    keep: Callable[[Sequence[str]], None], first: Sequence[Path], further: Sequence[Path], repository: Path
) -> tuple[int, int]:
    keep([str(file) for file in first])
    early = room(repository)
    keep([str(file) for file in further])
    return early, room(repository)


def _run(command: Sequence[str], place: Path, variables: Mapping[str, str]) -> None:
    subprocess.run(command, cwd=place, env={**os.environ, **variables}, check=True, capture_output=True)
