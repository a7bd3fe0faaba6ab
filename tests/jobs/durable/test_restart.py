"""Runs that begin anew, and the limit of their steps."""

from __future__ import annotations

import pytest

from nimburion import DurableContext
from tests.jobs.durable.runs import finish, make_processor


async def test_a_run_that_begins_anew_may_have_as_many_steps_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nimburion.jobs.durable.recorder.MAX_STEPS", 5)
    processor = make_processor()
    values: list[int] = []

    async def add(value: int) -> int:
        values.append(value + 1)
        return value + 1

    @processor.job
    async def run(ctx: DurableContext, value: int, steps: int = 4) -> None:
        for place in range(steps):
            value = await ctx.options(key=str(place)).step(add, value)
        if value == 12:
            await ctx.sleep("pause", 10)
            await ctx.restart(value, 6)
        await ctx.restart(value)

    async with processor:
        status = await finish(processor, await run.enqueue(0))
        assert status.error is not None
        assert "the run has 5 steps, which is the limit" in status.error.message
        assert values == list(range(1, 19))
