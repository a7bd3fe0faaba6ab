"""A clock that is set back: no rate waits for the time that the clock shows twice."""

from __future__ import annotations

import pytest

from nimburion.core.job import JobOptions
from nimburion.core.limits import LimitRule
from nimburion.core.rate_limits import RateLimit
from nimburion.core.settlement import RateLimited, Released, Spent
from nimburion.testing.contract.harness import HandDrivenWorker, Harness, ids

HOUR = 3_600.0
THREE = RateLimit("1/s", interval=1_000_000, burst=3)
"""One job each second, and up to three at once."""
BY_CUSTOMER = {"mail": {"customer": LimitRule(rate=THREE)}}


async def measure_waits(harness: Harness, worker: HandDrivenWorker, count: int) -> list[float]:
    """Take `count` jobs at the times that the replies name. Return the seconds until each came."""
    waits: list[float] = []
    start = harness.clock.now()
    while len(waits) < count:
        reply = await worker.exchange(want=worker.want(9))
        waits += [round(reply.now - start, 3)] * len(reply.deliveries)
        if len(waits) < count:
            assert reply.next_due is not None
            harness.clock.advance(max(0.0, reply.next_due - reply.now))
    return waits


async def add_for(harness: Harness, customer: str, *job_ids: str) -> None:
    """Enqueue jobs of a customer."""
    options = JobOptions(limit_keys={"customer": customer})
    await harness.enqueue(*(harness.job(job_id, options=options) for job_id in job_ids))


