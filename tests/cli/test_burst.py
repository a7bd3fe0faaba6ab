"""What a worker that ends with `--burst` says about the jobs that it leaves."""

from __future__ import annotations

import logging

import pytest

from nimburion.cli.burst import log_end_of_burst
from nimburion.core.errors import Retry
from nimburion.jobs import Context, Job
from nimburion.testing.plugin import MakeProcessor


class Send(Job):
    """Fails on request."""

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
        await log_end_of_burst(processor)
        assert caplog.messages == ["ends after 0 attempts"]
        await processor.enqueue_many([Send(after=90), Send(after=40)])
        await processor.enqueue(Send(after=1), after=300)
        await processor.drain()
        caplog.clear()
        await log_end_of_burst(processor)
    ended, line = caplog.messages
    assert ended == "ends after 2 attempts"
    assert line.startswith(
        "2 jobs wait for a retry and 1 job waits for a later time; the next one is due in 40 s, at "
    )
    assert line.endswith("A worker without --burst runs it")
