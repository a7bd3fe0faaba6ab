"""Queries: complete records, stable pages, exact counts."""

from __future__ import annotations

import pytest

from nimburion.core.errors import InvalidJob, JobNotFound
from nimburion.core.job import JobOptions, State
from nimburion.core.maintenance import Retention
from nimburion.core.queries import JobFilter, QueueInfo
from nimburion.core.settlement import Completed, Failed, Retried
from nimburion.testing.contract.changing import delete, replay
from nimburion.testing.contract.harness import FAILURE, Harness
from nimburion.testing.contract.job_states import JOB_STATES

_FINISHED = (State.COMPLETED, State.FAILED, State.CANCELLED)


async def list_ids(harness: Harness, which: JobFilter) -> list[str]:
    """Return the ids that a filter matches, in list order."""
    return [job.id for job in (await harness.backend.reads.list_jobs(which)).jobs]


async def list_pages(harness: Harness, which: JobFilter, limit: int) -> list[list[str]]:
    """Return all pages as lists of ids."""
    pages: list[list[str]] = []
    after: str | None = None
    while True:
        page = await harness.backend.reads.list_jobs(which, limit=limit, after=after)
        pages.append([job.id for job in page.jobs])
        after = page.next
        if after is None:
            return pages


FILTERS: list[tuple[JobFilter, list[str]]] = [
    (JobFilter(), ["e", "d", "c", "b", "a"]),
    (JobFilter(queue="red"), ["b"]),
    (JobFilter(name="post"), ["c"]),
    (JobFilter(name="post", queue="red"), []),
    (JobFilter(reason="permanent"), ["d"]),
    (JobFilter(ids=("a", "c", "unknown")), ["c", "a"]),
    (JobFilter(ids=()), []),
    (JobFilter(states=frozenset({State.PENDING})), ["c", "b"]),
    (JobFilter(states=frozenset({State.FAILED, State.SCHEDULED})), ["e", "d"]),
    (JobFilter(states=frozenset({State.PENDING}), ids=("a", "b")), ["b"]),
    (JobFilter(states=frozenset(State)), ["e", "d", "c", "b", "a"]),
    (JobFilter(states=frozenset()), []),
    (JobFilter(queue="nowhere"), []),
]
"""Filters, and the jobs that they choose in `test_all_conditions_of_a_filter_must_hold`."""


