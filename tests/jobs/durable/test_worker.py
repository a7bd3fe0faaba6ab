"""Durable functions in a running worker."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest

from nimburion import Context, DurableContext, Processor, Signal, State
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.runs import MAX_DELIVERED_RUN, RunPage
from nimburion.core.settlement import Recorded, Settlement
from nimburion.errors import BackendUnavailable, DefinitionError
from nimburion.jobs.durable.context import get_run
from nimburion.jobs.durable.run import DurableRun
from nimburion.testing import FakeClock
from nimburion.types import Next
from tests.jobs.durable.runs import finish, make_processor
from tests.overridden import OverridableBackend
from tests.waiting import wait_until

number = Signal("number", int)


@pytest.fixture(params=["memory", "sqlite"])
def processor(request: pytest.FixtureRequest, tmp_path: Path) -> Processor:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'jobs.db'}"
    return Processor(url, max_retries=0)


async def double(value: int) -> int:
    return 2 * value


async def do_nothing() -> None:
    """Do nothing, as a step."""


async def test_many_runs_share_exchanges(processor: Processor) -> None:
    @processor.job
    async def run(ctx: DurableContext, value: int) -> int:
        for place in range(5):
            value = await ctx.options(key=str(place)).step(double, value)
        return value

    async with processor:
        await processor.start()
        job_ids = [await run.enqueue(value) for value in range(50)]
        results = await processor.wait_all(job_ids, timeout=30)
        assert results == [32 * value for value in range(50)]


class SlowBackend(OverridableBackend):
    """Answers an exchange after handlers had time to make their next steps."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        """How many steps each exchange had, if any."""

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        steps = sum(isinstance(one, Recorded) for one in settlements)
        if steps:
            self.steps.append(steps)
            for _ in range(5):
                await asyncio.sleep(0)
        return await super().exchange(session_id, number, settlements, request)


async def test_runs_that_began_apart_share_exchanges_later() -> None:
    backend = SlowBackend()
    processor = Processor(backend)
    has_begun = asyncio.Event()

    @processor.job
    async def first(ctx: DurableContext) -> None:
        for place in range(20):
            has_begun.set()
            await ctx.options(key=str(place)).step(double, place)

    @processor.job
    async def second(ctx: DurableContext) -> None:
        await has_begun.wait()
        for _ in range(3):  # its first step comes while that of `first` is sent
            await asyncio.sleep(0)
        for place in range(20):
            await ctx.options(key=str(place)).step(double, place)

    async with processor:
        await processor.start()
        job_ids = [await second.enqueue(), await first.enqueue()]
        await processor.wait_all(job_ids, timeout=20)
    assert sum(backend.steps) == 40
    assert len(backend.steps) <= 22


async def test_a_signal_is_taken_with_the_next_step() -> None:
    """Without branches, each attempt takes the same signal, so nothing is awaited."""
    backend = SlowBackend()
    processor = Processor(backend)

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.wait_for(number)
        await ctx.step(do_nothing)

    async with processor:
        await processor.start()
        job_id = await run.enqueue()
        await processor.signal(job_id, number, 7)
        await processor.wait(job_id, timeout=20)
    assert backend.steps == [2]


async def test_a_branch_takes_its_signal_before_it_continues() -> None:
    """In another attempt, another branch may come to the signal first."""
    backend = SlowBackend()
    processor = Processor(backend)

    @processor.job
    async def run(ctx: DurableContext) -> None:
        async def branch(key: str) -> None:
            await ctx.options(key=key).wait_for(number)
            await ctx.options(key=key).step(do_nothing)

        await asyncio.gather(branch("a"), branch("b"))

    async with processor:
        await processor.start()
        job_id = await run.enqueue()
        await processor.signal(job_id, number, 7)
        await processor.signal(job_id, number, 8)
        await processor.wait(job_id, timeout=20)
    assert backend.steps == [2, 2]


async def test_an_ended_run_leaves_no_reference_cycle(processor: Processor) -> None:
    """Otherwise the garbage collector takes as long as the run."""
    runs: list[weakref.ref[DurableRun]] = []

    @processor.job
    async def run(ctx: DurableContext) -> None:
        runs.append(weakref.ref(get_run(ctx)))
        await ctx.step(double, 1)
        await ctx.wait_for(number)
        await ctx.step(do_nothing)

    async with processor:
        await processor.start()
        gc.disable()
        try:
            job_id = await run.enqueue()
            await processor.signal(job_id, number, 7)
            await processor.wait(job_id, timeout=20)
            await wait_until(lambda: all(one() is None for one in runs), "the runs are freed")
            assert len(runs) == 2
        finally:
            gc.enable()


async def test_signals_sleeps_and_children(processor: Processor) -> None:
    @processor.job
    async def child(value: int) -> int:
        return value + 1

    @processor.job
    async def run(ctx: DurableContext) -> list[object]:
        await ctx.sleep("pause", 0.05)
        first = await ctx.wait_for(number)
        late = await ctx.options(key="late").wait_for(number, timeout=0.05)
        return [first, late, await ctx.run_all(child.job(n) for n in range(20))]

    async with processor:
        await processor.start()
        job_id = await run.enqueue()
        await processor.signal(job_id, number, 7)
        assert await processor.wait(job_id, timeout=20) == [7, None, list(range(1, 21))]


async def test_a_short_sleep_keeps_the_slot(processor: Processor) -> None:
    starts: list[int] = []

    @processor.job
    async def run(ctx: DurableContext) -> None:
        starts.append(ctx.attempt)
        await ctx.sleep("pause", 0.05)

    async with processor:
        await processor.start()
        await processor.wait(await run.enqueue(), timeout=20)
        assert len(starts) == 1


async def test_a_run_continues_in_another_worker(processor: Processor) -> None:
    steps: list[str] = []
    waits = asyncio.Event()

    async def note(text: str) -> None:
        steps.append(text)

    async def wait_long() -> None:
        waits.set()
        if len(steps) == 1:
            steps.append("interrupted")
            await asyncio.Event().wait()

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.options(key="first").step(note, "first")
        await ctx.step(wait_long)
        await ctx.options(key="last").step(note, "last")

    async with processor:
        await processor.start()
        job_id = await run.enqueue()
        await waits.wait()
        await processor.stop(0.0)
        await processor.start()
        await processor.wait(job_id, timeout=20)
        assert steps == ["first", "interrupted", "last"]


async def test_a_worker_that_stops_waits_for_a_thread_whose_step_counts(
    processor: Processor,
) -> None:
    started, may_end = threading.Event(), threading.Event()
    calls: list[str] = []

    def work() -> str:
        calls.append("work")
        started.set()
        may_end.wait(20)
        return "done"

    async def note() -> None:
        calls.append("note")

    @processor.job
    async def run(ctx: DurableContext) -> str:
        done = await ctx.step(work)
        await ctx.step(note)
        return done

    async with processor:
        await processor.start()
        job_id = await run.enqueue()
        await asyncio.to_thread(started.wait)
        asyncio.get_running_loop().call_later(0.2, may_end.set)
        await processor.stop(0.0)
        await processor.start()
        assert await processor.wait(job_id, timeout=20) == "done"
        assert calls == ["work", "note"]


@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_worker_that_stops_waits_for_all_threads_of_a_run(
    processor: Processor, goes_on: bool
) -> None:
    may_end, is_asked = threading.Event(), asyncio.Event()
    contexts, calls = list[DurableContext](), list[str]()

    def work() -> None:
        calls.append("work")
        may_end.wait(20)

    def work_shortly() -> None:
        calls.append("work shortly")

    async def note() -> None:
        calls.append("note")

    @processor.job
    async def run(ctx: DurableContext) -> None:
        contexts.append(ctx)

        async def go_on() -> None:
            await ctx.step(work_shortly)
            await is_asked.wait()
            if goes_on:
                await ctx.step(note)

        await asyncio.gather(ctx.step(work), go_on())

    async with processor:
        await processor.start()
        job_id = await run.enqueue()

        async def has_step() -> bool:
            return len((await processor.backend.reads.read_run(job_id)).steps) > 0

        await wait_until(has_step, "the short step is stored")
        stop = asyncio.create_task(processor.stop(0.0))
        await wait_until(lambda: contexts[0].cancelled, "the run is asked to end")
        is_asked.set()
        for _ in range(20):
            await asyncio.sleep(0)
        may_end.set()
        await stop
        await processor.start()
        await processor.wait(job_id, timeout=20)
        assert sorted(calls) == sorted(["work", "work shortly"] + ["note"] * goes_on)
        assert len(contexts) == 1 + goes_on


async def test_a_slot_stays_occupied_until_all_threads_of_a_run_return() -> None:
    processor = Processor("memory://", max_retries=0, concurrency=2)
    may_end = {"first": threading.Event(), "second": threading.Event()}
    started, blocks, events = threading.Barrier(3), asyncio.Event(), list[str]()

    def work(name: str) -> None:
        started.wait(20)
        may_end[name].wait(20)
        events.append(name)

    @processor.job(timeout=0.05)
    async def run(ctx: DurableContext) -> None:
        await asyncio.gather(*(ctx.options(key=name).step(work, name) for name in may_end))

    @processor.job
    async def block() -> None:
        await blocks.wait()

    @processor.job
    async def other() -> None:
        events.append("other")

    async with processor:
        await processor.start()
        first, _, last = await run.enqueue(), await block.enqueue(), await other.enqueue()
        await asyncio.to_thread(started.wait, 20)

        async def has_failed() -> bool:
            return (await processor.get_status(first)).state is State.FAILED

        await wait_until(has_failed, "it has timed out")
        may_end["second"].set()
        await wait_until(lambda: bool(events), "a thread returns")
        for _ in range(50):
            await asyncio.sleep(0)
        may_end["first"].set()
        await processor.wait(last, timeout=20)
        blocks.set()
        assert events == ["second", "first", "other"]


async def test_a_waiting_run_is_cancelled(processor: Processor) -> None:
    undone: list[int] = []

    def undo(value: int) -> None:
        undone.append(value)

    @processor.job
    async def run(ctx: DurableContext) -> None:
        ctx.undo(undo, 5)
        await ctx.wait_for(number)

    async with processor:
        await processor.start()
        job_id = await run.enqueue()

        async def is_suspended() -> bool:
            return (await processor.get_status(job_id)).state is State.SUSPENDED

        await wait_until(is_suspended, "it waits")
        await processor.cancel(job_id)

        async def is_cancelled() -> bool:
            return (await processor.get_status(job_id)).state is State.CANCELLED

        await wait_until(is_cancelled, "it is cancelled")
        assert undone == [5]


async def test_a_busy_run_without_operations_is_cancelled(processor: Processor) -> None:
    started = asyncio.Event()

    @processor.job
    async def run(ctx: DurableContext) -> None:
        started.set()
        await asyncio.Event().wait()

    async with processor:
        await processor.start()
        job_id = await run.enqueue()
        await started.wait()
        began = time.monotonic()
        await processor.cancel(job_id)

        async def is_cancelled() -> bool:
            return (await processor.get_status(job_id)).state is State.CANCELLED

        await wait_until(is_cancelled, "it is cancelled")
        assert time.monotonic() - began < 30


async def test_a_run_that_loses_its_lease_ends_and_writes_nothing(processor: Processor) -> None:
    calls: list[str] = []

    async def work(worker_id: str) -> str:
        calls.append("work")
        if len(calls) == 1:
            await processor.backend.consuming.close_session(worker_id)
        return f"call {calls.count('work')}"

    async def note() -> None:
        calls.append("note")

    @processor.job
    async def run(ctx: DurableContext) -> str:
        try:
            done = await ctx.step(work, ctx.worker_id)
        except Exception:
            calls.append("caught")
            raise
        await ctx.step(note)
        return done

    async with processor:
        await processor.start()
        assert await processor.wait(await run.enqueue(), timeout=20) == "call 2"
        assert calls == ["work", "work", "note"]


async def test_a_run_that_is_cancelled_before_its_handler_is_called_is_undone() -> None:
    processor = Processor("memory://", max_retries=0)
    undone, entered, blocks = list[int](), asyncio.Event(), [False]

    @processor.use
    async def wait_for_ever(ctx: Context, call_next: Next[Context]) -> object:
        if blocks[0]:
            blocks[0] = False
            entered.set()
            await asyncio.Event().wait()
        return await call_next(ctx)

    @processor.job
    async def run(ctx: DurableContext) -> None:
        ctx.undo(undone.append, 5)
        await ctx.options(key="first").wait_for(number)
        blocks[0] = True
        await ctx.wait_for(number)

    async with processor:
        await processor.start()
        job_id = await run.enqueue()
        await processor.signal(job_id, number, 1)

        async def is_suspended() -> bool:
            return (await processor.get_status(job_id)).state is State.SUSPENDED and blocks[0]

        await wait_until(is_suspended, "it waits")
        await processor.signal(job_id, number, 2)
        await entered.wait()
        await processor.cancel(job_id)

        async def is_cancelled() -> bool:
            return (await processor.get_status(job_id)).state is State.CANCELLED

        await wait_until(is_cancelled, "it is cancelled")
        assert undone == [5]


def read_much() -> str:
    """Return so much that the run does not come with its lease."""
    return "x" * MAX_DELIVERED_RUN


async def test_a_backend_that_does_not_answer_at_the_start_counts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    processor = make_processor(clock)

    @processor.job
    async def run(ctx: DurableContext) -> int:
        await ctx.step(read_much)
        await ctx.sleep("pause", 10)
        return ctx.attempt

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        with monkeypatch.context() as patch:

            async def fail(*_: object, **__: object) -> RunPage:
                raise BackendUnavailable("no answer")

            patch.setattr(processor.backend.reads, "read_run", fail)
            clock.advance(10)
            assert await processor.drain() == 1
        assert (await finish(processor, job_id)).result == 1


async def test_a_small_run_comes_with_its_lease(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> RunPage:
        raise AssertionError("it is read once more")

    @processor.job
    async def run(ctx: DurableContext) -> int:
        return await ctx.step(double, 2) + await ctx.wait_for(number)

    async with processor:
        monkeypatch.setattr(processor.backend.reads, "read_run", fail)
        job_id = await run.enqueue()
        await processor.drain()
        await processor.signal(job_id, number, 7)
        await processor.drain()
        status = await processor.get_status(job_id)
        assert (status.state, status.result) == (State.COMPLETED, 11)


@pytest.mark.parametrize("operation", ["read_run", "change_jobs"])
async def test_a_drain_ends_although_the_backend_never_answers(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises the error after some attempts that ended without an answer."""
    processor = make_processor()
    calls: list[int] = []

    async def fail(*_: object, **__: object) -> None:
        calls.append(1)
        if len(calls) > 50:
            raise RuntimeError("it does not end")
        raise BackendUnavailable("no answer")

    @processor.job
    async def child(ctx: DurableContext) -> None:
        await ctx.sleep("long", "100d")

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.step(read_much)
        await ctx.run(child.job())

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        await processor.cancel(job_id)
        backend = processor.backend
        part = backend.reads if operation == "read_run" else backend.maintenance
        with monkeypatch.context() as patch:
            patch.setattr(part, operation, fail)
            with pytest.raises(BackendUnavailable, match="no answer"):
                await processor.drain(advance=True)
        await processor.drain(advance=True)
        assert (await processor.get_status(job_id)).state is State.CANCELLED


