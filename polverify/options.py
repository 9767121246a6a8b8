"""Options and arguments that several commands of `polverify` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "SignedRoot"]

SignedRoot = Annotated[Path, typer.Argument(metavar="SIGNED_ROOT", help="Signed root, as polstore commit wrote it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
