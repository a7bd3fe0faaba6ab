"""Tests on one backend in memory delete the jobs of earlier tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimburion import Processor, job
from nimburion.core.errors import ConfigurationError
from nimburion.testing import clear_jobs


@job(rate="1/h")
async def pay(order: int) -> None: ...


def test_every_job_is_deleted_and_every_queue_resumed() -> None:
    processor = Processor("memory://")
    processor.register(pay)
    processor.sync.enqueue_many([pay.job(1), pay.job(2)])
    assert processor.sync.drain() == 1
    processor.sync.queues.pause("default")
    processor.sync.call(clear_jobs)
    assert processor.sync.pending_count() == 0
    assert [queue.paused for queue in processor.sync.queues.list()] in ([], [False])
    processor.sync.close()


async def test_the_jobs_of_other_programs_are_not_deleted(tmp_path: Path) -> None:
    async with Processor(f"sqlite:///{tmp_path}/jobs.db") as processor:
        with pytest.raises(ConfigurationError, match="other programs may use"):
            await clear_jobs(processor)