class ReadingCases:
    """`get_job`, `list_jobs`, `count_jobs`, `list_queues`."""

    async def test_an_unknown_id_is_not_found(self, harness: Harness) -> None:
        with pytest.raises(JobNotFound) as caught:
            await harness.backend.reads.get_job("unknown")
        assert caught.value.job_id == "unknown"

    @pytest.mark.parametrize("state", JOB_STATES)
    async def test_every_state_is_read_alike(self, harness: Harness, state: str) -> None:
        """`get_job`, `list_jobs`, `count_jobs` and the filter by state agree."""
        job_id = await JOB_STATES[state](harness)
        expected = State(state.replace(",", "").split(maxsplit=1)[0])
        record = await harness.backend.reads.get_job(job_id)
        assert record.state is expected
        assert (await harness.backend.reads.list_jobs(payloads=True)).jobs == [record]
        assert (await harness.backend.reads.count_jobs())[expected] == 1
        assert sum((await harness.backend.reads.count_jobs()).values()) == 1
        for other in State:
            page = await harness.backend.reads.list_jobs(JobFilter(states=frozenset({other})))
            assert [job.id for job in page.jobs] == ([job_id] if other is expected else [])

    @pytest.mark.parametrize("state", JOB_STATES)
    async def test_what_belongs_to_a_state_is_there_and_nothing_else(
        self, harness: Harness, state: str
    ) -> None:
        record = await harness.backend.reads.get_job(await JOB_STATES[state](harness))
        finished = record.state.finished
        assert (record.finished_at is not None) is finished
        assert (record.session is not None) is (record.state is State.PROCESSING)
        assert (record.payload is None) is (finished and record.state is not State.FAILED)
        assert record.cancel_requested is (state == "processing, cancel requested")
        assert (record.progress is not None) is (state == "processing, with progress")
        assert (record.result is not None) is (record.state is State.COMPLETED)
        untouched = {"pending", "scheduled", "cancelled while waiting"}
        assert (record.started_at is None) is (state in untouched)

    @pytest.mark.parametrize("size", [2, 100_000])
    async def test_a_list_has_the_first_bytes_of_payloads(
        self, harness: Harness, size: int
    ) -> None:
        """Large payloads may be stored apart."""
        payload = bytes(range(97, 123)) * (size // 26 + 1)
        await harness.put(harness.job("a", payload=payload))
        for asked in (1, 20, len(payload) + 1):
            page = await harness.backend.reads.list_jobs(payloads=True, payload_bytes=asked)
            assert page.jobs[0].payload == payload[:asked]
        (job,) = (await harness.backend.reads.list_jobs(payload_bytes=20)).jobs
        assert job.payload is None
        assert (await harness.backend.reads.get_job("a")).payload == payload

    async def test_reading_changes_nothing(self, harness: Harness) -> None:
        await harness.add("a")
        await harness.put(harness.job("b", after=5.0))
        harness.clock.advance(5.0)
        before = (await harness.backend.reads.list_jobs(payloads=True)).jobs
        for _ in range(2):
            await harness.backend.reads.get_job("a")
            await harness.backend.reads.count_jobs()
            await harness.backend.reads.list_queues()
            await harness.backend.reads.list_sessions()
        assert (await harness.backend.reads.list_jobs(payloads=True)).jobs == before
        assert (await harness.backend.consuming.promote(10)).count == 1

    async def test_the_newest_enqueue_comes_first(self, harness: Harness) -> None:
        """Due times and priorities do not matter."""
        await harness.put(harness.job("a", after=9.0))
        await harness.put(harness.job("c", priority=9))
        await harness.put(harness.job("b", at=1.0))
        assert [job.id for job in (await harness.backend.reads.list_jobs()).jobs] == ["b", "c", "a"]

    async def test_payloads_come_only_when_asked_for(self, harness: Harness) -> None:
        await harness.add("a")
        assert (await harness.backend.reads.list_jobs()).jobs[0].payload is None
        assert (await harness.backend.reads.list_jobs(payloads=True)).jobs[0].payload == b"{}"

    async def test_an_empty_backend_has_one_empty_page(self, harness: Harness) -> None:
        page = await harness.backend.reads.list_jobs()
        assert (page.jobs, page.next) == ([], None)

    @pytest.mark.parametrize("limit", [1, 3, 10, 11])
    async def test_pages_have_no_gaps_and_no_doubles(self, harness: Harness, limit: int) -> None:
        await harness.add(*(f"{n}" for n in range(10)))
        seen: list[str] = []
        after: str | None = None
        while True:
            page = await harness.backend.reads.list_jobs(limit=limit, after=after)
            assert len(page.jobs) <= limit
            seen += [job.id for job in page.jobs]
            after = page.next
            if after is None:
                break
        assert seen == [f"{n}" for n in reversed(range(10))]

    async def test_a_page_that_is_just_full_is_the_last(self, harness: Harness) -> None:
        await harness.add("a", "b")
        assert (await harness.backend.reads.list_jobs(limit=2)).next is None

    async def test_pages_are_stable_while_others_enqueue(self, harness: Harness) -> None:
        await harness.add("a", "b", "c", "d")
        first = await harness.backend.reads.list_jobs(limit=2)
        await harness.add("e", "f")
        second = await harness.backend.reads.list_jobs(limit=2, after=first.next)
        assert [job.id for job in first.jobs + second.jobs] == ["d", "c", "b", "a"]

    async def test_pages_are_stable_while_jobs_move(self, harness: Harness) -> None:
        await harness.add("a", "b", "c", "d")
        first = await harness.backend.reads.list_jobs(limit=2)
        worker = await harness.worker()
        for delivery in await worker.take(4):
            await worker.settle(Completed(delivery.lease))
        second = await harness.backend.reads.list_jobs(limit=2, after=first.next)
        assert [job.id for job in second.jobs] == ["b", "a"]

    async def test_pages_of_a_filter(self, harness: Harness) -> None:
        for n in range(9):
            await harness.put(harness.job(f"{n}", queue=("red", "blue", "red")[n % 3]))
        first = await harness.backend.reads.list_jobs(JobFilter(queue="red"), limit=4)
        second = await harness.backend.reads.list_jobs(
            JobFilter(queue="red"), limit=4, after=first.next
        )
        assert [job.id for job in first.jobs + second.jobs] == ["8", "6", "5", "3", "2", "0"]
        assert second.next is None

    async def test_a_cursor_of_another_backend_is_refused(self, harness: Harness) -> None:
        await harness.add("a")
        with pytest.raises(InvalidJob):
            await harness.backend.reads.list_jobs(after="no cursor")

    async def test_all_conditions_of_a_filter_must_hold(self, harness: Harness) -> None:
        await harness.put(harness.job("a", name="scan"))
        await harness.put(harness.job("b", queue="red"))
        await harness.put(harness.job("c", name="post"))
        await harness.put(harness.job("d", name="dies"))
        await harness.put(harness.job("e", after=60.0))
        worker = await harness.worker(names=("scan", "dies"))
        scan, dies = [delivery.lease for delivery in await worker.take(2)]
        await worker.settle(
            Retried(scan, 60.0, FAILURE),
            Failed(dies, "permanent", FAILURE),
        )
        for which, expected in FILTERS:
            page = await harness.backend.reads.list_jobs(which)
            assert [job.id for job in page.jobs] == expected, which

    async def test_every_state_has_a_count(self, harness: Harness) -> None:
        assert await harness.backend.reads.count_jobs() == dict.fromkeys(State, 0)

    async def test_counts_equal_what_the_list_shows(self, harness: Harness) -> None:
        for build in JOB_STATES.values():
            await build(harness)
        jobs = (await harness.backend.reads.list_jobs(limit=1_000)).jobs
        walked = {state: sum(job.state is state for job in jobs) for state in State}
        assert await harness.backend.reads.count_jobs() == walked

    async def test_counts_follow_what_operators_do(self, harness: Harness) -> None:
        """Also where finished jobs are counted as they end, not when they are read."""
        await harness.add("completed", "failed", queue="red")
        await harness.add("replayed", "deleted", "pruned", queue="blue")
        await harness.add("cancelled", queue="blue")
        await harness.backend.producing.cancel("cancelled")
        worker = await harness.worker(queues=("red", "blue"))
        by_id = {one.lease.job_id: one.lease for one in await worker.take(10)}
        await worker.settle(
            Completed(by_id["pruned"]),
            *(Failed(by_id[job_id], "exhausted", FAILURE) for job_id in ("failed", "replayed")),
        )
        await worker.settle(Completed(by_id["deleted"]))
        harness.clock.advance(100.0)
        await worker.heartbeat()
        await worker.settle(Completed(by_id["completed"]))
        counts = await harness.backend.reads.count_jobs()
        assert [counts[state] for state in _FINISHED] == [3, 2, 1]
        await replay(harness.backend, JobFilter(ids=("replayed",)), 10)
        await replay(harness.backend, JobFilter(ids=("replayed",)), 10)
        await delete(harness.backend, JobFilter(ids=("deleted", "replayed")), 10)
        counts = await harness.backend.reads.count_jobs()
        assert [counts[state] for state in _FINISHED] == [2, 1, 1]
        await harness.backend.maintenance.prune(Retention(completed=50.0), 10)
        counts = await harness.backend.reads.count_jobs()
        assert [counts[state] for state in _FINISHED] == [1, 1, 0]
        assert (await harness.backend.reads.count_jobs("red"))[State.COMPLETED] == 1
        assert (await harness.backend.reads.count_jobs("blue"))[State.PENDING] == 1
        await harness.backend.maintenance.prune(Retention(completed_max=0), 10)
        assert sum((await harness.backend.reads.count_jobs()).values()) == 2

    async def test_counts_of_one_queue(self, harness: Harness) -> None:
        await harness.add("a", "b", queue="red")
        await harness.add("c", queue="blue")
        worker = await harness.worker(queues=("red",))
        await worker.settle(Completed((await worker.take_one()).lease))
        counts = await harness.backend.reads.count_jobs("red")
        assert (counts[State.PENDING], counts[State.COMPLETED], len(counts)) == (1, 1, len(State))
        assert sum((await harness.backend.reads.count_jobs("nowhere")).values()) == 0

    async def test_queues_show_what_waits_and_what_runs(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        harness.clock.advance(10.0)
        await harness.put(harness.job("d", after=60.0))
        await harness.add("e", queue="another")
        worker = await harness.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 60.0, FAILURE))
        await worker.take_one()
        assert await harness.backend.reads.list_queues() == [
            QueueInfo(
                name="another",
                size=1,
                scheduled=0,
                processing=0,
                oldest_age=0.0,
                paused=False,
                names={"mail": 1},
            ),
            QueueInfo(
                name="default",
                size=1,
                scheduled=2,
                processing=1,
                oldest_age=10.0,
                paused=False,
                names={"mail": 3},
            ),
        ]

    async def test_a_budget_bounds_how_many_jobs_of_queues_are_counted(
        self, harness: Harness
    ) -> None:
        """Where a number is marked as complete, it is exact. Otherwise it is too small."""
        now = harness.clock.now()
        for number in range(5):
            await harness.put(harness.job(at=now - number, priority=number, queue="many"))
            await harness.put(harness.job(after=60.0 + number, queue="many"))
        await harness.put(harness.job(queue="few"))
        worker = await harness.worker(queues=("few",))
        await worker.take_one()
        await harness.put(harness.job(queue="few"))
        exact = {info.name: info for info in await harness.backend.reads.list_queues()}
        assert all(info.size_complete and info.scheduled_complete for info in exact.values())
        assert list(exact.values()) == await harness.backend.reads.list_queues(budget=1_000)
        bounded = {info.name: info for info in await harness.backend.reads.list_queues(budget=4)}
        for name, info in bounded.items():
            true = exact[name]
            assert info.size == true.size if info.size_complete else 0 < info.size <= true.size
            assert info.scheduled_complete or info.scheduled <= true.scheduled
            assert not info.scheduled_complete or info.scheduled == true.scheduled
            assert (info.processing, info.oldest_age) == (true.processing, true.oldest_age)
        assert bounded["few"].size == 1

    async def test_a_budget_bounds_how_many_jobs_are_counted(self, harness: Harness) -> None:
        """A count that is marked as complete is exact. Others are too small, but those of jobs that
        ended or run are not."""
        tenant = JobOptions(tenant="a")
        await harness.enqueue(*(harness.job(queue="many") for _ in range(5)))
        await harness.enqueue(*(harness.job(queue="many", options=tenant) for _ in range(5)))
        await harness.enqueue(*(harness.job(after=60.0, queue="many") for _ in range(5)))
        await harness.enqueue(*(harness.job(queue="few") for _ in range(3)))
        worker = await harness.worker(queues=("few",))
        completed, failed, _ = await worker.take(3)
        await worker.settle(Completed(completed.lease), Failed(failed.lease, "permanent", FAILURE))
        for queue in (None, "many", "few", "none"):
            exact = await harness.backend.reads.count_jobs(queue, budget=None)
            assert exact.is_complete
            assert exact == await harness.backend.reads.count_jobs(queue, budget=1_000)
            for budget in (4, 12, 20):
                counts = await harness.backend.reads.count_jobs(queue, budget=budget)
                assert counts == exact if counts.is_complete else counts.keys() == exact.keys()
                assert all(counts[state] <= exact[state] for state in State)
                for state in (State.COMPLETED, State.PROCESSING, State.CANCELLED):
                    assert counts[state] == exact[state]

    async def test_queues_show_how_many_jobs_of_each_name_wait(self, harness: Harness) -> None:
        """All priorities count, due or not. Running jobs do not count."""
        await harness.put(harness.job("a", name="mail"))
        await harness.put(harness.job("b", name="mail", priority=9))
        await harness.put(harness.job("c", name="mail", after=60.0))
        await harness.put(harness.job("d", name="post", after=60.0))
        await harness.put(harness.job("e", name="runs", queue="other"))
        worker = await harness.worker(names=("runs",), queues=("other",))
        await worker.take_one()
        default, other = await harness.backend.reads.list_queues()
        assert default.names == {"mail": 3, "post": 1}
        assert (other.name, other.names, other.processing) == ("other", {}, 1)

    async def test_a_queue_of_finished_jobs_is_not_listed(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Completed((await worker.take_one()).lease))
        assert await harness.backend.reads.list_queues() == []

    async def test_the_oldest_is_the_one_that_has_been_due_for_longest(
        self, harness: Harness
    ) -> None:
        """It is neither the first in order of delivery nor the first enqueued."""
        now = harness.clock.now()
        await harness.put(harness.job(at=now - 5.0, priority=9))
        await harness.put(harness.job(at=now - 50.0, priority=1, name="post"))
        await harness.put(harness.job(at=now + 50.0))
        (queue,) = await harness.backend.reads.list_queues()
        assert (queue.oldest_age, queue.size, queue.scheduled) == (50.0, 2, 1)

    async def test_a_queue_where_all_runs_has_no_age(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        harness.clock.advance(10.0)
        await worker.take_one()
        (queue,) = await harness.backend.reads.list_queues()
        assert (queue.size, queue.processing, queue.oldest_age) == (0, 1, 0.0)

    async def test_paging_continues_when_the_last_seen_job_is_gone(self, harness: Harness) -> None:
        await harness.add(*"abcd")
        first = await harness.backend.reads.list_jobs(limit=2)
        await harness.backend.producing.cancel("c")
        await delete(harness.backend, JobFilter(ids=("c",)), 10)
        second = await harness.backend.reads.list_jobs(limit=2, after=first.next)
        assert [job.id for job in second.jobs] == ["b", "a"]

    async def test_a_filter_by_state_sees_that_time_has_passed(self, harness: Harness) -> None:
        await harness.put(harness.job("a", after=5.0))
        pending = JobFilter(states=frozenset({State.PENDING}))
        assert await list_ids(harness, pending) == []
        harness.clock.advance(5.0)
        assert await list_ids(harness, pending) == ["a"]

    async def test_pages_by_ids_hold_each_match_once(self, harness: Harness) -> None:
        await harness.add(*"abcdef")
        which = JobFilter(ids=("f", "b", "a", "d"))
        assert await list_pages(harness, which, 3) == [["f", "d", "b"], ["a"]]

    async def test_queues_are_sorted_by_name(self, harness: Harness) -> None:
        for queue in ("red", "blue", "Green", "a.b"):
            await harness.add(queue=queue)
        names = [info.name for info in await harness.backend.reads.list_queues()]
        assert names == sorted(["red", "blue", "Green", "a.b"])

    async def test_what_others_did_is_seen_through_every_handle(self, fleet: Harness) -> None:
        await fleet.handles[1].producing.enqueue([fleet.job("a")])
        for handle in fleet.handles:
            assert (await handle.reads.get_job("a")).state is State.PENDING
        await fleet.handles[2].producing.cancel("a")
        for handle in fleet.handles:
            assert (await handle.reads.get_job("a")).state is State.CANCELLED
