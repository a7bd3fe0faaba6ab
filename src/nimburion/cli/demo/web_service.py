"""The web service that the demo's jobs call: it fails in known ways."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random

from nimburion.cli.demo.jobs import LOOPBACK

GONE_PATH = "/partners/closed-shop"
MAX_FAILURES = 3


class WebService:
    """Answers 200, or 503 to the first requests of some paths; 410 for one path until repaired."""

    def __init__(self, seed: int) -> None:
        self.port: int = 0
        self.repaired: bool = False
        self._seed = seed
        self._failures_left: dict[str, int] = {}

    @contextmanager
    def serve(self) -> Iterator[None]:
        """Listen on a free port of this machine, on threads, until the block is left."""
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
        """Return the status for one request."""
        if path == GONE_PATH:
            return HTTPStatus.OK if self.repaired else HTTPStatus.GONE
        left = self._failures_left.setdefault(path, self._choose_failures(path))
        self._failures_left[path] = max(0, left - 1)
        return HTTPStatus.SERVICE_UNAVAILABLE if left else HTTPStatus.OK

    def _choose_failures(self, path: str) -> int:
        """Return how often a path fails at first: by the seed, whatever the order of the calls."""
        random = Random(f"{self._seed} {path}")  # noqa: S311 (made-up faults)
        return random.choice((0, 0, 1, MAX_FAILURES))


def _make_handler(service: WebService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(service.answer(self.path))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (inherited)
            """Print nothing: the demo's screen shows what the jobs do."""

    return Handler
