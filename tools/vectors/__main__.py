"""Write specs/vectors/*.json, or with --check say which of them are not what would be written."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tools.vectors import (
    archive_files,
    bundle,
    canonical,
    challenge,
    codec,
    ledger,
    lineage,
    merkle,
    run_records,
    signed_root,
    state_digest,
    tiles,
    time,
)

if TYPE_CHECKING:
    from tools.vectors.cases import File

MODULES = {  # file name in specs/vectors, without .json: the module that makes it
    "archive_files": archive_files,
    "bundle": bundle,
    "canonical": canonical,
    "challenge": challenge,
    "codec": codec,
    "ledger": ledger,
    "lineage": lineage,
    "merkle": merkle,
    "run_records": run_records,
    "signed_root": signed_root,
    "state_digest": state_digest,
    "tiles": tiles,
    "time": time,
}
FOLDER = Path(__file__).resolve().parents[2] / "specs" / "vectors"


def encoded(content: File) -> str:
    """Return the text of a vector file."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def main() -> int:
    """Write or check all files; 1 if one differs or nothing makes it."""
    parser = argparse.ArgumentParser(prog="python -m tools.vectors", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not up to date")
    check = parser.parse_args().check
    FOLDER.mkdir(parents=True, exist_ok=True)
    wrong = [path.name for path in sorted(FOLDER.glob("*.json")) if path.stem not in MODULES]
    for name, module in MODULES.items():
        path, text = FOLDER / f"{name}.json", encoded(module.vectors())
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            wrong.append(path.name)
    for file_name in wrong:
        print(f"{file_name}: not what `python -m tools.vectors` makes")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
