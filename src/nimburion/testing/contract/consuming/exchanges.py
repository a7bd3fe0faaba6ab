"""Numbered exchanges: a lost reply strands no job, and a repeat changes nothing."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from nimburion.core.errors import OutOfOrder, SessionLost
from nimburion.core.exchange import RESERVE_NOTHING
from nimburion.core.job import State
from nimburion.core.settlement import Completed, Failed, Retried, Settled, Settlement
from nimburion.testing.contract.harness import FAILURE, Harness, ids, wait_in_time


class NumberedExchanges:
    """The number of an exchange."""

    async def test_the_first_number_is_one(self, harness: Harness) -> None:
        worker = await harness.worker()
        for wrong in (0, 2, -1):
            with pytest.raises(OutOfOrder):
                await harness.backend.consuming.exchange(worker.id, wrong, [], RESERVE_NOTHING)
        await harness.backend.consuming.exchange(worker.id, 1, [], RESERVE_NOTHING)

    async def test_a_repeat_brings_the_same_deliveries(self, harness: Harness) -> None:
        """Same jobs, same order, same tokens. A lost reply leaves no job behind."""
        await harness.add("a", "b", "c")
        worker = await harness.worker()
        want = worker.want(2)
        first = await harness.backend.consuming.exchange(worker.id, 1, [], want)
        again = await harness.backend.consuming.exchange(worker.id, 1, [], want)
        assert again.deliveries == first.deliveries
        assert ids(again.deliveries) == ["a", "b"]
        assert (await harness.backend.reads.count_jobs())[State.PENDING] == 1

    async def test_a_repeat_keeps_rank_order(self, harness: Harness) -> None:
        for n in range(6):
            await harness.put(harness.job(f"{n}", priority=n, name=("mail", "post")[n % 2]))
        worker = await harness.worker(names=("mail", "post"))
        want = worker.want(6)
        first = await harness.backend.consuming.exchange(worker.id, 1, [], want)
        again = await harness.backend.consuming.exchange(worker.id, 1, [], want)
        assert ids(first.deliveries) == ["5", "4", "3", "2", "1", "0"]
        assert again.deliveries == first.deliveries

    async def test_a_lease_settled_twice_in_one_call_changes_no_order(
        self, harness: Harness
    ) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        one, other = [delivery.lease for delivery in await worker.take(2)]
        results = await worker.settle(Completed(other), Completed(other), Completed(one))
        assert results == [Settled.DONE, Settled.ALREADY, Settled.DONE]

    async def test_a_repeat_brings_the_same_results(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        one, other = [delivery.lease for delivery in await worker.take(2)]
        batch: list[Settlement] = [Completed(one), Completed(one), Retried(other, 9.0, FAILURE)]
        first = await harness.backend.consuming.exchange(worker.id, 2, batch, RESERVE_NOTHING)
        again = await harness.backend.consuming.exchange(worker.id, 2, batch, RESERVE_NOTHING)
        assert first.results == again.results == [Settled.DONE, Settled.ALREADY, Settled.DONE]
        assert (await harness.backend.reads.get_job("b")).failures == 1
        assert len((await harness.backend.reads.get_job("b")).history) == 1

    async def test_a_repeat_reserves_nothing_new(self, harness: Harness) -> None:
        worker = await harness.worker()
        want = worker.want(5)
        assert (await harness.backend.consuming.exchange(worker.id, 1, [], want)).deliveries == []
        await harness.add("a")
        assert (await harness.backend.consuming.exchange(worker.id, 1, [], want)).deliveries == []
        assert await harness.state("a") is State.PENDING

    async def test_a_repeat_applies_nothing_that_it_carries_anew(self, harness: Harness) -> None:
        """The number decides; the settlements of a repeat are ignored."""
        await harness.add("a", "b")
        worker = await harness.worker()
        delivery = await worker.take_one()
        again = await harness.backend.consuming.exchange(
            worker.id, 1, [Failed(delivery.lease, "permanent", FAILURE)], worker.want(5)
        )
        assert again.results == []
        assert again.deliveries == [delivery]
        assert await harness.state("a") is State.PROCESSING

    async def test_a_repeat_speaks_of_the_moment(self, harness: Harness) -> None:
        """`now`, `next_due` and `waiting` are those of the repeat."""
        worker = await harness.worker()
        want = worker.want(1)
        await harness.backend.consuming.exchange(worker.id, 1, [], want)
        await harness.add("a")
        await harness.put(harness.job("b", after=50.0))
        harness.clock.advance(1.0)
        again = await harness.backend.consuming.exchange(worker.id, 1, [], want)
        assert (again.now, again.next_due) == (harness.clock.now(), harness.clock.now() + 49.0)
        assert again.waiting == [worker.lanes[0]]

    async def test_a_repeat_after_a_cancel_brings_the_lease_all_the_same(
        self, harness: Harness
    ) -> None:
        await harness.add("a")
        worker = await harness.worker()
        want = worker.want(1)
        first = await harness.backend.consuming.exchange(worker.id, 1, [], want)
        await harness.backend.producing.cancel("a")
        again = await harness.backend.consuming.exchange(worker.id, 1, [], want)
        assert again.deliveries == first.deliveries

    async def test_jobs_of_a_lost_reply_can_be_settled_after_the_repeat(
        self, harness: Harness
    ) -> None:
        await harness.add("a")
        worker = await harness.worker()
        want = worker.want(1)
        await harness.backend.consuming.exchange(worker.id, 1, [], want)
        (delivery,) = (await harness.backend.consuming.exchange(worker.id, 1, [], want)).deliveries
        reply = await harness.backend.consuming.exchange(
            worker.id, 2, [Completed(delivery.lease)], RESERVE_NOTHING
        )
        assert reply.results == [Settled.DONE]

    async def test_a_number_before_the_last_is_out_of_order(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.exchange()
        await worker.exchange()
        with pytest.raises(OutOfOrder):
            await harness.backend.consuming.exchange(worker.id, 1, [], worker.want(1))
        assert await harness.state("a") is State.PENDING

    async def test_a_skipped_number_is_out_of_order_and_writes_nothing(
        self, harness: Harness
    ) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        with pytest.raises(OutOfOrder):
            await harness.backend.consuming.exchange(
                worker.id, 3, [Completed(lease)], worker.want(1)
            )
        assert await harness.state("a") is State.PROCESSING
        assert await harness.state("b") is State.PENDING
        assert await worker.settle(Completed(lease)) == [Settled.DONE]

    async def test_each_session_counts_for_itself(self, harness: Harness) -> None:
        first, second = await harness.worker(), await harness.worker()
        await first.exchange()
        await first.exchange()
        await second.exchange()
        assert (first.number, second.number) == (2, 1)

    async def test_an_unknown_session_is_lost(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        with pytest.raises(SessionLost):
            await harness.backend.consuming.exchange("f" * 32, 1, [], worker.want(1))
        assert await harness.state("a") is State.PENDING

    async def test_a_repeat_after_the_rescue_is_lost(self, harness: Harness) -> None:
        """This includes the same number, because other workers may hold its jobs."""
        await harness.add("a")
        worker = await harness.worker()
        await worker.take_one()
        await harness.lose(worker)
        with pytest.raises(SessionLost):
            await harness.backend.consuming.exchange(worker.id, 1, [], worker.want(1))

    async def test_a_call_that_was_cancelled_in_flight_can_be_repeated(
        self, harness: Harness
    ) -> None:
        """The repeat returns the job whether or not the call was applied, and the job runs once."""
        await harness.add("a", "b")
        worker = await harness.worker()
        want = worker.want(1)
        call = asyncio.ensure_future(harness.backend.consuming.exchange(worker.id, 1, [], want))
        await asyncio.sleep(0)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await wait_in_time(call)
        reply = await wait_in_time(harness.backend.consuming.exchange(worker.id, 1, [], want))
        assert ids(reply.deliveries) == ["a"]
        counts = await harness.backend.reads.count_jobs()
        assert (counts[State.PROCESSING], counts[State.PENDING]) == (1, 1)

    async def test_a_settlement_that_was_cancelled_in_flight_can_be_repeated(
        self, harness: Harness
    ) -> None:
        await harness.add("a")
        worker = await harness.worker()
        batch = [Retried((await worker.take_one()).lease, 5.0, FAILURE)]
        call = asyncio.ensure_future(
            harness.backend.consuming.exchange(worker.id, 2, batch, RESERVE_NOTHING)
        )
        await asyncio.sleep(0)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await wait_in_time(call)
        reply = await wait_in_time(
            harness.backend.consuming.exchange(worker.id, 2, batch, RESERVE_NOTHING)
        )
        assert reply.results == [Settled.DONE]
        assert (await harness.backend.reads.get_job("a")).failures == 1

    async def test_an_overdue_session_may_still_exchange(self, harness: Harness) -> None:
        """It was not rescued yet, so its tokens are valid."""
        await harness.add("a", "b")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        harness.clock.advance(3_600.0)
        reply = await worker.exchange(Completed(lease), want=worker.want(1))
        assert (reply.results, ids(reply.deliveries)) == ([Settled.DONE], ["b"])

    async def test_an_exchange_is_no_heartbeat(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        harness.clock.advance(29.0)
        await worker.take_one()
        harness.clock.advance(1.0)
        assert (await harness.backend.consuming.rescue(10, max_lost=3)).returned == ["a"]
