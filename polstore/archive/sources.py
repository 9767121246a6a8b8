"""Finding the files of a training that was saved by other means, and the step of each by its name.

Knows these layouts, by name:

    huggingface   folders checkpoint-<step> with model.safetensors, pytorch_model.bin, parts of either, or
                  adapter_model.safetensors or .bin; optimizer.pt, scheduler.pt, scaler.pt, trainer_state.json
    paper         files model_step_<n>, as the paper's own code writes them, and indices.npy
    lightning     *.ckpt
    torch         *.pt, *.pth, *.bin, written by torch.save
    safetensors   *.safetensors

Looks at names only and opens nothing. What has such a name and is no file, a link that leads nowhere for instance, is
named as well, and whoever opens it is told: a snapshot is never left out in silence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore.errors import MissingError, UsageError
from polstore.files import file_error

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LAYOUTS", "MAX_DIGITS", "Source", "find_sources"]

_FOLDER = re.compile(r"checkpoint-(\d+)", re.ASCII)
_PAPER = re.compile(r"model_step_(\d+)", re.ASCII)
_STEP = re.compile(r"step[=_-]?(\d+)", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"\d+", re.ASCII)
_SUFFIXES = {
    "lightning": (".ckpt",),
    "torch": (".pt", ".pth", ".bin"),
    "safetensors": (".safetensors",),
}
LAYOUTS = ("huggingface", "paper", *_SUFFIXES)
MAX_DIGITS = 15  # of a step; longer numbers are dates or hashes


@dataclass(frozen=True)
class Source:
    """One saved snapshot: a file, or a folder of the layout ``huggingface``, and the step that its name states."""

    path: Path
    named_step: int | None


def find_sources(path: Path, layout: str | None) -> tuple[str, list[Source]]:
    """Return the layout of a directory or single file, and its snapshots in natural order of their names.

    Args:
        path: a directory, or one file, or one folder of the layout ``huggingface``.
        layout: one of `LAYOUTS`, or None to go by the names.

    Raises:
        UsageError: an unknown layout, or files of several that are equally likely.
        MissingError: nothing to import there.
        CallerError: the directory cannot be read.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UsageError("unknown layout", expected=", ".join(LAYOUTS), got=layout)
    try:
        if not path.exists():
            raise MissingError(f"no file or directory {path}")
        entries = sorted(path.iterdir(), key=_natural) if path.is_dir() else [path]
        found = {name: sources for name in LAYOUTS if (sources := _matching(name, path, entries))}
    except OSError as error:
        raise file_error(error, f"{path} cannot be read") from error
    if layout is not None:
        if layout not in found:
            raise MissingError(f"{path} has no snapshots of layout {layout}")
        return layout, found[layout]
    for certain in ("huggingface", "paper"):
        if certain in found:
            return certain, found[certain]
    if not found:
        raise MissingError(f"{path} has no snapshots that can be imported: none of {', '.join(LAYOUTS)}")
    if len(found) > 1:
        raise UsageError(f"{path} has files of several layouts", expected="--layout " + " or ".join(found), got="none")
    return next(iter(found.items()))


def _matching(layout: str, path: Path, entries: list[Path]) -> list[Source]:
    if layout == "huggingface":
        if path.is_dir() and _FOLDER.fullmatch(path.name):
            entries = [path]
        return [
            _source(entry, match)
            for entry in entries
            if (match := _FOLDER.fullmatch(entry.name)) and not entry.is_file()
        ]
    if layout == "paper":
        return [
            _source(entry, match) for entry in entries if (match := _PAPER.fullmatch(entry.name)) and not entry.is_dir()
        ]
    if path.is_dir() and _FOLDER.fullmatch(path.name):
        return []
    return [
        Source(entry, step_of_name(entry.name))
        for entry in entries
        if entry.suffix.lower() in _SUFFIXES[layout] and not entry.is_dir()
    ]


def _source(path: Path, match: re.Match[str]) -> Source:
    return Source(path, int(match[1]) if len(match[1]) <= MAX_DIGITS else None)


def step_of_name(name: str) -> int | None:
    """Return the number after the word step in a file's name, or else its last number, or None."""
    stem = name.rsplit(".", 1)[0]
    found = _STEP.findall(stem) or _NUMBER.findall(stem)
    return int(found[-1]) if found and len(found[-1]) <= MAX_DIGITS else None


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Order names as people do: 9 before 10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part) if part.isascii() and part.isdigit() else -1, part) for part in parts], path.name
