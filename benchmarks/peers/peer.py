"""What the scenes ask of a peer."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import isawaitable
from pathlib import Path
from typing import Any

from benchmarks.payload import PAYLOAD
from benchmarks.peers.event_loops import fast_loop
from benchmarks.peers.postgres_wire import PostgresWire
from benchmarks.peers.server_statistics import StatisticsSource, open_statistics
from benchmarks.peers.setting import setting
from benchmarks.peers.wire import Wire

BIN = Path(sys.executable).parent
PYTHON = sys.executable


@dataclass
class Spent:
    """Seconds by the clock and of the producing process's processor."""

    clock: float = 0.0
    cpu: float = 0.0


class Peer:
    """One job system: how to enqueue, how to start workers, and what its backend counts.

    Three kinds of jobs: `noop` and `burn` take the payload, `pickup` takes `sent`.
    """

    gather = 100
    """Calls at once, where there is no bulk call."""

    def __init__(self) -> None:
        self.setting = setting()
        self._wire: StatisticsSource | None = None

    @property
    def wire(self) -> Wire:
        """The plain connection to a Redis."""
        wire = self.statistics
        assert isinstance(wire, Wire)
        return wire

    @property
    def postgres(self) -> PostgresWire:
        """The plain connection to a PostgreSQL."""
        wire = self.statistics
        assert isinstance(wire, PostgresWire)
        return wire

    @property
    def statistics(self) -> StatisticsSource:
        """The plain connection to the server, if there is one."""
        if self._wire is None:
            self._wire = open_statistics(self.setting)
        return self._wire

    @property
    def loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        """The event loop of the producer; uvloop's is part of the best setting, where it helps."""
        return fast_loop() if self.setting.best else None

    async def open(self) -> None:
        """Connect."""

    async def close(self) -> None:
        """Leave."""

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> Awaitable[object] | object:
        """One call for one job; awaited if it can be."""
        raise NotImplementedError

    async def enqueue_many(self, kind: str, jobs: int) -> None:
        """The peer's own bulk call, or many single calls at once."""
        for start in range(0, jobs, self.gather):
            calls = [self.enqueue(kind, PAYLOAD) for _ in range(min(self.gather, jobs - start))]
            await asyncio.gather(*(call for call in calls if isawaitable(call)))

    async def left(self) -> int:
        """Jobs that are not done, by the backend's own counts."""
        raise NotImplementedError

    def workers(self, processes: int) -> list[list[str]]:
        """The commands that start so many worker processes."""
        raise NotImplementedError

    # What peers in Node do there

    async def one_by_one(self, kind: str, jobs: int) -> Spent:
        """One call after another, the first one not timed."""
        asynchronous = await settled(self.enqueue(kind, PAYLOAD))
        with stopwatch() as spent:
            if asynchronous:
                for _ in range(jobs - 1):
                    await self.enqueue(kind, PAYLOAD)  # type: ignore[misc]
            else:
                for _ in range(jobs - 1):
                    self.enqueue(kind, PAYLOAD)
        return spent

    async def in_bulk(self, kind: str, jobs: int) -> Spent:
        """The same as fast as it goes."""
        with stopwatch() as spent:
            await self.enqueue_many(kind, jobs)
        return spent

    async def paced(self, jobs: int, every: float) -> None:
        """A `pickup` every so many seconds, each with the time before its call."""
        start = time.monotonic()
        for number in range(jobs):
            await asyncio.sleep(max(0.0, start + number * every - time.monotonic()))
            await settled(self.enqueue("pickup", {"sent": time.monotonic()}))


def at_work(name: str) -> list[str]:
    """The command for a worker that is a `work` of the peer's module."""
    return [PYTHON, "-m", "benchmarks.peers.at_work", name]


async def settled(called: Awaitable[object] | object) -> bool:
    """Await what can be awaited, and say whether it could."""
    if not isawaitable(called):
        return False
    await called
    return True


@contextmanager
def stopwatch() -> Iterator[Spent]:
    """Time what happens inside."""
    spent = Spent()
    cpu, clock = time.process_time(), time.perf_counter()
    yield spent
    spent.clock, spent.cpu = time.perf_counter() - clock, time.process_time() - cpu
