"""Errors of operations: which of them another attempt raises again, and how groups end a run."""

from __future__ import annotations

import asyncio

import pytest

from nimburion import DurableContext, PermanentError
from nimburion.core.job import Reason
from nimburion.jobs.payloads.codec import UnreadablePayload
from tests.jobs.durable.runs import finish, make_processor


@pytest.mark.parametrize("fails_in_step", [True, False])
async def test_an_error_is_stored_although_a_later_step_fails_where_it_was_caught(
    *, fails_in_step: bool
) -> None:
    processor = make_processor(max_retries=3, retry_backoff=10)
    calls: list[str] = []

    async def charge() -> None:
        calls.append("charge")
        if calls.count("charge") == 1:
            raise ValueError("declined")

    async def tell() -> None:
        calls.append("tell")

    async def mark() -> None:
        calls.append("mark")
        if calls.count("mark") == 1:
            raise ConnectionError("busy")

    @processor.job
    async def run(ctx: DurableContext) -> str:
        try:
            await ctx.step(charge)
        except ValueError:
            await ctx.step(tell)
            if not fails_in_step and calls.count("charge") == 1:
                raise KeyError("a bug") from None  # its context is the error of the step
            await ctx.step(mark)
            return "declined"
        return "charged"

    async with processor:
        status = await finish(processor, await run.enqueue())
        if fails_in_step:
            assert status.result == "declined"
            assert calls == ["charge", "tell", "mark", "mark"]
        else:
            assert status.result == "charged"
            assert calls == ["charge", "tell", "charge"]


@pytest.mark.parametrize(
    ("errors", "attempts", "reason"),
    [
        ([PermanentError("no")], 1, Reason.PERMANENT),
        ([UnreadablePayload("no")], 1, Reason.UNREADABLE),
        ([PermanentError("no"), UnreadablePayload("no")], 1, Reason.PERMANENT),
        ([ExceptionGroup("more", [PermanentError("no")])], 1, Reason.PERMANENT),
        ([PermanentError("no"), OSError("busy")], 2, Reason.EXHAUSTED),
    ],
)
async def test_a_group_of_errors_that_no_retry_helps_is_not_tried_again(
    errors: list[Exception], attempts: int, reason: str
) -> None:
    processor = make_processor(max_retries=1, retry_backoff=10)
    calls: list[int] = []

    @processor.job
    async def run(ctx: DurableContext) -> None:
        calls.append(ctx.attempt)

        async def fail(error: Exception) -> None:
            raise error

        async with asyncio.TaskGroup() as group:
            for error in errors:
                group.create_task(fail(error))

    async with processor:
        job_id = await run.enqueue()
        await finish(processor, job_id)
        assert len(calls) == attempts
        assert (await processor.backend.reads.get_job(job_id)).reason == reason
