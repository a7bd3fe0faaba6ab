"""What follows when the handler of an attempt has raised: its outcome, and its settlement.

Each kind of handler has an end policy, which its chain names. This module has the ordinary one, and
`run_end.py` that of durable handlers.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable
from random import Random
from typing import Protocol, cast

from msgspec.structs import replace

from nimburion.core.errors import LeaseLost, RemoteError
from nimburion.core.job import AttemptError, ErrorKind
from nimburion.core.lease import Delivery
from nimburion.core.settlement import Completed, Failed, Retried, Settlement
from nimburion.core.timing.clock import Clock
from nimburion.jobs.declaration.registry import Handler
from nimburion.jobs.worker.attempt import outcome as outcomes
from nimburion.jobs.worker.attempt.attempt import Attempt, Interruption
from nimburion.jobs.worker.attempt.outcome import (
    CANCELLED_ON_REQUEST,
    INTERRUPTED,
    AttemptFailed,
    CancelRequested,
    HandlerNotCalled,
    Outcome,
)
from nimburion.jobs.worker.attempt.reporter import AttemptReporter, log_failure, make_extra
from nimburion.jobs.worker.attempt.retry_or_dead_letter import decide_settlement

_log = logging.getLogger("nimburion.worker")

RELEASE_DELAY_AFTER_ERROR = 5.0
"""Seconds until the next attempt of a job that an error inside nimburion kept from starting."""


class EndPolicy(Protocol):
    """Decides what follows when a handler of one kind has raised. The calls come in this order."""

    def classify(self, attempt: Attempt, handler: Handler, raised: BaseException) -> Outcome:
        """Return the outcome. An error that the log shows is kept as `attempt.raised`."""
        ...

    async def settle(
        self, attempt: Attempt, handler: Handler, outcome: Outcome
    ) -> Settlement | None:
        """Log a failure, do what precedes the end of the job, and return the settlement. None: the
        lease is lost.
        """
        ...


class TimedOut(Exception):
    """The handler did not end within its timeout."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class AttemptEnd:
    """The end policy of ordinary handlers: each error is retried as the policy of the job says."""

    def __init__(
        self, clock: Clock, random: Random, reporter: AttemptReporter, *, max_error: int
    ) -> None:
        self._monotonic = clock.monotonic
        self._random = random
        self._reporter = reporter
        self.max_error: int = max_error
        """The maximum size of an error in bytes."""
        self._host = socket.gethostname()
        self.is_worker_aborted: Callable[[], bool] = lambda: False
        """Returns whether code in this process ends the worker: what it interrupts is lost."""

    def read_backend_time(self) -> float:
        """Return the time of the backend's clock, as this worker knows it."""
        return self._monotonic() + self._reporter.backend_time_offset

    # The calls of `EndPolicy`

    def classify(self, attempt: Attempt, handler: Handler, raised: BaseException) -> Outcome:
        """Return the outcome of a handler that raised."""
        kind = type(raised)
        if kind is TimedOut:
            late = cast("TimedOut", raised)
            attempt.raised = late.__cause__
            return outcomes.make_timeout_failure(late.seconds, attempt.delivery.attempt)
        if self.is_lost_with_worker(attempt):
            _log.warning(
                "job %s (%s) was interrupted by the end of its worker, and counts a loss",
                attempt.delivery.lease.job_id,
                attempt.delivery.name,
                extra=make_extra(attempt.delivery),
            )
            attempt.interruption = Interruption.LOST
            return INTERRUPTED
        if issubclass(kind, asyncio.CancelledError):
            return self._classify_cancellation(attempt, cast("asyncio.CancelledError", raised))
        if issubclass(kind, LeaseLost):
            return self._classify_lease_loss(attempt, cast("LeaseLost", raised))
        if is_closing(raised):
            raise raised
        return self._classify_exception(attempt, handler, raised)

    async def settle(
        self, attempt: Attempt, handler: Handler, outcome: Outcome
    ) -> Settlement | None:
        """Return the settlement of an attempt whose handler raised."""
        raised, attempt.raised = attempt.raised, None
        if attempt.completed:
            return _settle_completed(attempt, outcome, raised)
        if attempt.lease_is_lost:
            return None
        settlement = self.decide(attempt, handler, outcome, attempt.delivery)
        if isinstance(settlement, Retried | Failed):
            log_failure(attempt.delivery, settlement, raised)
        return settlement

    # What other end policies use

    def is_lost_with_worker(self, attempt: Attempt) -> bool:
        """Return whether the end of the worker has interrupted the handler: it counts a loss."""
        task = attempt.task
        return (
            task is not None
            and task.cancelling() > 0
            and attempt.interruption is not Interruption.CANCEL
            and self.is_worker_aborted()
        )

    def decide(
        self, attempt: Attempt, handler: Handler, outcome: Outcome, delivery: Delivery
    ) -> Settlement:
        """Return the settlement for an outcome. `delivery` says how often the job has failed."""
        if isinstance(outcome, AttemptFailed):
            outcome = outcome._replace(error=self._add_place(attempt, outcome.error))
        policy, now = handler.policy, self.read_backend_time()
        return decide_settlement(delivery, outcome, policy, self._random, now)

    def describe(
        self, attempt: Attempt, raised: BaseException, kind: ErrorKind = "failure"
    ) -> AttemptError:
        """Return what is stored about an exception, with the place of the attempt."""
        return self._add_place(attempt, self._describe(attempt, raised, kind))

    def _describe(
        self, attempt: Attempt, raised: BaseException, kind: ErrorKind = "failure"
    ) -> AttemptError:
        return outcomes.describe_exception(raised, attempt.delivery.attempt, kind, self.max_error)

    def _add_place(self, attempt: Attempt, error: AttemptError) -> AttemptError:
        """Return the error with the session, the host and the start of the attempt."""
        return replace(
            error,
            session=attempt.session_id,
            host=self._host,
            started_at=attempt.started + self._reporter.backend_time_offset,
        )

    def _classify_cancellation(self, attempt: Attempt, raised: asyncio.CancelledError) -> Outcome:
        match attempt.interruption:
            case Interruption.CANCEL:
                return CancelRequested(CANCELLED_ON_REQUEST)
            case Interruption.STOP | Interruption.LOST:
                return INTERRUPTED
            case None:  # code inside the handler cancelled it: an ordinary failure
                attempt.raised = raised
                return AttemptFailed(self._describe(attempt, raised))

    def _classify_lease_loss(self, attempt: Attempt, lost: LeaseLost) -> Outcome:
        """Return the outcome of a handler that raised LeaseLost.

        If nimburion raised it inside the handler's transaction, the lease is lost and nothing is
        written. If the handler raised it itself, it is an ordinary failure.
        """
        if lost is attempt.lease_lost:
            _log.warning("%s", lost)
            attempt.interruption = Interruption.LOST
            return INTERRUPTED
        attempt.raised = lost
        return AttemptFailed(self._describe(attempt, lost))

    def _classify_exception(
        self, attempt: Attempt, handler: Handler, raised: BaseException
    ) -> Outcome:
        if issubclass(type(raised), HandlerNotCalled):
            _log.error("job %s is released for a while: %s", attempt.delivery.lease.job_id, raised)
            attempt.no_answer = str(raised)
            return outcomes.Snoozed(RELEASE_DELAY_AFTER_ERROR)
        attempt.raised = raised
        if type(raised) is RemoteError:  # the child has classified it
            return AttemptFailed(raised.failure, raised.after)
        if issubclass(type(raised), KeyboardInterrupt) and _may_be_ctrl_c(attempt, raised):
            attempt.keyboard_interrupt = cast("KeyboardInterrupt", raised)
        number = attempt.delivery.attempt
        return outcomes.classify_exception(raised, number, handler.policy, self.max_error)


