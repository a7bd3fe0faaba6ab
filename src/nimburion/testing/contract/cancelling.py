"""`cancel`: immediate for a waiting job, through its worker for a running job."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from nimburion.core.errors import JobNotFound
from nimburion.core.job import State
from nimburion.core.lease import Lease
from nimburion.core.operations import Cancellation
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
from nimburion.testing.contract.harness import OOPS, HandDrivenWorker, Harness

AFTER_A_REQUEST: dict[str, tuple[Callable[[Lease], Settlement], State]] = {
    "completed": (Completed, State.COMPLETED),
    "failed": (lambda lease: Failed(lease, "permanent", OOPS), State.FAILED),
    "cancelled": (lambda lease: Cancelled(lease, "as you wish"), State.CANCELLED),
    "retried": (lambda lease: Retried(lease, 5.0, OOPS), State.CANCELLED),
    "released": (Released, State.CANCELLED),
    "snoozed": (lambda lease: Released(lease, 5.0), State.CANCELLED),
    "progressed": (lambda lease: Progressed(lease, 0.5), State.PROCESSING),
}


async def wanted(stage: Harness) -> tuple[HandDrivenWorker, Lease]:
    """Return a running job `a` whose cancel was requested, with its worker."""
    await stage.add("a")
    worker = await stage.worker()
    lease = (await worker.take_one()).lease
    assert await stage.store.cancel("a") == "requested"
    return worker, lease


class Cancelling:
    """`cancel`."""

    async def test_an_unknown_job_is_not_found(self, stage: Harness) -> None:
        with pytest.raises(JobNotFound) as caught:
            await stage.store.cancel("nobody")
        assert caught.value.job_id == "nobody"

    async def test_a_waiting_job_ends_at_once(self, stage: Harness) -> None:
        await stage.add("a")
        stage.clock.advance(1.0)
        assert await stage.store.cancel("a") is Cancellation.CANCELLED
        record = await stage.store.get("a")
        assert (record.state, record.payload) == (State.CANCELLED, None)
        assert (record.finished_at, record.started_at) == (stage.clock.now(), None)
        assert await (await stage.worker()).take() == []

    async def test_cancelling_one_leaves_its_neighbours(self, stage: Harness) -> None:
        await stage.add("a", "b", "c")
        await stage.store.cancel("b")
        taken = await (await stage.worker()).take(5)
        assert [delivery.lease.job_id for delivery in taken] == ["a", "c"]

    async def test_a_running_job_is_asked_through_its_worker(self, stage: Harness) -> None:
        await stage.add("a", "b")
        worker = await stage.worker()
        first, _ = await worker.take(2)
        assert await stage.store.cancel("a") is Cancellation.REQUESTED
        record = await stage.store.get("a")
        assert (record.state, record.cancel_requested) == (State.PROCESSING, True)
        assert (await worker.beat()).cancel == [first.lease]

    async def test_asking_twice_asks_once(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        await worker.take_one()
        assert await stage.store.cancel("a") is Cancellation.REQUESTED
        assert await stage.store.cancel("a") is Cancellation.REQUESTED
        assert len((await worker.beat()).cancel) == 1

    async def test_every_beat_asks_until_the_lease_ends(self, stage: Harness) -> None:
        """A worker that missed the first order hears the next."""
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        await stage.store.cancel("a")
        assert (await worker.beat()).cancel == (await worker.beat()).cancel == [lease]
        await worker.settle(Cancelled(lease))
        assert (await worker.beat()).cancel == []

    async def test_only_the_worker_that_holds_it_is_asked(self, stage: Harness) -> None:
        await stage.add("a")
        worker, other = await stage.worker(), await stage.worker()
        await worker.take_one()
        await stage.store.cancel("a")
        assert (await other.beat()).cancel == []

    @pytest.mark.parametrize("how", AFTER_A_REQUEST)
    async def test_what_the_worker_says_after_a_request(self, stage: Harness, how: str) -> None:
        """A completion or failure that comes first wins; whatever would wait again ends instead."""
        settlement, state = AFTER_A_REQUEST[how]
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        await stage.store.cancel("a")
        await worker.settle(settlement(lease))
        record = await stage.store.get("a")
        assert (record.state, record.cancel_requested) == (state, state is State.PROCESSING)

    async def test_a_retry_after_a_request_keeps_its_error(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        await stage.store.cancel("a")
        await worker.settle(Retried(lease, 5.0, OOPS))
        record = await stage.store.get("a")
        assert (record.failures, len(record.history), record.payload) == (1, 1, None)

    async def test_a_request_ends_with_the_lease(self, stage: Harness) -> None:
        """A dead letter that is replayed is wanted again."""
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        await stage.store.cancel("a")
        await worker.settle(Failed(lease, "permanent", OOPS))
        await stage.store.replay(JobFilter(ids=("a",)), 10)
        await worker.settle(Released((await worker.take_one()).lease))
        record = await stage.store.get("a")
        assert (record.state, record.cancel_requested) == (State.PENDING, False)

    async def test_a_waiting_retry_ends_at_once_and_keeps_its_history(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 60.0, OOPS))
        failed_at = stage.clock.now()
        assert await stage.store.cancel("a") == "cancelled"
        record = await stage.store.get("a")
        assert (record.failures, record.history) == (1, [replace(OOPS, at=failed_at)])
        stage.clock.advance(60.0)
        assert await worker.take() == []

    async def test_a_release_that_ends_as_cancelled_counts_nothing(self, stage: Harness) -> None:
        worker, lease = await wanted(stage)
        await worker.settle(Released(lease))
        record = await stage.store.get("a")
        assert (record.failures, record.lost, record.history) == (0, 0, [])

    async def test_what_would_have_waited_and_is_cancelled_keeps_its_due_time(
        self, stage: Harness
    ) -> None:
        worker, lease = await wanted(stage)
        due = (await stage.store.get("a")).due
        stage.clock.advance(5.0)
        await worker.settle(Released(lease, 60.0))
        record = await stage.store.get("a")
        assert (record.state, record.due) == (State.CANCELLED, due)

    async def test_the_token_of_a_cancelled_retry_is_remembered(self, stage: Harness) -> None:
        worker, lease = await wanted(stage)
        await worker.settle(Retried(lease, 60.0, OOPS))
        assert await worker.settle(Retried(lease, 60.0, OOPS)) == ["already"]

    async def test_a_report_of_progress_leaves_the_request(self, stage: Harness) -> None:
        worker, lease = await wanted(stage)
        assert await worker.settle(Progressed(lease, 0.5)) == ["done"]
        assert (await worker.beat()).cancel == [lease]

    async def test_the_other_jobs_of_the_worker_are_left_alone(self, stage: Harness) -> None:
        await stage.add("a", "b")
        worker = await stage.worker()
        _, b = [delivery.lease for delivery in await worker.take(2)]
        await stage.store.cancel("a")
        assert (await stage.store.get("b")).cancel_requested is False
        await worker.settle(Released(b))
        assert await stage.state("b") is State.PENDING
