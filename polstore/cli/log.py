"""Commands on the ledger of a store: log head, log prove, log consistency, log export-tiles, log witness.

`polstore commit` is what makes the ledger grow; a witness only adds its signature to the head. What the others write
goes to `polverify log`, to `polverify check --ledger`, and to any client of C2SP tiles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polstore import terminal
from polstore.cli.options import AsJson, StorePath, choose_run
from polstore.cli.time import PolicyFile, WitnessKeys, cosign
from polstore.errors import MissingError, UsageError
from polstore.files import write_atomic
from polstore.ledger import Ledger
from polstore.publish import export_ledger
from polstore.reader import open_archive
from polstore.storage.store import open_store
from polstore.wire.checkpoint import parse_text
from polstore.wire.ledger import consistency_lines
from polstore.wire.note import parse as parse_note
from polstore.wire.text import to_base64

__all__ = ["app"]

app = typer.Typer(
    help="Show the ledger of a store, and prove what is in it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Size = Annotated[
    int | None, typer.Option(metavar="S", help="Leaves of the ledger at which to stand; the newest head if left out.")
]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="File to write; stdout if left out.")]


@app.command()
def head(store: StorePath, size: Size = None, out: Out = None, as_json: AsJson = False) -> None:
    """Show the ledger's signed head, a checkpoint note."""
    with open_archive(store) as archive:
        signed = archive.ledger.head(_positive("--size", size))
    checkpoint = parse_text(parse_note(signed).text)
    fields = {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root, "head": signed.decode()}
    _hand_out(signed, out, fields if as_json else None)


@app.command()
def prove(
    store: StorePath,
    index: Annotated[int | None, typer.Argument(metavar="[N]", help="Leaf of the ledger, counted from 0.")] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="NAME", help="Prove the newest signed root of this run instead.")
    ] = None,
    leaves: Annotated[
        int | None, typer.Option(metavar="L", help="With --run: the signed root over this many leaves instead.")
    ] = None,
    size: Size = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Prove that a signed root is in the ledger.

    Makes a .tlog-proof file, for polverify check --ledger.
    """
    if (index is None) == (run is None) or (leaves is not None and run is None):
        raise UsageError("what to prove", expected="N, or --run NAME and perhaps --leaves L", got="neither or both")
    _positive("--size", size)
    with open_archive(store) as archive:
        ledger = archive.ledger
        if run is not None:
            found = archive.run(choose_run(archive.runs(), run))
            root = parse_text(parse_note(found.signed_root(_positive("--leaves", leaves))).text)
            index = ledger.find(root.origin, root.size)
            if index is None:
                raise MissingError(f"the ledger does not have the signed root of {root.origin} over {root.size} leaves")
        if index is None or not 0 <= index < ledger.size:
            raise MissingError("no such leaf in the ledger", expected=f"0 to {ledger.size - 1}", got=index)
        proof = ledger.proof_file(index, size)
        leaf = ledger.leaf(index)
    data = proof.encode()
    fields = {
        "index": index,
        "leaf": {"origin": leaf.origin, "size": leaf.size, "root": leaf.root},
        "proof": [to_base64(item) for item in proof.proof],
        "head": proof.signed_root.decode(),
        "tlog_proof": data.decode(),
    }
    _hand_out(data, out, fields if as_json else None)


@app.command()
def consistency(
    store: StorePath,
    old: Annotated[int, typer.Argument(metavar="M", help="Leaves of the older ledger.")],
    new: Annotated[
        int | None, typer.Argument(metavar="[N]", help="Leaves of the newer one; the newest head's if left out.")
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Prove that the ledger has only grown.

    Its first M leaves are still the first of its N. One line of base64 for each hash, none for M = N. For polverify log
    --consistency.
    """
    with open_archive(store) as archive:
        ledger = archive.ledger
        new = ledger.size if new is None else new
        if not 1 <= old <= new:
            raise UsageError("sizes of the ledger", expected="1 <= M <= N", got=f"{old} and {new}")
        proof = ledger.consistency_proof(old, new)
    fields = {"old": old, "new": new, "proof": [to_base64(item) for item in proof]}
    _hand_out(consistency_lines(proof).encode(), out, fields if as_json else None)


@app.command("export-tiles")
def export_tiles(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the tiles; made if missing.")],
    store: StorePath,
    as_json: AsJson = False,
) -> None:
    """Write the ledger as C2SP tiles, for any web server.

    Again for what is new: full tiles are never touched, and the head is replaced last.
    """
    with open_archive(store) as archive:
        exported = export_ledger(archive.ledger, directory)
    if as_json:
        terminal.emit_json({"origin": exported.origin, "size": exported.size, "root": exported.root})
    terminal.note(f"exported {exported.size} leaves of {exported.origin} to {directory}")


@app.command()
def witness(
    url: Annotated[str, typer.Argument(metavar="URL", help="Submission prefix of the witness (C2SP tlog-witness).")],
    store: StorePath,
    policy: PolicyFile = None,
    witness_key: WitnessKeys = None,
    as_json: AsJson = False,
) -> None:
    """Have a witness cosign the ledger's head.

    Its cosignature is kept with the head. It gives one only to a head that extends all it has seen of this ledger.
    """
    with open_store(store) as opened:
        cosign(Ledger(opened), url, policy, witness_key, as_json=as_json)


def _positive(option: str, number: int | None) -> int | None:
    if number is not None and number < 1:
        raise UsageError(option, expected="1 or more", got=number)
    return number


def _hand_out(data: bytes, out: Path | None, fields: dict[str, object] | None) -> None:
    """Write to a file if there is one, and to stdout what is asked for as JSON, or what no file has."""
    if out is not None:
        write_atomic(out, data)
        terminal.note(f"wrote {out}")
    if fields is not None:
        terminal.emit_json(fields)
    elif out is None:
        for line in data.decode().split("\n")[:-1]:
            terminal.emit(line)
