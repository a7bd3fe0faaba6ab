"""One attempt at one job: its state, and the ways to interrupt it."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from nimburion.core.metrics.counters import LaneCounters
from nimburion.jobs.handling.attempt_record import AttemptRecord
from nimburion.jobs.handling.context import Context
from nimburion.jobs.worker.attempt.threads import ThreadCall

if TYPE_CHECKING:
    from nimburion.jobs.worker.attempt.batch_run import BatchRun
    from nimburion.jobs.worker.children.process import Child


class AttemptTimeout(NamedTuple):
    """The timeout of a running attempt."""

    limit: asyncio.Timeout
    seconds: float
    monotonic: Callable[[], float]


class Interruption(enum.Enum):
    """The reason why an attempt was interrupted."""

    STOP = "stop"
    """The worker stops: release the job without counting an attempt."""
    CANCEL = "cancel"
    """A user cancelled the job."""
    LOST = "lost"
    """The lease is lost: write nothing."""


class Attempt(AttemptRecord):
    """One attempt at one job, with the state that the worker and its watchdog need."""

    batch_run: BatchRun | None = None
    """The attempts that share one call of a batch handler, and one slot; None for other jobs."""
    settled: bool = False
    """Whether the settlement was handed to the completer or stored by a transaction of a hook, or
    the lease was released."""
    started: float = 0.0
    """When the attempt started, in seconds of the monotonic clock. The worker sets it."""
    lane: LaneCounters | None = None
    """The counters that the end of the attempt is reported to; None unless it runs."""
    ended: float = 0.0
    """When its handler ended, likewise."""
    context: Context | None = None
    """The context of the handler; None before it starts and after the attempt has ended."""
    call: ThreadCall | None = None
    """The thread call of a `def` handler, or the latest of a step; None for a coroutine."""
    step_calls: Sequence[ThreadCall] = ()
    """The thread calls of the steps of a durable run that have not ended."""
    child: Child | None = None
    """The child process that runs the handler; None if none does."""
    timeout: AttemptTimeout | None = None
    """The running timeout of the attempt."""
    interruption: Interruption | None = None
    keyboard_interrupt: KeyboardInterrupt | None = None
    """A Ctrl-C raised inside the handler. It stops the process after the attempt is settled."""
    raised: BaseException | None = None
    """The exception of the handler.

    Cleared after it is logged, because its traceback refers to the attempt.
    """

    @property
    def lease_is_lost(self) -> bool:
        """Whether the lease is lost; then nothing may be written about the attempt."""
        return self.interruption is Interruption.LOST

    @property
    def must_end(self) -> bool:
        """Whether the worker stops or has lost the lease, so that the attempt must end now."""
        return self.interruption in (Interruption.STOP, Interruption.LOST)

    @property
    def cancelled_by_others(self) -> bool:
        """Whether code other than the worker cancelled the handler's task.

        This counts as a failure, even if the worker stops at the same time.
        """
        return self.interruption is None and self.task is not None and self.task.cancelling() > 0

    def stop_timeout(self) -> None:
        """Let no time count towards the timeout until `start_timeout`."""
        if self.timeout is not None:
            self.timeout.limit.reschedule(None)

    def start_timeout(self) -> None:
        """Start the whole timeout of the attempt now, also in its context."""
        if self.timeout is not None and self.context is not None:
            seconds, monotonic = self.timeout.seconds, self.timeout.monotonic
            self.timeout.limit.reschedule(asyncio.get_running_loop().time() + seconds)
            self.context.deadline = monotonic() + seconds

    @property
    def in_thread(self) -> bool:
        """Whether a thread still runs the handler or a step, even if nothing awaits its result."""
        return self.find_thread_call() is not None

    def find_thread_call(self) -> ThreadCall | None:
        """Return a thread call that has not ended; None if there is none."""
        call = self.call
        if call is not None and not call.finished:
            return call
        for one in self.step_calls:
            if not one.finished:
                return one
        return None

    def add_step_call(self, call: ThreadCall) -> None:
        """Note that a thread calls the function of a step, maybe beside others."""
        self.step_calls = (*self.step_calls, call)
        self.call = call

    def forget_ended_calls(self) -> None:
        """Drop the thread calls of steps that have ended: they refer to the attempt."""
        self.step_calls = [one for one in self.step_calls if not one.finished]

    def clear(self) -> None:
        """Break the reference cycles of an ended attempt.

        Otherwise the garbage collector takes a sixth of the engine's time (measured).
        """
        self.context = self.call = self.timeout = None
        super().clear()

    def interrupt(self, interruption: Interruption) -> None:
        """Request the end of the attempt.

        A coroutine is cancelled. A thread cannot be: its context is marked as cancelled, and the
        worker waits for it unless the lease is lost.
        """
        if self.lease_is_lost:
            return
        if interruption is not Interruption.STOP or not self.cancelled_by_others:
            self.interruption = interruption
        if self.context is None:  # not started: `perform` checks `interruption`
            return
        self.cancel_requested = True
        if self.run is not None and interruption is Interruption.CANCEL:
            self.run.request_cancel()  # a step that works may end
            return
        if self.task is not None and (interruption is Interruption.LOST or not self.in_thread):
            self.task.cancel()
