"""Concurrency limits: a fleet-wide maximum of running jobs per name, enforced inside the
exchange."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nimburion.core.job import State
from nimburion.core.lease import Lease
from nimburion.core.session import ConcurrencyLimit
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    Released,
    Retried,
    Settled,
    Settlement,
    Suspended,
)
from nimburion.testing.contract.harness import FAILURE, TTL, HandDrivenWorker, Harness, ids

ENDING: dict[str, Callable[[Lease], Settlement]] = {
    "completed": Completed,
    "retried": lambda lease: Retried(lease, 60.0, FAILURE),
    "failed": lambda lease: Failed(lease, "permanent", FAILURE),
    "released": Released,
    "snoozed": lambda lease: Released(lease, 60.0),
    "cancelled": Cancelled,
    "suspended": lambda lease: Suspended(lease, (), 60.0),
}


async def read_limit(worker: HandDrivenWorker, name: str = "mail") -> ConcurrencyLimit | None:
    """Return the concurrency limit of a name, as the heartbeat of the worker reports it."""
    return (await worker.heartbeat()).limits.get(name)


class ConcurrencyLimits:
    """Limits."""

    async def test_no_more_than_the_limit_in_one_reply(self, harness: Harness) -> None:
        await harness.add("a", "b", "c", "d")
        worker = await harness.worker(limits={"mail": 3})
        assert ids(await worker.take(9)) == ["a", "b", "c"]
        assert await read_limit(worker) == ConcurrencyLimit(3, 3)

    async def test_no_more_than_the_limit_over_the_whole_fleet(self, harness: Harness) -> None:
        await harness.add("a", "b", "c", "d")
        first = await harness.worker(limits={"mail": 3})
        second = await harness.worker(limits={"mail": 3})
        assert ids(await first.take(2)) == ["a", "b"]
        assert ids(await second.take(9)) == ["c"]
        assert await first.take(9) == []

    async def test_a_limit_spans_queues(self, harness: Harness) -> None:
        await harness.add("a", queue="red")
        await harness.add("b", queue="blue")
        worker = await harness.worker(queues=("red", "blue"), limits={"mail": 1})
        assert len(await worker.take(9)) == 1

    async def test_a_limit_is_of_one_name(self, harness: Harness) -> None:
        await harness.add("a", "b", name="mail")
        await harness.add("c", "d", name="post")
        worker = await harness.worker(names=("mail", "post"), limits={"mail": 1})
        assert ids(await worker.take(9)) == ["a", "c", "d"]

    async def test_what_is_over_the_limit_waits_and_counts_nothing(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker(limits={"mail": 1})
        await worker.take(9)
        record = await harness.backend.reads.get_job("b")
        assert (record.state, record.failures, record.lost) == (State.PENDING, 0, 0)

    async def test_a_lane_at_its_limit_is_not_among_the_lanes_that_wait(
        self, harness: Harness
    ) -> None:
        """Otherwise the worker would repeat requests that return no job."""
        await harness.add("a", "b")
        worker = await harness.worker(limits={"mail": 1})
        assert (await worker.exchange(want=worker.want(9))).waiting == []

    @pytest.mark.parametrize("limit", [2, 3, 9])
    async def test_a_lane_waits_if_its_limit_has_room_after_a_full_reply(
        self, harness: Harness, limit: int
    ) -> None:
        await harness.add("a", "b", "c")
        worker = await harness.worker(limits={"mail": limit})
        reply = await worker.exchange(want=worker.want(2))
        assert ids(reply.deliveries) == ["a", "b"]
        assert reply.waiting == ([] if limit == 2 else list(worker.lanes))

    @pytest.mark.parametrize("how", ENDING)
    async def test_every_end_of_a_lease_frees_its_place(self, harness: Harness, how: str) -> None:
        """The same exchange can reserve a job for the place that it frees."""
        await harness.add("a", "b")
        worker = await harness.worker(limits={"mail": 1})
        lease = (await worker.take_one()).lease
        reply = await worker.exchange(ENDING[how](lease), want=worker.want(9))
        assert len(reply.deliveries) == 1
        assert await read_limit(worker) == ConcurrencyLimit(1, 1)

    async def test_progress_gives_no_place_back(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker(limits={"mail": 1})
        lease = (await worker.take_one()).lease
        assert (await worker.exchange(Progressed(lease, 0.5), want=worker.want(9))).deliveries == []
        assert await read_limit(worker) == ConcurrencyLimit(1, 1)

    async def test_a_settlement_that_is_not_done_gives_no_place_back(
        self, harness: Harness
    ) -> None:
        await harness.add("a", "b")
        worker = await harness.worker(limits={"mail": 1})
        lease = (await worker.take_one()).lease
        await worker.settle(Retried(lease, 60.0, FAILURE))
        await worker.take_one()
        assert await worker.settle(Completed(lease), Completed(lease)) == [Settled.ALREADY] * 2
        assert await read_limit(worker) == ConcurrencyLimit(1, 1)

    async def test_the_limit_is_free_when_nothing_runs(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        worker = await harness.worker(limits={"mail": 2})
        leases = [delivery.lease for delivery in await worker.take(9)]
        reply = await worker.exchange(*map(Completed, leases), want=worker.want(9))
        await worker.settle(*(Completed(delivery.lease) for delivery in reply.deliveries))
        assert await read_limit(worker) == ConcurrencyLimit(2, 0)

    async def test_rescue_gives_places_back(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        worker = await harness.worker(limits={"mail": 2})
        await worker.take(9)
        await harness.lose(worker)
        other = await harness.worker(limits={"mail": 2})
        assert await read_limit(other) == ConcurrencyLimit(2, 0)
        assert ids(await other.take(9)) == ["a", "b"]

    async def test_a_lost_worker_holds_its_places_until_the_rescue(self, harness: Harness) -> None:
        """Its handler may still run, so it still counts against the limit."""
        await harness.add("a", "b")
        first = await harness.worker(limits={"mail": 1})
        await first.take_one()
        harness.clock.advance(TTL)
        other = await harness.worker(limits={"mail": 1})
        assert await other.take(9) == []
        await harness.backend.consuming.rescue(9, max_lost=3)
        assert len(await other.take(9)) == 1

    async def test_losing_a_job_for_good_frees_its_place(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker(limits={"mail": 1})
        await worker.take_one()
        await harness.lose(worker, max_lost=1)
        assert await read_limit(await harness.worker(limits={"mail": 1})) == ConcurrencyLimit(1, 0)

    async def test_closing_gives_places_back(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker(limits={"mail": 1})
        await worker.take_one()
        await worker.close()
        assert await read_limit(await harness.worker(limits={"mail": 1})) == ConcurrencyLimit(1, 0)

    async def test_what_a_session_that_left_still_runs_keeps_its_place(
        self, harness: Harness
    ) -> None:
        await harness.add("a", "b", "c")
        worker = await harness.worker(limits={"mail": 2})
        first = (await worker.take(2))[0].lease
        await worker.close(first)
        other = await harness.worker(limits={"mail": 2})
        assert await read_limit(other) == ConcurrencyLimit(2, 1)
        harness.clock.advance(TTL)
        await other.heartbeat()
        await harness.backend.consuming.rescue(9, max_lost=3)
        assert await read_limit(other) == ConcurrencyLimit(2, 0)

    async def test_a_requested_cancel_frees_no_limit_yet(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker(limits={"mail": 1})
        lease = (await worker.take_one()).lease
        await harness.backend.producing.cancel("a")
        assert await worker.take(9) == []
        await worker.settle(Cancelled(lease))
        assert await read_limit(worker) == ConcurrencyLimit(1, 0)

    async def test_cancelling_a_waiting_job_changes_no_limit(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker(limits={"mail": 1})
        await worker.take_one()
        await harness.backend.producing.cancel("b")
        assert await read_limit(worker) == ConcurrencyLimit(1, 1)

    async def test_a_repeated_exchange_takes_places_once(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        worker = await harness.worker(limits={"mail": 2})
        want = worker.want(1)
        for _ in range(3):
            reply = await harness.backend.consuming.exchange(worker.id, 1, [], want)
            assert ids(reply.deliveries) == ["a"]
        assert await read_limit(worker) == ConcurrencyLimit(2, 1)

    async def test_a_repeat_gives_nothing_back_twice(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker(limits={"mail": 2})
        first, _ = await worker.take(2)
        for _ in range(3):
            await harness.backend.consuming.exchange(
                worker.id, 2, [Completed(first.lease)], worker.want(0)
            )
        assert await read_limit(worker) == ConcurrencyLimit(2, 1)

    async def test_a_bounded_rescue_frees_the_places_it_took(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        watcher = await harness.worker(limits={"mail": 3}, ttl=300.0)
        worker = await harness.worker(limits={"mail": 3})
        await worker.take(3)
        harness.clock.advance(30.0)
        await harness.backend.consuming.rescue(1, max_lost=3)
        assert await read_limit(watcher) == ConcurrencyLimit(3, 2)

    async def test_a_retry_without_delay_takes_its_own_place_again(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker(limits={"mail": 1})
        lease = (await worker.take_one()).lease
        for _ in range(3):
            reply = await worker.exchange(Retried(lease, 0.0, FAILURE), want=worker.want(1))
            assert ids(reply.deliveries) == ["a"]
            lease = reply.deliveries[0].lease
        assert await read_limit(worker) == ConcurrencyLimit(1, 1)

    async def test_many_jobs_pass_a_concurrency_limit_in_order(self, harness: Harness) -> None:
        jobs = [harness.job() for _ in range(50)]
        await harness.backend.producing.enqueue(jobs)
        worker = await harness.worker(limits={"mail": 3})
        held: list[Lease] = []
        ran: list[str] = []
        while True:
            reply = await worker.exchange(*map(Completed, held), want=worker.want(10))
            held = [delivery.lease for delivery in reply.deliveries]
            assert len(held) <= 3
            if not held:
                break
            ran += ids(reply.deliveries)
        assert ran == [job.id for job in jobs]
        assert await read_limit(worker) == ConcurrencyLimit(3, 0)
        assert (await harness.backend.reads.count_jobs())[State.COMPLETED] == 50


class DeclaringLimits:
    """The newest session decides the limit of a name."""

    async def test_a_new_limit_counts_what_is_processing(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        first = await harness.worker()
        await first.take(2)
        second = await harness.worker(limits={"mail": 2})
        assert await read_limit(second) == ConcurrencyLimit(2, 2)
        assert await second.take(9) == []

    async def test_what_ran_before_the_limit_frees_places_of_it(self, harness: Harness) -> None:
        await harness.add("a", "b")
        first = await harness.worker()
        lease = (await first.take_one()).lease
        second = await harness.worker(limits={"mail": 1})
        await first.settle(Completed(lease))
        assert await read_limit(second) == ConcurrencyLimit(1, 0)
        assert ids(await second.take(9)) == ["b"]

    async def test_the_newest_declaration_raises_the_limit(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        first = await harness.worker(limits={"mail": 1})
        await first.take(9)
        await harness.worker(limits={"mail": 3})
        assert await read_limit(first) == ConcurrencyLimit(3, 1)
        assert ids(await first.take(9)) == ["b", "c"]

    async def test_a_limit_below_what_is_in_use_returns_no_jobs_until_it_fits(
        self, harness: Harness
    ) -> None:
        await harness.add(*"abcde")
        first = await harness.worker(limits={"mail": 3})
        leases = [delivery.lease for delivery in await first.take(9)]
        await harness.worker(limits={"mail": 1})
        assert await read_limit(first) == ConcurrencyLimit(1, 3)
        for lease in leases[:2]:
            reply = await first.exchange(Completed(lease), want=first.want(9))
            assert reply.deliveries == []
        reply = await first.exchange(Completed(leases[2]), want=first.want(9))
        assert ids(reply.deliveries) == ["d"]

    async def test_the_newest_declaration_removes_the_limit(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        first = await harness.worker(limits={"mail": 1})
        await first.take(9)
        await harness.worker(names=("mail",))
        assert await read_limit(first) is None
        assert ids(await first.take(9)) == ["b", "c"]

    async def test_a_limit_that_comes_back_counts_what_ran_without_it(
        self, harness: Harness
    ) -> None:
        """The limit is removed while one job runs, two more are reserved, and the limit returns:
        three are counted."""
        await harness.add(*"abcde")
        worker = await harness.worker(limits={"mail": 1})
        leases = ids(await worker.take(9))
        await harness.worker(names=("mail",))
        leases += ids(await worker.take(2))
        other = await harness.worker(limits={"mail": 4})
        assert await read_limit(other) == ConcurrencyLimit(4, 3)
        assert ids(await other.take(9)) == ["d"]

    async def test_a_session_speaks_of_its_own_names_only(self, harness: Harness) -> None:
        first = await harness.worker(names=("mail",), limits={"mail": 1})
        await harness.worker(names=("post",))
        assert await read_limit(first) == ConcurrencyLimit(1, 0)

    async def test_opening_a_session_again_declares_no_limit_again(self, harness: Harness) -> None:
        first = await harness.worker(limits={"mail": 1})
        await harness.worker(limits={"mail": 5})
        await harness.backend.consuming.open_session(first.session)
        assert await read_limit(first) == ConcurrencyLimit(5, 0)

    async def test_a_limit_outlives_the_session_that_set_it(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        first = await harness.worker(limits={"mail": 1})
        second = await harness.worker(limits={"mail": 1})
        await first.close()
        assert len(await second.take(9)) == 1

    async def test_a_limit_of_zero_stops_the_name(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker(limits={"mail": 0})
        assert await worker.take(9) == []
        assert await harness.state("a") is State.PENDING

    async def test_a_new_limit_counts_what_a_session_left_running(self, harness: Harness) -> None:
        await harness.add("a", "b")
        old = await harness.worker()
        await old.close((await old.take_one()).lease)
        new = await harness.worker(limits={"mail": 1}, ttl=300.0)
        assert (await read_limit(new), await new.take(9)) == (ConcurrencyLimit(1, 1), [])
        await harness.lose(old)
        assert await read_limit(new) == ConcurrencyLimit(1, 0)
