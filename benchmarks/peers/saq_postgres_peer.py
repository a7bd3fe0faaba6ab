"""SAQ on PostgreSQL.

Default: 10 jobs at once, results kept for 10 minutes. Best: orjson, uvloop, 100 jobs at once over
40 connections, nothing kept. Done: its table.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import orjson
import uvloop
from saq import Queue

from benchmarks.peers import handlers
from benchmarks.peers.peer import PYTHON, Peer
from benchmarks.peers.setting import setting

if setting().best:
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    queue = Queue.from_url(
        setting().url, dump=orjson.dumps, load=orjson.loads, min_size=10, max_size=40
    )
else:
    queue = Queue.from_url(setting().url)


async def noop(_: dict[str, Any], *, to: str, subject: str, body: str) -> None: ...


async def burn(_: dict[str, Any], *, to: str, subject: str, body: str) -> None:
    handlers.burn(to, subject, body)


async def pickup(_: dict[str, Any], *, sent: float) -> None:
    handlers.note(sent)


settings = {"queue": queue, "functions": [noop, burn, pickup]}
if setting().best:
    settings["concurrency"] = 100


class SaqPostgres(Peer):
    """Enqueues in single calls only."""

    gather = 20

    async def open(self) -> None:
        await queue.connect()

    async def close(self) -> None:
        await queue.disconnect()

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> Awaitable[object]:
        kept = {"ttl": -1} if self.setting.best else {}
        called: Awaitable[object] = queue.enqueue(kind, **kept, **arguments)
        return called

    async def left(self) -> int:
        return self.postgres.number(
            "SELECT count(*) FROM saq_jobs WHERE status IN ('new', 'queued', 'active')"
        )

    def workers(self, processes: int) -> list[list[str]]:
        return [[PYTHON, "-m", "saq", "benchmarks.peers.saq_postgres_peer.settings"]] * processes


PEER = SaqPostgres
