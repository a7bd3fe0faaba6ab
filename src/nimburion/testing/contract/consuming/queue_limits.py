"""Limits of whole queues: how many jobs of a queue run or start, of all names together."""

from __future__ import annotations

import pytest

from nimburion.core.diagnosis.explanations import CauseKind, find_causes
from nimburion.core.exchange import Lane
from nimburion.core.job import JobOptions
from nimburion.core.lease import Lease
from nimburion.core.limits import KeyUse, LimitChange, LimitRule, make_queue_limit_name
from nimburion.core.rate_limits import RateLimit
from nimburion.core.settlement import Completed
from nimburion.testing.contract.consuming.concurrency_limits import ENDING
from nimburion.testing.contract.consuming.keyed_limits import take_when_due
from nimburion.testing.contract.harness import HandDrivenWorker, Harness, ids, list_uses

RED = make_queue_limit_name("red")
TWO = LimitRule(concurrency=2)
ONE_A_SECOND = LimitRule(rate=RateLimit("1/s", interval=1_000_000, burst=1))


async def open_worker(harness: Harness, limit: LimitRule | None) -> HandDrivenWorker:
    """Open a session of two names and two queues, which limits the queue `red`."""
    keyed = {} if limit is None else {name: {RED: limit} for name in ("mail", "post")}
    return await harness.worker(names=("mail", "post"), queues=("red", "blue"), keyed=keyed)


async def count_running(harness: Harness) -> int:
    """Return how many jobs of the queue `red` run."""
    uses = await list_uses(harness.backend)
    assert {(use.limit, use.key) for use in uses} <= {(RED, "")}
    return uses[0].in_use if uses else 0


async def change(harness: Harness, concurrency: int) -> None:
    """Change the limit of the queue `red`."""
    await harness.backend.maintenance.change_limit(LimitChange(name=RED, concurrency=concurrency))


