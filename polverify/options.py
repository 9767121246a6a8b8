"""Options and arguments that several commands of `polverify` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "Key", "SignedRoot"]

SignedRoot = Annotated[Path, typer.Argument(metavar="SIGNED_ROOT", help="Signed root, as polstore commit wrote it.")]
Key = Annotated[Path, typer.Option(metavar="KEY.pub", help="Verifier keys of the signer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
