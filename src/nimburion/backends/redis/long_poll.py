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

from nimburion.backends.redis.connection.command_connection import Line, Part
from nimburion.backends.redis.keys import RINGS
from nimburion.core.errors import BackendError

_NONE = b"0-0"

Command = tuple[Part, ...]


class Parking:
    """The rings that the exchanges of one handle have seen. Belongs to one event loop."""

    def __init__(self, rings: Sequence[bytes], exchanges: Line, asks: Line) -> None:
        self._rings = rings
        self._exchanges = exchanges
        self._asks = asks
        self._connection = 0
        self._seen: dict[Part, bytes] = {}
        self._waits_on: tuple[bytes, ...] = ()
        self._hurrying: asyncio.Task[None] | None = None

    def ahead(self, queues: Collection[str], patience: float) -> list[Command]:
        """What to ask ahead of an exchange: wait for a ring of one of these queues, for `patience`
        seconds (0: not at all); on a new connection, which rings there were."""
        if self._connection != self._exchanges.connections:
            self._seen.clear()
        streams = tuple({self.ring_of(queue): None for queue in queues})
        if any(stream not in self._seen for stream in streams):
            return [("XREVRANGE", stream, "+", "-", "COUNT", 1) for stream in streams]
        if patience <= 0 or not streams:
            return []
        self._waits_on = streams
        block = max(1, round(patience * 1000))
        seen = [self._seen[stream] for stream in streams]
        return [("XREAD", "BLOCK", block, "STREAMS", *streams, *seen)]

    def note(self, asked: Sequence[Command], answers: Sequence[Any]) -> None:
        """What came of `ahead`."""
        self._connection = self._exchanges.connections
        for command, answer in zip(asked, answers, strict=True):
            if command[0] == "XREVRANGE":
                self._seen[command[1]] = answer[0][0] if answer else _NONE
            else:
                for stream, entries in answer or ():
                    self._seen[stream] = entries[-1][0]

    def ring_of(self, queue: str) -> bytes:
        """The stream that rings for a queue."""
        return self._rings[ring_of(queue)]

    def leave(self) -> None:
        """The exchange is over: nobody waits."""
        self._waits_on = ()

    def hurry(self) -> None:
        """Ring for ourselves: the exchange that waits answers. Others look once for nothing."""
        if self._waits_on:
            ring = ("XADD", self._waits_on[0], "MAXLEN", 1, "*", "", "")
            self._hurrying = asyncio.get_running_loop().create_task(self._ring(ring))

    async def close(self) -> None:
        """Let a ring that is under way go."""
        task, self._hurrying = self._hurrying, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _ring(self, command: Command) -> None:
        with suppress(BackendError):
            await self._asks.call(*command)


def ring_of(queue: str) -> int:
    """The number of the stream that rings for a queue; `bell.lua` counts alike."""
    return sum(queue.encode()) % RINGS
