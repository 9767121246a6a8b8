"""What a file claims, without believing any of it: signed roots, bundles, challenges, lineages and inclusion proofs.

Parses and prints; verifies nothing, executes nothing, and loads no torch.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from polstore.errors import ProofError
from polstore.files import file_error, read_file
from polstore.wire import canonical
from polstore.wire.bundle import MAGIC
from polstore.wire.challenge import MAX_BYTES as MAX_CHALLENGE
from polstore.wire.challenge import Challenge
from polstore.wire.checkpoint import parse_text
from polstore.wire.lineage import MAX_LINEAGE, Lineage
from polstore.wire.manifest import Manifest
from polstore.wire.note import parse as parse_note
from polstore.wire.segment import SegmentRecord
from polstore.wire.tlog_proof import HEADER, MAX_FILE, TlogProof
from polverify.bundle_file import BundleFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from polstore.wire.checkpoint import Checkpoint

__all__ = ["claims"]

LINEAGE = b"\x9b" + canonical.encode(Lineage.TAG)  # how such a file begins: an array of 11, and its tag


def claims(path: Path) -> dict[str, Any]:
    """Return what the file at ``path`` claims, as plain data.

    Raises:
        MissingError: no such file.
        CallerError: it cannot be read.
        MalformedError: it is none of these files.
    """
    if _starts_with(path, MAGIC):
        return _bundle(path)
    if _starts_with(path, LINEAGE):
        return _lineage(read_file(path, MAX_LINEAGE))
    if _starts_with(path, HEADER.encode()):
        return _inclusion_proof(read_file(path, MAX_FILE))
    data = read_file(path, MAX_CHALLENGE)
    is_array = b"\x90" <= data[:1] <= b"\x9f"  # as no text begins: in UTF-8 such a byte only continues
    reader: Callable[[bytes], dict[str, Any]] = _challenge if is_array else _signed_root
    try:
        return reader(data)
    except ProofError as error:
        known = "neither a signed root nor a bundle nor a challenge, lineage or inclusion proof"
        raise type(error)(f"{path} is {known}: {error}") from error


def _starts_with(path: Path, prefix: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(prefix)) == prefix
    except OSError as error:
        raise file_error(error, f"{path} cannot be read") from error


def _signed_root(data: bytes) -> dict[str, Any]:
    note = parse_note(data)
    checkpoint = parse_text(note.text)
    return {
        "kind": "signed root",
        "verified": False,
        "origin": checkpoint.origin,
        "leaves": checkpoint.size,
        "segments": max(checkpoint.size - 1, 0),
        "root": checkpoint.root,
        "signatures": [f"{signature.name}+{signature.key_id.hex()}" for signature in note.signatures],
    }


def _challenge(data: bytes) -> dict[str, Any]:
    challenge = Challenge.parse(data)
    return {
        "kind": "challenge",
        "origin": challenge.origin,
        "leaves": challenge.size,
        "root": challenge.root,
        "nonce": challenge.nonce,
        "nonce_from": challenge.source,
        "rules": asdict(challenge.rules),
        "named": challenge.named,
        "picked": challenge.picked,
        "random": challenge.random,
        "segments": challenge.segments,
    }


def _head(kind: str, head: Checkpoint) -> dict[str, Any]:
    return {"kind": kind, "verified": False, "origin": head.origin, "leaves": head.size, "root": head.root}


def _lineage(data: bytes) -> dict[str, Any]:
    lineage = Lineage.parse(data)
    parent = parse_text(parse_note(lineage.parent_root).text)
    child = parse_text(parse_note(lineage.child_root).text)
    return {
        **_head("lineage", child),
        "parent": {"origin": parent.origin, "leaves": parent.size, "root": parent.root.hex()},
        "tensors": len(lineage.entries),
        "inherited": len(lineage.inherited),
    }


def _inclusion_proof(data: bytes) -> dict[str, Any]:
    proof = TlogProof.parse(data)
    head = parse_text(parse_note(proof.signed_root).text)
    return {
        **_head("inclusion proof", head),
        "leaf": proof.index,
        "hashes": len(proof.proof),
    }


def _bundle(path: Path) -> dict[str, Any]:
    with BundleFile(path) as file:
        bundle = file.bundle
        manifest = Manifest.parse(bundle.leaves[0])
        opened = []
        for segment in bundle.opened:
            record = SegmentRecord.parse(bundle.leaves[segment.index + 1])
            opened.append({"segment": segment.index, "start_step": record.start_step, "end_step": record.end_step})
        return {
            "kind": "bundle",
            "verified": False,
            "bytes": file.size,
            "run": manifest.run,
            "root": bundle.root,
            "segments": bundle.size - 1,
            "opened": opened,
            "samples": len(bundle.samples.salts),
            "recipe": manifest.recipe.digest,
            "config": dict(manifest.recipe.config),
            "dataset": {"root": manifest.dataset.root, "size": manifest.dataset.size},
            "optimizer": manifest.optimizer.name,
            "fidelity": manifest.fidelity,
            "every": manifest.every,
            "environment": asdict(manifest.environment) | {"flags": dict(manifest.environment.flags)},
        }
