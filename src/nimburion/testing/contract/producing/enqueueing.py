"""`enqueue`: stores each job once, accepts or rejects the whole call, and loses no job."""

from __future__ import annotations

import pytest

from nimburion.core.errors import JobNotFound
from nimburion.core.job import Enqueued, JobOptions, JobRecord, NewJob, State
from nimburion.core.settlement import Cancelled, Completed, Failed, Settlement
from nimburion.testing.contract.harness import FAILURE, Harness, ids


class EnqueueCases:
    """`enqueue`."""

    async def test_a_new_job_is_created_and_pending(self, harness: Harness) -> None:
        assert await harness.enqueue(harness.job("a")) == [Enqueued("a", "created")]
        assert await harness.state("a") is State.PENDING

    async def test_every_field_is_kept(self, harness: Harness) -> None:
        options = JobOptions(
            headers={"trace": "1", "ümlaut": "ß"},
            tenant="acme",
            correlation_id="c-1",
            unique_key="k",
            unique_for=60.0,
            on_duplicate="existing",
            max_retries=0,
            timeout=1.5,
            expires=60.0,
        )
        job = harness.job("a", payload=b'{"n":1}', priority=9, after=10.0, options=options)
        await harness.put(job)
        now = harness.clock.now()
        assert await harness.backend.reads.get_job("a") == JobRecord(
            id="a",
            name="mail",
            queue="default",
            state=State.SCHEDULED,
            priority=9,
            payload=b'{"n":1}',
            due=now + 10.0,
            created_at=now,
            options=options,
        )

    async def test_results_come_in_the_order_of_the_jobs(self, harness: Harness) -> None:
        await harness.add("b")
        results = await harness.enqueue(harness.job("c"), harness.job("b"), harness.job("a"))
        assert results == [
            Enqueued("c", "created"),
            Enqueued("b", "exists"),
            Enqueued("a", "created"),
        ]

    async def test_an_empty_call_answers_an_empty_list(self, harness: Harness) -> None:
        assert await harness.enqueue() == []

    async def test_the_same_id_and_body_exists(self, harness: Harness) -> None:
        await harness.add("a")
        before = await harness.backend.reads.get_job("a")
        assert await harness.enqueue(harness.job("a")) == [Enqueued("a", "exists")]
        assert await harness.backend.reads.get_job("a") == before

    async def test_only_name_and_payload_make_the_body(self, harness: Harness) -> None:
        """Another queue, priority, time or option under a kept id still returns `exists` and
        changes nothing."""
        await harness.add("a")
        before = await harness.backend.reads.get_job("a")
        other = harness.job(
            "a", queue="other", priority=9, after=60.0, options=JobOptions(tenant="acme")
        )
        assert await harness.enqueue(other) == [Enqueued("a", "exists")]
        assert await harness.backend.reads.get_job("a") == before

    @pytest.mark.parametrize(
        "other",
        [NewJob("a", "mail", "default", b"[]"), NewJob("a", "post", "default", b"{}")],
        ids=["payload", "name"],
    )
    async def test_another_body_under_a_kept_id_is_a_conflict(
        self, harness: Harness, other: NewJob
    ) -> None:
        await harness.add("a")
        before = await harness.backend.reads.get_job("a")
        assert await harness.enqueue(other) == [Enqueued("a", "conflict")]
        assert await harness.backend.reads.get_job("a") == before

    @pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
    async def test_the_id_of_a_finished_job_still_exists_and_does_not_run_again(
        self, harness: Harness, end: str
    ) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        settlements: dict[str, Settlement] = {
            "completed": Completed(lease),
            "failed": Failed(lease, "permanent", FAILURE),
            "cancelled": Cancelled(lease),
        }
        await worker.settle(settlements[end])
        assert await harness.enqueue(harness.job("a")) == [Enqueued("a", "exists")]
        assert await harness.state("a") == end
        assert await worker.take() == []

    async def test_another_body_under_a_finished_id_is_a_conflict(self, harness: Harness) -> None:
        """The digest is kept after the payload is deleted."""
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Completed((await worker.take_one()).lease))
        assert (await harness.backend.reads.get_job("a")).payload is None
        assert await harness.enqueue(harness.job("a", payload=b"[]")) == [Enqueued("a", "conflict")]
        assert await harness.enqueue(harness.job("a")) == [Enqueued("a", "exists")]

    async def test_an_id_twice_in_one_call_is_stored_once(self, harness: Harness) -> None:
        results = await harness.enqueue(harness.job("a"), harness.job("a"))
        assert results == [Enqueued("a", "created"), Enqueued("a", "exists")]
        assert (await harness.backend.reads.count_jobs())[State.PENDING] == 1

    async def test_an_id_twice_in_one_call_with_two_bodies_is_a_conflict(
        self, harness: Harness
    ) -> None:
        results = await harness.enqueue(harness.job("a"), harness.job("a", payload=b"[]"))
        assert results == [Enqueued("a", "refused"), Enqueued("a", "conflict")]
        with pytest.raises(JobNotFound):
            await harness.backend.reads.get_job("a")

    async def test_one_conflict_refuses_the_whole_call(self, harness: Harness) -> None:
        await harness.add("b")
        results = await harness.enqueue(
            harness.job("a"),
            harness.job("b", payload=b"[]"),
            harness.job("c", after=5.0),
            harness.job("b"),
        )
        assert results == [
            Enqueued("a", "refused"),
            Enqueued("b", "conflict"),
            Enqueued("c", "refused"),
            Enqueued("b", "refused"),
        ]
        assert sum((await harness.backend.reads.count_jobs()).values()) == 1

    async def test_a_refused_call_can_be_made_again_without_the_bad_job(
        self, harness: Harness
    ) -> None:
        await harness.add("b")
        await harness.enqueue(harness.job("a"), harness.job("b", payload=b"[]"))
        assert await harness.enqueue(harness.job("a")) == [Enqueued("a", "created")]

    async def test_repeating_a_call_whose_answer_was_lost_stores_nothing_twice(
        self, harness: Harness
    ) -> None:
        jobs = [harness.job() for _ in range(5)]
        await harness.backend.producing.enqueue(jobs[:3])
        again = await harness.backend.producing.enqueue(jobs)
        assert [result.outcome for result in again] == ["exists"] * 3 + ["created"] * 2
        assert (await harness.backend.reads.count_jobs())[State.PENDING] == 5

    async def test_after_is_counted_from_now_on_the_clock_of_the_backend(
        self, harness: Harness
    ) -> None:
        await harness.put(harness.job("a", after=2.5))
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.due) == (State.SCHEDULED, harness.clock.now() + 2.5)

    async def test_at_wins_over_after(self, harness: Harness) -> None:
        at = harness.clock.now() + 7.0
        await harness.put(harness.job("a", at=at, after=100.0))
        assert (await harness.backend.reads.get_job("a")).due == at

    async def test_at_in_the_past_is_due_at_once_and_keeps_its_time(self, harness: Harness) -> None:
        at = harness.clock.now() - 3600.0
        await harness.put(harness.job("a", at=at))
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.due) == (State.PENDING, at)
        assert ids(await (await harness.worker()).take()) == ["a"]

    async def test_a_negative_delay_is_none(self, harness: Harness) -> None:
        await harness.put(harness.job("a", after=-5.0))
        assert (await harness.backend.reads.get_job("a")).due == harness.clock.now()

    async def test_due_times_are_kept_to_the_microsecond(self, harness: Harness) -> None:
        at = harness.clock.now() + 0.123456
        await harness.put(harness.job("a", at=at))
        assert (await harness.backend.reads.get_job("a")).due == pytest.approx(at, abs=1e-6)

    async def test_a_call_may_hold_many_names_queues_and_times(self, harness: Harness) -> None:
        jobs = [
            harness.job(name=name, queue=queue, after=after)
            for name in ("mail", "post")
            for queue in ("red", "blue")
            for after in (0.0, 9.0)
        ]
        assert {result.outcome for result in await harness.backend.producing.enqueue(jobs)} == {
            "created"
        }
        counts = await harness.backend.reads.count_jobs()
        assert (counts[State.PENDING], counts[State.SCHEDULED]) == (4, 4)
