"""The timeline of a durable run, for operators: what it did, when, and what it waits for now.

It is made from what the run has stored and from one consistent read of its job. The start of a step
is not stored: a step begins after what was stored before it, so its time includes waits for a
worker.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Raw

from nimburion.core.backend import Backend
from nimburion.core.diagnosis.explanations import Facts, find_causes
from nimburion.core.diagnosis.running_jobs import read_facts
from nimburion.core.flows import SourceKind
from nimburion.core.job import JobRecord, State
from nimburion.core.runs import (
    CANCEL_SIGNAL,
    RecordedStep,
    RunPage,
    StoredSignal,
    read_time_source,
    split_signal_source,
)
from nimburion.jobs.durable.journal import (
    NULL,
    AnyEntry,
    ChangedEntry,
    ChildrenEntry,
    EndingEntry,
    ForgottenEntry,
    OutcomeEntry,
    RestartEntry,
    RetryEntry,
    SignalEntry,
    StepEntry,
    StoredError,
    TimeoutEntry,
    TimerEntry,
    UndoEntry,
    decode_entry,
)
from nimburion.jobs.payloads.codec import UnreadablePayload

MAX_STEPS_READ = 1_000
"""The most steps that `read_run_timeline` reads by default."""
_MAX_PAGES = 8
"""A page has at least one step and about 4 MiB."""
_UNDO = "undo "
"""The start of the key under which the failures of an undo are stored."""


class EntryKind(enum.StrEnum):
    """What an entry of the timeline describes."""

    STEP = "step"
    SLEEP = "sleep"
    WAIT = "wait"
    """A wait for a signal."""
    CHILDREN = "children"
    """Child jobs."""
    UNDO = "undo"
    CHANGED = "changed"
    """The run passed a change of its code."""
    RESTART = "restart"
    """The run began anew. Its earlier steps are not kept."""
    END = "end"
    """The run began to undo what it did."""


class EntryState(enum.StrEnum):
    """How far what an entry describes is."""

    DONE = "done"
    FAILED = "failed"
    RETRYING = "retrying"
    """It failed, and is tried again."""
    STARTED = "started"
    """Child jobs were started, and the run does not wait for them now."""
    WAITING = "waiting"
    TIMEOUT = "timeout"
    """The signal did not come in time."""
    CANCELLED = "cancelled"
    """The job ended first."""


_OPEN = frozenset({EntryState.WAITING, EntryState.RETRYING})


class TimelineEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What a durable handler did, or waits for. Times are epoch seconds on the backend's clock."""

    kind: EntryKind
    key: str
    state: EntryState
    started_at: float | None = None
    """When it began at the earliest; None if that is not stored."""
    ended_at: float | None = None
    until: float | None = None
    """When a wait ends by itself, or when a step is tried again."""
    tries: int = 0
    """How often its function was called, as far as that is stored; 0 if it has no function."""
    value: Raw | None = None
    """The value of a step or of a signal, the list of the results of child jobs, or the arguments
    with which the run began anew.
    """
    value_size: int | None = None
    """The size of the value in bytes, as JSON."""
    error: str = ""
    flow: str | None = None
    """The flow of the child jobs."""
    jobs: int = 0
    """The number of child jobs. Their ids are `FLOW.0` and so on."""
    names: tuple[str, ...] = ()
    """The names of the child jobs."""

    @property
    def is_open(self) -> bool:
        """Whether the run waits for it now."""
        return self.state in _OPEN


class RunTimeline(msgspec.Struct, frozen=True, kw_only=True):
    """What a durable run did and what it waits for now."""

    job: JobRecord
    """Without its payload."""
    now: float
    why: str
    """Why the job is where it is, in a sentence."""
    steps: int
    """The number of stored steps that were read."""
    is_complete: bool
    """False: the run has more steps. Its signals were not read then."""
    unreadable: int
    """The number of steps that a newer version stored."""
    entries: list[TimelineEntry]
    """In the order of their beginnings; those for which the run waits now are last."""
    signals: list[StoredSignal]
    """The unread signals, without the one that asks the run to end."""
    is_cancelling: bool
    """Whether the run was asked to end as cancelled, and has not ended."""


async def read_run_timeline(
    backend: Backend, job_id: str, *, limit: int = MAX_STEPS_READ
) -> RunTimeline:
    """Return the timeline of a run. At most `limit` steps and signals are read.

    Raises `JobNotFound`.
    """
    facts = await read_facts(backend, job_id)
    return make_run_timeline(facts, await read_stored(backend, job_id, limit))


