"""`RedisScheduling`: fire the ticks of schedules."""

from __future__ import annotations

from nimburion.backends.redis.encoding import encode_lookup_text
from nimburion.backends.redis.enqueue import encode_batch
from nimburion.backends.redis.server import RedisServer
from nimburion.backends.server.encoding import decode_id
from nimburion.core.backend import Scheduling
from nimburion.core.job import NewJob
from nimburion.core.schedules import Fired, Overlap, encode_tick


class RedisScheduling(Scheduling):
    """The operations of `Scheduling` for the Redis backend."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        batch = encode_batch([job])
        arguments = [
            encode_lookup_text(name),
            b"" if expected_last is None else encode_tick(expected_last).encode(),
            encode_tick(tick).encode(),
            overlap.encode(),
            batch.positions,
            *batch.lanes,
            *batch.bodies,
            *batch.large_payloads,
        ]
        connections = self._server.get_connections()
        outcome, job_id = await self._server.run_enqueue_script(connections, "fire", arguments)
        return Fired(outcome.decode(), decode_id(job_id) if job_id else None)
