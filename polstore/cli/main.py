"""The command `polstore`: which commands there are. The work is done elsewhere; only `record` and `import` load torch.

Exit codes: 0 fine, 1 a proof at fault, 2 wrong usage, 4 the caller's side at fault, 130 interrupted.
"""

from __future__ import annotations

import typer

from polstore import terminal
from polstore.cli import archive, keys, log, publish, reading, time, writing

__all__ = ["app", "main"]

app = typer.Typer(
    name="polstore",
    help="Record a training run, commit to it, and prove segments of it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: boxes cut option names, and show switches as if they took a value
    add_completion=False,
)
for command in (keys.keygen, keys.pubkey, writing.record, writing.commit, writing.prove, writing.lineage):
    app.command()(command)
for name, function in (
    ("timestamp", time.timestamp),
    ("ls", reading.list_runs),
    ("show", reading.show),
    ("fsck", reading.fsck),
    ("export", reading.export),
    ("stats", archive.stats),
    ("gc", archive.gc),
    ("repack", archive.repack),
    ("copy", archive.copy),
    ("import", archive.import_snapshots),
    ("publish", publish.publish),
):
    app.command(name)(function)
app.add_typer(log.app, name="log")


def main() -> None:
    """Run the command line."""
    terminal.run(app)
