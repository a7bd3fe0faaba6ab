"""Chancy.

Default: the executor for async jobs. Best: uvloop, 1,000 jobs at once, the next ones fetched as
soon as one is done. Done: its table.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any

from chancy import Chancy, Queue, Worker, job

from benchmarks.payload import PAYLOAD
from benchmarks.peers import handlers
from benchmarks.peers.peer import Peer, at_work
from benchmarks.peers.setting import setting


@job()
async def noop(*, to: str, subject: str, body: str) -> None: ...


@job()
async def burn(*, to: str, subject: str, body: str) -> None:
    handlers.burn(to, subject, body)


@job()
async def pickup(*, sent: float) -> None:
    handlers.note(sent)


KINDS: dict[str, Any] = {"noop": noop, "burn": burn, "pickup": pickup}


def client() -> Chancy:
    """Quiet: it tells of each job otherwise."""
    log = logging.getLogger("chancy")
    log.setLevel(logging.WARNING)
    return Chancy(setting().url, log=log)


def queue() -> Queue:
    """The queue at the setting."""
    best = {"concurrency": 1000, "eager_polling": True, "polling_interval": 1}
    return Queue(name="default", executor=Chancy.Executor.Async, **(best if setting().best else {}))


class ChancyPeer(Peer):
    """Enqueues many with `push_many`, here 1,000 a call."""

    def __init__(self) -> None:
        super().__init__()
        self.chancy = client()

    async def open(self) -> None:
        await self.chancy.__aenter__()
        await self.chancy.migrate()
        await self.chancy.declare(queue(), upsert=True)

    async def close(self) -> None:
        await self.chancy.__aexit__(None, None, None)

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> Awaitable[object]:
        called: Awaitable[object] = self.chancy.push(KINDS[kind].job.with_kwargs(**arguments))
        return called

    async def enqueue_many(self, kind: str, jobs: int) -> None:
        for start in range(0, jobs, 1000):
            many = range(min(1000, jobs - start))
            made = [KINDS[kind].job.with_kwargs(**PAYLOAD) for _ in many]
            async for _ in self.chancy.push_many(made):
                pass

    async def left(self) -> int:
        return self.postgres.number(
            "SELECT count(*) FROM chancy_jobs WHERE state IN ('pending', 'running', 'retrying')"
        )

    def workers(self, processes: int) -> list[list[str]]:
        return [at_work("chancy")] * processes


PEER = ChancyPeer


async def work() -> None:
    """Run jobs until killed."""
    async with client() as chancy:
        await chancy.declare(queue(), upsert=True)
        async with Worker(chancy) as worker:
            await worker.wait_for_shutdown()
