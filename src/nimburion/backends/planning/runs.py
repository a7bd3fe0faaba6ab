"""What becomes of a signal to a job, and what a page of a durable run contains."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from nimburion.core.errors import InvalidJob
from nimburion.core.job import State
from nimburion.core.runs import (
    MAX_UNREAD_SIGNALS,
    RUN_PAGE_BYTES,
    RecordedStep,
    RunPage,
    SignalOutcome,
    StoredSignal,
)


def decide_signal(state: State | None, *, is_known: bool, unread: int) -> SignalOutcome:
    """Return what becomes of a signal. It is stored only if the outcome is `STORED`.

    `state`: that of its job; None: there is none. `is_known`: whether the job has, or had, a signal
    with this id. `unread`: how many unread signals the job has.

    >>> decide_signal(State.COMPLETED, is_known=True, unread=0)
    <SignalOutcome.FINISHED: 'finished'>
    """
    if state is None:
        return SignalOutcome.UNKNOWN
    if state.finished:
        return SignalOutcome.FINISHED
    if is_known:
        return SignalOutcome.EXISTS
    return SignalOutcome.STORED if unread < MAX_UNREAD_SIGNALS else SignalOutcome.FULL


def get_known_from(last_number: int) -> int:
    """Return the number of the first signal of a job whose id is known in any case. Those before it
    are forgotten once they are taken. `last_number`: that of the last signal that was stored.

    >>> get_known_from(1_003)
    4
    """
    return last_number - MAX_UNREAD_SIGNALS + 1


class RunCursor(NamedTuple):
    """The place in a run at which a page ends."""

    step: int = -1
    """The number of the last step that was read."""
    signal: int = 0
    """The number of the last signal that was read."""

    @classmethod
    def parse(cls, text: str | None) -> RunCursor:
        """Return the cursor that a page named; that before the first page for None.

        Raises `InvalidJob` for any other text.

        >>> RunCursor.parse("12:0")
        RunCursor(step=12, signal=0)
        """
        if text is None:
            return cls()
        step, separator, signal = text.partition(":")
        is_valid = separator and step.removeprefix("-").isascii() and signal.isascii()
        if not (is_valid and step.removeprefix("-").isdigit() and signal.isdigit()):
            raise InvalidJob(f"{text!r} is not the `next` of a page of a run")
        return cls(int(step), int(signal))

    def __str__(self) -> str:
        return f"{self.step}:{self.signal}"


def cut_run_page(
    cursor: RunCursor, steps: Sequence[RecordedStep], signals: Sequence[StoredSignal], limit: int
) -> RunPage:
    """Return the page that begins behind `cursor`: up to `limit` of the steps and signals.

    `steps` and `signals` are those behind the cursor in their order, `limit` + 1 of each if there
    are that many. A page has at least one of them, and ends after about `RUN_PAGE_BYTES`.
    """
    sizes = [len(step.body) for step in steps] + [len(signal.payload) for signal in signals]
    count = _count_fitting(sizes[:limit])
    page_steps, page_signals = steps[:count], signals[: max(0, count - len(steps))]
    if count == len(sizes):
        return RunPage(list(page_steps), list(page_signals))
    last_step = page_steps[-1].number if page_steps else cursor.step
    last_signal = page_signals[-1].number if page_signals else cursor.signal
    return RunPage(list(page_steps), list(page_signals), str(RunCursor(last_step, last_signal)))


def _count_fitting(sizes: Sequence[int]) -> int:
    """Return how many of these sizes fit into a page; at least one."""
    totals = accumulate(sizes)
    return max(sum(total <= RUN_PAGE_BYTES for total in totals), min(1, len(sizes)))
