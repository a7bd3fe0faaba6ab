"""Parked jobs that move from one full key to another, and what runs meanwhile."""

from __future__ import annotations

import pytest

from nimburion.core.exchange import Lane
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.lease import Delivery
from nimburion.core.limits import MAX_PARKED, LimitRule
from nimburion.core.rate_limits import RateLimit
from nimburion.core.settlement import Completed
from nimburion.testing.contract.harness import HandDrivenWorker, Harness, ids, list_uses

MAIL = Lane("default", "mail")
ONE_OF_EACH = {"mail": {"customer": LimitRule(1), "smtp": LimitRule(1)}}
ONE_A_SECOND = RateLimit("1/s", interval=1_000_000, burst=1)
SLOW_CUSTOMERS = {"mail": {"customer": LimitRule(rate=ONE_A_SECOND), "smtp": LimitRule(1)}}


def make(harness: Harness, job_id: str, tenant: str | None = None, **keys: str) -> NewJob:
    """Return a job of the name `mail` with these keys of limits."""
    return harness.job(job_id, options=JobOptions(tenant=tenant, limit_keys=keys))


async def read_parked(harness: Harness) -> dict[tuple[str, str], int]:
    """Return how many jobs are parked, by limit and key."""
    uses = await list_uses(harness.backend)
    return {(use.limit, use.key): use.parked for use in uses if use.parked}


async def park_for_customer(
    harness: Harness, worker: HandDrivenWorker, count: int, tenant: str | None = None
) -> tuple[Delivery, Delivery]:
    """Park jobs of the customer `a`, and let a job of another customer hold `smtp`.

    Returns the delivery that holds the customer and that which holds `smtp`.
    """
    await harness.enqueue(make(harness, "first", tenant, customer="a"))
    (first,) = await worker.take(9)
    jobs = [make(harness, f"a{n}", tenant, customer="a", smtp="") for n in range(count)]
    await harness.enqueue(*jobs)
    while MAIL in (await worker.exchange(want=worker.want(9))).waiting:
        pass
    await harness.enqueue(make(harness, "other", customer="b", smtp=""))
    (other,) = await worker.take(9)
    assert await read_parked(harness) == {("customer", "a"): count}
    return first, other


class ParkedJobs:
    """Jobs that wait for one full key after another delay no other jobs."""

    @pytest.mark.parametrize("tenant", [None, "t"])
    async def test_jobs_that_move_from_one_full_key_to_another_delay_no_other_name(
        self, harness: Harness, tenant: str | None
    ) -> None:
        """The exchange that moves them fills its slots with jobs of other names."""
        worker = await harness.worker(names=("mail", "post"), keyed=ONE_OF_EACH)
        first, other = await park_for_customer(harness, worker, 30, tenant)
        await harness.add("p1", "p2", "p3", name="post")
        reply = await worker.exchange(Completed(first.lease), want=worker.want(9))
        assert ids(reply.deliveries) == ["p1", "p2", "p3"]
        assert reply.waiting == []
        assert await read_parked(harness) == {("smtp", ""): 30}
        lease = other.lease
        for n in range(3):
            reply = await worker.exchange(Completed(lease), want=worker.want(9))
            assert ids(reply.deliveries) == [f"a{n}"]
            lease = reply.deliveries[0].lease

    async def test_jobs_whose_rate_opens_move_to_another_full_key(self, harness: Harness) -> None:
        worker = await harness.worker(names=("mail", "post"), keyed=SLOW_CUSTOMERS)
        await park_for_customer(harness, worker, 30)
        await harness.add("p1", "p2", "p3", name="post")
        harness.clock.advance(1.0)
        reply = await worker.exchange(want=worker.want(9))
        assert ids(reply.deliveries) == ["p1", "p2", "p3"]
        assert await read_parked(harness) == {("smtp", ""): 30}

    async def test_many_jobs_move_in_few_exchanges(self, harness: Harness) -> None:
        """Each exchange moves up to `MAX_PARKED` jobs and leases as many jobs of other names as it
        may. Until all have moved, the lane of the parked jobs is among those that wait.
        """
        count = MAX_PARKED + 200
        worker = await harness.worker(names=("mail", "post"), keyed=ONE_OF_EACH)
        first, _ = await park_for_customer(harness, worker, count)
        await harness.add(*(f"p{n}" for n in range(40)), name="post")
        reply = await worker.exchange(Completed(first.lease), want=worker.want(4))
        exchanges = 1
        assert ids(reply.deliveries) == [f"p{n}" for n in range(4)]
        while MAIL in reply.waiting:
            reply = await worker.exchange(want=worker.want(4))
            exchanges += 1
            assert len(reply.deliveries) == 4
        assert exchanges <= count // MAX_PARKED + 2
        assert await read_parked(harness) == {("smtp", ""): count}

    async def test_new_jobs_of_a_full_key_delay_no_other_name(self, harness: Harness) -> None:
        """More of them than one exchange parks: it serves other names, and says that the
        lane still waits.
        """
        worker = await harness.worker(names=("mail", "post"), keyed=ONE_OF_EACH)
        await harness.enqueue(make(harness, "first", customer="a"))
        await worker.take(9)
        count = MAX_PARKED + 200
        await harness.enqueue(*(make(harness, f"a{n}", customer="a") for n in range(count)))
        await harness.enqueue(make(harness, "b", customer="b"))
        await harness.add("p1", "p2", name="post")
        reply = await worker.exchange(want=worker.want(9))
        assert ids(reply.deliveries) == ["p1", "p2"]
        assert reply.waiting == [MAIL]
        reply = await worker.exchange(want=worker.want(9))
        assert ids(reply.deliveries) == ["b"]
        assert reply.waiting == []
        assert await read_parked(harness) == {("customer", "a"): count}

    async def test_a_turn_that_moves_past_full_keys_reaches_a_job_that_may_run(
        self, harness: Harness
    ) -> None:
        """The customer has room again; those of its jobs that also need `smtp` do not."""
        worker = await harness.worker(names=("mail", "post"), keyed=ONE_OF_EACH)
        first, _ = await park_for_customer(harness, worker, 5)
        await harness.enqueue(make(harness, "runs", customer="a"))
        await harness.add("p1", name="post")
        assert ids(await worker.take(9)) == ["p1"]
        reply = await worker.exchange(Completed(first.lease), want=worker.want(9))
        while not reply.deliveries:
            assert reply.waiting == [MAIL]
            reply = await worker.exchange(want=worker.want(9))
        assert ids(reply.deliveries) == ["runs"]
        assert await read_parked(harness) == {("smtp", ""): 5}
