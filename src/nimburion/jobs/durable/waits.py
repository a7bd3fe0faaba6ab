"""Sleep, and wait for a signal."""

from __future__ import annotations

from typing import Any, cast

from msgspec import Raw

from nimburion.core.errors import InvalidStep
from nimburion.core.runs import StoredSignal, make_signal_source
from nimburion.core.timing.durations import DURATION_FORMS, Duration, read_seconds
from nimburion.jobs.durable.journal import SignalEntry, StoredEntry, TimeoutEntry, TimerEntry
from nimburion.jobs.durable.run import MAX_DELAY, DurableRun, Wait
from nimburion.jobs.durable.signals import SignalReturning


def read_delay(what: str, duration: Duration) -> float:
    """Return a duration in seconds. `InvalidStep` is raised if it is none, or over ten years."""
    seconds = read_seconds(duration)
    if seconds is None:
        raise InvalidStep(f"{what} must be {DURATION_FORMS}, not {duration!r}")
    if seconds > MAX_DELAY:
        raise InvalidStep(f"{what} is over the limit of ten years: {duration!r}")
    return max(0.0, seconds)


async def sleep(run: DurableRun, key: str, seconds: float, place: str) -> None:
    """Return `seconds` after an attempt came here first."""
    run.begin("sleep", key, place)
    stored = run.journal.find_passed(TimerEntry, key)
    sent = None
    if stored is None:
        await run.require_may_begin()
        sent = run.send(TimerEntry(key, seconds))
        stored = sent.stored
    delay = cast("TimerEntry", stored.entry).delay
    if delay > 0 and not run.is_over(stored, delay):
        await run.require_may_begin()
        await run.wait(Wait((), stored, delay, is_sleep=True))
    if sent is not None:
        await run.await_stored(sent)
    run.note_passed(stored, delay)


async def wait_for_signal(
    run: DurableRun, key: str, signal: SignalReturning[Any], timeout: float | None, place: str
) -> Any:  # noqa: ANN401 (the value of the signal)
    """Return the value of the next signal of this name; None if `timeout` seconds pass first."""
    run.begin("wait", key, place)
    known = run.journal.find_passed(SignalEntry, key)
    if known is not None:
        run.note_passed(known)
        run.journal.find_passed(TimeoutEntry, key)
        entry = cast("SignalEntry", known.entry)
        return None if entry.timed_out else signal.decode(bytes(entry.value))
    timer = run.journal.find_passed(TimeoutEntry, key)
    await run.require_may_begin()
    unread = next((one for one in run.signals if one.name == signal.name), None)
    if unread is not None and not _came_too_late(unread, timer):
        run.signals.remove(unread)
        await run.record_entry(SignalEntry(key, Raw(unread.payload)), takes=unread.number)
        return signal.decode(unread.payload)  # it is taken, also if it cannot be read
    if timer is not None and run.is_over(timer, cast("TimeoutEntry", timer.entry).delay):
        await run.record_entry(SignalEntry(key, timed_out=True))
        return None
    if timer is None and timeout is not None:
        timer = run.send(TimeoutEntry(key, timeout)).stored
    delay = None if timer is None else cast("TimeoutEntry", timer.entry).delay
    await run.wait(Wait((make_signal_source(run.job_id, signal.name),), timer, delay))
    raise AssertionError("a wait for a signal ends with a new attempt")


def _came_too_late(signal: StoredSignal, timer: StoredEntry | None) -> bool:
    """Return whether a signal came after the end of the wait."""
    if timer is None or timer.at is None:
        return False
    return signal.at > timer.at + cast("TimeoutEntry", timer.entry).delay
