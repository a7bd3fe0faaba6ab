"""The end policy of durable handlers. Loaded for durable jobs only."""

from __future__ import annotations

import asyncio
import logging
from typing import cast

from msgspec.structs import replace

from nimburion.core.job import Reason
from nimburion.core.settlement import (
    Cancelled,
    Failed,
    Released,
    Retried,
    Settlement,
    Suspended,
)
from nimburion.jobs.declaration.registry import Handler
from nimburion.jobs.durable.cleanup import UndoFailed, end_run
from nimburion.jobs.durable.phase import LOADING, RunCancellation, RunSuspension
from nimburion.jobs.durable.run import DurableRun
from nimburion.jobs.worker.attempt.attempt import Attempt, Interruption
from nimburion.jobs.worker.attempt.attempt_end import AttemptEnd
from nimburion.jobs.worker.attempt.outcome import (
    CANCELLED_ON_REQUEST,
    INTERRUPTED,
    CancelRequested,
    Outcome,
    classify_group,
)
from nimburion.jobs.worker.attempt.reporter import log_failure, make_extra

_log = logging.getLogger("nimburion.worker")


class RunEnd:
    """The end policy of durable handlers: a run may have ended the call itself, and may have to be
    undone. All else is as for an ordinary handler.
    """

    def __init__(self, ordinary: AttemptEnd) -> None:
        self._ordinary = ordinary

    def classify(self, attempt: Attempt, handler: Handler, raised: BaseException) -> Outcome:
        """Return the outcome of a handler that raised, or that its run has ended."""
        ordinary, run = self._ordinary, attempt.run
        if run is None or ordinary.is_lost_with_worker(attempt):
            return ordinary.classify(attempt, handler, raised)
        kind, ending = type(raised), run.state.ending
        if issubclass(kind, asyncio.CancelledError) and ending is not None:
            if type(ending) is RunCancellation and not attempt.must_end:
                return CancelRequested(CANCELLED_ON_REQUEST)
            return INTERRUPTED
        if issubclass(kind, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", raised)
            number, limit = attempt.delivery.attempt, ordinary.max_error
            outcome = classify_group(group, number, handler.policy, limit)
            if outcome is not None:
                attempt.raised = raised
                return outcome
        return ordinary.classify(attempt, handler, raised)

    async def settle(
        self, attempt: Attempt, handler: Handler, outcome: Outcome
    ) -> Settlement | None:
        """Return the settlement, after what the run did is undone if it ends without success."""
        run = attempt.run
        if run is None:  # the handler has returned, and only middleware raised
            return await self._ordinary.settle(attempt, handler, outcome)
        settlement: Settlement | None
        raised, lease = attempt.raised, attempt.delivery.lease
        ending = run.state.ending if outcome is INTERRUPTED else None
        if attempt.completed or attempt.lease_is_lost:
            settlement = await self._ordinary.settle(attempt, handler, outcome)
        elif type(ending) is RunSuspension and not attempt.must_end:
            settlement = Suspended(lease, ending.sources, ending.delay)
            if run.journal.ending is None:  # as nearly always: nothing is undone
                attempt.run = None
                return settlement
        else:
            settlement = self._decide(attempt, run, handler, outcome)
        if run.state.phase is LOADING:
            if attempt.interruption is Interruption.CANCEL:
                # The backend ends it, or another attempt.
                settlement = Released(lease, unstarted=True)
        elif settlement is not None:
            if isinstance(settlement, Retried | Failed):
                run.recorder.forget_errors(raised)
            try:
                settlement = await end_run(run, settlement, raised)
            except UndoFailed as failed:
                settlement = self._settle_undo_failure(attempt, failed)
        attempt.run = None
        return None if attempt.lease_is_lost else settlement

    def _decide(
        self, attempt: Attempt, run: DurableRun, handler: Handler, outcome: Outcome
    ) -> Settlement:
        """Return the settlement before the run is undone, and log a failure.

        If this attempt has stored a step, its failure is the first.
        """
        delivery = attempt.delivery
        raised, attempt.raised = attempt.raised, None
        if run.recorder.has_recorded:
            delivery = replace(delivery, failures=0)
        settlement = self._ordinary.decide(attempt, handler, outcome, delivery)
        if isinstance(settlement, Failed) and _ends_as_cancelled(run, settlement):
            _log.warning(
                "job %s (%s) failed while it was cancelled, and ends as cancelled",
                delivery.lease.job_id,
                delivery.name,
                exc_info=raised,
                extra=make_extra(delivery),
            )
            return Cancelled(delivery.lease, CANCELLED_ON_REQUEST)
        if isinstance(settlement, Retried | Failed):
            log_failure(attempt.delivery, settlement, raised)
        return settlement

    def _settle_undo_failure(self, attempt: Attempt, failed: UndoFailed) -> Failed:
        cause = failed.__cause__ or failed
        error = self._ordinary.describe(attempt, cause)
        error = replace(error, message=f"undo {str(failed)!r}: {error.message}")
        settlement = Failed(attempt.delivery.lease, Reason.UNDO_FAILED, error)
        log_failure(attempt.delivery, settlement, cause)
        return settlement


def _ends_as_cancelled(run: DurableRun, failure: Failed) -> bool:
    """Return whether a cancel was requested, so that a failure of the handler does not count.

    A run that cannot read its steps fails nevertheless: no worker can undo what it did.
    """
    return run.ends_as_cancelled and failure.error.kind != "unreadable"
