"""The effect of each settlement on the record. `tokens` covers which token may settle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from nimburion.core.job import AttemptError, State
from nimburion.core.lease import Lease
from nimburion.core.queries import JobFilter
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Released,
    Retried,
    Settled,
    Settlement,
)
from nimburion.testing.contract.changing import delete
from nimburion.testing.contract.harness import FAILURE, Harness, ids


class Settling:
    """Settlements."""

    async def test_completed_keeps_the_result_and_drops_the_payload(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        reserved = harness.clock.now()
        harness.clock.advance(2.0)
        assert await worker.settle(Completed(lease, b'"done"')) == [Settled.DONE]
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.result, record.payload) == (
            State.COMPLETED,
            b'"done"',
            None,
        )
        assert (record.started_at, record.finished_at) == (reserved, harness.clock.now())
        assert (record.session, record.failures, record.history) == (None, 0, [])

    async def test_completed_without_a_result_has_none(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Completed((await worker.take_one()).lease))
        assert (await harness.backend.reads.get_job("a")).result is None

    async def test_a_completed_job_never_runs_again(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Completed((await worker.take_one()).lease))
        harness.clock.advance(1_000.0)
        await harness.backend.consuming.rescue(10, max_lost=3)
        await harness.backend.consuming.promote(10)
        assert await (await harness.worker()).take(5) == []

    async def test_retried_counts_a_failure_and_waits_for_its_delay(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        harness.clock.advance(1.0)
        await worker.settle(Retried(lease, 10.0, FAILURE))
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.failures, record.lost) == (State.RETRYING, 1, 0)
        assert (record.due, record.finished_at) == (harness.clock.now() + 10.0, None)
        assert record.attempt == 2
        harness.clock.advance(9.0)
        assert await worker.take() == []
        harness.clock.advance(1.0)
        assert ids(await worker.take()) == ["a"]

    async def test_retried_without_delay_is_due_at_once(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 0.0, FAILURE))
        assert (await harness.backend.reads.get_job("a")).due == harness.clock.now()
        assert await harness.state("a") is State.RETRYING

    async def test_a_negative_delay_counts_as_none(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Retried((await worker.take_one()).lease, -7.0, FAILURE))
        assert (await harness.backend.reads.get_job("a")).due == harness.clock.now()

    async def test_the_delay_is_counted_on_the_clock_of_the_backend(self, harness: Harness) -> None:
        """The delay begins at the settlement, not at the reservation."""
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        harness.clock.advance(100.0)
        await worker.settle(Retried(lease, 5.0, FAILURE))
        assert (await harness.backend.reads.get_job("a")).due == harness.clock.now() + 5.0

    async def test_an_error_is_added_to_the_history_with_the_time_of_the_backend(
        self, harness: Harness
    ) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        error = AttemptError(1, "timeout", "TimeoutError", "too löng", "line 1\nline 2", at=5.0)
        await worker.settle(Retried(lease, 0.0, error))
        record = await harness.backend.reads.get_job("a")
        assert record.history == [replace(error, at=harness.clock.now())]
        assert record.error == record.history[0]

    async def test_the_history_is_oldest_first(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        for n in range(1, 6):
            lease = (await worker.take_one()).lease
            harness.clock.advance(1.0)
            await worker.settle(Retried(lease, 0.0, replace(FAILURE, attempt=n)))
        record = await harness.backend.reads.get_job("a")
        assert [error.attempt for error in record.history] == [1, 2, 3, 4, 5]
        assert record.failures == 5

    async def test_failed_is_a_dead_letter_with_all_that_belongs_to_it(
        self, harness: Harness
    ) -> None:
        await harness.put(harness.job("a", payload=b'{ "kept" : "as it came" }'))
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await worker.settle(Failed(lease, "permanent", FAILURE))
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.reason, record.failures) == (State.FAILED, "permanent", 1)
        assert record.payload == b'{ "kept" : "as it came" }'
        assert record.history == [replace(FAILURE, at=harness.clock.now())]
        assert record.finished_at == harness.clock.now()
        assert record.attempt == 1

    @pytest.mark.parametrize(
        "reason", ["exhausted", "permanent", "unreadable", "unstorable", "of my own"]
    )
    async def test_the_reason_is_kept_as_given(self, harness: Harness, reason: str) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Failed((await worker.take_one()).lease, reason, FAILURE))
        assert (await harness.backend.reads.get_job("a")).reason == reason

    async def test_a_failed_job_never_runs_again_by_itself(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Failed((await worker.take_one()).lease, "permanent", FAILURE))
        harness.clock.advance(1_000.0)
        assert await worker.take(5) == []

    async def test_released_counts_nothing(self, harness: Harness) -> None:
        await harness.add("a")
        before = await harness.backend.reads.get_job("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        reserved = harness.clock.now()
        harness.clock.advance(1.0)
        await worker.settle(Released(lease))
        assert await harness.backend.reads.get_job("a") == replace(before, started_at=reserved)

    async def test_snoozed_waits_and_counts_nothing(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await worker.settle(Released(lease, 10.0))
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.due) == (State.SCHEDULED, harness.clock.now() + 10.0)
        assert (record.failures, record.lost, record.history) == (0, 0, [])
        assert await worker.take() == []
        harness.clock.advance(10.0)
        assert (await worker.take_one()).attempt == 1

    async def test_a_snooze_of_zero_is_due_now(self, harness: Harness) -> None:
        """The job moves behind those that were due before. Only `None` keeps its place."""
        await harness.add("a", "b")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        harness.clock.advance(1.0)
        await worker.settle(Released(lease, 0.0))
        assert ids(await worker.take(5)) == ["b", "a"]

    async def test_a_released_retry_stays_retrying(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 0.0, FAILURE))
        await worker.settle(Released((await worker.take_one()).lease))
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.failures) == (State.RETRYING, 1)

    async def test_cancelled_keeps_its_reason_and_drops_the_payload(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Cancelled((await worker.take_one()).lease, "no longer wanted"))
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.reason) == (State.CANCELLED, "no longer wanted")
        assert (record.payload, record.finished_at) == (None, harness.clock.now())
        assert (record.failures, record.history) == (0, [])

    async def test_results_come_in_the_order_of_the_settlements(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        worker = await harness.worker()
        a, b, c = [delivery.lease for delivery in await worker.take(3)]
        forged = replace(b, token=replace(b.token, nonce=bytes(16)))
        results = await worker.settle(
            Retried(c, 1.0, FAILURE),
            Completed(forged),
            Completed(a),
            Failed(a, "permanent", FAILURE),
        )
        assert results == [Settled.DONE, Settled.STALE, Settled.DONE, Settled.ALREADY]
        assert await harness.state("b") is State.PROCESSING

    async def test_the_first_of_two_settlements_of_one_lease_wins(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        results = await worker.settle(Completed(lease, b"1"), Failed(lease, "permanent", FAILURE))
        assert results == [Settled.DONE, Settled.ALREADY]
        assert (await harness.backend.reads.get_job("a")).state is State.COMPLETED
        assert (await harness.backend.reads.get_job("a")).history == []

    async def test_a_stale_settlement_does_not_hinder_the_others(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        a, b = [delivery.lease for delivery in await worker.take(2)]
        await worker.settle(Completed(a))
        await delete(harness.backend, JobFilter(ids=("a",)), 10)
        assert await worker.settle(Completed(a), Completed(b)) == [Settled.STALE, Settled.DONE]
        assert await harness.state("b") is State.COMPLETED

    async def test_many_settlements_of_every_kind_go_together(self, harness: Harness) -> None:
        jobs = [harness.job() for _ in range(500)]
        await harness.backend.producing.enqueue(jobs)
        worker = await harness.worker()
        kinds: list[Callable[[Lease], Settlement]] = [
            Completed,
            lambda lease: Retried(lease, 60.0, FAILURE),
            lambda lease: Failed(lease, "permanent", FAILURE),
            lambda lease: Released(lease, 60.0),
            Cancelled,
        ]
        taken = await worker.take(500)
        batch = [kinds[n % 5](delivery.lease) for n, delivery in enumerate(taken)]
        assert await worker.settle(*batch) == [Settled.DONE] * 500
        counts = await harness.backend.reads.count_jobs()
        assert {state: n for state, n in counts.items() if n} == {
            State.COMPLETED: 100,
            State.RETRYING: 100,
            State.FAILED: 100,
            State.SCHEDULED: 100,
            State.CANCELLED: 100,
        }
