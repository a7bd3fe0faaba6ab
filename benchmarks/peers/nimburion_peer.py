"""Ourselves. `python -m benchmarks.peers.nimburion_peer` is the worker at its default.

Default: the standard event loop. Best: uvloop (the extra `fast`), as `nimburion worker` takes it.
Left: what the backend says of its queues.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from benchmarks.payload import PAYLOAD
from benchmarks.peers import handlers
from benchmarks.peers.peer import PYTHON, Peer
from benchmarks.peers.setting import setting
from nimburion.backends import open_backend
from nimburion.jobs import Processor, job


@job(queue="bench")
async def noop(to: str, subject: str, body: str) -> None: ...


@job(queue="bench")
async def burn(to: str, subject: str, body: str) -> None:
    handlers.burn(to, subject, body)


@job(queue="bench")
async def pickup(sent: float) -> None:
    handlers.note(sent)


def processor() -> Processor:
    """All three jobs, every setting at its default."""
    made = Processor(open_backend(setting().url))
    made.register(noop, burn, pickup)
    return made


KINDS: dict[str, Any] = {"noop": noop, "burn": burn, "pickup": pickup}


class Nimburion(Peer):
    """Enqueues many with `enqueue_many`, here 1,000 a call."""

    def __init__(self) -> None:
        super().__init__()
        self.processor = processor()

    async def open(self) -> None:
        await self.processor.open()

    async def close(self) -> None:
        await self.processor.close()

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> Awaitable[object]:
        return self.processor.enqueue(KINDS[kind].job(**arguments))

    async def enqueue_many(self, kind: str, jobs: int) -> None:
        for start in range(0, jobs, 1000):
            many = range(min(1000, jobs - start))
            await self.processor.enqueue_many([KINDS[kind].job(**PAYLOAD) for _ in many])

    async def left(self) -> int:
        queues = await self.processor.backend.reads.list_queues()
        return sum(one.size + one.scheduled + one.processing for one in queues)

    def workers(self, processes: int) -> list[list[str]]:
        command = [PYTHON, "-m", "benchmarks.peers.nimburion_peer"]
        if self.setting.best:
            target = "benchmarks.peers.nimburion_peer:processor"
            command = [PYTHON, "-m", "nimburion", "worker", "--log-level", "warning", target]
        return [command] * processes


PEER = Nimburion


async def main() -> None:
    """Run jobs until stopped."""
    async with processor() as running:
        await running.run(owns_process=True)


if __name__ == "__main__":
    asyncio.run(main())
