"""`cancel`: immediate for a waiting job, through its worker for a running job."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from nimburion.core.errors import JobNotFound
from nimburion.core.job import State
from nimburion.core.lease import Lease
from nimburion.core.maintenance import Cancellation
from nimburion.core.queries import JobFilter
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    Released,
    Retried,
    Settlement,
)
from nimburion.testing.contract.changing import replay
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness

AFTER_A_REQUEST: dict[str, tuple[Callable[[Lease], Settlement], State]] = {
    "completed": (Completed, State.COMPLETED),
    "failed": (lambda lease: Failed(lease, "permanent", FAILURE), State.FAILED),
    "cancelled": (lambda lease: Cancelled(lease, "as you wish"), State.CANCELLED),
    "retried": (lambda lease: Retried(lease, 5.0, FAILURE), State.CANCELLED),
    "released": (Released, State.CANCELLED),
    "snoozed": (lambda lease: Released(lease, 5.0), State.CANCELLED),
    "progressed": (lambda lease: Progressed(lease, 0.5), State.PROCESSING),
}


async def wanted(harness: Harness) -> tuple[HandDrivenWorker, Lease]:
    """Return a running job `a` whose cancel was requested, with its worker."""
    await harness.add("a")
    worker = await harness.worker()
    lease = (await worker.take_one()).lease
    assert await harness.backend.producing.cancel("a") == "requested"
    return worker, lease


class Cancelling:
    """`cancel`."""

    async def test_an_unknown_job_is_not_found(self, harness: Harness) -> None:
        with pytest.raises(JobNotFound) as caught:
            await harness.backend.producing.cancel("unknown")
        assert caught.value.job_id == "unknown"

    async def test_a_waiting_job_ends_at_once(self, harness: Harness) -> None:
        await harness.add("a")
        harness.clock.advance(1.0)
        assert await harness.backend.producing.cancel("a") is Cancellation.CANCELLED
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.payload) == (State.CANCELLED, None)
        assert (record.finished_at, record.started_at) == (harness.clock.now(), None)
        assert await (await harness.worker()).take() == []

    async def test_cancelling_one_leaves_its_neighbours(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        await harness.backend.producing.cancel("b")
        taken = await (await harness.worker()).take(5)
        assert [delivery.lease.job_id for delivery in taken] == ["a", "c"]

    async def test_a_running_job_is_cancelled_through_its_worker(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        first, _ = await worker.take(2)
        assert await harness.backend.producing.cancel("a") is Cancellation.REQUESTED
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.cancel_requested) == (State.PROCESSING, True)
        assert (await worker.heartbeat()).cancel == [first.lease]

    async def test_a_cancel_requested_twice_is_listed_once(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.take_one()
        assert await harness.backend.producing.cancel("a") is Cancellation.REQUESTED
        assert await harness.backend.producing.cancel("a") is Cancellation.REQUESTED
        assert len((await worker.heartbeat()).cancel) == 1

    async def test_every_heartbeat_lists_the_cancel_until_the_lease_ends(
        self, harness: Harness
    ) -> None:
        """A worker that missed the first reply sees it in the next."""
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await harness.backend.producing.cancel("a")
        assert (await worker.heartbeat()).cancel == (await worker.heartbeat()).cancel == [lease]
        await worker.settle(Cancelled(lease))
        assert (await worker.heartbeat()).cancel == []

    async def test_only_the_worker_that_holds_it_gets_the_cancel(self, harness: Harness) -> None:
        await harness.add("a")
        worker, other = await harness.worker(), await harness.worker()
        await worker.take_one()
        await harness.backend.producing.cancel("a")
        assert (await other.heartbeat()).cancel == []

    @pytest.mark.parametrize("how", AFTER_A_REQUEST)
    async def test_what_the_worker_settles_after_a_request(
        self, harness: Harness, how: str
    ) -> None:
        """A completion or failure wins. A job that would wait again is cancelled."""
        settlement, state = AFTER_A_REQUEST[how]
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await harness.backend.producing.cancel("a")
        await worker.settle(settlement(lease))
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.cancel_requested) == (state, state is State.PROCESSING)

    async def test_a_retry_after_a_request_keeps_its_error(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await harness.backend.producing.cancel("a")
        await worker.settle(Retried(lease, 5.0, FAILURE))
        record = await harness.backend.reads.get_job("a")
        assert (record.failures, len(record.history), record.payload) == (1, 1, None)

    async def test_a_request_ends_with_the_lease(self, harness: Harness) -> None:
        """A dead letter that is replayed is not cancelled."""
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await harness.backend.producing.cancel("a")
        await worker.settle(Failed(lease, "permanent", FAILURE))
        await replay(harness.backend, JobFilter(ids=("a",)), 10)
        await worker.settle(Released((await worker.take_one()).lease))
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.cancel_requested) == (State.PENDING, False)

    async def test_a_waiting_retry_ends_at_once_and_keeps_its_history(
        self, harness: Harness
    ) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 60.0, FAILURE))
        failed_at = harness.clock.now()
        assert await harness.backend.producing.cancel("a") == "cancelled"
        record = await harness.backend.reads.get_job("a")
        assert (record.failures, record.history) == (1, [replace(FAILURE, at=failed_at)])
        harness.clock.advance(60.0)
        assert await worker.take() == []

    async def test_a_release_that_ends_as_cancelled_counts_nothing(self, harness: Harness) -> None:
        worker, lease = await wanted(harness)
        await worker.settle(Released(lease))
        record = await harness.backend.reads.get_job("a")
        assert (record.failures, record.lost, record.history) == (0, 0, [])

    async def test_what_would_have_waited_and_is_cancelled_keeps_its_due_time(
        self, harness: Harness
    ) -> None:
        worker, lease = await wanted(harness)
        due = (await harness.backend.reads.get_job("a")).due
        harness.clock.advance(5.0)
        await worker.settle(Released(lease, 60.0))
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.due) == (State.CANCELLED, due)

    async def test_the_token_of_a_cancelled_retry_is_remembered(self, harness: Harness) -> None:
        worker, lease = await wanted(harness)
        await worker.settle(Retried(lease, 60.0, FAILURE))
        assert await worker.settle(Retried(lease, 60.0, FAILURE)) == ["already"]

    async def test_a_report_of_progress_leaves_the_request(self, harness: Harness) -> None:
        worker, lease = await wanted(harness)
        assert await worker.settle(Progressed(lease, 0.5)) == ["done"]
        assert (await worker.heartbeat()).cancel == [lease]

    async def test_the_other_jobs_of_the_worker_are_left_alone(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        _, b = [delivery.lease for delivery in await worker.take(2)]
        await harness.backend.producing.cancel("a")
        assert (await harness.backend.reads.get_job("b")).cancel_requested is False
        await worker.settle(Released(b))
        assert await harness.state("b") is State.PENDING
