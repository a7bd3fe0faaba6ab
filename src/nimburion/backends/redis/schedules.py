"""`RedisScheduling`: store schedules and fire their ticks."""

from __future__ import annotations

from nimburion.backends.redis import operations
from nimburion.backends.redis.encoding import encode_lookup_text
from nimburion.backends.redis.server import RedisServer
from nimburion.core.backend import Scheduling
from nimburion.core.job import NewJob
from nimburion.core.schedules import Fired, Overlap, ScheduleRecord


class RedisScheduling(Scheduling):
    """The operations of `Scheduling` for the Redis backend."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def put_schedule(self, schedule: ScheduleRecord) -> None:
        await self._server.run_script("put_schedule", *operations.encode_schedule(schedule))

    async def list_schedules(self) -> list[ScheduleRecord]:
        return operations.decode_schedules(await self._server.run_script("list_schedules"))

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        flag = b"1" if paused else b"0"
        return bool(await self._server.run_script("pause_schedule", encode_lookup_text(name), flag))

    async def delete_schedule(self, name: str) -> bool:
        return bool(await self._server.run_script("delete_schedule", encode_lookup_text(name)))

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        arguments = operations.encode_fire(name, (expected_last, tick), job, overlap)
        reply = await self._server.run_enqueue_script(
            self._server.get_connections(), "fire", arguments
        )
        return operations.decode_fired(reply)
