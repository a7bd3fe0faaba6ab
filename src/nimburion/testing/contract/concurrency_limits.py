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
)
from nimburion.testing.contract.harness import OOPS, TTL, HandDrivenWorker, Harness, ids

ENDING: dict[str, Callable[[Lease], Settlement]] = {
    "completed": Completed,
    "retried": lambda lease: Retried(lease, 60.0, OOPS),
    "failed": lambda lease: Failed(lease, "permanent", OOPS),
    "released": Released,
    "snoozed": lambda lease: Released(lease, 60.0),
    "cancelled": Cancelled,
}


async def gate(worker: HandDrivenWorker, name: str = "mail") -> ConcurrencyLimit | None:
    """Return the concurrency limit of a name, as the heartbeat of the worker reports it."""
    return (await worker.beat()).limits.get(name)


class ConcurrencyLimits:
    """Limits."""

    async def test_no_more_than_the_limit_in_one_reply(self, stage: Harness) -> None:
        await stage.add("a", "b", "c", "d")
        worker = await stage.worker(limits={"mail": 3})
        assert ids(await worker.take(9)) == ["a", "b", "c"]
        assert await gate(worker) == ConcurrencyLimit(3, 3)

    async def test_no_more_than_the_limit_over_the_whole_fleet(self, stage: Harness) -> None:
        await stage.add("a", "b", "c", "d")
        first = await stage.worker(limits={"mail": 3})
        second = await stage.worker(limits={"mail": 3})
        assert ids(await first.take(2)) == ["a", "b"]
        assert ids(await second.take(9)) == ["c"]
        assert await first.take(9) == []

    async def test_a_limit_spans_queues(self, stage: Harness) -> None:
        await stage.add("a", queue="red")
        await stage.add("b", queue="blue")
        worker = await stage.worker(queues=("red", "blue"), limits={"mail": 1})
        assert len(await worker.take(9)) == 1

    async def test_a_limit_is_of_one_name(self, stage: Harness) -> None:
        await stage.add("a", "b", name="mail")
        await stage.add("c", "d", name="post")
        worker = await stage.worker(names=("mail", "post"), limits={"mail": 1})
        assert ids(await worker.take(9)) == ["a", "c", "d"]

    async def test_what_is_over_the_limit_waits_and_counts_nothing(self, stage: Harness) -> None:
        await stage.add("a", "b")
        worker = await stage.worker(limits={"mail": 1})
        await worker.take(9)
        record = await stage.store.get("b")
        assert (record.state, record.failures, record.lost) == (State.PENDING, 0, 0)

    async def test_a_full_gate_is_not_among_the_lanes_that_wait(self, stage: Harness) -> None:
        """Else a worker would ask again and again for what it may not have."""
        await stage.add("a", "b")
        worker = await stage.worker(limits={"mail": 1})
        assert (await worker.exchange(want=worker.want(9))).waiting == []

    @pytest.mark.parametrize("how", ENDING)
    async def test_every_end_of_a_lease_gives_its_place_back(
        self, stage: Harness, how: str
    ) -> None:
        """In the same call: what it frees can be handed out by it."""
        await stage.add("a", "b")
        worker = await stage.worker(limits={"mail": 1})
        lease = (await worker.take_one()).lease
        reply = await worker.exchange(ENDING[how](lease), want=worker.want(9))
        assert len(reply.deliveries) == 1
        assert await gate(worker) == ConcurrencyLimit(1, 1)

    async def test_progress_gives_no_place_back(self, stage: Harness) -> None:
        await stage.add("a", "b")
        worker = await stage.worker(limits={"mail": 1})
        lease = (await worker.take_one()).lease
        assert (await worker.exchange(Progressed(lease, 0.5), want=worker.want(9))).deliveries == []
        assert await gate(worker) == ConcurrencyLimit(1, 1)

    async def test_a_settlement_that_is_not_done_gives_no_place_back(self, stage: Harness) -> None:
        await stage.add("a", "b")
        worker = await stage.worker(limits={"mail": 1})
        lease = (await worker.take_one()).lease
        await worker.settle(Retried(lease, 60.0, OOPS))
        await worker.take_one()
        assert await worker.settle(Completed(lease), Completed(lease)) == [Settled.ALREADY] * 2
        assert await gate(worker) == ConcurrencyLimit(1, 1)

    async def test_the_gate_is_free_at_rest(self, stage: Harness) -> None:
        await stage.add("a", "b", "c")
        worker = await stage.worker(limits={"mail": 2})
        leases = [delivery.lease for delivery in await worker.take(9)]
        reply = await worker.exchange(*map(Completed, leases), want=worker.want(9))
        await worker.settle(*(Completed(one.lease) for one in reply.deliveries))
        assert await gate(worker) == ConcurrencyLimit(2, 0)

    async def test_rescue_gives_places_back(self, stage: Harness) -> None:
        await stage.add("a", "b", "c")
        worker = await stage.worker(limits={"mail": 2})
        await worker.take(9)
        await stage.lose(worker)
        other = await stage.worker(limits={"mail": 2})
        assert await gate(other) == ConcurrencyLimit(2, 0)
        assert ids(await other.take(9)) == ["a", "b"]

    async def test_a_lost_worker_holds_its_places_until_the_rescue(self, stage: Harness) -> None:
        """Its handler may still run: the limit is kept for it."""
        await stage.add("a", "b")
        first = await stage.worker(limits={"mail": 1})
        await first.take_one()
        stage.clock.advance(TTL)
        other = await stage.worker(limits={"mail": 1})
        assert await other.take(9) == []
        await stage.store.rescue(9, max_lost=3)
        assert len(await other.take(9)) == 1

    async def test_losing_a_job_for_good_gives_its_place_back(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker(limits={"mail": 1})
        await worker.take_one()
        await stage.lose(worker, max_lost=1)
        assert await gate(await stage.worker(limits={"mail": 1})) == ConcurrencyLimit(1, 0)

    async def test_closing_gives_places_back(self, stage: Harness) -> None:
        await stage.add("a", "b")
        worker = await stage.worker(limits={"mail": 1})
        await worker.take_one()
        await worker.close()
        assert await gate(await stage.worker(limits={"mail": 1})) == ConcurrencyLimit(1, 0)

    async def test_what_a_session_that_left_still_runs_keeps_its_place(
        self, stage: Harness
    ) -> None:
        await stage.add("a", "b", "c")
        worker = await stage.worker(limits={"mail": 2})
        first = (await worker.take(2))[0].lease
        await worker.close(first)
        other = await stage.worker(limits={"mail": 2})
        assert await gate(other) == ConcurrencyLimit(2, 1)
        stage.clock.advance(TTL)
        await other.beat()
        await stage.store.rescue(9, max_lost=3)
        assert await gate(other) == ConcurrencyLimit(2, 0)

    async def test_asking_a_worker_to_cancel_gives_no_place_back(self, stage: Harness) -> None:
        await stage.add("a", "b")
        worker = await stage.worker(limits={"mail": 1})
        lease = (await worker.take_one()).lease
        await stage.store.cancel("a")
        assert await worker.take(9) == []
        await worker.settle(Cancelled(lease))
        assert await gate(worker) == ConcurrencyLimit(1, 0)

    async def test_cancelling_what_waits_changes_no_gate(self, stage: Harness) -> None:
        await stage.add("a", "b")
        worker = await stage.worker(limits={"mail": 1})
        await worker.take_one()
        await stage.store.cancel("b")
        assert await gate(worker) == ConcurrencyLimit(1, 1)

    async def test_a_repeated_exchange_takes_places_once(self, stage: Harness) -> None:
        await stage.add("a", "b", "c")
        worker = await stage.worker(limits={"mail": 2})
        want = worker.want(1)
        for _ in range(3):
            reply = await stage.store.exchange(worker.id, 1, [], want)
            assert ids(reply.deliveries) == ["a"]
        assert await gate(worker) == ConcurrencyLimit(2, 1)

    async def test_a_repeat_gives_nothing_back_twice(self, stage: Harness) -> None:
        await stage.add("a", "b")
        worker = await stage.worker(limits={"mail": 2})
        first, _ = await worker.take(2)
        for _ in range(3):
            await stage.store.exchange(worker.id, 2, [Completed(first.lease)], worker.want(0))
        assert await gate(worker) == ConcurrencyLimit(2, 1)

    async def test_a_bounded_rescue_gives_back_what_it_took(self, stage: Harness) -> None:
        await stage.add("a", "b", "c")
        watcher = await stage.worker(limits={"mail": 3}, ttl=300.0)
        worker = await stage.worker(limits={"mail": 3})
        await worker.take(3)
        stage.clock.advance(30.0)
        await stage.store.rescue(1, max_lost=3)
        assert await gate(watcher) == ConcurrencyLimit(3, 2)

    async def test_a_retry_without_delay_takes_its_own_place_again(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker(limits={"mail": 1})
        lease = (await worker.take_one()).lease
        for _ in range(3):
            reply = await worker.exchange(Retried(lease, 0.0, OOPS), want=worker.want(1))
            assert ids(reply.deliveries) == ["a"]
            lease = reply.deliveries[0].lease
        assert await gate(worker) == ConcurrencyLimit(1, 1)

    async def test_a_busy_line_passes_the_gate_in_order_and_leaves_it_empty(
        self, stage: Harness
    ) -> None:
        jobs = [stage.job() for _ in range(50)]
        await stage.store.enqueue(jobs)
        worker = await stage.worker(limits={"mail": 3})
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
        assert await gate(worker) == ConcurrencyLimit(3, 0)
        assert (await stage.store.counts())[State.COMPLETED] == 50


class DeclaringLimits:
    """The newest session's word about a limit counts."""

    async def test_a_new_gate_counts_what_is_processing(self, stage: Harness) -> None:
        await stage.add("a", "b", "c")
        first = await stage.worker()
        await first.take(2)
        second = await stage.worker(limits={"mail": 2})
        assert await gate(second) == ConcurrencyLimit(2, 2)
        assert await second.take(9) == []

    async def test_what_ran_before_the_gate_gives_places_back_to_it(self, stage: Harness) -> None:
        await stage.add("a", "b")
        first = await stage.worker()
        lease = (await first.take_one()).lease
        second = await stage.worker(limits={"mail": 1})
        await first.settle(Completed(lease))
        assert await gate(second) == ConcurrencyLimit(1, 0)
        assert ids(await second.take(9)) == ["b"]

    async def test_the_newest_word_raises_the_limit(self, stage: Harness) -> None:
        await stage.add("a", "b", "c")
        first = await stage.worker(limits={"mail": 1})
        await first.take(9)
        await stage.worker(limits={"mail": 3})
        assert await gate(first) == ConcurrencyLimit(3, 1)
        assert ids(await first.take(9)) == ["b", "c"]

    async def test_a_gate_lowered_below_what_is_held_hands_out_nothing_until_it_fits(
        self, stage: Harness
    ) -> None:
        await stage.add(*"abcde")
        first = await stage.worker(limits={"mail": 3})
        leases = [delivery.lease for delivery in await first.take(9)]
        await stage.worker(limits={"mail": 1})
        assert await gate(first) == ConcurrencyLimit(1, 3)
        for lease in leases[:2]:
            reply = await first.exchange(Completed(lease), want=first.want(9))
            assert reply.deliveries == []
        reply = await first.exchange(Completed(leases[2]), want=first.want(9))
        assert ids(reply.deliveries) == ["d"]

    async def test_the_newest_word_removes_the_limit(self, stage: Harness) -> None:
        await stage.add("a", "b", "c")
        first = await stage.worker(limits={"mail": 1})
        await first.take(9)
        await stage.worker(names=("mail",))
        assert await gate(first) is None
        assert ids(await first.take(9)) == ["b", "c"]

    async def test_a_gate_that_comes_back_counts_what_ran_without_it(self, stage: Harness) -> None:
        """Removed with one held, two more taken meanwhile: three are processing."""
        await stage.add(*"abcde")
        worker = await stage.worker(limits={"mail": 1})
        leases = ids(await worker.take(9))
        await stage.worker(names=("mail",))
        leases += ids(await worker.take(2))
        other = await stage.worker(limits={"mail": 4})
        assert await gate(other) == ConcurrencyLimit(4, 3)
        assert ids(await other.take(9)) == ["d"]

    async def test_a_session_speaks_of_its_own_names_only(self, stage: Harness) -> None:
        first = await stage.worker(names=("mail",), limits={"mail": 1})
        await stage.worker(names=("post",))
        assert await gate(first) == ConcurrencyLimit(1, 0)

    async def test_opening_a_session_again_is_no_new_word(self, stage: Harness) -> None:
        first = await stage.worker(limits={"mail": 1})
        await stage.worker(limits={"mail": 5})
        await stage.store.open_session(first.session)
        assert await gate(first) == ConcurrencyLimit(5, 0)

    async def test_a_limit_outlives_the_session_that_set_it(self, stage: Harness) -> None:
        await stage.add("a", "b", "c")
        first = await stage.worker(limits={"mail": 1})
        second = await stage.worker(limits={"mail": 1})
        await first.close()
        assert len(await second.take(9)) == 1

    async def test_a_limit_of_zero_shuts_the_name(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker(limits={"mail": 0})
        assert await worker.take(9) == []
        assert await stage.state("a") is State.PENDING

    async def test_a_new_gate_counts_what_a_session_left_running(self, stage: Harness) -> None:
        await stage.add("a", "b")
        old = await stage.worker()
        await old.close((await old.take_one()).lease)
        new = await stage.worker(limits={"mail": 1}, ttl=300.0)
        assert (await gate(new), await new.take(9)) == (ConcurrencyLimit(1, 1), [])
        await stage.lose(old)
        assert await gate(new) == ConcurrencyLimit(1, 0)
