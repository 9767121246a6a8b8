"""One HTTP request: POST a few bytes, read a capped answer within a deadline.

Only http and https, and no redirects: a witness or authority is asked where the user said, nowhere else. Whatever
status comes back is the caller's to judge. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

from polstore.errors import ServiceError, UsageError

__all__ = ["TIMEOUT", "Answer", "post"]

TIMEOUT = 30.0  # seconds, for a connection and again for the whole answer; witnesses and authorities take one or two
CHUNK = 2**14  # bytes read at a time, so that the deadline is looked at now and then


@dataclass(frozen=True)
class Answer:
    """Status, content type and body of an answer."""

    status: int
    content_type: str
    body: bytes


def post(url: str, body: bytes, content_type: str, limit: int, timeout: float = TIMEOUT) -> Answer:
    """Send a POST request.

    Args:
        url: http or https.
        body: what to send.
        content_type: MIME type of it.
        limit: bytes that the answer's body may have.
        timeout: seconds.

    Raises:
        UsageError: another kind of address.
        ServiceError: nobody answers, the answer is none, too long, or takes too long.
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound or not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
        raise UsageError("address", expected="http://HOST/… or https://HOST/…", got=url)
    opener = urllib.request.OpenerDirector()  # the usual one would follow redirects, and open files
    for handler in (urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()):
        opener.add_handler(handler)
    headers = {"Content-Type": content_type, "User-Agent": "polstore"}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")  # noqa: S310 # checked above
    deadline = time.monotonic() + timeout
    try:
        with opener.open(request, timeout=timeout) as response:
            got = bytearray()
            while chunk := response.read1(min(CHUNK, limit + 1 - len(got))):
                got += chunk
                if len(got) > limit:
                    raise ServiceError(f"answer of {url}", expected=f"at most {limit} bytes", got="more")
                if time.monotonic() > deadline:
                    raise ServiceError(f"answer of {url}", expected=f"within {timeout:g} s", got="still coming")
            if response.length:  # bytes that its Content-Length promised
                raise ServiceError(f"answer of {url} is cut", expected=f"{response.length} more bytes", got="its end")
            return Answer(response.status, response.headers.get("Content-Type", ""), bytes(got))
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise ServiceError(f"no answer from {url}: {reason or type(error).__name__}") from error
