"""Handlers that end their worker's process: what becomes of them, and of the jobs beside them.

The first runs take the worker along. After two of them the job runs in a child process, which
`tests/jobs/worker/children/test_import_path.py` tests.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nimburion.backends import open_backend
from nimburion.core.job import State
from nimburion.core.timing.clock import SystemClock
from nimburion.jobs import Processor
from tests.crash.lost_worker import EXIT_CODE
from tests.waiting import DEADLINE

LATER = 60.0
"""Seconds after which the session of the lost worker has expired."""

CODES = {
    "exit on the loop": EXIT_CODE,
    "exit in a thread": EXIT_CODE,
    "out of memory": -signal.SIGKILL,
}


class LaterClock(SystemClock):
    """A clock that is ahead, so that nobody waits for a session to expire."""

    def now(self) -> float:
        return super().now() + LATER

    def monotonic(self) -> float:
        return super().monotonic() + LATER


@pytest.mark.parametrize("how", CODES)
async def test_the_jobs_of_a_worker_that_ended_run_again_and_count_one_loss(
    how: str, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    names = ("harmful", "in_thread", "on_loop")
    async with Processor(url) as processor:
        ids = [await processor.enqueue_raw(name, b"{}") for name in names]
    worker = [sys.executable, "-m", "tests.crash.lost_worker", url, how]
    ended = await asyncio.to_thread(
        subprocess.run, worker, capture_output=True, check=False, timeout=DEADLINE
    )
    assert ended.returncode == CODES[how], ended.stderr.decode()

    clock = LaterClock()
    ran: list[str] = []
    async with Processor(open_backend(url, clock=clock), clock=clock) as processor:
        for name in names:
            processor.register(name, lambda ctx, _: ran.append(ctx.name))
        assert await processor.drain() == len(names)
        records = [await processor.backend.reads.get_job(job_id) for job_id in ids]
    assert sorted(ran) == sorted(names)
    assert {(each.state, each.failures, each.lost) for each in records} == {(State.COMPLETED, 0, 1)}
    assert {each.history[-1].type for each in records} == {"WorkerLost"}
