"""`SQLiteBackend`: one file, no server, shared by the processes of one host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, TypeVar

from nimburion.backends.server.errors import make_no_roles_error
from nimburion.backends.sql_files import Statements, read_statements
from nimburion.backends.sqlite import (
    bulk_operations,
    limit_changes,
    operations,
    queries,
    sessions,
    statistics,
    tenants,
)
from nimburion.backends.sqlite import enqueue as enqueueing
from nimburion.backends.sqlite import exchange as exchanging
from nimburion.backends.sqlite.connection import opening
from nimburion.backends.sqlite.connection.checkpointer import Checkpointer
from nimburion.backends.sqlite.connection.database import MICRO, Database
from nimburion.backends.sqlite.connection.identity import OpenFiles
from nimburion.backends.sqlite.connection.path import (
    MOUNTS_FILE,
    check_path,
    file_exists,
    parse_url,
    read_boot_id,
)
from nimburion.backends.sqlite.connection.space import DiskSpace, Measure, get_free_bytes
from nimburion.backends.sqlite.connection.threads import ReaderThread, WriterThread
from nimburion.backends.sqlite.keyed_limits import list_key_uses, list_keyed_limits
from nimburion.backends.sqlite.notifications import (
    SocketListener,
    SocketNotifier,
    SQLiteNotifier,
    find_socket_folder,
)
from nimburion.backends.sqlite.rate_limits import list_rates
from nimburion.backends.sqlite.transactions import CallerTransactions, make_transaction
from nimburion.core.audit import AuditPage, AuditRecord
from nimburion.core.backend import MAX_AUDIT_RECORDS, MAX_BULK_OPERATIONS, Capabilities
from nimburion.core.bulk_operations import (
    BulkOperation,
    BulkOperationPage,
    BulkStep,
    Claim,
    NewBulkOperation,
)
from nimburion.core.diagnosis.checks import CheckResult
from nimburion.core.diagnosis.explanations import Facts
from nimburion.core.diagnosis.failure_groups import FailureGroups
from nimburion.core.errors import NotOpen
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.fairness import TenantUses
from nimburion.core.ids import Entropy
from nimburion.core.job import Enqueued, JobRecord, NewJob, State
from nimburion.core.keyed_limits import KeyedLimitInfo, KeyUse
from nimburion.core.lease import Lease
from nimburion.core.limit_changes import LimitChange
from nimburion.core.metrics.statistics import Statistics, check_interval
from nimburion.core.operations import Cancellation, Promoted, Replayed, Rescued, Retention
from nimburion.core.queries import EVERY_JOB, SCAN_BUDGET, JobFilter, Page, Pause, QueueInfo
from nimburion.core.rate_limits import RateInfo
from nimburion.core.schedules import Fired, Overlap, ScheduleRecord
from nimburion.core.session import (
    HeartbeatReply,
    LimitInfo,
    Session,
    SessionInfo,
    Vitals,
    WorkerCommand,
)
from nimburion.core.settlement import Settlement
from nimburion.core.timing.clock import Clock, SystemClock
from nimburion.core.transactions import CallerConnection, EnqueueCount, Transaction

if TYPE_CHECKING:
    from nimburion.backends.sqlite.checks import IntegrityChecks

T = TypeVar("T")

_FEW_INTERVALS = 10
"""More intervals of statistics than these take long to read."""

CAPABILITIES = Capabilities(
    durable=True,
    notifies=True,
    supports_transactions=True,
    atomic_batch=None,
    shared=True,
    keeps_arguments=True,
    blocking_enqueue=True,
)


class SQLiteBackend:
    """A backend in one SQLite file.

    Operations of callers (enqueue, cancel, replay, …) are on the disk when the call returns.
    Operations of workers (exchanges, heartbeats) survive a crash of every process. A power cut can
    undo the last of them: then a job may run again, but no job is lost.

    Args:
        path: the file; created if it does not exist. Its folder must exist, on a local disk.
        clock: wall time for due times, boot time for sessions.
        random: jitter for retries of the write lock.
        entropy: random bytes for the socket name of this handle.
        mounts: the table of mounted file systems; a network file system is rejected.
        measure: returns the free bytes on the disk of a folder.

    >>> SQLiteBackend("jobs.db").capabilities.durable
    True
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = "nimburion.db",
        *,
        clock: Clock | None = None,
        random: Random | None = None,
        entropy: Entropy = os.urandom,
        mounts: Path = MOUNTS_FILE,
        measure: Measure = get_free_bytes,
    ) -> None:
        self.path: Path = Path(path).absolute()
        self._clock = clock or SystemClock()
        self._random = random or Random()  # noqa: S311 (jitter is no secret)
        self._entropy = entropy
        self._mounts = mounts
        self._measure = measure
        self._socket_name = ""
        self._pid = 0
        self._writer: WriterThread | None = None
        self._reader: ReaderThread | None = None
        self._slow_reader: ReaderThread | None = None
        self._make_slow_reader: Callable[[], ReaderThread] | None = None
        self._slow_reader_lock = asyncio.Lock()
        self._listener: SocketListener | None = None
        self._notifier: SocketNotifier | None = None
        self._caller_transactions: CallerTransactions | None = None
        self._open_lock = asyncio.Lock()
        self._integrity: IntegrityChecks | None = None
        self._migrations_done: list[str] = []
        self.files: OpenFiles | None = None
        """The open files of this handle; None while it is closed."""
        self._origin: SQLiteBackend | None = None

    @classmethod
    def from_url(cls, url: str, **options: object) -> SQLiteBackend:
        """Return the backend for a URL, like `sqlite:///jobs.db` or `sqlite:////srv/jobs.db`.

        Raises `ConfigurationError` if the URL names no file.
        """
        return cls(parse_url(url), **options)  # type: ignore[arg-type]

    # --- lifecycle ---

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities: durable, shared, notifications, callers' transactions, atomic calls."""
        return CAPABILITIES

    def describe(self) -> str:
        """Return a name of the backend for people."""
        return f"SQLite {self.path.absolute()}"

    def new_handle(self) -> SQLiteBackend:
        """Return another handle on the same file, not open yet.

        While this handle is open, opening the other raises `BackendReplaced` if the file was
        deleted or replaced.
        """
        handle = SQLiteBackend(
            self.path,
            clock=self._clock,
            random=self._random,
            entropy=self._entropy,
            mounts=self._mounts,
            measure=self._measure,
        )
        handle._origin = self
        return handle

    async def open(self) -> None:
        """Create or open the file and migrate it to the format of this version. Idempotent."""
        async with self._open_lock:
            self._abandon_closed_loop()
            if self._writer is not None and self._pid == os.getpid():
                return
            check_path(self.path, mounts=self._mounts)
            await self._start()

    async def _start(self) -> None:
        folder = find_socket_folder(self.path)
        self._socket_name = self._entropy(8).hex()
        sender, listener = (
            SocketNotifier(folder, self._socket_name),
            SocketListener(folder, self._socket_name),
        )
        loop = asyncio.get_running_loop()

        def notify(names: frozenset[str]) -> None:
            sender.notify(names)
            if listener.is_listening:
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(listener.wake, names)

        sql, boot = read_statements(opening.PACKAGE, opening.STATEMENTS), read_boot_id()
        files = OpenFiles(self.path)
        writer = WriterThread(
            "nimburion-sqlite-writer",
            self.path,
            lambda: self._open_writer(sql, boot, files),
            files,
            notify=notify,
            checkpointer=Checkpointer(lambda: opening.connect(self.path), files),
            space=DiskSpace(self.path, self._measure),
            random=self._random,
        )
        await writer.start()

        def make_reader(name: str) -> ReaderThread:
            return ReaderThread(
                name,
                self.path,
                lambda: Database(opening.open_reader(self.path), sql, self._clock, boot),
                files,
            )

        reader = make_reader("nimburion-sqlite-reader")
        try:
            await reader.start()
            files.check(at_once=True)
        except BaseException:
            await writer.stop()
            raise
        self._notifier, self._listener = sender, listener
        notifier = SQLiteNotifier(SocketNotifier(folder, self._socket_name), listener)
        self._caller_transactions = CallerTransactions(
            self.path,
            sql,
            self._clock,
            boot,
            reader=reader,
            notifier=notifier,
            files=files,
            space=DiskSpace(self.path, self._measure),
        )
        self.files = files
        self._writer, self._reader = writer, reader
        self._make_slow_reader = partial(make_reader, "nimburion-sqlite-slow-reader")
        self._pid = os.getpid()

    def _open_writer(self, sql: Statements, boot: str, files: OpenFiles) -> Database:
        origin = None if self._origin is None else self._origin.files
        connection, self._migrations_done = opening.open_writer(self.path, files, origin)
        return Database(connection, sql, self._clock, boot)

    def _abandon_closed_loop(self) -> None:
        """Stop the threads if their event loop was closed without `close` having been called."""
        writer, reader = self._writer, self._reader
        if writer is None or reader is None or self._pid != os.getpid() or not writer.is_orphaned:
            return
        slow_reader, self._slow_reader = self._slow_reader, None
        self._writer = self._reader = None
        writer.request_stop()
        reader.request_stop()
        if slow_reader is not None:
            slow_reader.request_stop()
        if self._listener is not None:
            self._listener.discard()

    async def close(self) -> None:
        """Finish the calls already made, then close the file. Idempotent."""
        async with self._open_lock:
            self._abandon_closed_loop()
            writer, reader, self._writer, self._reader = self._writer, self._reader, None, None
            async with self._slow_reader_lock:
                slow_reader, self._slow_reader = self._slow_reader, None
            if writer is None or reader is None or self._pid != os.getpid():
                return
            if self._caller_transactions is not None:
                await self._caller_transactions.close()
            if self._listener is not None:
                self._listener.close()
            await reader.stop()
            if slow_reader is not None:
                await slow_reader.stop()
            await writer.stop()
            if self._notifier is not None:
                self._notifier.close()
            self.files = None

    async def exists(self) -> bool:
        """See `Backend.exists`. True also if this user may not read the path."""
        return await asyncio.to_thread(file_exists, self.path)

    async def now(self) -> float:
        """See `Backend.now`. Reads the clock of this host."""
        return await self._read(lambda db: db.now / MICRO)

    async def ping(self) -> None:
        """Read from the file once; raises an error if it cannot be read."""
        await self._read(lambda db: db.fetch_value("get_next_due"))

    async def check(self) -> list[CheckResult]:
        """See `Backend.check`. Looks for damage in the file for 5 seconds at most, beside other
        calls. A large file without damage is not read again for some minutes.

        Takes the write lock once, to measure how long that takes, but writes nothing.
        """
        from nimburion.backends.sqlite import checks  # no worker needs them

        if self._integrity is None:
            self._integrity = checks.IntegrityChecks(self.path)
        return [
            *await self._read(lambda db: checks.run_checks(db, self.path, self._mounts)),
            await self._integrity.run(),
            await checks.check_read_latency(self.ping, self._clock),
            await checks.check_write_lock(self._take_write_lock, self._clock),
        ]

    async def _take_write_lock(self) -> None:
        await self._write(lambda _: None, durable=False)

    async def plan_migration(self) -> list[str]:
        """Return the migrations that opening the file would run."""
        return await asyncio.to_thread(opening.plan_migrations, self.path)

    async def migrate(self) -> list[str]:
        """Open the backend and return the migrations that opening ran."""
        await self.open()
        return list(self._migrations_done)

    async def grant(self, role: str) -> list[str]:
        """See `Backend.grant`."""
        raise make_no_roles_error(self.describe(), role)

    def _write(self, work: Callable[[Database], T], *, durable: bool = True) -> asyncio.Future[T]:
        if self._writer is None or self._pid != os.getpid():
            raise self._make_not_open_error()
        return self._writer.submit(work, durable=durable)

    def _read(self, work: Callable[[Database], T]) -> asyncio.Future[T]:
        if self._reader is None or self._pid != os.getpid():
            raise self._make_not_open_error()
        return self._reader.submit(work)

    async def _read_slowly(self, work: Callable[[Database], T]) -> T:
        """Run a read that takes long where much is stored. It has a thread and a connection of its
        own, which the first one opens, so that other reads do not wait for it.
        """
        async with self._slow_reader_lock:
            if self._reader is None or self._make_slow_reader is None or self._pid != os.getpid():
                raise self._make_not_open_error()
            if self._slow_reader is None:
                if self.files is not None:
                    self.files.check(at_once=True)
                reader = self._make_slow_reader()
                await reader.start()
                self._slow_reader = reader
            slow_reader = self._slow_reader
        return await slow_reader.submit(work)

    def _get_caller_transactions(self) -> CallerTransactions:
        if self._caller_transactions is None or self._writer is None or self._pid != os.getpid():
            raise self._make_not_open_error()
        return self._caller_transactions

    def _make_not_open_error(self) -> NotOpen:
        if self._writer is not None:
            return NotOpen(
                f"{self.describe()} was opened before a fork; call open() again in this process"
            )
        return NotOpen(f"{self.describe()} is not open; call open() first")

    # --- enqueue and cancel ---

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """See `Backend.enqueue`. The whole call is atomic."""
        if not jobs:
            return []
        return await self._write(partial(enqueueing.enqueue_jobs, jobs=jobs))

    def enqueue_blocking(self, jobs: Sequence[NewJob], timeout: float) -> list[Enqueued]:
        """See `nimburion.core.backend.BlockingProducing`."""
        if not jobs:
            return []
        if self._writer is None or self._pid != os.getpid():
            raise self._make_not_open_error()
        return self._writer.run(partial(enqueueing.enqueue_jobs, jobs=jobs), timeout)

    async def cancel(self, job_id: str) -> Cancellation:
        """See `Backend.cancel`."""
        return await self._write(lambda db: operations.cancel(db, job_id))

    async def enqueue_in(
        self, connection: CallerConnection, jobs: Sequence[NewJob]
    ) -> list[Enqueued]:
        """See `nimburion.core.backend.Transactional`."""
        return await self._get_caller_transactions().enqueue_in(connection, jobs)

    async def take_enqueue_counts(self, min_age: float) -> list[EnqueueCount]:
        """See `nimburion.core.backend.Transactional`."""
        return await self._write(
            lambda db: statistics.take_enqueue_counts(db, min_age), durable=False
        )

    def transaction(self, connection: CallerConnection | None) -> Transaction:
        """See `nimburion.core.backend.Transactional`.

        Without a caller's connection, the transaction provides a `sqlite3.Connection`.
        """
        return make_transaction(self._get_caller_transactions(), connection, self._clock)

    # --- workers ---

    async def open_session(self, session: Session) -> None:
        """See `Backend.open_session`."""
        await self._write(lambda db: sessions.open_session(db, session), durable=False)
        if self._listener is not None:
            self._listener.listen()

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        """See `Backend.exchange`."""
        result = await self._write(
            lambda db: exchanging.run_exchange(db, session_id, number, settlements, request),
            durable=False,
        )
        return exchanging.make_reply(result)

    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
        """See `Backend.heartbeat`."""
        return await self._write(
            lambda db: sessions.heartbeat(db, session_id, vitals), durable=False
        )

    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        """See `Backend.put_statistics`."""
        values = statistics.encode_rows(source, rows)
        if values:
            await self._write(lambda db: statistics.put_statistics(db, values), durable=False)

    async def release(
        self, session_id: str, leases: Sequence[Lease] = (), nonce: bytes | None = None
    ) -> None:
        """See `Backend.release`."""
        await self._write(lambda db: sessions.release(db, session_id, leases, nonce), durable=False)

    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        """See `Backend.close_session`."""
        await self._write(lambda db: sessions.close_session(db, session_id, running), durable=False)

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        """See `Backend.rescue`."""
        return await self._write(lambda db: sessions.rescue(db, limit, max_lost), durable=False)

    async def promote(self, limit: int) -> Promoted:
        """See `Backend.promote`."""
        count, due = await self._write(
            lambda db: exchanging.promote_and_notify(db, limit), durable=False
        )
        return Promoted(count, None if due is None else due / MICRO)

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        """See `Backend.wait`. Notifications of other processes end the wait too."""
        if self._listener is None or self._writer is None or self._pid != os.getpid():
            raise self._make_not_open_error()
        await self._listener.wait(queues, timeout, self._clock.sleep)

    async def wait_for_session(self, session_id: str) -> None:
        """See `Backend.wait_for_session`."""
        if self._listener is None or self._writer is None or self._pid != os.getpid():
            raise self._make_not_open_error()
        await self._listener.wait_for_session(session_id)

    # --- operators and maintenance ---

    async def replay(self, which: JobFilter, limit: int, after: str | None = None) -> Replayed:
        """See `Backend.replay`."""
        return await self._write(lambda db: operations.replay(db, which, limit, after))

    async def make_due(self, job_ids: Sequence[str]) -> list[str]:
        """See `Backend.make_due`."""
        return await self._write(lambda db: operations.make_due(db, job_ids))

    async def delete(self, which: JobFilter, limit: int) -> list[str]:
        """See `Backend.delete`."""
        return await self._write(lambda db: operations.delete(db, which, limit))

    async def pause_queue(
        self,
        queue: str,
        *,
        paused: bool,
        by: str = "",
        reason: str = "",
        until: float | None = None,
    ) -> None:
        """See `Backend.pause_queue`."""
        new = Pause(by=by, reason=reason, until=until) if paused else None
        await self._write(lambda db: operations.pause_queue(db, queue, new))

    async def send_command(self, session_id: str, command: WorkerCommand | None) -> bool:
        """See `Backend.send_command`."""
        return await self._write(lambda db: sessions.send_command(db, session_id, command))

    async def set_tenant_weight(self, tenant: str, weight: float | None) -> None:
        """See `Backend.set_tenant_weight`."""
        await self._write(lambda db: tenants.set_tenant_weight(db, tenant, weight))

    async def change_limit(self, change: LimitChange) -> None:
        """See `Backend.change_limit`."""
        change.check()
        await self._write(lambda db: limit_changes.change_limit(db, change))

    async def reset_limit(self, name: str, key: str | None = None) -> bool:
        """See `Backend.reset_limit`."""
        return await self._write(lambda db: limit_changes.reset_limit(db, name, key))

    async def put_audit(self, record: AuditRecord, *, keep: int = MAX_AUDIT_RECORDS) -> None:
        """See `Backend.put_audit`."""
        await self._write(lambda db: operations.put_audit(db, record, keep))

    async def start_bulk_operation(
        self, operation: NewBulkOperation, *, keep: int = MAX_BULK_OPERATIONS
    ) -> BulkOperation:
        """See `Backend.start_bulk_operation`."""
        operation.check()
        return await self._write(lambda db: bulk_operations.start(db, operation, keep))

    async def claim_bulk_operation(self, ttl: float) -> Claim:
        """See `Backend.claim_bulk_operation`. It writes only if a step is due."""
        waiting = await self._read(bulk_operations.find_wait)
        if waiting is not None:
            return waiting
        return await self._write(lambda db: bulk_operations.claim(db, ttl), durable=False)

    async def advance_bulk_operation(
        self, operation_id: str, fence: int, step: BulkStep
    ) -> BulkOperation:
        """See `Backend.advance_bulk_operation`."""
        step.check()
        return await self._write(lambda db: bulk_operations.advance(db, operation_id, fence, step))

    async def cancel_bulk_operation(self, operation_id: str) -> BulkOperation:
        """See `Backend.cancel_bulk_operation`."""
        return await self._write(lambda db: bulk_operations.cancel(db, operation_id))

    async def prune(self, keep: Retention, limit: int) -> int:
        """See `Backend.prune`."""
        return await self._write(lambda db: operations.prune(db, keep, limit), durable=False)

    # --- queries ---

    async def get_job(self, job_id: str) -> JobRecord:
        """See `Backend.get_job`."""
        return await self._read(lambda db: queries.get_job(db, job_id))

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
        budget: int = SCAN_BUDGET,
    ) -> Page:
        """See `Backend.list_jobs`."""
        return await self._read(
            lambda db: queries.list_jobs(db, which, limit, after, payloads=payloads, budget=budget)
        )

    async def group_failures(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        budget: int = SCAN_BUDGET,
        since: Sequence[float] = (),
    ) -> FailureGroups:
        """See `Backend.group_failures`."""
        return await self._read_slowly(
            lambda db: queries.group_failures(db, which, limit, budget, since)
        )

    async def explain_job(self, job_id: str) -> Facts:
        """See `Backend.explain_job`. The call reads one snapshot."""
        return await self._read(lambda db: queries.explain_job(db, job_id))

    async def count_jobs(self, queue: str | None = None) -> dict[State, int]:
        """See `Backend.count_jobs`."""
        return await self._read_slowly(lambda db: queries.count_by_state(db, queue))

    async def list_queues(self, *, budget: int | None = None) -> list[QueueInfo]:
        """See `Backend.list_queues`."""
        read = self._read_slowly if budget is None else self._read
        return await read(lambda db: queries.list_queues(db, budget))

    async def list_sessions(self) -> list[SessionInfo]:
        """See `Backend.list_sessions`."""
        return await self._read(queries.list_sessions)

    async def list_limits(self) -> list[LimitInfo]:
        """See `Backend.list_limits`."""
        return await self._read(queries.list_limits)

    async def list_rates(self) -> list[RateInfo]:
        """See `Backend.list_rates`."""
        return await self._read(list_rates)

    async def list_keyed_limits(
        self, *, name: str | None = None, fullest: int = 5
    ) -> list[KeyedLimitInfo]:
        """See `Backend.list_keyed_limits`."""
        return await self._read(lambda db: list_keyed_limits(db, name, fullest))

    async def list_limit_changes(self) -> list[LimitChange]:
        """See `Backend.list_limit_changes`."""
        return await self._read(limit_changes.list_limit_changes)

    async def list_key_uses(self, limit: int = 100) -> list[KeyUse]:
        """See `Backend.list_key_uses`."""
        return await self._read(lambda db: list_key_uses(db, limit))

    async def list_tenants(self, limit: int = 100) -> TenantUses:
        """See `Backend.list_tenants`."""
        return await self._read_slowly(lambda db: tenants.list_tenants(db, limit))

    async def list_statistics(
        self,
        since: float,
        until: float,
        step: int,
        *,
        queue: str | None = None,
        name: str | None = None,
    ) -> list[Statistics]:
        """See `Backend.list_statistics`."""
        check_interval(since, until, step)
        read = self._read_slowly if until - since > _FEW_INTERVALS * step else self._read
        return await read(
            lambda db: statistics.read_statistics(db, (since, until, step), queue, name)
        )

    async def list_audit(self, *, limit: int = 100, after: str | None = None) -> AuditPage:
        """See `Backend.list_audit`."""
        return await self._read(lambda db: queries.list_audit(db, limit, after))

    async def get_bulk_operation(self, operation_id: str) -> BulkOperation:
        """See `Backend.get_bulk_operation`."""
        return await self._read(lambda db: bulk_operations.get(db, operation_id))

    async def list_bulk_operations(
        self, *, limit: int = 100, after: str | None = None
    ) -> BulkOperationPage:
        """See `Backend.list_bulk_operations`."""
        return await self._read(lambda db: bulk_operations.list_page(db, limit, after))

    # --- schedules ---

    async def put_schedule(self, schedule: ScheduleRecord) -> None:
        """See `Backend.put_schedule`."""
        await self._write(lambda db: operations.put_schedule(db, schedule))

    async def list_schedules(self) -> list[ScheduleRecord]:
        """See `Backend.list_schedules`."""
        return await self._read(operations.list_schedules)

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """See `Backend.pause_schedule`."""
        return await self._write(lambda db: operations.pause_schedule(db, name, paused=paused))

    async def delete_schedule(self, name: str) -> bool:
        """See `Backend.delete_schedule`."""
        return await self._write(lambda db: operations.delete_schedule(db, name))

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        """See `Backend.fire`."""
        return await self._write(
            lambda db: operations.fire(db, name, (expected_last, tick), job, overlap)
        )
