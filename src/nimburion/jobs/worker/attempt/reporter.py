"""Counts, logs and announces the start and the end of each attempt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from nimburion.core.events import AttemptEnded, AttemptStarted, Events
from nimburion.core.lease import Delivery
from nimburion.core.metrics.counters import JobCounters, LaneCounters
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    RateLimited,
    Released,
    Retried,
    Settlement,
    Suspended,
)
from nimburion.core.timing.clock import Clock
from nimburion.jobs.worker.attempt.outcome import find_own_traceback

if TYPE_CHECKING:
    from nimburion.jobs.worker.attempt.attempt import Attempt

_log = logging.getLogger("nimburion.worker")

ExcInfo = BaseException | tuple[type[BaseException], BaseException, TracebackType | None]
"""What the standard library logs as `exc_info`."""

_EXCHANGES_PER_COUNT = 32
"""The times of attempts are counted once in 32 exchanges, so their lists stay short."""


ReadExemplar = Callable[[str, int], Mapping[str, str] | None]
"""Returns the labels that link to the trace of an attempt, by job id and attempt; None: none."""


class AttemptReporter:
    """Reports the attempts of one worker to its counters, its log and the subscribers of events.

    Every attempt that `begin` was called for is reported by `end` once, however it ends. An error
    of a log handler or subscriber of the application changes nothing about the attempt.
    """

    def __init__(
        self,
        counters: JobCounters,
        events: Events,
        clock: Clock,
        *,
        log_attempts: Literal["debug", "info"],
        read_exemplar: ReadExemplar = lambda *_: None,
    ) -> None:
        self._counters = counters
        self._events = events
        self._clock = clock
        self._monotonic = clock.monotonic
        self._read_exemplar = read_exemplar
        self._log_level = logging.INFO if log_attempts == "info" else logging.DEBUG
        self.backend_time_offset: float = clock.now() - clock.monotonic()
        """The backend's clock less the monotonic clock, in seconds."""
        self._exchanges = 0
        self._logs_attempts = self._has_listeners = True  # until the first exchange

    def note_exchange(self, backend_time: float) -> None:
        """Do what is due once per exchange, because it costs too much for each attempt.

        Correct the backend's time, read whether the start and end of attempts are logged or
        subscribed to, and sometimes count the times that the attempts noted.
        """
        self.backend_time_offset = backend_time - self._monotonic()
        self._exchanges += 1
        if self._exchanges % _EXCHANGES_PER_COUNT == 0:
            self._counters.list_lanes()
        self._logs_attempts = _log.isEnabledFor(self._log_level)
        self._has_listeners = (
            self._logs_attempts
            or AttemptStarted in self._events.wanted
            or AttemptEnded in self._events.wanted
        )

    def find_lane(self, lanes: dict[str, LaneCounters], delivery: Delivery) -> LaneCounters:
        """Return the counters of the delivery's queue and name, and keep them in `lanes`."""
        lane = self._counters.get_lane(delivery.queue, delivery.name)
        if lane.queue == delivery.queue:
            lanes[delivery.queue] = lane
        return lane

    def count_expired(self, delivery: Delivery, lanes: dict[str, LaneCounters]) -> None:
        """Count and log a job that is cancelled because it did not start in time."""
        lane = lanes.get(delivery.queue) or self.find_lane(lanes, delivery)
        lane.cancelled += 1
        late = self._monotonic() + self.backend_time_offset - delivery.due
        log_safely(
            logging.INFO,
            "job %s %s expired: it was due %.1f s ago; it is cancelled",
            delivery.name,
            delivery.lease.job_id,
            late,
            extra=make_extra(delivery),
        )

    def begin(self, attempt: Attempt, lane: LaneCounters) -> None:
        """Report that an attempt starts now; its time is `attempt.started`."""
        attempt.lane = lane
        waited = attempt.started + self.backend_time_offset - attempt.delivery.due
        lane.waits.append(waited)
        if self._has_listeners:
            self._announce_start(attempt.delivery, max(0.0, waited))

    def end(
        self, attempt: Attempt, settlement: Settlement | None, error: str | None = None
    ) -> None:
        """Report that an attempt has ended with this settlement; None: its lease was lost.

        `error` is the name of the exception's type. Does nothing for an attempt that has not begun
        or is reported already.
        """
        lane, attempt.lane = attempt.lane, None
        if lane is None:
            return
        attempt.ended = ended = self._monotonic()
        duration = ended - attempt.started
        if type(settlement) is Completed:
            lane.completed_runs.append(duration)
        else:
            lane.other_runs.append(duration)
            _count_settlement(lane, settlement)
        if self._has_listeners:
            labels = self._read_exemplar(attempt.delivery.lease.job_id, attempt.delivery.attempt)
            if labels is not None:
                lane.note_exemplar(labels, duration, self._clock.now())
            self._announce_end(attempt.delivery, settlement, error, duration)

    def _announce_start(self, delivery: Delivery, waited: float) -> None:
        if self._logs_attempts:
            log_safely(
                self._log_level,
                "job %s %s: attempt %d starts",
                delivery.name,
                delivery.lease.job_id,
                delivery.attempt,
                extra=make_extra(delivery),
            )
        self._events.emit(
            AttemptStarted(
                delivery.lease.job_id, delivery.name, delivery.queue, delivery.attempt, waited
            )
        )

    def _announce_end(
        self,
        delivery: Delivery,
        settlement: Settlement | None,
        error: str | None,
        duration: float,
    ) -> None:
        outcome = _name_outcome(settlement)
        if self._logs_attempts:
            log_safely(
                self._log_level,
                "job %s %s: attempt %d ended after %.3f s: %s",
                delivery.name,
                delivery.lease.job_id,
                delivery.attempt,
                duration,
                outcome,
                extra={**make_extra(delivery), "duration": duration, "outcome": outcome},
            )
        self._events.emit(
            AttemptEnded(
                delivery.lease.job_id,
                delivery.name,
                delivery.queue,
                delivery.attempt,
                outcome,
                duration,
                error,
            )
        )


