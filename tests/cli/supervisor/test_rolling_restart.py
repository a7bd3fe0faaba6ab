"""Restarts under load: no job is lost, none runs twice, and restarts count nothing."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from nimburion.core.job import State
from nimburion.jobs import Processor
from tests.cli.supervisor.conftest import StartSupervised, Supervised
from tests.servers.server_kinds import RunningPostgres, RunningRedis
from tests.waiting import wait_until

APPLICATION = """
import os
import threading
import asyncio

from nimburion import config
from nimburion.jobs import Context, Processor

processor = Processor.from_config(config.load())


def write(kind: str, ctx: Context) -> None:
    descriptor = os.open(kind, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{ctx.job_id}\\n".encode())
    os.close(descriptor)


@processor.job
async def nap(ctx: Context, seconds: float) -> None:
    await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=seconds)
    write("completed", ctx)


@processor.job
def nap_in_thread(ctx: Context, seconds: float) -> None:
    threading.Event().wait(seconds)
    write("completed", ctx)


@processor.job
def outlive_grace(ctx: Context, seconds: float) -> None:
    write("began", ctx)
    threading.Event().wait(seconds)
    write("completed_late", ctx)
"""


class RollingRestart:
    """A supervisor of two workers, one of which is stopped again and again while jobs run."""

    def __init__(self, supervised: Supervised, processor: Processor) -> None:
        self._supervised = supervised
        self._processor = processor
        self._random = Random(20261127)
        self._ids: list[str] = []
        self._late: list[str] = []

    async def enqueue(self, name: str, seconds: float) -> str:
        payload = f'{{"seconds":{seconds}}}'.encode()
        job_id = await self._processor.enqueue_raw(name, payload)
        (self._late if name == "outlive_grace" else self._ids).append(job_id)
        return job_id

    async def run(self, *, restarts: int, jobs: int, longest: float, late: float) -> None:
        """Stop a worker `restarts` times, with `jobs` new jobs each time."""
        workers = self._supervised.wait_until_ready(2)
        for number in range(restarts):
            for _ in range(jobs):
                name = self._random.choice(["nap", "nap_in_thread"])
                await self.enqueue(name, round(self._random.uniform(0, longest), 3))
            if number == 0:
                await self.enqueue("outlive_grace", late)
                await wait_until(lambda: bool(self.read("began")), "the late handler runs")
            os.kill(workers[number], signal.SIGTERM)
            workers = self._supervised.wait_until_ready(len(workers) + 1)

    async def check(self) -> None:
        """Wait for all jobs, and compare what ran with what the backend says."""

        async def all_finished() -> bool:
            return await self._processor.pending_count() == 0 and all(
                [
                    (await self._processor.get_status(job_id)).state.finished
                    for job_id in (*self._late, *self._ids[-50:])
                ]
            )

        await wait_until(all_finished, "all jobs are finished", 60.0)
        for job_id in (*self._ids, *self._late):
            status = await self._processor.get_status(job_id)
            found = (status.state, status.failures, status.lost)
            assert found == (State.COMPLETED, 0, 0), status
        assert Counter(self.read("completed")) == dict.fromkeys(self._ids, 1)
        assert set(self.read("completed_late")) == set(self._late)

    def read(self, name: str) -> list[str]:
        """Return the ids of jobs that handlers have written to a file."""
        path = self._supervised.folder / name
        return path.read_text().split() if path.exists() else []


def start_workers(
    start: StartSupervised, folder: Path, url: str, grace: float, concurrency: int
) -> Supervised:
    (folder / "app.py").write_text(APPLICATION)
    environment = {
        "NIMBURION_JOBS__URL": url,
        "NIMBURION_JOBS__GRACE": str(grace),
        "NIMBURION_JOBS__CONCURRENCY": str(concurrency),
    }
    return start(processes=2, environment=environment)


async def test_two_restarts(start: StartSupervised, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    supervised = start_workers(start, tmp_path, url, 0.5, 4)
    async with Processor(url) as processor:
        rolling = RollingRestart(supervised, processor)
        await rolling.run(restarts=2, jobs=10, longest=0.3, late=1.0)
        await rolling.check()
    assert supervised.stop() == 0


async def run_twenty_restarts(start: StartSupervised, folder: Path, url: str) -> int:
    """Jobs of 0 to 3 s, 5 s of grace, and a handler of 8 s that cannot be interrupted.

    Returns the exit code of the supervisor.
    """
    supervised = start_workers(start, folder, url, 5.0, 10)
    async with Processor(url) as processor:
        rolling = RollingRestart(supervised, processor)
        await rolling.run(restarts=20, jobs=15, longest=3.0, late=8.0)
        await rolling.check()
    return supervised.stop()


@pytest.mark.slow
@pytest.mark.wide
@pytest.mark.timeout(600)
async def test_twenty_restarts_on_sqlite(start: StartSupervised, tmp_path: Path) -> None:
    assert await run_twenty_restarts(start, tmp_path, f"sqlite:///{tmp_path}/jobs.db") == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_twenty_restarts_on_redis(
    start: StartSupervised, tmp_path: Path, redis_server: RunningRedis
) -> None:
    assert await run_twenty_restarts(start, tmp_path, redis_server.url) == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_twenty_restarts_on_postgresql(
    start: StartSupervised, tmp_path: Path, postgres_server: RunningPostgres
) -> None:
    assert await run_twenty_restarts(start, tmp_path, postgres_server.url) == 0
