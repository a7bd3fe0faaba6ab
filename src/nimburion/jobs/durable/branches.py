"""The branches of a durable handler: which of them work, which wait, and when all of them wait.

The task of the handler is a branch, and so is each task that it creates and that does operations.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, cast

from msgspec import Struct, field

from nimburion.core.errors import InvalidStep
from nimburion.core.flows import WaitSource
from nimburion.core.runs import MAX_SOURCES
from nimburion.jobs.durable.journal import StoredEntry
from nimburion.jobs.durable.phase import (
    CLEANING,
    CLOSED,
    ENDED,
    ENDING,
    LOADING,
    REPLAYING,
    WORKING,
    RunState,
    RunSuspension,
)
from nimburion.jobs.durable.recorder import RunRecorder
from nimburion.jobs.handling.attempt_record import AttemptRecord

if TYPE_CHECKING:
    from nimburion.jobs.durable.services import RunServices
    from nimburion.jobs.worker.attempt.attempt import Attempt

BRANCHES_IDLE_AFTER = 0.05
"""Seconds without an operation after which a run with several branches is suspended.

One branch may wait for a signal while another awaits something else, such as an event that a third
branch sets. asyncio does not tell whether it will do an operation soon. A run with one branch is
suspended as soon as this branch waits.
"""
REPLAY_TIMEOUT = 5.0
"""Seconds that a handler has, in the phase REPLAYING, to come to a new operation. The time begins
when it has repeated all that is stored.

