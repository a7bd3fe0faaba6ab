"""Each way to enqueue repeats a job that an open transaction blocks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nimburion.core.errors import EnqueueBlocked
from nimburion.core.flows import NewFlow
from nimburion.core.job import Enqueued, NewJob
from nimburion.jobs import Processor
from nimburion.jobs.client.client import send_jobs
from nimburion.scheduler import Schedules
from tests.overridden import OverridableBackend


class OnceBlockedBackend(OverridableBackend):
    """A backend in which a transaction blocks the first enqueue of each id."""

    def __init__(self) -> None:
        super().__init__()
        self.blocked: set[str] = set()

    async def enqueue(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
    ) -> list[Enqueued]:
        new = {job.id for job in jobs} - self.blocked
        if new:
            self.blocked |= new
            raise EnqueueBlocked("a transaction is still open")
        return await super().enqueue(jobs, flows)


@pytest.mark.parametrize("ids", ["a", "ab"])
async def test_the_jobs_of_a_child_process(ids: str) -> None:
    async with Processor(OnceBlockedBackend()) as processor:
        jobs = [NewJob(job_id, "n", "q", b"{}") for job_id in ids]
        results = await send_jobs(processor, jobs)
        assert results == [Enqueued(job_id, "created") for job_id in ids]
        (lane,) = processor._statistics.jobs.list_lanes()
        assert lane.enqueued == len(ids)


async def test_a_run_of_a_schedule() -> None:
    async with Processor(OnceBlockedBackend()) as processor:
        schedules = Schedules(processor)
        await schedules.add("daily", "@daily", "n")
        assert await schedules.run_now("daily", job_id="a") == "a"
        (lane,) = processor._statistics.jobs.list_lanes()
        assert lane.enqueued == 1
