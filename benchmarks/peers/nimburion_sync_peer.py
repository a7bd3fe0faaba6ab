"""Ourselves, for code that is not async: `processor.sync`, called from a thread without a loop."""

from __future__ import annotations

import asyncio

from benchmarks.payload import PAYLOAD
from benchmarks.peers.nimburion_peer import KINDS, Nimburion, processor
from benchmarks.peers.peer import Spent, stopwatch


class NimburionSync(Nimburion):
    """Enqueues in blocking calls, with a processor that no event loop owns."""

    async def one_by_one(self, kind: str, jobs: int) -> Spent:
        return await asyncio.to_thread(self._enqueue_blocking, kind, jobs)

    def _enqueue_blocking(self, kind: str, jobs: int) -> Spent:
        blocking = processor().sync
        blocking.enqueue(KINDS[kind].job(**PAYLOAD))
        with stopwatch() as spent:
            for _ in range(jobs - 1):
                blocking.enqueue(KINDS[kind].job(**PAYLOAD))
        blocking.close()
        return spent


PEER = NimburionSync
