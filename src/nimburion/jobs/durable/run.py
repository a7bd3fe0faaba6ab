"""One execution of a durable run: what it has stored, what it waits for, and how it ends.

A handler is called again from its beginning in each attempt. An operation that an earlier attempt
completed returns what the journal has of it. When all branches of the handler wait, the run is
suspended: `asyncio.CancelledError` ends the handler, and `ending` says that this is no failure.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import suppress
from functools import partial
from types import CodeType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

from msgspec import Raw, Struct

from nimburion.core.errors import BackendUnavailable, InvalidStep, JobNotFound, LeaseLost, NotOpen
from nimburion.core.events import ArgumentsDiffer
from nimburion.core.flows import WaitSource
from nimburion.core.runs import (
    CANCEL_SIGNAL,
    CLEANUP_STEP,
    MAX_SOURCES,
    RecordedStep,
    StoredSignal,
)
from nimburion.core.settlement import Recorded, Suspended
from nimburion.jobs.durable.journal import (
    OPERATIONS,
    AnyEntry,
    CleanupEntry,
    ForgottenEntry,
    Journal,
    RestartEntry,
    StoredEntry,
    encode_entry,
    get_kind,
)
from nimburion.jobs.handling.attempt_record import AttemptRecord, WorkerServices

if TYPE_CHECKING:
    from nimburion.core.runs import RunPage
    from nimburion.jobs.durable.services import RunServices
    from nimburion.jobs.durable.steps import StepCall
    from nimburion.jobs.worker.attempt.attempt import Attempt

_log = logging.getLogger("nimburion.worker")

MAX_STEPS = 10_000
"""The most steps of a run."""
MAX_BYTES = 16 * 1024 * 1024
"""The maximum size of the steps of a run: each attempt reads them all."""
WARN_AT_STEPS = 1_000
"""The number of steps after which the log says that a run has many."""
MAX_KEY = 200
"""The most characters of a key."""
MAX_DELAY = 10 * 366 * 86_400.0
"""The longest wait, in seconds."""

_QUIET = 0.05
"""Seconds without an operation after which the branches of a handler are taken to wait all.

A handler without branches waits as soon as it awaits an operation.
"""
_GRACE = 5.0
"""Seconds that a handler which is called again to be undone has after the last operation that it
did, to register what is undone and to come to the next operation.
"""
_DELAY_WITHOUT_ANSWER = 5.0
"""Seconds until the next attempt if the backend does not answer."""
ROUNDING = 5e-6
"""Seconds by which times on the backend's clock differ because they are computed."""
_OWN_FILES = __file__.rpartition("durable")[0]
"""The start of the file names of the code that calls handlers."""


class RunSuspension(NamedTuple):
    """The run waits for one of these."""

    sources: tuple[WaitSource, ...]
    delay: float | None


class RunCancellation(NamedTuple):
    """The run was asked to end as cancelled, and the handler came to an operation."""


class RunRestart(NamedTuple):
    """The handler called `restart`."""


class RunCleanup(NamedTuple):
    """An earlier attempt has decided the end of the run, and the handler came to where it was."""


Ending = RunSuspension | RunCancellation | RunRestart | RunCleanup
"""Why the run has ended the call of its handler."""


class Wait:
    """An operation that waits."""

    __slots__ = ("delay", "future", "is_sleep", "since", "sources")

    def __init__(
        self,
        sources: tuple[WaitSource, ...] = (),
        since: StoredEntry | None = None,
        delay: float | None = None,
        *,
        is_sleep: bool = False,
    ) -> None:
        self.sources: tuple[WaitSource, ...] = sources
        self.since: StoredEntry | None = since
        """The entry whose time is the start of `delay`."""
        self.delay: float | None = delay
        self.is_sleep: bool = is_sleep
        """Whether nothing but the time ends it, so that the run may keep its slot meanwhile."""
        self.future: asyncio.Future[None] = asyncio.Future()

    def compute_remaining(self, now: float) -> float | None:
        """Return the seconds until its time has come; None: it waits for no time."""
        if self.delay is None:
            return None
        if self.since is None or self.since.at is None:
            return self.delay
        return max(0.0, self.since.at + self.delay - now)


