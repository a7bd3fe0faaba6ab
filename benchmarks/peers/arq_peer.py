"""arq.

Default: 10 jobs at once, the queue read every 0.5 s, results kept for an hour. Best: orjson,
uvloop, 100 at once, read every 10 ms and 1,000 ids at once, nothing kept. Done: the queue, which
a job leaves when it has ended.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import orjson
import uvloop
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings

from benchmarks.peers import handlers
from benchmarks.peers.peer import BIN, Peer
from benchmarks.peers.setting import setting

ADDRESS = RedisSettings.from_dsn(setting().url)
QUIET = {"version": 1, "disable_existing_loggers": False}
if setting().best:
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.set_event_loop(asyncio.new_event_loop())


async def noop(_: dict[Any, Any], to: str, subject: str, body: str) -> None: ...


async def burn(_: dict[Any, Any], to: str, subject: str, body: str) -> None:
    handlers.burn(to, subject, body)


async def pickup(_: dict[Any, Any], sent: float) -> None:
    handlers.note(sent)


class WorkerSettings:
    """What `arq` reads."""

    functions = (noop, burn, pickup)
    redis_settings = ADDRESS
    if setting().best:
        job_serializer = orjson.dumps
        job_deserializer = orjson.loads
        keep_result = 0
        max_jobs = 100
        poll_delay = 0.01
        queue_read_limit = 1000


class Arq(Peer):
    """Enqueues in single calls only."""

    pool: ArqRedis

    async def open(self) -> None:
        json = {"job_serializer": orjson.dumps, "job_deserializer": orjson.loads}
        self.pool = await create_pool(ADDRESS, **(json if self.setting.best else {}))

    async def close(self) -> None:
        await self.pool.aclose()

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> Awaitable[object]:
        called: Awaitable[object] = self.pool.enqueue_job(kind, **arguments)
        return called

    async def left(self) -> int:
        return int(self.wire.ask("ZCARD", "arq:queue"))

    def workers(self, processes: int) -> list[list[str]]:
        command = [str(BIN / "arq"), "benchmarks.peers.arq_peer.WorkerSettings"]
        return [[*command, "--custom-log-dict", "benchmarks.peers.arq_peer.QUIET"]] * processes


PEER = Arq