async def test_middleware_does_no_operation_before_the_handler() -> None:
    processor = make_processor()

    async def middleware(ctx: Context, call_next: Next[Context]) -> object:
        if isinstance(ctx, DurableContext):
            await ctx.step(do_nothing)
        return await call_next(ctx)

    processor.use(middleware)

    @processor.job
    async def run(ctx: DurableContext) -> None: ...

    async with processor:
        status = await finish(processor, await run.enqueue())
        assert status.error is not None
        assert "the handler has not begun" in status.error.message


def test_what_cannot_be_durable() -> None:
    processor = Processor("memory://")

    def blocking(ctx: DurableContext) -> None: ...
    async def durable(ctx: DurableContext) -> None: ...

    with pytest.raises(DefinitionError, match="a durable function is an `async def`"):
        processor.job(blocking)
    with pytest.raises(DefinitionError, match='not with execution="process"'):
        processor.job(execution="process")(durable)
    with pytest.raises(DefinitionError, match="write `@processor"):
        processor.register("raw", durable)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_run_that_ends_while_its_worker_stops_is_undone_by_the_next(
    processor: Processor, *, is_cancelled: bool
) -> None:
    started, may_end = threading.Event(), threading.Event()
    calls: list[str] = []

    def ship() -> None:
        calls.append("ship")
        started.set()
        may_end.wait(20)
        if not is_cancelled:
            raise ValueError("no stock")

    @processor.job
    async def order(ctx: DurableContext) -> None:
        ctx.undo(calls.append, "undone")
        await ctx.step(ship)
        await ctx.sleep("pause", 1000)

    async with processor:
        await processor.start()
        job_id = await order.enqueue()
        await asyncio.to_thread(started.wait)
        if is_cancelled:
            await processor.cancel(job_id)
        asyncio.get_running_loop().call_later(0.2, may_end.set)
        await processor.stop(0.0)
        await processor.start()
        wanted = State.CANCELLED if is_cancelled else State.FAILED

        async def has_ended() -> bool:
            return (await processor.get_status(job_id)).state is wanted

        await wait_until(has_ended, "it has ended")
        assert calls == ["ship", "undone"]
        if not is_cancelled:
            error = (await processor.get_status(job_id)).error
            assert error is not None
            assert error.message == "no stock"


async def test_a_cancelled_run_ends_also_where_its_handler_awaits_something_else(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nimburion.jobs.durable.branches.REPLAY_TIMEOUT", 0.1)
    undone: list[str] = []
    may_wait = asyncio.Event()

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.step(double, 1)
        ctx.undo(undone.append, "double")
        if may_wait.is_set():
            await asyncio.Event().wait()
        await ctx.wait_for(number)

    async with processor:
        await processor.start()
        job_id = await run.enqueue()

        async def is_suspended() -> bool:
            return (await processor.get_status(job_id)).state is State.SUSPENDED

        await wait_until(is_suspended, "it waits")
        may_wait.set()
        await processor.cancel(job_id)

        async def is_cancelled() -> bool:
            return (await processor.get_status(job_id)).state is State.CANCELLED

        await wait_until(is_cancelled, "it is cancelled")
        assert undone == ["double"]
