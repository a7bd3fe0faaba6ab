"""The durable runs of a chaos run, and what must be true of them after it.

A run has steps, two sleeps, two signals, children, undos, and a wait for the first of a signal and
a child. Each call of a step is logged, and returns a text that no other call returns. So the
journal of the backend says which call was recorded, and the log says which calls there were.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import NamedTuple

import msgspec

from benchmarks.chaos.event_log import (
    EventWriter,
    RunEnded,
    RunStarted,
    StepRan,
    format_token,
    now,
    parse_token,
)
from benchmarks.chaos.reconcile import End, EventLog
from nimburion.core.backend import Backend
from nimburion.core.errors import PermanentError
from nimburion.core.job import Reason, State
from nimburion.core.runs import RecordedStep
from nimburion.jobs import Context, Processor
from nimburion.jobs.durable import DurableContext, Signal
from nimburion.jobs.durable.journal import (
    AnyEntry,
    ForgottenEntry,
    OutcomeEntry,
    RetryEntry,
    SignalEntry,
    StepEntry,
    UndoEntry,
    decode_entry,
    get_kind,
)
from nimburion.jobs.handling.context import get_record

NAME = "durable"
"""The name of the durable jobs."""
FIRST, SECOND = Signal("first", str), Signal("second", str)
"""The signals of each run. The second does not come to a run that is cancelled."""
STEPS = ("one", "two", "three", "four", "five", "six")
UNDONE = ("one", "four")
"""The steps that are undone if the run does not complete."""
CHILDREN = 3
RACER = "racer"
"""The key of the child that is started, and waited for together with the second signal."""
FIRST_OF_TWO = "first of two"
"""The key of that wait."""
STEP = 0.25
"""How long a step takes, in seconds."""
SLEEP = 1.2
"""Seconds; the run is suspended meanwhile."""


class PlannedRun(NamedTuple):
    """A durable run, and how it must end."""

    id: str
    end: State

    @property
    def jobs(self) -> int:
        """How many jobs it makes, itself included."""
        return 1 if self.end is State.CANCELLED else 3 + CHILDREN


def make_runs(count: int, seed: int) -> list[PlannedRun]:
    """Return this number of runs. One of eight fails at its end, and one of eight is cancelled."""
    random = Random(seed)
    ends = [State.FAILED, State.CANCELLED] + 6 * [State.COMPLETED]
    return [PlannedRun(f"durable-{number}", random.choice(ends)) for number in range(count)]


class DurableHandlers:
    """The durable function and the job of its children."""

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer

    def register(self, processor: Processor) -> None:
        """Register both."""
        writer = self._writer

        @processor.job(name="part")
        async def part(ctx: Context) -> str:
            token = log_start(writer, ctx)
            await asyncio.sleep(0.004)
            writer.write(RunEnded(now(), token, "returned"))
            return token

        @processor.job(name=NAME)
        async def durable(ctx: DurableContext, end: str) -> str:
            token = log_start(writer, ctx)
            outcome = "interrupted"
            steps = Steps(writer, ctx.job_id, token)
            try:
                steps.undo(ctx, "one")
                values = [await steps.do(ctx, "one")]
                await ctx.sleep("first", SLEEP)
                values.append(await steps.do(ctx, "two"))
                values.append(await ctx.wait_for(FIRST))
                if end == State.CANCELLED:
                    await ctx.wait_for(SECOND)
                values += await asyncio.gather(
                    steps.do(ctx, "three"), ctx.options(key="child").run(part.job())
                )
                steps.undo(ctx, "four")
                values.append(await steps.do(ctx, "four"))
                values += await ctx.run_all(part.job() for _ in range(CHILDREN))
                values.append(await steps.do(ctx, "five"))
                racer = await ctx.options(key=RACER).start(part.job())
                await ctx.sleep("second", SLEEP)
                came = await ctx.options(key=FIRST_OF_TWO).wait_any(racer, SECOND)
                values.append("signal" if came is SECOND else "child")
                values.append(await racer.result())
                values.append(await ctx.wait_for(SECOND))
                values.append(await steps.do(ctx, "six"))
                if end == State.FAILED:
                    raise PermanentError("as planned")
                outcome = "returned"
                return f"{token} {compute_digest(values)}"
            finally:
                writer.write(RunEnded(now(), token, outcome))

        self.durable = durable


class Steps:
    """The steps of one execution. Each call is logged."""

    def __init__(self, writer: EventWriter, job: str, token: str) -> None:
        self._writer = writer
        self._job = job
        self._token = token
        self._calls = 0

    async def do(self, ctx: DurableContext, key: str) -> str:
        """Do a step, and return its value."""

        async def work() -> str:
            value = self._log(key)
            await asyncio.sleep(STEP)  # a worker that is killed now has not recorded it
            return value

        value: str = await ctx.options(key=key).step(work)
        return value

    def undo(self, ctx: DurableContext, key: str) -> None:
        """Undo a step at the end, if the run does not complete."""

        async def work() -> None:
            self._log(f"undo {key}")

        ctx.options(key=key).undo(work)

    def _log(self, key: str) -> str:
        self._calls += 1
        value = f"{self._token} {self._calls}"
        self._writer.write(StepRan(now(), self._job, key, self._token, value))
        return value


def log_start(writer: EventWriter, ctx: Context) -> str:
    """Log that a handler began, and return the token of its lease."""
    token = format_token(get_record(ctx).delivery.lease)
    writer.write(RunStarted(now(), ctx.job_id, ctx.attempt, token))
    return token


def compute_digest(values: Iterable[str]) -> str:
    """Return what a run returns of its values."""
    return hashlib.blake2b("|".join(values).encode(), digest_size=8).hexdigest()


class DurableFigures(msgspec.Struct):
    """What became of the durable runs. Violations are lists of ids; all of them must be empty."""

    runs: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    lost: int = 0
    """Runs that lost their worker as often as is allowed. They end as failed, and undo nothing."""
    executions: int = 0
    """How often the function was called, from its beginning."""
    recorded: int = 0
    """Steps and undos in the journals."""
    calls: int = 0
    """Calls of steps and undos."""
    calls_again: int = 0
    """Calls of steps and undos whose worker was lost before they were recorded."""
    stuck: list[str] = []
    """Runs that have not ended."""
    ended_otherwise: list[str] = []
    """Runs that have ended in another state than planned."""
    recorded_twice: list[str] = []
    """Steps of which the journal has two records."""
    called_again: list[str] = []
    """Steps that were called twice in one execution, or after they were recorded."""
    not_called: list[str] = []
    """Steps whose recorded value no call has returned, and undos that are missing."""
    wrong: list[str] = []
    """Runs whose result does not follow from what is recorded, or from their children."""

    @property
    def violations(self) -> dict[str, list[str]]:
        """The runs and steps of each violation that occurred."""
        named = {
            "durable run is stuck": self.stuck,
            "durable run ended otherwise": self.ended_otherwise,
            "step recorded twice": self.recorded_twice,
            "step called again": self.called_again,
            "step recorded without a call": self.not_called,
            "result of a durable run is wrong": self.wrong,
        }
        return {name: ids for name, ids in named.items() if ids}


async def read_journals(
    backend: Backend, runs: Sequence[PlannedRun]
) -> dict[str, list[RecordedStep]]:
    """Return the steps of each run, in the order of their numbers."""
    journals: dict[str, list[RecordedStep]] = {}
    for run in runs:
        after: str | None = None
        steps = journals.setdefault(run.id, [])
        while True:
            page = await backend.reads.read_run(run.id, after=after)
            steps += page.steps
            after = page.next
            if after is None:
                break
    return journals


def reconcile_runs(
    planned: Sequence[PlannedRun],
    log: EventLog,
    ends: Mapping[str, End],
    journals: Mapping[str, Sequence[RecordedStep]],
) -> DurableFigures:
    """Compare the journals of runs with the calls that were logged."""
    figures = DurableFigures(runs=len(planned))
    ran: dict[str, list[StepRan]] = defaultdict(list)
    for call in log.steps:
        ran[call.job].append(call)
    for run in planned:
        end = ends.get(run.id)
        figures.executions += sum(one.attempt is not None for one in log.by_job[run.id])
        if end is None or not end.state.finished:
            figures.stuck.append(run.id)
            continue
        figures.completed += end.state is State.COMPLETED
        figures.failed += end.state is State.FAILED
        figures.cancelled += end.state is State.CANCELLED
        is_lost = end.reason == Reason.LOST
        figures.lost += is_lost
        if end.state is not run.end and not is_lost:
            figures.ended_otherwise.append(run.id)
        entries = [decode_entry(step.body) for step in journals.get(run.id, ())]
        undone = _check_steps(run, entries, ran[run.id], log, figures)
        if not (undone or is_lost or run.end is State.COMPLETED):
            figures.not_called.append(f"{run.id} undo")
        if end.state is State.COMPLETED and end.value != _compute_result(run, entries, ends):
            figures.wrong.append(run.id)
    return figures


def _check_steps(
    run: PlannedRun,
    entries: Sequence[AnyEntry],
    ran: Sequence[StepRan],
    log: EventLog,
    figures: DurableFigures,
) -> bool:
    """Compare the journal of one run with the calls of its steps. Return whether it is undone."""
    kept = [one for one in entries if not isinstance(one, RetryEntry | ForgottenEntry)]
    for (kind, key), count in Counter((get_kind(one), one.key) for one in kept).items():
        if count > 1:
            figures.recorded_twice.append(f"{run.id} {kind} {key}")
    calls: dict[str, list[StepRan]] = defaultdict(list)
    for call in ran:
        calls[call.step].append(call)
    values = _read_values(kept, StepEntry)
    undone = [one.key for one in kept if isinstance(one, UndoEntry)]
    figures.calls += len(ran)
    figures.calls_again += len(ran) - len(calls)
    figures.recorded += len(values) + len(undone)
    for step, several in calls.items():
        if _is_called_again(several, values.get(step), log):
            figures.called_again.append(f"{run.id} {step}")
    for key, value in values.items():
        if value not in {call.value for call in calls[key]}:
            figures.not_called.append(f"{run.id} {key}")
    return _is_undone(calls, undone)


def _is_undone(calls: Mapping[str, Sequence[StepRan]], undone: Sequence[str]) -> bool:
    """Tell whether each step that was called is undone, in reverse order. A step that was not
    called may be undone too.
    """
    due = [key for key in reversed(UNDONE) if calls.get(key)]
    in_order = [key for key in reversed(UNDONE) if key in undone]
    called = all(calls.get(f"undo {key}") for key in undone)
    return called and {*due} <= {*undone} and in_order == [*undone]


def _is_called_again(calls: Sequence[StepRan], value: str | None, log: EventLog) -> bool:
    """Tell whether a step was called twice in one execution, or after its value was recorded."""
    tokens = [call.token for call in calls]
    if len(set(tokens)) < len(tokens):
        return True
    if value is None:
        return False
    order = {call.value: (log.count_restarts(call.at), _get_fence(call)) for call in calls}
    return value in order and any(place > order[value] for place in order.values())


def _get_fence(call: StepRan) -> int:
    """Return the fence of the lease under which a step was called."""
    return parse_token(call.token)[1].fence


def _read_values(
    entries: Sequence[AnyEntry], kind: type[StepEntry | SignalEntry]
) -> dict[str, str]:
    """Return the values of entries of a kind, by key."""
    found = (one for one in entries if isinstance(one, kind) and one.key != FIRST_OF_TWO)
    return {one.key: msgspec.json.decode(one.value, type=str) for one in found}


def _compute_result(
    run: PlannedRun, entries: Sequence[AnyEntry], ends: Mapping[str, End]
) -> str | None:
    """Return the result that follows from the journal and from the children; None: it is not
    complete.
    """
    steps, signals = _read_values(entries, StepEntry), _read_values(entries, SignalEntry)
    outcomes = {one.key: one for one in entries if isinstance(one, OutcomeEntry)}
    children = [
        end.token
        for number in range(CHILDREN)
        if (end := ends.get(f"{run.id}.part.{number}")) and end.token
    ]
    tokens = [
        end.token
        for name in ("child", RACER)
        if (end := ends.get(f"{run.id}.{name}.0")) and end.token
    ]
    if len(tokens) < 2 or len(children) < CHILDREN:
        return None
    if not {*STEPS} <= steps.keys() or not {FIRST.name, SECOND.name} <= signals.keys():
        return None
    first = _read_first(run, entries)
    if {*outcomes} != {"child", "part", RACER} or signals != expect_signals(run) or first is None:
        return None
    values = [steps["one"], steps["two"], signals[FIRST.name], steps["three"], tokens[0]]
    values += [steps["four"], *children, steps["five"], first, tokens[1]]
    values += [signals[SECOND.name], steps["six"]]
    return compute_digest(values)


def _read_first(run: PlannedRun, entries: Sequence[AnyEntry]) -> str | None:
    """Return which source the journal says came first; None: it does not say, or names another."""
    names = {f'{{"job":"{run.id}.{RACER}.0"}}': "child", f'{{"signal":"{SECOND.name}"}}': "signal"}
    kept = [
        bytes(one.value).decode()
        for one in entries
        if isinstance(one, SignalEntry) and one.key == FIRST_OF_TWO
    ]
    return names.get(kept[0]) if len(kept) == 1 else None


def expect_signals(run: PlannedRun) -> dict[str, str]:
    """Return the values of the signals of a run, by name."""
    return {one.name: f"{one.name} of {run.id}" for one in (FIRST, SECOND)}
