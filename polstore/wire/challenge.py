"""The challenge: which segments the verifier wants, and the nonce that chose them.

Drawn after the root is signed, from a nonce that the prover could not know. Implements specs/challenge.md. Draws no
randomness itself and answers nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from polstore.errors import ChallengeError, MalformedError, UsageError
from polstore.wire import canonical
from polstore.wire.checkpoint import MAX_ORIGIN
from polstore.wire.fields import Fields

__all__ = ["Challenge"]

NONCE_SIZE = 32  # bytes
MAX_SEGMENTS = 1_000_000  # of one challenge
MAX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Challenge:
    """Segments drawn from a run.

    Attributes:
        origin: origin of the signed root that is challenged.
        size: leaves under it.
        root: that root.
        nonce: 32 fresh bytes of the verifier's.
        random: how many of the segments the nonce chose; the others are the first and the last one. 0 if all segments
            of the run are wanted, since nothing was chosen then.
        segments: their indices, ascending.
    """

    origin: str
    size: int
    root: bytes
    nonce: bytes
    random: int
    segments: tuple[int, ...]

    TAG = "polstore/challenge/v1"

    @classmethod
    def draw(cls, origin: str, size: int, root: bytes, *, segments: int, random: int | None, nonce: bytes) -> Challenge:
        """Draw ``segments`` segments of the run under ``root``.

        Args:
            origin: origin of the signed root.
            size: leaves under it; the run has ``size - 1`` segments.
            root: the root, 32 bytes.
            segments: how many segments in all; more than there are means all of them.
            random: how many of them the nonce chooses. The rest is the first segment and the last one, in this order,
                so at most two. None: all but these two.
            nonce: 32 bytes that the prover could not know when the root was signed.

        Raises:
            UsageError: the numbers do not go together, or the run has no segment.
        """
        count = size - 1
        if count < 1:
            raise UsageError("the signed root covers no segment yet", expected="at least 2 leaves", got=size)
        if segments < 1 or segments > MAX_SEGMENTS:
            raise UsageError("number of segments", expected=f"1 to {MAX_SEGMENTS}", got=segments)
        if len(nonce) != NONCE_SIZE:
            raise UsageError("nonce", expected=f"{NONCE_SIZE} bytes", got=f"{len(nonce)} bytes")
        segments = min(segments, count)
        if random is None:
            random = max(segments - 2, 1) if segments < count else 0
        fixed = segments - random
        if segments == count:
            return cls(origin, size, root, nonce, 0, tuple(range(count)))
        if not 0 <= fixed <= 2:
            raise UsageError(
                "of the segments all but two at most are random", expected=f"{segments} - 2 or more", got=random
            )
        chosen = set((0, count - 1)[:fixed])
        counter = 0
        while len(chosen) < segments:
            chosen.add(_uniform(nonce, root, counter, count))
            counter += 1
        return cls(origin, size, root, nonce, random, tuple(sorted(chosen)))

    def encode(self) -> bytes:
        """Return the challenge file's bytes."""
        return canonical.encode((self.TAG, self.origin, self.size, self.root, self.nonce, self.random, self.segments))

    @classmethod
    def parse(cls, data: bytes) -> Challenge:
        """Parse a challenge file and draw it again; raises `MalformedError` if that gives other segments."""
        fields = Fields(canonical.decode(data, limit=MAX_BYTES, what="challenge"), "challenge", 7)
        fields.tag(cls.TAG)
        origin, size = fields.text("origin", MAX_ORIGIN), fields.integer("size", 2)
        root, nonce = fields.digest("root"), fields.digest("nonce")
        random = fields.integer("random", 0, MAX_SEGMENTS)
        listed = fields.array("segments", MAX_SEGMENTS)
        try:
            drawn = cls.draw(origin, size, root, segments=len(listed), random=random, nonce=nonce)
        except UsageError as error:
            raise MalformedError(f"challenge does not hold together: {error}") from error
        if drawn.encode() != data:  # not a comparison of values: to Python, true is 1
            raise MalformedError(
                "challenge lists other segments than its nonce draws",
                expected=(drawn.random, drawn.segments),
                got=(random, listed),
            )
        return drawn

    def require(self, origin: str, size: int, root: bytes) -> None:
        """Require that the challenge is for this root; raises `ChallengeError`."""
        if (self.origin, self.size, self.root) != (origin, size, root):
            raise ChallengeError(
                "challenge is for another root",
                expected=f"{origin} {size} {root.hex()}",
                got=f"{self.origin} {self.size} {self.root.hex()}",
            )


def _uniform(nonce: bytes, root: bytes, counter: int, bound: int) -> int:
    """Return a number below ``bound`` from hash block ``counter``; 128 bits make the bias below 2**-80."""
    block = hashlib.sha256(canonical.encode(("polstore/challenge/v1", nonce, root, counter))).digest()
    return int.from_bytes(block[:16], "big") % bound
