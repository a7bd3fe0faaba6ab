"""Limits of whole queues: how many jobs of a queue run or start, of all names together."""

from __future__ import annotations

import pytest

from nimburion.core.diagnosis.explanations import CauseKind, find_causes
from nimburion.core.job import JobOptions
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


async def read_use(harness: Harness) -> tuple[int, int]:
    """Return how many jobs of the queue run, and how many are parked."""
    uses = await list_uses(harness.backend)
    assert {(use.limit, use.key) for use in uses} <= {(RED, "")}
    return (uses[0].in_use, uses[0].parked) if uses else (0, 0)


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
        assert (await read_use(harness))[0] == 2

    async def test_a_queue_limit_keeps_the_order_of_the_queue(self, harness: Harness) -> None:
        """A job of higher priority and another name comes first, also when it came last."""
        await harness.add("1", "2", "3", queue="red")
        worker = await open_worker(harness, LimitRule(concurrency=1))
        lease = (await worker.take(9))[0].lease
        await harness.enqueue(harness.job("9", name="post", queue="red", priority=9))
        for expected in ("9", "2", "3"):
            reply = await worker.exchange(Completed(lease), want=worker.want(9))
            while not reply.deliveries:  # an exchange that returns parked jobs reserves no more
                reply = await worker.exchange(want=worker.want(9))
            assert ids(reply.deliveries) == [expected]
            lease = reply.deliveries[0].lease

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
        assert (await read_use(harness))[0] == 1

    async def test_a_rescue_gives_the_place_in_a_queue_back(self, harness: Harness) -> None:
        await harness.add("1", "2", "3", queue="red")
        worker = await open_worker(harness, TWO)
        await worker.take(9)
        await harness.lose(worker)
        assert (await read_use(harness))[0] == 0
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
        assert facts.keys == [KeyUse(limit=RED, key="", in_use=1, parked=1)]
        assert find_causes(facts)[0].kind is CauseKind.KEY_FULL

    async def test_a_change_of_a_queue_limit_applies_to_all_names(self, harness: Harness) -> None:
        await harness.add("1", "2", queue="red")
        await harness.add("3", "4", name="post", queue="red")
        worker = await open_worker(harness, LimitRule(concurrency=1))
        assert ids(await worker.take(9)) == ["1"]
        await change(harness, 3)
        assert ids(await worker.take(9)) == ["2", "3"]
        assert await harness.backend.maintenance.reset_limit(RED)
        assert await worker.take(9) == []

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
