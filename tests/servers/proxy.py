"""A TCP proxy whose connections can be cut, held up, delayed, made slow, or reset after so many
bytes."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

Direction = Literal["requests", "replies"]

NO_LINGER = struct.pack("ii", 1, 0)
"""With this, closing a socket sends RST instead of FIN."""


class Proxy:
    """Stands before a server on a port of its own, in the loop of the test.

    `delay` (seconds) holds back each chunk, in both directions. `bytes_per_second` is the speed of
    each connection in a direction; None: as fast as it goes. All may be changed while connections
    are open.
    """

    def __init__(self, port: int, *, delay: float = 0.0) -> None:
        self.target = port
        self.delay = delay
        self.bytes_per_second: dict[Direction, float | None] = {"requests": None, "replies": None}
        self.port = 0
        self.connections = 0
        """How many were accepted so far."""
        self._server: asyncio.Server | None = None
        self._connections: set[ProxiedConnection] = set()
        self._ended: list[ProxiedConnection] = []
        """Their ends are closed, but may still wait to send what a client does not read."""
        self._limits: dict[Direction, int] = {}
        self._passable = asyncio.Event()
        self._passable.set()

    @property
    def url(self) -> str:
        """The way to the server through this proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Self:
        """Listen on a free port."""
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the port and every connection."""
        self.refuse()
        tasks = [connection.task for connection in self._connections]
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self._ended:
            connection.reset()
        await asyncio.sleep(0)  # the loop closes the sockets

    # --- what can go wrong ------------------------------------------------------------------------

    def cut(self) -> int:
        """Reset every open connection, at both ends; return how many."""
        connections = list(self._connections)
        for connection in connections:
            connection.reset()
            connection.task.cancel()
        return len(connections)

    def refuse(self) -> None:
        """Refuse new connections, until `accept`. Open ones stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Accept connections, again after `refuse`, on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._begin, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def hold_up(self) -> None:
        """Let nothing pass until `heal`, as a network that drops packets. Connecting works."""
        self._passable.clear()

    def heal(self) -> None:
        """Let pass again; what was held up arrives late, as TCP would send it again."""
        self._passable.set()

    def reset_after(self, count: int, of: Direction = "replies") -> None:
        """Let `count` more bytes in this direction pass, then reset their connection; once.

        With 0 of the replies, the next request is carried out and its reply is lost; with 0 of the
        requests, it never arrives.
        """
        self._limits[of] = count

    # --- steps ------------------------------------------------------------------------------------

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection in a task of ours: of its own, asyncio cannot bear that it is
        cancelled."""
        connection = ProxiedConnection(writer)
        self.connections += 1
        connection.task = asyncio.create_task(self._serve(connection, reader, writer))
        self._connections.add(connection)

    async def _serve(
        self,
        connection: ProxiedConnection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Serve one connection to its end."""
        try:
            await self._passable.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            connection.ends.append(back)
            await connection.run_pumps(
                self._pump(connection, reader, back, "requests"),
                self._pump(connection, there, writer, "replies"),
            )
        except OSError:
            connection.reset()
        finally:
            connection.close()
            self._connections.discard(connection)
            self._ended.append(connection)

    async def _pump(
        self,
        connection: ProxiedConnection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: Direction,
    ) -> None:
        """Pass on what comes, until one side closes."""
        with suppress(OSError):
            while chunk := await reader.read(self._at_once(direction)):
                await connection.close_later(self.delay + self._get_delay(chunk, direction))
                await self._passable.wait()
                passed, is_last = self._pass(chunk, direction)
                writer.write(passed)
                await writer.drain()
                if is_last:
                    connection.reset()
                    return

    def _at_once(self, direction: Direction) -> int:
        """The most bytes to read: on a slow connection, what passes in a twentieth of a second."""
        speed = self.bytes_per_second[direction]
        return 65_536 if speed is None else max(1, int(speed / 20))

    def _get_delay(self, chunk: bytes, direction: Direction) -> float:
        """How long a chunk takes to pass."""
        speed = self.bytes_per_second[direction]
        return 0.0 if speed is None else len(chunk) / speed

    def _pass(self, chunk: bytes, direction: Direction) -> tuple[bytes, bool]:
        """Return how much of a chunk may pass, and whether the connection is then reset."""
        limit = self._limits.get(direction)
        if limit is None:
            return chunk, False
        if len(chunk) < limit:
            self._limits[direction] = limit - len(chunk)
            return chunk, False
        del self._limits[direction]
        return chunk[:limit], True


class ProxiedConnection:
    """One connection through the proxy: its ends, and the task that serves it."""

    task: asyncio.Task[None]

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.ends = [writer]
        self._never = asyncio.Event()

    async def run_pumps(self, *pumps: Coroutine[object, None, None]) -> None:
        """Pump in both directions until one ends."""
        tasks = [asyncio.ensure_future(pump) for pump in pumps]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close_later(self, seconds: float) -> None:
        """Come back after so many seconds."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._never.wait(), seconds)

    def reset(self) -> None:
        """Let both ends see a reset."""
        for end in self.ends:
            own: socket.socket | None = end.get_extra_info("socket")
            if own is not None and own.fileno() >= 0:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            end.transport.abort()

    def close(self) -> None:
        """Close both ends, after what was written."""
        for end in self.ends:
            end.close()
