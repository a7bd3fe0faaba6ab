"""Searches of jobs without an index, their budget, and groups of dead letters."""

from __future__ import annotations

import msgspec
import pytest

from nimburion.core.job import JobOptions, State
from nimburion.core.queries import EVERY_JOB, JobFilter, move_cursor
from nimburion.core.settlement import Completed, Failed, Retried
from nimburion.core.text.fingerprints import LOST_FINGERPRINT
from nimburion.testing.contract.changing import delete, replay
from nimburion.testing.contract.harness import FAILURE, Harness

FIRST, SECOND = "00000000000000aa", "00000000000000bb"
"""Two fingerprints."""


async def list_ids(harness: Harness, which: JobFilter) -> list[str]:
    """Return the ids that a filter matches, sorted, from all pages."""
    found: list[str] = []
    after: str | None = None
    while True:
        page = await harness.backend.reads.list_jobs(which, limit=2, after=after)
        found += [job.id for job in page.jobs]
        if page.next is None:
            return sorted(found)
        after = page.next


async def fail(harness: Harness, job_id: str, fingerprint: str, *, name: str = "mail") -> None:
    """Enqueue a job and let it become a dead letter with this fingerprint."""
    await harness.put(harness.job(job_id, name=name))
    worker = await harness.worker(names=(name,))
    error = msgspec.structs.replace(FAILURE, fingerprint=fingerprint, message=f"of {job_id}")
    await worker.settle(Failed((await worker.take_one()).lease, "permanent", error))
    await worker.close()


