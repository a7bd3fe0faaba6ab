"""Fairness among tenants: whose job is next, and what a tenant is charged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count, cycle, islice
from random import Random

import pytest

from nimburion.core.diagnosis.explanations import CauseKind, find_causes
from nimburion.core.errors import InvalidJob
from nimburion.core.exchange import Lane, QueueOptions
from nimburion.core.fairness import TenantTurn, TenantUse
from nimburion.core.job import JobOptions, NewJob, State
from nimburion.core.lease import Delivery, Lease
from nimburion.core.limits import LimitChange, LimitRule
from nimburion.core.maintenance import Retention
from nimburion.core.queries import JobFilter
from nimburion.core.rate_limits import RateLimit
from nimburion.core.settlement import (
    Completed,
    Failed,
    RateLimited,
    Released,
    Retried,
    Settled,
    Settlement,
)
from nimburion.testing.contract.changing import replay
from nimburion.testing.contract.consuming.concurrency_limits import ENDING
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness, ids

ENDS: dict[str, Callable[[Lease], Settlement]] = {
    **ENDING,
    "rate limited": lambda lease: RateLimited(lease, 60.0),
}
"""The settlements after which the handler may have run."""


def make(harness: Harness, job_id: str, **fields: object) -> NewJob:
    """Return a job of the tenant that its first letter names."""
    return harness.job(job_id, options=JobOptions(tenant=job_id[0]), **fields)  # type: ignore[arg-type]


async def add(harness: Harness, *job_ids: str, **fields: object) -> None:
    """Enqueue jobs of the tenants that their first letters name."""
    await harness.enqueue(*(make(harness, job_id, **fields) for job_id in job_ids))


async def read_uses(harness: Harness) -> dict[str, tuple[int, int, float]]:
    """Return by tenant: jobs that wait, jobs that run, seconds ahead of the minimum."""
    uses = (await harness.backend.reads.list_tenants()).tenants
    return {use.tenant: (use.waiting, use.running, use.ahead) for use in uses}


async def run(harness: Harness, worker: HandDrivenWorker, seconds: dict[str, float]) -> list[str]:
    """Run jobs one after another until none is left; `seconds` by tenant. Return their ids."""
    ran: list[str] = []
    (delivery,) = await worker.take()
    while True:
        ran.append(delivery.lease.job_id)
        harness.clock.advance(seconds[ran[-1][0]])
        await worker.heartbeat()
        reply = await worker.exchange(Completed(delivery.lease), want=worker.want())
        if not reply.deliveries:
            return ran
        (delivery,) = reply.deliveries


async def measure(harness: Harness, worker: HandDrivenWorker, tenants: str) -> None:
    """Let each of these tenants run a job of 0.1 s, so that its run time is known."""
    await add(harness, *(f"{tenant}-first" for tenant in tenants))
    deliveries = await worker.take(len(tenants))
    harness.clock.advance(0.1)
    await worker.settle(*(Completed(delivery.lease) for delivery in deliveries))


class Turns:
    """The order among the tenants of a queue."""

    async def test_tenants_take_turns_within_one_exchange(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "a3", "a4", "b1", "b2", "c1")
        worker = await harness.worker()
        reply = await worker.exchange(want=worker.want(6))
        assert ids(reply.deliveries) == ["a1", "b1", "c1", "a2", "b2", "a3"]
        assert reply.waiting == [Lane("default", "mail")]
        assert ids(await worker.take(6)) == ["a4"]

    async def test_tenants_take_turns_over_several_exchanges_and_workers(
        self, harness: Harness
    ) -> None:
        await add(harness, "a1", "a2", "a3", "b1", "b2")
        first, second = await harness.worker(), await harness.worker()
        taken = [ids(await worker.take(1)) for worker in (first, second, first, second, first)]
        assert taken == [["a1"], ["b1"], ["a2"], ["b2"], ["a3"]]

    async def test_one_tenant_keeps_the_order_of_its_lane(self, harness: Harness) -> None:
        await add(harness, "a1", "a2")
        await add(harness, "a0", at=harness.clock.now() - 60.0)
        await add(harness, "a9", priority=9)
        worker = await harness.worker()
        assert ids(await worker.take(9)) == ["a9", "a0", "a1", "a2"]

    async def test_measured_run_times_decide_the_shares(self, harness: Harness) -> None:
        """A tenant with long jobs gets as much time as the others, not as many jobs."""
        await add(harness, *(f"a{n}" for n in range(5)))
        await add(harness, *(f"b{n}" for n in range(40)))
        worker = await harness.worker()
        ran = await run(harness, worker, {"a": 10.0, "b": 1.0})
        places = [place for place, job_id in enumerate(ran) if job_id[0] == "a"]
        assert places == [0, 11, 22, 33, 44]

    async def test_a_reserved_job_is_charged_what_its_tenant_needed_before(
        self, harness: Harness
    ) -> None:
        """So a tenant with long jobs does not take every slot before the first of them ends."""
        await add(harness, *(f"a{n}" for n in range(9)), *(f"b{n}" for n in range(9)))
        worker = await harness.worker()
        a, b = await worker.take(2)
        harness.clock.advance(1.0)
        await worker.settle(Completed(b.lease))
        harness.clock.advance(3.0)
        await worker.settle(Completed(a.lease))
        assert ids(await worker.take(7)) == ["b1", "b2", "b3", "a1", "b4", "b5", "b6"]

    async def test_unknown_run_times_cost_more_with_each_job(self, harness: Harness) -> None:
        """Until the first job of the tenant ends, its charge doubles."""
        worker = await harness.worker()
        await measure(harness, worker, "b")
        await add(harness, *(f"a{n}" for n in range(9)), *(f"b{n}" for n in range(20)))
        assert [job_id[0] for job_id in ids(await worker.take(12))] == list("ababbabbbbab")

    async def test_a_weight_multiplies_the_share(self, harness: Harness) -> None:
        worker = await harness.worker()
        await measure(harness, worker, "ab")
        await harness.backend.maintenance.set_tenant_weight("a", 2.0)
        await add(harness, *(f"a{n}" for n in range(9)), *(f"b{n}" for n in range(9)))
        assert [job_id[0] for job_id in ids(await worker.take(6))] == list("abaaba")
        await harness.backend.maintenance.set_tenant_weight("a", 0.5)
        assert [job_id[0] for job_id in ids(await worker.take(5))] == list("abbab")
        await harness.backend.maintenance.set_tenant_weight("a", None)
        assert (await harness.backend.reads.list_tenants()).weights == {}

    async def test_a_session_brings_weights(self, harness: Harness) -> None:
        await harness.backend.maintenance.set_tenant_weight("b", 3.0)
        await harness.backend.maintenance.set_tenant_weight("c", 4.004)
        await harness.worker(weights={"a": 0.25, "b": 1.0})
        assert (await harness.backend.reads.list_tenants()).weights == {"a": 0.25, "c": 4.0}
        assert (await harness.backend.reads.list_tenants(1)).weights == {"a": 0.25}

    async def test_a_weight_that_is_no_number_is_refused(self, harness: Harness) -> None:
        await harness.backend.maintenance.set_tenant_weight("a", 3.0)
        with pytest.raises(InvalidJob, match="the weight of a tenant is NaN"):
            await harness.backend.maintenance.set_tenant_weight("a", math.nan)
        with pytest.raises(InvalidJob, match="the weight of a tenant is NaN"):
            await harness.worker(weights={"a": 5.0, "b": math.nan})
        assert (await harness.backend.reads.list_tenants()).weights == {"a": 3.0}

    async def test_priorities_come_before_turns(self, harness: Harness) -> None:
        """Each priority has turns of its own: urgent jobs do not cost a tenant its other turns."""
        await add(harness, "a1", "a2", "b1")
        await add(harness, "a3", "a4", "b2", priority=7)
        worker = await harness.worker()
        assert ids(await worker.take(9)) == ["a3", "b2", "a4", "a1", "b1", "a2"]

    async def test_the_names_of_a_queue_share_the_turns(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "a3")
        await add(harness, "b1", "a4", name="post")
        worker = await harness.worker(names=("mail", "post"))
        assert ids(await worker.take(9)) == ["a1", "b1", "a2", "a3", "a4"]

    async def test_each_further_job_of_a_tenant_costs_it_a_turn_whatever_its_name(
        self, harness: Harness
    ) -> None:
        """The first jobs of its names are among the first of the queue, and take one turn each."""
        await add(harness, "a1")
        await add(harness, "a2", name="post")
        await add(harness, "a3", name="page")
        await add(harness, "b1", "c1", "d1")
        worker = await harness.worker(names=("mail", "post", "page"))
        assert ids(await worker.take(3)) == ["a1", "b1", "c1"]
        assert ids(await worker.take(9)) == ["d1", "a2", "a3"]

    async def test_a_tenant_far_behind_gets_several_turns_before_many_others(
        self, harness: Harness
    ) -> None:
        await harness.backend.maintenance.set_tenant_weight("a", 100.0)
        await add(harness, "a0", "b0", "c0", "d0")
        worker = await harness.worker()
        await worker.take(4)
        await add(harness, "b1", "c1", "d1", "a1", "a2", "a3", "a4")
        assert ids(await worker.take(3)) == ["a1", "a2", "a3"]
        assert ids(await worker.take(9)) == ["a4", "b1", "c1", "d1"]

    async def test_a_worker_gets_only_the_names_that_it_asks_for(self, harness: Harness) -> None:
        await add(harness, "a1", "b1")
        await add(harness, "c1", "a2", name="post")
        worker = await harness.worker(names=("post",))
        assert ids(await worker.take(9)) == ["c1", "a2"]

    async def test_queues_have_turns_of_their_own(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", queue="red")
        await add(harness, "a3", "b1", queue="blue")
        worker = await harness.worker(queues=("red", "blue"))
        urgent = {"blue": QueueOptions(priority=1)}
        assert ids(await worker.take(1, queues=urgent)) == ["a3"]
        assert ids(await worker.take(9)) == ["a1", "a2", "b1"]

    async def test_ageing_counts_for_the_job_whose_turn_is_next(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "a3", queue="red")
        harness.clock.advance(25.0)
        await add(harness, "b1", queue="red")
        harness.clock.advance(10.0)
        await add(harness, "a4", queue="blue")
        worker = await harness.worker(queues=("red", "blue"))
        urgent = {"blue": QueueOptions(priority=3)}
        taken = [ids(await worker.take(1, queues=urgent, ageing=10.0)) for _ in range(5)]
        assert taken == [["a1"], ["a4"], ["b1"], ["a2"], ["a3"]]

    async def test_jobs_without_a_tenant_keep_their_order(self, harness: Harness) -> None:
        """Among them, and by due time against the tenant whose turn is next."""
        await harness.add("x1")
        await add(harness, "a1", "a2")
        await harness.add("x2")
        await add(harness, "b1")
        await harness.add("x3")
        worker = await harness.worker()
        assert ids(await worker.take(9)) == ["x1", "a1", "x2", "b1", "a2", "x3"]

    async def test_a_job_that_is_not_fair_keeps_its_order(self, harness: Harness) -> None:
        options = JobOptions(tenant="a", fair=False)
        await harness.enqueue(*(harness.job(f"a{n}", options=options) for n in range(3)))
        await add(harness, "b1")
        worker = await harness.worker()
        assert ids(await worker.take(9)) == ["a0", "a1", "a2", "b1"]
        assert await read_uses(harness) == {"b": (0, 1, 0.1)}

    async def test_a_tenant_that_was_away_has_no_credit(self, harness: Harness) -> None:
        worker = await harness.worker()
        await measure(harness, worker, "abc")
        await add(harness, *(f"a{n}" for n in range(10)), "b0", "b1")
        assert len(await worker.take(9)) == 9
        await add(harness, "b2", "b3", "b4", "c1", "c2")
        assert ids(await worker.take(9)) == ["a7", "b2", "c1", "a8", "b3", "c2", "a9", "b4"]

    @pytest.mark.parametrize("limits", [None, {"mail": 9}])
    @pytest.mark.parametrize("after", [0.0, 1.0])
    async def test_jobs_that_become_due_in_the_exchange_raise_the_minimum_virtual_time_as_others_do(
        self, harness: Harness, after: float, limits: dict[str, int] | None
    ) -> None:
        await add(harness, "a1", "a2", after=after)
        worker = await harness.worker(limits=limits)
        harness.clock.advance(after)
        assert ids(await worker.take(2)) == ["a1", "a2"]
        assert await read_uses(harness) == {"a": (0, 2, 0.2)}

    async def test_time_alone_costs_little(self, harness: Harness) -> None:
        """A tenant that was alone is ahead by its latest job only."""
        await add(harness, *(f"a{n}" for n in range(20)))
        worker = await harness.worker()
        for _ in range(10):
            (delivery,) = await worker.take()
            harness.clock.advance(2.0)
            await worker.settle(Completed(delivery.lease))
        await add(harness, *(f"b{n}" for n in range(5)))
        ran = await run(harness, worker, {"a": 2.0, "b": 2.0})
        assert [job_id[0] for job_id in ran[:8]] == list("babababa")

    async def test_due_times_and_retries_wait_for_the_turn(self, harness: Harness) -> None:
        await add(harness, "a1", after=5.0)
        await add(harness, "b1", "b2", "b3")
        worker = await harness.worker()
        b1, b2 = await worker.take(2)
        harness.clock.advance(0.1)
        await worker.settle(Retried(b1.lease, 5.0, FAILURE), Released(b2.lease, 4.0))
        harness.clock.advance(5.0)
        assert ids(await worker.take(9)) == ["b3", "a1", "b2", "b1"]

    async def test_a_replay_waits_for_the_turn(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "b1")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await worker.settle(Failed(lease, "permanent", FAILURE))
        harness.clock.advance(1.0)
        await replay(harness.backend, JobFilter(ids=("a1",)), 9)
        assert ids(await worker.take(9)) == ["b1", "a2", "a1"]

    async def test_a_cancelled_first_job_is_followed_by_the_next(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "b1")
        await harness.backend.producing.cancel("a1")
        worker = await harness.worker()
        assert ids(await worker.take(9)) == ["a2", "b1"]

    async def test_a_replaced_job_waits_for_the_turn_of_its_new_tenant(
        self, harness: Harness
    ) -> None:
        for job_id, tenant in (("1", "a"), ("2", "a"), ("3", "b")):
            options = JobOptions(
                tenant=tenant,
                unique_key=None if job_id == "1" else "k",
                on_duplicate="replace",
            )
            await harness.enqueue(harness.job(job_id, options=options))
        assert {tenant: use[0] for tenant, use in (await read_uses(harness)).items()} == {
            "a": 1,
            "b": 1,
        }
        worker = await harness.worker()
        (first, second) = await worker.take(9)
        assert (first.options.tenant, second.options.tenant) == ("a", "b")

    async def test_a_reply_of_limited_size_changes_no_turn(self, harness: Harness) -> None:
        for job_id in ("a1", "a2", "b1"):
            await add(harness, job_id, payload=b'"%s"' % (b"x" * 1_000))
        worker = await harness.worker()
        assert ids(await worker.take(9, max_bytes=3_000)) == ["a1", "b1"]
        assert await read_uses(harness) == {"a": (1, 1, 0.1), "b": (0, 1, 0.1)}
        assert ids(await worker.take(9, max_bytes=3_000)) == ["a2"]


class TenantsThatJoin:
    """Tenants that begin to wait beside others."""

    async def test_a_new_tenant_joins_behind_those_that_wait(self, harness: Harness) -> None:
        """Each of them has its turn first, in which it gets one job."""
        await add(harness, "a1", "a2", "a3", "b1", "b2")
        worker = await harness.worker()
        assert ids(await worker.take(2)) == ["a1", "b1"]
        await add(harness, "c1")
        assert ids(await worker.take(9)) == ["a2", "b2", "c1", "a3"]

    async def test_a_tenant_that_comes_back_joins_by_its_expected_run_time(
        self, harness: Harness
    ) -> None:
        worker = await harness.worker()
        await add(harness, "c1")
        (delivery,) = await worker.take(1)
        harness.clock.advance(0.5)
        await worker.settle(Completed(delivery.lease))
        await add(harness, "a1", "a2", "a3", "a4", "a5", "b1")
        await harness.backend.maintenance.set_tenant_weight("c", 2.0)
        assert ids(await worker.take(5)) == ["a1", "b1", "a2", "a3", "a4"]
        assert (await read_uses(harness))["a"] == (1, 4, 0.8)
        await add(harness, "c2")
        assert (await read_uses(harness))["c"] == (1, 0, 0.25)

    @pytest.mark.parametrize("scheduled", [False, True])
    @pytest.mark.parametrize(("seconds", "least"), [(0.1, 25), (1.0, 5)])
    async def test_a_stream_of_new_tenants_starves_no_old_one(
        self, harness: Harness, seconds: float, least: int, *, scheduled: bool
    ) -> None:
        """A job of a new tenant is expected to run 0.1 s, so the minimum rises by 0.1 s each time
        when the jobs of all tenants that wait at a time have been reserved.
        """
        names = (f"new-{n}" for n in count())
        assert await count_old_jobs(harness, names, seconds, scheduled=scheduled) >= least

    @pytest.mark.parametrize("seconds", [0.1, 1.0])
    async def test_tenants_that_come_back_starve_no_old_one(
        self, harness: Harness, seconds: float
    ) -> None:
        names = cycle([f"back-{n}" for n in range(30)])
        assert await count_old_jobs(harness, names, seconds) >= 15

    async def test_a_job_that_was_parked_does_not_join_again(self, harness: Harness) -> None:
        """Otherwise a job that waits for a shared key could be behind a new tenant each time when
        the key has room.
        """
        keyed = {"mail": {"smtp": LimitRule(concurrency=1)}}
        worker = await harness.worker(names=("mail", "post"), keyed=keyed)
        await harness.backend.maintenance.set_tenant_weight("a", 0.1)

        async def add_with_key(job_id: str) -> None:
            options = JobOptions(tenant=job_id[0], limit_keys={"smtp": ""})
            await harness.enqueue(harness.job(job_id, options=options))

        await add_with_key("x1")
        (x1,) = await worker.take(9)
        await add_with_key("a1")
        assert await worker.take(9) == []
        for n in range(3):
            await add(harness, f"b{n}", name="post")
            (delivery,) = await worker.take(9)
            harness.clock.advance(5.0)
            await worker.settle(Completed(delivery.lease))
        await add_with_key("c1")
        reply = await worker.exchange(Completed(x1.lease), want=worker.want(1))
        assert ids(reply.deliveries) == ["a1"]


async def count_old_jobs(
    harness: Harness, names: Iterator[str], seconds: float, *, scheduled: bool = False
) -> int:
    """Run 10 jobs in each of 60 steps of `seconds`, and let 10 jobs of other tenants arrive. Return
    how many of 50 jobs of the tenant `old`, which wait from the start, have run.

    `names`: the tenants of the other jobs. `scheduled`: these jobs are enqueued at the start, and
    become due in their step.
    """

    def make_others(after: float = 0.0) -> list[NewJob]:
        return [
            harness.job(after=after, options=JobOptions(tenant=tenant))
            for tenant in islice(names, 10)
        ]

    steps = range(60)
    old = JobOptions(tenant="old")
    await harness.enqueue(*(harness.job(f"old-{n}", options=old) for n in range(50)))
    if scheduled:
        await harness.enqueue(*(job for step in steps for job in make_others(step * seconds)))
    worker = await harness.worker()
    ran = 0
    done: list[Completed] = []
    for _ in steps:
        if not scheduled:
            await harness.enqueue(*make_others())
        reply = await worker.exchange(*done, want=worker.want(10))
        done = [Completed(delivery.lease) for delivery in reply.deliveries]
        ran += sum(delivery.options.tenant == "old" for delivery in reply.deliveries)
        harness.clock.advance(seconds)
        await worker.heartbeat()
    return ran


class TurnsAndLimits:
    """Turns together with pauses, limits and rates."""

    async def test_a_paused_queue(self, harness: Harness) -> None:
        await add(harness, "a1", "b1", queue="red")
        await add(harness, "a2", "b2", queue="blue")
        worker = await harness.worker(queues=("red", "blue"))
        await harness.backend.maintenance.pause_queue("red", paused=True)
        reply = await worker.exchange(want=worker.want(9))
        assert ids(reply.deliveries) == ["a2", "b2"]
        assert reply.waiting == []

    async def test_the_maximum_of_a_queue(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "b1", queue="red")
        await add(harness, "a3", queue="blue")
        await harness.add("x1", queue="red")
        worker = await harness.worker(queues=("red", "blue"))
        most = {"red": QueueOptions(limit=2)}
        assert ids(await worker.take(9, queues=most)) == ["a1", "b1", "a3"]

    async def test_a_name_at_its_limit_does_not_hold_its_tenants_back(
        self, harness: Harness
    ) -> None:
        await add(harness, "a1", "a2")
        await add(harness, "a3", "b1", name="post")
        worker = await harness.worker(names=("mail", "post"), limits={"mail": 1})
        reply = await worker.exchange(want=worker.want(9))
        assert ids(reply.deliveries) == ["a1", "b1", "a3"]
        assert reply.waiting == []

    async def test_a_limit_that_jobs_without_tenants_share(self, harness: Harness) -> None:
        await add(harness, "a1", "b1")
        await harness.add("x1", "x2")
        worker = await harness.worker(limits={"mail": 3})
        assert ids(await worker.take(9)) == ["a1", "b1", "x1"]

    async def test_a_lane_that_is_full_lets_the_next_turn_of_its_queue_age(
        self, harness: Harness
    ) -> None:
        """`a1` has the first turn and the lowest level. When its lane is full, the turn is that of
        `b1`, whose level is higher than that of `new`."""

        def make_job(job_id: str, name: str, priority: int, tenant: str | None) -> NewJob:
            options = JobOptions(tenant=tenant)
            return harness.job(job_id, name=name, priority=priority, options=options)

        await harness.put(make_job("old", "mail", 5, None))
        await harness.put(make_job("b1", "report", 5, "b"))
        harness.clock.advance(20.0)
        await harness.put(make_job("new", "scan", 6, None))
        await harness.put(make_job("a1", "mail", 6, "a"))
        worker = await harness.worker(names=("mail", "report", "scan"), limits={"mail": 1})
        assert ids(await worker.take(2, ageing=10.0)) == ["old", "b1"]

    async def test_a_rate_tells_the_next_time(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "b1")
        rate = RateLimit("1/s", interval=1_000_000, burst=1)
        worker = await harness.worker(rates={"mail": rate})
        ran = []
        for _ in range(3):
            reply = await worker.exchange(want=worker.want(9))
            ran += ids(reply.deliveries)
            assert (reply.next_due is None) == (len(ran) == 3)
            harness.clock.advance(1.0)
        assert ran == ["a1", "b1", "a2"]

    async def test_a_parked_job_gives_its_turn_to_the_next(self, harness: Harness) -> None:
        """With a limit of one job a tenant, the others run and the parked ones cost no turn."""
        for job_id in ("a1", "a2", "a3", "b1", "b2", "c1"):
            options = JobOptions(tenant=job_id[0], limit_keys={"customer": job_id[0]})
            await harness.enqueue(harness.job(job_id, options=options))
        worker = await harness.worker(keyed={"mail": {"customer": LimitRule(concurrency=1)}})
        held = await worker.take(9)
        assert ids(held) == ["a1", "b1", "c1"]
        assert {use[:2] for use in (await read_uses(harness)).values()} == {(0, 1)}
        order = []
        while held:
            harness.clock.advance(1.0)
            reply = await worker.exchange(Completed(held.pop(0).lease), want=worker.want(9))
            order += ids(reply.deliveries)
            held += reply.deliveries
            uses = (await read_uses(harness)).values()
            assert sum(running for _, running, _ in uses) == len(held)
        assert order == ["a2", "b2", "a3"]

    async def test_a_change_of_a_key_returns_jobs_to_the_turns(self, harness: Harness) -> None:
        for job_id in ("a1", "a2", "a3", "b1", "b2"):
            options = JobOptions(tenant=job_id[0], limit_keys={"customer": job_id[0]})
            await harness.enqueue(harness.job(job_id, options=options))
        worker = await harness.worker(keyed={"mail": {"customer": LimitRule(concurrency=1)}})
        assert ids(await worker.take(9)) == ["a1", "b1"]
        await harness.backend.maintenance.change_limit(
            LimitChange(name="customer", key="a", concurrency=2)
        )
        assert ids(await worker.take(9)) == ["a2"]
        uses = await read_uses(harness)
        assert {tenant: use[:2] for tenant, use in uses.items()} == {"a": (0, 2), "b": (0, 1)}

    async def test_a_key_that_tenants_share(self, harness: Harness) -> None:
        for job_id in ("a1", "a2", "a3", "b1"):
            options = JobOptions(tenant=job_id[0], limit_keys={"service": ""})
            await harness.enqueue(harness.job(job_id, options=options))
        worker = await harness.worker(keyed={"mail": {"service": LimitRule(concurrency=2)}})
        a1, b1 = await worker.take(9)
        assert (a1.lease.job_id, b1.lease.job_id) == ("a1", "b1")
        reply = await worker.exchange(Completed(a1.lease), Completed(b1.lease), want=worker.want(9))
        assert ids(reply.deliveries) == ["a2", "a3"]


class Charges:
    """What a lease adds to the virtual time of its tenant, and what its end takes back."""

    @pytest.mark.parametrize("how", ENDS)
    async def test_an_attempt_that_ran_is_charged_its_time(
        self, harness: Harness, how: str
    ) -> None:
        await add(harness, "a1", "a2", "b1", "b2")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        assert await read_uses(harness) == {"a": (1, 1, 0.1), "b": (2, 0, 0.0)}
        harness.clock.advance(7.0)
        await worker.settle(ENDS[how](lease))
        waiting = 2 if how == "released" else 1
        assert await read_uses(harness) == {"a": (waiting, 0, 7.0), "b": (2, 0, 0.0)}

    async def test_what_did_not_run_is_charged_nothing(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "b1")
        worker = await harness.worker()
        for _ in range(2):
            lease = (await worker.take_one()).lease
            harness.clock.advance(7.0)
            await worker.settle(Released(lease, unstarted=True))
            assert await read_uses(harness) == {"a": (2, 0, 0.0), "b": (1, 0, 0.0)}
            lease = (await worker.take_one()).lease
            harness.clock.advance(7.0)
            await harness.backend.consuming.release(worker.id, [lease])
            assert await read_uses(harness) == {"a": (2, 0, 0.0), "b": (1, 0, 0.0)}

    async def test_a_closed_session_and_a_rescue_charge_nothing(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "b1")
        worker = await harness.worker()
        await worker.take_one()
        await worker.close()
        assert await read_uses(harness) == {"a": (2, 0, 0.0), "b": (1, 0, 0.0)}
        worker = await harness.worker()
        await worker.take(2)
        await harness.lose(worker)
        assert await read_uses(harness) == {"a": (2, 0, 0.0), "b": (1, 0, 0.0)}
        other = await harness.worker()
        assert ids(await other.take(9)) == ["a1", "b1", "a2"]

    async def test_a_completion_with_an_old_token_charges_nothing(self, harness: Harness) -> None:
        await add(harness, "a1", "b1")
        worker = await harness.worker()
        old = (await worker.take_one()).lease
        await worker.settle(Released(old, unstarted=True))
        assert ids(await worker.take(1)) == ["a1"]
        harness.clock.advance(7.0)
        assert await worker.settle(Completed(old)) == [Settled.ALREADY]
        assert await read_uses(harness) == {"a": (0, 1, 0.2), "b": (1, 0, 0.0)}

    async def test_a_job_that_is_shorter_than_expected_brings_its_tenant_forward(
        self, harness: Harness
    ) -> None:
        worker = await harness.worker()
        for tenant, seconds in (("a", 10.0), ("b", 15.0)):
            await add(harness, f"{tenant}-first")
            lease = (await worker.take_one()).lease
            harness.clock.advance(seconds)
            await worker.settle(Completed(lease))
            await worker.heartbeat()
        await add(harness, "a1", "a2", "b1")
        lease = (await worker.take_one()).lease
        harness.clock.advance(1.0)
        reply = await worker.exchange(Completed(lease), want=worker.want(1))
        assert [lease.job_id, *ids(reply.deliveries)] == ["a1", "a2"]

    async def test_a_repeat_charges_once(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "b1")
        worker = await harness.worker()
        want = worker.want(9)
        for _ in range(3):
            reply = await harness.backend.consuming.exchange(worker.id, 1, [], want)
            assert ids(reply.deliveries) == ["a1", "b1", "a2"]
            assert await read_uses(harness) == {"a": (0, 2, 0.2), "b": (0, 1, 0.0)}

    async def test_what_a_repeat_returns_is_charged_nothing(self, harness: Harness) -> None:
        await add(harness, "a1", "b1", "b2")
        worker = await harness.worker()
        await worker.take(9)
        small = worker.want(9, max_bytes=1)
        assert ids(
            (await harness.backend.consuming.exchange(worker.id, 1, [], small)).deliveries
        ) == ["a1"]
        uses = await read_uses(harness)
        assert {tenant: use[:2] for tenant, use in uses.items()} == {"a": (0, 1), "b": (2, 0)}
        assert ids(await worker.take(9)) == ["b1", "b2"]

    async def test_short_jobs_take_turns_too(self, harness: Harness) -> None:
        """A run time of nothing counts as a millisecond."""
        await add(harness, *(f"a{n}" for n in range(5)), *(f"b{n}" for n in range(5)))
        worker = await harness.worker()
        ran = await run(harness, worker, {"a": 0.0, "b": 0.0})
        assert [job_id[0] for job_id in ran] == list("ababababab")

    async def test_the_mean_follows_the_latest_run_times(self, harness: Harness) -> None:
        await add(harness, *(f"a{n}" for n in range(9)), *(f"b{n}" for n in range(9)))
        worker = await harness.worker()
        for seconds in (8.0, 16.0):
            lease = (await worker.take(1))[0].lease
            harness.clock.advance(seconds)
            await worker.heartbeat()
            await worker.settle(Completed(lease))
            lease = (await worker.take(1))[0].lease
            harness.clock.advance(seconds)
            await worker.heartbeat()
            await worker.settle(Completed(lease))
        a, b = await worker.take(2)
        assert (a.lease.job_id[0], b.lease.job_id[0]) == ("a", "b")
        uses = await read_uses(harness)
        assert uses["a"][2] == uses["b"][2] == 9.0

    async def test_prune_forgets_tenants_without_jobs(self, harness: Harness) -> None:
        """Their run times are then unknown again. A tenant that is ahead of others is kept."""
        keep = Retention()
        await add(harness, "a1", "b1")
        worker = await harness.worker()
        a, b = await worker.take(2)
        harness.clock.advance(5.0)
        await worker.settle(Completed(a.lease))
        await harness.backend.maintenance.prune(keep, 100)
        await add(harness, "a2")
        (a,) = await worker.take(1)
        assert await read_uses(harness) == {"a": (0, 1, 5.0), "b": (0, 1, 0.0)}
        await worker.settle(Released(a.lease, unstarted=True), Completed(b.lease))
        await harness.backend.producing.cancel("a2")
        assert await read_uses(harness) == {}
        await harness.backend.maintenance.prune(keep, 100)
        await add(harness, "a3")
        await worker.take(1)
        assert await read_uses(harness) == {"a": (0, 1, 0.1)}

    async def test_many_tenants_are_at_rest_in_the_end(self, harness: Harness) -> None:
        """Each job runs once, in the order of its tenant, and no tenant is far ahead."""
        luck = Random(5)  # noqa: S311 - the scenario is the same each time
        await harness.backend.producing.enqueue(
            [make(harness, f"{'abcdefg'[n % 7]}{n}") for n in range(140)]
        )
        workers = [await harness.worker() for _ in range(3)]
        held: list[list[Delivery]] = [[], [], []]
        ran: dict[str, list[int]] = {}
        for turn in range(400):
            mine, worker = held[turn % 3], workers[turn % 3]
            harness.clock.advance(0.05)
            done = [_end(luck, delivery) for delivery in mine]
            if turn == 30:
                await worker.close()
                workers[turn % 3], done = (worker := await harness.worker()), []
            reply = await worker.exchange(*done, want=worker.want(luck.randint(1, 4)))
            held[turn % 3] = reply.deliveries
            for job_id in ids(reply.deliveries):
                ran.setdefault(job_id[0], []).append(int(job_id[1:]))
            uses = (await read_uses(harness)).values()
            if not uses:
                break
            if all(waiting for waiting, _, _ in uses):
                assert max((ahead for *_, ahead in uses), default=0.0) < 2.0
        assert {len(set(numbers)) for numbers in ran.values()} == {20}
        assert await read_uses(harness) == {}
        assert (await harness.backend.reads.count_jobs())[State.COMPLETED] == 140


def _end(luck: Random, delivery: Delivery) -> Completed | Released:
    lease = delivery.lease
    if luck.random() < 0.2:
        return Released(lease, unstarted=luck.random() < 0.5)
    return Completed(lease)


class ReadingTurns:
    """What operators see of the turns."""

    async def test_jobs_that_wait_for_a_turn_are_pending(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "b1")
        await harness.add("x1")
        worker = await harness.worker()
        await worker.take(2)
        assert await harness.state("a2") is State.PENDING
        counts = await harness.backend.reads.count_jobs()
        assert (counts[State.PENDING], counts[State.PROCESSING]) == (2, 2)
        (queue,) = await harness.backend.reads.list_queues()
        assert (queue.size, queue.processing, queue.names) == (2, 2, {"mail": 2})
        found = (
            await harness.backend.reads.list_jobs(JobFilter(states=frozenset({State.PENDING})))
        ).jobs
        assert [record.id for record in found] == ["x1", "a2"]

    async def test_the_age_of_a_queue_is_that_of_its_oldest_job(self, harness: Harness) -> None:
        await add(harness, "a1", "a2")
        harness.clock.advance(9.0)
        await add(harness, "b1")
        (queue,) = await harness.backend.reads.list_queues()
        assert queue.oldest_age == 9.0

    async def test_tenants_are_listed_in_their_order(self, harness: Harness) -> None:
        await harness.backend.maintenance.set_tenant_weight("b", 2.0)
        await add(harness, "a1", "a2", "b1", "b2", "b3")
        await add(harness, "a3", priority=7)
        await add(harness, "c1", queue="aside")
        worker = await harness.worker()
        await worker.take(4)
        listed = (await harness.backend.reads.list_tenants()).tenants
        expected = [
            ("c", "aside", 5, 1.0, 1, 0, 0.1),
            ("a", "default", 7, 1.0, 0, 1, 0.1),
            ("a", "default", 5, 1.0, 1, 1, 0.1),
            ("b", "default", 5, 2.0, 1, 2, 0.1),
        ]
        assert listed == [
            TenantUse(
                tenant=tenant,
                queue=queue,
                priority=priority,
                weight=weight,
                waiting=waiting,
                running=running,
                ahead=ahead,
            )
            for tenant, queue, priority, weight, waiting, running, ahead in expected
        ]
        assert (await harness.backend.reads.list_tenants(2)).tenants == listed[:2]

    async def test_why_a_job_waits_for_its_turn(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "a3", "b1", "c1", "c2")
        await add(harness, "d1", priority=7)
        worker = await harness.worker()
        await worker.take(2)
        facts = await harness.backend.reads.explain_job("a3")
        assert facts.turn == TenantTurn(tenant="a", ahead=0.1, tenants_before=2, jobs_before=1)
        assert [cause.kind for cause in find_causes(facts)] == [CauseKind.TENANT_TURN]
        facts = await harness.backend.reads.explain_job("b1")
        assert facts.turn == TenantTurn(tenant="b", ahead=0.0, tenants_before=0, jobs_before=0)
        assert [cause.kind for cause in find_causes(facts)] == [CauseKind.READY]
        assert (await harness.backend.reads.explain_job("a1")).turn is None

    async def test_a_job_without_a_turn(self, harness: Harness) -> None:
        await harness.add("x1")
        await add(harness, "a1", after=9.0)
        for job_id in ("x1", "a1"):
            assert (await harness.backend.reads.explain_job(job_id)).turn is None
