"""The challenge: which segments the verifier wants, the nonce that drew some of them, and why he wants the others.

Drawn after the root is signed, from a nonce that the prover could not know. Implements specs/challenge.md. Makes no
randomness itself, knows no segment records (what they make a verifier choose is `polverify.challenge`) and answers
nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from polstore.errors import ChallengeError, MalformedError, UsageError
from polstore.wire import canonical
from polstore.wire.checkpoint import MAX_ORIGIN
from polstore.wire.fields import MAX_INDEX, Fields

if TYPE_CHECKING:
    from collections.abc import Iterable

    from polstore.wire.canonical import Value
    from polstore.wire.note import Signature

__all__ = ["FRESH", "NONCE_SIZE", "ROOT", "WITNESS", "Challenge", "Rules", "nonce_from_cosignature", "nonce_from_root"]

NONCE_SIZE = 32  # bytes
MAX_SEGMENTS = 1_000_000  # of one challenge
MAX_BYTES = 16 * 2**20
MAX_TOP = 65_536  # updates of one epoch under one distance
FRESH, WITNESS, ROOT = "fresh", "witness", "root"  # where a nonce comes from
_NONCE_TAG = "polstore/challenge-nonce/v1"


@dataclass(frozen=True)
class Rules:
    """What chose segments from the segment records, besides the first and the last one.

    Attributes:
        top: so many largest updates of every epoch under each distance (the paper's Q).
        epoch_steps: steps of an epoch; 0 takes the whole run for one.
        odd: at most so many segments whose norms stand out.
    """

    top: int = 0
    epoch_steps: int = 0
    odd: int = 0


@dataclass(frozen=True)
class Challenge:
    """Segments of one run that its prover has to open.

    Attributes:
        origin: origin of the signed root that is challenged.
        size: leaves under it.
        root: that root.
        source: where the nonce comes from: `FRESH`, `WITNESS` or `ROOT`.
        nonce: 32 bytes.
        rules: what chose ``named`` from the segment records.
        named: the first segment, the last one, and what the rules choose; ascending.
        picked: further ones of the verifier's own choice, none of them in ``named``; ascending.
        random: how many of all others the nonce drew.
        segments: all of these together, ascending.
    """

    origin: str
    size: int
    root: bytes
    source: str
    nonce: bytes
    rules: Rules
    named: tuple[int, ...]
    picked: tuple[int, ...]
    random: int
    segments: tuple[int, ...]

    TAG = "polstore/challenge/v1"

    @property
    def population(self) -> int:
        """Segments among which the nonce draws: all that are not fixed otherwise."""
        return self.size - 1 - len(self.named) - len(self.picked)

    @classmethod
    def draw(
        cls,
        origin: str,
        size: int,
        root: bytes,
        *,
        random: int,
        nonce: bytes,
        source: str = FRESH,
        rules: Rules | None = None,
        named: Iterable[int] = (),
        picked: Iterable[int] = (),
    ) -> Challenge:
        """Draw segments of the run under ``root``, besides those that are wanted in any case.

        Args:
            origin: origin of the signed root.
            size: leaves under it; the run has ``size - 1`` segments.
            root: the root, 32 bytes.
            random: how many segments the nonce draws; more than are left means all of them.
            nonce: 32 bytes that the prover could not know when the root was signed.
            source: where it comes from.
            rules: what chose ``named``; None for no rules.
            named: segments that the rules choose. The first and the last one are added.
            picked: further segments of the verifier's choice.

        Raises:
            UsageError: the numbers do not go together, or the run has no segment.
        """
        count = size - 1
        if count < 1:
            raise UsageError("the signed root covers no segment yet", expected="at least 2 leaves", got=size)
        if random < 0:
            raise UsageError("number of random segments", expected="0 or more", got=random)
        if len(nonce) != NONCE_SIZE:
            raise UsageError("nonce", expected=f"{NONCE_SIZE} bytes", got=f"{len(nonce)} bytes")
        if source not in (FRESH, WITNESS, ROOT):
            raise UsageError("source of the nonce", expected=f"{FRESH}, {WITNESS} or {ROOT}", got=source)
        if source == ROOT and nonce != nonce_from_root(origin, size, root):
            raise UsageError("nonce from the root", expected=nonce_from_root(origin, size, root), got=nonce)
        fixed = {0, count - 1} | set(named)
        own = set(picked) - fixed
        outside = [index for index in fixed | own if not 0 <= index < count]
        if outside:
            raise UsageError("segment to open", expected=f"0 to {count - 1}", got=outside[0])
        random = min(random, count - len(fixed) - len(own))
        total = len(fixed) + len(own) + random
        if total > MAX_SEGMENTS:
            raise UsageError("number of segments", expected=f"at most {MAX_SEGMENTS}", got=total)
        segments = _drawn(nonce, root, count, fixed | own, total)
        return cls(
            origin,
            size,
            root,
            source,
            nonce,
            Rules() if rules is None else rules,
            tuple(sorted(fixed)),
            tuple(sorted(own)),
            random,
            segments,
        )

    def encode(self) -> bytes:
        """Return the challenge file's bytes."""
        rules = (self.rules.top, self.rules.epoch_steps, self.rules.odd)
        head = (self.TAG, self.origin, self.size, self.root, self.source, self.nonce)
        return canonical.encode((*head, *rules, self.named, self.picked, self.random, self.segments))

    @classmethod
    def parse(cls, data: bytes) -> Challenge:
        """Parse a challenge file and draw it again; raises `MalformedError` if that gives other segments."""
        fields = Fields(canonical.decode(data, limit=MAX_BYTES, what="challenge"), "challenge", 13)
        fields.tag(cls.TAG)
        origin, size = fields.text("origin", MAX_ORIGIN), fields.integer("size", 2)
        root, source, nonce = fields.digest("root"), fields.text("source", 16), fields.digest("nonce")
        top, epoch_steps = fields.integer("top", 0, MAX_TOP), fields.integer("epoch_steps", 0, MAX_INDEX)
        rules = Rules(top, epoch_steps, fields.integer("odd", 0, MAX_SEGMENTS))
        if rules.epoch_steps and not rules.top:
            raise MalformedError("challenge, field epoch_steps", expected="0 where top is 0", got=rules.epoch_steps)
        named, picked = _indices(fields, "named", size - 2), _indices(fields, "picked", size - 2)
        if set(named) - {0, size - 2} and not (rules.top or rules.odd):
            raise MalformedError(
                "challenge, field named", expected="the first segment and the last without rules", got=named
            )
        random = fields.integer("random", 0, MAX_SEGMENTS)
        listed = fields.array("segments", MAX_SEGMENTS)
        if len(named) + len(picked) + random != len(listed):
            raise MalformedError(
                "number of segments of the challenge", expected=len(named) + len(picked) + random, got=len(listed)
            )
        try:
            drawn = cls.draw(
                *(origin, size, root),
                random=random,
                nonce=nonce,
                source=source,
                rules=rules,
                named=named,
                picked=picked,
            )
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


def nonce_from_root(origin: str, size: int, root: bytes) -> bytes:
    """Return the nonce that a signed root gives by itself. Weak: a prover can try roots until it suits him."""
    return _hashed((_NONCE_TAG, ROOT, origin, size, root))


def nonce_from_cosignature(origin: str, size: int, root: bytes, signature: Signature) -> bytes:
    """Return the nonce that a witness's cosignature of a signed root gives; the signature is to be checked before."""
    line = (signature.name, signature.key_id, signature.blob)
    return _hashed((_NONCE_TAG, WITNESS, origin, size, root, *line))


def _hashed(value: Value) -> bytes:
    return hashlib.sha256(canonical.encode(value)).digest()


def _drawn(nonce: bytes, root: bytes, count: int, fixed: set[int], total: int) -> tuple[int, ...]:
    """Return ``fixed`` and as many others of ``count`` segments as make ``total``."""
    if total == count:  # what drawing comes to when all are wanted, whatever the nonce
        return tuple(range(count))
    chosen = set(fixed)
    counter = 0
    while len(chosen) < total:
        chosen.add(_uniform(nonce, root, counter, count))
        counter += 1
    return tuple(sorted(chosen))


def _uniform(nonce: bytes, root: bytes, counter: int, bound: int) -> int:
    """Return a number below ``bound`` from hash block ``counter``; 128 bits make the bias below 2**-80."""
    block = _hashed(("polstore/challenge/v1", nonce, root, counter))
    return int.from_bytes(block[:16], "big") % bound


def _indices(fields: Fields, name: str, maximum: int) -> tuple[int, ...]:
    """Read a strictly ascending array of segments."""
    values = fields.array(name, MAX_SEGMENTS)
    each = Fields(values, f"challenge, field {name}", len(values))
    indices = tuple(each.integer("segment", 0, maximum) for _ in values)
    if any(left >= right for left, right in pairwise(indices)):
        raise MalformedError(f"challenge, field {name}", expected="strictly ascending segments", got=indices)
    return indices
