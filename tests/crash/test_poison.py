"""Jobs that harm their worker, on every durable backend: each run counts, and neighbours do not."""

from __future__ import annotations

import pytest

from nimburion.core.job import State
from tests.crash.harness import ProcessHarness
from tests.servers.server_kinds import BINARIES

pytestmark = pytest.mark.slow


class Poison:
    """What such jobs do on every backend; a backend is a subclass with a fixture `stage`."""

    async def test_a_suspect_that_kills_takes_no_other_suspect_along(
        self, stage: ProcessHarness
    ) -> None:
        killers = await stage.enqueue("killing")
        others = await stage.enqueue("quick", 4)
        await stage.lose(killers + others, 2)
        await stage.supervise(killers + others, concurrency=10)
        killer = await stage.get_record(killers[0])
        assert (killer.state, killer.reason, killer.lost) == (State.FAILED, "lost", 3)
        for one in others:
            record = await stage.get_record(one)
            assert (record.state, record.lost, record.failures) == (State.COMPLETED, 2, 0)

    async def test_a_suspect_that_kills_takes_nothing_along_that_had_ended(
        self, stage: ProcessHarness
    ) -> None:
        killers = await stage.enqueue("killing")
        await stage.lose(killers, 2)
        others = await stage.enqueue("quick", 4)
        await stage.supervise(killers + others, concurrency=10)
        assert (await stage.get_record(killers[0])).lost == 3
        for one in others:
            record = await stage.get_record(one)
            assert (record.state, record.lost, record.failures) == (State.COMPLETED, 0, 0)
        assert len(stage.find_events("end")) == 4

    @pytest.mark.parametrize("name", ["interrupting", "exiting", "cancelling", "halting"])
    async def test_each_run_counts_under_a_supervisor(
        self, name: str, stage: ProcessHarness
    ) -> None:
        """Also where the handler ends its worker, which gives back what runs as it leaves."""
        [job_id] = await stage.enqueue(name)
        await stage.supervise([job_id], max_retries=1, retry_backoff=0.01)
        record = await stage.get_record(job_id)
        assert record.state is State.FAILED
        assert len(stage.find_events("start")) == record.failures + record.lost == 2
        assert len(record.history) == 2


class TestSQLite(Poison):
    @pytest.fixture
    def stage(self, sqlite_stage: ProcessHarness) -> ProcessHarness:
        return sqlite_stage


@pytest.mark.parametrize("redis_server", BINARIES, indirect=True)  # one server of each program
class TestRedis(Poison):
    @pytest.fixture
    def stage(self, redis_stage: ProcessHarness) -> ProcessHarness:
        return redis_stage


class TestPostgres(Poison):
    @pytest.fixture
    def stage(self, postgres_stage: ProcessHarness) -> ProcessHarness:
        return postgres_stage
