"""The steps of the demo: files, jobs, a killed worker, a rescue and a replay."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Callable
from mailbox import Maildir
from pathlib import Path
from random import Random

import msgspec

from nimburion.cli.commands.demo.jobs import (
    CallWebhook,
    CompressFile,
    ExportArchive,
    SalesReport,
    SendEmail,
    WriteNote,
)
from nimburion.cli.commands.demo.snapshot import EMPTY, Snapshot, describe_changes, take_snapshot
from nimburion.cli.commands.demo.views import View
from nimburion.cli.commands.demo.web_service import GONE_PATH, WebService
from nimburion.cli.commands.demo.workers import WorkerProcesses
from nimburion.cli.exit_codes import CommandFailed
from nimburion.core.job import JobRecord, State
from nimburion.jobs import Priority, Processor

FILES, ORDERS, WEBHOOKS, EMAILS, EXPORTS = 12, 20_000, 10, 5, 4
REGIONS = ("north", "east", "south", "west")
REMINDER_DELAY = 4.0
POLL_SECONDS = 0.1


class Plan(msgspec.Struct):
    """The folder, the port and the ids of all enqueued jobs."""

    folder: Path
    web_port: int
    ids: set[str] = msgspec.field(default_factory=set)
    gone: str = ""
    """Id of the webhook job that gets status 410 until the service is repaired."""
    duplicate_is_same: bool = False


def write_files(folder: Path, random: Random) -> None:
    """Write the orders that the jobs read, one file per month and one for the year, and make a
    mailbox."""
    Maildir(folder / "mail", create=True)
    for name in ("orders", "compressed"):
        (folder / name).mkdir(parents=True)
    rows = [
        (number, random.randint(1, FILES), random.choice(REGIONS), random.randint(199, 99_999))
        for number in range(1, ORDERS + 1)
    ]
    _write_orders(folder / "orders.csv", rows)
    for month in range(1, FILES + 1):
        _write_orders(folder / "orders" / f"{month:02}.csv", [r for r in rows if r[1] == month])


def _write_orders(path: Path, rows: list[tuple[int, int, str, int]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("order", "month", "region", "cents"), *rows])


class Scenario:
    """The steps of the demo and their shared objects."""

    def __init__(
        self,
        processor: Processor,
        workers: WorkerProcesses,
        web: WebService,
        plan: Plan,
        view: View,
        *,
        ttl: int,
    ) -> None:
        self.processor = processor
        self.workers = workers
        self.web = web
        self.plan = plan
        self.view = view
        self.ttl = ttl
        self.snapshot: Snapshot = EMPTY

    async def run(self) -> None:
        """Run all steps in order."""
        await self.enqueue()
        await self.start_workers()
        held = await self.kill_one_worker()
        await self.wait_for_rescue(held)
        await self.wait_for_all_jobs()
        await self.repair_and_replay()
        await self.stop_workers()

    async def enqueue(self) -> None:
        """Enqueue all jobs before the first worker starts."""
        await enqueue_all(self.processor, self.plan)
        self.snapshot = await take_snapshot(self.processor.backend)
        same = "the same id" if self.plan.duplicate_is_same else "TWO IDS"
        self.announce(f"{len(self.plan.ids)} jobs enqueued in {self.processor.backend.describe()}")
        self.announce(f"one was enqueued twice under one unique key and got {same}")
        self.announce("one, due in an hour, is cancelled before it runs")

    async def start_workers(self) -> None:
        """Start two worker processes."""
        pids = [await self.workers.start(), await self.workers.start()]
        self.announce(f"two workers started: processes {pids[0]} and {pids[1]}")

    async def kill_one_worker(self) -> list[JobRecord]:
        """Send SIGKILL to the first worker that runs two exports; return the jobs that it held."""
        await self.wait_until(lambda: self.find_busy_worker() is not None)
        pid = self.find_busy_worker()
        if pid is None:
            raise CommandFailed("no worker holds a job")
        held = self.snapshot.list_held_by(pid)
        await self.workers.kill(pid)
        number = self.workers.numbers[pid]
        self.announce(f"kill -9: worker {number} (process {pid}), which holds {len(held)} jobs")
        self.announce(
            f"its session ends {self.ttl} s after its last heartbeat (by default 30 s); until "
            "then its jobs wait"
        )
        return held

    async def wait_for_rescue(self, held: list[JobRecord]) -> None:
        """Wait until the other worker has rescued the jobs of the killed worker."""
        dead = {record.session for record in held}
        await self.wait_until(
            lambda: dead.isdisjoint(session.id for session in self.snapshot.sessions)
        )
        self.announce(
            "the other worker has rescued its jobs; each of them runs again from the start"
        )

    async def wait_for_all_jobs(self) -> None:
        """Wait until every job has ended."""
        await self.wait_until(lambda: not self.snapshot.list_unfinished())
        failed = [r for r in self.snapshot.jobs.values() if r.state is State.FAILED]
        self.announce(f"all jobs have ended; {len(failed)} failed and are kept as dead letters")

    async def repair_and_replay(self) -> None:
        """Repair the web service and replay the job that it had failed."""
        self.web.repaired = True
        self.announce(f"{GONE_PATH} answers again; its dead letter is replayed")
        await self.processor.dead.replay(self.plan.gone)
        await self.wait_until(lambda: self.snapshot.jobs[self.plan.gone].state is State.COMPLETED)

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
            self.view.write(line)
        self.view.update(self.snapshot)

    def find_busy_worker(self) -> int | None:
        """Return the id of a worker process that runs at least two exports; None if there is
        none."""
        for pid in self.workers.numbers:
            held = self.snapshot.list_held_by(pid)
            if sum(r.name == "export_archive" and r.progress is not None for r in held) >= 2:
                return pid
        return None

    def announce(self, line: str) -> None:
        """Show an action of the demo itself."""
        self.view.write(line, loud=True)

    def describe_unfinished(self) -> str:
        """Describe the first jobs that have not ended."""
        waiting = self.snapshot.list_unfinished()
        return ", ".join(f"{record.name} {record.id} {record.state}" for record in waiting[:3])


async def enqueue_all(processor: Processor, plan: Plan) -> None:
    """Enqueue all jobs, some in one call and some one by one."""
    await _enqueue_notes(processor, plan)
    await _enqueue_exports(processor, plan)
    await _enqueue_files_and_report(processor, plan)
    await _enqueue_webhooks(processor, plan)
    await _enqueue_emails(processor, plan)


async def _enqueue_notes(processor: Processor, plan: Plan) -> None:
    """Enqueue three notes in reverse order; the priorities restore the order."""
    file = str(plan.folder / "notes.txt")
    for text, priority in (("last", Priority.LOW), ("second", Priority.NORMAL)):
        note = WriteNote(file=file, text=text)
        plan.ids.add(await processor.enqueue_with_priority(note, priority))
    first = WriteNote(file=file, text="first")
    plan.ids.add(await processor.enqueue(first, priority=Priority.HIGHEST))


async def _enqueue_exports(processor: Processor, plan: Plan) -> None:
    """Enqueue slow exports for the killed worker, and one that is cancelled before it is due."""
    exports = [ExportArchive(number=number) for number in range(1, EXPORTS + 1)]
    plan.ids.update(await processor.enqueue_many(exports))
    later = await processor.enqueue_after(ExportArchive(number=0), 3600)
    plan.ids.add(later)
    await processor.cancel(later)


async def _enqueue_files_and_report(processor: Processor, plan: Plan) -> None:
    """Enqueue twelve files in one call, and one report."""
    target = plan.folder / "compressed"
    plan.ids.update(
        await processor.enqueue_many(
            CompressFile(source=str(file), target=str(target / f"{file.name}.gz"))
            for file in sorted((plan.folder / "orders").iterdir())
        )
    )
    report = SalesReport(
        orders=str(plan.folder / "orders.csv"), target=str(plan.folder / "report.csv")
    )
    plan.ids.add(await processor.enqueue(report))


async def _enqueue_webhooks(processor: Processor, plan: Plan) -> None:
    """Enqueue webhooks that fail temporarily, and one that fails permanently until it is
    replayed."""
    for number in range(1, WEBHOOKS + 1):
        call = CallWebhook(port=plan.web_port, path=f"/orders/{number}")
        plan.ids.add(await processor.enqueue(call))
    plan.gone = await processor.enqueue(CallWebhook(port=plan.web_port, path=GONE_PATH))
    plan.ids.add(plan.gone)


async def _enqueue_emails(processor: Processor, plan: Plan) -> None:
    """Enqueue mail: some due now, one later, one enqueued twice, one with an invalid payload."""
    mailbox = str(plan.folder / "mail")
    for number in range(1, EMAILS + 1):
        mail = SendEmail(mailbox=mailbox, to=f"user{number}@example.com", subject="Welcome")
        plan.ids.add(await processor.enqueue(mail))
    reminder = SendEmail(mailbox=mailbox, to="user1@example.com", subject="Reminder")
    plan.ids.add(await processor.enqueue_after(reminder, REMINDER_DELAY))
    weekly = SendEmail(mailbox=mailbox, to="all@example.com", subject="Weekly news")
    both = [
        await processor.enqueue(weekly, unique_key="news-week-31", on_duplicate="existing")
        for _ in range(2)
    ]
    plan.duplicate_is_same = both[0] == both[1]
    plan.ids.update(both)
    broken = {"to": "unknown@example.com", "subject": 7}
    plan.ids.add(await processor.enqueue_raw("send_email", broken, queue="mail"))
