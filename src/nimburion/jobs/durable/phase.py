"""Where a durable run is in one attempt, and why the call of its handler ends."""

from __future__ import annotations

import asyncio
import enum
from typing import Any, NamedTuple

from msgspec import Struct

from nimburion.core.errors import NotOpen
from nimburion.core.flows import WaitSource
from nimburion.jobs.durable.journal import Journal


class RunSuspension(Struct, frozen=True, gc=False):
    """The run waits until one of `sources` has come or `delay` seconds have passed."""

    sources: tuple[WaitSource, ...]
    delay: float | None


class RunCancellation(NamedTuple):
    """A cancel of the run was requested."""


class RunRestart(NamedTuple):
    """The handler called `ctx.restart`."""


class RunCleanup(NamedTuple):
    """An earlier attempt decided the end of the run, and what the run did must be undone."""


Ending = RunSuspension | RunCancellation | RunRestart | RunCleanup
"""Why a run ends the call of its handler."""


class RunPhase(enum.Enum):
    """The phase of a run in one attempt.

    "The end is known" means: a cancel was requested, or an earlier attempt decided the end.

    | phase | what happens | when | next phase |
    |---|---|---|---|
    | LOADING | the run reads what is stored | the end is known | REPLAYING |
    | | | otherwise | WORKING |
    | WORKING | the handler does operations | a cancel is requested | ENDING |
    | | | the same, but the handler has not | REPLAYING |
    | | | yet repeated all that is stored | |
    | | | the backend does not answer one | ENDING |
    | | | it reads that a cancel was requested | REPLAYING |
    | | | all branches wait, or it restarts | ENDED |
    | | | the handler returns or raises | CLOSED |
    | REPLAYING | the handler repeats what is | a cancel is requested, and all | ENDING |
    | | stored, and so registers what | that is stored is repeated | |
    | | must be undone | it comes to something new | ENDING |
    | | | all is repeated, and it comes to | ENDING |
    | | | nothing new for a while | |
    | | | all branches wait | ENDED |
    | | | it returns, and its end is decided | ENDED |
    | | | otherwise it returns, or it raises | CLOSED |
    | ENDING | operations that work continue, | no operation works any more | ENDED |
    | | and no branch begins a new one | it returns, and its end is decided | ENDED |
    | | | otherwise it returns, or it raises | CLOSED |
    | ENDED | new operations raise | the handler has ended | CLOSED |
    | | `CancelledError` | | |
    | CLOSED | operations raise `NotOpen` | the run failed or is cancelled | CLEANING |
    | CLEANING | the worker undoes what the run did | this is done, or has to wait | CLOSED |

    If an earlier attempt decided the end, a cancel request changes nothing. `ctx.restart` ends the
    handler also if a cancel is requested while it stores that the run begins anew.

    A run that cannot read what is stored stays in LOADING, and its attempt ends.
    """

    LOADING = "loading"
    WORKING = "working"
    REPLAYING = "replaying"
    ENDING = "ending"
    ENDED = "ended"
    CLOSED = "closed"
    CLEANING = "cleaning"


LOADING = RunPhase.LOADING
WORKING = RunPhase.WORKING
REPLAYING = RunPhase.REPLAYING
ENDING = RunPhase.ENDING
ENDED = RunPhase.ENDED
CLOSED = RunPhase.CLOSED
CLEANING = RunPhase.CLEANING


class RunState(Struct, eq=False):
    """The phase of a run, and the task of its handler."""

    job_id: str
    journal: Journal
    phase: RunPhase = LOADING
    ending: Ending | None = None
    """Why the run ends the call of its handler, or has ended it; None if it does not."""
    is_cancelling: bool = False
    """Whether a cancel was requested, in any phase."""
    main: asyncio.Task[Any] | None = None
    """The task of the handler; None before and after it."""
    cancels: int = 0
    """How often the run has cancelled this task."""

    def check_open(self) -> None:
        """Raise `NotOpen` if the handler does not run. In CLEANING, its task may do operations."""
        phase = self.phase
        if phase is LOADING:
            raise NotOpen(
                f"job {self.job_id}: the handler has not begun, and only it can do operations"
            )
        if phase is CLOSED or (phase is CLEANING and asyncio.current_task() is not self.main):
            raise NotOpen(
                f"job {self.job_id}: the handler has ended, and its context cannot be used any more"
            )

    def find_known_end(self) -> RunCancellation | RunCleanup | None:
        """Return the end that is known before the handler comes to it; None if none is."""
        if self.journal.ending is not None:
            return RunCleanup()
        return RunCancellation() if self.is_cancelling else None

    def note_end(self, ending: Ending) -> None:
        """Note that the call of the handler, or the cleanup, ends now."""
        if self.phase is not ENDED:
            self.ending = ending
        if self.phase is not CLEANING:
            self.phase = ENDED

    def end(self, ending: Ending) -> None:
        """End the call of the handler, or the cleanup: cancel its task."""
        self.note_end(ending)
        self.cancel_handler()

    def cancel_handler(self) -> None:
        """Cancel the task of the handler, until `uncancel`."""
        if self.main is not None:
            self.cancels += 1
            self.main.cancel()

    def uncancel(self) -> None:
        """Take back the cancels of this run, so that its task can await again."""
        if self.main is not None:
            for _ in range(self.cancels):
                self.main.uncancel()
            self.cancels = 0

    def begin_cleanup(self) -> None:
        """Let the current task, which called the handler, undo what the run did."""
        self.phase, self.ending = CLEANING, None
        self.main = asyncio.current_task()
