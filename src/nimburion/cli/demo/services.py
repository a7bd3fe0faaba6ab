"""What the jobs talk to: a web service that fails now and then, and a server that keeps mail."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from random import Random

from nimburion.cli.demo.work import LOOPBACK

GONE_PATH = "/partners/closed-shop"
MOST_FAILURES = 3

_Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class WebService:
    """Answers 200, or 503 to the first requests of some paths; 410 for one path until repaired."""

    def __init__(self, seed: int) -> None:
        self.port = 0
        self.repaired = False
        self.answers: Counter[int] = Counter()
        self._seed = seed
        self._failures_left: dict[str, int] = {}

    def serve(self) -> AbstractAsyncContextManager[None]:
        """Listen on a free port of this machine until the block is left."""
        return _listening(self._answer, self)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status = self.status_for(head.split(b" ")[1].decode("ascii", errors="replace"))
        self.answers[status] += 1
        writer.write(b"HTTP/1.1 %d -\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)

    def status_for(self, path: str) -> int:
        """The answer to one request."""
        if path == GONE_PATH:
            return 200 if self.repaired else 410
        left = self._failures_left.setdefault(path, self._failures_of(path))
        self._failures_left[path] = max(0, left - 1)
        return 503 if left else 200

    def _failures_of(self, path: str) -> int:
        """How often a path fails at first: by the seed, whatever the order of the calls."""
        random = Random(f"{self._seed} {path}")  # noqa: S311 (made-up faults)
        return random.choice((0, 0, 1, MOST_FAILURES))


class MailServer:
    """Takes every message and keeps it in a folder: as much SMTP as `smtplib` speaks."""

    def __init__(self, folder: Path) -> None:
        self.port = 0
        self.received: int = 0
        self._folder = folder

    def serve(self) -> AbstractAsyncContextManager[None]:
        """Listen on a free port of this machine until the block is left."""
        return _listening(self._talk, self)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 demo\r\n")
        while line := await reader.readline():
            verb = line[:4].upper()
            if verb == b"DATA":
                writer.write(b"354 go on\r\n")
                self.keep(await reader.readuntil(b"\r\n.\r\n"))
            writer.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 OK\r\n")
            if verb == b"QUIT":
                return

    def keep(self, message: bytes) -> None:
        """Write one message to the folder."""
        self.received += 1
        path = self._folder / f"{self.received:03}.eml"
        path.write_bytes(message.removesuffix(b".\r\n"))


@asynccontextmanager
async def _listening(talk: _Talk, owner: WebService | MailServer) -> AsyncIterator[None]:
    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
            await writer.drain()
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # the worker at the other end was killed: that is what the demo is about
        finally:
            writer.close()

    server = await asyncio.start_server(guarded, LOOPBACK, 0)
    owner.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        server.close()
