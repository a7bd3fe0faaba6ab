"""`RedisScheduling`: fire the ticks of schedules."""

from __future__ import annotations

from nimburion.backends.redis import operations
from nimburion.backends.redis.server import RedisServer
from nimburion.core.backend import Scheduling
from nimburion.core.job import NewJob
from nimburion.core.schedules import Fired, Overlap


class RedisScheduling(Scheduling):
    """The operations of `Scheduling` for the Redis backend."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        arguments = operations.encode_fire(name, (expected_last, tick), job, overlap)
        reply = await self._server.run_enqueue_script(
            self._server.get_connections(), "fire", arguments
        )
        return operations.decode_fired(reply)
