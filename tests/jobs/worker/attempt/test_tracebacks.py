"""The traceback that is kept with a job shows the code of the application."""

from __future__ import annotations

import re
from typing import Any

import pytest

from nimburion.jobs import Context, Processor, job
from nimburion.testing.plugin import MakeProcessor


class Broken(Exception):
    """Raised by the handlers below."""


def fail_deeply() -> None:
    raise Broken("own")


@job
def fail_in_thread() -> None:
    fail_deeply()


@job
async def fail_twice() -> None:
    try:
        fail_deeply()
    except Broken as error:
        raise ExceptionGroup("both", [error, ValueError("other")]) from error


@job
async def call_wrongly(ctx: Context[Any]) -> None:
    await ctx.enqueue(object())  # type: ignore[arg-type]


async def pass_on(ctx: Context[Any], call_next: Any) -> Any:
    return await call_next(ctx)


async def read_frames(processor: Processor, which: Any) -> list[str]:
    """Return the functions in the traceback of a job that failed."""
    async with processor:
        job_id = await processor.enqueue(which)
        await processor.drain()
        record = await processor.backend.reads.get_job(job_id)
    assert record.error is not None
    return re.findall(r"File .*, line \d+, in (\w+)", record.error.traceback)


async def test_frames_that_lead_to_the_handler_are_hidden(
    nimburion_processor: MakeProcessor,
) -> None:
    processor = nimburion_processor(fail_in_thread, fail_twice)
    processor.use(pass_on)
    own = ["pass_on", "fail_in_thread", "fail_deeply"]
    assert await read_frames(processor, fail_in_thread.job()) == own
    group = ["fail_twice", "fail_deeply", "pass_on", "fail_twice", "fail_twice", "fail_deeply"]
    assert await read_frames(processor, fail_twice.job()) == group


async def test_the_log_begins_with_the_handler_too(
    nimburion_processor: MakeProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    await read_frames(nimburion_processor(fail_in_thread), fail_in_thread.job())
    (record,) = [each for each in caplog.records if each.exc_info]
    assert record.exc_info is not None
    assert record.exc_info[2] is not None
    assert record.exc_info[2].tb_frame.f_code.co_name == "fail_in_thread"
    assert isinstance(record.exc_info[1], Broken)


async def test_frames_of_a_call_that_the_handler_makes_are_kept(
    nimburion_processor: MakeProcessor,
) -> None:
    frames = await read_frames(nimburion_processor(call_wrongly), call_wrongly.job())
    assert frames[0] == "call_wrongly"
    assert frames[-1] == "require_declaration"
