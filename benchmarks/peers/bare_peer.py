"""No job system: one write of the same body after another, by redis-py's asyncio client.

What an enqueue is held against. Best: uvloop.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any

from redis.asyncio import Redis

from benchmarks.payload import PAYLOAD
from benchmarks.peers.peer import Peer

BODY = json.dumps(PAYLOAD)


class Bare(Peer):
    """LPUSH, and nothing else."""

    client: Redis

    async def open(self) -> None:
        self.client = Redis.from_url(self.setting.url)

    async def close(self) -> None:
        await self.client.aclose()

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> Awaitable[object]:
        assert arguments is PAYLOAD  # encoded once, not for each write
        return self.client.lpush(kind, BODY)

    async def left(self) -> int:
        return int(self.wire.ask("LLEN", "noop"))


PEER = Bare
