"""Jobs that match a filter are changed page by page."""

from __future__ import annotations

import pytest

from nimburion.core.bulk_operations import BulkAction
from nimburion.core.job import JobOptions, State
from nimburion.core.paging import change_matching
from nimburion.core.queries import EVERY_JOB, JobFilter
from nimburion.testing.contract.harness import Harness
from nimburion.testing.contract.maintaining.dead_letters import make_dead_letters


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (EVERY_JOB, {"a", "b", "c", "d"}),
        (JobFilter(queue="red"), {"b"}),
        (JobFilter(name="post"), {"c"}),
        (JobFilter(reason="lost"), {"d"}),
        (JobFilter(ids=("a", "d", "unknown")), {"a", "d"}),
        (JobFilter(states=frozenset({State.FAILED, State.PENDING}), queue="red"), {"b"}),
        (JobFilter(name="post", queue="red"), set()),
        (JobFilter(states=frozenset({State.COMPLETED})), set()),
        (JobFilter(min_failures=2), set()),
    ],
    ids=["all", "queue", "name", "reason", "ids", "states", "none", "no such state", "search"],
)
async def test_a_filter_chooses(harness: Harness, which: JobFilter, expected: set[str]) -> None:
    await make_dead_letters(harness, "a")
    await make_dead_letters(harness, "b", queue="red")
    await make_dead_letters(harness, "c", name="post")
    await make_dead_letters(harness, "d", reason="lost")
    await harness.add("waits")
    replayed = await change_matching(harness.backend, BulkAction.REPLAY, which, 10)
    assert set(replayed.ids) == expected


async def test_the_limit_holds_and_the_cursor_continues(harness: Harness) -> None:
    """Jobs whose key another job holds count, and are reported once."""
    await harness.put(harness.job("b", options=JobOptions(unique_key="k")))
    await make_dead_letters(harness, *"abcde")
    await harness.put(harness.job("f", options=JobOptions(unique_key="k")))
    found = [await change_matching(harness.backend, BulkAction.REPLAY, EVERY_JOB, 2)]
    while (after := found[-1].next) is not None:
        found.append(await change_matching(harness.backend, BulkAction.REPLAY, EVERY_JOB, 2, after))
    assert [len(page.ids) + len(page.held) for page in found] == [2, 2, 1]
    assert sorted(job_id for page in found for job_id in page.ids) == ["a", "c", "d", "e"]
    assert [job_id for page in found for job_id in page.held] == ["b"]


async def test_more_jobs_than_one_step_changes(harness: Harness) -> None:
    ids = [f"{n}" for n in range(1_200)]
    await harness.enqueue(*(harness.job(one, after=60.0) for one in ids))
    changed = await change_matching(harness.backend, BulkAction.RUN_NOW, EVERY_JOB, 2_000)
    assert (sorted(changed.ids), changed.next) == (sorted(ids), None)
