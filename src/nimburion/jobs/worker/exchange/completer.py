"""Sends settlements to the backend and receives deliveries, one exchange at a time.

Settlements that arrive during an exchange go with the next one. So batches grow under load, and a
single settlement is sent immediately when the worker is idle. An unanswered exchange is repeated
under its number until it is answered. If it fails for too long, the session ends.

A repeat may be smaller: it carries a prefix of the same settlements and requests fewer bytes. This
is safe although the worker does not know whether the backend applied an earlier try. The backend
applies each number once, and its results say how many settlements it applied. The others go with
the next number. The backend takes back deliveries for which the repeat has no room: the worker
received no reply that contained them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from nimburion.core.backend import Consuming
from nimburion.core.errors import (
    BackendError,
    LeaseLost,
    NotSupported,
    OutOfOrder,
    SessionLost,
    Unstorable,
)
from nimburion.core.events import BackendUnreachable, Events, StaleSettlement
from nimburion.core.exchange import RESERVE_NOTHING, Reply, ReserveRequest
from nimburion.core.job import AttemptError, Reason
from nimburion.core.lease import Lease
from nimburion.core.result_errors import decode_result_error, encode_result_error
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    RateLimited,
    Recorded,
    Released,
    Retried,
    Settled,
    Settlement,
    Spent,
    Suspended,
)
from nimburion.core.size_limits import SizeLimits
from nimburion.core.text.shortening import clean_text
from nimburion.core.timing.clock import Clock
from nimburion.core.timing.pauses import iterate_pauses
from nimburion.jobs.handling.attempt_record import StepAnswer
from nimburion.jobs.worker.connectivity import BackendConnectivity
from nimburion.jobs.worker.exchange.exchange_size import MAX_SETTLEMENTS, ExchangeSize

_log = logging.getLogger("nimburion.worker")

_FIRST_PAUSE = 0.05
"""Seconds between the first two tries of an exchange."""
_LONGEST_PAUSE = 2.0
"""The longest time in seconds between two tries."""
_REDUCE_AFTER_FAILING_ALONE = 0.5
"""A fraction of the time until the session ends.

After this time, a settlement that failed alone while heartbeats are answered is sent without its
large parts.
"""
_REDUCE_AFTER = 0.75
"""A fraction of the same time. After it, a single settlement is sent without its large parts even
if it was not tried alone before: another failed try would cost the session.
"""
_REDUCED_SIZE = 512
"""The most bytes of a result, or characters of an error, that are sent whatever failed.