def log_failure(
    delivery: Delivery, settlement: Retried | Failed, raised: BaseException | None
) -> None:
    """Log one record about the failure, with the exception attached for error trackers."""
    error = settlement.error
    what = f"{error.type}: {error.message}".partition("\n")[0]
    if isinstance(settlement, Retried):
        level, then = logging.WARNING, f"retrying in {settlement.delay:.1f} s"
    else:
        level, then = logging.ERROR, f"it is a dead letter now ({settlement.reason})"
    log_safely(
        level,
        "job %s %s: attempt %d failed (%s); %s",
        delivery.name,
        delivery.lease.job_id,
        error.attempt,
        what,
        then,
        extra=make_extra(delivery),
        raised=raised,
        own_frames=True,
    )


def log_safely(
    level: int,
    text: str,
    *values: object,
    extra: dict[str, object] | None = None,
    raised: BaseException | None = None,
    own_frames: bool = False,
) -> None:
    """Log a record; an error of a filter, a handler or the exception's own text is suppressed.

    With `own_frames`, the traceback begins with the code of the application. If the record cannot
    be logged with its exception, it is logged without.
    """
    try:
        found = _make_exc_info(raised, own_frames=own_frames)
        _log.log(level, text, *values, exc_info=found, extra=extra)
    except BaseException:  # noqa: BLE001 - an exception that cannot even be formatted
        with suppress(BaseException):
            _log.log(level, text, *values, extra=extra)


def _make_exc_info(raised: BaseException | None, *, own_frames: bool) -> ExcInfo | None:
    if raised is None or not own_frames:
        return raised
    return type(raised), raised, find_own_traceback(raised)


def make_extra(delivery: Delivery) -> dict[str, object]:
    """Return the `extra` fields of every log record about an attempt."""
    return {
        "job_id": delivery.lease.job_id,
        "job_name": delivery.name,
        "queue": delivery.queue,
        "attempt": delivery.attempt,
    }


def _name_outcome(settlement: Settlement | None) -> str:
    """Return the outcome of an attempt for people. None: the lease was lost."""
    if settlement is None:
        return "lost"
    kind = Released if isinstance(settlement, RateLimited) else type(settlement)
    return kind.__name__.lower()


def _count_settlement(lane: LaneCounters, settlement: Settlement | None) -> None:
    """Count an attempt that did not complete its job. None: the lease was lost."""
    match settlement:
        case Retried():
            lane.retried += 1
        case Failed(reason=reason):
            lane.failed += 1
            lane.count_dead_letter(reason)
        case Cancelled():
            lane.cancelled += 1
        case Released() | RateLimited() | Suspended():
            lane.released += 1
        case _:
            lane.lost += 1
