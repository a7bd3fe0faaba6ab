"""Warns about handlers that were told to end and continue.

A thread cannot be stopped, and an `async def` handler may catch its cancellation. Such a handler
keeps its slot, so the worker runs fewer jobs at a time until it returns.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable

from nimburion.jobs.worker.attempt.attempt import Attempt, Interruption
from nimburion.jobs.worker.attempt.handler_stacks import read_stack
from nimburion.jobs.worker.attempt.reporter import make_extra

_log = logging.getLogger("nimburion.worker")

WARN_AFTER = 5.0
"""Seconds that a handler may continue after it was told to end, before a warning is logged.

The check is made with the heartbeats of the session, so the warning comes up to two of them later.
"""

_THREAD_ADVICE = (
    'a thread cannot be stopped: let the handler check ctx.cancelled, or use execution="process", '
    "whose process is killed"
)
_TASK_ADVICE = (
    "the handler catches asyncio.CancelledError: let it raise the exception again, or use "
    'execution="process", whose process is killed'
)


class UnresponsiveHandlers:
    """Logs handlers that keep their slots although they were told to end.

    Args:
        concurrency: the number of slots of the worker.
        monotonic: returns seconds.
    """

    def __init__(self, concurrency: int, monotonic: Callable[[], float]) -> None:
        self._concurrency = concurrency
        self._monotonic = monotonic
        self._seen_at: dict[Attempt, float] = {}
        """When each attempt was first seen to continue; infinite once that is logged."""

    def report_kept_slot(self, attempt: Attempt, running: Iterable[Attempt]) -> None:
        """Log that an attempt is settled while a thread still runs its handler."""
        self._seen_at[attempt] = math.inf
        kept = sum(each.in_thread and (each.settled or each.lease_is_lost) for each in running)
        self._warn(
            attempt,
            f"its attempt has ended, and its thread continues. It keeps its slot until it returns "
            f"({kept} of {self._concurrency} slots are kept in this way); {_THREAD_ADVICE}",
        )

    def report_return(self, attempt: Attempt) -> None:
        """Log that the handler of such an attempt has returned."""
        delivery = attempt.delivery
        _log.info(
            "job %s %s: its thread has returned %.1f s after its start; its slot is free",
            delivery.name,
            delivery.lease.job_id,
            self._monotonic() - attempt.started,
            extra=make_extra(delivery),
        )

    def check(self, running: Iterable[Attempt]) -> None:
        """Log each attempt that continues `WARN_AFTER` seconds after it was told to end, once."""
        now = self._monotonic()
        interrupted = [each for each in running if not each.settled and _is_interrupted(each)]
        self._seen_at = {each: self._seen_at.get(each, now) for each in interrupted}
        for attempt, seen_at in self._seen_at.items():
            if now - seen_at >= WARN_AFTER:
                self._seen_at[attempt] = math.inf
                advice = _THREAD_ADVICE if attempt.in_thread else _TASK_ADVICE
                self._warn(
                    attempt,
                    f"{_describe_reason(attempt)} more than {now - seen_at:.0f} s ago, and its "
                    f"handler continues. It keeps its slot and its lease until it returns; "
                    f"{advice}",
                )

    def _warn(self, attempt: Attempt, text: str) -> None:
        delivery = attempt.delivery
        if not _log.isEnabledFor(logging.WARNING):
            return
        record = _log.makeRecord(
            _log.name,
            logging.WARNING,
            __file__,
            0,
            "job %s %s: %s",
            (delivery.name, delivery.lease.job_id, text),
            None,
            extra=make_extra(delivery),
            sinfo=_format_stack(attempt),
        )
        _log.handle(record)


def _is_interrupted(attempt: Attempt) -> bool:
    return attempt.cancel_requested or _has_timed_out(attempt)


def _has_timed_out(attempt: Attempt) -> bool:
    return attempt.timeout is not None and attempt.timeout.limit.expired()


def _describe_reason(attempt: Attempt) -> str:
    match attempt.interruption:
        case Interruption.CANCEL:
            return "it was cancelled"
        case Interruption.LOST:
            return "its lease was lost"
        case Interruption.STOP:
            return "the worker began to stop"
        case None:
            return "its timeout passed"


def _format_stack(attempt: Attempt) -> str | None:
    """Return the stack of the handler, as far as it can be found. Call this on the loop."""
    _, stack = read_stack(attempt, threading.get_ident())
    return f"Stack of the handler:\n{stack}" if stack else None
