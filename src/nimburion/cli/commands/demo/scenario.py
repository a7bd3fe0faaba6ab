"""The steps of the demo: jobs, a killed worker, a rescue and a replay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from mailbox import Maildir
from pathlib import Path

from nimburion.cli.commands.demo.jobs import CallPartner, ExportArchive, SendEmail
from nimburion.cli.commands.demo.snapshot import EMPTY, Snapshot, describe_changes, take_snapshot
from nimburion.cli.commands.demo.workers import WorkerProcesses
from nimburion.cli.exit_codes import CommandFailed
from nimburion.core.job import State
from nimburion.jobs import Processor, Unique

PARTNERS, EMAILS, EXPORTS = 20, 10, 4
GONE_PATH = "/partners/closed-shop"
REMINDER_DELAY = 4.0
POLL_SECONDS = 0.1


class Scenario:
    """The steps of the demo and their shared objects."""

    def __init__(
        self,
        processor: Processor,
        workers: WorkerProcesses,
        folder: Path,
        show: Callable[[str], None],
    ) -> None:
        self.processor = processor
        self.workers = workers
        self.folder = folder
        self.show = show
        self.ids: set[str] = set()
        """The ids of all enqueued jobs."""
        self.snapshot: Snapshot = EMPTY

    async def run(self, ttl: int) -> None:
        """Run all steps in order; `ttl` is the lifetime of the workers' sessions in seconds."""
        gone = await self.enqueue()
        await self.start_workers()
        await self.kill_one_worker(ttl)
        await self.wait_for_all_jobs()
        await self.replay(gone)
        await self.stop_workers()

    async def enqueue(self) -> str:
        """Enqueue all jobs before the first worker starts; return the id of one that will fail."""
        await self._enqueue_exports()
        gone = await self._enqueue_calls()
        same = await self._enqueue_emails()
        self.snapshot = await take_snapshot(self.processor.backend)
        self.announce(f"{len(self.ids)} jobs enqueued in {self.processor.backend.describe()}")
        got = "the same id" if same else "TWO IDS"
        self.announce(f"one was enqueued twice under one unique key and got {got}")
        self.announce("one, due in an hour, is cancelled before it runs")
        return gone

    async def _enqueue_exports(self) -> None:
        """Enqueue slow exports for the killed worker, in one call, and one that is cancelled before
        it is due."""
        exports = [ExportArchive(number=number) for number in range(1, EXPORTS + 1)]
        self.ids.update(await self.processor.enqueue_many(exports))
        later = await self.processor.enqueue_after(ExportArchive(number=0), 3600)
        self.ids.add(later)
        await self.processor.cancel(later)

    async def _enqueue_calls(self) -> str:
        """Enqueue calls that fail temporarily, and one that fails until it is replayed."""
        for number in range(1, PARTNERS + 1):
            call = CallPartner(path=f"/orders/{number}", failures=(0, 0, 1, 3)[number % 4])
            self.ids.add(await self.processor.enqueue(call))
        repaired = str(self.folder / "repaired")
        gone = await self.processor.enqueue(CallPartner(path=GONE_PATH, repaired=repaired))
        self.ids.add(gone)
        return gone

    async def _enqueue_emails(self) -> bool:
        """Enqueue mail: some due now, one later, one with an invalid payload, and one twice. Return
        whether that one has one id."""
        Maildir(self.folder / "mail", create=True)
        mailbox = str(self.folder / "mail")
        for number in range(1, EMAILS + 1):
            mail = SendEmail(mailbox=mailbox, to=f"user{number}@example.com", subject="Welcome")
            self.ids.add(await self.processor.enqueue(mail))
        reminder = SendEmail(mailbox=mailbox, to="user1@example.com", subject="Reminder")
        self.ids.add(await self.processor.enqueue_after(reminder, REMINDER_DELAY))
        broken = {"to": "unknown@example.com", "subject": 7}
        self.ids.add(await self.processor.enqueue_raw("send_email", broken, queue="mail"))
        weekly = SendEmail(mailbox=mailbox, to="all@example.com", subject="Weekly news")
        key = "news-week-31"
        first = await self.processor.enqueue(
            weekly, unique_key=key, unique=Unique(on_duplicate="existing")
        )
        second = await self.processor.enqueue(
            weekly, unique_key=key, unique=Unique(on_duplicate="existing")
        )
        self.ids |= {first, second}
        return first == second

    async def start_workers(self) -> None:
        """Start two worker processes."""
        pids = [await self.workers.start(), await self.workers.start()]
        self.announce(f"two workers started: processes {pids[0]} and {pids[1]}")

    async def kill_one_worker(self, ttl: int) -> None:
        """Send SIGKILL to the first worker that runs two exports, and wait until the other worker
        has rescued its jobs."""
        await self.wait_until(lambda: self.find_busy_worker() is not None)
        pid = self.find_busy_worker()
        assert pid is not None
        held = self.snapshot.list_held_by(pid)
        await self.workers.kill(pid)
        number = self.workers.numbers[pid]
        self.announce(f"kill -9: worker {number} (process {pid}), which holds {len(held)} jobs")
        self.announce(
            f"its session ends {ttl} s after its last heartbeat (by default 30 s); until then its "
            "jobs wait"
        )
        await self.wait_until(lambda: pid not in {one.pid for one in self.snapshot.sessions})
        self.announce(
            "the other worker has rescued its jobs; each of them runs again from the start"
        )

    async def wait_for_all_jobs(self) -> None:
        """Wait until every job has ended."""
        await self.wait_until(lambda: not self.snapshot.list_unfinished())
        failed = [r for r in self.snapshot.jobs.values() if r.state is State.FAILED]
        self.announce(f"all jobs have ended; {len(failed)} failed and are kept as dead letters")

    async def replay(self, gone: str) -> None:
        """Repair what a job failed for, and replay the job."""
        (self.folder / "repaired").touch()
        self.announce(f"{GONE_PATH} answers again; its dead letter is replayed")
        await self.processor.dead.replay(gone)
        await self.wait_until(lambda: self.snapshot.jobs[gone].state is State.COMPLETED)

    async def stop_workers(self) -> None:
        """Send SIGTERM: the workers finish their running jobs and exit."""
        codes = await self.workers.stop()
        self.announce(f"SIGTERM to the remaining worker; exit code {' and '.join(map(str, codes))}")
        await self.refresh()

    async def wait_until(self, reached: Callable[[], bool]) -> None:
        """Take snapshots and show the changes until `reached` returns true."""
        while True:
            await self.refresh()
            if reached():
                return
            if exited := self.workers.list_exited():
                raise CommandFailed(f"worker {exited[0]} has ended; see worker-{exited[0]}.log")
            await asyncio.sleep(POLL_SECONDS)

    async def refresh(self) -> None:
        """Take a new snapshot and show the changes."""
        before, self.snapshot = self.snapshot, await take_snapshot(self.processor.backend)
        for line in describe_changes(before, self.snapshot):
            self.show(f"   {line}")

    def find_busy_worker(self) -> int | None:
        """Return the process id of a worker that runs at least two exports, or None."""
        for pid in self.workers.numbers:
            held = self.snapshot.list_held_by(pid)
            if sum(r.name == "export_archive" and r.progress is not None for r in held) >= 2:
                return pid
        return None

    def announce(self, line: str) -> None:
        """Show an action of the demo itself."""
        self.show(f"-- {line}")
