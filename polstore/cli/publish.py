"""Commands that make static files of a store: publish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polstore import terminal
from polstore.cli.options import AsJson, StorePath
from polstore.errors import MissingError
from polstore.publish import export_ledger
from polstore.publish import publish as publish_runs
from polstore.reader import open_archive

__all__ = ["publish"]


def publish(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the static archive; made if missing.")],
    store: StorePath,
    run: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run to publish; repeatable. All that have a signed root if left out."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write runs as static files that any web server can serve, and polverify check --bundle URL reads.

    The store's ledger goes along, as tiles. Publishing opens the salts of all samples that the runs used,
    and shows every snapshot: the weights as they were throughout. Publishing again writes what is new.
    """
    with open_archive(store) as archive, terminal.progress() as progress:
        names = archive.runs() if run is None else list(dict.fromkeys(run))
        unsigned = [name for name in names if archive.run(name).newest_signed_size is None] if run is None else []
        names = [name for name in names if name not in unsigned]
        if not names:
            raise MissingError("the store holds no run with a signed root; run polstore commit")
        done = publish_runs(archive, directory, names, progress)
        entries = archive.ledger.size  # none in a store that runs were only copied to
        if entries:
            entries = export_ledger(archive.ledger, directory).size
    if as_json:
        published = [each.as_json() for each in done]
        terminal.emit_json({"published": published, "unsigned": unsigned, "ledger": entries})
        return
    for each in done:
        terminal.note(
            f"run {each.run}: {each.segments} segments, {each.added} of them new; wrote {each.files} files of "
            f"{each.bytes} bytes, {each.size} bytes in all"
        )
    for name in unsigned:
        terminal.note(f"run {name} was left out: it has no signed root yet")
