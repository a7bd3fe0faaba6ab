"""Jobs that harm their worker, on every durable backend: each run counts, and neighbours do not."""

from __future__ import annotations

import pytest

from nimburion.core.job import State
from tests.crash.harness import ProcessHarness

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

    @pytest.mark.parametrize("name", ["interrupting", "exiting", "cancelling", "halting"])
    async def test_each_run_counts_under_a_supervisor(
        self, name: str, harness: ProcessHarness
    ) -> None:
        """Also where the handler ends its worker, which releases what runs as it leaves."""
        [job_id] = await harness.enqueue(name)
        await harness.supervise([job_id], max_retries=1, retry_backoff=0.01)
        record = await harness.get_record(job_id)
        assert record.state is State.FAILED
        assert len(harness.find_events("start")) == record.failures + record.lost == 2
        assert len(record.history) == 2


class TestSQLite(Poison):
    @pytest.fixture
    def harness(self, sqlite_harness: ProcessHarness) -> ProcessHarness:
        return sqlite_harness


class TestRedis(Poison):
    @pytest.fixture
    def harness(self, redis_harness: ProcessHarness) -> ProcessHarness:
        return redis_harness


class TestPostgres(Poison):
    @pytest.fixture
    def harness(self, postgres_harness: ProcessHarness) -> ProcessHarness:
        return postgres_harness
