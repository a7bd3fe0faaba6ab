"""Cancelled runs: those that need a worker to end are asked, all others are cancelled at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nimburion.core.bulk_operations import BulkAction
from nimburion.core.flows import NewFlow
from nimburion.core.job import State
from nimburion.core.lease import Lease
from nimburion.core.maintenance import Cancellation
from nimburion.core.paging import change_matching
from nimburion.core.queries import JobFilter
from nimburion.core.rate_limits import RateLimit
from nimburion.core.runs import (
    CANCEL_SIGNAL,
    CLEANUP_STEP,
    MAX_UNREAD_SIGNALS,
    NewSignal,
    SignalOutcome,
)
from nimburion.core.schedules import ScheduleRecord, put_schedule
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    RateLimited,
    Recorded,
    Released,
    Retried,
    Settled,
    Settlement,
    Suspended,
)
from nimburion.testing.contract.changing import replay
from nimburion.testing.contract.flows.failing_fast import continue_all
from nimburion.testing.contract.flows.graphs import FLOW, member, store
from nimburion.testing.contract.harness import FAILURE, Harness, ids
from nimburion.testing.contract.runs.run_jobs import (
    PAID,
    RUN,
    read,
    read_signals,
    record,
    send,
    start,
    suspend,
)

CANCEL = (CANCEL_SIGNAL, b"")
"""The signal that asks a run to end, as `read_signals` returns it."""
GIVING_BACK: dict[str, tuple[Callable[[Lease], Settlement], State]] = {
    "retried": (lambda lease: Retried(lease, 60.0, FAILURE), State.RETRYING),
    "released": (Released, State.PENDING),
    "not started": (lambda lease: Released(lease, unstarted=True), State.PENDING),
    "snoozed": (lambda lease: Released(lease, 60.0), State.PENDING),
    "rate limited": (lambda lease: RateLimited(lease, 60.0), State.PENDING),
    "suspended": (lambda lease: Suspended(lease, (PAID,), 60.0), State.PENDING),
}
"""The settlements after which a job waits again, and its state if it is asked to end."""
ENDS: dict[str, Callable[[Lease], Settlement]] = {
    "completed": Completed,
    "failed": lambda lease: Failed(lease, "permanent", FAILURE),
    "cancelled": Cancelled,
}
HOURLY = RateLimit("1/h", interval=3_600_000_000, burst=1)


class CancellingRuns:
    """A run that needs a worker to end is asked; any other is cancelled at once."""

    async def test_a_suspended_run_is_cancelled_at_once(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, 1)
        await suspend(worker, held, PAID, delay=60.0)
        assert await harness.backend.producing.cancel(RUN) is Cancellation.CANCELLED
        assert await harness.state(RUN) is State.CANCELLED
        assert await send(harness) is SignalOutcome.FINISHED
        harness.clock.advance(61.0)
        worker = await harness.worker()
        assert await worker.take(5) == []

    async def test_one_that_needs_cleanup_is_resumed(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        await suspend(worker, held, PAID, delay=60.0)
        assert await harness.backend.producing.cancel(RUN) is Cancellation.REQUESTED
        assert await harness.backend.producing.cancel(RUN) is Cancellation.REQUESTED
        assert ids(await worker.take(5)) == [RUN]
        assert await read_signals(harness) == [CANCEL]

    async def test_one_that_waits_for_a_worker_is_asked(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        await worker.exchange(Retried(held.lease, 0.0, FAILURE))
        changes = await harness.backend.maintenance.change_jobs(BulkAction.CANCEL, [RUN])
        assert changes.ids == [RUN]
        assert await harness.state(RUN) is State.RETRYING
        assert await read_signals(harness) == [CANCEL]

    async def test_a_bulk_operation_asks_a_suspended_run(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        await suspend(worker, held, PAID)
        changes = await harness.backend.maintenance.change_jobs(BulkAction.CANCEL, [RUN])
        assert changes.ids == [RUN]
        assert await harness.state(RUN) is State.PENDING

    @pytest.mark.parametrize("how", GIVING_BACK)
    async def test_a_request_to_a_run_that_gives_its_lease_back(
        self, harness: Harness, how: str
    ) -> None:
        """It waits at its old place, and not until a later time."""
        settle, expected = GIVING_BACK[how]
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        assert await harness.backend.producing.cancel(RUN) is Cancellation.REQUESTED
        reply = await worker.exchange(settle(held.lease))
        assert reply.results == [Settled.DONE]
        job = await harness.backend.reads.get_job(RUN)
        assert (job.state, job.cancel_requested, job.due) == (expected, False, held.due)
        assert await read_signals(harness) == [CANCEL]
        held = await worker.take_one()
        assert (held.lease.job_id, held.failures) == (RUN, int(how == "retried"))

    @pytest.mark.parametrize("how", GIVING_BACK)
    async def test_a_request_to_one_that_needs_no_cleanup_cancels_it(
        self, harness: Harness, how: str
    ) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, 1)
        await harness.backend.producing.cancel(RUN)
        await worker.exchange(GIVING_BACK[how][0](held.lease))
        assert await harness.state(RUN) is State.CANCELLED
        assert await read_signals(harness) == []

    @pytest.mark.parametrize("how", ["completed", "failed", "cancelled"])
    async def test_an_end_takes_precedence_over_the_request(
        self, harness: Harness, how: str
    ) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        await harness.backend.producing.cancel(RUN)
        await worker.exchange(ENDS[how](held.lease))
        assert await harness.state(RUN) is State(how)
        assert await read_signals(harness) == []

    async def test_a_rate_that_is_over_is_no_reason_to_forget_the_request(
        self, harness: Harness
    ) -> None:
        worker = await harness.worker(rates={"mail": HOURLY})
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        await harness.backend.producing.cancel(RUN)
        await worker.exchange(RateLimited(held.lease, 60.0))
        assert await read_signals(harness) == [CANCEL]
        assert await worker.take(1) == []

    async def test_the_cleanup_step_may_come_with_the_end_of_the_lease(
        self, harness: Harness
    ) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await harness.backend.producing.cancel(RUN)
        step = Recorded(held.lease, CLEANUP_STEP, b"")
        await worker.exchange(step, Suspended(held.lease, (PAID,)))
        assert await harness.state(RUN) is State.PENDING
        assert await read_signals(harness) == [CANCEL]

    async def test_a_run_that_began_anew_needs_no_cleanup(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        await record(worker, held, 2, forgets=True)
        await suspend(worker, held, PAID)
        assert await harness.backend.producing.cancel(RUN) is Cancellation.CANCELLED

    async def test_a_request_to_a_run_that_loses_its_worker(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        await harness.backend.producing.cancel(RUN)
        rescued = await harness.lose(worker)
        assert (rescued.returned, rescued.cancelled) == ([RUN], [])
        worker = await harness.worker()
        assert ids(await worker.take(5)) == [RUN]
        assert await read_signals(harness) == [CANCEL]

    async def test_a_request_to_a_run_that_is_released(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        await harness.backend.producing.cancel(RUN)
        await harness.backend.consuming.release(worker.id, [held.lease])
        assert await harness.state(RUN) is State.PENDING
        assert await read_signals(harness) == [CANCEL]

    async def test_the_signal_does_not_count_as_unread(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        signals = [NewSignal(RUN, "n", str(number), b"") for number in range(MAX_UNREAD_SIGNALS)]
        for start_at in range(0, len(signals), 500):
            await harness.backend.producing.send_signals(signals[start_at : start_at + 500])
        await record(worker, held, CLEANUP_STEP)
        await suspend(worker, held)
        assert await harness.backend.producing.cancel(RUN) is Cancellation.REQUESTED
        page = await harness.backend.reads.read_run(RUN, limit=2_000)
        assert page.signals[-1].name == CANCEL_SIGNAL

    async def test_a_request_to_a_run_whose_session_is_closed(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        await harness.backend.producing.cancel(RUN)
        await worker.close()
        assert await harness.state(RUN) is State.PENDING
        assert await read_signals(harness) == [CANCEL]

    async def test_a_request_to_a_run_that_its_closed_session_left(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        await harness.backend.producing.cancel(RUN)
        await worker.close(held.lease)
        rescued = await harness.lose(worker)
        assert (rescued.returned, rescued.cancelled) == ([RUN], [])
        assert await read_signals(harness) == [CANCEL]

    async def test_a_request_does_not_keep_a_lost_run_from_failing(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        await harness.backend.producing.cancel(RUN)
        assert (await harness.lose(worker, max_lost=1)).failed == [RUN]
        job = await harness.backend.reads.get_job(RUN)
        assert (job.state, job.reason) == (State.FAILED, "lost")

    async def test_a_second_request_resumes_it_again(self, harness: Harness) -> None:
        """Its first attempt after the request took the signal, and waits while it cleans up."""
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        await suspend(worker, held, PAID)
        await harness.backend.producing.cancel(RUN)
        held = await worker.take_one()
        (signal,) = (await read(harness)).signals
        await record(worker, held, 1, takes=signal.number)
        await suspend(worker, held, delay=60.0)
        assert await harness.backend.producing.cancel(RUN) is Cancellation.REQUESTED
        assert await read_signals(harness) == []
        assert ids(await worker.take(5)) == [RUN]

    async def test_what_it_waited_for_before_the_request_resumes_nothing(
        self, harness: Harness
    ) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        await suspend(worker, held, PAID, delay=60.0)
        await harness.backend.producing.cancel(RUN)
        await suspend(worker, await worker.take_one(), delay=3_600.0)
        await send(harness)
        harness.clock.advance(61.0)
        worker = await harness.worker()
        assert await worker.take(5) == []
        assert await harness.state(RUN) is State.SUSPENDED

    async def test_the_replay_of_a_dead_letter_finds_the_request(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        await suspend(worker, held, PAID)
        await harness.backend.producing.cancel(RUN)
        await worker.exchange(Failed((await worker.take_one()).lease, "permanent", FAILURE))
        await replay(harness.backend, JobFilter(ids=(RUN,)), 1)
        assert ids(await worker.take(5)) == [RUN]
        assert await read_signals(harness) == [CANCEL]

    async def test_a_bulk_operation_with_a_filter_asks_each_once(self, harness: Harness) -> None:
        worker = await harness.worker()
        await harness.add("r1", "r2", "r3", "plain")
        held = await worker.take(3)
        await worker.exchange(*(Recorded(one.lease, CLEANUP_STEP, b"") for one in held[:2]))
        await worker.exchange(*(Suspended(one.lease) for one in held))
        which = JobFilter(states=frozenset({State.SUSPENDED, State.PENDING}))
        changed = await change_matching(harness.backend, BulkAction.CANCEL, which, 100)
        assert sorted(changed.ids) == ["plain", "r1", "r2", "r3"]
        counts = await harness.backend.reads.count_jobs()
        assert (counts[State.PENDING], counts[State.CANCELLED]) == (2, 2)

    async def test_a_tick_that_cancels_the_previous_job_asks_it(self, harness: Harness) -> None:
        producing = harness.backend.producing
        await put_schedule(harness.backend, ScheduleRecord(name="nightly", spec=b"{}"))
        await producing.fire("nightly", None, 1.0, harness.job(RUN), "cancel_previous")
        worker = await harness.worker()
        held = await worker.take_one()
        await record(worker, held, CLEANUP_STEP)
        await suspend(worker, held, PAID)
        await producing.fire("nightly", 1.0, 2.0, harness.job("next"), "cancel_previous")
        assert await harness.state(RUN) is State.PENDING
        assert await read_signals(harness) == [CANCEL]

    async def test_a_flow_that_fails_fast_asks_its_members(self, harness: Harness) -> None:
        flow = NewFlow(id=FLOW, name="import", members=4, fail_fast=True)
        await store(harness, [member(job) for job in (RUN, "waits", "other", "fails")], flow)
        worker = await harness.worker()
        held = {one.lease.job_id: one for one in await worker.take(4)}
        for job_id in (RUN, "waits"):
            await record(worker, held[job_id], CLEANUP_STEP)
        await suspend(worker, held[RUN], PAID)
        await worker.exchange(
            Retried(held["waits"].lease, 0.0, FAILURE), Suspended(held["other"].lease, (PAID,))
        )
        await worker.exchange(Failed(held["fails"].lease, "permanent", FAILURE))
        await continue_all(harness)
        assert await harness.state(RUN) is State.PENDING
        assert await harness.state("waits") is State.RETRYING
        assert await harness.state("other") is State.CANCELLED
        assert await read_signals(harness) == [CANCEL]
        assert {*ids(await worker.take(5))} == {RUN, "waits"}
        (info,) = await harness.backend.reads.get_flow(FLOW)
        assert (info.unfinished, info.failed, info.cancelled) == (2, 1, 1)
