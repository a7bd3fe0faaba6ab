"""`enqueue_blocking`: stores jobs from threads without an event loop. Runs if the `Capabilities` of
the backend have `blocking_enqueue`."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from nimburion.core.backend import BlockingProducing
from nimburion.core.errors import NotOpen
from nimburion.core.job import Enqueued, JobOptions, NewJob, State
from nimburion.testing.contract.harness import DEADLINE, Harness, wait_in_time


def check_supported(harness: Harness) -> None:
    """Skip the case if the backend stores jobs on its event loop only."""
    if not harness.backend.capabilities.blocking_enqueue:
        pytest.skip("this backend stores jobs on its event loop only, and says so")


async def enqueue_on_thread(harness: Harness, *jobs: NewJob) -> list[Enqueued]:
    """Store jobs in one call on another thread."""
    producing = cast("BlockingProducing", harness.backend.producing)
    return await wait_in_time(asyncio.to_thread(producing.enqueue_blocking, jobs, DEADLINE))


class BlockingEnqueues:
    """`enqueue_blocking`: enqueue on a thread without an event loop."""

    async def test_a_thread_enqueues_jobs(self, harness: Harness) -> None:
        check_supported(harness)
        results = await enqueue_on_thread(harness, harness.job("a"), harness.job("b", after=60.0))
        assert results == [Enqueued("a", "created"), Enqueued("b", "created")]
        assert await harness.state("a") is State.PENDING
        assert await harness.state("b") is State.SCHEDULED
        assert await enqueue_on_thread(harness) == []

    async def test_a_blocking_call_decides_as_any_other(self, harness: Harness) -> None:
        check_supported(harness)
        key = JobOptions(unique_key="k")
        await enqueue_on_thread(harness, harness.job("a", options=key))
        assert await enqueue_on_thread(harness, harness.job("a", options=key)) == [
            Enqueued("a", "exists")
        ]
        assert await enqueue_on_thread(harness, harness.job("a", payload=b"other")) == [
            Enqueued("a", "conflict")
        ]
        taken = await enqueue_on_thread(harness, harness.job("b"), harness.job("c", options=key))
        assert taken == [Enqueued("b", "refused"), Enqueued("a", "taken")]

    async def test_threads_and_the_loop_enqueue_at_once(self, harness: Harness) -> None:
        check_supported(harness)
        calls = [enqueue_on_thread(harness, harness.job(f"t-{n}")) for n in range(20)]
        loop_calls = [harness.enqueue(harness.job(f"l-{n}")) for n in range(20)]
        results = await wait_in_time(asyncio.gather(*calls, *loop_calls))
        assert {result.outcome for (result,) in results} == {"created"}
        assert (await harness.backend.reads.count_jobs())[State.PENDING] == 40

    async def test_a_blocking_call_notifies_waiting_workers(self, harness: Harness) -> None:
        check_supported(harness)
        wait = asyncio.create_task(harness.backend.consuming.wait(["default"], 1_000.0))
        await asyncio.sleep(0)
        await enqueue_on_thread(harness, harness.job("a"))
        await wait_in_time(wait)

    async def test_a_closed_backend_refuses_a_blocking_call(self, harness: Harness) -> None:
        check_supported(harness)
        if not harness.backend.capabilities.shared:
            pytest.skip("a backend in the memory of this process is never closed")
        await enqueue_on_thread(harness, harness.job("a"))
        await harness.backend.close()
        with pytest.raises(NotOpen):
            await enqueue_on_thread(harness, harness.job("b"))
