"""Wait for the first of several signals and child jobs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from nimburion import DurableContext, PermanentError, Processor, Signal, Snooze, State
from nimburion.core.bulk_operations import BulkAction
from nimburion.errors import ChildFailed
from nimburion.jobs.durable import ChildJob
from nimburion.testing import FakeClock, crash_everywhere
from tests.jobs.durable.runs import finish, make_processor

paid = Signal("paid", int)
withdrawn = Signal("withdrawn", str)


def add_order(processor: Processor, timeout: float | None = None) -> Any:
    @processor.job
    async def order(ctx: DurableContext) -> list[object]:
        """Return what came first, then the next of each signal that came."""
        if timeout is None:
            first = await ctx.wait_any(paid, withdrawn)
        else:
            possible = await ctx.wait_any(paid, withdrawn, timeout=timeout)
            if possible is None:
                return ["nothing"]
            first = possible
        if first is paid:
            return ["paid", await ctx.wait_for(paid)]
        return ["withdrawn", await ctx.wait_for(withdrawn)]

    return order


@pytest.mark.parametrize("is_sent_before", [True, False])
async def test_the_first_signal_ends_the_wait_and_is_there_for_the_next(
    is_sent_before: bool,
) -> None:
    clock = FakeClock()
    processor = make_processor(clock)
    order = add_order(processor)
    async with processor:
        job_id = await order.enqueue()
        if not is_sent_before:
            await processor.drain()
            assert (await processor.get_status(job_id)).state is State.SUSPENDED
        await processor.signal(job_id, withdrawn, "too late")
        clock.advance(1)
        await processor.signal(job_id, paid, 250)
        assert (await finish(processor, job_id)).result == ["withdrawn", "too late"]


async def test_the_others_stay_for_a_later_wait() -> None:
    clock = FakeClock()
    processor = make_processor(clock)

    @processor.job
    async def run(ctx: DurableContext) -> list[object]:
        is_withdrawn = await ctx.wait_any(paid, withdrawn) is withdrawn
        first = await ctx.wait_for(withdrawn)
        is_paid = await ctx.options(key="again").wait_any(withdrawn, paid) is paid
        return [is_withdrawn, is_paid, first, await ctx.wait_for(paid)]

    async with processor:
        job_id = await run.enqueue()
        await processor.signal(job_id, withdrawn, "no")
        clock.advance(1)
        await processor.signal(job_id, paid, 1)
        assert (await finish(processor, job_id)).result == [True, True, "no", 1]


async def test_nothing_comes_in_time_and_a_late_signal_changes_nothing() -> None:
    clock = FakeClock()
    processor = make_processor(clock)
    order = add_order(processor, timeout=100.0)
    async with processor:
        job_id = await order.enqueue()
        await processor.drain()
        clock.advance(101)
        await processor.signal(job_id, paid, 1)
        assert (await finish(processor, job_id)).result == ["nothing"]


async def test_a_signal_in_time_wins_although_the_worker_comes_late() -> None:
    clock = FakeClock()
    processor = make_processor(clock)
    order = add_order(processor, timeout=100.0)
    async with processor:
        job_id = await order.enqueue()
        await processor.drain()
        clock.advance(99)
        await processor.signal(job_id, paid, 5)
        clock.advance(10)
        assert (await finish(processor, job_id)).result == ["paid", 5]


async def test_a_child_job_that_ends_first() -> None:
    processor = make_processor()

    @processor.job
    async def double(value: int) -> int:
        return 2 * value

    @processor.job
    async def run(ctx: DurableContext) -> int:
        child = await ctx.start(double.job(21))
        first = await ctx.wait_any(paid, child)
        assert first is child
        return await child.result()

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == 42


async def test_children_are_taken_as_they_end() -> None:
    processor = make_processor()
    delays = {0: 30, 1: 10, 2: 20}

    @processor.job
    async def double(value: int) -> int:
        if value in delays:
            raise Snooze(delays.pop(value))
        return 2 * value

    @processor.job
    async def run(ctx: DurableContext) -> list[int]:
        left = [await ctx.options(key=f"{n}").start(double.job(n)) for n in range(3)]
        results = []
        while left:
            child = await ctx.options(key=f"{len(left)} left").wait_any(*left)
            left.remove(child)
            results.append(await child.result())
        return results

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == [2, 4, 0]


async def test_a_child_that_failed_has_come_and_raises_its_error_when_it_is_read() -> None:
    processor = make_processor()

    @processor.job
    async def fail() -> int:
        raise PermanentError("no")

    @processor.job
    async def run(ctx: DurableContext) -> str:
        child = await ctx.start(fail.job())
        assert await ctx.wait_any(child, paid) is child
        with pytest.raises(ChildFailed, match="PermanentError: no"):
            await child.result()
        assert await ctx.options(key="again").wait_any(paid, child) is child
        return "caught"

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == "caught"


async def test_a_child_that_is_not_kept_has_come() -> None:
    processor = make_processor()

    @processor.job
    async def double(value: int) -> int:
        return 2 * value

    @processor.job
    async def run(ctx: DurableContext) -> str:
        child = await ctx.start(double.job(21))
        await ctx.sleep("pause", 100)
        first = await ctx.wait_any(paid, child, timeout=5)
        return "nothing" if first is None else repr(first)

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        await processor.backend.maintenance.change_jobs(BulkAction.DELETE, [f"{job_id}.double.0"])
        result = (await finish(processor, job_id)).result
        assert result == f"<child job {job_id}.double.0>"


async def test_the_first_is_the_same_in_each_attempt() -> None:
    clock = FakeClock()
    processor = make_processor(clock)
    seen: list[str] = []

    @processor.job
    async def run(ctx: DurableContext) -> None:
        # A later version of the code has the sources in another order, and one more.
        sources = (paid, withdrawn) if not seen else (Signal("more", int), withdrawn, paid)
        first = await ctx.wait_any(*sources)
        seen.append(first.name)
        await ctx.options(key="pause").wait_for(Signal("more", int))

    async with processor:
        job_id = await run.enqueue()
        await processor.signal(job_id, paid, 1)
        await processor.drain()
        await processor.signal(job_id, withdrawn, "no")
        await processor.signal(job_id, Signal("more", int), 1)
        await finish(processor, job_id)
        assert seen[-1] == "paid"
        assert len(set(seen)) == 1
        assert len(seen) > 1


async def test_a_source_that_was_first_and_is_not_among_them_any_more() -> None:
    processor = make_processor()
    is_new_code = False

    @processor.job
    async def run(ctx: DurableContext) -> None:
        if is_new_code:
            await ctx.wait_any(withdrawn)
        else:
            await ctx.wait_any(paid, withdrawn)
        await ctx.sleep("pause", 10)

    async with processor:
        job_id = await run.enqueue()
        await processor.signal(job_id, paid, 1)
        await processor.drain()
        is_new_code = True
        status = await finish(processor, job_id)
        assert status.error is not None
        assert "test_wait_any.py:" in status.error.message
        assert '{"signal":"paid"}, for which the code does not wait' in status.error.message


async def test_branches_that_wait_for_the_same_signal() -> None:
    processor = make_processor()

    @processor.job
    async def run(ctx: DurableContext) -> list[str]:
        either = ctx.options(key="either").wait_any(paid, withdrawn)
        both = await asyncio.gather(either, ctx.options(key="other").wait_any(paid))
        return [one.name for one in both]

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        await processor.signal(job_id, paid, 1)
        assert (await finish(processor, job_id)).result == ["paid", "paid"]


async def test_a_run_that_is_cancelled_while_it_waits() -> None:
    processor = make_processor()
    undone: list[str] = []
    order = add_order(processor)

    @processor.job
    async def run(ctx: DurableContext) -> None:
        ctx.undo(undone.append, "reservation")
        await ctx.wait_any(paid, withdrawn, timeout="7d")

    async with processor:
        plain, with_undo = await order.enqueue(), await run.enqueue()
        await processor.drain()
        for job_id in (plain, with_undo):
            await processor.cancel(job_id)
            await processor.drain()
            assert (await processor.get_status(job_id)).state is State.CANCELLED
        assert undone == ["reservation"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nothing", "at least one signal or child job; to pause, use ctx.sleep"),
        ("text", "not 'paid'"),
        ("call", r"`await ctx.start\(…\)` has returned, not <coroutine"),
        ("list", r"test_wait_any.py:.*pass each by itself: `wait_any"),
        ("job", r"has returned, not child\(\)"),
        ("twice", "the key 'wait_any' is used for a wait at .*test_wait_any.py:"),
        ("options", "max_retries, retry_backoff and timeout are options of steps and undos"),
        ("timeout", "timeout must be a number of seconds"),
        ("other run", "was started by another run or attempt"),
    ],
)
async def test_sources_that_are_none(name: str, text: str) -> None:
    processor = make_processor()
    kept: list[ChildJob[None]] = []

    @processor.job
    async def child() -> None: ...

    @processor.job
    async def other(ctx: DurableContext) -> None:
        kept.append(await ctx.start(child.job()))

    @processor.job
    async def run(ctx: DurableContext) -> None:
        anything: Any = ctx
        calls: dict[str, Callable[[], Any]] = {
            "text": lambda: anything.wait_any("paid", paid),
            "call": lambda: anything.wait_any(ctx.start(child.job())),
            "list": lambda: anything.wait_any([paid, withdrawn]),
            "job": lambda: anything.wait_any(child.job()),
            "twice": lambda: ctx.wait_any(paid),
            "options": lambda: ctx.options(timeout=5).wait_any(paid),
            "timeout": lambda: ctx.wait_any(paid, timeout="soon"),
        }
        if name in calls:
            await calls[name]()
        else:
            await ctx.wait_any(*kept)
        await ctx.wait_any(paid)

    async with processor:
        if name == "other run":
            await finish(processor, await other.enqueue())
        job_id = await run.enqueue()
        await processor.signal(job_id, paid, 1)
        status = await finish(processor, job_id)
        assert status.error is not None
        assert status.error.type == "InvalidStep"
        assert re.search(text, status.error.message)


async def test_a_run_whose_worker_is_lost_at_any_point() -> None:
    processor = make_processor(max_lost=100)

    @processor.job
    async def double(value: int) -> int:
        return 2 * value

    @processor.job
    async def run(ctx: DurableContext) -> list[object]:
        child = await ctx.start(double.job(21))
        results: list[object] = []
        for round_ in range(3):
            first = await ctx.options(key=f"round {round_}").wait_any(
                paid, withdrawn, timeout=1_000
            )
            if first is paid:
                results.append(await ctx.wait_for(paid))
            elif first is withdrawn:
                results.append(await ctx.wait_for(withdrawn))
            else:
                results.append("nothing")
        assert await ctx.options(key="child").wait_any(child, paid) is child
        return [*results, await child.result()]

    report = await crash_everywhere(
        run.job(), processor=processor, signals=[(withdrawn, "no"), (paid, 250)]
    )
    assert report.result == ["no", 250, "nothing", 42]
    assert "signal round 0" in report.steps


async def test_a_signal_that_came_before_the_child_ended() -> None:
    processor = Processor("memory://")
    may_end = asyncio.Event()

    @processor.job
    async def child() -> None:
        await may_end.wait()

    @processor.job
    async def run(ctx: DurableContext) -> str:
        started = await ctx.start(child.job())

        async def signal_and_end_the_child() -> None:
            await processor.signal(ctx.job_id, paid, 1)
            may_end.set()
            await processor.wait(started.id)

        await ctx.step(signal_and_end_the_child)
        return "child" if await ctx.wait_any(started, paid) is started else "signal"

    async with processor, asyncio.timeout(20):
        await processor.start()
        assert await processor.wait(await run.enqueue()) == "signal"
