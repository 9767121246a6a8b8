"""The demonstration behind `make demo`: train, commit, prove, verify elsewhere, and see a forgery rejected.

Runs the same commands that a user would type, shows each of them, and leaves everything in build/demo.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "build" / "demo"
PROGRAMS = Path(sys.executable).parent  # where this environment's polstore and polverify are
STEPS = 420  # not a multiple of 50: the last segment is a short one


def main() -> int:
    """Run the demonstration; returns its exit code."""
    began = time.monotonic()
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir(parents=True)
    say("The trainer makes a key, trains a small CNN on real images, and records it: a snapshot every 50 steps.")
    run(DEMO, f"cp {shlex.quote(str(ROOT / 'examples' / 'digits.py'))} recipe.py")
    run(DEMO, "polstore keygen --name demo.example/alice --out key")
    run(DEMO, f"polstore record recipe.py --store store --run digits --every 50 --steps {STEPS}")
    say("The trainer signs the root of the run's Merkle tree. This short text is all that is published.")
    run(DEMO, "polstore commit --store store --run digits --key key --out signed-root")
    run(DEMO, "cat signed-root")
    say("Somebody doubts it. An arbiter who has the signed root and the public key draws segments with a fresh nonce.")
    run(DEMO, "polverify challenge signed-root --key key.pub --segments 4 --out challenge")
    say("The trainer opens just these segments.")
    run(DEMO, "polstore prove --store store --run digits --challenge challenge --out bundle")
    say("The arbiter gets the bundle, has read the recipe, and replays the segments in his own folder and process.")
    run(DEMO, "mkdir verifier && cp signed-root key.pub challenge bundle recipe.py verifier")
    check = "polverify check signed-root --key key.pub --challenge challenge --recipe recipe.py"
    run(DEMO / "verifier", f"{check} --bundle bundle")
    say("One byte of the bundle is flipped.")
    size = flip_a_byte(DEMO / "verifier" / "bundle", DEMO / "verifier" / "bundle-flipped")
    run(DEMO / "verifier", f"{check} --bundle bundle-flipped", expected=1)
    kept = sum(file.stat().st_size for file in (DEMO / "store").iterdir())
    say(
        f"The run was accepted and the forgery rejected, in {time.monotonic() - began:.0f} s. The store takes "
        f"{kept / 1e6:.1f} MB, the bundle {size / 1e6:.1f} MB. To repeat any of these commands:"
    )
    print(f'\n    export PATH="{PROGRAMS}:$PATH" && cd {DEMO.relative_to(ROOT)}\n', flush=True)
    return 0


def say(text: str) -> None:
    """Tell the reader what happens next."""
    print(f"\n# {text}", flush=True)


def run(folder: Path, command: str, expected: int = 0) -> None:
    """Show a command and run it; another exit code than ``expected`` ends the demonstration with that failure."""
    where = "" if folder == DEMO else f"({folder.relative_to(DEMO)}) "
    print(f"{where}$ {command}", flush=True)
    environment = {"PATH": f"{PROGRAMS}:/usr/local/bin:/usr/bin:/bin", "HOME": str(folder)}
    code = subprocess.run(command, shell=True, cwd=folder, env=environment, check=False).returncode  # noqa: S602 # ours
    if code != expected:
        sys.exit(f"the demonstration failed: exit code {code} instead of {expected}")


def flip_a_byte(source: Path, target: Path) -> int:
    """Copy a file with one bit in the middle of it changed; returns its size in bytes."""
    data = bytearray(source.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)
    return len(data)


if __name__ == "__main__":
    sys.exit(main())
