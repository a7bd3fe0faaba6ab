"""`make_due`: jobs that wait for a later time start at once."""

from __future__ import annotations

from nimburion.core.job import JobOptions, State
from nimburion.core.limits import LimitRule
from nimburion.core.settlement import Completed, Released, Retried
from nimburion.testing.contract.changing import make_due
from nimburion.testing.contract.harness import FAILURE, Harness, ids


class MakingDue:
    """`make_due`."""

    async def test_a_scheduled_job_is_due_at_once(self, harness: Harness) -> None:
        await harness.enqueue(harness.job("a", after=3600.0), harness.job("b", after=3600.0))
        worker = await harness.worker()
        harness.clock.advance(1.0)
        assert await make_due(harness.backend, ["a"]) == ["a"]
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.due) == (State.PENDING, harness.clock.now())
        counts = await harness.backend.reads.count_jobs()
        assert (counts[State.PENDING], counts[State.SCHEDULED]) == (1, 1)
        reply = await worker.exchange(want=worker.want(9))
        assert ids(reply.deliveries) == ["a"]
        assert reply.deliveries[0].due == harness.clock.now()
        harness.clock.advance(3600.0)
        await worker.heartbeat()
        assert ids(await worker.take(9)) == ["b"]

    async def test_a_retry_is_due_at_once_and_counts_its_failures(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 600.0, FAILURE))
        harness.clock.advance(1.0)
        assert await make_due(harness.backend, ["a"]) == ["a"]
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.failures, len(record.history)) == (State.RETRYING, 1, 1)
        due = harness.clock.now()
        harness.clock.advance(1.0)
        assert await make_due(harness.backend, ["a"]) == []
        delivery = await worker.take_one()
        assert (delivery.failures, delivery.due) == (1, due)
        assert delivery.lease.token.fence == 2
        await worker.settle(Completed(delivery.lease))
        assert await harness.state("a") is State.COMPLETED

    async def test_a_snoozed_job_is_due_at_once(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Released((await worker.take_one()).lease, 600.0))
        assert await make_due(harness.backend, ["a"]) == ["a"]
        assert ids(await worker.take(9)) == ["a"]

    async def test_other_jobs_stay_as_they_are(self, harness: Harness) -> None:
        """Jobs that are due, run or have ended, and unknown ids. A repeat changes nothing."""
        await harness.add("done", "runs", "due")
        worker = await harness.worker()
        done, runs = await worker.take(2)
        await worker.settle(Completed(done.lease))
        await harness.enqueue(harness.job("later", after=60.0))
        before = [await harness.backend.reads.get_job(one) for one in ("done", "runs", "due")]
        every = ["done", "runs", "due", "later", "unknown"]
        assert await make_due(harness.backend, every) == ["later"]
        assert await make_due(harness.backend, every) == []
        assert [
            await harness.backend.reads.get_job(one) for one in ("done", "runs", "due")
        ] == before
        await worker.settle(Completed(runs.lease))
        assert sorted(ids(await worker.take(9))) == ["due", "later"]

    async def test_a_job_that_is_due_and_not_promoted_keeps_its_place(
        self, harness: Harness
    ) -> None:
        await harness.add("retried")
        worker = await harness.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 5.0, FAILURE))
        await harness.enqueue(harness.job("a", after=5.0))
        due = (await harness.backend.reads.get_job("a")).due
        harness.clock.advance(10.0)
        assert await make_due(harness.backend, ["a", "retried"]) == []
        records = [await harness.backend.reads.get_job(one) for one in ("a", "retried")]
        assert [record.due for record in records] == [due, due]
        await worker.heartbeat()
        assert sorted(ids(await worker.take(9))) == ["a", "retried"]

    async def test_a_job_that_was_made_due_can_be_cancelled_and_replaced(
        self, harness: Harness
    ) -> None:
        options = JobOptions(unique_key="k", on_duplicate="replace")
        await harness.enqueue(
            harness.job("a", after=60.0), harness.job("b", after=60.0, options=options)
        )
        harness.clock.advance(1.0)
        assert await make_due(harness.backend, ["a", "b"]) == ["a", "b"]
        await harness.backend.producing.cancel("a")
        await harness.enqueue(harness.job("c", after=30.0, options=options))
        worker = await harness.worker()
        assert await worker.take(9) == []
        harness.clock.advance(30.0)
        assert ids(await worker.take(9)) == ["b"]

    async def test_jobs_of_tenants_and_of_limits_by_key_are_made_due(
        self, harness: Harness
    ) -> None:
        keyed = {"mail": {"customer": LimitRule(concurrency=1)}}
        worker = await harness.worker(keyed=keyed)
        for job_id in ("a1", "a2"):
            options = JobOptions(tenant="acme", limit_keys={"customer": "a"})
            await harness.enqueue(harness.job(job_id, after=60.0, options=options))
        harness.clock.advance(1.0)
        assert await make_due(harness.backend, ["a1"]) == ["a1"]
        harness.clock.advance(1.0)
        assert await make_due(harness.backend, ["a2"]) == ["a2"]
        (first,) = await worker.take(9)
        assert first.lease.job_id == "a1"
        assert await worker.take(9) == []
        reply = await worker.exchange(Completed(first.lease), want=worker.want(9))
        assert ids(reply.deliveries) == ["a2"]