If so little does not get through, its size is not the cause.
"""
_FINAL_ERRORS = (SessionLost, Unstorable, OutOfOrder, NotSupported)
"""Errors that a repetition of the exchange cannot change."""


class Completer:
    """The settlements of one session, sent to the backend in order, each applied once."""

    def __init__(
        self,
        consuming: Consuming,
        session_id: str,
        clock: Clock,
        events: Events,
        connectivity: BackendConnectivity,
        *,
        size: ExchangeSize | None = None,
        max_unsettled: int = SizeLimits().unsettled,
        give_up_after: float = math.inf,
    ) -> None:
        self._consuming = consuming
        self.session_id = session_id
        self._clock = clock
        self._events = events
        self._connectivity = connectivity
        self._number = 0
        self._size = size or ExchangeSize(SizeLimits().exchange)
        self._max_unsettled = max_unsettled
        self._give_up_after = give_up_after
        self._unsettled = 0
        """Bytes of results and errors that are not sent or not answered yet."""
        self.is_full: bool = False
        """Whether more than `max_unsettled` bytes wait: no further job should start."""
        self._progress: dict[Lease, Progressed] = {}
        self._awaited: dict[int, StepAnswer] = {}
        """What gets the answers to steps, by the identity of their settlement."""
        self.is_awaited: bool = False
        """Whether a handler waits for a step that is not on its way."""
        self.has_answered: bool = False
        """Whether the last reply has let durable runs continue."""
        self.pending: list[Settlement] = []
        self.in_flight: bool = False
        """Whether an exchange was sent and is not answered yet."""
        self.last_seconds: float = 0.0
        """How long the backend took for the last exchange that did not wait for a job."""
        self.unanswered: tuple[list[Settlement], ReserveRequest] | None = None
        """The content of a cancelled exchange, or None.

        The backend may have applied it. So it is repeated unchanged, under its number, before any
        other exchange.
        """
        self.closed: bool = False
        """Whether the session ends: nothing is sent or repeated any more."""
        self.is_connection_slow: bool = False
        """Whether it ends because exchanges failed for too long although heartbeats were answered.
        """

    def settle(self, settlement: Settlement) -> None:
        """Send this settlement with the next exchange."""
        self.pending.append(settlement)
        if type(settlement) is not Completed or settlement.result is not None:
            self._count(self._unsettled + measure_size(settlement))

    def record(self, recorded: Recorded, answer: StepAnswer, *, is_awaited: bool) -> None:
        """Send a step of a durable run with the next exchange. `answer` gets what the backend says,
        unless the session ends first. `is_awaited`: whether a handler waits for it.
        """
        self.is_awaited = self.is_awaited or is_awaited
        self._awaited[id(recorded)] = answer
        self.pending.append(recorded)  # as `settle` does, without its calls
        self._unsettled += len(recorded.body)
        if self._unsettled > self._max_unsettled:
            self.is_full = True

    def report_progress(self, progress: Progressed) -> None:
        """Send this report with the next exchange. It replaces an older report for the lease."""
        self._progress[progress.lease] = progress

    @property
    def has_pending(self) -> bool:
        """Whether any settlement or progress report waits to be sent."""
        return bool(self.pending or self._progress or self.unanswered)

    @property
    def all_stored(self) -> bool:
        """Whether the backend has answered for every settlement: none waits or is in flight."""
        return not (self.pending or self.unanswered or self.in_flight)

    async def exchange(self, request: ReserveRequest) -> Reply:
        """Make one exchange: send the pending settlements (limited in size) with `request`.

        Returns the backend's reply. Raises `SessionLost` if the session is over, or if exchanges
        failed for so long that this worker ended it.
        """
        batch, request = self.unanswered or (self._take_batch(), request)
        self.unanswered, self.in_flight = None, True
        try:
            reply = await self._send(batch, request)
        except asyncio.CancelledError:
            self.unanswered = batch, request
            raise
        finally:
            self.in_flight = False
        if self._unsettled:
            self._count(sum(map(measure_size, self.pending)))
        return reply

    def _count(self, unsettled: int) -> None:
        self._unsettled = unsettled
        self.is_full = unsettled > self._max_unsettled

    def _take_batch(self) -> list[Settlement]:
        batch: list[Settlement] = list(self._progress.values())
        self._progress.clear()
        batch += self.pending[:MAX_SETTLEMENTS]
        del self.pending[:MAX_SETTLEMENTS]
        self.is_awaited = self.is_awaited and bool(self.pending)
        part = self._take_part(batch)
        if len(part) < len(batch):
            self._return(batch[len(part) :])
        return part

    def _take_part(self, batch: list[Settlement]) -> list[Settlement]:
        """Return the prefix of `batch` that fits one exchange now: at least one item."""
        size = self._size
        if size.is_whole and self._unsettled <= size.max_bytes:
            return batch
        return batch[: count_fitting(batch, size.max_settlements, size.max_bytes)]

    def _return(self, rest: Sequence[Settlement]) -> None:
        """Put settlements that were not sent or not applied back in front of all others."""
        self.is_awaited = bool(self._awaited)
        settled = []
        for settlement in rest:
            if isinstance(settlement, Progressed):
                self._progress.setdefault(settlement.lease, settlement)
            else:
                settled.append(settlement)
        self.pending[:0] = settled

    async def _send(self, batch: list[Settlement], request: ReserveRequest) -> Reply:
        """Exchange `batch`, and isolate settlements whose data the backend refuses.

        A refused batch is split in halves. A single settlement that cannot be stored is replaced.
        """
        try:
            return await self._exchange_until_answered(batch, request)
        except Unstorable as error:
            if not batch:
                raise
            if isinstance(batch[0], Recorded) and len(batch) == 1:
                answer = self._awaited.pop(id(batch[0]), None)
                if answer is not None:
                    answer.note_failure(error)
                return await self._exchange_until_answered([], request)
            if len(batch) == 1:
                return await self._exchange_until_answered(
                    [_replace_unstorable(batch[0], error)], request
                )
            half = len(batch) // 2
            await self._send(batch[:half], RESERVE_NOTHING)
            return await self._send(batch[half:], request)

    async def _exchange_until_answered(  # noqa: C901 - no call more for each exchange
        self, batch: list[Settlement], request: ReserveRequest
    ) -> Reply:
        pauses: Iterator[float] | None = None
        monotonic = self._clock.monotonic
        began = sent = monotonic()
        part, part_request = self._take_part(batch), request
        if request.total:
            part_request = replace(request, max_bytes=self._size.max_bytes)
        while not self.closed:
            left = self._give_up_after - (sent - began)
            try:
                async with asyncio.timeout(None if left == math.inf else max(0.0, left)):
                    reply = await self._consuming.exchange(
                        self.session_id, self._number + 1, part, part_request
                    )
            except _FINAL_ERRORS:
                self._connectivity.note_answer("exchange")
                raise
            except (BackendError, TimeoutError) as error:
                now = monotonic()
                pauses = pauses or iterate_pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
                pause = next(pauses)
                self._size.note_failure(now - sent)
                self._note_failure(error, pause)
                if self._give_up_if_failing(error, now + pause - began):
                    break
                await self._clock.sleep(pause)
                sent = monotonic()
                part, part_request = self._prepare_repeat(
                    batch, request, sent - began, failed_alone=len(part) == 1
                )
            else:
                seconds = monotonic() - sent
                if not self._size.is_whole:
                    self._size.note_answer(seconds)
                waited = part_request.long_poll > 0
                if not waited:
                    self.last_seconds = seconds
                self._connectivity.note_answer("exchange", None if waited else seconds)
                self._connectivity.calls.exchange_jobs.observe((len(reply.deliveries),))
                self._number += 1
                applied = len(reply.results)
                if applied < len(batch):
                    self._return(batch[applied:])
                if Settled.STALE in reply.results:
                    self._report_stale(batch, reply)
                self.has_answered = bool(self._awaited)
                if self.has_answered:
                    answer_steps(self._awaited, batch, reply)
                return reply
        raise SessionLost(self.session_id)

    def _prepare_repeat(
        self,
        batch: list[Settlement],
        request: ReserveRequest,
        failed_for: float,
        *,
        failed_alone: bool,
    ) -> tuple[list[Settlement], ReserveRequest]:
        """Return the settlements and the reserve request of the next try."""
        part = self._take_part(batch)
        if request.total:  # without a long poll: the awaited job may have arrived
            request = replace(request, max_bytes=self._size.max_bytes, long_poll=0.0)
        reduce_after = _REDUCE_AFTER_FAILING_ALONE if failed_alone else _REDUCE_AFTER
        if (
            len(part) == 1
            and failed_for > reduce_after * self._give_up_after
            and not self._connectivity.is_unreachable
        ):
            # No deliveries: all of the time is left for the settlement.
            return [_reduce(part[0])], replace(request, total=0)
        return part, request

    def _note_failure(self, error: Exception, pause: float) -> None:
        self._connectivity.note_failure("exchange", error)
        self._events.emit(BackendUnreachable(str(error)))
        what = f"{type(error).__name__}: {error}"
        _log.debug("an exchange failed (%s); retrying in %.2f s", what, pause)

    def _give_up_if_failing(self, error: Exception, failed_for: float) -> bool:
        """Close the completer after `give_up_after` seconds of failures; return whether it did.

        Other workers can then run the jobs of this session, even if its heartbeats are still
        answered.
        """
        if failed_for < self._give_up_after:
            return False
        if not self.closed:
            self.closed = True
            self.is_connection_slow = not self._connectivity.is_unreachable
            _log.error(
                "session %s ends: no exchange with the backend succeeded for %.0f s (%s). "
                "Its jobs return to the queue",
                self.session_id,
                failed_for,
                self._connectivity.describe_error(error),
            )
        return True

    def _report_stale(self, batch: list[Settlement], reply: Reply) -> None:
        """Report the outcomes that were not written.

        A late progress report is none: a thread may send it after its attempt has timed out.
        """
        for settlement, result in zip(batch, reply.results, strict=False):
            if result is Settled.STALE and not isinstance(settlement, Progressed | Spent):
                self._events.emit(StaleSettlement(settlement.lease.job_id))
                _log.warning(
                    "job %s is not held by this worker any more; its outcome was not written",
                    settlement.lease.job_id,
                )


def answer_steps(awaited: dict[int, StepAnswer], batch: Sequence[Settlement], reply: Reply) -> None:
    """Tell durable runs which of their steps are stored, and when.

    `awaited`: what gets the answers, by the identity of the settlement. Those answered are removed.
    """
    for settlement, result in zip(batch, reply.results, strict=False):
        answer = awaited.pop(id(settlement), None)
        if answer is None:
            continue
        if result is Settled.STALE:
            answer.note_failure(LeaseLost(settlement.lease.job_id))
        else:
            answer.note_stored(reply.now)


def _replace_unstorable(settlement: Settlement, error: Unstorable) -> Settlement:
    """Return a replacement for a settlement that cannot be stored, so that exchanges can continue.

    A progress report loses its message. A dead letter is released for 60 s instead. Any other
    outcome becomes a dead letter with reason `unstorable`.
    """
    _log.error("the outcome of job %s cannot be stored: %s", settlement.lease.job_id, error)
    if isinstance(settlement, Progressed):
        return Progressed(settlement.lease, settlement.fraction)
    if isinstance(settlement, Failed):
        return Released(settlement.lease, delay=60.0)
    message = clean_text(f"the outcome of the attempt cannot be stored: {error}", 1024)
    report = AttemptError(attempt=0, kind="unstorable", type="Unstorable", message=message)
    return Failed(settlement.lease, Reason.UNSTORABLE, report)


def measure_size(  # noqa: PLR0911 - one for each kind
    settlement: Settlement,
) -> int:
    """Return the approximate size of a settlement in bytes, without its lease."""
    match settlement:
        case Completed():
            return len(settlement.result or b"")
        case Retried() | Failed():
            return len(settlement.error.message) + len(settlement.error.traceback)
        case Progressed():
            return len(settlement.message)
        case Cancelled():
            return len(settlement.reason)
        case Recorded():
            return len(settlement.body)
        case Suspended():
            return sum(len(source.id) for source in settlement.sources)
        case Released() | RateLimited() | Spent():
            return 0


def count_fitting(batch: Sequence[Settlement], most: int, max_bytes: int) -> int:
    """Return the length of the longest prefix within `most` items and `max_bytes` bytes.

    At least 1, unless `batch` is empty.
    """
    count = 0
    for settlement in batch[:most]:
        max_bytes -= measure_size(settlement)
        if max_bytes < 0 and count:
            break
        count += 1
    return count


def _reduce(settlement: Settlement) -> Settlement:
    """Return the same outcome without its large parts, which are results and texts of errors.

    Used when the settlement did not get through alone: the outcome is worth more than these parts.
    """
    if measure_size(settlement) <= _REDUCED_SIZE:
        return settlement
    match settlement:
        case Completed(_, bytes(result)) if not decode_result_error(result):
            reason = f"the connection is too slow for its {len(result)} bytes"
            _log.warning("the result of job %s is not stored: %s", settlement.lease.job_id, reason)
            return replace(settlement, result=encode_result_error(reason))
        case Retried() | Failed():
            error = settlement.error
            short = replace(error, message=error.message[:_REDUCED_SIZE], traceback="")
            return replace(settlement, error=short)
        case _:
            return settlement
