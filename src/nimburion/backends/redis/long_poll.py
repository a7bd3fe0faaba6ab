"""Exchanges that wait at the server for a job: the way in which an idle worker gets it soonest.

A blocking read of the streams that ring goes ahead of the script, in the same request. The server
runs the script the moment a ring ends the read, so job and ring need one trip together. Rings count
from those last seen on this connection; one between two exchanges ends the next read at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from nimburion.backends.redis.connection.command_connection import CommandConnection, CommandPart
from nimburion.backends.redis.keys import WAKEUP_STREAMS
from nimburion.core.errors import BackendError

_NO_ENTRY = b"0-0"

Command = tuple[CommandPart, ...]


class StreamLongPoll:
    """The rings that the exchanges of one handle have seen. Belongs to one event loop."""

    def __init__(
        self, streams: Sequence[bytes], exchanges: CommandConnection, commands: CommandConnection
    ) -> None:
        self._streams = streams
        self._exchanges = exchanges
        self._commands = commands
        self._connection_count = 0
        self._last_entries: dict[CommandPart, bytes] = {}
        self._blocked_on: tuple[bytes, ...] = ()
        self._interrupt_task: asyncio.Task[None] | None = None

    def commands_before(self, queues: Collection[str], seconds: float) -> list[Command]:
        """What to ask ahead of an exchange: wait for a ring of one of these queues, for `long poll`
        seconds (0: not at all); on a new connection, which rings there were."""
        if self._connection_count != self._exchanges.connection_count:
            self._last_entries.clear()
        streams = tuple({self.get_stream(queue): None for queue in queues})
        if any(stream not in self._last_entries for stream in streams):
            return [("XREVRANGE", stream, "+", "-", "COUNT", 1) for stream in streams]
        if seconds <= 0 or not streams:
            return []
        self._blocked_on = streams
        block = max(1, round(seconds * 1000))
        seen = [self._last_entries[stream] for stream in streams]
        return [("XREAD", "BLOCK", block, "STREAMS", *streams, *seen)]

    def note_replies(self, commands: Sequence[Command], replies: Sequence[Any]) -> None:
        """What came of `ahead`."""
        self._connection_count = self._exchanges.connection_count
        for command, answer in zip(commands, replies, strict=True):
            if command[0] == "XREVRANGE":
                self._last_entries[command[1]] = answer[0][0] if answer else _NO_ENTRY
            else:
                for stream, entries in answer or ():
                    self._last_entries[stream] = entries[-1][0]

    def get_stream(self, queue: str) -> bytes:
        """The stream that rings for a queue."""
        return self._streams[compute_stream_number(queue)]

    def end_wait(self) -> None:
        """The exchange is over: nobody waits."""
        self._blocked_on = ()

    def interrupt_long_poll(self) -> None:
        """Ring for ourselves: the exchange that waits answers. Others look once for nothing."""
        if self._blocked_on:
            ring = ("XADD", self._blocked_on[0], "MAXLEN", 1, "*", "", "")
            self._interrupt_task = asyncio.get_running_loop().create_task(self._notify(ring))

    async def close(self) -> None:
        """Let a ring that is under way go."""
        task, self._interrupt_task = self._interrupt_task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _notify(self, command: Command) -> None:
        with suppress(BackendError):
            await self._commands.execute(*command)


def compute_stream_number(queue: str) -> int:
    """The number of the stream that rings for a queue; `bell.lua` counts alike."""
    return sum(queue.encode()) % WAKEUP_STREAMS
