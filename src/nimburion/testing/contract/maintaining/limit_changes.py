"""Changes of limits at run time: they win over what workers declare until they are reset."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from nimburion.core.errors import InvalidJob
from nimburion.core.job import JobOptions
from nimburion.core.limits import (
    MAX_RETURNED,
    KeyUse,
    LimitChange,
    LimitInfo,
    LimitRule,
)
from nimburion.core.rate_limits import RateLimit
from nimburion.core.session import ConcurrencyLimit
from nimburion.core.settlement import Completed, RateLimited
from nimburion.testing.contract.consuming.concurrency_limits import read_limit
from nimburion.testing.contract.consuming.keyed_limits import (
    ONE_A_SECOND,
    ONE_AT_A_TIME,
    add,
    read_uses,
)
from nimburion.testing.contract.harness import Harness, ids

SLOW = RateLimit("1/h", interval=3_600_000_000, burst=1)
FAST = RateLimit("10/s", interval=100_000, burst=2)


async def change(
    harness: Harness,
    name: str = "job:mail",
    concurrency: int | None = None,
    rate: RateLimit | None = None,
    key: str | None = None,
) -> None:
    """Change a limit."""
    await harness.backend.maintenance.change_limit(
        LimitChange(
            name=name, key=key, concurrency=concurrency, rate=rate, by="ops", reason="trial"
        )
    )


async def list_changes(harness: Harness) -> list[LimitChange]:
    """Return the changes of limits that are in force, by the name of the limit, then by key."""
    return [
        change for limit in await harness.backend.reads.list_limits() for change in limit.changes
    ]


async def list_maximums(
    harness: Harness,
) -> tuple[list[tuple[str, int | None]], list[tuple[str, int | None]]]:
    """Return the maximums that apply to the job name `mail`, and the changes, by limit name."""
    limits = await harness.backend.reads.list_limits()
    in_force = [(limit.name, limit.rules["mail"].concurrency) for limit in limits]
    return in_force, [(change.name, change.concurrency) for change in await list_changes(harness)]


class LimitChanges:
    """Changes of limits at run time."""

    async def test_a_change_raises_a_limit_at_the_next_exchange(self, harness: Harness) -> None:
        await harness.add(*"abcd")
        worker = await harness.worker(limits={"mail": 1})
        await worker.take(9)
        await change(harness, concurrency=3)
        assert await read_limit(worker) == ConcurrencyLimit(3, 1)
        assert ids(await worker.take(9)) == ["b", "c"]

    async def test_a_change_lowers_a_limit_and_stops_nothing(self, harness: Harness) -> None:
        await harness.add(*"abcd")
        worker = await harness.worker(limits={"mail": 3})
        leases = [delivery.lease for delivery in await worker.take(9)]
        await change(harness, concurrency=1)
        await worker.settle(Completed(leases[0]), Completed(leases[1]))
        assert await worker.take(9) == []
        reply = await worker.exchange(Completed(leases[2]), want=worker.want(9))
        assert ids(reply.deliveries) == ["d"]

    async def test_zero_stops_a_name(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await change(harness, concurrency=0)
        assert await worker.take(9) == []
        await harness.backend.maintenance.reset_limit("job:mail")
        assert ids(await worker.take(9)) == ["a"]

    async def test_a_change_wins_over_newer_sessions(self, harness: Harness) -> None:
        """Workers that declare the old number, another one or none do not undo it."""
        await change(harness, concurrency=2)
        worker = await harness.worker(limits={"mail": 1})
        for limits in ({"mail": 5}, {"mail": 1}, {}):
            await harness.worker(limits=limits)
            assert await read_limit(worker) == ConcurrencyLimit(2, 0)

    async def test_a_reset_returns_to_what_the_newest_session_declares(
        self, harness: Harness
    ) -> None:
        worker = await harness.worker(limits={"mail": 1})
        await change(harness, concurrency=2)
        await harness.worker(limits={"mail": 5})
        assert await harness.backend.maintenance.reset_limit("job:mail")
        assert await read_limit(worker) == ConcurrencyLimit(5, 0)
        assert not await harness.backend.maintenance.reset_limit("job:mail")
        assert await list_changes(harness) == []

    async def test_a_change_makes_a_limit_that_no_worker_declares(self, harness: Harness) -> None:
        await harness.add(*"abc")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await change(harness, concurrency=2)
        assert await read_limit(worker) == ConcurrencyLimit(2, 1)
        assert ids(await worker.take(9)) == ["b"]
        await harness.backend.maintenance.reset_limit("job:mail")
        assert await read_limit(worker) is None
        await worker.settle(Completed(lease))
        assert ids(await worker.take(9)) == ["c"]

    async def test_a_change_of_a_rate_applies_at_once(self, harness: Harness) -> None:
        """Units that were taken at the slow rate delay the next job by a burst of the new one."""
        await harness.add(*"abcd")
        worker = await harness.worker(rates={"mail": SLOW})
        assert ids(await worker.take(9)) == ["a"]
        await change(harness, rate=FAST)
        (limit,) = await harness.backend.reads.list_limits()
        assert limit.rules == {"mail": LimitRule(rate=FAST)}
        assert limit.room == 0
        assert limit.opens_at == pytest.approx(harness.clock.now() + 0.1, abs=0.001)
        assert await worker.take(9) == []
        harness.clock.advance(0.1)
        assert ids(await worker.take(9)) == ["b"]

    async def test_a_slower_rate_applies_from_the_next_job_on(self, harness: Harness) -> None:
        await harness.add(*"abcd")
        worker = await harness.worker(rates={"mail": FAST})
        assert ids(await worker.take(1)) == ["a"]
        await change(harness, rate=SLOW)
        assert await worker.take(9) == []
        harness.clock.advance(0.1)
        assert ids(await worker.take(9)) == ["b"]
        harness.clock.advance(3599.0)
        await worker.heartbeat()
        assert await worker.take(9) == []
        harness.clock.advance(1.0)
        assert ids(await worker.take(9)) == ["c"]

    async def test_a_change_keeps_the_time_of_a_refusal(self, harness: Harness) -> None:
        await harness.add(*"ab")
        worker = await harness.worker(rates={"mail": FAST})
        lease = (await worker.take_one()).lease
        await worker.settle(RateLimited(lease, 20.0))
        await change(harness, rate=RateLimit("20/s", interval=50_000, burst=1))
        harness.clock.advance(19.5)
        assert await worker.take(9) == []
        harness.clock.advance(0.7)
        assert ids(await worker.take(9)) == ["a"]

    async def test_a_changed_rate_keeps_the_declared_cost(self, harness: Harness) -> None:
        await harness.worker(rates={"mail": RateLimit("1/s", 1_000_000, burst=3, cost=3)})
        await change(harness, rate=FAST)
        (limit,) = await harness.backend.reads.list_limits()
        assert limit.rules == {"mail": LimitRule(rate=msgspec.structs.replace(FAST, cost=3))}
        await harness.backend.maintenance.reset_limit("job:mail")
        (limit,) = await harness.backend.reads.list_limits()
        assert limit.rate is not None
        assert (limit.rate.rate, limit.changes) == ("1/s", [])

    async def test_changes_of_one_limit_add_up(self, harness: Harness) -> None:
        worker = await harness.worker()
        await change(harness, concurrency=2)
        await change(harness, rate=FAST)
        (found,) = await list_changes(harness)
        assert (found.name, found.key, found.concurrency) == ("job:mail", None, 2)
        assert found.rate is not None
        assert (found.rate.rate, found.rate.interval, found.rate.burst) == ("10/s", 100_000, 2)
        assert (found.by, found.reason) == ("ops", "trial")
        assert found.at == pytest.approx(harness.clock.now(), abs=0.001)
        assert await read_limit(worker) == ConcurrencyLimit(2, 0)

    async def test_a_limit_by_key_is_changed_for_parked_jobs_too(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "a3", "a4", "b1")
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        assert ids(await worker.take(9)) == ["a1", "b1"]
        await change(harness, "customer", 3)
        await harness.worker(keyed=ONE_AT_A_TIME)
        assert ids(await worker.take(9)) == ["a2", "a3"]
        await harness.backend.maintenance.reset_limit("customer")
        assert await worker.take(9) == []
        assert await read_uses(harness) == {"a": (3, 1), "b": (1, 0)}

    async def test_a_rate_by_key_is_changed_for_parked_jobs_too(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "a3")
        worker = await harness.worker(keyed={"mail": {"customer": LimitRule(rate=SLOW)}})
        assert ids(await worker.take(9)) == ["a1"]
        await change(harness, "customer", rate=FAST)
        harness.clock.advance(0.1)
        assert ids(await worker.take(9)) == ["a2"]
        harness.clock.advance(0.1)
        assert ids(await worker.take(9)) == ["a3"]

    async def test_a_rate_is_changed_for_keys_with_a_maximum_of_their_own(
        self, harness: Harness
    ) -> None:
        """The change of the key leaves the rate to its limit."""
        await add(harness, "a1", "a2")
        worker = await harness.worker(keyed={"mail": {"customer": LimitRule(rate=SLOW)}})
        assert ids(await worker.take(9)) == ["a1"]
        await change(harness, "customer", 5, key="a")
        await change(harness, "customer", rate=FAST)
        harness.clock.advance(0.1)
        assert ids(await worker.take(9)) == ["a2"]

    async def test_one_key_is_changed(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "a3", "b1", "b2")
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        assert ids(await worker.take(9)) == ["a1", "b1"]
        await change(harness, "customer", 2, key="a")
        assert ids(await worker.take(9)) == ["a2"]
        assert await harness.backend.maintenance.reset_limit("customer", "a")
        assert await worker.take(9) == []
        assert await read_uses(harness) == {"a": (2, 1), "b": (1, 1)}

    async def test_a_key_is_changed_beside_its_limit(self, harness: Harness) -> None:
        """The change of a key wins over that of its limit, in what it sets."""
        await add(harness, *(f"a{n}" for n in range(9)), *(f"b{n}" for n in range(9)))
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        await change(harness, "customer", 3, key="a")
        await change(harness, "customer", 2)
        assert [job_id[0] for job_id in ids(await worker.take(9))] == ["a"] * 3 + ["b"] * 2
        found = await list_changes(harness)
        assert [(one.key, one.concurrency) for one in found] == [(None, 2), ("a", 3)]

    async def test_the_rate_of_one_key_is_changed(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "a3", "b1", "b2")
        worker = await harness.worker(keyed=ONE_A_SECOND)
        assert ids(await worker.take(9)) == ["a1", "b1"]
        await change(harness, "customer", rate=FAST, key="a")
        harness.clock.advance(0.1)
        assert ids(await worker.take(9)) == ["a2"]
        harness.clock.advance(0.1)
        assert ids(await worker.take(9)) == ["a3"]
        harness.clock.advance(0.8)
        assert ids(await worker.take(9)) == ["b2"]

    @pytest.mark.parametrize("key", [None, "a"])
    async def test_a_change_returns_many_parked_jobs_in_steps(
        self, harness: Harness, key: str | None
    ) -> None:
        """A step returns at most `MAX_RETURNED` jobs, and no job of the key overtakes them."""
        expected = [f"a{n}" for n in range(3 * MAX_RETURNED + 1)]
        await add(harness, *expected)
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        ran = ids(await worker.take(5))
        while (await read_uses(harness))["a"][1] < 3 * MAX_RETURNED:
            await worker.take(5)
        await add(harness, "a-late")
        left = 3 * MAX_RETURNED
        await change(harness, "customer", 100_000, key=key)
        while len(ran) <= len(expected):
            assert left - (await read_uses(harness))["a"][1] <= MAX_RETURNED
            left = (await read_uses(harness))["a"][1]
            reply = await worker.exchange(want=worker.want(3 * MAX_RETURNED))
            ran += ids(reply.deliveries)
            assert reply.deliveries or reply.waiting
        assert ran == [*expected, "a-late"]
        assert await read_uses(harness) == {"a": (3 * MAX_RETURNED + 2, 0)}

    @pytest.mark.parametrize("how", ["raised", "raised for a key", "reset"])
    async def test_jobs_that_fit_a_changed_limit_start_with_the_next_exchange(
        self, harness: Harness, how: str
    ) -> None:
        """However many jobs are parked. These return in the steps of the exchanges that follow,
        and none of these delays jobs of another name. There are as many steps as it takes to
        return half of `MAX_RETURNED` jobs in each."""
        count = 2 * MAX_RETURNED + 1
        keyed = {"mail": {"customer": LimitRule(concurrency=3 if how == "reset" else 1)}}
        if how == "reset":
            await change(harness, "customer", 1)
        await add(harness, *(f"a{n}" for n in range(count)))
        worker = await harness.worker(names=("mail", "post"), keyed=keyed)
        (first,) = await worker.take(9)
        while (await read_uses(harness))["a"][1] < count - 1:
            assert await worker.take(9) == []
        if how == "reset":
            await harness.backend.maintenance.reset_limit("customer")
        else:
            await change(harness, "customer", 3, key="a" if how == "raised for a key" else None)
        await harness.add("post-0", name="post")
        reply = await worker.exchange(want=worker.want(9))
        assert ids(reply.deliveries) == ["a1", "a2", "post-0"]
        steps = 0
        while reply.waiting:
            steps += 1
            assert steps <= 2 * count / MAX_RETURNED + 1
            await harness.add(f"post-{steps}", name="post")
            reply = await worker.exchange(want=worker.want(9))
            assert ids(reply.deliveries) == [f"post-{steps}"]
        assert await read_uses(harness) == {"a": (3, count - 3)}
        reply = await worker.exchange(Completed(first.lease), want=worker.want(9))
        assert ids(reply.deliveries) == ["a3"]

    async def test_a_shared_limit_is_changed_for_every_name(self, harness: Harness) -> None:
        limit = {"smtp": LimitRule(concurrency=1)}
        worker = await harness.worker(names=("mail", "post"), keyed={"mail": limit, "post": limit})
        options = JobOptions(limit_keys={"smtp": ""})
        for job_id, name in (("a", "mail"), ("b", "post"), ("c", "mail")):
            await harness.enqueue(harness.job(job_id, name=name, options=options))
        assert ids(await worker.take(9)) == ["a"]
        await change(harness, "smtp", 2)
        assert ids(await worker.take(9)) == ["b"]

    async def test_a_job_and_a_shared_limit_of_one_name_are_changed_apart(
        self, harness: Harness
    ) -> None:
        """A change of the limit of the job name is none of the shared limit, and vice versa."""
        worker = await harness.worker(
            limits={"mail": 5}, keyed={"mail": {"mail": LimitRule(concurrency=4)}}
        )
        declared = [("job:mail", 5), ("mail", 4)]
        assert await list_maximums(harness) == (declared, [])
        await change(harness, concurrency=2)
        assert await read_limit(worker) == ConcurrencyLimit(2, 0)
        changed = [("job:mail", 2), ("mail", 4)]
        assert await list_maximums(harness) == (changed, [("job:mail", 2)])
        await change(harness, "mail", concurrency=1)
        changed = [("job:mail", 2), ("mail", 1)]
        assert await list_maximums(harness) == (changed, changed)
        assert await harness.backend.maintenance.reset_limit("job:mail")
        changed = [("job:mail", 5), ("mail", 1)]
        assert await list_maximums(harness) == (changed, [("mail", 1)])
        assert await harness.backend.maintenance.reset_limit("mail")
        assert await list_maximums(harness) == (declared, [])

    async def test_a_change_wakes_an_idle_worker(self, harness: Harness) -> None:
        if not harness.backend.capabilities.notifies:
            pytest.skip("this backend sends no notifications")
        await harness.worker(limits={"mail": 0})
        waiting = asyncio.ensure_future(harness.backend.consuming.wait(["default"], 60.0))
        for _ in range(40):
            await change(harness, concurrency=1)
            await asyncio.wait({waiting}, timeout=0.5)
            if waiting.done():
                break
        assert waiting.done()

    async def test_a_change_that_sets_nothing_is_refused(self, harness: Harness) -> None:
        for wrong in (
            LimitChange(name="job:mail"),
            LimitChange(name="job:mail", concurrency=-1),
            LimitChange(name="job:mail", rate=RateLimit("1/s", 1_000_000, burst=0)),
        ):
            with pytest.raises(InvalidJob):
                await harness.backend.maintenance.change_limit(wrong)
        assert await harness.backend.reads.list_limits() == []

    async def test_limits_by_key_are_listed_with_their_fullest_keys(self, harness: Harness) -> None:
        await add(harness, *(f"a{n}" for n in range(5)), "b1", "b2", "c1", "d1", "d2", "d3")
        limit = {"smtp": LimitRule(rate=RateLimit("3/s", interval=333_334, burst=1))}
        worker = await harness.worker(
            names=("mail", "post"), keyed={**ONE_AT_A_TIME, "post": limit}
        )
        await change(harness, "customer", 0, key="d")
        await worker.take(9)
        customer, smtp = await harness.backend.reads.list_limits(fullest=2)
        (changed,) = customer.changes
        assert (changed.key, changed.concurrency) == ("d", 0)
        assert customer == LimitInfo(
            name="customer",
            rules={"mail": LimitRule(concurrency=1)},
            changes=[changed],
            keys=4,
            in_use=3,
            parked=8,
            fullest=[
                KeyUse(limit="customer", key="a", in_use=1, parked=4),
                KeyUse(limit="customer", key="d", in_use=0, parked=3),
            ],
        )
        assert smtp == LimitInfo(name="smtp", rules={"post": limit["smtp"]})
        assert await harness.backend.reads.list_limits(name="smtp") == [smtp]
        assert await harness.backend.reads.list_limits(name="other") == []