async def read_stored(backend: Backend, job_id: str, limit: int = MAX_STEPS_READ) -> RunPage:
    """Return the steps and the signals of a run, up to `limit` of both. `next` is set if there may
    be more. Raises `JobNotFound`.
    """
    steps: list[RecordedStep] = []
    signals: list[StoredSignal] = []
    after: str | None = None
    for _ in range(_MAX_PAGES):
        left = limit - len(steps) - len(signals)
        page = await backend.reads.read_run(job_id, limit=left, after=after)
        steps += page.steps
        signals += page.signals
        after = page.next
        if after is None or len(steps) + len(signals) >= limit:
            break
    return RunPage(steps, signals, after)


def make_run_timeline(facts: Facts, stored: RunPage) -> RunTimeline:
    """Return the timeline of a run from what is stored of it."""
    found = _Timeline(facts.job)
    unreadable = 0
    for step in stored.steps:
        try:
            entry = decode_entry(step.body)
        except UnreadablePayload:
            unreadable += 1
        else:
            found.add(entry, step.at)
    found.end(facts)
    return RunTimeline(
        job=facts.job,
        now=facts.now,
        why=find_causes(facts)[0].text,
        steps=len(stored.steps),
        is_complete=stored.next is None,
        unreadable=unreadable,
        entries=sorted(found.list_all(), key=lambda one: one.is_open),
        signals=[one for one in stored.signals if one.name != CANCEL_SIGNAL],
        is_cancelling=not facts.job.state.finished
        and any(one.name == CANCEL_SIGNAL for one in stored.signals),
    )


