"""Handlers that fork: a child is a plain process, and its parent is as it was. Real processes."""

from __future__ import annotations

from collections import Counter

import pytest

from nimburion.core.job import State
from tests.crash.children import EXITS
from tests.crash.harness import DEADLINE, ProcessHarness

pytestmark = pytest.mark.slow


class Children:
    """What happens on every backend, on both event loops."""

    @pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
    async def test_a_child_is_a_plain_process_and_leaves_its_worker_alone(
        self, harness: ProcessHarness, uvloop: bool
    ) -> None:
        for name in EXITS:
            await harness.enqueue(name)
        parent = harness.start_worker(concurrency=3, uvloop=uvloop, session_ttl=60.0)
        await harness.wait_until_logged("end", len(EXITS), alive=parent, seconds=4 * DEADLINE)
        codes = {
            line["job"].rpartition("-")[0]: line["code"] for line in harness.find_events("child")
        }
        assert codes == EXITS
        assert {line["pid"] for line in harness.read_events()} == {parent.pid}

        await harness.enqueue("quick", 50)
        await harness.wait_until_logged("end", len(EXITS) + 50, alive=parent)
        await harness.check_all_completed(lost=0)
        starts = Counter(line["job"] for line in harness.find_events("start"))
        assert set(starts.values()) == {1}

        await harness.enqueue("hanging")
        await harness.wait_until_logged("start", job="hanging-0")
        parent.terminate()
        parent.terminate()
        assert await harness.wait_for_exit(parent) == 0
        assert harness.find_events("SessionEnded", how="closed")
        assert (await harness.get_record("hanging-0")).state is State.PENDING


class TestSQLite(Children):
    @pytest.fixture
    def harness(self, sqlite_harness: ProcessHarness) -> ProcessHarness:
        return sqlite_harness


class TestRedis(Children):
    @pytest.fixture
    def harness(self, redis_harness: ProcessHarness) -> ProcessHarness:
        return redis_harness


class TestPostgres(Children):
    @pytest.fixture
    def harness(self, postgres_harness: ProcessHarness) -> ProcessHarness:
        return postgres_harness
