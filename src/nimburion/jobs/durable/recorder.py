"""Sends the entries of a durable run to the backend, and notes when they are stored."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple, cast

from msgspec import Struct, field

from nimburion.core.errors import InvalidStep, LeaseLost
from nimburion.core.runs import CLEANUP_STEP
from nimburion.core.settlement import Recorded
from nimburion.jobs.durable.journal import (
    OPERATIONS,
    AnyEntry,
    CleanupEntry,
    ForgottenEntry,
    Journal,
    StoredEntry,
    encode_entry,
    get_kind,
)
from nimburion.jobs.durable.phase import CLEANING, CLOSED, RunState
from nimburion.jobs.handling.attempt_record import AttemptRecord

if TYPE_CHECKING:
    from nimburion.jobs.durable.services import RunServices
    from nimburion.jobs.worker.attempt.attempt import Attempt

_log = logging.getLogger("nimburion.worker")

MAX_STEPS = 10_000
"""The most steps of a run."""
MAX_BYTES = 16 * 1024 * 1024
"""The maximum size of the steps of a run: each attempt reads them all."""
WARN_AT_STEPS = 1_000
"""When a run has this many steps, the log suggests `ctx.restart` or child jobs."""


class SentEntry(StoredEntry, eq=False, kw_only=True):
    """An entry that was sent to the backend, and the answer."""

    record: AttemptRecord | None
    """The attempt that has sent it; None if the answer is here."""
    error: Exception | None = None
    """Why it is not stored."""
    future: asyncio.Future[None] | None = None
    """Done when the answer comes; None if no operation waits for it."""

    def note_stored(self, at: float, /) -> None:
        """Note when the entry was stored."""
        self.at: float | None = at
        self.record = None
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    def note_failure(self, error: Exception, /) -> None:
        """Note why the entry is not stored. If another worker has the job, end the attempt."""
        self.error, record, self.record = error, self.record, None
        if isinstance(error, LeaseLost) and record is not None:
            from nimburion.jobs.worker.attempt.attempt import Interruption

            cast("Attempt", record).interrupt(Interruption.LOST)
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)

    def wait(self) -> asyncio.Future[None] | None:
        """Return what is done when the answer comes; None if the entry is stored.

        If the entry could not be stored, the error is raised.
        """
        if self.error is not None:
            raise self.error
        if self.at is not None:
            return None
        if self.future is None or self.future.cancelled():
            self.future = asyncio.Future()
        return self.future


class RaisedError(NamedTuple):
    """An error that an operation raised to the handler."""

    error: Exception
    entry: AnyEntry
    """The entry from which a later attempt raises it again."""


class RunRecorder(Struct, eq=False):
    """Numbers the entries of a run and sends each with the next exchange.

    An error that an operation raises is stored only when the handler has caught it, which shows
    when the handler does something else. So these errors are sent before the next entry.
    """

    record: AttemptRecord
    services: RunServices
    journal: Journal
    state: RunState
    size: int = 0
    """The size of the steps since the run began anew, in bytes."""
    has_recorded: bool = False
    """Whether this attempt has sent a step, which resets the failures of the job."""
    sent_cleanup: SentEntry | None = None
    """The entry which says that the end of the run needs a worker, until it is stored."""
    raised: dict[tuple[str, str], RaisedError] = field(default_factory=dict)
    """The errors that are not stored, by kind and key of their entry."""
    _replayed: dict[int, RaisedError] = field(default_factory=dict)
    """The stored errors that this attempt has raised, by identity."""

    def send(
        self,
        entry: AnyEntry,
        *,
        takes: int | None = None,
        forgets: bool = False,
        is_awaited: bool = False,
    ) -> SentEntry:
        """Send an entry, after the errors that the handler has caught.

        The backend stores entries in this order. `takes`: the number of the signal that the step
        takes. `forgets`: whether the backend removes all earlier steps. `is_awaited`: whether the
        caller then waits for the answer.

        Errors:

        - `NotOpen`: the handler has ended.
        - `InvalidStep`: the run has too many steps, or they are too large.
        """
        phase = self.state.phase
        if phase is CLOSED or phase is CLEANING:
            self.state.check_open()
        if self.raised:
            self.send_caught()
        return self._send(entry, takes=takes, forgets=forgets, is_awaited=is_awaited)

    def send_caught(self) -> SentEntry | None:
        """Send the errors that the handler has caught. Return the last; None if there are none."""
        sent = None
        for caught in list(self.raised.values()):
            sent = self._send(caught.entry, is_awaited=True)
            self.note_replayed(caught.error, caught.entry)
        self.raised.clear()
        return sent

    def _send(
        self,
        entry: AnyEntry,
        *,
        takes: int | None = None,
        forgets: bool = False,
        is_awaited: bool = False,
    ) -> SentEntry:
        body = encode_entry(entry)
        size = self.size + len(body)
        if size > MAX_BYTES and type(entry) in OPERATIONS:
            self.check_size(len(body))
        journal = self.journal
        number = journal.last_number + 1
        count = number - journal.restart_number
        if count < WARN_AT_STEPS <= MAX_STEPS and type(entry) is not CleanupEntry:
            journal.last_number = number  # as `take_number`, without its call
            self.has_recorded = True
        else:
            number = self.take_number(entry)
        self.size = size
        record = self.record
        sent = SentEntry(entry, is_passed=True, record=record)
        journal.add(sent)
        recorded = Recorded(record.delivery.lease, number, body, takes, forgets)
        self.services.record(recorded, sent, is_awaited=is_awaited)
        return sent

    def take_number(self, entry: AnyEntry) -> int:
        """Return the number of the step that stores an entry. `InvalidStep` is raised if the run
        has too many.
        """
        if type(entry) is CleanupEntry:
            return CLEANUP_STEP
        journal = self.journal
        journal.last_number = number = journal.last_number + 1
        count = number - journal.restart_number
        if count > MAX_STEPS and type(entry) in OPERATIONS:
            raise InvalidStep(
                f"the run has {MAX_STEPS} steps, which is the limit; begin anew with "
                "`ctx.restart(…)`, or do the parts in child jobs"
            )
        if count == WARN_AT_STEPS:
            _log.warning(
                "job %s (%s) has %d steps; each attempt reads them all. Use ctx.restart, or child "
                "jobs",
                self.state.job_id,
                self.record.delivery.name,
                count,
            )
        self.has_recorded = True
        return number

    def check_size(self, size: int) -> None:
        """Raise `InvalidStep` if the run cannot store `size` more bytes."""
        if self.size + size > MAX_BYTES:
            raise InvalidStep(
                f"the steps of the run have {self.size} bytes, and {size} more are over the "
                f"limit of {MAX_BYTES}; store large values elsewhere and return their location, or "
                "begin anew with `ctx.restart(…)`"
            )

    def require_cleanup(self) -> None:
        """Store that the end of the run needs a worker, unless that is stored."""
        if not self.journal.needs_cleanup:
            self.sent_cleanup = self.send(CleanupEntry(), is_awaited=True)

    def note_raised(self, error: Exception, entry: AnyEntry) -> None:
        """Note that an operation raises an error. `entry` stores it if the handler catches it."""
        self.raised[get_kind(entry), entry.key] = RaisedError(error, entry)

    def note_replayed(self, error: Exception, entry: AnyEntry) -> None:
        """Note that an operation raises an error which `entry` stores."""
        self._replayed[id(error)] = RaisedError(error, entry)

    def forget_errors(self, raised: BaseException | None) -> None:
        """Forget the stored errors that have ended this attempt, so that the next one tries again.

        Call it when the handler has ended. `raised` is its error.
        """
        own = {id(one.error) for one in self.raised.values()} | {*self._replayed}
        self.raised.clear()
        for error in _list_causes(raised, own):
            found = self._replayed.pop(id(error), None)
            if found is not None:
                self._send(ForgottenEntry(found.entry.key, get_kind(found.entry)))


def _list_causes(raised: BaseException | None, own: set[int]) -> list[BaseException]:
    """Return an exception with its causes, contexts and the members of groups.

    `own` identifies the errors of operations. The context of such an error is not followed:
    the handler had caught it, and continued.
    """
    found: dict[int, BaseException] = {}
    waiting: list[BaseException | None] = [raised]
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in found:
            continue
        found[id(error)] = error
        if id(error) in own:
            continue
        waiting += [error.__cause__, error.__context__]
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
    return list(found.values())
