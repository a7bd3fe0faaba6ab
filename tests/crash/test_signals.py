"""Workers that are killed, stopped, told to go, or held up: real processes on one store."""

from __future__ import annotations

import signal
import time

import pytest

from nimburion.core.job import State
from tests.crash.harness import TTL, Stage
from tests.servers.server_kinds import BINARIES

pytestmark = pytest.mark.slow

_SWEEP = TTL / 6 * 1.1
_SLACK = 1.0
"""For a busy machine to do the work itself."""


class Signals:
    """What happens to workers on every store; a store is a subclass with a fixture `stage`."""

    async def test_killed_with_ten_jobs_in_flight(self, stage: Stage) -> None:
        await stage.enqueue("hanging", 10)
        victim = stage.worker(concurrency=10)
        await stage.until_noted("start", 10)
        await stage.enqueue("quick")
        stage.worker(concurrency=10)
        await stage.until_noted("end", 1)  # the other worker is there, and has nothing else to do
        victim.kill()
        killed = time.monotonic()
        await stage.until_noted("end", 11)
        assert time.monotonic() - killed < TTL + _SWEEP + _SLACK
        await stage.check_all_completed(lost=10)
        assert {(await stage.record(f"hanging-{n}")).lost for n in range(10)} == {1}
        assert len(stage.noted("end")) == 11

    async def test_stopped_beyond_its_time_to_live(self, stage: Stage) -> None:
        await stage.enqueue("patient")
        sleeper = stage.worker()
        await stage.until_noted("start", fence=1)
        sleeper.send_signal(signal.SIGSTOP)
        other = stage.worker()
        await stage.until_noted("start", fence=2, pid=other.pid)
        (stage.folder / "go-1").touch()
        sleeper.send_signal(signal.SIGCONT)
        await stage.until_noted("SessionEnded", how="lost", pid=sleeper.pid)
        assert (await stage.record("patient-0")).state is State.PROCESSING
        (stage.folder / "go-2").touch()
        await stage.check_all_completed(lost=1)
        assert (await stage.record("patient-0")).result == b"2"

    async def test_told_to_go(self, stage: Stage) -> None:
        """It hands back what it could not finish in its grace time; nothing is counted, and nobody
        has to wait for a session to expire."""
        await stage.enqueue("hanging", 3)
        leaver = stage.worker(grace=0.2, session_ttl=600.0)
        await stage.until_noted("start", 3)
        leaver.terminate()
        assert await stage.exit_code(leaver) == 0
        assert stage.noted("SessionEnded", how="closed")
        assert (await stage.store.counts())[State.PENDING] == 3
        stage.worker()
        await stage.check_all_completed(lost=0, handed_back=3)

    async def test_told_to_go_twice(self, stage: Stage) -> None:
        await stage.enqueue("hanging")
        leaver = stage.worker(grace=600.0, session_ttl=600.0)
        await stage.until_noted("start")
        leaver.terminate()
        leaver.send_signal(signal.SIGINT)
        assert await stage.exit_code(leaver, 10.0) == 0
        assert (await stage.record("hanging-0")).state is State.PENDING
        assert (await stage.record("hanging-0")).lost == 0

    async def test_told_to_go_with_a_handler_that_never_ends(self, stage: Stage) -> None:
        """Nobody can stop a thread: its job is given back as the last act, and the process ends."""
        await stage.enqueue("stubborn")
        leaver = stage.worker(grace=0.2, session_ttl=600.0)
        await stage.until_noted("start")
        leaver.terminate()
        assert await stage.exit_code(leaver) == 0
        assert stage.noted("end") == []
        stage.worker()
        await stage.check_all_completed(lost=0, handed_back=1)

    async def test_a_handler_that_blocks_the_event_loop_costs_no_lease(self, stage: Stage) -> None:
        await stage.enqueue("blocking")
        stage.worker(concurrency=1)
        await stage.until_noted("start")
        stage.worker()
        await stage.until_noted("end")
        await stage.check_all_completed(lost=0)
        assert len(stage.noted("start")) == 1


class TestSQLite(Signals):
    @pytest.fixture
    def stage(self, sqlite_stage: Stage) -> Stage:
        return sqlite_stage


@pytest.mark.parametrize("redis_server", BINARIES, indirect=True)  # one server of each program
class TestRedis(Signals):
    @pytest.fixture
    def stage(self, redis_stage: Stage) -> Stage:
        return redis_stage


class TestPostgres(Signals):
    @pytest.fixture
    def stage(self, postgres_stage: Stage) -> Stage:
        return postgres_stage
