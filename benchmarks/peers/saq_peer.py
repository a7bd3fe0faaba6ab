"""SAQ.

Default: 10 jobs at once, results kept for 10 minutes. Best: orjson, uvloop, 50 jobs at once,
nothing kept, 100 calls at once. Done: the set of incomplete jobs.
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
        setting().url, dump=orjson.dumps, load=orjson.loads, max_concurrent_ops=100
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
    settings["concurrency"] = 50


class Saq(Peer):
    """Enqueues in single calls only."""

    async def open(self) -> None:
        await queue.connect()

    async def close(self) -> None:
        await queue.disconnect()

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> Awaitable[object]:
        kept = {"ttl": -1} if self.setting.best else {}
        called: Awaitable[object] = queue.enqueue(kind, **kept, **arguments)
        return called

    async def left(self) -> int:
        return int(self.wire.ask("ZCARD", "saq:default:incomplete"))

    def workers(self, processes: int) -> list[list[str]]:
        return [[PYTHON, "-m", "saq", "benchmarks.peers.saq_peer.settings"]] * processes


PEER = Saq