class QueueLimits:
    """Limits of whole queues."""

    async def test_a_queue_limit_counts_all_names_of_its_queue(self, harness: Harness) -> None:
        """Jobs carry no key for it, so it also counts those that were enqueued before."""
        await harness.add("1", "2", queue="red")
        await harness.add("3", "4", name="post", queue="red")
        await harness.add("5", "6", queue="blue")
        worker = await open_worker(harness, TWO)
        one, two, *others = await worker.take(9)
        assert ids([one, two, *others]) == ["1", "2", "5", "6"]
        assert await worker.take(9) == []
        reply = await worker.exchange(Completed(one.lease), want=worker.want(9))
        assert ids(reply.deliveries) == ["3"]
        assert await count_running(harness) == 2

    async def test_a_queue_limit_keeps_the_order_of_the_queue(self, harness: Harness) -> None:
        """A job of higher priority and another name comes first, also when it came last."""
        await harness.add("1", "2", "3", queue="red")
        worker = await open_worker(harness, LimitRule(concurrency=1))
        lease = (await worker.take(9))[0].lease
        await harness.enqueue(harness.job("9", name="post", queue="red", priority=9))
        for expected in ("9", "2", "3"):
            reply = await worker.exchange(Completed(lease), want=worker.want(9))
            assert ids(reply.deliveries) == [expected]
            lease = reply.deliveries[0].lease

    async def test_a_full_queue_limit_closes_the_lanes_of_its_queue(self, harness: Harness) -> None:
        """No job is parked for it, and no lane of the queue is said to hold jobs that may run."""
        await harness.add(*(str(n) for n in range(20)), queue="red")
        await harness.add("a", name="post", queue="red")
        await harness.add("b", "c", queue="blue")
        worker = await open_worker(harness, LimitRule(concurrency=1))
        reply = await worker.exchange(want=worker.want(2))
        assert ids(reply.deliveries) == ["0", "b"]
        assert reply.waiting == [Lane("blue", "mail")]
        (limit,) = await harness.backend.reads.list_limits(name=RED)
        assert (limit.in_use, limit.parked, limit.keys) == (1, 0, 1)
        assert limit.fullest == [KeyUse(limit=RED, key="", in_use=1, parked=0)]

    async def test_names_of_a_queue_may_have_different_limits(self, harness: Harness) -> None:
        """They share one count. A name of a higher maximum still runs when another is full."""
        await harness.add("1", "2", "3", queue="red")
        await harness.add("4", "5", "6", name="post", queue="red")
        keyed = {"mail": {RED: LimitRule(concurrency=1)}, "post": {RED: LimitRule(concurrency=3)}}
        worker = await harness.worker(names=("mail", "post"), queues=("red",), keyed=keyed)
        assert ids(await worker.take(9)) == ["1", "4", "5"]
        assert await worker.take(9) == []

    async def test_a_lane_has_a_limit_of_its_name_and_of_its_queue(self, harness: Harness) -> None:
        await harness.add("1", "2", "3", queue="red")
        await harness.add("4", "5", queue="blue")
        keyed = {"mail": {RED: TWO}}
        worker = await harness.worker(queues=("red", "blue"), limits={"mail": 3}, keyed=keyed)
        one, two, three = await worker.take(9)
        assert ids([one, two, three]) == ["1", "2", "4"]
        reply = await worker.exchange(Completed(three.lease), want=worker.want(9))
        assert ids(reply.deliveries) == ["5"]
        reply = await worker.exchange(Completed(one.lease), want=worker.want(9))
        assert ids(reply.deliveries) == ["3"]

    async def test_tenants_take_turns_below_a_queue_limit(self, harness: Harness) -> None:
        for job_id in ("t1", "t2", "t3", "u1", "u2"):
            options = JobOptions(tenant=job_id[0])
            await harness.enqueue(harness.job(job_id, queue="red", options=options))
        worker = await open_worker(harness, TWO)
        ran, leases = list[str](), list[Lease]()
        while len(ran) < 5:
            done = [Completed(lease) for lease in leases]
            reply = await worker.exchange(*done, want=worker.want(9))
            assert len(reply.deliveries) == min(2, 5 - len(ran))
            leases = [one.lease for one in reply.deliveries]
            ran += ids(reply.deliveries)
        assert {job_id[0] for job_id in ran[:2]} == {"t", "u"}

    async def test_a_queue_limit_beside_a_limit_by_key(self, harness: Harness) -> None:
        keyed = {"mail": {RED: TWO, "customer": LimitRule(concurrency=1)}}
        worker = await harness.worker(queues=("red",), keyed=keyed)
        for job_id in ("a1", "a2", "b1", "c1"):
            options = JobOptions(limit_keys={"customer": job_id[0]})
            await harness.enqueue(harness.job(job_id, queue="red", options=options))
        one, two = await worker.take(9)
        assert (one.lease.job_id, two.lease.job_id) == ("a1", "b1")
        reply = await worker.exchange(Completed(one.lease), want=worker.want(9))
        assert [*ids(reply.deliveries), *ids(await worker.take(9))] == ["a2"]
        reply = await worker.exchange(Completed(two.lease), want=worker.want(9))
        assert [*ids(reply.deliveries), *ids(await worker.take(9))] == ["c1"]

    @pytest.mark.parametrize("how", ENDING)
    async def test_every_end_of_a_lease_gives_the_place_in_its_queue_back(
        self, harness: Harness, how: str
    ) -> None:
        await harness.add("1", "2", queue="red")
        worker = await open_worker(harness, LimitRule(concurrency=1))
        lease = (await worker.take(9))[0].lease
        await worker.settle(ENDING[how](lease))
        assert len(await worker.take(9)) == 1
        assert await count_running(harness) == 1

    async def test_a_rescue_gives_the_place_in_a_queue_back(self, harness: Harness) -> None:
        await harness.add("1", "2", "3", queue="red")
        worker = await open_worker(harness, TWO)
        await worker.take(9)
        await harness.lose(worker)
        assert await count_running(harness) == 0
        other = await open_worker(harness, TWO)
        assert ids(await other.take(9)) == ["1", "2"]

    async def test_a_queue_has_a_rate(self, harness: Harness) -> None:
        await harness.add("1", "2", queue="red")
        await harness.add("3", name="post", queue="red")
        worker = await open_worker(harness, ONE_A_SECOND)
        assert await take_when_due(harness, worker) == [(0.0, ["1"]), (1.0, ["2"]), (2.0, ["3"])]

    async def test_a_job_that_its_queue_holds_back_says_why(self, harness: Harness) -> None:
        await harness.add("1", "2", queue="red")
        worker = await open_worker(harness, LimitRule(concurrency=1))
        await worker.take(9)
        facts = await harness.backend.reads.explain_job("2")
        assert [(limit.name, limit.in_use) for limit in facts.limits] == [(RED, 1)]
        assert facts.keys == []
        cause = find_causes(facts)[0]
        assert cause.kind is CauseKind.AT_LIMIT
        assert "queue 'red' is reached: 1 of 1 in use" in cause.text

    async def test_a_change_of_a_queue_limit_applies_to_all_names(self, harness: Harness) -> None:
        await harness.add("1", "2", queue="red")
        await harness.add("3", "4", name="post", queue="red")
        worker = await open_worker(harness, LimitRule(concurrency=1))
        assert ids(await worker.take(9)) == ["1"]
        await change(harness, 3)
        assert ids(await worker.take(9)) == ["2", "3"]
        assert await harness.backend.maintenance.reset_limit(RED)
        assert await worker.take(9) == []

    async def test_a_new_queue_limit_counts_the_jobs_that_run(self, harness: Harness) -> None:
        """Also when some names have it and others get it later, or have it no more."""
        await harness.add("1", "2", queue="red")
        await harness.add("3", "4", name="post", queue="red")
        await harness.add("5", queue="blue")
        first = await open_worker(harness, None)
        one, _ = await first.take(2)
        await change(harness, 2)
        assert await count_running(harness) == 2
        assert ids(await first.take(9)) == ["5"]
        await first.settle(Completed(one.lease))
        assert ids(await first.take(9)) == ["3"]
        assert await harness.backend.maintenance.reset_limit(RED)
        assert await count_running(harness) == 0
        await harness.worker(names=("post",), queues=("red",), keyed={"post": {RED: TWO}})
        assert await count_running(harness) == 1

    async def test_a_change_makes_a_queue_limit_that_no_worker_declares(
        self, harness: Harness
    ) -> None:
        """It also holds for workers that start later. No job gets a limit of its own by it."""
        await harness.add("1", "2", queue="red")
        await harness.add("3", name="post", queue="red")
        first = await open_worker(harness, None)
        await change(harness, 1)
        (limit,) = await harness.backend.reads.list_limits()
        assert limit.rules == {name: LimitRule(concurrency=1) for name in ("mail", "post")}
        second = await open_worker(harness, None)
        (only,) = await first.take(9)
        assert await second.take(9) == []
        await harness.backend.maintenance.reset_limit(RED)
        assert await harness.backend.reads.list_limits(name="unknown") == []
        assert ids(await second.take(9)) == ["2", "3"]
        await first.settle(Completed(only.lease))
        assert await harness.backend.reads.list_limits() == []
