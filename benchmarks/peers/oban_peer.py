"""Oban for Python.

Default: 10 jobs at once (a queue must have a limit; its documentation says 10). Best: uvloop, 500
at once. Done: its table.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from oban import Oban, worker
from oban.schema import install

from benchmarks.payload import PAYLOAD
from benchmarks.peers import handlers
from benchmarks.peers.peer import Peer, at_work
from benchmarks.peers.setting import setting


@worker(queue="default")
class Noop:
    """Does nothing."""

    async def process(self, job: Any) -> None: ...


@worker(queue="default")
class Burn:
    """Uses a millisecond of the processor."""

    async def process(self, job: Any) -> None:
        handlers.burn(*job.args.values())


@worker(queue="default")
class Pickup:
    """Notes how late it is."""

    async def process(self, job: Any) -> None:
        handlers.note(job.args["sent"])


KINDS: dict[str, Any] = {"noop": Noop, "burn": Burn, "pickup": Pickup}


class ObanPeer(Peer):
    """Enqueues many with `enqueue_many`, here 1,000 a call."""

    oban: Oban
    pool: Any

    async def open(self) -> None:
        self.pool = await Oban.create_pool(self.setting.url)
        await install(self.pool)
        self.oban = Oban(pool=self.pool)
        await self.oban.start()

    async def close(self) -> None:
        await self.oban.stop()
        await self.pool.close()

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> Awaitable[object]:
        called: Awaitable[object] = self.oban.enqueue(KINDS[kind].new(arguments))
        return called

    async def enqueue_many(self, kind: str, jobs: int) -> None:
        for start in range(0, jobs, 1000):
            many = range(min(1000, jobs - start))
            await self.oban.enqueue_many([KINDS[kind].new(PAYLOAD) for _ in many])

    async def left(self) -> int:
        return self.postgres.number(
            "SELECT count(*) FROM oban_jobs WHERE state IN ('available', 'executing', 'retryable')"
        )

    def workers(self, processes: int) -> list[list[str]]:
        return [at_work("oban")] * processes


PEER = ObanPeer


async def work() -> None:
    """Run jobs until killed."""
    pool = await Oban.create_pool(setting().url)
    async with Oban(pool=pool, queues={"default": 500 if setting().best else 10}):
        await asyncio.Event().wait()
