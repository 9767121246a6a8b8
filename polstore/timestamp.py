"""Getting a time-stamping token: ask an authority over HTTP, and take in what came back.

A response is kept only if it grants a token over the signed root's text for the request that was sent. Whether its
certificate is worth anything is the verifier's question, unless root certificates are given here too. Implements
specs/time.md, section "Time-stamping tokens"; the bytes are `polstore.wire.timestamp`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polstore.errors import ProofError, ServiceError
from polstore.http import post
from polstore.wire import note as notes
from polstore.wire import timestamp as wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.x509 import Certificate

    from polstore.wire.timestamp import Token

__all__ = ["ask", "take_in"]


def ask(url: str, note: bytes, roots: Sequence[Certificate] = ()) -> tuple[bytes, Token]:
    """Ask a time-stamping authority for a token over a note's text.

    Returns:
        The response (DER), and what it states.

    Raises:
        UsageError: not an http or https address.
        MalformedError: not a note.
        ServiceError: nobody answers, or not with a token for what was asked.
    """
    request = wire.new_request(note)
    answer = post(url, request, "application/timestamp-query", wire.MAX_RESPONSE)
    if answer.status != 200:
        raise ServiceError(f"time authority {url}: status", expected=200, got=answer.status)
    return answer.body, take_in(url, answer.body, note, request, roots)


def take_in(
    source: object, response: bytes, note: bytes, request: bytes | None, roots: Sequence[Certificate] = ()
) -> Token:
    """Check a response before it is kept.

    Args:
        source: where it came from, for messages.
        response: TimeStampResp, DER.
        note: the signed root.
        request: the request that was sent, for its nonce; None if it is gone.
        roots: root certificates to judge it under; none to leave that to verifiers.

    Raises:
        MalformedError: not a note.
        ServiceError: the response cannot be used.
    """
    text = notes.parse(note).text
    try:
        token = wire.read_response(response, note, request)
        return wire.verify(response, text, roots) if roots else token
    except ProofError as error:
        raise ServiceError(f"time authority {source}: {error}") from error
