"""Rate limits: how many jobs of a name start in a time over the fleet, decided in the exchange."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nimburion.core.diagnosis.explanations import CauseKind, find_causes
from nimburion.core.exchange import QueueOptions
from nimburion.core.job import State
from nimburion.core.lease import Lease
from nimburion.core.limits import LimitInfo, LimitRule
from nimburion.core.rate_limits import MAX_UNITS, RateLimit
from nimburion.core.session import ConcurrencyLimit
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    RateLimited,
    Released,
    Retried,
    Settled,
    Settlement,
    Spent,
)
from nimburion.testing.contract.harness import FAILURE, TTL, HandDrivenWorker, Harness, ids

ONE = RateLimit("1/s", interval=1_000_000, burst=1)
"""One job each second."""
THREE = RateLimit("1/s", interval=1_000_000, burst=3)
"""One job each second, and up to three at once."""

KEEPING: dict[str, Callable[[Lease], Settlement]] = {
    "completed": Completed,
    "retried": lambda lease: Retried(lease, 0.0, FAILURE),
    "failed": lambda lease: Failed(lease, "permanent", FAILURE),
    "released": Released,
    "snoozed": lambda lease: Released(lease, 0.0),
    "cancelled": Cancelled,
    "progressed": lambda lease: Progressed(lease, 0.5),
}


async def read_rate(harness: Harness) -> LimitInfo:
    """Return the only limit."""
    (rate,) = await harness.backend.reads.list_limits()
    return rate


async def take_until(harness: Harness, worker: HandDrivenWorker, count: int) -> list[float]:
    """Take `count` jobs as an idle worker does: sleep until `next_due`. Return when each came."""
    taken: list[float] = []
    start = harness.clock.now()
    while len(taken) < count:
        reply = await worker.exchange(want=worker.want(9))
        taken += [round(reply.now - start, 6)] * len(reply.deliveries)
        if len(taken) < count:
            assert reply.next_due is not None
            assert reply.waiting == []
            harness.clock.advance(reply.next_due - reply.now)
    return taken


class RateLimits:
    """Rates."""

    async def test_jobs_start_at_the_rate(self, harness: Harness) -> None:
        """A worker that sleeps until the `next_due` of each reply takes each job on time."""
        await harness.add(*"abcd")
        worker = await harness.worker(rates={"mail": ONE})
        assert await take_until(harness, worker, 4) == [0.0, 1.0, 2.0, 3.0]
        assert (await worker.exchange(want=worker.want(9))).next_due is None

    async def test_a_burst_starts_at_once_and_is_saved_up_again(self, harness: Harness) -> None:
        await harness.add(*"abcdefghi")
        worker = await harness.worker(rates={"mail": THREE})
        assert ids(await worker.take(9)) == ["a", "b", "c"]
        assert await worker.take(9) == []
        harness.clock.advance(1.5)
        assert ids(await worker.take(9)) == ["d"]
        harness.clock.advance(60.0)
        assert ids(await worker.take(9)) == ["e", "f", "g"]
        harness.clock.advance(0.999999)
        assert await worker.take(9) == []
        harness.clock.advance(0.000001)
        assert ids(await worker.take(9)) == ["h"]

    async def test_a_rate_holds_over_the_whole_fleet(self, harness: Harness) -> None:
        await harness.add(*"abcd")
        first = await harness.worker(rates={"mail": THREE})
        second = await harness.worker(rates={"mail": THREE})
        assert ids(await first.take(2)) == ["a", "b"]
        assert ids(await second.take(9)) == ["c"]
        assert await first.take(9) == []

    async def test_a_rate_is_of_one_name_and_spans_queues(self, harness: Harness) -> None:
        await harness.add("a", queue="red")
        await harness.add("b", queue="blue")
        await harness.add("c", "d", name="post", queue="red")
        worker = await harness.worker(
            names=("mail", "post"), queues=("red", "blue"), rates={"mail": ONE}
        )
        assert ids(await worker.take(9)) == ["a", "c", "d"]

    async def test_what_is_over_the_rate_waits_and_counts_nothing(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker(rates={"mail": ONE})
        reply = await worker.exchange(want=worker.want(9))
        assert reply.waiting == []
        record = await harness.backend.reads.get_job("b")
        assert (record.state, record.failures, record.lost) == (State.PENDING, 0, 0)
        assert [
            cause.kind for cause in find_causes(await harness.backend.reads.explain_job("b"))
        ] == [CauseKind.OVER_RATE]

    async def test_jobs_that_cost_several_units(self, harness: Harness) -> None:
        await harness.add(*"abcde")
        limit = RateLimit("10/s", interval=100_000, burst=10, cost=4)
        worker = await harness.worker(rates={"mail": limit})
        assert await take_until(harness, worker, 5) == [0.0, 0.0, 0.2, 0.6, 1.0]

    async def test_a_job_that_costs_more_than_a_burst_needs_a_full_one(
        self, harness: Harness
    ) -> None:
        await harness.add(*"abc")
        limit = RateLimit("10/s", interval=100_000, burst=2, cost=5)
        worker = await harness.worker(rates={"mail": limit})
        assert await take_until(harness, worker, 3) == [0.0, 0.5, 1.0]

    async def test_a_concurrency_limit_and_a_rate_both_hold(self, harness: Harness) -> None:
        await harness.add(*"abcdef")
        worker = await harness.worker(limits={"mail": 2}, rates={"mail": THREE})
        first, second = await worker.take(9)
        settle = [Completed(first.lease), Completed(second.lease)]
        reply = await worker.exchange(*settle, want=worker.want(9))
        assert ids(reply.deliveries) == ["c"]
        assert (await worker.heartbeat()).limits == {"mail": ConcurrencyLimit(2, 1)}
        harness.clock.advance(60.0)
        assert ids(await worker.take(9)) == ["d"]

    async def test_a_cap_of_the_queue_takes_no_units(self, harness: Harness) -> None:
        await harness.add(*"abcd")
        worker = await harness.worker(rates={"mail": THREE})
        assert len(await worker.take(9, queues={"default": QueueOptions(limit=1)})) == 1
        assert (await read_rate(harness)).room == 2

    async def test_two_lanes_share_the_rate_of_their_name(self, harness: Harness) -> None:
        await harness.enqueue(
            *(harness.job(f"{n}", queue=("red", "blue")[n % 2]) for n in range(8))
        )
        worker = await harness.worker(queues=("red", "blue"), rates={"mail": THREE})
        assert ids(await worker.take(9)) == ["0", "1", "2"]
        harness.clock.advance(2.0)
        assert ids(await worker.take(9)) == ["3", "4"]

    @pytest.mark.parametrize("how", KEEPING)
    async def test_what_may_have_started_keeps_its_units(self, harness: Harness, how: str) -> None:
        await harness.add("a", "b")
        worker = await harness.worker(rates={"mail": ONE})
        lease = (await worker.take_one()).lease
        reply = await worker.exchange(KEEPING[how](lease), want=worker.want(9))
        assert reply.deliveries == []

    async def test_a_lost_or_closed_session_keeps_the_units(self, harness: Harness) -> None:
        await harness.add("a", "b")
        slow = RateLimit("1/h", interval=3_600_000_000, burst=1)
        worker = await harness.worker(rates={"mail": slow})
        await worker.take_one()
        await harness.lose(worker)
        other = await harness.worker(rates={"mail": slow})
        assert await other.take(9) == []
        harness.clock.advance(3_600.0 - TTL)
        await other.heartbeat()
        await other.take_one()
        await other.close()
        assert (await read_rate(harness)).room == 0

    async def test_a_job_released_unstarted_gives_its_units_back(self, harness: Harness) -> None:
        await harness.add(*"abcd")
        worker = await harness.worker(rates={"mail": THREE})
        leases = [delivery.lease for delivery in await worker.take(9)]
        unstarted = [Released(lease, unstarted=True) for lease in leases[1:]]
        reply = await worker.exchange(*unstarted, want=worker.want(9))
        assert ids(reply.deliveries) == ["b", "c"]
        token = reply.deliveries[0].lease.token
        await harness.backend.consuming.release(worker.id, nonce=token.nonce)
        assert (await read_rate(harness)).room == 2
        snoozed = Released(reply.deliveries[0].lease, 60.0, unstarted=True)
        assert await worker.settle(snoozed) == [Settled.ALREADY]
        await harness.backend.consuming.release(worker.id, leases[:1])
        await harness.backend.consuming.release(worker.id, leases)
        assert (await read_rate(harness)).room == 3
        lease = (await worker.take_one()).lease
        await worker.settle(Released(lease, 60.0, unstarted=True))
        assert (await read_rate(harness)).room == 3

    async def test_units_returned_late_make_no_second_burst(self, harness: Harness) -> None:
        """Units that have become available again by themselves are not returned."""
        await harness.add(*"abcdefg")
        worker = await harness.worker(rates={"mail": THREE})
        first = (await worker.take(9))[0].lease
        harness.clock.advance(5.0)
        second = (await worker.take(9))[0].lease
        await worker.settle(Released(first, unstarted=True))
        assert await worker.take(9) == []
        harness.clock.advance(0.25)
        await worker.settle(Released(second, unstarted=True))
        rate = await read_rate(harness)
        assert (rate.room, rate.opens_at) == (1, None)
        assert len(await worker.take(9)) == 1
        opens_at = (await read_rate(harness)).opens_at
        assert opens_at == pytest.approx(harness.clock.now() + 1.0, abs=1e-6)

    async def test_a_delivery_that_a_repeat_returns_gives_its_units_back(
        self, harness: Harness
    ) -> None:
        await harness.enqueue(*(harness.job(i, payload=b"x" * 500) for i in "abcd"))
        worker = await harness.worker(rates={"mail": THREE})
        want = worker.want(9)
        assert (
            len((await harness.backend.consuming.exchange(worker.id, 1, [], want)).deliveries) == 3
        )
        assert (
            len((await harness.backend.consuming.exchange(worker.id, 1, [], want)).deliveries) == 3
        )
        assert (await read_rate(harness)).room == 0
        small = worker.want(9, max_bytes=1000)
        assert ids(
            (await harness.backend.consuming.exchange(worker.id, 1, [], small)).deliveries
        ) == ["a"]
        assert (await read_rate(harness)).room == 2

    async def test_what_does_not_fit_the_reply_takes_no_units(self, harness: Harness) -> None:
        await harness.enqueue(*(harness.job(i, payload=b"x" * 500) for i in "abcd"))
        worker = await harness.worker(rates={"mail": THREE})
        want = worker.want(9, max_bytes=1600)
        reply = await worker.exchange(want=want)
        assert (ids(reply.deliveries), len(reply.waiting)) == (["a", "b"], 1)
        assert (await read_rate(harness)).room == 1

    async def test_a_paused_queue_brings_no_next_time(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker(rates={"mail": ONE})
        await worker.take_one()
        await harness.backend.maintenance.pause_queue("default", paused=True)
        assert (await worker.exchange(want=worker.want(9))).next_due is None

    async def test_the_earliest_time_is_brought(self, harness: Harness) -> None:
        """Of a job that is scheduled, and of the rates of the requested lanes."""
        await harness.add("a", "b")
        await harness.put(harness.job("c", after=2.5))
        start = harness.clock.now()
        fast = RateLimit("1/s", interval=2_000_000, burst=1)
        worker = await harness.worker(names=("mail",), rates={"mail": fast})
        reply = await worker.exchange(want=worker.want(9))
        assert reply.next_due == pytest.approx(start + 2.0, abs=1e-6)
        harness.clock.advance(2.0)
        reply = await worker.exchange(want=worker.want(9))
        assert ids(reply.deliveries) == ["b"]
        assert reply.next_due == pytest.approx(start + 2.5, abs=1e-6)


class RefusedCalls:
    """What an attempt reports of its own calls: a refusal, or other costs than declared."""

    async def test_a_refused_job_stops_the_rate_for_everybody(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        worker = await harness.worker(rates={"mail": THREE})
        lease = (await worker.take_one()).lease
        other = await harness.worker(rates={"mail": THREE})
        reply = await worker.exchange(RateLimited(lease, 30.0), want=worker.want(9))
        assert (reply.results, reply.deliveries) == ([Settled.DONE], [])
        assert reply.next_due == pytest.approx(reply.now + 30.0, abs=1e-6)
        assert await other.take(9) == []
        harness.clock.advance(29.999)
        await other.heartbeat()
        assert await other.take(9) == []
        harness.clock.advance(0.001)
        assert ids(await other.take(9)) == ["a"]  # no burst follows
        record = await harness.backend.reads.get_job("a")
        assert (record.failures, record.lost, record.history) == (0, 0, [])

    async def test_a_refusal_never_shortens_a_pause(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker(rates={"mail": THREE})
        first, second = [delivery.lease for delivery in await worker.take(9)]
        await worker.settle(RateLimited(first, 30.0), RateLimited(second, 1.0))
        assert (await read_rate(harness)).opens_at == pytest.approx(
            harness.clock.now() + 30.0, abs=1e-6
        )

    async def test_without_a_rate_a_refused_job_waits_alone(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        reply = await worker.exchange(RateLimited(lease, 30.0), want=worker.want(9))
        assert ids(reply.deliveries) == ["b"]
        assert await harness.state("a") is State.SCHEDULED
        assert (await worker.settle(RateLimited(lease, 30.0))) == [Settled.ALREADY]

    async def test_a_refused_job_that_is_to_be_cancelled_ends(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker(rates={"mail": ONE})
        lease = (await worker.take_one()).lease
        await harness.backend.producing.cancel("a")
        await worker.settle(RateLimited(lease, 30.0))
        assert await harness.state("a") is State.CANCELLED

    async def test_a_stale_refusal_stops_nothing(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker(rates={"mail": THREE})
        lease = (await worker.take_one()).lease
        await worker.settle(Completed(lease))
        assert await worker.settle(RateLimited(lease, 30.0)) == [Settled.ALREADY]
        assert await worker.settle(Spent(lease, 50)) == [Settled.ALREADY]
        assert (await read_rate(harness)).room == 2

    async def test_units_spent_later_delay_the_next_jobs(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker(rates={"mail": ONE})
        lease = (await worker.take_one()).lease
        reply = await worker.exchange(Spent(lease, 4), want=worker.want(9))
        assert reply.results == [Settled.DONE]
        assert reply.next_due == pytest.approx(reply.now + 5.0, abs=1e-6)
        assert await worker.settle(Spent(lease, -3), Completed(lease)) == [Settled.DONE] * 2
        harness.clock.advance(2.0)
        assert ids(await worker.take(9)) == ["b"]

    async def test_a_repeat_spends_once(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker(rates={"mail": ONE})
        lease = (await worker.take_one()).lease
        for _ in range(3):
            await harness.backend.consuming.exchange(
                worker.id, 2, [Spent(lease, 4)], worker.want(0)
            )
        assert (await read_rate(harness)).opens_at == pytest.approx(
            harness.clock.now() + 5.0, abs=1e-6
        )

    async def test_the_largest_numbers_are_stored(self, harness: Harness) -> None:
        """The pause is cut at 366 days, so that no time overflows."""
        await harness.add("a")
        day = RateLimit("1/day", interval=86_400_000_000, burst=MAX_UNITS, cost=MAX_UNITS)
        worker = await harness.worker(rates={"mail": day})
        lease = (await worker.take_one()).lease
        assert await worker.settle(*[Spent(lease, MAX_UNITS)] * 300) == [Settled.DONE] * 300
        assert await worker.settle(*[Spent(lease, -MAX_UNITS)] * 300) == [Settled.DONE] * 300
        assert (await read_rate(harness)).room == 1
        assert await worker.settle(RateLimited(lease, 1e9)) == [Settled.DONE]
        assert (await read_rate(harness)).opens_at == pytest.approx(
            harness.clock.now() + 366 * 86_400, abs=1.0
        )


class DeclaringRates:
    """The newest session decides the rate of a name."""

    async def test_every_rate_is_listed(self, harness: Harness) -> None:
        await harness.add("a")
        limit = RateLimit("90/min", interval=666_667, burst=5, cost=2)
        worker = await harness.worker(names=("mail", "post"), rates={"mail": limit, "post": ONE})
        await worker.take_one()
        now = harness.clock.now()
        mail, post = await harness.backend.reads.list_limits()
        assert (mail.name, mail.rules) == ("job:mail", {"mail": LimitRule(rate=limit)})
        assert (post.name, post.rules) == ("job:post", {"post": LimitRule(rate=ONE)})
        assert [(one.room, one.opens_at, one.holders) for one in (mail, post)] == [
            (1, None, [])
        ] * 2
        assert (await harness.backend.reads.explain_job("a")).limits == [mail]
        assert now == harness.clock.now()

    async def test_running_jobs_count_in_a_limit_without_a_maximum(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker(rates={"mail": THREE})
        first, second = await worker.take(9)
        assert (await read_rate(harness)).in_use == 2
        await worker.settle(Completed(first.lease))
        assert (await read_rate(harness)).in_use == 1
        await worker.settle(Completed(second.lease))
        assert (await read_rate(harness)).in_use == 0

    async def test_a_new_session_changes_the_rate_and_keeps_what_is_spent(
        self, harness: Harness
    ) -> None:
        await harness.add(*"abcdef")
        first = await harness.worker(rates={"mail": ONE})
        await first.take(9)
        await harness.worker(rates={"mail": THREE})
        assert ids(await first.take(9)) == ["b", "c"]

    async def test_a_session_without_the_rate_removes_it(self, harness: Harness) -> None:
        await harness.add(*"abc")
        first = await harness.worker(rates={"mail": ONE})
        await first.take(9)
        await harness.worker(names=("post",))
        assert await first.take(9) == []
        await harness.worker(names=("mail",))
        assert ids(await first.take(9)) == ["b", "c"]
        assert await harness.backend.reads.list_limits() == []

    @pytest.mark.parametrize("limits", [{}, {"mail": 5}], ids=["no limit", "a maximum"])
    async def test_a_rate_that_was_removed_begins_anew(
        self, harness: Harness, limits: dict[str, int]
    ) -> None:
        await harness.add(*"abc")
        first = await harness.worker(rates={"mail": ONE})
        await first.take(9)
        await harness.worker(limits=limits)
        await harness.worker(rates={"mail": ONE})
        assert ids(await first.take(9)) == ["b"]