class _Timeline:
    """The entries of the timeline while the journal of the run is read."""

    def __init__(self, job: JobRecord) -> None:
        self._found: dict[tuple[EntryKind, str], TimelineEntry] = {}
        starts = [attempt.started_at for attempt in job.attempts] + [job.started_at]
        self._starts = sorted({one for one in starts if one is not None})
        """When attempts began, as far as that is known."""
        self._moments: list[float] = []
        """When something ended, in the order in which that is known."""

    def list_all(self) -> Iterable[TimelineEntry]:
        """Return the entries in the order of their beginnings."""
        return self._found.values()

    def add(self, entry: AnyEntry, at: float) -> None:
        """Add what an entry of the journal says."""
        self._add_call(entry, at)
        self._add_wait(entry, at)
        self._add_children(entry, at)
        self._add_mark(entry, at)

    def _add_call(self, entry: AnyEntry, at: float) -> None:
        match entry:
            case StepEntry(key=key, value=value, error=None):
                self._end(EntryKind.STEP, key, at, value=value)
            case StepEntry(key=key, error=error):
                self._fail(EntryKind.STEP, key, at, _format_error(error))
            case RetryEntry():
                self._add_retry(entry, at)
            case UndoEntry(key=key):
                self._end(EntryKind.UNDO, key, at)
            case _:
                pass

    def _add_wait(self, entry: AnyEntry, at: float) -> None:
        match entry:
            case TimerEntry(key=key, delay=delay):
                self._begin(EntryKind.SLEEP, key, at, until=at + delay)
                self._moments.append(at + delay)
            case TimeoutEntry(key=key, delay=delay):
                self._begin(EntryKind.WAIT, key, at, until=at + delay)
            case SignalEntry(key=key, timed_out=True):
                self._end(EntryKind.WAIT, key, at, EntryState.TIMEOUT)
            case SignalEntry(key=key, value=value):
                self._end(EntryKind.WAIT, key, at, value=value)
            case _:
                pass

    def _add_children(self, entry: AnyEntry, at: float) -> None:
        kind, key = EntryKind.CHILDREN, entry.key
        match entry:
            case ChildrenEntry(flow=flow, count=count, names=names):
                self._begin(kind, key, at, EntryState.STARTED, flow=flow, jobs=count, names=names)
            case OutcomeEntry(values=values, error=None):
                self._end(kind, key, at, value=Raw(b"[" + b",".join(map(bytes, values)) + b"]"))
            case OutcomeEntry(error=error):
                self._fail(kind, key, at, _format_error(error))
            case _:
                pass

    def _add_mark(self, entry: AnyEntry, at: float) -> None:
        match entry:
            case ForgottenEntry(key=key, of=of):
                self._forget(of, key)
            case ChangedEntry(key=key):
                self._begin(EntryKind.CHANGED, key, at)
                self._end(EntryKind.CHANGED, key, at)
            case RestartEntry(generation=generation, payload=payload):
                self._begin(EntryKind.RESTART, str(generation), at)
                known = None if payload == NULL else payload
                self._end(EntryKind.RESTART, str(generation), at, value=known)
            case EndingEntry(error=error, reason=reason):
                text = reason if error is None else f"{error.type}: {error.message}"
                self._begin(EntryKind.END, "", at)
                self._fail(EntryKind.END, "", at, text)
            case _:
                pass

    def _add_retry(self, entry: RetryEntry, at: float) -> None:
        kind, key = EntryKind.STEP, entry.key
        if key.startswith(_UNDO):
            kind, key = EntryKind.UNDO, key.removeprefix(_UNDO)
        self._update(
            kind,
            key,
            at,
            state=EntryState.RETRYING,
            until=at + entry.delay,
            tries=entry.tries,
            error=entry.message,
        )
        self._moments.append(at)

    def _begin(
        self,
        kind: EntryKind,
        key: str,
        at: float,
        state: EntryState = EntryState.WAITING,
        **fields: object,
    ) -> None:
        entry = TimelineEntry(kind=kind, key=key, state=state, started_at=at)
        self._found[kind, key] = msgspec.structs.replace(entry, **fields)
        self._moments.append(at)

    def _fail(self, kind: EntryKind, key: str, at: float, error: str) -> None:
        self._end(kind, key, at, EntryState.FAILED, error=error)

    def _end(
        self,
        kind: EntryKind,
        key: str,
        at: float,
        state: EntryState = EntryState.DONE,
        *,
        value: Raw | None = None,
        error: str = "",
    ) -> None:
        known = self._found.get((kind, key))
        has_function = kind in {EntryKind.STEP, EntryKind.UNDO}
        tries = (known.tries if known else 0) + 1 if has_function else 0
        size = None if value is None else len(bytes(value))
        fields = {
            "state": state,
            "ended_at": at,
            "tries": tries,
            "value": value,
            "value_size": size,
            "error": error,
        }
        self._update(kind, key, at, **fields, **({"until": None} if has_function else {}))
        self._moments.append(at)

    def _update(self, kind: EntryKind, key: str, at: float, **fields: object) -> None:
        known = self._found.get((kind, key))
        if known is None:
            known = TimelineEntry(
                kind=kind, key=key, state=EntryState.DONE, started_at=self._find_start(at)
            )
        self._found[kind, key] = msgspec.structs.replace(known, **fields)

    def _find_start(self, at: float) -> float | None:
        """Return the last moment up to `at` at which the run is known to have gone on."""
        known = (*self._moments, *self._starts)
        return max((one for one in known if one <= at), default=None)

    def _forget(self, of: str, key: str) -> None:
        """Note that an error ended an attempt, so that the next tries again."""
        kind = EntryKind.CHILDREN if of == "outcome" else EntryKind.STEP
        known = self._found.get((kind, key))
        if known is not None:
            self._found[kind, key] = msgspec.structs.replace(
                known, state=EntryState.RETRYING, ended_at=None, until=None
            )

    def end(self, facts: Facts) -> None:
        """Note what the run waits for now, or how its end left what it waited for."""
        for place, one in list(self._found.items()):
            self._found[place] = _update_open(one, facts)
        if facts.job.state is State.SUSPENDED:
            self._add_waits(facts)

    def _add_waits(self, facts: Facts) -> None:
        """Note for what the suspended run waits, also where that has no entry."""
        sources = [one.condition.source for one in facts.unmet]
        flows = {one.id for one in sources if one.kind is SourceKind.FLOW}
        for place, one in list(self._found.items()):
            if one.flow in flows:
                self._found[place] = msgspec.structs.replace(one, state=EntryState.WAITING)
        signals = [
            split_signal_source(one.id)[1] for one in sources if one.kind is SourceKind.SIGNAL
        ]
        named = [name for name in signals if (EntryKind.WAIT, name) not in self._found]
        if len(named) > self._count_open(EntryKind.WAIT, signals):
            for name in named:  # a wait without a timeout stores nothing
                self._begin(EntryKind.WAIT, name, self._find_start(facts.now) or facts.now)
        times = [read_time_source(one.id) for one in sources if one.kind is SourceKind.TIME]
        times = [at for at in times if at > facts.now]
        if times and not any(one.is_open and one.until for one in self._found.values()):
            start = self._find_start(facts.now) or facts.now
            self._begin(EntryKind.SLEEP, "", start, until=min(times))

    def _count_open(self, kind: EntryKind, without: Sequence[str]) -> int:
        return sum(
            one.kind is kind and one.is_open and one.key not in without
            for one in self._found.values()
        )


def _update_open(entry: TimelineEntry, facts: Facts) -> TimelineEntry:
    """Return an entry that had not ended when the journal was last written, as it is now."""
    job = facts.job
    end = facts.now if job.finished_at is None else job.finished_at
    is_sleep = entry.kind is EntryKind.SLEEP
    if is_sleep and entry.until is not None and entry.until <= end:
        return msgspec.structs.replace(entry, state=EntryState.DONE, ended_at=entry.until)
    if not job.state.finished or not entry.is_open:
        return entry
    is_retrying = entry.state is EntryState.RETRYING
    state = EntryState.FAILED if is_retrying else EntryState.CANCELLED
    return msgspec.structs.replace(entry, state=state, ended_at=end, until=None)


def _format_error(error: StoredError | None) -> str:
    if error is None:
        return ""
    return f"{error.type}: {error.message}" if error.message else error.type
