"""The steps and the signals of the durable runs of the memory backend."""

from __future__ import annotations

from collections import defaultdict
from itertools import takewhile

import msgspec

from nimburion.backends.planning.runs import RunCursor, cut_run_page, decide_signal, get_known_from
from nimburion.core.job import State
from nimburion.core.runs import (
    CANCEL_SIGNAL,
    CLEANUP_STEP,
    MAX_DELIVERED_RUN,
    NewSignal,
    RecordedStep,
    RunPage,
    SignalOutcome,
    StoredSignal,
)
from nimburion.core.settlement import Recorded
from nimburion.core.timing.clock import MICRO


class KeptSignal(msgspec.Struct, eq=False):
    """A signal of a job. Its id is kept for a while after a step took it."""

    signal: StoredSignal
    is_unread: bool = True


class RunTables:
    """All steps and signals of a memory backend, by the id of their job."""

    def __init__(self) -> None:
        self.steps: defaultdict[str, dict[int, RecordedStep]] = defaultdict(dict)
        self.signals: defaultdict[str, dict[str, KeptSignal]] = defaultdict(dict)
        """By job and id of the signal, in the order in which they were stored."""

    def needs_cleanup(self, job_id: str) -> bool:
        """Return whether a worker ends the run when it is cancelled."""
        return CLEANUP_STEP in self.steps.get(job_id, ())

    def record(self, recorded: Recorded, now: int) -> bool:
        """Store a step, unless the run has one with this number. Return whether it was stored."""
        job_id = recorded.lease.job_id
        steps = self.steps[job_id]
        if recorded.number in steps:
            return False
        if recorded.forgets:
            steps.clear()
        steps[recorded.number] = RecordedStep(recorded.number, recorded.body, now / MICRO)
        if recorded.takes is not None:
            for entry in self.signals.get(job_id, {}).values():
                if entry.signal.number == recorded.takes:
                    entry.is_unread = False
        return True

    def add_signal(self, signal: NewSignal, state: State | None, now: int) -> SignalOutcome:
        """Decide what becomes of a signal to a job in this state, and store it."""
        known = self.signals.get(signal.job_id, {})
        unread = sum(one.is_unread and one.signal.name != CANCEL_SIGNAL for one in known.values())
        outcome = decide_signal(state, is_known=signal.id in known, unread=unread)
        if outcome is SignalOutcome.STORED:
            self._append_signal(signal, now)
        return outcome

    def forget_taken(self, job_id: str) -> None:
        """Forget the ids of taken signals that are old enough."""
        signals = self.signals.get(job_id, {})
        if not signals:
            return
        before = get_known_from(next(reversed(signals.values())).signal.number)
        old = takewhile(lambda one: one[1].signal.number < before, signals.items())
        for signal_id, entry in [*old]:
            if not entry.is_unread and signal_id != CANCEL_SIGNAL:
                del signals[signal_id]

    def add_cancel_signal(self, job_id: str, now: int) -> None:
        """Ask a run to end as cancelled, unless it was asked before."""
        if CANCEL_SIGNAL not in self.signals.get(job_id, {}):
            self._append_signal(NewSignal(job_id, CANCEL_SIGNAL, CANCEL_SIGNAL, b""), now)

    def _append_signal(self, signal: NewSignal, now: int) -> None:
        signals = self.signals[signal.job_id]
        number = next(reversed(signals.values())).signal.number + 1 if signals else 1
        stored = StoredSignal(number, signal.name, signal.payload, now / MICRO)
        signals[signal.id] = KeptSignal(stored)

    def list_unread(self, job_id: str) -> list[StoredSignal]:
        """Return the unread signals of a job in their order."""
        return [one.signal for one in self.signals.get(job_id, {}).values() if one.is_unread]

    def has_unread(self, job_id: str, name: str) -> bool:
        """Return whether a job has an unread signal of this name."""
        return any(signal.name == name for signal in self.list_unread(job_id))

    def read_page(self, job_id: str, limit: int, after: str | None) -> RunPage:
        """Return a page of the steps and the unread signals of a run."""
        cursor = RunCursor.parse(after)
        steps = sorted(self.steps.get(job_id, {}).values(), key=lambda step: step.number)
        return cut_run_page(
            cursor,
            [step for step in steps if step.number > cursor.step],
            [one for one in self.list_unread(job_id) if one.number > cursor.signal],
            limit,
        )

    def find_small_page(self, job_id: str) -> RunPage | None:
        """Return all steps and unread signals of a run; None if there are none, or too many for a
        delivery.
        """
        steps, signals = self.steps.get(job_id), self.list_unread(job_id)
        if not steps and not signals:
            return None
        page = RunPage([steps[number] for number in sorted(steps)] if steps else [], signals)
        size = sum([len(step.body) for step in page.steps])
        size += sum([len(signal.payload) for signal in signals]) if signals else 0
        return page if size <= MAX_DELIVERED_RUN else None

    def remove(self, job_id: str) -> None:
        """Remove the steps and the signals of a job, whose record is removed."""
        self.steps.pop(job_id, None)
        self.signals.pop(job_id, None)
