"""How much room files take, and reporting on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["report", "room"]

SECTOR = 512  # bytes; what st_blocks counts in


def room(path: Path) -> int:
    """Return the bytes that a file, or all files below a directory, hold: holes and rounding up to blocks left out."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum(min(file.stat().st_size, file.stat().st_blocks * SECTOR) for file in files)


def report(text: str) -> None:
    """Say on standard error how far the benchmark is."""
    print(text, file=sys.stderr, flush=True)
