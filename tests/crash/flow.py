"""Jobs that flow through a backend while something happens to its server, and the account of them.

One side enqueues at an even pace, each job by its own id until it is acknowledged, and notes when
that was; worker processes (`tests.crash`) run them and note each start and end in a diary. In the
end every acknowledged job is in the backend, as completed, or is counted as lost.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from nimburion.backends import open_backend
from nimburion.core.errors import BackendError, BackendFull, BackendReadOnly, BackendUnavailable
from nimburion.core.job import State
from nimburion.core.settings import Settings
from nimburion.jobs.client.client import Client
from tests.crash.harness import ProcessHarness

TIMEOUT = 40.0
AT_ONCE = 4
MAX_SECONDS = 2.0
"""Seconds before a server's death: what was acknowledged earlier must be there afterwards. Read
the clock before the server is killed, not after: on a busy machine the call takes a second."""

Record = Callable[[str, object], None]


@asynccontextmanager
async def run_flow(
    folder: Path, url: str, *, jobs: int, per_second: int = 1_000, load: int = 0, ttl: float = 10.0
) -> AsyncIterator[Flow]:
    """A stream of jobs that has begun, and two workers that run them. Leaving it lets the stream
    end, with `jobs` of them at least, and waits until all is done; the account is then
    `flow.result`. `load`: bytes of each payload; `ttl`: seconds that a worker's session lives."""
    async with ProcessHarness(folder, url) as harness:
        flow = Flow(harness, per_second, b"{%b}" % (b" " * load))
        processes = [harness.start_worker(session_ttl=ttl, concurrency=10) for _ in range(2)]
        flow.workers = [process.pid for process in processes]
        pouring = asyncio.create_task(flow.enqueue_more(jobs))
        try:
            await flow.wait_until_every_worker_resumes(since=0.0)
            yield flow
            flow.may_end = True
            await pouring
            flow.result = await flow.reconcile()
        finally:
            pouring.cancel()
            await asyncio.gather(pouring, return_exceptions=True)
        assert all(process.poll() is None for process in processes), "a worker ended"


class Flow:
    """A steady stream of jobs into the backend of a harness."""

    def __init__(self, harness: ProcessHarness, per_second: int, payload: bytes) -> None:
        self.harness = harness
        self._payload = payload
        self.acknowledged: dict[str, float] = {}
        """When each was, on the clock of this host."""
        self.refused: Counter[str] = Counter()
        """Calls that were given up or refused, by the error."""
        self.held_up: int = 0
        """Jobs that took longer than half a second to be acknowledged."""
        self._client = Client(open_backend(harness.url), settings=Settings(enqueue_timeout=2.0))
        self._pace = AT_ONCE / per_second
        self._numbers = count()
        self._never = asyncio.Event()
        self.may_end = False
        self.workers: list[int] = []
        """The ids of their processes."""
        self.result: Account

    async def enqueue_more(self, jobs: int) -> None:
        """Enqueue so many, and more until they may end."""
        async with self._client:
            await asyncio.gather(*(self._enqueue_more(jobs) for _ in range(AT_ONCE)))

    async def _enqueue_more(self, jobs: int) -> None:
        while (number := next(self._numbers)) < jobs or not self.may_end:
            due = time.monotonic() + self._pace
            await self._enqueue(f"quick-{number}")
            await self.pass_time(due - time.monotonic())

    async def _enqueue(self, job_id: str) -> None:
        began = time.monotonic()
        async with asyncio.timeout(TIMEOUT):
            while job_id not in self.acknowledged:
                try:
                    await self._client.enqueue_raw("quick", self._payload, id=job_id)
                    self.acknowledged[job_id] = time.monotonic()
                except (BackendUnavailable, BackendFull, BackendReadOnly) as error:
                    self.refused[type(error).__name__] += 1
                    await self.pass_time(0.02)
        self.held_up += time.monotonic() - began > 0.5

    async def pass_time(self, seconds: float) -> None:
        """Keep the pace, or let an outage last."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._never.wait(), seconds)
            except TimeoutError:
                return

    async def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Look again and again; `AssertionError` when it does not hold in time."""

        async def look() -> bool:
            return holds()

        await self.wait_until_backend_reports(look, what)

    async def wait_until_acknowledged(self, jobs: int) -> None:
        """Wait until so many are."""
        await self.wait_until(
            lambda: len(self.acknowledged) >= jobs, f"{jobs} jobs are acknowledged"
        )

    async def wait_until_more(self, jobs: int) -> None:
        """Wait until so many more are."""
        await self.wait_until_acknowledged(len(self.acknowledged) + jobs)

    async def wait_until_every_worker_resumes(self, *, since: float) -> float:
        """Wait until each has begun a job after `since`; how long after that was for the last."""
        began: dict[int, float] = {}

        def all_have() -> bool:
            for line in self.harness.find_events("start"):
                if line["at"] > since:
                    began.setdefault(line["pid"], line["at"] - since)
            return began.keys() >= set(self.workers)

        await self.wait_until(all_have, "every worker goes on")
        return max(began.values())

    async def wait_until_idle(self) -> None:
        """Wait until the backend says that nothing is unfinished."""

        async def quiet() -> bool:
            counts = await self.harness.backend.reads.count_jobs(budget=None)
            return all(state.finished or not number for state, number in counts.items())

        await self.wait_until_backend_reports(quiet, "every job has ended")

    async def wait_until_backend_reports(
        self, holds: Callable[[], Awaitable[bool]], what: str
    ) -> None:
        """The same with a question to the backend, which may be away."""
        last: object = "it does not hold"
        try:
            async with asyncio.timeout(TIMEOUT):
                while True:
                    try:
                        if await holds():
                            return
                    except BackendError as error:
                        last = error
                    await self.pass_time(0.02)
        except TimeoutError:
            raise AssertionError(f"not within {TIMEOUT:g} s: {what} ({last})") from None

    async def reconcile(self) -> Account:
        """What became of them, once it is quiet."""
        await self.wait_until_idle()
        kept: dict[str, Any] = {}
        after = None
        while True:
            page = await self.harness.backend.reads.list_jobs(limit=1_000, after=after)
            kept |= {job.id: job for job in page.jobs}
            if (after := page.next) is None:
                break
        return Account(self.acknowledged, kept, self.harness.read_events())


