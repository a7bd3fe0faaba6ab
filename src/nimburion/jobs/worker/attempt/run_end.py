"""What is particular to the end of an attempt at a durable run. Loaded for durable jobs only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from msgspec.structs import replace

from nimburion.core.job import AttemptError, Reason
from nimburion.core.settlement import (
    Cancelled,
    Failed,
    Released,
    Retried,
    Settlement,
)
from nimburion.jobs.durable.cleanup import UndoFailed, end_run
from nimburion.jobs.durable.phase import LOADING, RunCancellation, RunSuspension
from nimburion.jobs.durable.run import DurableRun
from nimburion.jobs.worker.attempt.attempt import Attempt, Interruption
from nimburion.jobs.worker.attempt.outcome import (
    CANCELLED_ON_REQUEST,
    INTERRUPTED,
    CancelRequested,
    Outcome,
    RunSuspended,
)
from nimburion.jobs.worker.attempt.reporter import log_failure, make_extra

_log = logging.getLogger("nimburion.worker")


def read_run_outcome(attempt: Attempt, run: DurableRun, raised: BaseException) -> Outcome | None:
    """Return the outcome of a handler that its run has interrupted; None if it has not."""
    ending = run.state.ending
    if ending is None or attempt.must_end or not issubclass(type(raised), asyncio.CancelledError):
        return None
    if isinstance(ending, RunSuspension):
        return RunSuspended(ending.sources, ending.delay)
    return CancelRequested(CANCELLED_ON_REQUEST) if type(ending) is RunCancellation else INTERRUPTED


def cancel_instead(
    attempt: Attempt, run: DurableRun, settlement: Settlement, raised: BaseException | None
) -> Settlement:
    """Return `Cancelled` in place of the failure of a run that ends as cancelled."""
    if (
        not run.ends_as_cancelled
        or not isinstance(settlement, Failed)
        or settlement.error.kind == "unreadable"
    ):
        return settlement
    _log.warning(
        "job %s (%s) failed while it was cancelled, and ends as cancelled",
        attempt.delivery.lease.job_id,
        attempt.delivery.name,
        exc_info=raised,
        extra=make_extra(attempt.delivery),
    )
    return Cancelled(attempt.delivery.lease, CANCELLED_ON_REQUEST)


async def end_run_attempt(
    attempt: Attempt,
    run: DurableRun,
    settlement: Settlement | None,
    raised: BaseException | None,
    describe: Callable[[BaseException], AttemptError],
) -> Settlement | None:
    """Return the settlement of an attempt at a run, after what must be done at the run's end."""
    if run.state.phase is LOADING:
        if attempt.interruption is Interruption.CANCEL:  # the backend ends it, or another attempt
            settlement = Released(attempt.delivery.lease, unstarted=True)
    elif settlement is not None:
        if isinstance(settlement, Retried | Failed):
            run.recorder.forget_errors(raised)
        try:
            settlement = await end_run(run, settlement, raised)
        except UndoFailed as failed:
            settlement = _settle_undo_failure(attempt, failed, describe)
    attempt.run = None
    return None if attempt.lease_is_lost else settlement


def _settle_undo_failure(
    attempt: Attempt, failed: UndoFailed, describe: Callable[[BaseException], AttemptError]
) -> Failed:
    cause = failed.__cause__ or failed
    error = describe(cause)
    error = replace(error, message=f"undo {str(failed)!r}: {error.message}")
    settlement = Failed(attempt.delivery.lease, Reason.UNDO_FAILED, error)
    log_failure(attempt.delivery, settlement, cause)
    return settlement
