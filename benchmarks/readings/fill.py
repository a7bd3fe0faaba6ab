"""Fill a backend: many completed jobs, and some of everything else that operators read.

The completed jobs are of 20 names in 10 queues and of 50 tenants, spread over the last 20 hours.
A few thousand go through the backend. On SQLite and PostgreSQL, SQL copies their rows with other
ids, times and correlation ids; on Redis all jobs go through the backend.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Literal

import asyncpg
import msgspec

from benchmarks.payload import PAYLOAD
from nimburion.backends import open_backend
from nimburion.backends.postgres import PostgresBackend
from nimburion.core.audit import AuditRecord, put_audit
from nimburion.core.backend import Backend
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.ids import JobIds
from nimburion.core.job import AttemptError, JobOptions, NewJob
from nimburion.core.lease import Delivery
from nimburion.core.maintenance import Retention
from nimburion.core.metrics.histogram import Histogram
from nimburion.core.metrics.statistics import Counters, Statistics
from nimburion.core.session import Session
from nimburion.core.settlement import Completed, Failed, Settlement
from nimburion.core.timing.clock import SystemClock
from nimburion.testing.contract.harness import make_limits

Kind = Literal["sqlite", "postgres", "redis"]

NAMES = tuple(f"name_{n:02}" for n in range(20))
TENANTS = 50
TEMPLATES = 1_000
"""One job for each name and tenant. SQL copies them."""
RARE_NAME = "rare"
LIMITED_NAME = NAMES[0]
DEAD_LETTERS = 3_000
FINGERPRINTS = 30
WAITING = 100_000
DELAY = 12 * 3600.0
"""Seconds after which every eleventh of the waiting jobs is due: no one is before the measurement.
"""
HELD = 100
AUDIT_RECORDS = 10_000
STATISTICS_NAMES = 200
SPAN = 20 * 3600.0
"""Seconds over which the completed jobs are spread. The backends keep them for a day."""

_CORRELATION = "correlation-template"
_PAYLOAD = json.dumps(PAYLOAD, separators=(",", ":")).encode()
_BATCH = 1_000
_AT_ONCE = 4
"""The batches that are enqueued, and the sessions that complete jobs, at the same time."""
_COMPLETED_AT_ONCE = 20_000
_COPIED_AT_ONCE = 250_000
_ids = JobIds(time.time)


class Filled(msgspec.Struct):
    """What the calls need to know of the jobs in a backend."""

    completed: str
    """The id of a completed job."""
    waiting: str
    """The id of a waiting job."""
    middle: str
    """The cursor of a page in the middle of all jobs."""
    since: float
    """When the first of the completed jobs ended, in epoch seconds."""


def make_job(number: int, name: str | None = None) -> NewJob:
    """Return the job with this number; the same number has the same name and tenant."""
    kind = number % len(NAMES)
    tenant = number // len(NAMES) % TENANTS
    return NewJob(
        id=_ids.make(),
        name=name or NAMES[kind],
        queue=f"queue_{kind % 10}",
        payload=_PAYLOAD,
        options=JobOptions(tenant=f"tenant_{tenant:02}", correlation_id=_CORRELATION),
    )


class Worker:
    """A session that reserves jobs and settles them as told."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._number = 0
        self._id = os.urandom(16).hex()

    async def open(self) -> None:
        """Open the session, with a concurrency limit for one name."""
        await self._backend.consuming.open_session(
            Session(
                id=self._id,
                ttl=86_400.0,
                host="bench",
                queues=tuple(f"queue_{n}" for n in range(10)),
                names=(*NAMES, RARE_NAME),
                limits=make_limits({LIMITED_NAME: 1_000}),
            )
        )

    async def exchange(self, settlements: Sequence[Settlement], total: int) -> list[Delivery]:
        """Settle attempts and reserve up to `total` jobs."""
        self._number += 1
        lanes = [Lane(f"queue_{n % 10}", name) for n, name in enumerate(NAMES)]
        request = ReserveRequest(
            total=total, lanes=(*lanes, Lane("queue_0", RARE_NAME)), nonce=os.urandom(16)
        )
        reply = await self._backend.consuming.exchange(self._id, self._number, settlements, request)
        return reply.deliveries

    async def complete_all(self) -> None:
        """Complete every waiting job."""
        keep = self._backend.capabilities.keeps_arguments
        done: list[Settlement] = []
        while deliveries := await self.exchange(done, 500):
            done = [Completed(one.lease, keep_payload=keep) for one in deliveries]

    async def fail_all(self) -> None:
        """Make every waiting job a dead letter, of `FINGERPRINTS` different errors."""
        failed: list[Settlement] = []
        number = 0
        while deliveries := await self.exchange(failed, 500):
            failed = []
            for one in deliveries:
                number += 1
                error = AttemptError(
                    1,
                    "failure",
                    "RuntimeError",
                    f"error {number % FINGERPRINTS}",
                    "Traceback (most recent call last):\n" + "  x\n" * 200,
                    fingerprint=f"{number % FINGERPRINTS:016x}",
                )
                failed.append(Failed(one.lease, "retries exhausted", error))


