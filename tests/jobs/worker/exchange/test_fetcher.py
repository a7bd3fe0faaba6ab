"""Tests of `Fetcher.find_reason`: in which state the worker sends an exchange, and why."""

from __future__ import annotations

import asyncio
import math
from unittest.mock import create_autospec, patch

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.events import Events
from nimburion.core.exchange import RESERVE_NOTHING, Lane, Reply
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.settings import QueueSettings, Settings
from nimburion.core.settlement import Completed, Progressed
from nimburion.core.timing.clock import SystemClock
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.worker.attempt.attempt import Attempt
from nimburion.jobs.worker.connectivity import BackendConnectivity
from nimburion.jobs.worker.exchange.batches import Batches
from nimburion.jobs.worker.exchange.completer import Completer
from nimburion.jobs.worker.exchange.fetcher import MAX_EMPTY_REPLIES, ExchangeReason, Fetcher
from nimburion.jobs.worker.exchange.lane_selector import LaneSelector
from nimburion.jobs.worker.exchange.slots import Prefetch, Slots

FULL_FLUSH = 88
"""The number of results that make a full flush when 100 jobs may be prefetched."""


class State:
    """A worker whose slots are all free and which knows of no waiting jobs."""

    def __init__(self, *, long_poll: bool = False, batches: Batches | None = None) -> None:
        self.slots = Slots(10, Prefetch(10, remote=False))
        clock = SystemClock()
        self.completer = Completer(
            MemoryBackend().consuming,
            "session",
            clock,
            Events(),
            BackendConnectivity(clock, "memory"),
        )
        settings = Settings(queues=(QueueSettings("default"),))
        registry = Registry(settings)
        lanes = LaneSelector(registry, settings, bytes)
        self.fetcher = Fetcher(
            MemoryBackend(),
            clock,
            asyncio.get_running_loop(),
            self.slots,
            self.completer,
            lanes=lanes,
            waits_for_jobs=True,
            session_ttl=30.0,
            batches=batches,
        )
        self.fetcher.long_poll.is_supported = long_poll
        self.fetcher.may_have_work = False

    def run_job(self) -> None:
        """Run one job."""
        self.slots.running.add(Attempt(_make_delivery(0), "session"))

    def prefetch_many_jobs(self) -> None:
        """Prefetch so many jobs that there is no capacity for another batch."""
        self.slots.prefetch.learn(0.002)
        self.slots.prefetched.extend(_make_delivery(number) for number in range(100))

    def settle(self, count: int = 1) -> None:
        """Add `count` results that wait to be sent."""
        for number in range(count):
            self.completer.settle(Completed(_make_lease(number)))

    @property
    def reason(self) -> ExchangeReason | None:
        """The reason to send an exchange now; None if there is none."""
        return self.fetcher.find_reason()


def _make_lease(number: int) -> Lease:
    return Lease(f"job-{number}", Token(1, b"nonce"))


def _make_delivery(number: int) -> Delivery:
    return Delivery(_make_lease(number), "job", "default", b"{}")


async def test_a_new_session_looks_for_work() -> None:
    state = State()
    state.fetcher.begin_session(state.completer)
    assert state.reason is ExchangeReason.WORK_POSSIBLE


async def test_without_settlements_and_possible_work_no_exchange_is_sent() -> None:
    assert State().reason is None


async def test_an_idle_worker_long_polls_if_the_backend_supports_it() -> None:
    assert State(long_poll=True).reason is ExchangeReason.IDLE


async def test_a_worker_whose_slots_are_full_listens_no_more_although_jobs_are_left() -> None:
    """It would be woken in place of a worker that can start a job."""
    state = State()
    state.fetcher.note_possible_work()
    request = state.fetcher.make_request()
    state.slots.prefetched.extend(_make_delivery(number) for number in range(10))
    with patch.object(state.fetcher.wakeups, "withdraw") as withdraw:
        state.fetcher.note_reply(Reply([], [_make_delivery(0)], [Lane("default", "job")]), request)
    withdraw.assert_called_once_with()


