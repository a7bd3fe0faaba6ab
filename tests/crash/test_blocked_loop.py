"""Handlers that block the event loop: neighbours, health, log and signals do without it."""

from __future__ import annotations

import signal
import time

import pytest

from nimburion.core.job import State
from tests.crash.blocking import BLOCKS
from tests.crash.harness import ProcessHarness

pytestmark = pytest.mark.slow

SLACK = 8.0
"""For a busy machine."""


class BlockedLoop:
    """What happens on every backend; a backend is a subclass with a fixture `harness`."""

    async def test_what_has_not_begun_runs_elsewhere(
        self, harness: ProcessHarness, capfd: pytest.CaptureFixture[str]
    ) -> None:
        await harness.enqueue("asleep")
        await harness.enqueue("quick", 9)
        blocked = harness.start_worker(concurrency=10, session_ttl=60.0)
        await harness.wait_until_logged("start", job="asleep-0")
        other = harness.start_worker(concurrency=10, session_ttl=60.0)
        await harness.wait_until_logged("end", 9, pid=other.pid, alive=blocked)
        await harness.wait_until(lambda: _has_completed(harness, 9), "9 jobs are completed")
        await harness.wait_until_logged("health")
        (health,) = harness.find_events("health")
        assert health["state"] == "degraded"
        assert "asleep-0 (asleep)" in health["loop"]
        assert (await harness.get_record("asleep-0")).state is State.PROCESSING
        records = [await harness.get_record(f"quick-{n}") for n in range(9)]
        assert {(one.state, one.lost, one.failures) for one in records} == {(State.COMPLETED, 0, 0)}
        log = capfd.readouterr().err
        assert "the event loop is blocked by job asleep-0 (asleep)" in log
        assert "blocking.py" in log

    @pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
    @pytest.mark.parametrize("how", BLOCKS)
    async def test_a_second_signal_ends_the_process_at_once(
        self, harness: ProcessHarness, how: str, uvloop: bool
    ) -> None:
        await harness.enqueue(how)
        worker = harness.start_worker(grace=600.0, session_ttl=600.0, uvloop=uvloop)
        await harness.wait_until_logged("health")
        began = time.monotonic()
        worker.terminate()
        worker.send_signal(signal.SIGINT)
        assert await harness.wait_for_exit(worker, 3.0 + SLACK) == 0
        assert time.monotonic() - began < 3.0 + SLACK
        record = await harness.get_record(f"{how}-0")
        assert (record.state, record.lost, record.failures) == (State.PENDING, 0, 0)

    async def test_a_first_signal_ends_it_after_the_grace_time(
        self, harness: ProcessHarness
    ) -> None:
        await harness.enqueue("asleep")
        worker = harness.start_worker(grace=0.2, session_ttl=600.0)
        await harness.wait_until_logged("start")
        worker.terminate()
        assert await harness.wait_for_exit(worker, 4.0 + SLACK) == 0
        assert (await harness.get_record("asleep-0")).state is State.PENDING
        harness.start_worker()
        await harness.check_all_completed(lost=0, handed_back=1)


async def _has_completed(harness: ProcessHarness, count: int) -> bool:
    return (await harness.backend.reads.count_jobs(budget=None))[State.COMPLETED] == count


class TestSQLite(BlockedLoop):
    @pytest.fixture
    def harness(self, sqlite_harness: ProcessHarness) -> ProcessHarness:
        return sqlite_harness


class TestRedis(BlockedLoop):
    @pytest.fixture
    def harness(self, redis_harness: ProcessHarness) -> ProcessHarness:
        return redis_harness


class TestPostgres(BlockedLoop):
    @pytest.fixture
    def harness(self, postgres_harness: ProcessHarness) -> ProcessHarness:
        return postgres_harness