async def fill(
    kind: Kind,
    url: str,
    rows: int,
    *,
    waiting_jobs: int = WAITING,
    dead_letters: int = DEAD_LETTERS,
) -> Filled:
    """Fill an empty backend with `rows` completed jobs and the rest."""
    # On a busy machine, the server may take long to answer.
    backend = open_backend(f"{url}?timeout=120" if kind == "redis" else url)
    await backend.open()
    try:
        worker = Worker(backend)
        await worker.open()
        await enqueue(backend, [make_job(n) for n in range(TEMPLATES)])
        await enqueue(backend, [make_job(0, RARE_NAME)])
        await worker.complete_all()
        ended = await backend.now()
        since = ended - SPAN
        if kind == "sqlite":
            await asyncio.to_thread(copy_on_sqlite, url, rows, since)
        elif kind == "postgres":
            await copy_on_postgres(url, rows, since)
        else:
            await complete_on_redis(backend, rows)
        await enqueue(backend, [make_job(n) for n in range(dead_letters)])
        await worker.fail_all()
        waiting = [make_job(n) for n in range(waiting_jobs)]
        # 11, so that all queues have due ones and later ones.
        waiting[::11] = [msgspec.structs.replace(job, after=DELAY) for job in waiting[::11]]
        await enqueue(backend, waiting)
        await worker.exchange([], HELD)
        await fill_audit(backend)
        await fill_statistics(backend)
        middle = await backend.reads.list_jobs(limit=1, after=str(rows // 2))
        return Filled(
            completed=middle.jobs[0].id,
            waiting=waiting[-1].id,
            middle=str(rows // 2),
            since=since,
        )
    finally:
        await backend.close()


async def enqueue(backend: Backend, jobs: Sequence[NewJob]) -> None:
    """Enqueue jobs, a few batches at a time, so that the server does not wait for this process."""
    batches = [jobs[start : start + _BATCH] for start in range(0, len(jobs), _BATCH)]
    for start in range(0, len(batches), _AT_ONCE):
        await asyncio.gather(*map(backend.producing.enqueue, batches[start : start + _AT_ONCE]))


async def complete_on_redis(backend: Backend, rows: int) -> None:
    """Complete `rows` jobs through the backend, with several sessions at a time: on a busy machine
    a single one waits for the server's next turn after each exchange.
    """
    workers = [Worker(backend) for _ in range(_AT_ONCE)]
    for worker in workers:
        await worker.open()
    for start in range(0, rows, _COMPLETED_AT_ONCE):
        numbers = range(start, min(start + _COMPLETED_AT_ONCE, rows))
        jobs = [make_job(n) for n in numbers]
        await asyncio.gather(enqueue(backend, jobs), *(one.complete_all() for one in workers))
    await asyncio.gather(*(one.complete_all() for one in workers))


async def fill_audit(backend: Backend) -> None:
    """Store audit records."""
    records = [
        AuditRecord(
            id=f"audit-{n}", action="queue.pause", target="queue_1", by="someone", outcome="done"
        )
        for n in range(AUDIT_RECORDS)
    ]
    for start in range(0, AUDIT_RECORDS, 100):
        await asyncio.gather(
            *(put_audit(backend, record) for record in records[start : start + 100])
        )


async def fill_statistics(backend: Backend) -> None:
    """Store the statistics of the last three hours, of many names."""
    last = int(await backend.now()) // 60 * 60
    counters = Counters(
        enqueued=1_000,
        started=1_000,
        completed=990,
        failed=10,
        wait=Histogram(12.5, 0.09, {-60: 10, -46: 500, -36: 400, -26: 90}),
        run=Histogram(50.5, 0.29, {-48: 500, -36: 400, -24: 90, -13: 10}),
    )
    for start in range(last - 180 * 60, last, 60):
        await backend.consuming.put_statistics(
            "bench",
            [
                Statistics(
                    step=60, start=start, queue=f"queue_{n % 10}", name=f"n_{n}", counters=counters
                )
                for n in range(STATISTICS_NAMES)
            ],
        )


# --- copies by SQL --------------------------------------------------------------------------------


def split_range(first: int, end: int) -> Iterable[tuple[int, int]]:
    """Split [first, end) into ranges that one statement copies."""
    for start in range(first, end, _COPIED_AT_ONCE):
        yield start, min(start + _COPIED_AT_ONCE, end)


_COPY_ON_SQLITE = """
WITH RECURSIVE number (i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM number WHERE i + 1 < ?2),
copy (i, created) AS (SELECT i, ?3 + CAST((i - ?4) * ?5 AS INTEGER) FROM number)
INSERT INTO job (
    seq, id, lane, priority, due, created_at, state, failures, lost, fence, settled_fence,
    settled_nonce, started_at, finished_at, ended_by, options, digest, payload
)
SELECT
    c.i,
    printf('%08x-%04x-7%03x-8%03x-%012x', c.created / 1000 >> 16, c.created / 1000 & 65535,
        c.i & 4095, c.i >> 12 & 4095, c.i),
    t.lane, t.priority, c.created, c.created, t.state, t.failures, t.lost, t.fence,
    t.settled_fence, t.settled_nonce, c.created + 1000000, c.created + 2000000, t.ended_by,
    replace(t.options, ?6, 'correlation-' || c.i), t.digest, t.payload
FROM copy AS c CROSS JOIN job AS t ON t.seq = 1 + c.i % ?7
"""


def copy_on_sqlite(url: str, rows: int, since: float) -> None:
    """Copy the rows of the templates until there are `rows` completed jobs."""
    path = url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA cache_size=-262144")
        first = TEMPLATES + 2
        for start, end in split_range(first, first + rows):
            connection.execute(
                _COPY_ON_SQLITE,
                (start, end, int(since * 1e6), first, SPAN * 1e6 / rows, _CORRELATION, TEMPLATES),
            )
        connection.execute("DELETE FROM finished_count")
        connection.execute(
            """INSERT INTO finished_count (lane, state, number)
            SELECT lane, state, count(*) FROM job WHERE state > 0 GROUP BY lane, state"""
        )


_COPY_ON_POSTGRES = """
INSERT INTO nimburion.finished_job (
    seq, due, created_at, started_at, finished_at, lane, failures, lost, ended_by, state, id,
    digest, settled_token, options, payload
)
SELECT
    c.i, c.created, c.created, c.created + 1000000, c.created + 2000000, t.lane, t.failures, t.lost,
    t.ended_by, t.state,
    decode('00' || lpad(to_hex(c.created / 1000), 12, '0')
        || '7' || lpad(to_hex(c.i & 4095), 3, '0')
        || '8' || lpad(to_hex(c.i >> 12 & 4095), 3, '0') || lpad(to_hex(c.i), 12, '0'), 'hex'),
    t.digest, t.settled_token, replace(t.options, '{correlation}', 'correlation-' || c.i), t.payload
FROM (
    SELECT i, {since} + CAST((i - {first}) * {interval} AS int8) AS created
    FROM generate_series({start}::int8, {end}::int8 - 1) AS i
) c JOIN template t ON t.seq = 1 + c.i % {templates}
"""


async def copy_on_postgres(url: str, rows: int, since: float) -> None:
    """Copy the rows of the templates until there are `rows` completed jobs, then count them as
    `prune` does while they complete.
    """
    connection = await asyncpg.connect(url)
    first = TEMPLATES + 2
    try:
        await connection.execute(
            """SELECT nimburion.create_partition_1('nimburion.finished_job',
                CAST(clock_timestamp() AT TIME ZONE 'UTC' AS date) - 1)"""
        )
        await connection.execute(
            "CREATE TEMPORARY TABLE template AS SELECT * FROM nimburion.finished_job"
        )
        await connection.execute("ANALYZE template")
        for start, end in split_range(first, first + rows):
            await connection.execute(
                _COPY_ON_POSTGRES.format(
                    start=start,
                    end=end,
                    first=first,
                    since=int(since * 1e6),
                    interval=SPAN * 1e6 / rows,
                    correlation=_CORRELATION,
                    templates=TEMPLATES,
                )
            )
        await connection.execute(
            f"SELECT setval(pg_get_serial_sequence('nimburion.job', 'seq'), {first + rows})"
        )
        await connection.execute("VACUUM ANALYZE nimburion.finished_job")
    finally:
        await connection.close()
    clock = _SetClock(since - 60.0)
    backend = PostgresBackend(url, clock=clock)
    await backend.open()
    while clock.time < time.time():
        await backend.maintenance.prune(Retention(), 1_000)
        clock.time += 60.0
    await backend.close()
    backend = PostgresBackend(url)
    await backend.open()
    await backend.maintenance.prune(Retention(), 1_000)
    await backend.close()


class _SetClock(SystemClock):
    """A clock that shows the time that it was set to."""

    def __init__(self, shown: float) -> None:
        self.time = shown

    def now(self) -> float:
        return self.time
