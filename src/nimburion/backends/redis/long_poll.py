"""Long polling: an idle worker's exchange waits inside the server for a job.

A blocking read of the wake-up streams precedes the script in the same request. When a notification
ends the read, the server runs the script at once, so notification and job need one round trip. Each
read starts after the last stream entry seen on this connection. A notification between two
exchanges therefore ends the next read at once.
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
    """The last wake-up stream entries that the exchanges of one handle have seen. Belongs to one
    event loop.
    """

    def __init__(
        self, streams: Sequence[bytes], exchanges: CommandConnection, commands: CommandConnection
    ) -> None:
        self._streams = streams
        self._exchanges = exchanges
        self._commands = commands
        self._streams_by_queue: dict[str, bytes] = {}
        self._connection_count = 0
        self._last_entries: dict[CommandPart, bytes] = {}
        self._blocked_on: tuple[bytes, ...] = ()
        self._interrupt_task: asyncio.Task[None] | None = None

    def make_preceding_commands(self, queues: Collection[str], seconds: float) -> list[Command]:
        """Return the commands that precede an exchange. They wait up to `seconds` seconds (0: no
        wait) for a notification of one of these queues. On a new connection they read the last
        entry of each stream instead.
        """
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
        """Record the replies to the commands of `make_preceding_commands`."""
        self._connection_count = self._exchanges.connection_count
        for command, reply in zip(commands, replies, strict=True):
            if command[0] == "XREVRANGE":
                self._last_entries[command[1]] = reply[0][0] if reply else _NO_ENTRY
            else:
                for stream, entries in reply or ():
                    self._last_entries[stream] = entries[-1][0]

    def get_stream(self, queue: str) -> bytes:
        """Return the wake-up stream of a queue."""
        stream = self._streams_by_queue.get(queue)
        if stream is None:
            stream = self._streams[compute_stream_number(queue)]
            self._streams_by_queue[queue] = stream
        return stream

    def end_wait(self) -> None:
        """Record that the exchange has ended and no read blocks."""
        self._blocked_on = ()

    def interrupt_long_poll(self) -> None:
        """End this handle's long poll by a notification on its first stream. Other workers on that
        stream wake up and query once without a result.
        """
        if self._blocked_on:
            command = ("XADD", self._blocked_on[0], "MAXLEN", 1, "*", "", "")
            self._interrupt_task = asyncio.get_running_loop().create_task(self._notify(command))

    async def close(self) -> None:
        """Cancel a notification that is being sent."""
        task, self._interrupt_task = self._interrupt_task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _notify(self, command: Command) -> None:
        with suppress(BackendError):
            await self._commands.execute(*command)


def compute_stream_number(queue: str) -> int:
    """Return the number of the wake-up stream of a queue; `notify.lua` uses the same formula."""
    return sum(queue.encode()) % WAKEUP_STREAMS