def _exchange(state: State, *waiting: Lane) -> float:
    """Make an exchange whose reply names these lanes and has no job. Return its long poll."""
    request = state.fetcher.make_request()
    state.fetcher.note_reply(Reply([], [], list(waiting)), request)
    return request.long_poll


def _receive(state: State, jobs: int) -> int:
    """Make an exchange that finds as many jobs as it requests, of `jobs`. Return the request."""
    request = state.fetcher.make_request()
    found = [_make_delivery(number) for number in range(min(jobs, request.total))]
    waiting = [Lane("default", "job")] if jobs > request.total else []
    state.fetcher.note_reply(Reply([], found, waiting), request)
    return request.total


async def test_a_worker_alone_prefetches_at_once() -> None:
    state = State()
    state.slots.prefetch.learn(0.002)
    assert _receive(state, jobs=1_000) == 10 + 100


async def test_a_worker_of_a_fleet_prefetches_when_it_has_run_jobs_of_the_backlog() -> None:
    """Jobs that use the CPU: those in the slots do not run side by side."""
    state = State()
    state.fetcher.note_fleet(2, has_expired=False)
    state.slots.prefetch.learn(0.002)
    with patch.object(state.fetcher, "_monotonic", side_effect=[0.0, 0.02, 0.1, 0.2, 0.3]):
        assert [_receive(state, jobs=1_000) for _ in range(3)] == [10, 10 + 30, 10 + 30]
        assert _receive(state, jobs=5) == 10 + 30
        assert _receive(state, jobs=1_000) == 10  # the backlog has ended, and there is another one


async def test_a_worker_of_a_fleet_prefetches_what_it_runs_side_by_side() -> None:
    state = State()
    state.fetcher.note_fleet(2, has_expired=False)
    state.slots.prefetch.learn(0.002)
    with patch.object(state.fetcher, "_monotonic", side_effect=[0.0, 0.002, 0.01]):
        assert [_receive(state, jobs=1_000) for _ in range(3)] == [10, 10 + 40, 10 + 100]


async def test_a_worker_of_a_fleet_prefetches_as_before_when_the_others_have_ended() -> None:
    state = State()
    state.slots.prefetch.learn(0.002)
    state.fetcher.note_fleet(2, has_expired=False)
    assert _receive(state, jobs=5) == 10
    state.fetcher.note_fleet(1, has_expired=False)
    assert _receive(state, jobs=5) == 10 + 100


async def test_there_is_no_long_poll_while_lanes_wait_for_the_next_exchange() -> None:
    state, lane = State(long_poll=True), Lane("default", "job")
    timeouts = [_exchange(state, lane), _exchange(state), _exchange(state)]
    assert [timeout > 0 for timeout in timeouts] == [True, False, True]


async def test_there_is_a_long_poll_after_many_replies_that_name_lanes_only() -> None:
    state, lane = State(long_poll=True), Lane("default", "job")
    for _ in range(MAX_EMPTY_REPLIES):
        _exchange(state, lane)
    assert _exchange(state, lane) > 0


async def test_there_is_no_long_poll_while_a_job_runs() -> None:
    state = State(long_poll=True)
    state.run_job()
    assert state.reason is None


async def test_a_notification_means_that_work_is_possible() -> None:
    state = State()
    state.fetcher.note_possible_work()
    assert state.reason is ExchangeReason.WORK_POSSIBLE


async def test_lanes_that_are_not_empty_are_requested_again() -> None:
    state = State()
    state.fetcher.lanes_not_empty = True
    assert state.reason is ExchangeReason.LANES_NOT_EMPTY


@pytest.mark.parametrize("cause", ["notified", "more", "long poll"])
async def test_without_capacity_possible_work_triggers_no_exchange(cause: str) -> None:
    state = State(long_poll=cause == "long poll")
    state.fetcher.may_have_work, state.fetcher.lanes_not_empty = (
        cause == "notified",
        cause == "more",
    )
    assert state.reason is not None
    state.slots.draining = True
    assert state.reason is None


