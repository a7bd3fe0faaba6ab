"""A server whose memory is full: it takes no new jobs, loses none, and workers drain it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimburion.core.errors import BackendFull, JobNotFound
from nimburion.core.job import NewJob, State
from tests.crash.flow import Record
from tests.crash.harness import ProcessHarness
from tests.servers import Binary, Server

pytestmark = pytest.mark.slow

FREE_MEMORY = 2 << 20
PAYLOAD = b"{%b}" % (b" " * 2_000)


async def fill(harness: ProcessHarness, prefix: str) -> tuple[list[str], str]:
    """Enqueue until the backend is full: the jobs that it took, and the one it refused."""
    taken: list[str] = []
    while True:
        job_id = f"{prefix}-{len(taken)}"
        try:
            await harness.backend.producing.enqueue([NewJob(job_id, "quick", "default", PAYLOAD)])
        except BackendFull:
            return taken, job_id
        taken.append(job_id)


async def test_it_is_drained_and_takes_jobs_again(
    tmp_path: Path, redis_binary: Binary, record_property: Record
) -> None:
    with Server(redis_binary) as server:
        async with ProcessHarness(tmp_path, server.url) as harness:
            with server.client() as client:
                used = client.info("memory")["used_memory"]
            server.ask("CONFIG", "SET", "maxmemory", used + FREE_MEMORY)
            taken, refused = await fill(harness, "quick")
            with pytest.raises(JobNotFound):
                await harness.backend.reads.get_job(refused)
            assert (
                sum((await harness.backend.reads.count_jobs(budget=None)).values())
                == len(taken)
                > 300
            )
            harness.jobs = taken
            worker = harness.start_worker(session_ttl=10.0)
            await harness.check_all_completed(lost=0)
            worker.terminate()
            assert await harness.wait_for_exit(worker) == 0
            more, refused = await fill(harness, "more")
            with pytest.raises(JobNotFound):
                await harness.backend.reads.get_job(refused)
            counts = await harness.backend.reads.count_jobs(budget=None)
            assert (counts[State.COMPLETED], counts[State.PENDING]) == (len(taken), len(more))
    name = redis_binary.name
    record_property(f"{name}: jobs until its memory was full, in total", len(taken))
    record_property(f"{name}: jobs that it took once these were done, in total", len(more))
    assert more
