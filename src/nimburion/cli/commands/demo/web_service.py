"""A web service that fails in predictable ways; the jobs of the demo call it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random

from nimburion.cli.commands.demo.jobs import LOOPBACK

GONE_PATH = "/partners/closed-shop"
MAX_FAILURES = 3


class WebService:
    """A web service that returns 200, but 503 to the first requests of some paths, and 410 for
    one path until it is repaired."""

    def __init__(self, seed: int) -> None:
        self.port: int = 0
        self.repaired: bool = False
        self._seed = seed
        self._failures_left: dict[str, int] = {}

    @contextmanager
    def serve(self) -> Iterator[None]:
        """Listen on a free local port, on threads, until the block exits."""
        server = ThreadingHTTPServer((LOOPBACK, 0), _make_handler(self))
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, path: str) -> HTTPStatus:
        """Return the status code of one request."""
        if path == GONE_PATH:
            return HTTPStatus.OK if self.repaired else HTTPStatus.GONE
        left = self._failures_left.setdefault(path, self._choose_failures(path))
        self._failures_left[path] = max(0, left - 1)
        return HTTPStatus.SERVICE_UNAVAILABLE if left else HTTPStatus.OK

    def _choose_failures(self, path: str) -> int:
        """Return how many first requests of a path fail. The seed decides, independent of the
        request order."""
        random = Random(f"{self._seed} {path}")  # noqa: S311 (made-up faults)
        return random.choice((0, 0, 1, MAX_FAILURES))


def _make_handler(service: WebService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(service.answer(self.path))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (inherited)
            """Discard the log message: the screen of the demo shows the jobs."""

    return Handler