@dataclass
class Account:
    """Every acknowledged job, and what the backend and the workers say of it."""

    acknowledged: dict[str, float]
    kept: dict[str, Any]
    diary: list[dict[str, Any]]
    starts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for line in self.diary:
            if line["what"] == "start":
                self.starts.setdefault(line["job"], []).append(line)

    @property
    def lost(self) -> set[str]:
        """Acknowledged, and not in the backend."""
        return self.acknowledged.keys() - self.kept.keys()

    @property
    def repeated(self) -> set[str]:
        """Begun more than once."""
        return {job_id for job_id, starts in self.starts.items() if len(starts) > 1}

    @property
    def sessions_lost(self) -> int:
        """How many sessions ended otherwise than by their workers' leave."""
        return sum(line["what"] == "SessionEnded" and line["how"] == "lost" for line in self.diary)

    @property
    def settled_too_late(self) -> int:
        """How many outcomes were refused, as the lease was not valid any more."""
        return sum(line["what"] == "StaleSettlement" for line in self.diary)

    def check(self, forgiven: Callable[[str], bool] = lambda _: False) -> None:
        """Every job that is kept was completed. Only those that are `make_excuse_filter` may be
        lost, or were begun twice."""
        states = Counter(job.state for job in self.kept.values())
        assert states == {State.COMPLETED: len(self.kept)}
        assert {job.failures for job in self.kept.values()} == {0}
        assert self.kept.keys() <= self.starts.keys()
        assert [one for one in self.lost if not forgiven(one)] == []
        assert [one for one in self.repeated if not forgiven(one)] == [], "begun twice"

    def younger_than(self, moment: float) -> Callable[[str], bool]:
        """What was acknowledged and first begun after a moment."""

        def is_younger(job_id: str) -> bool:
            begun = self.starts[job_id][0]["at"] if job_id in self.starts else math.inf
            return max(begun, self.acknowledged.get(job_id, math.inf)) > moment

        return is_younger

    def was_given_up(self, job_id: str) -> bool:
        """Whether the session of every worker that began it, but the last, ended afterwards."""
        ends = [line for line in self.diary if line["what"] == "SessionEnded"]
        return all(
            any(end["pid"] == start["pid"] and end["at"] > start["at"] for end in ends)
            for start in self.starts[job_id][:-1]
        )

    def record_counts(self, record: Record, what: str) -> None:
        """Print it at the end of the run."""
        for name, jobs in {
            "acknowledged": self.acknowledged,
            "acknowledged and lost": self.lost,
            "lost, but run before": self.lost & self.starts.keys(),
            "begun twice": self.repeated,
        }.items():
            record(f"{what}: jobs {name}, in total", len(jobs))
