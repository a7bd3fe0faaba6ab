"""`crash_everywhere` finds functions that are not repeatable."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from nimburion import Context, DurableContext, Processor, Signal, State, job
from nimburion.core.errors import ConfigurationError
from nimburion.testing import crash_everywhere

processor = Processor("memory://", max_retries=0)
numbers = count()
"""Gives another number each time, as a random generator does."""
paid = Signal("paid", int)


async def reserve(item: str) -> str:
    return f"r-{item}"


async def ship(item: str) -> None: ...


@processor.job
async def order(ctx: DurableContext, item: str) -> str:
    reservation = await ctx.step(reserve, item)
    cents = await ctx.wait_for(paid)
    await ctx.sleep("pause", "10d")
    await ctx.step(ship, reservation)
    return f"{reservation} for {cents}"


async def test_a_function_that_is_repeatable() -> None:
    runs: list[None] = []
    report = await crash_everywhere(
        order.job("tea"), signals=[(paid, 250)], after_each=lambda: runs.append(None)
    )
    assert (report.state, report.result) == (State.COMPLETED, "r-tea for 250")
    assert report.steps == ("step reserve", "signal paid", "timer pause", "step ship")
    assert report.crashes >= 2 * len(report.steps)
    assert len(runs) == report.crashes + 2


async def test_a_run_that_waits_for_a_signal_that_does_not_come() -> None:
    with pytest.raises(AssertionError, match=r"did not end: it is suspended .*pass signals="):
        await crash_everywhere(order.job("tea"))


@processor.job
async def unstored(ctx: DurableContext) -> int:
    """Calls a function that changes something outside of a step."""
    await ctx.step(reserve, "tea")
    return next(numbers)


async def test_a_result_that_is_not_from_a_step() -> None:
    with pytest.raises(AssertionError, match="its result is 1, not 0"):
        await crash_everywhere(unstored.job())


@processor.job
async def branching(ctx: DurableContext) -> None:
    """Takes another branch when it is executed again."""
    await ctx.step(reserve, "tea")
    if ctx.attempt > 1:
        await ctx.step(ship, "tea")


async def test_another_branch_after_a_crash() -> None:
    with pytest.raises(AssertionError, match=r"after a crash .*\n  only it has stored step ship"):
        await crash_everywhere(branching.job())


@processor.job
async def with_other_arguments(ctx: DurableContext) -> None:
    await ctx.step(ship, f"number {ctx.attempt}")


async def test_other_arguments_after_a_crash() -> None:
    with pytest.raises(AssertionError, match="'ship' got other arguments when it was repeated"):
        await crash_everywhere(with_other_arguments.job())


@processor.job
async def with_other_keys(ctx: DurableContext) -> None:
    await ctx.options(key=f"ship {ctx.attempt}").step(ship, "tea")


async def test_another_key_after_a_crash() -> None:
    with pytest.raises(AssertionError, match="only it has stored step ship 2"):
        await crash_everywhere(with_other_keys.job())


@processor.job
async def failing(ctx: DurableContext) -> None:
    await ctx.step(ship, "tea")
    if ctx.attempt > 1:
        raise ValueError("no second time")


async def test_an_error_after_a_crash() -> None:
    with pytest.raises(AssertionError, match="it is failed, not completed") as raised:
        await crash_everywhere(failing.job())
    assert "its error is ValueError: no second time, not None" in str(raised.value)


@job
async def of_no_processor(ctx: DurableContext) -> str:
    return await ctx.step(reserve, "tea")


async def test_a_job_without_a_processor_needs_one() -> None:
    with pytest.raises(ConfigurationError, match="belongs to no processor: pass processor="):
        await crash_everywhere(of_no_processor.job())
    other = Processor("memory://")
    other.register(of_no_processor)
    report = await crash_everywhere(of_no_processor.job(), processor=other)
    assert report.result == "r-tea"


async def test_middleware_and_hooks_of_the_processor_are_used() -> None:
    seen: list[str] = []
    other = Processor("memory://")
    other.register(of_no_processor)

    async def note(ctx: Context[Any], call_next: Any) -> object:
        seen.append(ctx.name)
        return await call_next(ctx)

    other.use(note)
    await crash_everywhere(of_no_processor.job(), processor=other)
    assert set(seen) == {"of_no_processor"}


async def test_a_broad_except_sees_no_crash() -> None:
    """A crash is no exception that a handler could catch."""
    caught: list[Exception] = []
    other = Processor("memory://")

    @other.job
    async def careful(ctx: DurableContext) -> str:
        try:
            return await ctx.step(reserve, "tea")
        except Exception as error:
            caught.append(error)
            raise

    report = await crash_everywhere(careful.job())
    assert report.result == "r-tea"
    assert not caught
