"""Sleep, wait for a signal, and wait for the first of several signals and child jobs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, cast

import msgspec
from msgspec import Raw

from nimburion.core.errors import InvalidStep
from nimburion.core.flows import SourceKind, WaitSource
from nimburion.core.runs import StoredSignal, make_signal_source
from nimburion.core.text.shortening import shorten
from nimburion.core.timing.durations import DURATION_FORMS, Duration, read_seconds
from nimburion.jobs.durable.branches import Wait
from nimburion.jobs.durable.children import ChildJob, belongs_to, get_flow, read_ends
from nimburion.jobs.durable.journal import SignalEntry, StoredEntry, TimeoutEntry, TimerEntry
from nimburion.jobs.durable.run import MAX_DELAY, ROUNDING, CallSite, DurableRun
from nimburion.jobs.durable.signals import Signal, SignalReturning


def read_delay(what: str, duration: Duration) -> float:
    """Return a duration in seconds. `InvalidStep` is raised if it is none, or over ten years."""
    seconds = read_seconds(duration)
    if seconds is None:
        raise InvalidStep(f"{what} must be {DURATION_FORMS}, not {duration!r}")
    if seconds > MAX_DELAY:
        raise InvalidStep(f"{what} is over the limit of ten years: {duration!r}")
    return max(0.0, seconds)


async def sleep(run: DurableRun, key: str, seconds: float, place: CallSite) -> None:
    """Return `seconds` after an attempt came here first."""
    run.begin("sleep", key, place)
    stored = run.journal.find_passed(TimerEntry, key)
    sent = None
    if stored is None:
        if not run.may_begin:
            await run.require_may_begin()
        stored = sent = run.recorder.send(TimerEntry(key, seconds), is_awaited=seconds == 0)
    timer = stored.entry
    assert isinstance(timer, TimerEntry)
    delay = timer.delay
    if delay > 0 and not run.is_over(stored, delay):
        if not run.may_begin:
            await run.require_may_begin()
        await run.branches.wait(Wait((), stored, delay, is_sleep=True))
    if sent is not None:
        await run.await_stored(sent)
    run.note_passed(stored, None if stored.at is None else stored.at + delay)


async def wait_for_signal(
    run: DurableRun, key: str, signal: SignalReturning[Any], timeout: float | None, place: CallSite
) -> Any:  # noqa: ANN401 (the value of the signal)
    """Return the value of the next signal of this name; None if `timeout` seconds pass first."""
    run.begin("wait", key, place)
    known = run.journal.find_passed(SignalEntry, key)
    if known is not None:
        entry = cast("SignalEntry", known.entry)
        run.note_passed(known, entry.at)
        run.journal.find_passed(TimeoutEntry, key)
        return None if entry.timed_out else signal.decode(bytes(entry.value))
    timer = run.journal.find_passed(TimeoutEntry, key)
    await run.require_may_begin()
    await _read_until(run, _find_end(timer))
    unread = next((one for one in run.signals if one.name == signal.name), None)
    if unread is not None and unread.at <= _find_end(timer):
        run.signals.remove(unread)
        entry = SignalEntry(key, Raw(unread.payload), at=unread.at)
        is_awaited = run.branches.has_several()
        sent = run.recorder.send(entry, takes=unread.number, is_awaited=is_awaited)
        if is_awaited:
            await run.await_stored(sent)
        # Without branches, another attempt takes the same signal here, so nothing is awaited.
        run.note_passed(sent, unread.at)
        return signal.decode(unread.payload)  # it is taken, also if it cannot be read
    source = make_signal_source(run.job_id, signal.name)
    return await _wait_until_timeout(run, key, (source,), timer, timeout)


AnySource = SignalReturning[Any] | ChildJob[Any]
"""What `ctx.wait_any` takes."""


def check_sources(run: DurableRun, sources: Sequence[object], place: CallSite) -> None:
    """Raise `InvalidStep` if `ctx.wait_any` cannot wait for these."""
    if not sources:
        raise InvalidStep(
            f"{place}: wait_any needs at least one signal or child job; to pause, use ctx.sleep"
        )
    for source in sources:
        if inspect.iscoroutine(source):
            source.close()
        if not isinstance(source, Signal | ChildJob):
            is_group = isinstance(source, list | tuple | set | dict)
            raise InvalidStep(
                f"{place}: wait_any takes signals, and child jobs that `await ctx.start(…)` has "
                f"returned, not {shorten(repr(source), 80)}"
                + ("; pass each by itself: `wait_any(*sources)`" if is_group else "")
            )
        if isinstance(source, ChildJob) and not belongs_to(run, source):
            raise InvalidStep(f"{place}: {source!r} was started by another run or attempt")


async def wait_for_first(
    run: DurableRun, key: str, sources: Sequence[AnySource], timeout: float | None, place: CallSite
) -> Any:  # noqa: ANN401 (one of the sources)
    """Return the source that came first, and take nothing; None if `timeout` seconds pass first."""
    run.begin("wait", key, place)
    known = run.journal.find_passed(SignalEntry, key)
    if known is not None:
        run.note_passed(known)
        run.journal.find_passed(TimeoutEntry, key)
        return _find_stored(sources, cast("SignalEntry", known.entry), place)
    timer = run.journal.find_passed(TimeoutEntry, key)
    await run.require_may_begin()
    await _read_until(run, _find_end(timer))
    arrivals = await _find_arrivals(run, sources)
    first = min(arrivals, key=arrivals.__getitem__, default=None)
    if first is not None and arrivals[first][0] <= _find_end(timer):
        await run.record_entry(SignalEntry(key, Raw(_name(sources[first]))))
        return sources[first]
    waiting = tuple(_make_source(run, source) for source in sources)
    return await _wait_until_timeout(run, key, waiting, timer, timeout)


async def _wait_until_timeout(
    run: DurableRun,
    key: str,
    sources: tuple[WaitSource, ...],
    timer: StoredEntry | None,
    timeout: float | None,
) -> None:
    """Return when the timeout is over. Until then, suspend the run."""
    if timer is not None and run.is_over(timer, cast("TimeoutEntry", timer.entry).delay):
        await run.record_entry(SignalEntry(key, timed_out=True))
        return
    if timer is None and timeout is not None:
        timer = run.recorder.send(TimeoutEntry(key, timeout))
    delay = None if timer is None else cast("TimeoutEntry", timer.entry).delay
    await run.branches.wait(Wait(sources, timer, delay))
    raise AssertionError("this wait ends with a new attempt")


async def _read_until(run: DurableRun, end: float) -> None:
    """If a wait has ended by itself, know all signals that came before its end.

    A run is due when its wait has ended, and its signals are read when it is leased or later.
    """
    if run.record.delivery.due < end <= run.services.now() + ROUNDING:
        await run.read_new_signals()


def _find_end(timer: StoredEntry | None) -> float:
    """Return the time at which a wait ends by itself."""
    if timer is None or timer.at is None:
        return math.inf
    return timer.at + cast("TimeoutEntry", timer.entry).delay


async def _find_arrivals(
    run: DurableRun, sources: Sequence[AnySource]
) -> dict[int, tuple[float, int]]:
    """Return when each source came that has come, by its place: its time, and the number of the
    signal, which tells the first of two that came at the same time.
    """
    children = [source for source in sources if isinstance(source, ChildJob)]
    run.branches.begin_work()
    try:
        ends = await read_ends(run, children)
    finally:
        run.branches.end_work()
    if any(run.record.delivery.due < end for end in ends.values()):
        await run.read_new_signals()  # one may have come before the child ended
    signals: dict[str, StoredSignal] = {}
    for unread in run.signals:
        signals.setdefault(unread.name, unread)
    arrivals: dict[int, tuple[float, int]] = {}
    for place, source in enumerate(sources):
        if isinstance(source, ChildJob):
            if source.id in ends:
                arrivals[place] = ends[source.id], 0
        elif source.name in signals:
            signal = signals[source.name]
            arrivals[place] = signal.at, signal.number
    return arrivals


def _find_stored(
    sources: Sequence[AnySource], entry: SignalEntry, place: CallSite
) -> AnySource | None:
    """Return the source that an earlier attempt found first."""
    if entry.timed_out:
        return None
    name = bytes(entry.value)
    for source in sources:
        if _name(source) == name:
            return source
    raise InvalidStep(
        f"{place}: an earlier attempt ended this wait with {name.decode()}, for which the "
        "code does not wait any more; keep it among the sources, or give the wait another key"
    )


def _name(source: AnySource) -> bytes:
    """Return JSON that names a source in the journal."""
    if isinstance(source, ChildJob):
        return msgspec.json.encode({"job": source.id})
    return msgspec.json.encode({"signal": source.name})


def _make_source(run: DurableRun, source: AnySource) -> WaitSource:
    if isinstance(source, ChildJob):
        return WaitSource(SourceKind.FLOW, get_flow(source))
    return make_signal_source(run.job_id, source.name)
