"""PgQueuer, on asyncpg.

Default: 10 jobs taken at once. Best: uvloop, 500 at once. Done: its table, which completed jobs
leave.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

from benchmarks.payload import PAYLOAD
from benchmarks.peers import handlers
from benchmarks.peers.peer import Peer, at_work
from benchmarks.peers.setting import setting


class Pgqueuer(Peer):
    """Enqueues many with a list for each column, here of 1,000."""

    queries: Queries
    connection: Any

    async def open(self) -> None:
        self.connection = await asyncpg.connect(self.setting.url)
        self.queries = Queries(AsyncpgDriver(self.connection))
        await self.queries.install()

    async def close(self) -> None:
        await self.connection.close()

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> Awaitable[object]:
        called: Awaitable[object] = self.queries.enqueue(kind, json.dumps(arguments).encode(), 0)
        return called

    async def enqueue_many(self, kind: str, jobs: int) -> None:
        for start in range(0, jobs, 1000):
            many = min(1000, jobs - start)
            bodies = [json.dumps(PAYLOAD).encode() for _ in range(many)]
            await self.queries.enqueue([kind] * many, bodies, [0] * many)

    async def left(self) -> int:
        return self.postgres.number("SELECT count(*) FROM pgqueuer")

    def workers(self, processes: int) -> list[list[str]]:
        return [at_work("pgqueuer")] * processes


PEER = Pgqueuer


async def work() -> None:
    """Run jobs until killed."""
    queuer = PgQueuer(AsyncpgDriver(await asyncpg.connect(setting().url)))

    @queuer.entrypoint("noop")
    async def noop(job: Any) -> None:
        json.loads(job.payload)

    @queuer.entrypoint("burn")
    async def burn(job: Any) -> None:
        handlers.burn(**json.loads(job.payload))

    @queuer.entrypoint("pickup")
    async def pickup(job: Any) -> None:
        handlers.note(**json.loads(job.payload))

    best = {"batch_size": 500} if setting().best else {}
    await queuer.run(**best)