class Searching:
    """`list_jobs` with the fields of `JobFilter` that have no index."""

    async def test_jobs_are_found_by_their_creation_time(self, harness: Harness) -> None:
        start = harness.clock.now()
        for job_id in ("a", "b", "c"):
            await harness.put(harness.job(job_id))
            harness.clock.advance(10.0)
        which = JobFilter(created_from=start + 10.0, created_to=start + 20.0)
        assert await list_ids(harness, which) == ["b"]
        assert await list_ids(harness, JobFilter(created_from=start + 10.0)) == ["b", "c"]
        assert await list_ids(harness, JobFilter(created_to=start + 10.0)) == ["a"]

    async def test_jobs_are_found_by_their_finish_time(self, harness: Harness) -> None:
        await harness.add("a", "b", "c", "waiting")
        start = harness.clock.now()
        worker = await harness.worker()
        for _ in range(3):
            await worker.settle(Completed((await worker.take_one()).lease))
            harness.clock.advance(1.0)
        which = JobFilter(finished_from=start + 1.0, finished_to=start + 2.0)
        assert await list_ids(harness, which) == ["b"]
        assert await list_ids(harness, JobFilter(finished_to=start + 99.0)) == ["a", "b", "c"]
        assert await list_ids(harness, JobFilter(finished_from=start)) == ["a", "b", "c"]

    async def test_jobs_are_found_by_tenant_and_correlation_id(self, harness: Harness) -> None:
        for job_id, tenant, correlation in (("a", "x", "1"), ("b", "x", "2"), ("c", None, "1")):
            options = JobOptions(tenant=tenant, correlation_id=correlation)
            await harness.put(harness.job(job_id, options=options))
        await harness.add("d")
        assert await list_ids(harness, JobFilter(tenant="x")) == ["a", "b"]
        assert await list_ids(harness, JobFilter(correlation_id="1")) == ["a", "c"]
        assert await list_ids(harness, JobFilter(tenant="x", correlation_id="1")) == ["a"]

    async def test_jobs_are_found_by_tag(self, harness: Harness) -> None:
        await harness.put(harness.job("a", options=JobOptions(tags=("media", "eu"))))
        await harness.put(harness.job("b", options=JobOptions(tags=("media2",))))
        await harness.put(harness.job("c", options=JobOptions(tenant="media", headers={"a": "eu"})))
        await harness.add("d")
        assert await list_ids(harness, JobFilter(tag="media")) == ["a"]
        assert await list_ids(harness, JobFilter(tag="eu", tenant="media")) == []
        assert await list_ids(harness, JobFilter(tag="edi")) == []
        worker = await harness.worker()
        await worker.settle(Completed((await worker.take_one()).lease))
        assert await list_ids(harness, JobFilter(tag="eu")) == ["a"]
        assert (await harness.backend.reads.get_job("a")).options.tags == ("media", "eu")

    async def test_dead_letters_are_found_and_grouped_by_tag(self, harness: Harness) -> None:
        await harness.put(harness.job("a", options=JobOptions(tags=("media",))))
        await harness.add("b")
        worker = await harness.worker()
        for delivery in await worker.take(2):
            await worker.settle(Failed(delivery.lease, "permanent", FAILURE))
        which = JobFilter(tag="media", states=frozenset({State.FAILED}))
        assert await list_ids(harness, which) == ["a"]
        groups = (await harness.backend.reads.group_failures(JobFilter(tag="media"))).groups
        assert [(group.count, group.job_id) for group in groups] == [(1, "a")]

    async def test_a_cursor_continues_in_any_list_of_jobs(self, harness: Harness) -> None:
        """It is a place in the order of storage, so a search can begin near a job that is known."""
        await harness.add("a", "b", "c", "d", "e")
        reads = harness.backend.reads
        known = await reads.list_jobs(JobFilter(ids=("b", "d")), limit=1)
        assert [job.id for job in known.jobs] == ["d"]
        assert known.next is not None
        rest = await reads.list_jobs(after=known.next)
        assert [job.id for job in rest.jobs] == ["c", "b", "a"]
        found = await reads.list_jobs(after=move_cursor(known.next, 1))
        assert [job.id for job in found.jobs] == ["d", "c", "b", "a"]
        newer = await reads.list_jobs(after=move_cursor(known.next, 10**9), limit=2)
        assert [job.id for job in newer.jobs] == ["e", "d"]

    async def test_jobs_are_found_by_their_failures(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 99.0, FAILURE))
        assert await list_ids(harness, JobFilter(min_failures=1)) == ["a"]
        assert await list_ids(harness, JobFilter(min_failures=0)) == ["a", "b"]
        assert await list_ids(harness, JobFilter(min_failures=2)) == []

    async def test_dead_letters_are_found_by_their_fingerprint(self, harness: Harness) -> None:
        await fail(harness, "a", FIRST)
        await fail(harness, "b", SECOND)
        await harness.add("c")
        assert await list_ids(harness, JobFilter(fingerprint=FIRST)) == ["a"]
        assert (await harness.backend.reads.get_job("b")).fingerprint == SECOND

    async def test_a_search_joins_with_the_other_fields(self, harness: Harness) -> None:
        tenant = JobOptions(tenant="x")
        await harness.put(harness.job("a", queue="red", options=tenant))
        await harness.put(harness.job("b", queue="blue", options=tenant))
        await harness.put(harness.job("c", queue="red"))
        which = JobFilter(tenant="x", queue="red", states=frozenset({State.PENDING}))
        assert await list_ids(harness, which) == ["a"]

    @pytest.mark.parametrize("budget", [1, 3, 7])
    async def test_a_search_stops_at_its_budget_and_continues(
        self, harness: Harness, budget: int
    ) -> None:
        for n in range(12):
            tenant = "x" if n % 5 == 0 else None
            await harness.put(harness.job(f"{n:02}", options=JobOptions(tenant=tenant)))
        found: list[str] = []
        after: str | None = None
        pages = 0
        while True:
            page = await harness.backend.reads.list_jobs(
                JobFilter(tenant="x"), limit=10, after=after, budget=budget
            )
            assert len(page.jobs) <= page.examined <= budget
            found += [job.id for job in page.jobs]
            pages += 1
            if page.next is None:
                break
            after = page.next
        assert found == ["10", "05", "00"]
        assert pages >= 12 // budget

    async def test_running_and_failed_jobs_are_found_however_many_others_wait(
        self, harness: Harness
    ) -> None:
        """They are the oldest, and the budget of a search ends long before."""
        await fail(harness, "failed", FIRST)
        await harness.add("running")
        worker = await harness.worker()
        await worker.take_one()
        await harness.add(*(f"{n}" for n in range(9)))
        for state, job_id in ((State.PROCESSING, "running"), (State.FAILED, "failed")):
            page = await harness.backend.reads.list_jobs(
                JobFilter(states=frozenset({state})), budget=2
            )
            assert ([job.id for job in page.jobs], page.examined) == ([job_id], 1)
            assert page.next is None

    async def test_jobs_are_found_by_id_however_many_others_are_newer(
        self, harness: Harness
    ) -> None:
        """The call does not examine the others, so their number costs nothing."""
        await harness.add("first", "second", *(f"{n}" for n in range(9)))
        which = JobFilter(ids=("first", "unknown", "second"))
        page = await harness.backend.reads.list_jobs(which, limit=3, budget=2)
        assert [job.id for job in page.jobs] == ["second", "first"]
        assert (page.examined, page.next) == (2, None)