The handler may await something that is no operation and never comes. When the time is over, it is
cancelled, and what it has registered is undone.
"""


class Wait(Struct, eq=False):
    """An operation that waits until a source has come or a time is over."""

    sources: tuple[WaitSource, ...] = ()
    since: StoredEntry | None = None
    """The entry whose time is the start of `delay`."""
    delay: float | None = None
    """In seconds; None: the operation waits for no time."""
    is_sleep: bool = False
    """Whether it has no sources, so that the run may keep its slot until the time is over."""
    future: asyncio.Future[None] = field(default_factory=asyncio.Future)

    def compute_remaining(self, now: float) -> float | None:
        """Return the seconds that are left of `delay`; None if the operation waits for no time."""
        if self.delay is None:
            return None
        if self.since is None or self.since.at is None:
            return self.delay
        return max(0.0, self.since.at + self.delay - now)


class RunBranches(Struct, eq=False):
    """Counts the operations that work, keeps those that wait, and suspends the run when all wait.

    An operation works between `begin_work` and `end_work`, also while it waits for the answer of
    the backend.
    """

    record: AttemptRecord
    services: RunServices
    state: RunState
    recorder: RunRecorder
    working: int = 0
    """How many operations work."""
    unstored: int = 0
    """How many operations wait until their entry is stored."""
    is_stopping: bool = False
    """Whether the worker stops, and could not cancel the handler because a thread ran a step. The
    handler is cancelled when no thread does."""
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    """The tasks of the branches, without that of the handler."""
    _waits: set[Wait] = field(default_factory=set)
    _stopped: list[asyncio.Future[None]] = field(default_factory=list)
    """What the stopped branches await."""
    _check: asyncio.Handle | None = None
    """The next call of `_end_if_idle`."""
    _replay_timer: asyncio.Handle | None = None
    _sleep: asyncio.Task[None] | None = None
    """Ends the shortest sleep, for which the run keeps its slot."""

    def begin_work(self) -> None:
        """Note that an operation works."""
        self.working += 1
        if self._check is not None:
            self._stop_check()

    def end_work(self) -> None:
        """Note that an operation does not work any more."""
        self.working -= 1
        if self.is_stopping:
            asyncio.get_running_loop().call_soon(self.stop_for_worker)
        if self._waits or self.state.phase is ENDING:
            self.plan_check()

    def has_several(self) -> bool:
        """Return whether a task other than that of the handler may do operations."""
        if self.tasks:
            self.tasks = {task for task in self.tasks if not task.done()}
        return bool(self.tasks)

    # Waits

    async def wait(self, wait: Wait) -> None:
        """Wait. Returns only if it is a sleep and its time is over; otherwise, the handler is
        cancelled.
        """
        state = self.state
        self._waits.add(wait)
        try:
            if self._is_alone(wait) and asyncio.current_task() is state.main:
                await asyncio.sleep(0)  # tasks that the handler has created may become branches
                if self._is_alone(wait):
                    suspension = self._decide_wait()
                    if suspension is not None:
                        state.note_end(suspension)
                        raise asyncio.CancelledError
                else:
                    self.plan_check()
            else:
                self.plan_check()
            await wait.future
        finally:
            self._waits.discard(wait)
            if self._waits or state.phase is ENDING:
                self.plan_check()

    def _is_alone(self, wait: Wait) -> bool:
        """Return whether the handler has one branch, which does nothing else than this wait. The
        wait then raises `CancelledError` itself, so that no task is cancelled.
        """
        phase = self.state.phase
        return (
            len(self._waits) == 1
            and wait in self._waits
            and not (self.working or self.tasks)
            and (phase is WORKING or phase is REPLAYING or phase is CLEANING)
        )

    def _decide_wait(self) -> RunSuspension | None:
        """Return what the run waits for without a worker. None: it keeps its slot until the end of
        a short sleep, or an error is raised where it waits.
        """
        try:
            if self.recorder.raised:
                self.recorder.send_caught()
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
            self._keep_slot(first, left)
            return None
        if len(sources) > MAX_SOURCES:
            text = f"a run waits for at most {MAX_SOURCES} signals and child jobs at a time"
            self._fail_waits(InvalidStep(f"{text}; use `ctx.run_all`"))
            return None
        return RunSuspension(tuple(sources), left)

    def _fail_waits(self, error: InvalidStep) -> None:
        """Raise an error where the handler waits."""
        for wait in self._waits:
            if not wait.future.done():
                wait.future.set_exception(error)

    def _keep_slot(self, wait: Wait, seconds: float) -> None:
        """End a sleep after this time. The run is not suspended meanwhile."""
        if self._sleep is not None:
            self._sleep.cancel()

        async def end_sleep() -> None:
            await self.services.sleep(seconds)
            if not wait.future.done():
                wait.future.set_result(None)
                self._waits.discard(wait)

        self._sleep = asyncio.create_task(end_sleep())

    # Ends

    def plan_check(self) -> None:
        """If no operation works, look soon whether the handler must end or all branches wait."""
        self._stop_check()
        phase = self.state.phase
        if not (self.working or phase is LOADING or phase is ENDED or phase is CLOSED):
            self._check = asyncio.get_running_loop().call_soon(self._end_if_idle)

    def _stop_check(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def _end_if_idle(self, *, is_quiet: bool = False) -> None:
        """End the handler if it must end or all its branches wait.

        With several branches, wait for `BRANCHES_IDLE_AFTER` first. `is_quiet`: it has passed. A
        branch may still reach a stored operation, and register how to undo it.
        """
        state = self.state
        if state.phase is ENDED:
            return
        if self.has_several() and not is_quiet:
            check = partial(self._end_if_idle, is_quiet=True)
            self._check = asyncio.get_running_loop().call_later(BRANCHES_IDLE_AFTER, check)
        elif state.phase is ENDING and state.ending is not None:
            state.end(state.ending)
        elif self._waits:
            suspension = self._decide_wait()
            if suspension is not None:
                state.end(suspension)

    async def stop(self) -> NoReturn:
        """Let the current branch do nothing until it is cancelled."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopped.append(future)
        await future
        raise asyncio.CancelledError  # never: it is only cancelled

    def stop_for_worker(self) -> None:
        """Cancel the handler, whose worker stops, unless a thread still runs one of its steps."""
        state = self.state
        if state.phase is CLOSED or not self.is_stopping:
            return
        attempt = cast("Attempt", self.record)
        if attempt.lease_is_lost or not (attempt.in_thread or self.unstored):
            self.is_stopping = False
            state.cancel_handler()

    def start_replay_timer(self) -> None:
        """If the handler has repeated all that is stored, end it after `REPLAY_TIMEOUT`."""
        if self._replay_timer is not None:
            self._replay_timer.cancel()
        if not self.state.journal.has_more:
            loop = asyncio.get_running_loop()
            self._replay_timer = loop.call_later(REPLAY_TIMEOUT, self.end_replay)

    def end_replay(self) -> None:
        """End the handler, which has repeated all that is stored, when no operation works."""
        state = self.state
        if state.phase is REPLAYING:
            state.phase, state.ending = ENDING, state.find_known_end()
        self.plan_check()

    def close(self) -> None:
        """Cancel all branches, and what waits."""
        if self._check is not None:
            self._stop_check()
        if self._replay_timer is not None:
            self._replay_timer.cancel()
        if self._sleep is not None:
            self._sleep.cancel()
        if self._waits or self._stopped or self.tasks:
            for future in [wait.future for wait in self._waits] + self._stopped:
                future.cancel()
            self._waits.clear()
            self._stopped.clear()
            for task in self.tasks:
                task.cancel()
            self.tasks.clear()
