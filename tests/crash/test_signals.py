"""Workers that are killed, stopped, asked to stop, or held up: real processes on one backend."""

from __future__ import annotations

import signal

import pytest

from nimburion.core.job import State
from tests.crash.harness import TTL, ProcessHarness
from tests.waiting import read_calm_clock

pytestmark = pytest.mark.slow

_SWEEP = TTL / 6 * 1.1
_SLACK = 1.0
"""For a busy machine to do the work itself."""


class Signals:
    """What happens to workers on every backend. Subclasses have a fixture `harness`."""

    async def test_killed_with_ten_jobs_in_flight(self, harness: ProcessHarness) -> None:
        await harness.enqueue("hanging", 10)
        victim = harness.start_worker(concurrency=10)
        await harness.wait_until_logged("start", 10)
        await harness.enqueue("quick")
        other = harness.start_worker(concurrency=10)
        await harness.wait_until_logged(
            "end", 1
        )  # the other worker is there, and has nothing else to do
        victim.kill()
        killed = read_calm_clock(other.pid)
        await harness.wait_until_logged("end", 11)
        assert read_calm_clock(other.pid) - killed < TTL + _SWEEP + _SLACK
        await harness.check_all_completed(lost=10)
        assert {(await harness.get_record(f"hanging-{n}")).lost for n in range(10)} == {1}
        assert len(harness.find_events("end")) == 11

    async def test_stopped_beyond_its_time_to_live(self, harness: ProcessHarness) -> None:
        await harness.enqueue("long")
        paused = harness.start_worker()
        await harness.wait_until_logged("start", fence=1)
        await harness.stop(paused)
        other = harness.start_worker()
        await harness.wait_until_logged("start", fence=2, pid=other.pid)
        (harness.folder / "go-1").touch()
        paused.send_signal(signal.SIGCONT)
        await harness.wait_until_logged("SessionEnded", how="lost", pid=paused.pid)
        assert (await harness.get_record("long-0")).state is State.PROCESSING
        (harness.folder / "go-2").touch()
        await harness.check_all_completed(lost=1)
        assert (await harness.get_record("long-0")).result == b"2"

    async def test_sigterm(self, harness: ProcessHarness) -> None:
        """It hands back what it could not finish in its grace time; nothing is counted, and nobody
        has to wait for a session to expire."""
        await harness.enqueue("hanging", 3)
        leaver = harness.start_worker(grace=0.2, session_ttl=600.0)
        await harness.wait_until_logged("start", 3)
        leaver.terminate()
        assert await harness.wait_for_exit(leaver) == 0
        assert harness.find_events("SessionEnded", how="closed")
        assert (await harness.backend.reads.count_jobs(budget=None))[State.PENDING] == 3
        harness.start_worker()
        await harness.check_all_completed(lost=0, handed_back=3)

    async def test_sigterm_twice(self, harness: ProcessHarness) -> None:
        await harness.enqueue("hanging")
        leaver = harness.start_worker(grace=600.0, session_ttl=600.0)
        await harness.wait_until_logged("start")
        leaver.terminate()
        leaver.send_signal(signal.SIGINT)
        assert await harness.wait_for_exit(leaver, 10.0) == 0
        assert (await harness.get_record("hanging-0")).state is State.PENDING
        assert (await harness.get_record("hanging-0")).lost == 0

    async def test_sigterm_with_a_handler_that_never_ends(self, harness: ProcessHarness) -> None:
        """Nobody can stop a thread: its job is released last, and the process ends."""
        await harness.enqueue("stubborn")
        leaver = harness.start_worker(grace=0.2, session_ttl=600.0)
        await harness.wait_until_logged("start")
        leaver.terminate()
        assert await harness.wait_for_exit(leaver) == 0
        assert harness.find_events("end") == []
        harness.start_worker()
        await harness.check_all_completed(lost=0, handed_back=1)

    async def test_a_handler_that_blocks_the_event_loop_costs_no_lease(
        self, harness: ProcessHarness
    ) -> None:
        await harness.enqueue("blocking")
        harness.start_worker(concurrency=1)
        await harness.wait_until_logged("start")
        harness.start_worker()
        await harness.wait_until_logged("end")
        await harness.check_all_completed(lost=0)
        assert len(harness.find_events("start")) == 1


class TestSQLite(Signals):
    @pytest.fixture
    def harness(self, sqlite_harness: ProcessHarness) -> ProcessHarness:
        return sqlite_harness


class TestRedis(Signals):
    @pytest.fixture
    def harness(self, redis_harness: ProcessHarness) -> ProcessHarness:
        return redis_harness


class TestPostgres(Signals):
    @pytest.fixture
    def harness(self, postgres_harness: ProcessHarness) -> ProcessHarness:
        return postgres_harness
