"""Lose the worker of a durable function at every point, and compare how its run ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from copy import copy
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import msgspec

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import BackendError, ConfigurationError
from nimburion.core.job import State
from nimburion.core.settlement import Recorded
from nimburion.jobs.declaration.job import AnyJob, require_declaration
from nimburion.jobs.durable.context import DurableContext, get_run
from nimburion.jobs.durable.journal import (
    ChangedEntry,
    ChildrenEntry,
    Journal,
    SignalEntry,
    StepEntry,
    TimerEntry,
    UndoEntry,
    decode_entry,
    get_kind,
)
from nimburion.testing.clock import FakeClock

if TYPE_CHECKING:
    from nimburion.core.runs import RecordedStep
    from nimburion.core.settlement import Settlement
    from nimburion.jobs.durable.run import DurableRun
    from nimburion.jobs.durable.signals import Signal
    from nimburion.jobs.handling.context import Context
    from nimburion.jobs.handling.middleware import Next
    from nimburion.jobs.processor import Processor

_JOB_ID = "crash-everywhere"
_COMPARED = (
    StepEntry,
    TimerEntry,
    SignalEntry,
    ChildrenEntry,
    ChangedEntry,
    UndoEntry,
)
"""The entries that are the same in each run. Tries of a step, for example, are not."""
_CANCEL_AGAIN = 0.001
"""Seconds after which a handler of a lost worker that still runs is cancelled again."""
_CHANGING = frozenset({"exchange", "enqueue", "cancel", "send_signals", "change_jobs"})
"""The calls with which a worker stores what a run does."""
_MOST_ROUNDS = 5
"""How often the second worker waits for sessions to expire."""


class CrashReport(NamedTuple):
    """How the runs of `crash_everywhere` ended: all in the same way."""

    crashes: int
    """How many runs lost their worker."""
    state: State
    result: object
    """The result, as JSON types; None if there is none."""
    error: str | None
    """The class and the text of the error with which the run failed."""
    steps: tuple[str, ...]
    """The operations that the run has stored, as `step charge`."""


async def crash_everywhere(
    job: AnyJob,
    *,
    processor: Processor | None = None,
    signals: Sequence[tuple[Signal[Any], object]] = (),
    after_each: Callable[[], object] | None = None,
) -> CrashReport:
    """Run a durable function again and again, and lose its worker at another point each time.

    ```python
    async def test_an_order_survives_each_crash() -> None:
        report = await crash_everywhere(order.job("tea"), signals=[(paid, 250)])
        assert report.result == "tea for 250"
    ```

    The runs are in memory, on a clock that jumps to the next time, so waits take no time. The first
    run is not disturbed. Then, for each call of the backend, one run loses its worker before the
    call, and one after it, so that the worker never gets the answer. Another worker continues.

    `AssertionError` is raised, with the point of the crash, if a run

    - ends in another state, or with another result or error,
    - has stored other steps, or has not ended,
    - calls the function of a step twice more than the first run does, or with other arguments.

    So it finds random numbers, times of the day and changes outside of steps. Let the services that
    the function uses be fakes that always answer the same. The times of `ctx.now` differ after a
    crash.

    Args:
        job: the job, as it would be enqueued. Its function must end: not one that calls
            `ctx.restart` for ever.
        processor: has the handlers, middleware, hooks and lifespan. It is not opened. By default,
            the processor whose `@processor.job` made the function.
        signals: are sent before the run begins, in this order, each with its value.
        after_each: is called after each run. Check there what your fakes got, and clear them.
    """
    source = processor or _find_processor(job)
    program = _Program(source, job, signals)
    expected, calls = await program.run(None, is_before=False)
    _call(after_each)
    if not expected.state.finished:
        raise AssertionError(
            f"the run did not end: it is {expected.state} after {', '.join(expected.steps)}; if it "
            "waits for a signal, pass signals=[(signal, value)]"
        )
    again, _ = await program.run(None, is_before=False)
    _call(after_each)
    _compare("without any crash, a second run", again, expected)
    for number in range(1, calls + 1):
        for is_before in (True, False):
            ended, _ = await program.run(number, is_before=is_before)
            _compare(f"after a crash {ended.crash}, the run", ended, expected)
            _call(after_each)
    return CrashReport(2 * calls, expected.state, expected.result, expected.error, expected.steps)


def _call(function: Callable[[], object] | None) -> None:
    if function is not None:
        function()


def _find_processor(job: AnyJob) -> Processor:
    from nimburion.jobs.client.registered_job import RegisteredJob, find_processor

    function = require_declaration(job).target
    if not isinstance(function, RegisteredJob):
        raise ConfigurationError(
            f"job {require_declaration(job).name!r} belongs to no processor: pass processor=…, "
            "with which it is registered"
        )
    return cast("Processor", find_processor(function))


class _Ended(NamedTuple):
    """How one run ended."""

    state: State
    result: object
    error: str | None
    steps: tuple[str, ...]
    called: Counter[tuple[str, str]]
    """How often the function of each step was called, by job id and key."""
    differing: tuple[str, ...]
    """The operations that got other arguments when they were repeated."""
    crash: str
    """Where its worker was lost."""


class _Program:
    """A durable job, the handlers that it needs, and the signals that it gets."""

    def __init__(
        self, processor: Processor, job: AnyJob, signals: Sequence[tuple[Signal[Any], object]]
    ) -> None:
        self._processor = processor
        self._job = job
        self._signals = signals

    async def run(self, last_call: int | None, *, is_before: bool) -> tuple[_Ended, int]:
        """Run the job on an empty backend. Return how it ended, and how often the first worker
        called the backend.
        """
        clock = FakeClock()
        runs: list[DurableRun] = []
        handlers: set[asyncio.Task[Any]] = set()
        backend = MemoryBackend(clock=clock)
        losable = _LosableBackend(backend.new_handle(), last_call, is_before=is_before)
        first = self._make_processor(cast("MemoryBackend", losable), clock, runs, handlers)
        second = self._make_processor(backend, clock, runs, handlers)
        async with second:
            await second.enqueue(self._job, id=_JOB_ID)
            for signal, value in self._signals:
                await second.signal(_JOB_ID, signal, value)
            calls = await _drain_until_loss(first, losable, handlers)
            record = await backend.reads.get_job(_JOB_ID)
            rounds = 0
            while not record.state.finished and last_call is not None and rounds < _MOST_ROUNDS:
                clock.advance(2 * self._processor.settings.session_ttl)
                await second.drain(advance=True)
                record = await backend.reads.get_job(_JOB_ID)
                rounds += 1
            steps = await _read_steps(backend)
        called = Counter((run.job_id, key) for run in runs for key in run.called)
        differing = tuple(key for run in runs for key in run.differing)
        error = None
        if record.state is State.FAILED and record.error is not None:
            error = f"{record.error.type}: {record.error.message}"
        ended = _Ended(
            record.state,
            None if record.result is None else msgspec.json.decode(record.result),
            error,
            steps,
            called,
            differing,
            losable.crash,
        )
        return ended, calls

    def _make_processor(
        self,
        backend: MemoryBackend,
        clock: FakeClock,
        runs: list[DurableRun],
        handlers: set[asyncio.Task[Any]],
    ) -> Processor:
        from nimburion.jobs.processor import Processor

        random = Random(0)  # noqa: S311 (jitter that is the same each time)
        original = self._processor
        settings = msgspec.structs.replace(original.settings, outbox_url="")
        processor = Processor(backend, settings, clock=clock, random=random)
        processor.registry = original.registry
        processor.handler_setup = copy(original.handler_setup)
        processor.handler_setup.middlewares = [*original.handler_setup.middlewares]

        async def note_run(ctx: Context[Any], call_next: Next[Context[Any]]) -> object:
            if isinstance(ctx, DurableContext):
                runs.append(get_run(ctx))
            task = cast("asyncio.Task[Any]", asyncio.current_task())
            handlers.add(task)
            try:
                return await call_next(ctx)
            finally:
                handlers.discard(task)

        processor.use(note_run)
        return processor


async def _read_steps(backend: MemoryBackend) -> tuple[str, ...]:
    """Return the operations that the run has stored, in their order."""
    steps: list[RecordedStep] = []
    after: str | None = None
    while True:
        page = await backend.reads.read_run(_JOB_ID, after=after)
        steps += page.steps
        after = page.next
        if after is None:
            break
    entries = Journal(steps).list_entries()
    return tuple(f"{get_kind(one)} {one.key}" for one in entries if isinstance(one, _COMPARED))


def _compare(which: str, ended: _Ended, expected: _Ended) -> None:
    """Raise `AssertionError` if a run has ended in another way than the first one."""
    problems = list(_list_differences(ended, expected))
    if problems:
        raise AssertionError("\n".join([f"{which} differs from the first one:", *problems]))


def _list_differences(ended: _Ended, expected: _Ended) -> Iterator[str]:
    if not ended.state.finished:
        yield f"  it has not ended: it is {ended.state}"
    elif ended.state is not expected.state:
        yield f"  it is {ended.state}, not {expected.state}"
    if ended.error != expected.error:
        yield f"  its error is {ended.error}, not {expected.error}"
    if ended.result != expected.result:
        yield f"  its result is {ended.result!r}, not {expected.result!r}"
    stored, first = Counter(ended.steps), Counter(expected.steps)
    if more := list((stored - first).elements()):
        yield f"  only it has stored {', '.join(more)}"
    if missing := list((first - stored).elements()):
        yield f"  it has not stored {', '.join(missing)}"
    for key in dict.fromkeys(ended.differing):
        yield f"  {key!r} got other arguments when it was repeated"
    for (job_id, key), count in ended.called.items():
        usual = expected.called[job_id, key]
        if count > usual + 1:
            yield f"  step {key!r} was called {count} times, in the first run {usual}"


async def _drain_until_loss(
    processor: Processor, backend: _LosableBackend, handlers: set[asyncio.Task[Any]]
) -> int:
    """Run all jobs until none is left or the worker is lost. Return the calls of the backend.

    The handlers of a lost worker are cancelled where they are.
    """
    before = asyncio.all_tasks()
    await processor.open()
    backend.is_counting = True
    draining = asyncio.create_task(processor.drain(advance=True))
    lost = asyncio.create_task(backend.lost.wait())
    await asyncio.wait({draining, lost}, return_when=asyncio.FIRST_COMPLETED)
    lost.cancel()
    if not backend.lost.is_set():
        await draining
    draining.cancel()
    await asyncio.sleep(0)
    while handlers:
        for task in handlers:
            task.cancel()
        await asyncio.wait(handlers, timeout=_CANCEL_AGAIN)
    backend.ended.set()
    await asyncio.wait({draining})
    for task in asyncio.all_tasks() - before:
        task.cancel()  # a task that a handler has left
    backend.is_counting = False
    with suppress(BackendError):
        await processor.close()
    return backend.calls


class _LosableBackend:
    """A backend of a worker that is lost at one of its calls.

    The call does not return, and no later one begins, until the worker has ended.
    """

    def __init__(self, backend: MemoryBackend, last: int | None, *, is_before: bool) -> None:
        self._backend = backend
        self._last = last
        self._is_before = is_before
        self.calls: int = 0
        """How many calls were made."""
        self.is_counting: bool = False
        """Whether the worker runs."""
        self.lost: asyncio.Event = asyncio.Event()
        self.ended: asyncio.Event = asyncio.Event()
        """Is set when no handler of the lost worker runs any more."""
        self.crash: str = ""
        """The call at which the worker was lost."""
        for part in ("producing", "consuming", "maintenance", "reads"):
            setattr(self, part, _Part(getattr(backend, part), self))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._backend, name)

    async def call(
        self, method: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any
    ) -> Any:  # noqa: ANN401 (the answer of the method)
        if self.lost.is_set():
            await self._end()
        if not self.is_counting or method.__name__ not in _CHANGING:
            return await method(*args, **kwargs)
        self.calls += 1
        is_last = self.calls == self._last
        if is_last:
            when = "before" if self._is_before else "after"
            self.crash = f"{when} {_describe_call(method.__name__, args)}"
        answer = None
        if not (is_last and self._is_before):
            answer = await method(*args, **kwargs)
        if is_last:
            self.lost.set()
            await self._end()
        return answer

    async def _end(self) -> NoReturn:
        if not self.is_counting:
            raise BackendError("the worker is lost")
        await self.ended.wait()
        raise asyncio.CancelledError


class _Part:
    """A part of the backend, such as `consuming`."""

    def __init__(self, part: object, backend: _LosableBackend) -> None:
        self._part = part
        self._backend = backend

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        return partial(self._backend.call, getattr(self._part, name))


def _describe_call(name: str, args: Sequence[object]) -> str:
    """Return what a call of the backend does, for messages."""
    if name != "exchange":
        return f"the call {name}"
    settlements = cast("Sequence[Settlement]", args[2])
    steps = [decode_entry(one.body) for one in settlements if isinstance(one, Recorded)]
    shown = [f"{get_kind(one)} {one.key}".strip() for one in steps]
    shown += [type(one).__name__.lower() for one in settlements if not isinstance(one, Recorded)]
    return f"storing {', '.join(shown)}" if shown else "reserving a job"