class FailureGroupCases:
    """`group_failures`."""

    async def test_dead_letters_are_grouped_by_fingerprint(self, harness: Harness) -> None:
        start = harness.clock.now()
        await fail(harness, "a", FIRST)
        harness.clock.advance(5.0)
        await fail(harness, "b", SECOND)
        harness.clock.advance(5.0)
        await fail(harness, "c", FIRST, name="post")
        await harness.add("waiting")
        found = await harness.backend.reads.group_failures()
        assert (found.examined, found.complete) == (3, True)
        first, second = found.groups
        assert (first.fingerprint, first.count, first.names) == (FIRST, 2, ("mail", "post"))
        assert (first.first, first.last) == (start, start + 10.0)
        assert (first.type, first.message, first.job_id) == ("ValueError", "of c", "c")
        assert (second.fingerprint, second.count, second.job_id) == (SECOND, 1, "b")

    async def test_groups_count_what_failed_since_given_times(self, harness: Harness) -> None:
        start = harness.clock.now()
        for job_id, fingerprint in (("a", FIRST), ("b", FIRST), ("c", SECOND), ("d", FIRST)):
            await fail(harness, job_id, fingerprint)
            harness.clock.advance(10.0)
        since = (start + 20.0, start + 10.0, start + 31.0)
        found = await harness.backend.reads.group_failures(since=since)
        counts = {group.fingerprint: group.counts_since for group in found.groups}
        assert counts == {FIRST: (1, 2, 0), SECOND: (1, 1, 0)}
        unasked = await harness.backend.reads.group_failures()
        assert [group.counts_since for group in unasked.groups] == [(), ()]

    async def test_groups_have_only_what_failed_in_a_time(self, harness: Harness) -> None:
        start = harness.clock.now()
        for job_id, fingerprint in (("a", FIRST), ("b", SECOND), ("c", SECOND), ("d", FIRST)):
            await fail(harness, job_id, fingerprint)
            harness.clock.advance(10.0)
        which = JobFilter(finished_from=start + 10.0, finished_to=start + 40.0)
        found = await harness.backend.reads.group_failures(which)
        assert [(group.fingerprint, group.count) for group in found.groups] == [
            (SECOND, 2),
            (FIRST, 1),
        ]
        assert found.groups[1].first == found.groups[1].last == start + 30.0

    async def test_groups_are_limited_and_filtered(self, harness: Harness) -> None:
        await fail(harness, "a", FIRST)
        await fail(harness, "b", SECOND)
        await fail(harness, "c", SECOND, name="post")
        limited = await harness.backend.reads.group_failures(limit=1)
        assert [group.fingerprint for group in limited.groups] == [SECOND]
        filtered = await harness.backend.reads.group_failures(JobFilter(name="mail"))
        assert sorted((group.fingerprint, group.count) for group in filtered.groups) == [
            (FIRST, 1),
            (SECOND, 1),
        ]

    async def test_grouping_stops_at_its_budget(self, harness: Harness) -> None:
        for job_id in ("a", "b", "c"):
            await fail(harness, job_id, FIRST)
        found = await harness.backend.reads.group_failures(budget=2)
        assert (found.examined, found.complete) == (2, False)
        assert [group.count for group in found.groups] == [2]
        whole = await harness.backend.reads.group_failures(budget=3)
        assert (whole.examined, whole.complete) == (3, True)

    async def test_lost_jobs_are_one_group(self, harness: Harness) -> None:
        await harness.add("a", "b")
        for _ in range(2):
            worker = await harness.worker()
            await worker.take_one()
            await harness.lose(worker, max_lost=1)
        (group,) = (await harness.backend.reads.group_failures()).groups
        assert (group.fingerprint, group.count) == (LOST_FINGERPRINT, 2)

    async def test_replayed_and_deleted_jobs_leave_their_group(self, harness: Harness) -> None:
        for job_id in ("a", "b", "c"):
            await fail(harness, job_id, FIRST)
        await replay(harness.backend, JobFilter(ids=("a",)), 1)
        await delete(harness.backend, JobFilter(ids=("b",)), 1)
        (group,) = (await harness.backend.reads.group_failures()).groups
        assert (group.count, group.job_id) == (1, "c")

    async def test_without_dead_letters_there_is_no_group(self, harness: Harness) -> None:
        await harness.add("a")
        found = await harness.backend.reads.group_failures(EVERY_JOB)
        assert (found.groups, found.examined, found.complete) == ([], 0, True)
