"""The jobs that an exchange delivers, and those that it must not deliver."""

from __future__ import annotations

import pytest

from nimburion.core.exchange import DUE_WINDOW, RESERVE_NOTHING, Lane, QueueOptions
from nimburion.core.job import JobOptions, State
from nimburion.core.lease import Delivery
from nimburion.core.settlement import Completed, Released, Retried
from nimburion.testing.contract.harness import FAILURE, Harness, ids


class Reserving:
    """Reserving, by `exchange`."""

    async def test_a_due_job_is_delivered_whole(self, harness: Harness) -> None:
        options = JobOptions(headers={"a": "b"}, tenant="acme", correlation_id="c", max_retries=9)
        await harness.put(harness.job("a", payload=b'{"n":1}', priority=7, options=options))
        made = harness.clock.now()
        harness.clock.advance(3.0)
        worker = await harness.worker()
        delivery = await worker.take_one()
        assert delivery == Delivery(
            delivery.lease, "mail", "default", b'{"n":1}', 7, 0, 0, made, made, options
        )
        assert delivery.lease.job_id == "a"
        assert delivery.attempt == 1

    async def test_the_token_holds_the_fence_and_the_nonce_of_the_exchange(
        self, harness: Harness
    ) -> None:
        await harness.add("a")
        worker = await harness.worker()
        want = worker.want(1)
        (delivery,) = (await worker.exchange(want=want)).deliveries
        assert delivery.lease.token.nonce == want.nonce
        assert delivery.lease.token.fence == 1

    async def test_the_fence_rises_with_every_delivery_of_a_job(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        fences = []
        for _ in range(4):
            lease = (await worker.take_one()).lease
            fences.append(lease.token.fence)
            await worker.settle(Released(lease))
        assert fences == sorted(set(fences))

    async def test_a_reserved_job_is_processing_and_names_its_session(
        self, harness: Harness
    ) -> None:
        await harness.add("a")
        harness.clock.advance(2.0)
        worker = await harness.worker()
        await worker.take_one()
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.session) == (State.PROCESSING, worker.id)
        assert record.started_at == harness.clock.now()

    async def test_a_reserved_job_goes_to_no_other_worker(self, harness: Harness) -> None:
        await harness.add("a")
        first, second = await harness.worker(), await harness.worker()
        assert ids(await first.take(5)) == ["a"]
        assert await second.take(5) == []
        assert await first.take(5) == []

    async def test_no_more_than_the_total(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        worker = await harness.worker()
        assert ids(await worker.take(2)) == ["a", "b"]
        assert ids(await worker.take(2)) == ["c"]

    async def test_an_empty_backend_returns_no_jobs(self, harness: Harness) -> None:
        reply = await (worker := await harness.worker()).exchange(want=worker.want(5))
        assert (reply.deliveries, reply.waiting, reply.next_due) == ([], [], None)

    async def test_a_total_of_zero_reserves_nothing(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        assert (await worker.exchange(want=RESERVE_NOTHING)).deliveries == []
        assert await worker.take(0) == []
        assert await worker.take(5, lanes=()) == []
        assert await harness.state("a") is State.PENDING

    async def test_only_the_requested_lanes_are_served(self, harness: Harness) -> None:
        await harness.add("a", name="mail", queue="red")
        await harness.add("b", name="post", queue="red")
        await harness.add("c", name="mail", queue="blue")
        worker = await harness.worker()
        assert ids(await worker.take(5, lanes=(Lane("red", "post"),))) == ["b"]
        assert ids(await worker.take(5, lanes=(Lane("blue", "mail"),))) == ["c"]
        assert await harness.state("a") is State.PENDING

    async def test_a_name_that_no_worker_requests_waits(self, harness: Harness) -> None:
        """Promise 9: the job is neither failed nor lost, and other jobs pass it."""
        await harness.add("a", name="unknown")
        await harness.add("b")
        worker = await harness.worker()
        assert ids(await worker.take(5)) == ["b"]
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.failures, record.lost) == (State.PENDING, 0, 0)

    async def test_a_lane_requested_twice_is_served_once(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        lane = Lane("default", "mail")
        reply = await worker.exchange(want=worker.want(1, lanes=(lane, lane)))
        assert (ids(reply.deliveries), reply.waiting) == (["a"], [lane])
        assert ids(await worker.take(5, lanes=(lane, lane))) == ["b"]

    async def test_a_job_that_is_not_due_is_not_reserved(self, harness: Harness) -> None:
        await harness.put(harness.job("a", after=10.0))
        worker = await harness.worker()
        harness.clock.advance(9.0)
        assert await worker.take(5) == []

    async def test_a_job_is_reserved_as_soon_as_it_is_due(self, harness: Harness) -> None:
        """The exchange promotes it; no call of `promote` is needed."""
        await harness.put(harness.job("a", after=10.0))
        worker = await harness.worker()
        harness.clock.advance(10.0)
        assert ids(await worker.take(5)) == ["a"]

    async def test_a_queue_limit_limits_this_reply(self, harness: Harness) -> None:
        await harness.add("a", "b", "c", queue="red")
        await harness.add("d", "e", queue="blue")
        worker = await harness.worker(queues=("red", "blue"))
        options = {"red": QueueOptions(limit=1)}
        assert ids(await worker.take(5, queues=options)) == ["a", "d", "e"]

    async def test_a_queue_cap_spans_the_lanes_of_the_queue(self, harness: Harness) -> None:
        await harness.add("a", "b", name="mail")
        await harness.add("c", "d", name="post")
        worker = await harness.worker(names=("mail", "post"))
        assert ids(await worker.take(5, queues={"default": QueueOptions(limit=3)})) == [
            "a",
            "b",
            "c",
        ]

    async def test_a_queue_limit_of_zero_stops_the_queue(self, harness: Harness) -> None:
        await harness.add("a", queue="red")
        await harness.add("b", queue="blue")
        worker = await harness.worker(queues=("red", "blue"))
        assert ids(await worker.take(5, queues={"red": QueueOptions(limit=0)})) == ["b"]

    async def test_a_queue_limit_of_zero_stops_the_jobs_of_tenants(self, harness: Harness) -> None:
        """Tenants wait for more turns than the worker requests jobs."""
        for tenant in "abcd":
            await harness.put(harness.job(options=JobOptions(tenant=tenant)))
        worker = await harness.worker()
        assert await worker.take(2, queues={"default": QueueOptions(limit=0)}) == []

    async def test_a_queue_limit_counts_this_reply_not_what_is_held(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        worker = await harness.worker()
        options = {"default": QueueOptions(limit=1)}
        assert ids(await worker.take(5, queues=options)) == ["a"]
        assert ids(await worker.take(5, queues=options)) == ["b"]

    async def test_waiting_names_the_lanes_that_still_hold_jobs(self, harness: Harness) -> None:
        await harness.add("a", "b", name="mail")
        await harness.add("c", name="post")
        await harness.put(harness.job(name="scan", after=9.0))
        worker = await harness.worker(names=("mail", "post", "scan"))
        reply = await worker.exchange(want=worker.want(2))
        assert (ids(reply.deliveries), reply.waiting) == (
            ["a", "b"],
            [Lane("default", "post")],
        )

    async def test_waiting_names_at_most_64_lanes(self, harness: Harness) -> None:
        names = tuple(f"name-{n}" for n in range(70))
        await harness.enqueue(*(harness.job(name=name) for name in names))
        worker = await harness.worker(names=names)
        reply = await worker.exchange(want=worker.want(1))
        assert len(reply.waiting) == 64
        assert set(reply.waiting) <= set(worker.lanes)

    async def test_waiting_lists_only_requested_lanes(self, harness: Harness) -> None:
        await harness.add("a", name="post")
        worker = await harness.worker()
        assert (await worker.exchange(want=worker.want(1))).waiting == []

    async def test_next_due_is_the_earliest_time_still_ahead(self, harness: Harness) -> None:
        await harness.put(harness.job(after=20.0, name="post"))
        await harness.put(harness.job(after=10.0, queue="other"))
        worker = await harness.worker()
        reply = await worker.exchange(want=worker.want(1))
        assert (reply.next_due, reply.now) == (harness.clock.now() + 10.0, harness.clock.now())
        harness.clock.advance(10.0)
        assert (await worker.exchange()).next_due == harness.clock.now() + 10.0
        harness.clock.advance(10.0)
        assert (await worker.exchange()).next_due is None

    async def test_a_due_time_is_reported_to_one_session(self, harness: Harness) -> None:
        """Each idle worker would make an exchange at that time."""
        due = harness.clock.now() + 10.0
        await harness.put(harness.job(after=10.0))
        first, second = await harness.worker(), await harness.worker()
        assert (await first.exchange(want=first.want())).next_due == due
        harness.clock.advance(2.0)
        assert (await second.exchange(want=second.want())).next_due is None
        assert (await first.exchange(want=first.want())).next_due == due

    async def test_a_repeated_exchange_reports_no_due_time_of_another_session(
        self, harness: Harness
    ) -> None:
        due = harness.clock.now() + 10.0
        await harness.enqueue(harness.job("a", after=10.0))
        first, second = await harness.worker(), await harness.worker()
        assert (await first.exchange(want=first.want())).next_due == due
        want = second.want()
        for _ in range(2):
            reply = await harness.backend.consuming.exchange(second.id, 1, [], want)
            assert reply.next_due is None

    async def test_a_due_time_of_a_session_that_has_ended_is_reported_to_the_next_one(
        self, harness: Harness
    ) -> None:
        await harness.enqueue(harness.job("a", after=10.0))
        due = harness.clock.now() + 10.0
        first, second = await harness.worker(), await harness.worker()
        assert (await first.exchange(want=first.want())).next_due == due
        await first.close()
        assert (await second.exchange(want=second.want())).next_due == due

    async def test_an_earlier_due_time_is_reported_to_the_next_session(
        self, harness: Harness
    ) -> None:
        start = harness.clock.now()
        first, second, third = [await harness.worker() for _ in range(3)]
        await harness.put(harness.job(after=10.0))
        assert (await first.exchange(want=first.want())).next_due == start + 10.0
        await harness.put(harness.job(after=5.0))
        assert (await second.exchange(want=second.want())).next_due == start + 5.0
        assert (await first.exchange(want=first.want())).next_due is None
        assert (await third.exchange(want=third.want())).next_due is None

    async def test_a_due_time_after_one_that_has_passed_is_reported_to_the_next_session(
        self, harness: Harness
    ) -> None:
        """The session to which the first was reported may have ended."""
        start = harness.clock.now()
        await harness.put(harness.job("a", after=5.0))
        await harness.put(harness.job("b", after=10.0))
        first, second = await harness.worker(), await harness.worker()
        assert (await first.exchange(want=first.want())).next_due == start + 5.0
        harness.clock.advance(5.0)
        reply = await second.exchange(want=second.want())
        assert (ids(reply.deliveries), reply.next_due) == (["a"], start + 10.0)
        assert (await first.exchange(want=first.want())).next_due is None

    async def test_a_due_time_far_ahead_is_reported_to_each_session(self, harness: Harness) -> None:
        """Each worker makes another exchange before that time."""
        due = harness.clock.now() + DUE_WINDOW + 1.0
        await harness.put(harness.job(after=DUE_WINDOW + 1.0))
        for worker in (await harness.worker(), await harness.worker()):
            assert (await worker.exchange(want=worker.want())).next_due == due

    async def test_an_exchange_that_requests_no_job_takes_no_due_time(
        self, harness: Harness
    ) -> None:
        due = harness.clock.now() + 10.0
        await harness.put(harness.job(after=10.0))
        first, second = await harness.worker(), await harness.worker()
        await first.exchange()
        assert (await second.exchange(want=second.want())).next_due == due

    async def test_what_an_exchange_completes_does_not_limit_what_it_reserves(
        self, harness: Harness
    ) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        reply = await worker.exchange(Completed(lease), want=worker.want(1))
        assert ids(reply.deliveries) == ["b"]

    async def test_a_retry_without_delay_may_come_back_in_the_same_reply(
        self, harness: Harness
    ) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        reply = await worker.exchange(Retried(lease, 0.0, FAILURE), want=worker.want(1))
        (delivery,) = reply.deliveries
        assert (delivery.lease.job_id, delivery.failures, delivery.attempt) == ("a", 1, 2)
        assert delivery.lease.token.fence > lease.token.fence

    async def test_a_released_job_may_come_back_in_the_same_reply(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        (delivery,) = (await worker.exchange(Released(lease), want=worker.want(1))).deliveries
        assert (delivery.lease.job_id, delivery.attempt) == ("a", 1)

    async def test_attempt_counts_failures_and_losses(self, harness: Harness) -> None:
        await harness.add("a")
        first = await harness.worker()
        await first.settle(Retried((await first.take_one()).lease, 0.0, FAILURE))
        await first.take_one()
        await harness.lose(first)
        delivery = await (await harness.worker()).take_one()
        assert (delivery.failures, delivery.lost, delivery.attempt) == (1, 1, 3)

    @pytest.mark.parametrize("total", [1, 7, 500])
    async def test_every_waiting_job_is_reserved_once(self, harness: Harness, total: int) -> None:
        jobs = [harness.job() for _ in range(60)]
        await harness.backend.producing.enqueue(jobs)
        worker = await harness.worker()
        taken: list[str] = []
        while deliveries := await worker.take(total):
            taken += ids(deliveries)
        assert taken == [job.id for job in jobs]
