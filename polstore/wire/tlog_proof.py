"""Inclusion proof files: C2SP tlog-proof v1, one leaf's proof together with its signed root.

Everything that is needed to check a leaf offline, short of the leaf and the keys, in one small text file
(``.tlog-proof``). Implements the last section of specs/signed-root.md. Does no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polstore.errors import MalformedError
from polstore.wire import checkpoint, merkle, note
from polstore.wire.fields import DIGEST_SIZE
from polstore.wire.text import from_base64, from_decimal, to_base64

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.wire.keys import VerifierKey

__all__ = ["HEADER", "MAX_EXTRA", "MAX_FILE", "MAX_PROOF", "TlogProof"]

HEADER = "c2sp.org/tlog-proof@v1"
MAX_PROOF = 48  # hashes; the depth of the largest tree
MAX_EXTRA = 2**16  # bytes; as much as an entry of a tiled log
MAX_FILE = note.MAX_NOTE + 2 * MAX_EXTRA  # bytes


@dataclass(frozen=True)
class TlogProof:
    """One inclusion proof.

    Attributes:
        index: number of the leaf.
        proof: hashes of 32 bytes, the leaf's sibling first.
        signed_root: the checkpoint note, verbatim.
        extra: data of the application that nothing authenticates, at least 1 byte, or None.
    """

    index: int
    proof: tuple[bytes, ...]
    signed_root: bytes
    extra: bytes | None = None

    def encode(self) -> bytes:
        """Return the bytes of the file; raises `MalformedError` for what `parse` would refuse."""
        data = self._joined()
        if self.parse(data) != self:
            raise MalformedError("inclusion proof file cannot be written", expected="what is read back", got=self)
        return data

    def _joined(self) -> bytes:
        lines = [HEADER]
        if self.extra is not None:
            lines.append(f"extra {to_base64(self.extra)}")
        lines.append(f"index {self.index}")
        lines.extend(map(to_base64, self.proof))
        return "".join(f"{line}\n" for line in (*lines, "")).encode() + self.signed_root

    @classmethod
    def parse(cls, data: bytes) -> TlogProof:
        """Parse a file.

        Raises:
            MalformedError: not the format, a hash of another size than 32 bytes, too many of them, a note or checkpoint
                that is none, or not in canonical form.
        """
        if len(data) > MAX_FILE:
            raise MalformedError("inclusion proof file is too long", expected=f"at most {MAX_FILE}", got=len(data))
        head, _, signed_root = data.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError as error:
            raise MalformedError(f"inclusion proof file is not ASCII: {error}") from error
        if lines.pop(0) != HEADER:
            raise MalformedError("header of an inclusion proof file", expected=HEADER, got=data[: len(HEADER)])
        extra = None
        if lines and lines[0].startswith("extra "):
            extra = from_base64(lines.pop(0).removeprefix("extra "), "extra data")
            if not 1 <= len(extra) <= MAX_EXTRA:
                raise MalformedError("extra data", expected=f"1 to {MAX_EXTRA} bytes", got=f"{len(extra)} bytes")
        if not lines or not lines[0].startswith("index "):
            raise MalformedError("inclusion proof file", expected="a line index <n>", got=lines[:1])
        index = from_decimal(lines.pop(0).removeprefix("index "), "index", checkpoint.MAX_SIZE)
        if len(lines) > MAX_PROOF:
            raise MalformedError("hashes of an inclusion proof", expected=f"at most {MAX_PROOF}", got=len(lines))
        proof = tuple(from_base64(line, "hash of an inclusion proof") for line in lines)
        for item in proof:
            if len(item) != DIGEST_SIZE:
                raise MalformedError("hash of an inclusion proof", expected=f"{DIGEST_SIZE} bytes", got=item)
        checkpoint.parse_text(note.parse(signed_root).text)
        parsed = cls(index, proof, signed_root, extra)
        if parsed._joined() != data:
            raise MalformedError("inclusion proof file is not in canonical form")
        return parsed

    def verify(self, leaf: bytes, keys: Sequence[VerifierKey]) -> checkpoint.OpenedRoot:
        """Check signatures and inclusion of a leaf hash, and return the root it is under.

        Raises:
            MalformedError, SignatureError: as `polstore.wire.checkpoint.open_root`.
            MerkleError: the leaf is not number ``index`` under the root.
        """
        opened = checkpoint.open_root(self.signed_root, keys)
        merkle.verify_inclusion(leaf, self.index, opened.checkpoint.size, self.proof, opened.checkpoint.root)
        return opened