@pytest.mark.parametrize("jobs_wait", [False, True])
async def test_a_due_job_is_promoted_for_others_if_no_slot_is_free(jobs_wait: bool) -> None:
    """The backend has told no other worker when the job is due. Workers of other queues may be idle
    also where jobs wait for this one.
    """
    state = State()
    state.slots.draining = True
    state.fetcher.lanes_not_empty = jobs_wait
    state.fetcher.note_job_due()
    assert state.reason is ExchangeReason.JOB_DUE
    assert state.fetcher.make_request() is RESERVE_NOTHING
    assert state.reason is None


async def test_only_a_request_for_jobs_changes_when_the_next_job_is_due() -> None:
    """The backend reports the time to one worker, and only with such a request."""
    state = State()
    request = state.fetcher.make_request()
    state.fetcher.note_reply(Reply([], [], [], next_due=9.0, now=5.0), request)
    state.fetcher.note_reply(Reply([], [], [], next_due=None, now=5.0), RESERVE_NOTHING)
    assert state.fetcher.due_timer.seconds_left == pytest.approx(4.0, abs=1.0)
    state.fetcher.note_reply(Reply([], [], [], next_due=None, now=5.0), request)
    assert state.fetcher.due_timer.seconds_left == math.inf


async def test_a_due_time_of_a_request_without_some_lanes_is_used_if_it_is_earlier() -> None:
    timer = State().fetcher.due_timer
    timer.note_reply(Reply([], [], [], next_due=9.0, now=5.0), is_partial=False)
    for next_due, left in ((None, 4.0), (99.0, 4.0), (7.0, 2.0)):
        timer.note_reply(Reply([], [], [], next_due=next_due, now=5.0), is_partial=True)
        assert timer.seconds_left == pytest.approx(left, abs=1.0)


async def test_results_are_flushed_at_once_where_few_jobs_are_held() -> None:
    state = State()
    state.slots.draining = True
    state.settle()
    assert state.reason is ExchangeReason.RESULTS_WAIT


async def test_progress_is_flushed_at_once_where_few_jobs_are_held() -> None:
    state = State()
    state.completer.report_progress(Progressed(_make_lease(1), 0.5))
    assert state.reason is ExchangeReason.RESULTS_WAIT


async def test_with_many_prefetched_jobs_a_batch_fills() -> None:
    state = State()
    state.prefetch_many_jobs()
    state.fetcher.note_possible_work()
    state.settle(FULL_FLUSH - 1)
    assert state.reason is None
    state.settle()
    assert state.reason is ExchangeReason.FLUSH_FULL


async def test_with_capacity_for_a_batch_results_are_sent_at_once() -> None:
    state = State()
    state.prefetch_many_jobs()
    state.settle()
    for _ in range(FULL_FLUSH):
        state.slots.prefetched.pop()
    assert state.reason is ExchangeReason.RESULTS_WAIT


@pytest.mark.parametrize("jobs_wait", ["no", "left behind", "notified"])
async def test_in_a_fleet_results_wait_for_prefetched_jobs_where_no_others_wait(
    jobs_wait: str,
) -> None:
    """Workers that share the end of a backlog would make an exchange for a few results each."""
    state = State()
    state.fetcher.note_fleet(2, has_expired=False)
    state.prefetch_many_jobs()
    state.settle()
    for _ in range(FULL_FLUSH):
        state.slots.prefetched.pop()
    state.fetcher.lanes_not_empty = jobs_wait == "left behind"
    state.fetcher.may_have_work = jobs_wait == "notified"
    assert state.reason is (None if jobs_wait == "no" else ExchangeReason.RESULTS_WAIT)
    state.slots.prefetched.clear()
    assert state.reason is ExchangeReason.RESULTS_WAIT


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_batch_with_room_is_filled_beside_prefetched_jobs(workers: int) -> None:
    batches = create_autospec(Batches, instance=True)
    batches.find_fillable.return_value = [Lane("default", "batched")]
    state = State(batches=batches)
    state.fetcher.note_fleet(workers, has_expired=False)
    state.prefetch_many_jobs()
    for _ in range(FULL_FLUSH):
        state.slots.prefetched.pop()
    assert state.reason is ExchangeReason.BATCH_HAS_ROOM


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_exchange_without_an_answer_is_repeated_beside_prefetched_jobs(
    workers: int,
) -> None:
    """Its reply may have leased jobs, of which this worker does not know."""
    state = State()
    state.fetcher.note_fleet(workers, has_expired=False)
    state.prefetch_many_jobs()
    assert state.reason is None
    state.completer.unanswered = [], RESERVE_NOTHING
    assert state.reason is ExchangeReason.FLUSH_DUE


