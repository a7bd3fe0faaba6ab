"""streaq.

Default: 16 tasks at once, pickle, results kept. Best: uvloop, orjson, 100 at once, 1,000
prefetched, no results. Done: the streams, from which a finished task is deleted.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import orjson
from streaq import Worker

from benchmarks.payload import PAYLOAD
from benchmarks.peers import handlers
from benchmarks.peers.peer import BIN, Peer
from benchmarks.peers.setting import setting

BEST: dict[str, Any] = {
    "anyio_kwargs": {"use_uvloop": True},
    "serializer": orjson.dumps,
    "deserializer": orjson.loads,
    "concurrency": 100,
    "prefetch": 1000,
}
worker = Worker(redis_url=setting().url, **(BEST if setting().best else {}))
policy: dict[str, Any] = {"silent": True, "ttl": 0} if setting().best else {"silent": True}


@worker.task(**policy)
async def noop(to: str, subject: str, body: str) -> None: ...


@worker.task(**policy)
async def burn(to: str, subject: str, body: str) -> None:
    handlers.burn(to, subject, body)


@worker.task(**policy)
async def pickup(sent: float) -> None:
    handlers.note(sent)


KINDS = {"noop": noop, "burn": burn, "pickup": pickup}


class Streaq(Peer):
    """Enqueues many in a pipeline, here 1,000 a call."""

    async def open(self) -> None:
        await worker.__aenter__()

    async def close(self) -> None:
        await worker.__aexit__(None, None, None)

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> Awaitable[object]:
        called: Awaitable[object] = KINDS[kind].enqueue(**arguments)
        return called

    async def enqueue_many(self, kind: str, jobs: int) -> None:
        for start in range(0, jobs, 1000):
            many = range(min(1000, jobs - start))
            await worker.enqueue_many([KINDS[kind].enqueue(**PAYLOAD) for _ in many])

    async def left(self) -> int:
        return int(self.wire.ask("XLEN", "streaq:default:queues:normal"))

    def workers(self, processes: int) -> list[list[str]]:
        return [[str(BIN / "streaq"), "run", "benchmarks.peers.streaq_peer:worker"]] * processes


PEER = Streaq
