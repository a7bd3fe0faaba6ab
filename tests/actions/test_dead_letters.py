"""Replay dead letters with other arguments."""

from __future__ import annotations

import pytest

from nimburion import Limit, Processor, Unique
from nimburion.backends.memory import MemoryBackend
from nimburion.core.job import State
from nimburion.core.size_limits import SizeLimits
from nimburion.errors import InvalidJob
from tests.waiting import wait_until_finished


async def make_dead_letter(processor: Processor) -> str:
    @processor.job(
        max_retries=0,
        limits=[Limit(concurrency=1, key="customer")],
        unique=Unique("customer"),
    )
    async def export(customer: str) -> None:
        if customer == "ann":
            raise ValueError(customer)

    await processor.start()
    job_id = await processor.enqueue(export.job("ann"))
    await wait_until_finished(processor, job_id)
    return job_id


async def test_an_edited_job_counts_for_the_keys_of_its_new_arguments() -> None:
    async with Processor(MemoryBackend()) as processor:
        dead = await make_dead_letter(processor)
        new, _ = await processor.dead.replay_edited(dead, b'{"customer":"bob"}')
        record = await wait_until_finished(processor, new)
        assert record.state is State.COMPLETED
        assert list(record.options.limit_keys.values()) == ["bob"]
        assert record.options.unique_key is None
        before = await processor.backend.reads.get_job(dead)
        assert list(before.options.limit_keys.values()) == ["ann"]


async def test_a_payload_that_is_too_large_is_refused_and_one_of_any_bytes_is_stored() -> None:
    async with Processor(MemoryBackend(), sizes=SizeLimits(payload=100)) as processor:
        dead = await make_dead_letter(processor)
        with pytest.raises(InvalidJob, match="over the limit of 100"):
            await processor.dead.replay_edited(dead, b'"' + b"x" * 100 + b'"')
        new, _ = await processor.dead.replay_edited(dead, b"\xff")
        record = await wait_until_finished(processor, new)
        assert (record.state, record.reason) == (State.FAILED, "unreadable")
