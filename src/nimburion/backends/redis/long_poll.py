"""Long polling: an idle worker's exchange waits inside the server for a job.

A blocking read of the handle's own stream precedes the script in the same request. When a wake-up
ends the read, the server runs the script at once, so wake-up and job need one round trip. Each read
starts after the last stream entry seen on this connection. A wake-up between two exchanges
therefore ends the next read at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from nimburion.backends.redis.connection.command_connection import CommandConnection, CommandPart
from nimburion.backends.waiters import LastWait
from nimburion.core.errors import BackendError

_NO_ENTRY = b"0-0"
_LIFETIME = 60
"""Seconds after which the stream is deleted. `idle_workers.lua` uses the same number."""

Command = tuple[CommandPart, ...]


class StreamLongPoll:
    """The last entry of its stream that the exchanges of one handle have seen. Belongs to one event
    loop.
    """

    def __init__(
        self,
        stream: bytes,
        last_wait: LastWait,
        exchanges: CommandConnection,
        commands: CommandConnection,
    ) -> None:
        self._stream = stream
        self.last_wait: LastWait = last_wait
        """How the last call of `wait` or the last long poll of the handle ended."""
        self._exchanges = exchanges
        self._commands = commands
        self._connection_count = 0
        self._last_entry: bytes | None = None
        self._is_blocked = False
        self._interrupt_tasks: set[asyncio.Task[None]] = set()

    def make_preceding_commands(self, seconds: float) -> list[Command]:
        """Return the commands that precede an exchange. They wait up to `seconds` seconds (0: no
        wait) for a wake-up. On a new connection they read the last entry of the stream instead.
        """
        if self._connection_count != self._exchanges.connection_count or self._last_entry is None:
            return [("XREVRANGE", self._stream, "+", "-", "COUNT", 1)]
        if seconds <= 0:
            return []
        self._is_blocked = True
        block = max(1, round(seconds * 1000))
        return [("XREAD", "BLOCK", block, "STREAMS", self._stream, self._last_entry)]

    def note_replies(self, commands: Sequence[Command], replies: Sequence[Any]) -> None:
        """Record the replies to the commands of `make_preceding_commands`."""
        self._connection_count = self._exchanges.connection_count
        for command, reply in zip(commands, replies, strict=True):
            if command[0] == "XREVRANGE":
                self._last_entry = reply[0][0] if reply else _NO_ENTRY
                continue
            for _, entries in reply or ():
                self._last_entry = entries[-1][0]
                queue, passed = entries[-1][1]
                self.last_wait.note_end(() if passed or not queue else (queue.decode(),))
            if not reply:
                self.last_wait.note_end()

    def end_wait(self) -> None:
        """Record that the exchange has ended and no read blocks."""
        self._is_blocked = False

    def interrupt_long_poll(self) -> None:
        """End this handle's long poll by an entry of its stream."""
        if self._is_blocked:
            command = ("XADD", self._stream, "MAXLEN", 1, "*", "", "")
            task = asyncio.get_running_loop().create_task(self._send(command))
            self._interrupt_tasks.add(task)
            task.add_done_callback(self._interrupt_tasks.discard)

    async def close(self) -> None:
        """Cancel the notifications that are being sent."""
        tasks = [*self._interrupt_tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, command: Command) -> None:
        with suppress(BackendError):
            await self._commands.execute(*command)
            await self._commands.execute("EXPIRE", self._stream, _LIFETIME)