async def test_results_that_a_reply_with_jobs_holds_back_are_flushed_soon() -> None:
    """No end of another job is needed for it."""
    state = State()
    state.settle()
    state.fetcher.note_result()
    state.prefetch_many_jobs()
    async with asyncio.timeout(10):
        await state.fetcher.wait_for_reason()
    assert state.reason is ExchangeReason.FLUSH_DUE


async def test_a_flush_is_due_soon_after_a_result_began_to_wait() -> None:
    state = State()
    state.prefetch_many_jobs()
    state.settle()
    state.fetcher.note_result()
    assert state.reason is None
    async with asyncio.timeout(10):
        await state.fetcher.wait_for_reason()
    assert state.reason is ExchangeReason.FLUSH_DUE


@pytest.mark.parametrize(("seconds", "delay"), [(0.001, 0.02), (0.02, 0.06), (9.0, 0.5)])
async def test_results_wait_longer_while_the_backend_is_busy(seconds: float, delay: float) -> None:
    state = State()
    state.completer.last_seconds = seconds
    state.prefetch_many_jobs()
    state.settle()
    with patch.object(asyncio.get_running_loop(), "call_later") as call_later:
        state.fetcher.note_result()
    assert call_later.call_args.args[0] == pytest.approx(delay)


async def test_too_many_bytes_of_results_are_sent_at_once() -> None:
    state = State()
    state.prefetch_many_jobs()
    state.completer.is_full = True
    assert state.reason is ExchangeReason.RESULTS_FULL


async def test_a_session_that_is_over_is_replaced_in_any_state() -> None:
    state = State()
    state.prefetch_many_jobs()
    state.completer.closed = True
    assert state.reason is ExchangeReason.SESSION_OVER


async def test_a_closing_worker_sends_what_is_left_and_is_over() -> None:
    state = State()
    state.prefetch_many_jobs()
    state.settle()
    state.fetcher.closing = True
    assert state.reason is ExchangeReason.CLOSING
    assert await state.fetcher.wait_for_reason()
    state.completer.pending.clear()
    assert not await state.fetcher.wait_for_reason()


async def test_a_cancelled_worker_is_over_when_nothing_runs() -> None:
    state = State()
    state.run_job()
    state.fetcher.cancelled = True
    assert [state.reason] == [None]
    state.slots.running.clear()
    assert state.reason is ExchangeReason.CLOSING
    assert not await state.fetcher.wait_for_reason()


async def test_an_exchange_that_requests_jobs_clears_all_flags() -> None:
    state = State()
    state.fetcher.may_have_work = state.fetcher.lanes_not_empty = state.fetcher.flush_due = True
    assert state.fetcher.make_request().total == 10
    assert (
        state.fetcher.may_have_work,
        state.fetcher.lanes_not_empty,
        state.fetcher.flush_due,
    ) == (False,) * 3


async def test_an_exchange_that_only_settles_keeps_the_flags_of_possible_work() -> None:
    state = State()
    state.fetcher.may_have_work = state.fetcher.lanes_not_empty = state.fetcher.flush_due = True
    state.slots.draining = True
    assert state.fetcher.make_request() is RESERVE_NOTHING
    assert (
        state.fetcher.may_have_work,
        state.fetcher.lanes_not_empty,
        state.fetcher.flush_due,
    ) == (True, True, False)


async def test_a_result_with_a_reason_wakes_the_waiter() -> None:
    state = State()
    waiter = asyncio.create_task(state.fetcher.wait_for_reason())
    await asyncio.sleep(0)
    state.settle()
    state.fetcher.note_result()
    async with asyncio.timeout(10):
        await waiter
    assert waiter.done()
