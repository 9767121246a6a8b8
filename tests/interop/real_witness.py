"""A real witness on loopback: aics-witness from PyPI, unpacked by `make test` into .venv/witness."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from polstore.wire.keys import VerifierKey

if TYPE_CHECKING:
    from collections.abc import Iterator

UNPACKED = Path(os.environ.get("POLSTORE_TEST_WITNESS", Path(sys.prefix) / "witness"))
NAME = "witness.example/w1"
MISSING = f"aics-witness is not unpacked in {UNPACKED}; make test does it"


def is_there() -> bool:
    return (UNPACKED / "aics_witness").is_dir()


@contextmanager
def witness(folder: Path, origin: str, log: VerifierKey) -> Iterator[tuple[str, VerifierKey]]:
    """Run a witness that knows one log; yields its submission prefix and its cosignature key."""
    environment = os.environ | {"PYTHONPATH": str(UNPACKED), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "aics_witness"]

    def run(*words: str) -> str:
        done = subprocess.run(
            [*command, *words], cwd=folder, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout

    key = VerifierKey.parse(run("init", "--name", NAME).strip())
    run("add-log", "--origin", origin, "--vkey", log.line())
    with (folder / "witness.log").open("w+") as output:
        server = subprocess.Popen(
            [*command, "serve", "--listen", "127.0.0.1:0"], cwd=folder, env=environment, stdout=output, stderr=output
        )
        try:
            yield _address(server, folder / "witness.log"), key
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the witness listens, and return where; its socket is open by then."""
    while server.poll() is None:
        found = re.search(r"listening on (http://127\.0\.0\.1:[0-9]+)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"the witness ended with {server.returncode}: {log.read_text()}")
