"""Jobs that match a filter are changed page by page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nimburion.core.bulk_operations import BulkAction
from nimburion.core.job import JobOptions, State
from nimburion.core.paging import change_matching
from nimburion.core.queries import EVERY_JOB, JobFilter, Page
from nimburion.core.settlement import Completed
from nimburion.testing.contract.harness import Harness
from nimburion.testing.contract.maintaining.dead_letters import make_dead_letters
from tests.overridden import BackendWrapper, get_operation


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


class ChangingAfterList(BackendWrapper):
    """A handle that calls `change` between the list of a page and the change of its jobs."""

    def __init__(self, backend: Any, change: Callable[[], Awaitable[None]]) -> None:
        self._backend = backend
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return get_operation(self._backend, name)

    async def list_jobs(self, *arguments: Any, **options: Any) -> Page:
        page: Page = await self._backend.reads.list_jobs(*arguments, **options)
        await self._change()
        return page


async def test_a_dead_letter_that_completes_after_the_list_is_not_deleted(harness: Harness) -> None:
    await make_dead_letters(harness, "a")

    async def replay_and_complete() -> None:
        await harness.backend.maintenance.change_jobs(BulkAction.REPLAY, ["a"])
        worker = await harness.worker()
        await worker.settle(Completed((await worker.take_one()).lease, None))

    backend: Any = ChangingAfterList(harness.backend, replay_and_complete)
    which = JobFilter(states=frozenset({State.FAILED}))
    deleted = await change_matching(backend, BulkAction.DELETE, which, 10)
    assert deleted.ids == []
    assert await harness.state("a") is State.COMPLETED


async def test_a_scheduled_job_that_starts_after_the_list_is_not_cancelled(
    harness: Harness,
) -> None:
    await harness.put(harness.job("a", after=60.0))

    async def start() -> None:
        harness.clock.advance(60.0)
        await harness.backend.consuming.promote(10)
        await (await harness.worker()).take_one()

    backend: Any = ChangingAfterList(harness.backend, start)
    which = JobFilter(states=frozenset({State.SCHEDULED}))
    assert (await change_matching(backend, BulkAction.CANCEL, which, 10)).ids == []
    assert not (await harness.backend.reads.get_job("a")).cancel_requested