def is_closing(raised: BaseException) -> bool:
    """Return whether the coroutine is closed outside of any task, so that no task awaits it."""
    if not issubclass(type(raised), GeneratorExit):
        return False
    try:
        return asyncio.current_task() is None
    except RuntimeError:  # no loop runs
        return True


def _may_be_ctrl_c(attempt: Attempt, raised: BaseException) -> bool:
    """Return whether Python may have raised this exception in the handler because of a SIGINT.

    This happens only on the main thread, and only while Python's own signal handler is installed.
    `run()` and `asyncio.run` replace that handler. The exception of a `def` handler comes from
    another thread.
    """
    from_thread = attempt.call is not None and attempt.call.error is raised
    return (
        not from_thread
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


def _settle_completed(
    attempt: Attempt, outcome: Outcome, raised: BaseException | None
) -> Completed:
    """Return the settlement of a job that the handler's own transaction has completed.

    The backend answers this repeated completion with `already` and writes nothing.
    """
    delivery = attempt.delivery
    _log.warning(
        "job %s was completed by its own transaction; its handler ended otherwise afterwards "
        "(%s), which changes nothing",
        delivery.lease.job_id,
        outcome.error.message if isinstance(outcome, AttemptFailed) else type(outcome).__name__,
        exc_info=raised,
        extra=make_extra(delivery),
    )
    return Completed(delivery.lease)
