"""Jobs that harm their worker, on every durable backend: each run counts, and neighbours do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimburion.core.job import State
from tests.crash.fork_server import ForkServer
from tests.crash.harness import DEADLINE, ProcessHarness
from tests.servers.server_kinds import RunningRedis

pytestmark = pytest.mark.slow


class Poison:
    """What such jobs do on every backend; a backend is a subclass with a fixture `harness`."""

    async def test_a_suspect_that_kills_takes_no_other_suspect_along(
        self, harness: ProcessHarness
    ) -> None:
        killers = await harness.enqueue("killing")
        others = await harness.enqueue("quick", 4)
        await harness.lose(killers + others, 2)
        await harness.supervise(killers + others, concurrency=10)
        killer = await harness.get_record(killers[0])
        assert (killer.state, killer.reason, killer.lost) == (State.FAILED, "lost", 3)
        for one in others:
            record = await harness.get_record(one)
            assert (record.state, record.lost, record.failures) == (State.COMPLETED, 2, 0)

    async def test_a_suspect_that_kills_takes_nothing_along_that_had_ended(
        self, harness: ProcessHarness
    ) -> None:
        killers = await harness.enqueue("killing")
        await harness.lose(killers, 2)
        others = await harness.enqueue("quick", 4)
        await harness.supervise(killers + others, concurrency=10)
        assert (await harness.get_record(killers[0])).lost == 3
        for one in others:
            record = await harness.get_record(one)
            assert (record.state, record.lost, record.failures) == (State.COMPLETED, 0, 0)
        assert len(harness.find_events("end")) == 4

    async def test_each_run_counts_under_a_supervisor(self, harness: ProcessHarness) -> None:
        [job_id] = await harness.enqueue("interrupting")
        await harness.supervise([job_id], max_retries=1, retry_backoff=0.01)
        record = await harness.get_record(job_id)
        assert record.state is State.FAILED
        assert len(harness.find_events("start")) == record.failures + record.lost == 2
        assert len(record.history) == 2

    @pytest.mark.regression
    async def test_a_handler_that_ends_its_worker_from_inside_is_isolated(
        self, harness: ProcessHarness
    ) -> None:
        await _check_isolated(harness, "gathering")


async def _check_isolated(harness: ProcessHarness, name: str) -> None:
    """It becomes a dead letter by its losses. What runs beside it counts one, and completes.

    Three sessions expire, one after another.
    """
    neighbours = await harness.enqueue("hanging", 4)
    [culprit] = await harness.enqueue(name)
    options = {"concurrency": 5, "grace": 0.1, "max_retries": 0}
    await harness.supervise([culprit, *neighbours], seconds=3 * DEADLINE, **options)
    record = await harness.get_record(culprit)
    assert (record.state, record.reason) == (State.FAILED, "lost")
    assert (record.failures, record.lost) == (0, 3)
    assert len(harness.find_events("start", job=culprit)) == 3
    for one in neighbours:
        record = await harness.get_record(one)
        assert (record.state, record.lost, record.failures) == (State.COMPLETED, 1, 0)


class TestSQLite(Poison):
    @pytest.fixture
    def harness(self, sqlite_harness: ProcessHarness) -> ProcessHarness:
        return sqlite_harness

    @pytest.mark.regression
    @pytest.mark.parametrize("name", ["cancelling", "halting", "exiting", "terminating"])
    async def test_each_way_to_end_a_worker_from_inside(
        self, name: str, harness: ProcessHarness
    ) -> None:
        await _check_isolated(harness, name)


class TestRedis(Poison):
    @pytest.fixture
    def harness(self, redis_harness: ProcessHarness) -> ProcessHarness:
        return redis_harness


@pytest.mark.regression
async def test_a_handler_that_ends_its_worker_is_isolated_on_each_kind_of_redis(
    tmp_path: Path, redis_server: RunningRedis, fork_server: ForkServer | None
) -> None:
    async with ProcessHarness(tmp_path, redis_server.url, fork_server) as harness:
        await _check_isolated(harness, "cancelling")


class TestPostgres(Poison):
    @pytest.fixture
    def harness(self, postgres_harness: ProcessHarness) -> ProcessHarness:
        return postgres_harness
