"""The PostgreSQL backend."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from nimburion.backends.postgres import (
    bulk_operations,
    migrations,
    operations,
    queries,
    sessions,
)
from nimburion.backends.postgres import enqueue as enqueueing
from nimburion.backends.postgres import exchange as exchanging
from nimburion.backends.postgres import transactions as caller_transactions
from nimburion.backends.postgres.bulk_operations import COLUMNS
from nimburion.backends.postgres.connection.pool import ConnectionPool, PostgresConnection
from nimburion.backends.postgres.encoding import (
    NeedsGeneralPath,
    encode_lookup_text,
    encode_text,
    to_optional_seconds,
)
from nimburion.backends.postgres.errors import (
    UNIQUE_VIOLATION,
    get_error_code,
    is_blocked_enqueue,
)
from nimburion.backends.postgres.low_water_marks import LowWaterMarks
from nimburion.backends.postgres.notifications import PostgresNotifier
from nimburion.backends.postgres.schema import NOTIFICATION_LOCK, insert_schema
from nimburion.backends.postgres.url import PostgresSettings, parse_url
from nimburion.backends.server.encoding import MICRO, decode_id, encode_id_or_empty, to_micros
from nimburion.backends.server.handle import OpenHandle
from nimburion.backends.waiters import EVERY_QUEUE, make_session_name
from nimburion.core.audit import AuditPage, AuditRecord
from nimburion.core.backend import MAX_AUDIT_RECORDS, MAX_BULK_OPERATIONS, Capabilities
from nimburion.core.bulk_operations import (
    BulkOperation,
    BulkOperationPage,
    BulkStep,
    Claim,
    NewBulkOperation,
)
from nimburion.core.diagnosis.checks import CheckResult, make_failed_check
from nimburion.core.diagnosis.explanations import Facts
from nimburion.core.diagnosis.failure_groups import GROUP_NAMES, FailureGroups
from nimburion.core.errors import (
    BackendError,
    BackendUnavailable,
    BulkOperationNotFound,
    ConfigurationError,
    EnqueueBlocked,
    TooManyBulkOperations,
    Unstorable,
)
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.fairness import MAX_WAITING_COUNTED, WEIGHT_UNITS, TenantUses, to_weight_units
from nimburion.core.ids import Entropy
from nimburion.core.job import Enqueued, JobRecord, NewJob, State
from nimburion.core.keyed_limits import KeyedLimitInfo, KeyUse
from nimburion.core.lease import Lease
from nimburion.core.limit_changes import LimitChange
from nimburion.core.metrics.statistics import MERGE_AFTER, STEPS, Statistics
from nimburion.core.operations import Cancellation, Promoted, Replayed, Rescued, Retention
from nimburion.core.queries import EVERY_JOB, SCAN_BUDGET, JobFilter, Page, QueueInfo
from nimburion.core.rate_limits import RateInfo
from nimburion.core.schedules import Fired, Overlap, ScheduleRecord
from nimburion.core.session import (
    MAX_HOLDERS,
    HeartbeatReply,
    LimitInfo,
    Session,
    SessionInfo,
    Vitals,
    WorkerCommand,
)
from nimburion.core.settlement import Settlement
from nimburion.core.timing.clock import Clock, SystemClock
from nimburion.core.transactions import (
    MAX_ENQUEUE_COUNTS,
    CallerConnection,
    EnqueueCount,
    Transaction,
    sum_enqueue_counts,
)

CAPABILITIES = Capabilities(
    durable=True,
    notifies=True,
    supports_transactions=True,
    atomic_batch=None,
    shared=True,
    out_of_process=True,
    roles=True,
    keeps_arguments=True,
    lazy_batches=True,
    concurrent_transactions=True,
)
POOLED_CAPABILITIES = msgspec.structs.replace(CAPABILITIES, notifies=False)
"""The capabilities behind PgBouncer. It assigns a connection per transaction, so LISTEN is not
possible.
"""


def _make_call(function: str, count: int) -> str:
    """Return the statement that calls a database function with `count` arguments."""
    places = ", ".join(f"${n}" for n in range(1, count + 1))
    return f"SELECT * FROM {{schema}}.{function}({places})"  # noqa: S608 - names of ours


_JOBS_PER_SECOND = 1000
"""The number of jobs for which a busy server may take one second beyond the timeout."""
_LOCK_TIMEOUT = "200ms"
"""How long an enqueue waits for a transaction that enqueued the same id or unique key."""
_ENQUEUE = f"""SELECT e.codes, e.holders FROM set_config('lock_timeout', '{_LOCK_TIMEOUT}', true) s,
    LATERAL {{schema}}.enqueue_1(CASE WHEN s IS NOT NULL THEN $1::int8 END,
        {", ".join(f"${n}" for n in range(2, 18))}) e"""  # noqa: S608 - names of ours
"""Calls `enqueue_1` with a `lock_timeout`. A caller's transaction has none. The arguments refer to
`s`, so the server sets the timeout first.
"""
_ENQUEUE_ONE = "SELECT {schema}.enqueue_one_1($1, $2, $3, $4, $5, $6, $7, $8, $9), false"
_ENQUEUE_ONE_NOTIFYING = f"""SELECT {{schema}}.enqueue_one_1($1, $2, $3, $4, $5, $6, $7, $8, $9),
    CASE WHEN pg_try_advisory_xact_lock(hashtextextended($10, {NOTIFICATION_LOCK}))
        THEN pg_notify($10, $11) IS NOT NULL ELSE false END"""
"""Notifies at the commit. A notifying transaction blocks all others that notify until its commit is
flushed. Therefore only one at a time notifies inside its transaction; the others notify afterwards.
"""
_ENQUEUE_PLAIN = _make_call("enqueue_plain_1", 12)
_EXCHANGE = _make_call("exchange_1", 23)
_EXCHANGE_POOLED = _make_call("exchange_pooled_1", 23)
_PLANNER_SETTINGS = (
    "enable_seqscan = off",
    "enable_bitmapscan = off",
    "enable_hashjoin = off",
    "enable_mergejoin = off",
    "enable_material = off",
    "enable_memoize = off",
    "jit = off",
    "plan_cache_mode = force_generic_plan",
)
"""Session settings of the exchange connection; `exchange_pooled_1` sets the same for each call."""
_OPEN_SESSION = _make_call("open_session_1", 15)
_CLOSE_SESSION = _make_call("close_session_1", 5)
_RELEASE = _make_call("release_leases_1", 6)
_RESCUE = _make_call("rescue_jobs_1", 6)
_HEARTBEAT = _make_call("heartbeat_1", 4)
_CHANGE_LIMIT = _make_call("change_limit_1", 10)
_RESET_LIMIT = _make_call("reset_limit_1", 4)
_LIST_LIMIT_CHANGES = """SELECT name, for_key, key, concurrency, rate, interval, burst, changed_at,
    changed_by, reason FROM {schema}.limit_change ORDER BY name, for_key, key"""
_PAUSE = _make_call("pause_queue_1", 6)
_PRUNE = _make_call("prune_jobs_1", 8)
_UNMERGED_STATISTICS = """SELECT * FROM {schema}.list_unmerged_statistics_1(
    {schema}.get_read_time_1($1), $2, $3, $4)"""
_MERGE_STATISTICS = _make_call("merge_statistics_1", 11)
_TENANTS_PER_PRUNE = 1_000
"""The most shares and the most lanes of tenants that one prune reads. Exchanges and enqueues of
these tenants wait for it. It is larger than the batches of jobs that workers prune, so lanes are
read faster than jobs leave them.
"""
_MERGED_AT_ONCE = 1_000
"""The largest number of rows of statistics that one call merges into."""
_TAKE_ENQUEUE_COUNTS = _make_call("take_enqueue_counts_1", 3)
_PUT_STATISTICS = _make_call("put_statistics_1", 6)
_GROUP_FAILURES = _make_call("group_failures_1", 18)
_FIND_JOBS = """SELECT seq, id, examined FROM {schema}.find_jobs_1({schema}.get_read_time_1($1),
    $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)"""
_LIST_RATES = """SELECT t.now, r.* FROM {schema}.get_read_time_1($1) AS t (now),
    {schema}.list_rates_1(NULL) r"""
_LIST_KEYED_LIMITS = """SELECT job_name, limit_name, concurrency, interval, burst, cost
    FROM {schema}.keyed_limit"""
_EXPLAIN = """SELECT g.*, e.*, t.now, (
        SELECT CAST(ROW(r.*) AS {schema}.rate_limit) FROM {schema}.list_rates_1(g.name) r
    ) AS rate, (
        SELECT json_agg(json_build_array(k.limit_name, k.key, k.in_use, k.parked, k.opens_at))
        FROM {schema}.list_key_uses_1(g.name, g.seq, 100) k
    ) AS key_uses, (
        SELECT p.limit_name FROM {schema}.parked p WHERE p.seq = g.seq
    ) AS parked_for, (
        SELECT json_build_array(u.tenant, u.ahead, u.tenants_before, u.jobs_before)
        FROM {schema}.find_turn_1(g.id, 10000) u
    ) AS turn FROM {schema}.get_read_time_1($1) AS t (now),
    {schema}.get_jobs_1(t.now, ARRAY[$3]::bytea[], false) g,
    {schema}.explain_job_1(t.now, coalesce($2, t.now), g.id, g.queue, g.name, g.options, $4) e"""
"""One statement, so that everything is read in one snapshot."""
_STATISTICS = """SELECT step, start, queue, name, counters FROM {schema}.statistics
    WHERE step = $1 AND start >= $2 AND start < $3
        AND ($4::text IS NULL OR queue = $4) AND ($5::text IS NULL OR name = $5)"""
_BULK_COLUMNS = ", ".join(f"(f.operation).{name.strip()}" for name in COLUMNS.split(","))
_START_BULK_OPERATION = _make_call("start_bulk_operation_1", 4)
_CLAIM_BULK_OPERATION = f"""SELECT f.wait, {_BULK_COLUMNS}
    FROM {{schema}}.claim_bulk_operation_1($1, $2) f"""  # noqa: S608 - names of ours
_ADVANCE_BULK_OPERATION = f"""SELECT f.outcome, f.to_notify, {_BULK_COLUMNS}
    FROM {{schema}}.advance_bulk_operation_1($1, $2, $3, $4, $5, $6, $7, $8) f"""  # noqa: S608
_CANCEL_BULK_OPERATION = f"""SELECT {COLUMNS}
    FROM {{schema}}.cancel_bulk_operation_1($1, $2) f"""  # noqa: S608 - names of ours
_GET_BULK_OPERATION = f"SELECT {COLUMNS} FROM {{schema}}.bulk_operation WHERE id = $1"  # noqa: S608
_LIST_BULK_OPERATIONS = f"""SELECT {COLUMNS} FROM {{schema}}.bulk_operation
    WHERE position < $1 ORDER BY position DESC LIMIT $2"""  # noqa: S608 - names of ours
_LARGE_READ_TIMEOUT = 60.0
"""Seconds beyond the timeout that reading a long history may take."""


class PostgresBackend:
    """A backend in one PostgreSQL database. Its tables have a schema of their own.

    Args:
        url: the URL of the database; `docs/how-to/postgresql-in-production.md` lists all forms.
        schema: the schema of the tables. The URL can set it, and all options below, too.
        timeout: seconds allowed for connecting, and then for each reply.
        connections: the largest number of connections for callers.
        pooler: whether a pooler such as PgBouncer is in use: `auto` detects it, `yes`, `no`.
        clock: the clock of a test; by default the server's own time counts.
        entropy: not used here; accepted so that all backends have the same signature.

    >>> PostgresBackend("postgresql://localhost/app").capabilities.durable
    True
    """

    def __init__(
        self,
        url: str | PostgresSettings = "postgresql://localhost",
        *,
        schema: str | None = None,
        timeout: float | None = None,
        connections: int | None = None,
        pooler: str | None = None,
        clock: Clock | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        settings = url if isinstance(url, PostgresSettings) else parse_url(url)
        self.settings: PostgresSettings = settings.replace(
            schema=schema, timeout=timeout, connections=connections, pooler=pooler
        )
        self._test_clock = clock
        self._clock = clock or SystemClock()
        self._entropy = entropy
        self._handle = OpenHandle(self.describe(), lambda: PostgresConnections(self.settings))

    @classmethod
    def from_url(cls, url: str, **options: object) -> PostgresBackend:
        """Create the backend for a URL such as `postgresql://localhost/app`."""
        return cls(url, **options)  # type: ignore[arg-type]

    # --- lifecycle ---

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of this backend. Behind a pooler there are no notifications from other
        processes. The backend detects a pooler when it opens.
        """
        opened = self._handle.latest
        pooled = self.settings.pooler == "yes" if opened is None else opened.pooled
        return POOLED_CAPABILITIES if pooled else CAPABILITIES

    def describe(self) -> str:
        """Return a one-line description of the backend, without secrets."""
        return self.settings.describe()

    def new_handle(self) -> PostgresBackend:
        """Return another handle on the same data. It is not open and has its own connections."""
        return PostgresBackend(self.settings, clock=self._test_clock, entropy=self._entropy)

    async def open(self) -> None:
        """Connect, and check the server and the format. You can call it more than once."""
        await self._handle.open()

    async def close(self) -> None:
        """Disconnect. You can call it more than once."""
        await self._handle.close()

    async def exists(self) -> bool:
        """See `Backend.exists`."""
        return True

    async def ping(self) -> None:
        """Return when the server answers."""
        await self._fetch("SELECT 1")

    async def now(self) -> float:
        """See `Backend.now`: returns the time of the server's clock."""
        statement = """SELECT coalesce(
            $1, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8))"""
        ((now,),) = await self._fetch(statement, self._now())
        return float(now) / MICRO

    async def check(self) -> list[CheckResult]:
        """See `Backend.check`."""
        from nimburion.backends.postgres.checks import run_checks  # no worker needs them

        try:
            async with self._get_connections().pool.acquire() as connection:
                return await run_checks(
                    connection, self.settings, migrations.load_current_format(), self._clock
                )
        except (BackendError, ConfigurationError) as error:
            return [make_failed_check("server", error)]

    async def plan_migration(self) -> list[str]:
        """See `Backend.plan_migration`."""
        async with self._connect() as connection:
            found = await migrations.read_installed_format(connection, self.settings)
            current = migrations.load_current_format()
            wrong = await migrations.find_wrong_functions(connection, self.settings, current)
            return migrations.plan_migrations(found, self.settings, current, wrong)

    async def migrate(self) -> list[str]:
        """See `Backend.migrate`."""
        async with self._connect() as connection:
            return await migrations.run_migrations(
                connection, self.settings, migrations.load_current_format()
            )

    async def grant(self, role: str) -> list[str]:
        """See `Backend.grant`."""
        async with self._connect() as connection:
            return await migrations.grant_role(
                connection, self.settings, migrations.load_current_format(), role
            )

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[PostgresConnection]:
        connection = PostgresConnection(self.settings, asyncio.sleep)
        try:
            await connection.connect()
            yield connection
        finally:
            await connection.close()

    def _get_connections(self) -> PostgresConnections:
        return self._handle.get()

    def _now(self) -> int | None:
        """Return the time of the test clock; without one, the function reads the server's time."""
        return None if self._test_clock is None else to_micros(self._test_clock.now())

    def _monotonic(self) -> int | None:
        return None if self._test_clock is None else to_micros(self._test_clock.monotonic())

    async def _fetch(self, statement: str, *arguments: Any, extra_time: float = 0.0) -> list[Any]:
        opened = self._get_connections()
        return await opened.pool.fetch(
            opened.insert_schema(statement), *arguments, extra_time=extra_time
        )

    def _notify(self, names: Collection[str]) -> None:
        """Notify queues, and sessions under the names of `make_session_name`."""
        self._get_connections().notifier.notify(names)

    # --- enqueue ---

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """See `Backend.enqueue`."""
        if not jobs:
            return []
        try:
            if len(jobs) == 1 and await self._enqueue_one(jobs[0]):
                return [Enqueued(jobs[0].id, "created")]
            if enqueueing.is_plain(jobs[0]) and await self._enqueue_plain(jobs):
                self._notify({job.queue for job in jobs})
                return enqueueing.make_results(jobs, None, None)
            return await self._enqueue_any(jobs)
        except BackendUnavailable as error:
            cause = error.__cause__
            if cause is None or not is_blocked_enqueue(cause):
                raise
            raise EnqueueBlocked(
                f"{self.describe()}: a transaction that is still open holds a lock that this "
                "enqueue needs; probably, it enqueued the same id or unique key"
            ) from cause

    async def _enqueue_any(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """Store jobs on the general path."""
        opened = self._get_connections()
        arguments, extra = enqueueing.encode_arguments(jobs), len(jobs) / _JOBS_PER_SECOND
        ((codes, holders),) = await opened.pool.fetch(
            opened.insert_schema(_ENQUEUE), self._now(), *arguments, extra_time=extra
        )
        results = enqueueing.make_results(jobs, codes, holders)
        if codes is None or "c" in codes or "p" in codes:
            self._notify({job.queue for job in jobs})
        return results

    async def _enqueue_one(self, job: NewJob) -> bool:
        """Store a job on the fast path. Return False if the job needs the general path."""
        arguments = enqueueing.encode_single(job)
        if arguments is None:
            return False
        opened = self._get_connections()
        notifier, statement = opened.notifier, _ENQUEUE_ONE
        payload = notifier.take_inline_payload([job.queue])
        if payload is not None:
            statement = _ENQUEUE_ONE_NOTIFYING
            arguments += notifier.channel, payload
        try:
            rows = await opened.pool.fetch(opened.insert_schema(statement), self._now(), *arguments)
        except Unstorable as error:
            if error.__cause__ is None or get_error_code(error.__cause__) != UNIQUE_VIOLATION:
                raise
            return False
        ((stored, notified),) = rows
        if stored:
            notifier.notify([job.queue], already_sent=notified)
        return bool(stored)

    async def _enqueue_plain(self, jobs: Sequence[NewJob]) -> bool:
        """Store jobs on the fast path. Return False if any of them needs the general path."""
        opened, now, extra = self._get_connections(), self._now(), len(jobs) / _JOBS_PER_SECOND
        statement = opened.insert_schema(_ENQUEUE_PLAIN)
        try:
            if len(jobs) > enqueueing.MAX_SINGLE_STATEMENT:
                return await opened.pool.execute_all_or_rollback(
                    statement,
                    lambda: ([now, *part] for part in enqueueing.encode_batches(jobs)),
                    extra_time=extra,
                )
            (part,) = enqueueing.encode_batches(jobs)
            ((stored,),) = await opened.pool.fetch(statement, now, *part, extra_time=extra)
        except NeedsGeneralPath:
            return False
        return bool(stored)

    async def enqueue_in(
        self, connection: CallerConnection, jobs: Sequence[NewJob]
    ) -> list[Enqueued]:
        """See `nimburion.core.backend.Transactional`."""
        return await caller_transactions.enqueue_in(
            self._get_connections().caller_context, connection, jobs, self._now()
        )

    async def take_enqueue_counts(self, min_age: float) -> list[EnqueueCount]:
        """See `nimburion.core.backend.Transactional`."""
        rows = await self._fetch(
            _TAKE_ENQUEUE_COUNTS, self._now(), to_micros(min_age), MAX_ENQUEUE_COUNTS
        )
        return sum_enqueue_counts(rows)

    def transaction(self, connection: CallerConnection | None) -> Transaction:
        """See `nimburion.core.backend.Transactional`. A transaction on one of the backend's own
        connections provides an `asyncpg.Connection`.
        """
        return caller_transactions.make_transaction(
            self._get_connections().caller_context, connection, self._now
        )

    # --- workers ---

    async def open_session(self, session: Session) -> None:
        """See `Backend.open_session`."""
        arguments = sessions.encode_open_session(session)
        ((alive,),) = await self._fetch(_OPEN_SESSION, self._now(), self._monotonic(), *arguments)
        sessions.check_alive(alive, session.id)
        self._notify([EVERY_QUEUE])

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        """See `Backend.exchange`."""
        opened = self._get_connections()
        await opened.exchanges.connect()
        try:
            rows = await opened.exchange(self._now(), session_id, number, settlements, request)
        except BackendError as error:
            if (
                error.__cause__ is None
                or get_error_code(error.__cause__) != exchanging.NOT_ALL_LEASED
            ):
                raise
            rows = await opened.exchange(
                self._now(), session_id, number, settlements, request, one_by_one=True
            )
        status = rows[-1]
        reply = exchanging.decode_reply(rows, session_id, number, request)
        opened.low_water_marks.learn(status)
        opened.notifier.notify(exchanging.get_queues_to_notify(status))
        return reply

    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
        """See `Backend.heartbeat`."""
        encoded = sessions.encode_vitals(vitals)
        rows = await self._fetch(_HEARTBEAT, self._now(), self._monotonic(), session_id, encoded)
        return sessions.decode_heartbeat(rows, session_id)

    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        """See `Backend.put_statistics`."""
        if rows:
            await self._fetch(_PUT_STATISTICS, *operations.encode_statistics(source, rows))

    async def release(
        self, session_id: str, leases: Sequence[Lease] = (), nonce: bytes | None = None
    ) -> None:
        """See `Backend.release`."""
        arguments = sessions.encode_release(session_id, leases, nonce)
        ((notified,),) = await self._fetch(_RELEASE, self._now(), *arguments)
        self._notify(notified)

    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        """See `Backend.close_session`."""
        arguments = sessions.encode_close_session(session_id, running)
        ((notified,),) = await self._fetch(_CLOSE_SESSION, self._now(), *arguments)
        self._notify(notified)

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        """See `Backend.rescue`."""
        arguments = sessions.encode_rescue(limit, max_lost)
        rows = await self._fetch(_RESCUE, self._now(), self._monotonic(), *arguments)
        self._notify(rows[-1][2])
        return sessions.decode_rescued(rows)

    async def promote(self, limit: int) -> Promoted:
        """See `Backend.promote`."""
        statement = """SELECT p.moved, p.next_due, ARRAY(
            SELECT DISTINCT queue FROM {schema}.lane WHERE id = ANY (p.lanes)
        ) FROM {schema}.promote_due_1(
            {schema}.get_write_time_1($1), $2, {schema}.get_lowest_time_1()
        ) p"""
        ((moved, next_due, notified),) = await self._fetch(statement, self._now(), limit)
        self._notify(notified)
        return Promoted(moved, to_optional_seconds(next_due))

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        """See `Backend.wait`."""
        await self._get_connections().notifier.wait(queues, timeout, self._clock.sleep)

    async def wait_for_session(self, session_id: str) -> None:
        """See `Backend.wait_for_session`."""
        await self._get_connections().notifier.wait_for_session(session_id)

    # --- operators ---

    async def cancel(self, job_id: str) -> Cancellation:
        """See `Backend.cancel`."""
        statement = "SELECT * FROM {schema}.cancel_job_1($1, $2)"
        ((answer, notified),) = await self._fetch(
            statement, self._now(), encode_id_or_empty(job_id)
        )
        self._notify([] if notified is None else [notified])
        return operations.decode_cancellation(answer, job_id)

    async def replay(self, which: JobFilter, limit: int, after: str | None = None) -> Replayed:
        """See `Backend.replay`."""
        which.check_selects()
        rows = await self._fetch(
            "SELECT * FROM {schema}.replay_jobs_1($1, $2, $3, $4, $5, $6, $7, $8)",
            self._now(),
            *queries.encode_filter(which, which.failed_states),
            queries.encode_cursor(after),
            limit,
        )
        self._notify({queue for _, job_id, replayed, queue in rows if job_id and replayed})
        return operations.decode_replayed(rows)

    async def make_due(self, job_ids: Sequence[str]) -> list[str]:
        """See `Backend.make_due`."""
        ids = [encode_id_or_empty(job_id) for job_id in job_ids]
        statement = "SELECT * FROM {schema}.make_due_1($1, $2)"
        rows = await self._fetch(statement, self._now(), ids)
        self._notify({queue for _, queue in rows})
        changed = {decode_id(job_id) for job_id, _ in rows}
        return [job_id for job_id in dict.fromkeys(job_ids) if job_id in changed]

    async def delete(self, which: JobFilter, limit: int) -> list[str]:
        """See `Backend.delete`."""
        which.check_selects()
        rows = await self._fetch(
            "SELECT * FROM {schema}.delete_jobs_1($1, $2, $3, $4, $5, $6, $7)",
            self._now(),
            *queries.encode_filter(which, which.finished_states),
            limit,
        )
        return [decode_id(row[0]) for row in rows]

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
        arguments = operations.encode_pause(queue, paused=paused, by=by, reason=reason, until=until)
        await self._fetch(_PAUSE, self._now(), *arguments)
        if not paused:
            self._notify([queue])

    async def send_command(self, session_id: str, command: WorkerCommand | None) -> bool:
        """See `Backend.send_command`."""
        statement = """UPDATE {schema}.session SET command = $2
            WHERE id = $1 AND ended_at IS NULL RETURNING 1"""
        if not await self._fetch(statement, encode_lookup_text(session_id), command):
            return False
        self._notify([make_session_name(session_id)])
        return True

    async def set_tenant_weight(self, tenant: str, weight: float | None) -> None:
        """See `Backend.set_tenant_weight`."""
        units = WEIGHT_UNITS if weight is None else to_weight_units(weight)
        statement = "SELECT {schema}.set_tenant_weights_1($1, $2)"
        await self._fetch(statement, [encode_text(tenant)], [units])

    async def change_limit(self, change: LimitChange) -> None:
        """See `Backend.change_limit`."""
        change.check()
        arguments = operations.encode_limit_change(change)
        await self._fetch(_CHANGE_LIMIT, self._now(), *arguments)
        self._notify([EVERY_QUEUE])

    async def reset_limit(self, name: str, key: str | None = None) -> bool:
        """See `Backend.reset_limit`."""
        arguments = operations.encode_limit_reset(name, key)
        ((existed,),) = await self._fetch(_RESET_LIMIT, self._now(), *arguments)
        self._notify([EVERY_QUEUE])
        return bool(existed)

    async def put_audit(self, record: AuditRecord, *, keep: int = MAX_AUDIT_RECORDS) -> None:
        """See `Backend.put_audit`."""
        arguments = operations.encode_audit(record, keep)
        await self._fetch("SELECT {schema}.put_audit_1($1, $2, $3, $4)", self._now(), *arguments)

    async def start_bulk_operation(
        self, operation: NewBulkOperation, *, keep: int = MAX_BULK_OPERATIONS
    ) -> BulkOperation:
        """See `Backend.start_bulk_operation`."""
        operation.check()
        arguments = bulk_operations.encode_new(operation, keep)
        ((oldest,),) = await self._fetch(_START_BULK_OPERATION, self._now(), *arguments)
        if oldest is not None:
            raise TooManyBulkOperations(oldest)
        return await self.get_bulk_operation(operation.id)

    async def claim_bulk_operation(self, ttl: float) -> Claim:
        """See `Backend.claim_bulk_operation`."""
        ((wait, *columns),) = await self._fetch(_CLAIM_BULK_OPERATION, self._now(), to_micros(ttl))
        if columns[0] is None:
            return Claim(None, to_optional_seconds(wait))
        return Claim(bulk_operations.decode_operation(columns, ""))

    async def advance_bulk_operation(
        self, operation_id: str, fence: int, step: BulkStep
    ) -> BulkOperation:
        """See `Backend.advance_bulk_operation`."""
        step.check()
        arguments = bulk_operations.encode_step(operation_id, fence, step)
        ((outcome, notified, *columns),) = await self._fetch(
            _ADVANCE_BULK_OPERATION,
            self._now(),
            *arguments,
            extra_time=len(step.ids) / _JOBS_PER_SECOND,
        )
        self._notify(notified)
        return bulk_operations.decode_advanced(outcome, columns, operation_id)

    async def cancel_bulk_operation(self, operation_id: str) -> BulkOperation:
        """See `Backend.cancel_bulk_operation`."""
        (columns,) = await self._fetch(
            _CANCEL_BULK_OPERATION, self._now(), encode_lookup_text(operation_id)
        )
        return bulk_operations.decode_operation(columns, operation_id)

    async def prune(self, keep: Retention, limit: int) -> int:
        """See `Backend.prune`."""
        arguments = operations.encode_retention(keep)
        ((count,),) = await self._fetch(
            _PRUNE, self._now(), *arguments, limit, extra_time=_LARGE_READ_TIMEOUT
        )
        await self._merge_statistics()
        await self._fetch("SELECT {schema}.prune_limit_keys_1($1)", self._now())
        await self._fetch("SELECT {schema}.forget_tenants_1($1)", _TENANTS_PER_PRUNE)
        await self._fetch("SELECT {schema}.prune_tenant_lanes_1($1)", _TENANTS_PER_PRUNE)
        await self._fetch("SELECT {schema}.maintain_partitions_1()")
        return int(count)

    async def _merge_statistics(self) -> None:
        """Merge the old rows of different processes. Another process may do so at the same time."""
        while True:
            rows = await self._fetch(
                _UNMERGED_STATISTICS, self._now(), list(STEPS), round(MERGE_AFTER), _MERGED_AT_ONCE
            )
            if not rows:
                return
            arguments = operations.merge_statistics(rows)
            ((is_merged,),) = await self._fetch(_MERGE_STATISTICS, *arguments)
            if not is_merged or len(rows) < _MERGED_AT_ONCE:
                return

    # --- queries ---

    async def get_job(self, job_id: str) -> JobRecord:
        """See `Backend.get_job`."""
        rows = await self._fetch(
            """SELECT *
            FROM {schema}.get_jobs_1({schema}.get_read_time_1($1), ARRAY[$2]::bytea[], true)""",
            self._now(),
            encode_id_or_empty(job_id),
        )
        return queries.decode_record(rows, job_id)

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
        now = self._now()
        *found, status = await self._fetch(
            _FIND_JOBS,
            now,
            *queries.encode_filter(which, which.states),
            *queries.encode_search(which),
            queries.encode_cursor(after),
            limit,
            budget,
            extra_time=_LARGE_READ_TIMEOUT,
        )
        rows = await self._fetch(
            "SELECT * FROM {schema}.get_jobs_1({schema}.get_read_time_1($1), $2, $3)",
            now,
            [packed for _, packed, _ in found],
            payloads,
        )
        return queries.decode_page(rows, status)

    async def group_failures(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        budget: int = SCAN_BUDGET,
        since: Sequence[float] = (),
    ) -> FailureGroups:
        """See `Backend.group_failures`."""
        rows = await self._fetch(
            _GROUP_FAILURES,
            self._now(),
            *queries.encode_filter(which, which.failed_states),
            *queries.encode_search(which),
            limit,
            budget,
            GROUP_NAMES,
            [to_micros(time) for time in since],
            extra_time=_LARGE_READ_TIMEOUT,
        )
        return queries.decode_failure_groups(rows)

    async def explain_job(self, job_id: str) -> Facts:
        """See `Backend.explain_job`."""
        rows = await self._fetch(
            _EXPLAIN, self._now(), self._monotonic(), encode_id_or_empty(job_id), MAX_HOLDERS
        )
        return queries.decode_facts(rows, job_id)

    async def list_limits(self) -> list[LimitInfo]:
        """See `Backend.list_limits`."""
        statement = "SELECT * FROM {schema}.list_limits_1(NULL, $1)"
        return queries.decode_limits(await self._fetch(statement, MAX_HOLDERS))

    async def list_rates(self) -> list[RateInfo]:
        """See `Backend.list_rates`."""
        return queries.decode_rates(await self._fetch(_LIST_RATES, self._now()))

    async def list_keyed_limits(
        self, *, name: str | None = None, fullest: int = 5
    ) -> list[KeyedLimitInfo]:
        """See `Backend.list_keyed_limits`."""
        limits = await self._fetch(_LIST_KEYED_LIMITS)
        statement = "SELECT * FROM {schema}.list_fullest_keys_1($1, $2)"
        wanted = None if name is None else encode_lookup_text(name)
        rows = await self._fetch(statement, wanted, max(1, fullest))
        return queries.decode_keyed_limits(limits, rows, name, fullest)

    async def list_limit_changes(self) -> list[LimitChange]:
        """See `Backend.list_limit_changes`."""
        return queries.decode_limit_changes(await self._fetch(_LIST_LIMIT_CHANGES))

    async def list_key_uses(self, limit: int = 100) -> list[KeyUse]:
        """See `Backend.list_key_uses`."""
        statement = "SELECT * FROM {schema}.list_key_uses_1(NULL, NULL, $1)"
        return queries.decode_key_uses(await self._fetch(statement, limit))

    async def list_tenants(self, limit: int = 100) -> TenantUses:
        """See `Backend.list_tenants`."""
        uses = "SELECT * FROM {schema}.list_tenants_1($1, $2)"
        weights = "SELECT tenant, units FROM {schema}.tenant_weight ORDER BY tenant LIMIT $1"
        return queries.decode_tenants(
            await self._fetch(uses, MAX_WAITING_COUNTED, limit), await self._fetch(weights, limit)
        )

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
        interval = queries.encode_interval(since, until, step)
        if interval is None:
            return []
        filters = (None if one is None else encode_lookup_text(one) for one in (queue, name))
        rows = await self._fetch(_STATISTICS, *interval, *filters, extra_time=_LARGE_READ_TIMEOUT)
        return queries.decode_statistics(rows)

    async def list_audit(self, *, limit: int = 100, after: str | None = None) -> AuditPage:
        """See `Backend.list_audit`."""
        statement = """SELECT position, at, body FROM {schema}.audit_record
            WHERE position < $1 ORDER BY position DESC LIMIT $2"""
        rows = await self._fetch(statement, queries.encode_cursor(after), limit + 1)
        return operations.decode_audit_page(rows, limit)

    async def get_bulk_operation(self, operation_id: str) -> BulkOperation:
        """See `Backend.get_bulk_operation`."""
        rows = await self._fetch(_GET_BULK_OPERATION, encode_lookup_text(operation_id))
        if not rows:
            raise BulkOperationNotFound(operation_id)
        return bulk_operations.decode_operation(rows[0], operation_id)

    async def list_bulk_operations(
        self, *, limit: int = 100, after: str | None = None
    ) -> BulkOperationPage:
        """See `Backend.list_bulk_operations`."""
        rows = await self._fetch(_LIST_BULK_OPERATIONS, queries.encode_cursor(after), limit + 1)
        return bulk_operations.decode_page(rows, limit)

    async def count_jobs(self, queue: str | None = None) -> dict[State, int]:
        """See `Backend.count_jobs`."""
        arguments = None if queue is None else encode_lookup_text(queue)
        statement = "SELECT * FROM {schema}.count_by_state_1({schema}.get_read_time_1($1), $2)"
        return queries.decode_counts(
            await self._fetch(statement, self._now(), arguments, extra_time=_LARGE_READ_TIMEOUT)
        )

    async def list_queues(self, *, budget: int | None = None) -> list[QueueInfo]:
        """See `Backend.list_queues`."""
        statement = "SELECT * FROM {schema}.list_queues_1({schema}.get_read_time_1($1), $2)"
        return queries.decode_queues(await self._fetch(statement, self._now(), budget))

    async def list_sessions(self) -> list[SessionInfo]:
        """See `Backend.list_sessions`."""
        statement = "SELECT * FROM {schema}.list_sessions_1({schema}.get_read_time_1($1))"
        return queries.decode_sessions(await self._fetch(statement, self._monotonic()))

    # --- schedules ---

    async def put_schedule(self, schedule: ScheduleRecord) -> None:
        """See `Backend.put_schedule`."""
        arguments = operations.encode_schedule(schedule)
        await self._fetch("SELECT {schema}.put_schedule_1($1, $2, $3, $4, $5, $6)", *arguments)

    async def list_schedules(self) -> list[ScheduleRecord]:
        """See `Backend.list_schedules`."""
        columns = "name, spec, owner, paused, last_tick, last_job"
        statement = f"SELECT {columns} FROM {{schema}}.schedule"  # noqa: S608
        return operations.decode_schedules(await self._fetch(statement))

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """See `Backend.pause_schedule`."""
        statement = "UPDATE {schema}.schedule SET paused = $2 WHERE name = $1 RETURNING 1"
        return bool(await self._fetch(statement, encode_lookup_text(name), paused))

    async def delete_schedule(self, name: str) -> bool:
        """See `Backend.delete_schedule`."""
        statement = "DELETE FROM {schema}.schedule WHERE name = $1 RETURNING 1"
        return bool(await self._fetch(statement, encode_lookup_text(name)))

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        """See `Backend.fire`."""
        arguments = enqueueing.encode_arguments([job])
        places = ", ".join(f"${n}" for n in range(1, 6 + len(arguments)))
        (row,) = await self._fetch(
            f"SELECT * FROM {{schema}}.fire_schedule_1({places})",  # noqa: S608
            self._now(),
            encode_lookup_text(name),
            expected_last,
            tick,
            overlap,
            *arguments,
        )
        *decision, cancel_notified = row
        fired = operations.decode_fired(decision)
        queue = [] if fired.job_id is None else [job.queue]
        self._notify([*queue, *([] if cancel_notified is None else [cancel_notified])])
        return fired


class PostgresConnections:
    """The open connections of a backend on one event loop."""

    def __init__(self, settings: PostgresSettings) -> None:
        self.settings: PostgresSettings = settings
        self.pool: ConnectionPool = ConnectionPool(settings, asyncio.sleep)
        """The connections for all operations other than exchange."""
        self.handler_pool: ConnectionPool = ConnectionPool(settings, asyncio.sleep)
        """The connections for handlers' own transactions. They are separate, so a handler that
        waits for a connection cannot block other operations.
        """
        self.caller_context: caller_transactions.CallerContext = caller_transactions.CallerContext(
            settings, "", self.handler_pool, self.pool
        )
        self.exchanges: PostgresConnection = PostgresConnection(
            settings, asyncio.sleep, _PLANNER_SETTINGS
        )
        self.notifier: PostgresNotifier = PostgresNotifier(
            PostgresConnection(settings, asyncio.sleep), self.pool
        )
        self.low_water_marks: LowWaterMarks = LowWaterMarks(time.monotonic)
        self.pooled: bool = False
        self._statements: dict[str, str] = {}

    def insert_schema(self, statement: str) -> str:
        """Return a statement with the name of this backend's schema."""
        found = self._statements.get(statement)
        if found is None:
            found = self._statements[statement] = insert_schema(statement, self.settings.schema)
        return found

    async def exchange(
        self,
        now: int | None,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
        *,
        one_by_one: bool = False,
    ) -> list[Any]:
        """Return the rows of `exchange_1`."""
        connection = self.exchanges
        arguments = exchanging.encode_arguments(
            session_id, number, settlements, request, one_by_one=one_by_one
        )
        statement = _EXCHANGE_POOLED if connection.server.pooled else _EXCHANGE
        marks = self.low_water_marks.make_arguments(connection.driver)
        extra = (len(settlements) + request.total) / _JOBS_PER_SECOND
        return await connection.fetch(
            self.insert_schema(statement), now, *arguments, *marks, extra_time=extra
        )

    async def start(self) -> None:
        """Check the server and the format."""
        async with self.pool.acquire() as connection:
            installed = await migrations.ensure_format(
                connection, self.settings, migrations.load_current_format()
            )
            self.pooled = connection.server.pooled
            await connection.fetch(self.insert_schema("SELECT {schema}.maintain_partitions_1()"))
        self.caller_context = caller_transactions.CallerContext(
            self.settings, installed.identity, self.handler_pool, self.pool
        )

    async def close(self) -> None:
        """Close all connections."""
        await self.notifier.close()
        await self.exchanges.close()
        await self.pool.close()
        await self.handler_pool.close()
