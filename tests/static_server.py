"""A web server on loopback for static archives, which a test can make misbehave in one place."""

from __future__ import annotations

import http.server
import socket
import threading
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files; ``hook`` may answer in its place, and then returns True."""

    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.asked.append(self.path)
        with suppress(OSError):  # the client hangs up on what it does not like
            if self.server.hook is None or not self.server.hook(self):
                super().do_GET()

    def answer(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> bool:
        """Send an answer, with another length than the body's if one is given."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        if length is not None and length != len(body):
            self.hang_up()
        return True

    def file(self) -> bytes:
        """Return what an honest server would send."""
        with open(self.translate_path(self.path), "rb") as file:  # noqa: PTH123
            return file.read()

    def hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """The server; ``asked`` lists the paths that were asked for."""

    daemon_threads = True
    hook: Callable[[Handler], bool] | None = None

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(directory)))
        self.asked: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        pass


@contextmanager
def serving(directory: Path, hook: Callable[[Handler], bool] | None = None) -> Iterator[Server]:
    """Serve a directory for the length of the block."""
    with Server(directory) as server:
        server.hook = hook
        thread = threading.Thread(target=partial(server.serve_forever, 0.01))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
