"""Handlers that end in ways nobody planned: each still ends as one settlement."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import Cancel
from nimburion.core.job import JobRecord, State
from nimburion.jobs import Processor
from nimburion.jobs.handling.context import Context
from tests.waiting import wait_until_finished


class Panic(BaseException):
    """As foreign code raises it: no `Exception`, yet no reason to end the process."""


async def ended(handler: Callable[[Context, bytes], Any], **policy: Any) -> JobRecord:
    """What became of one raw job in a worker."""
    processor = Processor(MemoryBackend())
    processor.register("odd", handler, **policy)
    async with processor, asyncio.timeout(10):
        await processor.start()
        job_id = await processor.enqueue_raw("odd", b"{}")
        return await wait_until_finished(processor, job_id)


async def panic_async(_: Context, __: bytes) -> None:
    raise Panic("upside down")


def panic_in_a_thread(_: Context, __: bytes) -> None:
    raise Panic("upside down")


@pytest.mark.parametrize("handler", [panic_async, panic_in_a_thread])
async def test_an_exception_outside_of_exception_is_a_failure_too(
    handler: Callable[[Context, bytes], Any],
) -> None:
    record = await ended(handler, max_retries=0)
    assert (record.state, record.reason, record.failures) == (State.FAILED, "exhausted", 1)
    assert record.error is not None
    assert (record.error.type, record.error.message) == ("Panic", "upside down")


async def test_what_a_plain_function_hands_back_to_be_awaited_is_awaited() -> None:
    async def work(data: bytes) -> str:
        await asyncio.sleep(0)
        return data.decode()

    record = await ended(lambda _, data: work(data))
    assert (record.state, record.result) == (State.COMPLETED, b'"{}"')


async def test_a_result_whose_own_code_fails_is_no_reason_to_do_the_work_again() -> None:
    class BrokenModel:
        __pydantic_serializer__ = None
        model_validate_json = None

        def model_dump(self, **_: object) -> object:
            raise KeyError("no such member")

    async def answer(_: Context, __: bytes) -> object:
        return BrokenModel()

    record = await ended(answer, max_retries=0)
    assert (record.state, record.failures) == (State.COMPLETED, 0)
    assert record.result is not None
    assert record.result.startswith(b"!the result of 'odd' cannot be stored: 'no such member'")


@pytest.mark.parametrize(
    ("reason", "kept"),
    [("a\ud800\0", "a\\ud800\\0"), (ValueError("no object"), "no object")],
)
async def test_a_reason_to_cancel_is_cleaned_before_it_leaves(reason: Any, kept: str) -> None:
    async def withdraw(_: Context, __: bytes) -> None:
        raise Cancel(reason)

    record = await ended(withdraw)
    assert (record.state, record.reason) == (State.CANCELLED, kept)


async def test_long_messages_and_reasons_are_shortened_before_they_are_sent() -> None:
    async def talk(ctx: Context, _: bytes) -> None:
        ctx.progress(0.5, "\0" + "x" * 100_000)
        raise Cancel("y" * 100_000)

    record = await ended(talk)
    assert record.reason is not None
    assert len(record.reason) <= 1024
    assert record.progress is not None
    assert record.progress.message.startswith("\\0xxx")
    assert len(record.progress.message) <= 1024
