"""Workers whose connection passes few bytes a second: real processes and servers, a proxy between.

Their heartbeats are small and get through, so nobody rescues what they hold.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nimburion.core.job import JobRecord, NewJob, State
from tests.crash.fork_server import ForkServer
from tests.crash.harness import Process, ProcessHarness
from tests.servers.proxy import Direction, Proxy
from tests.servers.server_kinds import RunningPostgres, RunningRedis
from tests.waiting import read_busy_time

pytestmark = [pytest.mark.slow, pytest.mark.wide, pytest.mark.timeout(120)]

TTL = 6.0
_SWEEP = TTL / 6 * 1.1
_SLACK = 2.0
"""For a busy machine to do the work itself."""
_TIMEOUT = 1.0
"""Seconds that one call of the worker may take. A payload or a result that gets through takes a
sixth of it: on a busy machine, the proxy passes it late."""


def bulky(count: int, *, payload: int = 0, result: int = 0) -> list[NewJob]:
    """Jobs whose payloads and results have so many bytes."""
    body = json.dumps({"result": result, "pad": "p" * payload}).encode()
    return [NewJob(f"bulky-{n}", "bulky", "default", body) for n in range(count)]


class Watch:
    """Looks again and again for jobs that are `processing` while nobody makes progress on them.

    Its clock leaves out when a worker, or this process with the proxy in it, waits for a processor.
    """

    def __init__(self, harness: ProcessHarness, *workers: Process) -> None:
        self._harness = harness
        self._pids = [os.getpid(), *(worker.pid for worker in workers)]
        self._since: dict[tuple[str, float | None], float] = {}
        self._ended = 0
        self._ended_last = 0.0

    async def until_finished(self) -> None:
        """Wait for the end of all jobs."""
        await self._harness.wait_until(self._finished, "every job has ended")

    async def _finished(self) -> bool:
        page = await self._harness.backend.reads.list_jobs(limit=1_000)
        ended = sum(job.state.finished for job in page.jobs)
        if ended > self._ended:
            self._ended, self._ended_last = ended, self._read_clock()
        for job in page.jobs:
            if job.state is State.PROCESSING:
                self._check(job)
        return all(job.state.finished for job in page.jobs)

    def _check(self, job: JobRecord) -> None:
        """While outcomes are written, those behind them have their turn soon."""
        now = self._read_clock()
        since = self._since.setdefault((job.id, job.started_at), now)
        seconds = now - max(since, self._ended_last)
        assert seconds < TTL + _SWEEP + _SLACK, f"{job.id} is processing for {seconds:.1f} s"

    def _read_clock(self) -> float:
        return time.monotonic() - read_busy_time(*self._pids)


class SlowConnections:
    """A backend is a subclass with the fixtures `harness` and `port`."""

    @asynccontextmanager
    async def _slow_worker(
        self, harness: ProcessHarness, port: int, way: Direction, speed: float
    ) -> AsyncIterator[Process]:
        """A worker whose connections pass so many bytes a second, one way."""
        async with Proxy(port) as proxy:
            proxy.bytes_per_second[way] = speed
            url = harness.url.replace(f":{port}", f":{proxy.port}")
            url += ("&" if "?" in url else "?") + f"timeout={_TIMEOUT}"
            async with ProcessHarness(harness.folder, url) as slow:
                yield slow.start_worker(session_ttl=TTL)

    async def test_large_payloads_come_a_few_at_a_time(
        self, harness: ProcessHarness, port: int
    ) -> None:
        """Ten at once need one and a half seconds, of the one that a call may take."""
        await harness.backend.producing.enqueue(bulky(30, payload=60_000))
        async with self._slow_worker(harness, port, "replies", 400_000) as worker:
            await Watch(harness, worker).until_finished()
        assert (await harness.backend.reads.count_jobs(budget=None))[State.COMPLETED] == 30
        assert (
            Counter(line["job"] for line in harness.find_events("start")).most_common(1)[0][1] == 1
        )
        assert harness.find_events("SessionEnded") == []

    async def test_large_results_leave_a_few_at_a_time(
        self, harness: ProcessHarness, port: int
    ) -> None:
        await harness.backend.producing.enqueue(bulky(50, result=60_000))
        async with self._slow_worker(harness, port, "requests", 400_000) as worker:
            await Watch(harness, worker).until_finished()
        assert (await harness.backend.reads.count_jobs(budget=None))[State.COMPLETED] == 50
        assert (
            Counter(line["job"] for line in harness.find_events("start")).most_common(1)[0][1] == 1
        )
        record = await harness.get_record("bulky-0")
        assert record.result is not None
        assert len(record.result) == 60_002

    async def test_what_never_gets_through_is_released(
        self, harness: ProcessHarness, port: int
    ) -> None:
        """The job alone needs ten seconds: another worker has it when this session ends, within
        the time to live."""
        await harness.backend.producing.enqueue(bulky(1, payload=1_000_000))
        async with self._slow_worker(harness, port, "replies", 100_000) as slow:
            await harness.wait_until(lambda: self._processing(harness), "the slow worker holds it")
            other = harness.start_worker(session_ttl=TTL)
            await harness.wait_until(lambda: self._is_open(harness, other), "its session is open")
            before = len(harness.find_events("SessionEnded"))
            await Watch(harness, slow, other).until_finished()
            ended = len(harness.find_events("SessionEnded")) - before
            assert ended <= 1, "the slow worker does not reserve it again"
        record = await harness.get_record("bulky-0")
        assert record.state is State.COMPLETED
        assert record.lost == 0

    async def test_a_result_that_never_gets_through_is_left_behind(
        self, harness: ProcessHarness, port: int
    ) -> None:
        """Its job is completed all the same: its work is done."""
        await harness.backend.producing.enqueue(bulky(1, result=250_000))
        async with self._slow_worker(harness, port, "requests", 40_000) as worker:
            await Watch(harness, worker).until_finished()
        record = await harness.get_record("bulky-0")
        assert record.state is State.COMPLETED
        assert record.result is not None
        assert record.result.startswith(b"!the connection is too slow for its"), "why it is missing"
        assert len(harness.find_events("start")) == 1

    @staticmethod
    async def _is_open(harness: ProcessHarness, worker: Process) -> bool:
        return worker.pid in [each.pid for each in await harness.backend.reads.list_sessions()]

    @staticmethod
    async def _processing(harness: ProcessHarness) -> bool:
        return (await harness.backend.reads.count_jobs(budget=None))[State.PROCESSING] > 0


class TestRedis(SlowConnections):
    @pytest.fixture
    async def harness(
        self, tmp_path: Path, single_redis: RunningRedis, fork_server: ForkServer | None
    ) -> AsyncIterator[ProcessHarness]:
        async with ProcessHarness(tmp_path, single_redis.url, fork_server) as harness:
            yield harness

    @pytest.fixture
    def port(self, single_redis: RunningRedis) -> int:
        return single_redis.port  # type: ignore[attr-defined, no-any-return]


class TestPostgres(SlowConnections):
    @pytest.fixture
    async def harness(
        self, tmp_path: Path, postgres_server: RunningPostgres, fork_server: ForkServer | None
    ) -> AsyncIterator[ProcessHarness]:
        async with ProcessHarness(tmp_path, postgres_server.url, fork_server) as harness:
            yield harness

    @pytest.fixture
    def port(self, postgres_server: RunningPostgres) -> int:
        return postgres_server.port  # type: ignore[attr-defined, no-any-return]
