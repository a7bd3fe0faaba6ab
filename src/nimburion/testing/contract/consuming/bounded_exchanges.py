"""Exchanges with a size limit, and repeats that request less than the original. A slow
connection must be able to finish an exchange whose outcome is unknown."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nimburion.core.errors import OutOfOrder
from nimburion.core.exchange import DELIVERY_OVERHEAD, RESERVE_NOTHING, QueueOptions, ReserveRequest
from nimburion.core.job import JobOptions, State
from nimburion.core.settlement import Completed, Released, Settled
from nimburion.testing.contract.harness import HandDrivenWorker, Harness, ids

_SIZE = 3_000
_FITS_TWO = 2 * (_SIZE + DELIVERY_OVERHEAD)


async def _put(harness: Harness, *names: str, size: int = _SIZE, priority: int = 5) -> None:
    for name in names:
        payload = b'"' + b"x" * (size - 2) + b'"'
        await harness.put(harness.job(name, payload=payload, priority=priority))


def _within(worker: HandDrivenWorker, total: int, max_bytes: int) -> ReserveRequest:
    return replace(worker.want(total), max_bytes=max_bytes)


class BoundedExchanges:
    """`ReserveRequest.max_bytes`, and repeats with less."""

    async def test_a_reply_ends_where_its_bytes_do(self, harness: Harness) -> None:
        await _put(harness, "a", "b", "c")
        worker = await harness.worker()
        reply = await worker.exchange(want=_within(worker, 10, _FITS_TWO))
        assert ids(reply.deliveries) == ["a", "b"]
        assert reply.waiting == [worker.lanes[0]]
        assert await harness.state("c") is State.PENDING
        assert ids(await worker.take(10)) == ["c"]

    async def test_one_byte_less_is_one_job_less(self, harness: Harness) -> None:
        await _put(harness, "a", "b", "c")
        worker = await harness.worker()
        reply = await worker.exchange(want=_within(worker, 10, _FITS_TWO - 1))
        assert ids(reply.deliveries) == ["a"]

    async def test_the_first_job_comes_whatever_its_size(self, harness: Harness) -> None:
        await _put(harness, "a", "b", size=200_000)
        worker = await harness.worker()
        reply = await worker.exchange(want=_within(worker, 10, 1))
        assert ids(reply.deliveries) == ["a"]
        assert len(reply.deliveries[0].payload) == 200_000

    async def test_no_smaller_job_overtakes_the_one_that_does_not_fit(
        self, harness: Harness
    ) -> None:
        await _put(harness, "a", priority=7)
        await _put(harness, "b", size=200_000)
        await _put(harness, "c", size=10, priority=3)
        worker = await harness.worker()
        reply = await worker.exchange(want=_within(worker, 10, _FITS_TWO))
        assert ids(reply.deliveries) == ["a"]
        assert ids(await worker.take(10)) == ["b", "c"]

    async def test_headers_count(self, harness: Harness) -> None:
        headers = JobOptions(headers={"trace": "x" * 5_000})
        for job_id in ("a", "b"):
            await harness.put(harness.job(job_id, options=headers))
        worker = await harness.worker()
        reply = await worker.exchange(want=_within(worker, 10, _FITS_TWO))
        assert ids(reply.deliveries) == ["a"]

    async def test_bytes_are_counted_over_all_lanes(self, harness: Harness) -> None:
        for n, name in enumerate(("mail", "post", "mail", "post")):
            payload = b'"' + b"x" * (_SIZE - 2) + b'"'
            await harness.put(harness.job(f"{n}", name=name, payload=payload))
        worker = await harness.worker(names=("mail", "post"))
        reply = await worker.exchange(want=_within(worker, 10, _FITS_TWO))
        assert ids(reply.deliveries) == ["0", "1"]
        assert set(reply.waiting) == set(worker.lanes)

    async def test_what_does_not_fit_takes_no_place_under_a_limit(self, harness: Harness) -> None:
        await _put(harness, "a", "b", "c", "d")
        worker = await harness.worker(limits={"mail": 3})
        reply = await worker.exchange(want=_within(worker, 10, _FITS_TWO))
        assert ids(reply.deliveries) == ["a", "b"]
        assert (await worker.heartbeat()).limits["mail"].in_use == 2
        assert reply.waiting == [worker.lanes[0]]
        assert ids(await worker.take(10)) == ["c"]

    async def test_what_does_not_fit_takes_no_place_under_a_queue_limit(
        self, harness: Harness
    ) -> None:
        await _put(harness, "a", "b", "c")
        worker = await harness.worker()
        want = replace(
            _within(worker, 10, _FITS_TWO), queues={"default": QueueOptions(priority=0, limit=2)}
        )
        assert ids((await worker.exchange(want=want)).deliveries) == ["a", "b"]

    async def test_a_smaller_repeat_releases_what_does_not_fit(self, harness: Harness) -> None:
        """No loss is counted, and each job keeps its place."""
        await _put(harness, "a", "b", "c", "d")
        worker, other = await harness.worker(), await harness.worker()
        first = await harness.backend.consuming.exchange(worker.id, 1, [], worker.want(4))
        again = await harness.backend.consuming.exchange(
            worker.id, 1, [], _within(worker, 4, _FITS_TWO)
        )
        assert again.deliveries == first.deliveries[:2]
        assert again.waiting == [worker.lanes[0]]
        counts = await harness.backend.reads.count_jobs()
        assert (counts[State.PROCESSING], counts[State.PENDING]) == (2, 2)
        await _put(harness, "e")
        taken = await other.take(5)
        assert ids(taken) == ["c", "d", "e"]
        assert [(delivery.failures, delivery.lost) for delivery in taken] == [(0, 0)] * 3
        assert (await harness.backend.reads.get_job("c")).history == []

    async def test_a_smaller_repeat_keeps_the_first_job(self, harness: Harness) -> None:
        await _put(harness, "a", "b")
        worker = await harness.worker()
        first = await harness.backend.consuming.exchange(worker.id, 1, [], worker.want(2))
        again = await harness.backend.consuming.exchange(worker.id, 1, [], _within(worker, 2, 0))
        assert again.deliveries == first.deliveries[:1]

    async def test_a_larger_repeat_that_comes_late_brings_nothing_more(
        self, harness: Harness
    ) -> None:
        await _put(harness, "a", "b", "c")
        worker = await harness.worker()
        want = worker.want(3)
        await harness.backend.consuming.exchange(worker.id, 1, [], want)
        again = await harness.backend.consuming.exchange(
            worker.id, 1, [], replace(want, max_bytes=_FITS_TWO)
        )
        late = await harness.backend.consuming.exchange(worker.id, 1, [], want)
        assert late.deliveries == again.deliveries
        assert ids(late.deliveries) == ["a", "b"]

    async def test_a_repeat_says_when_a_job_that_it_requeued_is_due(self, harness: Harness) -> None:
        """The clock was set back meanwhile, so the job is due later again."""
        await harness.add("a", "b")
        worker = await harness.worker()
        assert (await worker.exchange(want=worker.want(9))).next_due is None
        due = harness.clock.now()
        harness.clock.step_wall(-2.0)
        again = await worker.repeat(want=_within(worker, 9, 1))
        assert (ids(again.deliveries), again.next_due) == (["a"], due)

    async def test_the_token_of_a_released_job_is_stale(self, harness: Harness) -> None:
        await _put(harness, "a", "b")
        worker, other = await harness.worker(), await harness.worker()
        first = await harness.backend.consuming.exchange(worker.id, 1, [], worker.want(2))
        await harness.backend.consuming.exchange(worker.id, 1, [], _within(worker, 2, 0))
        one, gone = [delivery.lease for delivery in first.deliveries]
        reply = await harness.backend.consuming.exchange(
            worker.id, 2, [Completed(one), Completed(gone)], RESERVE_NOTHING
        )
        assert reply.results == [Settled.DONE, Settled.STALE]
        (taken,) = await other.take(5)
        assert (taken.lease.job_id, taken.lease.token.fence) == ("b", gone.token.fence + 1)
        assert await other.settle(Completed(taken.lease)) == [Settled.DONE]

    async def test_a_smaller_repeat_frees_places_under_a_limit(self, harness: Harness) -> None:
        await _put(harness, "a", "b", "c")
        worker = await harness.worker(limits={"mail": 3})
        await harness.backend.consuming.exchange(worker.id, 1, [], worker.want(3))
        again = await harness.backend.consuming.exchange(worker.id, 1, [], _within(worker, 3, 0))
        assert ids(again.deliveries) == ["a"]
        assert again.waiting == [worker.lanes[0]]
        assert (await worker.heartbeat()).limits["mail"].in_use == 1

    async def test_a_smaller_repeat_ends_what_was_cancelled_meanwhile(
        self, harness: Harness
    ) -> None:
        await _put(harness, "a", "b")
        worker = await harness.worker()
        await harness.backend.consuming.exchange(worker.id, 1, [], worker.want(2))
        await harness.backend.producing.cancel("b")
        await harness.backend.consuming.exchange(worker.id, 1, [], _within(worker, 2, 0))
        assert await harness.state("b") is State.CANCELLED

    async def test_a_retry_keeps_its_counts_when_it_is_released(self, harness: Harness) -> None:
        await _put(harness, "a", "b")
        worker = await harness.worker()
        await worker.take(2)
        await harness.lose(worker)
        other = await harness.worker()
        first = await harness.backend.consuming.exchange(other.id, 1, [], other.want(2))
        await harness.backend.consuming.exchange(other.id, 1, [], _within(other, 2, 0))
        assert [delivery.lost for delivery in first.deliveries] == [1, 1]
        record = await harness.backend.reads.get_job("b")
        assert (record.state, record.lost, len(record.history)) == (State.PENDING, 1, 1)

    async def test_a_repeat_with_fewer_settlements_says_how_many_were_applied(
        self, harness: Harness
    ) -> None:
        """The results are those of the original call, with all of its settlements."""
        await harness.add("a", "b", "c")
        worker = await harness.worker()
        batch = [Completed(delivery.lease, b"1") for delivery in await worker.take(3)]
        await harness.backend.consuming.exchange(worker.id, 2, batch, RESERVE_NOTHING)
        again = await harness.backend.consuming.exchange(worker.id, 2, batch[:1], RESERVE_NOTHING)
        assert again.results == [Settled.DONE] * 3

    async def test_a_part_that_is_applied_first_is_all_that_is_applied(
        self, harness: Harness
    ) -> None:
        """The full call arrives late and is refused; the rest is sent with the next number."""
        await harness.add("a", "b", "c")
        worker = await harness.worker()
        batch = [Released(delivery.lease, 50.0) for delivery in await worker.take(3)]
        part = await harness.backend.consuming.exchange(worker.id, 2, batch[:1], RESERVE_NOTHING)
        late = await harness.backend.consuming.exchange(worker.id, 2, batch, RESERVE_NOTHING)
        assert part.results == late.results == [Settled.DONE]
        assert await harness.state("b") is State.PROCESSING
        rest = await harness.backend.consuming.exchange(worker.id, 3, batch[1:], RESERVE_NOTHING)
        assert rest.results == [Settled.DONE] * 2

    async def test_a_repeat_that_comes_after_the_next_number_gives_nothing_back(
        self, harness: Harness
    ) -> None:
        await _put(harness, "a", "b")
        worker = await harness.worker()
        await harness.backend.consuming.exchange(worker.id, 1, [], worker.want(2))
        await harness.backend.consuming.exchange(worker.id, 2, [], RESERVE_NOTHING)
        with pytest.raises(OutOfOrder):
            await harness.backend.consuming.exchange(worker.id, 1, [], _within(worker, 2, 0))
        counts = await harness.backend.reads.count_jobs()
        assert counts[State.PROCESSING] == 2
