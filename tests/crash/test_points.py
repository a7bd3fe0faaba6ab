"""A process dies at a named point; others finish its work, and nothing is lost or done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.stage import Stage

pytestmark = pytest.mark.slow

IN_A_WORKER = (
    "statement reserve_lease",
    "statement exchange_note",
    "reserved",
    "before",
    "inside",
    "after",
    "statement complete_jobs",
    "statement complete_leases",
    "settled",
)


@pytest.mark.parametrize("point", IN_A_WORKER)
async def test_a_worker_dies(point: str, tmp_path: Path) -> None:
    async with Stage(tmp_path) as stage:
        await stage.enqueue("quick", 5)
        await stage.killed_itself(stage.worker(point, concurrency=5))
        stage.worker()
        await stage.check_all_completed(lost=5)


@pytest.mark.parametrize("point", ["statement promote_copy", "statement promote_drop"])
async def test_a_worker_dies_while_it_promotes(point: str, tmp_path: Path) -> None:
    async with Stage(tmp_path) as stage:
        await stage.enqueue("quick", 5, after=0.5)
        await stage.killed_itself(stage.worker(point))
        stage.worker()
        await stage.check_all_completed(lost=0)


@pytest.mark.parametrize(
    "point",
    ["statement session_expire", "statement rescue_leases", "statement history_add", "rescued"],
)
async def test_a_worker_dies_while_it_rescues(point: str, tmp_path: Path) -> None:
    async with Stage(tmp_path) as stage:
        await stage.enqueue("hanging", 3)
        victim = stage.worker()
        await stage.until_noted("start", 3)
        victim.kill()
        await stage.killed_itself(stage.worker(point))
        stage.worker()
        # The one that rescued them may have taken them itself before it died.
        await stage.check_all_completed(lost=6)


@pytest.mark.parametrize("point", ["statement job_last", "statement ready_add_new", "enqueued"])
async def test_a_producer_dies(point: str, tmp_path: Path) -> None:
    """It cannot know whether its jobs are stored; asking again by id makes it true, once."""
    async with Stage(tmp_path) as stage:
        ids = [f"quick-{n}" for n in range(5)]
        await stage.killed_itself(stage.producer(point, "quick", ids))
        stored = sum((await stage.store.counts()).values())
        assert stored == (5 if point == "enqueued" else 0)
        assert await stage.exit_code(stage.producer(None, "quick", ids)) == 0
        stage.jobs = ids
        stage.worker()
        await stage.check_all_completed(lost=0)
