"""Procrastinate.

Default: one job at once. Best: uvloop, 20 jobs at once over as many connections, completed jobs
deleted. Done: its table.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import procrastinate

from benchmarks.payload import PAYLOAD
from benchmarks.peers import handlers
from benchmarks.peers.peer import Peer, at_work
from benchmarks.peers.setting import setting

POOL = {"min_size": 10, "max_size": 20} if setting().best else {}
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=setting().url, **POOL))


@app.task(name="noop")
async def noop(to: str, subject: str, body: str) -> None: ...


@app.task(name="burn")
async def burn(to: str, subject: str, body: str) -> None:
    handlers.burn(to, subject, body)


@app.task(name="pickup")
async def pickup(sent: float) -> None:
    handlers.note(sent)


KINDS = {"noop": noop, "burn": burn, "pickup": pickup}


class Procrastinate(Peer):
    """Enqueues many with `batch_defer_async`, here 1,000 a call."""

    async def open(self) -> None:
        await app.open_async()
        await app.schema_manager.apply_schema_async()

    async def close(self) -> None:
        await app.close_async()

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> Awaitable[object]:
        called: Awaitable[object] = KINDS[kind].defer_async(**arguments)
        return called

    async def enqueue_many(self, kind: str, jobs: int) -> None:
        for start in range(0, jobs, 1000):
            await KINDS[kind].batch_defer_async(*[PAYLOAD] * min(1000, jobs - start))

    async def left(self) -> int:
        return self.postgres.number(
            "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
        )

    def workers(self, processes: int) -> list[list[str]]:
        return [at_work("procrastinate")] * processes


PEER = Procrastinate


async def work() -> None:
    """Run jobs until killed."""
    best = {"concurrency": 20, "delete_jobs": "always"} if setting().best else {}
    async with app.open_async():
        await app.run_worker_async(**best)
