"""One execution of a durable run: what it has stored, what it waits for, and how it ends.

A handler is called again from its beginning in each attempt. An operation that an earlier attempt
completed returns what the journal has of it. When all branches of the handler wait, the run is
suspended: `asyncio.CancelledError` ends the handler, and `RunState.ending` says that this is no
failure.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import suppress
from types import CodeType, FrameType
from typing import TYPE_CHECKING, NoReturn, cast

from msgspec import Raw, Struct

from nimburion.core.errors import BackendUnavailable, InvalidStep, JobNotFound, NotOpen
from nimburion.core.events import ArgumentsDiffer
from nimburion.core.runs import CANCEL_SIGNAL, RecordedStep, StoredSignal
from nimburion.jobs.durable.branches import RunBranches
from nimburion.jobs.durable.journal import AnyEntry, Journal, RestartEntry, StoredEntry
from nimburion.jobs.durable.phase import (
    CLEANING,
    CLOSED,
    ENDED,
    ENDING,
    LOADING,
    REPLAYING,
    WORKING,
    Ending,
    RunCancellation,
    RunState,
    RunSuspension,
)
from nimburion.jobs.durable.recorder import RunRecorder, SentEntry
from nimburion.jobs.handling.attempt_record import AttemptRecord, WorkerServices

if TYPE_CHECKING:
    from nimburion.core.runs import RunPage
    from nimburion.jobs.durable.services import RunServices
    from nimburion.jobs.durable.steps import StepCall

_log = logging.getLogger("nimburion.worker")

MAX_KEY = 200
"""The most characters of a key."""
MAX_DELAY = 10 * 366 * 86_400.0
"""The longest wait, in seconds."""
ROUNDING = 5e-6
"""Seconds by which two times on the backend's clock may differ although they mean the same: sums of
seconds are rounded.
"""

_DELAY_WITHOUT_ANSWER = 5.0
"""Seconds until the next attempt at a run that ended because the backend did not answer."""
_OWN_FILES = __file__.rpartition("durable")[0]
"""The start of the file names of the code that calls handlers."""
_STEPS_FILE = __file__.removesuffix("run.py") + "steps.py"
"""The name of the file with the code that calls the functions of steps and undos."""


class DurableRun:
    """The execution of a durable handler in one attempt."""

    _last_signal: int = 0
    """The largest number of a signal that this attempt has read."""

    def __init__(self, record: AttemptRecord, worker: WorkerServices) -> None:
        if worker.runs is None:
            raise NotOpen("a durable run needs a worker")
        services = worker.runs
        self.record: AttemptRecord = record
        self.services: RunServices = services
        self.worker: WorkerServices = worker
        self.journal: Journal = Journal()
        self.state: RunState = RunState(record.delivery.lease.job_id, self.journal)
        self.recorder: RunRecorder = RunRecorder(record, services, self.journal, self.state)
        self.branches: RunBranches = RunBranches(record, services, self.state, self.recorder)
        self.time: float = record.delivery.created_at
        """The end of the latest operation that this execution came to."""
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

    @property
    def job_id(self) -> str:
        """The id of the job."""
        return self.state.job_id

    @property
    def generation(self) -> int:
        """How often the run began anew."""
        restart = self.journal.restart
        return 0 if restart is None else restart.generation

    @property
    def ends_as_cancelled(self) -> bool:
        """Whether a cancel was requested, and no attempt has decided another end."""
        state = self.state
        return state.is_cancelling and state.phase is not LOADING and self.journal.ending is None

    # Begin

    async def load(self) -> None:
        """Read what the run has stored. Call it before the handler.

        `BackendUnavailable` is raised if the backend does not answer, and `UnreadablePayload` if a
        newer version of nimburion wrote the steps.
        """
        state, journal = self.state, self.journal
        state.main = asyncio.current_task()
        if self.record.delivery.lease.token.fence > 1:
            page = cast("RunPage | None", self.record.delivery.run)
            if page is None:
                steps, signals = await self._read_pages()
            else:
                steps, signals = page.steps, page.signals
            if signals:
                self._note_signals(signals)
            journal.read(steps)
            self.recorder.size = sum([len(step.body) for step in steps])
            if journal.ending is not None and journal.is_undone:
                await self.begin_anew(journal.payload)
        state.phase = WORKING
        if state.is_cancelling or journal.ending is not None:
            state.phase = REPLAYING
            if not journal.needs_cleanup:
                self.branches.start_replay_timer()

    async def read_new_signals(self) -> None:
        """Read the signals that were stored after this attempt has read them."""
        self.branches.begin_work()
        try:
            _, signals = await self._read_pages()
        except BackendUnavailable as error:
            await self.stop_without_answer(f"its signals could not be read: {error}")
        finally:
            self.branches.end_work()
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
        """Keep the unread signals. One of them may request a cancel."""
        kept = [signal for signal in signals if signal.name != CANCEL_SIGNAL]
        self.signals += kept
        self._last_signal = max([self._last_signal, *(signal.number for signal in signals)])
        if len(kept) < len(signals):
            self.state.is_cancelling = self.record.cancel_requested = True
            if self.state.phase is WORKING:
                self.state.phase = REPLAYING

    async def begin_anew(self, payload: bytes | None) -> None:
        """Forget all steps. The arguments of the next execution are `payload`; None: those of the
        job.
        """
        entry = RestartEntry("", self.generation + 1, Raw(payload or b"null"))
        self.journal.begin_anew()
        self.recorder.size = 0
        await self.record_entry(entry, forgets=True)

    # Operations

    def begin(self, kind: str, key: str, place: CallSite) -> None:
        """Note that the handler does an operation at a place of its code.

        `InvalidStep` is raised if the handler has used the key for another operation of this kind,
        or if the function of a step or an undo does the operation.
        """
        state = self.state
        if state.phase is not WORKING:
            state.check_open()
        if self.branches.working and _is_in_step():
            raise InvalidStep(
                f"{place}: the {kind} {key!r} is in the function of a step or an undo; move it to "
                "the handler. A stored step does not call its function again, and a step that "
                "works cannot wait"
            )
        task = asyncio.current_task()
        if task is not state.main and task is not None:
            self.branches.tasks.add(task)
        check_key(key)
        first = self._keys.setdefault((kind, key), place)
        if first is not place:
            raise InvalidStep(
                f"{place}: the key {key!r} is used for a {kind} at {first} already; give each its "
                f"own with `ctx.options(key=…)`, such as the id of what it works on"
            )

    @property
    def may_begin(self) -> bool:
        """Whether the handler may begin something new. Otherwise, call `require_may_begin`."""
        # Each way to end a handler, also by its worker, sets `cancel_requested`.
        return self.state.phase is WORKING and not self.record.cancel_requested

    async def require_may_begin(self) -> None:
        """Stop this branch if the handler must not begin anything new. Call it before what is not
        in the journal.
        """
        state, branches = self.state, self.branches
        state.check_open()
        if state.phase is CLEANING:
            return
        if state.phase is ENDED:  # it does this in a `finally` block
            await _raise_cancelled()
        if state.phase is not WORKING:
            branches.end_replay()
            await branches.stop()
        if self.record.must_end and state.main is not None:
            if state.main.cancelling():
                await _raise_cancelled()
            branches.is_stopping = True  # a thread kept the worker from cancelling the handler
            branches.stop_for_worker()
            await branches.stop()

    async def record_entry(
        self, entry: AnyEntry, *, takes: int | None = None, forgets: bool = False
    ) -> StoredEntry:
        """Store an entry, and return when it is stored."""
        sent = self.recorder.send(entry, takes=takes, forgets=forgets, is_awaited=True)
        await self.await_stored(sent)
        self.time = sent.at or self.time
        return sent

    async def await_stored(self, sent: SentEntry) -> None:
        """Return when an entry is stored."""
        future = sent.wait()
        if future is None:
            return
        branches = self.branches
        branches.begin_work()
        branches.unstored += 1
        try:
            await asyncio.shield(future)  # several branches may wait for one entry
        finally:
            branches.unstored -= 1
            branches.end_work()

    @property
    def must_record_first(self) -> bool:
        """Whether something must be stored before the next effect. Then call `record_first`."""
        return self.recorder.sent_cleanup is not None or bool(self.recorder.raised)

    async def record_first(self) -> None:
        """Return when what must precede the next effect is stored: the errors that the handler
        has caught, and that the end of the run needs a worker.

        If the worker is lost during the effect, another execution takes the same branch; if the run
        is cancelled then, another worker still undoes it.
        """
        recorder = self.recorder
        sent = recorder.send_caught()
        if sent is not None:
            await self.await_stored(sent)
        if recorder.sent_cleanup is not None:
            await self.await_stored(recorder.sent_cleanup)
            recorder.sent_cleanup = None

    def note_passed(self, stored: StoredEntry, end: float | None = None) -> None:
        """Note that a wait has ended, or that this execution repeats what an earlier attempt did.

        `end`: when the operation ended; None: when its entry was stored.
        """
        stored.is_passed = True
        end = stored.at if end is None else end
        if end is not None:
            self.time = max(self.time, end)
        if self.state.phase is REPLAYING:
            self.branches.start_replay_timer()

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

    def is_over(self, since: StoredEntry, delay: float) -> bool:
        """Return whether `delay` seconds have passed since an entry was stored."""
        return since.at is not None and since.at + delay <= self.services.now() + ROUNDING

    # End

    async def stop(self, ending: Ending) -> NoReturn:
        """End the handler at once, and this branch with it."""
        self.state.end(ending)
        await self.branches.stop()

    async def stop_without_answer(self, what: str) -> NoReturn:
        """End the handler when no other operation works, because the backend does not answer this
        one. The attempt counts nothing, and the next one continues.

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
            self.recorder.send_caught()
        state, branches = self.state, self.branches
        if state.phase is WORKING or state.phase is REPLAYING:
            state.phase, state.ending = ENDING, RunSuspension((), _DELAY_WITHOUT_ANSWER)
        branches.end_work()
        try:
            await branches.stop()
        finally:
            branches.begin_work()

    def request_cancel(self) -> None:
        """End the run as cancelled: at once if no operation works, else when they have ended."""
        state = self.state
        state.is_cancelling = True
        if state.phase is LOADING:
            if self.record.task is not None:
                self.record.task.cancel()
        elif self.journal.ending is None and state.phase in {WORKING, REPLAYING, ENDING}:
            if state.phase is not ENDING and self.journal.needs_cleanup and self.journal.has_more:
                state.phase = REPLAYING  # it has not registered all that must be undone
            else:
                state.phase, state.ending = ENDING, RunCancellation()
            self.branches.plan_check()

    def close(self) -> None:
        """End all branches of the handler. Nothing else can be done with the context."""
        state = self.state
        if state.phase is ENDING:  # the handler has ended by itself, for another reason
            state.ending = None
        if state.cancels:
            state.uncancel()
        state.phase = CLOSED
        state.main = None  # it refers to the run
        self.branches.close()
        self.recorder.sent_cleanup = None


async def _raise_cancelled() -> NoReturn:
    """Raise the `CancelledError` with which the task was cancelled, or a new one."""
    await asyncio.sleep(0)
    raise asyncio.CancelledError


def _is_in_step() -> bool:
    """Return whether the function of a step or an undo does the current operation.

    A task that such a function has created is not found.
    """
    frame: FrameType | None = sys._getframe(3)  # noqa: SLF001 - the caller of the operation
    while frame is not None and frame.f_code.co_filename != _STEPS_FILE:
        frame = frame.f_back
    return frame is not None


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
