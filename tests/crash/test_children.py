"""Handlers that fork: a child is a plain process, and its parent is as it was. Real processes."""

from __future__ import annotations

from collections import Counter

import pytest

from nimburion.core.job import State
from tests.crash.children import EXITS
from tests.crash.harness import DEADLINE, ProcessHarness
from tests.servers.server_kinds import BINARIES

pytestmark = pytest.mark.slow


class Children:
    """What happens on every backend, on both event loops."""

    @pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
    async def test_a_child_is_a_plain_process_and_leaves_its_worker_alone(
        self, stage: ProcessHarness, uvloop: bool
    ) -> None:
        for name in EXITS:
            await stage.enqueue(name)
        parent = stage.start_worker(concurrency=3, uvloop=uvloop, session_ttl=60.0)
        await stage.wait_until_logged("end", len(EXITS), alive=parent, seconds=4 * DEADLINE)
        codes = {
            line["job"].rpartition("-")[0]: line["code"] for line in stage.find_events("child")
        }
        assert codes == EXITS
        assert {line["pid"] for line in stage.read_events()} == {parent.pid}

        await stage.enqueue("quick", 50)
        await stage.wait_until_logged("end", len(EXITS) + 50, alive=parent)
        await stage.check_all_completed(lost=0)
        starts = Counter(line["job"] for line in stage.find_events("start"))
        assert set(starts.values()) == {1}

        await stage.enqueue("hanging")
        await stage.wait_until_logged("start", job="hanging-0")
        parent.terminate()
        parent.terminate()
        assert await stage.wait_for_exit(parent) == 0
        assert stage.find_events("SessionEnded", how="closed")
        assert (await stage.get_record("hanging-0")).state is State.PENDING


class TestSQLite(Children):
    @pytest.fixture
    def stage(self, sqlite_stage: ProcessHarness) -> ProcessHarness:
        return sqlite_stage


@pytest.mark.parametrize("redis_server", BINARIES, indirect=True)  # one server of each program
class TestRedis(Children):
    @pytest.fixture
    def stage(self, redis_stage: ProcessHarness) -> ProcessHarness:
        return redis_stage


class TestPostgres(Children):
    @pytest.fixture
    def stage(self, postgres_stage: ProcessHarness) -> ProcessHarness:
        return postgres_stage
