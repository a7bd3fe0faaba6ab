"""Starts, signals and ends the processes of a test, and waits for what they do, with a deadline."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nimburion.backends import open_backend
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import JobOptions, JobRecord, NewJob, State
from nimburion.core.session import Session
from nimburion.testing.contract.harness import make_limits
from tests.crash.actor import DIARY
from tests.crash.fork_server import ForkedProcess, ForkServer
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent.parent
TTL = 1.0
DEADLINE = 60.0
"""Seconds that processes have for what a test waits for. On a busy machine, one starts in ten."""


Process = subprocess.Popen[bytes] | ForkedProcess


class ProcessHarness:
    """A backend, a folder with a diary, and the processes that use them. They are forked from that
    server, if there is one."""

    def __init__(self, folder: Path, url: str, fork_server: ForkServer | None = None) -> None:
        self._fork_server = fork_server
        self.folder = folder
        self.url = url
        self.backend = open_backend(url)
        self.jobs: list[str] = []
        self._processes: list[Process] = []
        self._events: list[dict[str, Any]] = []
        self._read_bytes = 0
        """How much of the diary the events come from."""

    async def __aenter__(self) -> Self:
        await self.backend.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        await self.backend.close()

    # Processes

    def start_worker(self, crash_at: str | None = None, **options: Any) -> Process:
        """Start a worker; `terms` are settings."""
        return self._start("worker", crash_at, {"session_ttl": TTL, "grace": 10.0, **options})

    def start_producer(
        self,
        crash_at: str | None,
        name: str,
        ids: list[str],
        *,
        replaces: bool = False,
        after: float = 0.0,
        max_wait: float | None = None,
    ) -> Process:
        """Start a process that enqueues these and ends. They may replace the holder of a key."""
        options = {"name": name, "ids": ids, "replaces": replaces}
        return self._start("producer", crash_at, {**options, "after": after, "max_wait": max_wait})

    def start_operator(self, crash_at: str | None, ids: list[str]) -> Process:
        """Start a process that makes these jobs due and ends."""
        return self._start("operator", crash_at, {"ids": ids})

    def start_buyer(self, crash_at: str | None) -> Process:
        """Start a process that writes a row and enqueues its job, in one transaction."""
        return self._start("buyer", crash_at, {})

    def start_shopper(self, crash_at: str | None, job_id: str) -> Process:
        """Start a process that writes a row and stores its job in the outbox, in one
        transaction."""
        return self._start("shopper", crash_at, {"id": job_id})

    def start_relayer(self, crash_at: str | None) -> Process:
        """Start a process that relays the outbox and ends."""
        return self._start("relayer", crash_at, {})

    def _start(self, verb: str, crash_at: str | None, options: dict[str, Any]) -> Process:
        environment = dict(os.environ)
        if crash_at is not None:
            environment["CRASH_AT"] = crash_at
        arguments = [verb, str(self.folder), self.url, json.dumps(options)]
        process: Process
        if self._fork_server is None:
            command = [sys.executable, "-m", "tests.crash.actor", *arguments]
            process = subprocess.Popen(command, cwd=ROOT, env=environment)
        else:
            process = self._fork_server.start(arguments, environment)
        self._processes.append(process)
        return process

    async def wait_for_exit(self, process: Process, seconds: float = DEADLINE) -> int:
        """How it ended; it must end within so many seconds."""
        return await asyncio.to_thread(process.wait, seconds)

    async def wait_until_killed(self, process: Process) -> None:
        """Wait for a process that reaches its crash point."""
        assert await self.wait_for_exit(process) == -signal.SIGKILL, (
            "the crash point was not reached"
        )

    # Jobs

    async def enqueue(self, name: str, count: int = 1, after: float = 0.0) -> list[str]:
        """Store jobs, of two tenants and of none; return their ids."""
        ids = [f"{name}-{n}" for n in range(count)]
        tenants = (None, "a", "b")
        jobs = [
            NewJob(
                *(one, name, "default", b"{}"),
                after=after,
                options=JobOptions(tenant=tenants[n % len(tenants)]),
            )
            for n, one in enumerate(ids)
        ]
        assert {result.outcome for result in await self.backend.producing.enqueue(jobs)} <= {
            "created"
        }
        self.jobs += ids
        return ids

    async def enqueue_keyed(self, count: int) -> None:
        """Store jobs with limits by key, of two tenants in turn."""
        jobs = []
        for n in range(count):
            keys = {"keyed:tenant": "ab"[n % 2], "gateway": ""}
            options = JobOptions(limit_keys=keys)
            jobs.append(NewJob(f"keyed-{n}", "keyed", "default", b"{}", options=options))
        await self.backend.producing.enqueue(jobs)
        self.jobs += [job.id for job in jobs]

    async def lose(self, job_ids: list[str], times: int) -> None:
        """Let workers reserve these jobs, and nothing else is there, and vanish so many times."""
        lanes = tuple({Lane("default", one.partition("-")[0]) for one in job_ids})
        for _ in range(times):
            session = Session(id=os.urandom(16).hex(), ttl=0.01)
            await self.backend.consuming.open_session(session)
            want = ReserveRequest(len(job_ids), lanes, nonce=os.urandom(16))
            reply = await self.backend.consuming.exchange(session.id, 1, [], want)
            assert len(reply.deliveries) == len(job_ids)
            returned: list[str] = []

            async def rescued(found: list[str] = returned) -> bool:
                found += (await self.backend.consuming.rescue(len(job_ids), max_lost=99)).returned
                return len(found) == len(job_ids)

            await self.wait_until(rescued, "the jobs are rescued")

    async def supervise(
        self, job_ids: list[str], *, seconds: float = DEADLINE, **options: Any
    ) -> int:
        """Keep one worker running until these jobs have ended; how many were started."""
        process, started = self.start_worker(**options), 1

        async def ended() -> bool:
            nonlocal process, started
            if all([(await self.get_record(one)).state.finished for one in job_ids]):
                return True
            if process.poll() is not None:
                process, started = self.start_worker(**options), started + 1
            return False

        await self.wait_until(ended, "the jobs have ended", seconds)
        return started

    async def wait_until(
        self, condition: Callable[[], Awaitable[bool]], what: str, seconds: float = DEADLINE
    ) -> None:
        """Check again, a few times a second, until it holds. It does not call `Consuming.wait`,
        which would be woken in place of a worker."""
        try:
            await wait_until(condition, what, seconds)
        except AssertionError as error:
            error.add_note(str(self.read_events()))
            raise

    async def wait_until_logged(
        self,
        what: str,
        count: int = 1,
        *,
        alive: Process | None = None,
        seconds: float = DEADLINE,
        **more: object,
    ) -> None:
        """Wait for lines in the diary; `alive` must live until then."""

        async def noted() -> bool:
            assert alive is None or alive.poll() is None, (
                f"process {alive.pid} ended; {self.read_events()}"
            )
            return len(self.find_events(what, **more)) >= count

        await self.wait_until(noted, f"{count} times {what} {more}", seconds)

    async def stop(self, process: Process) -> None:
        """Stop a process as SIGSTOP does. On SQLite, not while it holds the lock of the file: no
        other process can work then.
        """

        async def stopped() -> bool:
            process.send_signal(signal.SIGSTOP)
            if not self._is_locked():
                return True
            process.send_signal(signal.SIGCONT)
            return False

        await self.wait_until(stopped, "the process is stopped, and holds no lock")

    def _is_locked(self) -> bool:
        if not self.url.startswith("sqlite:"):
            return False
        path = self.url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            connection.execute("ROLLBACK")
        return False

    async def wait_until_finished(self) -> None:
        """Wait until nothing is unfinished."""

        async def finished() -> bool:
            counts = await self.backend.reads.count_jobs(budget=None)
            return all(state.finished or not count for state, count in counts.items())

        await self.wait_until(finished, "every job has ended")

    async def get_record(self, job_id: str) -> JobRecord:
        """What the backend says."""
        return await self.backend.reads.get_job(job_id)

    # Looking

    def read_events(self) -> list[dict[str, Any]]:
        """What happened, in order. A line is one write; the last may still be on its way.

        Tests call it again and again: it reads what is new since the last call.
        """
        path = self.folder / DIARY
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read_bytes)
                lines, end, _ = file.read().rpartition(b"\n")
            self._read_bytes += len(lines + end)
            self._events += [json.loads(line) for line in lines.split(b"\n") if line]
        return list(self._events)

    def find_events(self, what: str, **more: object) -> list[dict[str, Any]]:
        """The lines of that kind."""
        wanted = {"what": what, **more}
        return [line for line in self.read_events() if wanted.items() <= line.items()]

    async def check_all_completed(self, *, lost: int, handed_back: int = 0) -> None:
        """Each job ended once, as completed. In all, workers were lost with a job in hand at most
        `lost` times, and handed one back `handed_back` times."""
        await self.wait_until_finished()
        counts = await self.backend.reads.count_jobs(budget=None)
        assert counts[State.COMPLETED] == sum(counts.values()) == len(self.jobs)
        records = [await self.get_record(job_id) for job_id in self.jobs]
        assert {record.failures for record in records} == {0}
        assert sum(record.lost for record in records) <= lost
        assert await self.backend.reads.list_queues() == []
        assert (await self.backend.reads.list_tenants()).tenants == []
        ends = Counter(line["job"] for line in self.find_events("end"))
        starts = defaultdict[str, list[int]](list)
        for line in self.find_events("start"):
            starts[line["job"]].append(line["fence"])
        for record in records:
            assert record.result is not None
            fences = starts[record.id]
            assert fences == sorted(set(fences)), "a fence that does not rise"
            assert int(record.result) in fences
            assert 1 <= ends[record.id] <= len(fences) <= 1 + lost + handed_back
        await self._check_limits()

    async def _check_limits(self) -> None:
        """A limit counts what is processing: nothing."""
        name = self.jobs[0].partition("-")[0]

        async def is_free() -> bool:
            session = Session(id=os.urandom(16).hex(), names=(name,), limits=make_limits({name: 1}))
            await self.backend.consuming.open_session(session)
            limits = (await self.backend.consuming.heartbeat(session.id)).limits
            await self.backend.consuming.close_session(session.id)
            if name not in limits:  # a worker has opened its next session since, without a limit
                return False
            assert limits[name].in_use == 0
            return True

        await self.wait_until(is_free, "the limit is declared")