class ClockSteps:
    """The wall clock of the backend is set back by an hour."""

    async def test_a_rate_waits_for_at_most_a_burst(self, harness: Harness) -> None:
        await harness.add(*"abcde")
        worker = await harness.worker(rates={"mail": THREE})
        assert ids(await worker.take(9)) == ["a", "b", "c"]
        harness.clock.step_wall(-HOUR)
        await harness.add("f")
        assert await measure_waits(harness, worker, 3) == [1.0, 2.0, 3.0]

    async def test_a_rate_that_nothing_used_for_a_time_waits_for_at_most_a_burst(
        self, harness: Harness
    ) -> None:
        await harness.add(*"abcd")
        worker = await harness.worker(rates={"mail": THREE})
        await worker.take(9)
        harness.clock.advance(20.0)
        harness.clock.step_wall(-HOUR)
        assert await measure_waits(harness, worker, 1) <= [3.0]

    async def test_each_of_several_steps_is_followed(self, harness: Harness) -> None:
        await harness.add(*"abcdef")
        worker = await harness.worker(rates={"mail": THREE})
        await worker.take(9)
        harness.clock.step_wall(-HOUR)
        assert await measure_waits(harness, worker, 1) == [1.0]
        harness.clock.step_wall(24 * HOUR)
        assert ids(await worker.take(9)) == ["e", "f"]
        await harness.add(*"ghijk")
        assert ids(await worker.take(9)) == ["g"]
        harness.clock.step_wall(-24 * HOUR)
        assert await measure_waits(harness, worker, 2) == [1.0, 2.0]

    async def test_a_rate_that_nothing_has_used_waits_for_nothing(self, harness: Harness) -> None:
        await harness.add(*"ab")
        worker = await harness.worker(rates={"mail": THREE})
        harness.clock.step_wall(-HOUR)
        assert ids(await worker.take(9)) == ["a", "b"]

    async def test_a_step_brings_no_second_burst(self, harness: Harness) -> None:
        await harness.add(*"abcdefgh")
        worker = await harness.worker(rates={"mail": THREE})
        await worker.take(2)
        harness.clock.step_wall(-HOUR)
        assert len(await worker.take(9)) <= 1
        harness.clock.step_wall(HOUR / 2)
        harness.clock.step_wall(-HOUR / 2)
        assert await worker.take(9) == []

    async def test_a_refusal_keeps_its_delay(self, harness: Harness) -> None:
        await harness.add(*"ab")
        worker = await harness.worker(rates={"mail": THREE})
        await worker.settle(RateLimited((await worker.take_one()).lease, 7_200.0))
        harness.clock.step_wall(-HOUR)
        assert await measure_waits(harness, worker, 1) == [7_200.0]

    async def test_a_settlement_after_the_step_counts_from_the_new_time(
        self, harness: Harness
    ) -> None:
        await harness.add(*"abcd")
        worker = await harness.worker(rates={"mail": THREE})
        first, second, third = [delivery.lease for delivery in await worker.take(9)]
        harness.clock.step_wall(-HOUR)
        await worker.settle(RateLimited(first, 5.0), Spent(second, 2), Released(third))
        (rate,) = await harness.backend.reads.list_limits()
        assert rate.opens_at == pytest.approx(harness.clock.now() + 7.0, abs=1e-3)

    async def test_a_job_that_costs_more_than_a_burst_keeps_its_place(
        self, harness: Harness
    ) -> None:
        await harness.add(*"abc")
        large = RateLimit("1/s", interval=1_000_000, burst=2, cost=5)
        worker = await harness.worker(rates={"mail": large})
        await worker.take_one()
        harness.clock.step_wall(-HOUR)
        assert await measure_waits(harness, worker, 2) == [5.0, 10.0]

    async def test_the_rate_of_a_key_waits_for_at_most_a_burst(self, harness: Harness) -> None:
        await add_for(harness, "old", *"abcde")
        worker = await harness.worker(keyed=BY_CUSTOMER)
        assert ids(await worker.take(9)) == ["a", "b", "c"]
        harness.clock.step_wall(-HOUR)
        await add_for(harness, "old", "f")
        await add_for(harness, "new", "g")
        assert ids(await worker.take(9)) == ["g"]
        assert await measure_waits(harness, worker, 3) == [1.0, 2.0, 3.0]

    async def test_a_refusal_of_a_key_keeps_its_delay(self, harness: Harness) -> None:
        await add_for(harness, "old", *"ab")
        worker = await harness.worker(keyed=BY_CUSTOMER)
        await worker.settle(RateLimited((await worker.take_one()).lease, 7_200.0))
        assert await worker.take(9) == []
        harness.clock.step_wall(-HOUR)
        assert await measure_waits(harness, worker, 2) == [7_200.0, 7_201.0]

    async def test_keys_of_other_limits_are_left_alone(self, harness: Harness) -> None:
        """Each key waits for a burst of its own limit."""
        slow = RateLimit("1/min", interval=60_000_000, burst=2)
        worker = await harness.worker(
            keyed={"mail": {"customer": LimitRule(rate=THREE), "region": LimitRule(rate=slow)}}
        )
        region = JobOptions(limit_keys={"region": "eu"})
        await harness.enqueue(*(harness.job(job_id, options=region) for job_id in "abc"))
        assert ids(await worker.take(9)) == ["a", "b"]
        harness.clock.step_wall(-HOUR)
        assert await measure_waits(harness, worker, 1) == [60.0]

    async def test_of_several_rates_of_a_limit_the_longest_burst_counts(
        self, harness: Harness
    ) -> None:
        """Nearly all units are back when the clock steps; they may be taken once more at most."""
        slow = RateLimit("1/min", interval=60_000_000, burst=2)
        worker = await harness.worker(
            names=("mail", "post"),
            keyed={
                "mail": {"smtp": LimitRule(rate=THREE)},
                "post": {"smtp": LimitRule(rate=slow)},
            },
        )
        smtp = JobOptions(limit_keys={"smtp": ""})
        jobs = [harness.job(job_id, name="post", options=smtp) for job_id in "abc"]
        await harness.enqueue(*jobs)
        assert ids(await worker.take(9)) == ["a", "b"]
        harness.clock.advance(50.0)
        assert await worker.take(9) == []
        harness.clock.step_wall(-HOUR)
        assert await measure_waits(harness, worker, 1) == [60.0]

    async def test_waiting_jobs_run_at_once_and_none_early(self, harness: Harness) -> None:
        await harness.add("waits")
        await harness.put(harness.job("later", after=60.0))
        worker = await harness.worker(rates={"other": THREE})
        harness.clock.step_wall(-HOUR)
        await harness.add("new")
        reply = await worker.exchange(want=worker.want(9))
        assert sorted(ids(reply.deliveries)) == ["new", "waits"]
        assert reply.next_due == pytest.approx(reply.now + HOUR + 60.0, abs=1e-3)
        harness.clock.advance(HOUR + 59.0)
        await worker.heartbeat()
        assert await worker.take(9) == []

    async def test_a_dead_worker_is_noticed_in_its_time(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.take_one()
        harness.clock.step_wall(-HOUR)
        assert (await harness.lose(worker)).returned == ["a"]
