"""What a worker that ends with `--burst` says about the jobs that it leaves."""

from __future__ import annotations

import logging

import pytest

from nimburion.cli.commands.worker import log_attempts, log_waiting_jobs
from nimburion.jobs import Context, Job, Retry
from nimburion.testing.plugin import MakeProcessor


class Send(Job):
    """Fails when it is told to."""

    after: float

    async def process(self, _: Context) -> None:
        raise Retry(after=self.after)


async def test_jobs_that_wait_are_counted_with_the_next_time(
    nimburion_processor: MakeProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nimburion.worker")
    processor = nimburion_processor(Send)
    async with processor:
        caplog.clear()
        await log_waiting_jobs(processor)
        assert caplog.messages == []
        await processor.enqueue_many([Send(after=90), Send(after=40)])
        await processor.enqueue(Send(after=1), after=300)
        await processor.drain()
        caplog.clear()
        await log_waiting_jobs(processor)
        log_attempts(processor)
    line, ended = caplog.messages
    assert ended == "no job is due; 2 attempts have ended"
    assert line.startswith(
        "2 jobs wait for a retry and 1 job waits for a later time; the next one is due in 40 s, at "
    )
    assert line.endswith("A worker without --burst runs it")
