"""Five schedulers, each a process, on one backend: two are killed and one is paused on the way."""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from nimburion.backends import open_backend
from nimburion.core.job import JobRecord
from nimburion.core.queries import JobFilter
from tests.house.tree import ROOT
from tests.waiting import block_until

SECONDS, DEEP_SECONDS = 15, 120
COUNT = 5


class SchedulerProcesses:
    """Schedulers that run."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.scheduler.actor", url],
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(COUNT)
        ]
        stack.callback(self.kill_all)
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"

    def signal(self, number: int, *which: int) -> None:
        """Send a signal to some of them."""
        for one in which:
            self.processes[one].send_signal(number)

    def kill_all(self) -> None:
        """End what is left."""
        self.signal(signal.SIGKILL, *range(COUNT))


async def jobs_of(url: str) -> list[JobRecord]:
    """What the backend holds."""
    backend = open_backend(url)
    await backend.open()
    found: list[JobRecord] = []
    after: str | None = None
    while True:
        page = await backend.reads.list_jobs(JobFilter(), limit=500, after=after)
        found += page.jobs
        after = page.next
        if after is None:
            await backend.close()
            return found


def disturb(processes: SchedulerProcesses, seconds: float) -> float:
    """Kill two and pause one while they fire; the end of the time in which somebody lived."""
    began = time.time()
    block_until(lambda: time.time() > began + seconds / 4, "a quarter", seconds + 20)
    processes.signal(signal.SIGKILL, 0)
    processes.signal(signal.SIGSTOP, 1)
    block_until(lambda: time.time() > began + seconds / 2, "a half", seconds + 20)
    processes.signal(signal.SIGKILL, 2)
    block_until(lambda: time.time() > began + 3 * seconds / 4, "three quarters", seconds + 20)
    processes.signal(signal.SIGCONT, 1)
    block_until(lambda: time.time() > began + seconds, "the end", seconds + 20)
    return time.time()


def check(jobs: list[JobRecord], record: Callable[[str, object], None], *, least: int) -> None:
    """One job for each second from the first to the last, none early."""
    dues = sorted(job.due for job in jobs)
    assert dues == [dues[0] + n for n in range(len(dues))]
    assert len(dues) >= least
    late = sorted(job.created_at - job.due for job in jobs)
    assert all(job.id.startswith("each-second:") for job in jobs)
    assert late[0] >= -0.001
    record("median lateness in ms", round(1000 * statistics.median(late), 1))


@pytest.mark.slow
async def test_each_second_has_one_job(
    url: str, record_property: Callable[[str, object], None]
) -> None:
    with ExitStack() as stack:
        disturb(SchedulerProcesses(url, stack), SECONDS)
    check(await jobs_of(url), record_property, least=SECONDS - 2)


@pytest.mark.deep
@pytest.mark.timeout(400)
async def test_each_second_of_two_minutes_has_one_job(
    url: str, record_property: Callable[[str, object], None]
) -> None:
    with ExitStack() as stack:
        disturb(SchedulerProcesses(url, stack), DEEP_SECONDS)
    jobs = await jobs_of(url)
    check(jobs, record_property, least=DEEP_SECONDS - 2)
    late = statistics.median(job.created_at - job.due for job in jobs)
    sys.stderr.write(f"\n{url.partition(':')[0]}: {len(jobs)} ticks, median {1000 * late:.1f} ms\n")
    assert late < 0.05