class CaughtError(NamedTuple):
    """An error that an operation raised."""

    error: Exception
    entry: AnyEntry
    """What stores it."""


class SentEntry(StoredEntry, eq=False, kw_only=True):
    """An entry on its way to the backend, and its answer."""

    run: DurableRun | None
    """The run that waits for the answer; None if it is here."""
    error: Exception | None = None
    """Why it is not stored."""
    future: asyncio.Future[None] | None = None
    """What waits for the answer; None if nothing does."""

    def note_stored(self, at: float, /) -> None:
        """Note when the entry was stored."""
        self.at: float | None = at
        self.run = None
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    def note_failure(self, error: Exception, /) -> None:
        """Note why the entry is not stored. If another worker has the job, end the attempt."""
        self.error, run, self.run = error, self.run, None
        if isinstance(error, LeaseLost) and run is not None:
            run.lose_lease()
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)

    def wait(self) -> asyncio.Future[None] | None:
        """Return what is done when the answer comes; None if the entry is stored."""
        if self.error is not None:
            raise self.error
        if self.at is not None:
            return None
        if self.future is None or self.future.cancelled():
            self.future = asyncio.Future()
        return self.future


class DurableRun:
    """The execution of a durable handler in one attempt."""

    size: int = 0
    """The size of the steps since the run began anew, in bytes."""
    unstored: int = 0
    """How many operations wait until their entry is stored."""
    is_loaded: bool = False
    _last_signal: int = 0
    """The largest number of a signal that this attempt has read."""
    ending: Ending | None = None
    """Why the handler does not continue."""
    has_recorded: bool = False
    """Whether this attempt has stored a step, so that its failure is the first."""
    is_cleaning: bool = False
    """Whether the handler has ended, and its work is undone."""
    is_cancelling: bool = False
    """Whether the run was asked to end as cancelled."""
    sent_cleanup: SentEntry | None = None
    """What says that the end of the run needs a worker, until that is awaited."""
    _next_ending: Ending | None = None
    """Why the handler will not continue as soon as no operation works."""
    _is_closed: bool = False
    _active: int = 0
    """How many operations work."""
    _main: asyncio.Task[Any] | None = None
    """The task of the handler."""
    _cancels: int = 0
    """How often the run has cancelled it."""
    _check: asyncio.Handle | None = None
    _grace: asyncio.Handle | None = None
    _timer: asyncio.Task[None] | None = None
    _is_stopping: bool = False
    """Whether the handler is cancelled as soon as no thread runs a step: its worker stops."""

    def __init__(self, record: AttemptRecord, worker: WorkerServices) -> None:
        if worker.runs is None:
            raise NotOpen("a durable run needs a worker")
        self.record: AttemptRecord = record
        self.services: RunServices = worker.runs
        self.worker: WorkerServices = worker
        self.journal: Journal = Journal()
        self.time: float = record.delivery.created_at
        """When the latest operation ended that this execution came to."""
        self.called: list[str] = []
        """The keys of the steps whose functions this execution has called, once for each call."""
        self.differing: list[str] = []
        """The keys of the operations that were stored with other arguments."""
        self.undos: list[StepCall] = []
        """What `ctx.undo` has registered."""
        self.signals: list[StoredSignal] = []
        """The unread signals that no operation has taken."""
        self._keys: dict[tuple[str, str], CallSite] = {}
        """Where each key of this execution was used first, by kind of operation and key."""
        self._waits: set[Wait] = set()
        self._stopped: list[asyncio.Future[None]] = []
        """What branches await that are stopped."""
        self._branches: set[asyncio.Task[Any]] = set()
        """The tasks, other than that of the handler, that did operations."""
        self._raised: dict[tuple[str, str], CaughtError] = {}
        """The errors of operations that are not stored, by kind and key of their entry."""
        self._replayed: dict[int, tuple[Exception, AnyEntry]] = {}
        """The errors of the journal that this execution raised, by identity, and what stores them.
        """

    @property
    def job_id(self) -> str:
        """The id of the job."""
        return self.record.delivery.lease.job_id

    @property
    def generation(self) -> int:
        """How often the run began anew."""
        restart = self.journal.restart
        return 0 if restart is None else restart.generation

    @property
    def ends_as_cancelled(self) -> bool:
        """Whether the run was asked to end, and no attempt has decided how."""
        return self.is_loaded and self.is_cancelling and self.journal.ending is None

    # Begin

    async def load(self) -> None:
        """Read what the run has stored. Call it before the handler.

        `BackendUnavailable` is raised if the backend does not answer, and `UnreadablePayload` if a
        newer version of nimburion wrote the steps.
        """
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task(self._loop)
        if self.record.delivery.lease.token.fence > 1:
            page = cast("RunPage | None", self.record.delivery.run)
            steps = await self._read() if page is None else page.steps
            if page is not None and page.signals:
                self._note_signals(page.signals)
            self.journal = Journal(steps)
            self.size = sum([len(step.body) for step in steps])
            if self.journal.is_undone:
                await self.begin_anew(self.journal.payload)
        self.is_loaded = True
        if self._find_ending() is not None and not self.journal.needs_cleanup:
            self._end_soon_if_asked()

    def _end_soon_if_asked(self) -> None:
        """End a run that is to be cancelled or undone some time after it came to all that it did.

        So it ends also if the handler then awaits something else than an operation.
        """
        if self._grace is not None:
            self._grace.cancel()
        ending = self._find_ending()
        if ending is not None and not self.is_cleaning and not self.journal.has_more:

            def end() -> None:
                self._next_ending = ending
                self._plan_check()

            self._grace = asyncio.get_running_loop().call_later(_GRACE, end)

    def _find_ending(self) -> RunCancellation | RunCleanup | None:
        """Return why the handler must do nothing new; None if it may."""
        if self.journal.ending is not None:
            return RunCleanup()
        return RunCancellation() if self.is_cancelling else None

    async def _read(self) -> list[RecordedStep]:
        steps, signals = await self._read_pages()
        self._note_signals(signals)
        return steps

    async def read_new_signals(self) -> None:
        """Read the signals that were stored after this attempt has read them."""
        self.begin_work()
        try:
            _, signals = await self._read_pages()
        except BackendUnavailable as error:
            await self.stop_without_answer(f"its signals could not be read: {error}")
        finally:
            self.end_work()
        self._note_signals([signal for signal in signals if signal.number > self._last_signal])

    async def _read_pages(self) -> tuple[list[RecordedStep], list[StoredSignal]]:
        steps: list[RecordedStep] = []
        signals: list[StoredSignal] = []
        after: str | None = None
        while True:
            try:
                page = await self.services.read_run(self.job_id, after)
            except JobNotFound:
                raise BackendUnavailable(f"job {self.job_id} is not kept any more") from None
            steps += page.steps
            signals += page.signals
            after = page.next
            if after is None:
                return steps, signals

    def _note_signals(self, signals: list[StoredSignal]) -> None:
        """Keep the unread signals. One of them may ask the run to end."""
        kept = [signal for signal in signals if signal.name != CANCEL_SIGNAL]
        self.signals += kept
        self._last_signal = max([self._last_signal, *(signal.number for signal in signals)])
        if len(kept) < len(signals):
            self.is_cancelling = self.record.cancel_requested = True

    async def begin_anew(self, payload: bytes | None) -> None:
        """Forget all steps. The arguments of the next execution are `payload`; None: those of the
        job.
        """
        entry = RestartEntry("", self.generation + 1, Raw(payload or b"null"))
        number, self.journal = self.journal.last_number, Journal()
        self.journal.last_number = number
        self.journal.restart_number = number + 1
        self.size = 0
        await self.record_entry(entry, forgets=True)

    # Operations

    def begin(self, kind: str, key: str, place: CallSite) -> None:
        """Note that the handler does an operation at a place of its code. `InvalidStep` is raised
        if it has used the key for another of this kind.
        """
        if self._is_closed or self.is_cleaning:
            self._check_open()
        task = asyncio.current_task(self._loop)
        if task is not self._main and task is not None:
            self._branches.add(task)
        check_key(key)
        first = self._keys.setdefault((kind, key), place)
        if first is not place:
            raise InvalidStep(
                f"{place}: the key {key!r} is used for a {kind} at {first} already; give each its "
                f"own with `ctx.options(key=…)`, such as the id of what it works on"
            )

    def _check_open(self) -> None:
        has_ended = (
            asyncio.current_task() is not self._main if self.is_cleaning else self._is_closed
        )
        if has_ended:
            raise NotOpen(
                f"job {self.job_id}: the handler has ended, and its context cannot be used any more"
            )

    @property
    def may_begin(self) -> bool:
        """Whether the handler may begin something new. Otherwise, call `require_may_begin`."""
        return not (
            self._is_closed
            or self.ending
            or self.is_cancelling
            or self.journal.ending
            or self.record.must_end
        )

    async def require_may_begin(self) -> None:
        """Stop this branch if the handler must not begin anything new. Call it before what is not
        in the journal.
        """
        self._check_open()
        if self.is_cleaning:
            return
        if self.ending is not None:  # it does this in a `finally` block
            await asyncio.sleep(0)
            raise asyncio.CancelledError
        ending = self._find_ending()
        if ending is not None:
            self._next_ending = ending
            self._plan_check()
            await self._await_forever()
        if self.record.must_end and self._main is not None:
            if self._main.cancelling():
                await asyncio.sleep(0)
                raise asyncio.CancelledError
            self._is_stopping = True  # a thread kept the worker from cancelling the handler
            self._stop_for_worker()
            await self._await_forever()

    def _stop_for_worker(self) -> None:
        """Cancel the handler, whose worker stops, unless a thread still runs one of its steps."""
        if self._main is None or self._is_closed or not self._is_stopping:
            return
        attempt = cast("Attempt", self.record)
        if attempt.lease_is_lost or not (attempt.in_thread or self.unstored):
            self._is_stopping = False
            self._cancels += 1
            self._main.cancel()

    async def stop(self, ending: Ending) -> NoReturn:
        """End the execution, and this branch with it."""
        self._end(ending)
        await self._await_forever()

    async def stop_without_answer(self, what: str) -> NoReturn:
        """End the execution as soon as no other operation works, because the backend does not
        answer this one. The attempt counts nothing, and the next one continues.

        `what` says what is not known. Call it between `begin_work` and `end_work`.
        """
        _log.warning(
            "job %s (%s): %s; trying again in %.0f s",
            self.job_id,
            self.record.delivery.name,
            what,
            _DELAY_WITHOUT_ANSWER,
        )
        self.record.no_answer = what
        with suppress(InvalidStep):
            self._send_caught()
        if self._next_ending is None:
            self._next_ending = RunSuspension((), _DELAY_WITHOUT_ANSWER)
        self.end_work()
        try:
            await self._await_forever()
        finally:
            self.begin_work()

    async def _await_forever(self) -> NoReturn:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopped.append(future)
        await future
        raise asyncio.CancelledError  # never: it is only cancelled

    def request_cancel(self) -> None:
        """End the run as cancelled: at once if no operation works, else when they have ended."""
        self.is_cancelling = True
        if not self.is_loaded:
            if self.record.task is not None:
                self.record.task.cancel()
        elif not self._is_closed and not self.is_cleaning and self.journal.ending is None:
            self._next_ending = RunCancellation()
            self._plan_check()

    def _end(self, ending: Ending) -> None:
        """Cancel the task of the handler."""
        if self.ending is None:
            self.ending = ending
        if self._main is not None:
            self._cancels += 1
            self._main.cancel()

    def begin_work(self) -> None:
        """Note that an operation works: the run does not wait until `end_work`."""
        self._active += 1
        if self._check is not None:
            self._stop_check()

    def end_work(self) -> None:
        """Note that an operation has ended its work."""
        self._active -= 1
        if self._is_stopping:
            self._loop.call_soon(self._stop_for_worker)
        if self._waits or self._next_ending is not None:
            self._plan_check()

    # Steps

    def send(
        self,
        entry: AnyEntry,
        *,
        takes: int | None = None,
        forgets: bool = False,
        is_awaited: bool = False,
    ) -> SentEntry:
        """Store an entry with the next exchange, after the errors that the handler has caught.

        What is sent later is not stored without it. `is_awaited`: whether the caller then awaits
        that it is stored.
        """
        if self._is_closed or self.is_cleaning:
            self._check_open()
        if self._raised:
            self._send_caught()
        return self._send(entry, takes=takes, forgets=forgets, is_awaited=is_awaited)

    def _send_caught(self) -> SentEntry | None:
        """Store the errors that the handler has caught. Returns None if there are none."""
        sent = None
        for caught in list(self._raised.values()):
            sent = self._send(caught.entry, is_awaited=True)
            self._replayed[id(caught.error)] = caught.error, caught.entry
        self._raised.clear()
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
        number = self.take_number(entry)
        self.size = size
        sent = SentEntry(entry, is_passed=True, run=self)
        self.journal.add(sent)
        recorded = Recorded(self.record.delivery.lease, number, body, takes, forgets)
        self.services.record(recorded, sent, is_awaited=is_awaited)
        return sent

    def lose_lease(self) -> None:
        """End the attempt: another worker has the job."""
        from nimburion.jobs.worker.attempt.attempt import Interruption

        cast("Attempt", self.record).interrupt(Interruption.LOST)

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
                self.job_id,
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

    async def record_entry(
        self, entry: AnyEntry, *, takes: int | None = None, forgets: bool = False
    ) -> StoredEntry:
        """Store an entry, and return when it is stored."""
        sent = self.send(entry, takes=takes, forgets=forgets, is_awaited=True)
        await self.await_stored(sent)
        return self.note_end(sent)

    def note_end(self, sent: SentEntry) -> StoredEntry:
        """Note that an operation has ended whose entry is stored. Returns the entry."""
        self.time = sent.at or self.time
        return sent

    async def await_stored(self, sent: SentEntry) -> None:
        """Return when an entry is stored."""
        future = sent.wait()
        if future is None:
            return
        self.begin_work()
        self.unstored += 1
        try:
            await asyncio.shield(future)  # several branches may wait for one entry
        finally:
            self.unstored -= 1
            self.end_work()

    def require_cleanup(self) -> None:
        """Store that the end of the run needs a worker, unless that is stored."""
        if not self.journal.needs_cleanup:
            self.sent_cleanup = self.send(CleanupEntry(), is_awaited=True)

    @property
    def must_record_first(self) -> bool:
        """Whether something must be stored before the next effect. Then call `record_first`."""
        return self.sent_cleanup is not None or bool(self._raised)

    async def record_first(self) -> None:
        """Return when what must precede the next effect is stored: the errors that the handler
        has caught, and that the end of the run needs a worker.

        If the worker is lost during the effect, another execution takes the same branch; if the run
        is cancelled then, another worker still undoes it.
        """
        sent = self._send_caught()
        if sent is not None:
            await self.await_stored(sent)
        if self.sent_cleanup is not None:
            await self.await_stored(self.sent_cleanup)
            self.sent_cleanup = None

    def note_passed(self, stored: StoredEntry, end: float | None = None) -> None:
        """Note that an operation has ended that an earlier attempt did, or a wait.

        `end`: when it ended, if that is not when its entry was stored.
        """
        stored.is_passed = True
        end = stored.at if end is None else end
        if end is not None:
            self.time = max(self.time, end)
        if self.is_cancelling or self.journal.ending is not None:
            self._end_soon_if_asked()

    def note_difference(self, what: str, key: str, place: CallSite) -> None:
        """Note that an operation has other arguments than those that are stored; report it."""
        self.differing.append(key)
        _log.warning(
            "job %s: the arguments of the %s %r at %s differ from those of an earlier attempt; the "
            "stored ones are used. The code between two steps must give the same values each time",
            self.job_id,
            what,
            key,
            place,
        )
        name = self.record.delivery.name
        self.services.emit(ArgumentsDiffer(self.job_id, name, key, str(place)))

    # Errors

    def note_raised(self, error: Exception, entry: AnyEntry) -> None:
        """Note that an operation raises this error. If the handler catches it, `entry` is stored
        before what it does next.
        """
        self._raised[get_kind(entry), entry.key] = CaughtError(error, entry)

    def note_replayed(self, error: Exception, entry: AnyEntry) -> None:
        """Note that the journal has this error, and an operation raises it again."""
        self._replayed[id(error)] = error, entry

    def forget_errors(self, raised: BaseException | None) -> None:
        """Forget the stored errors that have ended this attempt: the next attempt tries again."""
        own = {id(caught.error) for caught in self._raised.values()} | {*self._replayed}
        self._raised.clear()
        for error in _list_causes(raised, own):
            found = self._replayed.pop(id(error), None)
            if found is not None:
                entry = found[1]
                self._send(ForgottenEntry(entry.key, get_kind(entry)))

    # Waits

    def is_over(self, since: StoredEntry, delay: float) -> bool:
        """Return whether `delay` seconds have passed since an entry was stored."""
        return since.at is not None and since.at + delay <= self.services.now() + ROUNDING

    async def wait(self, wait: Wait) -> None:
        """Wait. Returns only if it is a sleep and its time has come; otherwise, the handler is
        cancelled.
        """
        self._waits.add(wait)
        try:
            if self._is_alone(wait) and asyncio.current_task(self._loop) is self._main:
                await asyncio.sleep(0)  # tasks that the handler has created may become branches
                if self._is_alone(wait):
                    self.ending = self._decide_wait()
                    if self.ending is not None:
                        raise asyncio.CancelledError
                else:
                    self._plan_check()
            else:
                self._plan_check()
            await wait.future
        finally:
            self._waits.discard(wait)
            if self._waits or self._next_ending is not None:
                self._plan_check()

    def _is_alone(self, wait: Wait) -> bool:
        """Return whether the handler has no branches, and nothing else happens than this wait. It
        is suspended at once then, without a task that is cancelled.
        """
        return (
            len(self._waits) == 1
            and wait in self._waits
            and not (self._active or self._branches or self._is_closed)
            and self.ending is self._next_ending is None
        )

    def _stop_check(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def _plan_check(self) -> None:
        """Look soon whether all branches of the handler wait or are stopped."""
        self._stop_check()
        if not self._active and not self._is_closed and self.ending is None:
            self._check = asyncio.get_running_loop().call_soon(self._end_if_idle)

    def _end_if_idle(self, *, is_quiet: bool = False) -> None:
        """End the execution if it must end, or suspend the run.

        With branches, do so when they have done nothing for a while: each may still come to an
        operation of the journal, and what it then undoes.
        """
        if self.has_branches() and not is_quiet:
            loop = asyncio.get_running_loop()
            self._check = loop.call_later(_QUIET, partial(self._end_if_idle, is_quiet=True))
        elif self._next_ending is not None and not self.is_cleaning:
            self._end(self._next_ending)
        elif self._waits:
            suspension = self._decide_wait()
            if suspension is not None:
                self._end(suspension)

    def has_branches(self) -> bool:
        """Return whether a task other than that of the handler may do operations."""
        if self._branches:
            self._branches = {task for task in self._branches if not task.done()}
        return bool(self._branches)

    def _decide_wait(self) -> RunSuspension | None:
        """Return what the run waits for without a worker. None: it keeps its slot until the end of
        a short sleep, or an error is raised where it waits.
        """
        try:
            self._send_caught()
        except InvalidStep as error:  # too many steps
            self._fail_waits(error)
            return None
        now = self.services.now()
        sources: dict[WaitSource, None] = {}
        first: Wait | None = None
        left: float | None = None
        for wait in self._waits:
            sources.update(dict.fromkeys(wait.sources))
            remaining = wait.compute_remaining(now)
            if remaining is not None and (left is None or remaining < left):
                first, left = wait, remaining
        if first is not None and left is not None and first.is_sleep and left <= self.services.hold:
            self._hold(first, left)
            return None
        if len(sources) > MAX_SOURCES:
            text = f"a run waits for at most {MAX_SOURCES} signals and child jobs at a time"
            self._fail_waits(InvalidStep(f"{text}; use `ctx.run_all`"))
            return None
        return RunSuspension(tuple(sources), left)

    def settle_suspension(self, raised: BaseException) -> Suspended | None:
        """Return the settlement of an attempt that ends because the run waits, and for no other
        reason. None: `read_run_outcome` decides.
        """
        ending, record = self.ending, self.record
        if (
            type(ending) is not RunSuspension
            or type(raised) is not asyncio.CancelledError
            or record.must_end
            or record.completed
            or self.journal.ending is not None
            or record.task is None
            or record.task.cancelling()
        ):
            return None
        record.run = None  # it needs no cleanup, and refers to the attempt
        return Suspended(record.delivery.lease, ending.sources, ending.delay)

    def _fail_waits(self, error: InvalidStep) -> None:
        """Raise an error where the handler waits."""
        for wait in self._waits:
            if not wait.future.done():
                wait.future.set_exception(error)

    def _hold(self, wait: Wait, seconds: float) -> None:
        """Keep the slot until a sleep ends."""
        if self._timer is not None:
            self._timer.cancel()

        async def end_sleep() -> None:
            await self.services.sleep(seconds)
            if not wait.future.done():
                wait.future.set_result(None)
                self._waits.discard(wait)

        self._timer = asyncio.create_task(end_sleep())

    # End

    def close(self) -> None:
        """End all branches of the handler. Nothing else can be done with the context."""
        self._is_closed = True
        self._stop_check()
        if self._grace is not None:
            self._grace.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._waits or self._stopped or self._branches:
            for future in [wait.future for wait in self._waits] + self._stopped:
                future.cancel()
            self._waits.clear()
            self._stopped.clear()
            for task in self._branches:
                task.cancel()
            self._branches.clear()
        self._main = self.sent_cleanup = None  # both refer to the run

    def begin_cleanup(self) -> None:
        """Use the run to undo what its handler did. Call it in the task of the handler."""
        self.is_cleaning, self._is_closed, self.ending = True, False, None
        self._next_ending = None
        self._main = asyncio.current_task()
        self.uncancel()

    def uncancel(self) -> None:
        """Forget that the run has cancelled its task: what comes next is not cancelled."""
        if self._main is None or self._cancels == 0:
            return
        for _ in range(self._cancels):
            self._main.uncancel()
        self._cancels = 0


def check_key(key: object) -> None:
    """Raise `InvalidStep` if this is no key."""
    if not (isinstance(key, str) and 1 <= len(key) <= MAX_KEY):
        raise InvalidStep(f"a key is a text of 1 to {MAX_KEY} characters, not {key!r}")
    if key.isascii():
        return
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InvalidStep(f"a key is a text with a UTF-8 form, not {key!r}") from None


class CallSite(Struct, frozen=True, eq=False):
    """The place of an operation in the code of a handler, or of what it calls.

    As text, it is file and line. They are read from the code when a message needs them.
    """

    code: CodeType
    instruction: int

    def __str__(self) -> str:
        lines = (
            line for start, end, line in self.code.co_lines() if start <= self.instruction < end
        )
        return f"{self.code.co_filename}:{next(lines, None) or self.code.co_firstlineno}"


def find_call_site() -> CallSite:
    """Return the place of the handler, or of what it calls, that does an operation."""
    frame = sys._getframe(2)  # noqa: SLF001
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN_FILES):
        frame = frame.f_back
    return CallSite(frame.f_code, frame.f_lasti)


def _list_causes(raised: BaseException | None, own: set[int]) -> list[BaseException]:
    """Return an exception with its causes, contexts and the members of groups.

    `own` identifies the errors of operations. What such an error came after is none of its causes:
    the handler has caught that, and went on.
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
