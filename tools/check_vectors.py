"""Check specs/vectors with an independent implementation: `python -m tools.check_vectors [FOLDER]`.

It imports nothing of polstore (see `tools.checker`). Every file must have a format that it knows, every case must come
out as stated, and every refusal must be of the class that the case names. Prints a line per file; exits with 1 on any
fault.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

from tools.checker import (
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
from tools.checker.faults import MismatchError, RefusedError

FORMATS = {
    "archive_files": archive_files.check,
    "bundle": bundle.check,
    "canonical": canonical.check,
    "challenge": challenge.check,
    "codec": codec.check,
    "ledger": ledger.check,
    "lineage": lineage.check,
    "merkle": merkle.check,
    "run_records": run_records.check,
    "signed_root": signed_root.check,
    "state_digest": state_digest.check,
    "tiles": tiles.check,
    "time": time.check,
}
FOLDER = Path(__file__).resolve().parents[1] / "specs" / "vectors"


def check_case(name: str, case: dict[str, Any]) -> str | None:
    """Return what is wrong with one case, if anything."""
    try:
        FORMATS[name](case)
    except RefusedError as fault:
        if case["result"] == "valid":
            return f"must pass, but: {fault.name}: {fault}"
        return None if fault.name == case["error"] else f"must raise {case['error']}, but raises {fault.name}: {fault}"
    except MismatchError as mismatch:
        return str(mismatch)
    except Exception as error:  # noqa: BLE001 - a crash of the checker is a failed case, and the others still count
        return f"the checker crashed: {type(error).__name__}: {error}"
    return None if case["result"] == "valid" else f"must raise {case['error']}, but passes"


def check_file(path: Path) -> list[str]:
    """Return what is wrong with one file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    name = content["format"]
    if name not in FORMATS or path.stem != name:
        return [f"{path.name}: unknown format {name!r}"]
    if not content["cases"]:
        return [f"{path.name}: no cases"]
    found = [(case["id"], check_case(name, case)) for case in content["cases"]]
    return [f"{path.name}: {case}: {fault}" for case, fault in found if fault is not None]


def main() -> int:
    """Check all files of a folder."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    paths = sorted(folder.glob("*"))
    faults = 0
    for path in paths:
        wrong = check_file(path)
        faults += len(wrong)
        print(f"{path.name}: {'ok' if not wrong else f'{len(wrong)} faults'}")
        for line in wrong:
            print(f"  {line}")
    return 0 if paths and not faults else 1


if __name__ == "__main__":
    sys.exit(main())
