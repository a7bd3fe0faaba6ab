"""The PostgreSQL store."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from nimburion.backends.postgres import enqueue as enqueueing
from nimburion.backends.postgres import exchange as exchanging
from nimburion.backends.postgres import migrations, operations, queries, sessions
from nimburion.backends.postgres import transactions as joining
from nimburion.backends.postgres.checks import findings
from nimburion.backends.postgres.connection.pool import Link, Links
from nimburion.backends.postgres.encoding import NotPlain, asked_text, time_of
from nimburion.backends.postgres.errors import code_of
from nimburion.backends.postgres.low_water_marks import Floors
from nimburion.backends.postgres.notifications import Bell
from nimburion.backends.postgres.schema import named
from nimburion.backends.postgres.url import Address, parse
from nimburion.backends.server.encoding import MICRO, asked_id, micros, unpack_id
from nimburion.backends.server.handle import OpenHandle
from nimburion.backends.waiters import EVERY_QUEUE
from nimburion.core.backend import Capabilities
from nimburion.core.checks import Finding, finding_of
from nimburion.core.clock import Clock, SystemClock
from nimburion.core.errors import BackendError, ConfigurationError
from nimburion.core.exchange import Reply, Want
from nimburion.core.ids import Entropy
from nimburion.core.job import Enqueued, JobRecord, NewJob, State
from nimburion.core.lease import Lease
from nimburion.core.operations import Cancellation, Promoted, Replayed, Rescued, Retention
from nimburion.core.queries import EVERY_JOB, JobFilter, Page, QueueInfo
from nimburion.core.schedules import Fired, Overlap, ScheduleRecord
from nimburion.core.session import Orders, Session, SessionInfo
from nimburion.core.settlement import Settlement
from nimburion.core.transactions import Lent, Transaction

CAPABILITIES = Capabilities(
    durable=True,
    notifies=True,
    joins_transaction=True,
    atomic_batch=None,
    shared=True,
    remote=True,
    roles=True,
    gradual=True,
)
BEHIND_A_POOLER = msgspec.structs.replace(CAPABILITIES, notifies=False)
"""PgBouncer lends a connection for a transaction: nobody can listen on one."""


def _call(function: str, count: int) -> str:
    """The statement that calls a function of ours with so many arguments."""
    places = ", ".join(f"${n}" for n in range(1, count + 1))
    return f"SELECT * FROM nb.{function}({places})"  # noqa: S608 - names of ours


_A_SECOND = 1000
"""Jobs that a busy server may take a second for, beyond its time."""
_ENQUEUE = _call("enqueue_1", 15)
_ENQUEUE_ONE = "SELECT nb.enqueue_one_1($1, $2, $3, $4, $5, $6, $7, $8, $9), false"
_ENQUEUE_ONE_RINGING = """SELECT nb.enqueue_one_1($1, $2, $3, $4, $5, $6, $7, $8, $9),
    CASE WHEN pg_try_advisory_xact_lock(hashtextextended($10, 7043))
        THEN pg_notify($10, $11) IS NOT NULL ELSE false END"""
"""Rings with the commit. Who notifies holds up all others that do until its commit is flushed, so
only one at a time may; the others ring behind theirs."""
_ENQUEUE_PLAIN = _call("enqueue_plain_1", 12)
_EXCHANGE = _call("exchange_1", 23)
_EXCHANGE_POOLED = _call("exchange_pooled_1", 23)
_PLANNING = (
    "enable_seqscan = off",
    "enable_bitmapscan = off",
    "enable_hashjoin = off",
    "enable_mergejoin = off",
    "enable_material = off",
    "jit = off",
    "plan_cache_mode = force_generic_plan",
)
"""For the link of the exchanges: what `exchange_pooled_1` sets for each call."""
_OPEN_SESSION = _call("open_session_1", 7)
_CLOSE_SESSION = _call("close_session_1", 5)
_RELEASE = _call("release_1", 6)
_RESCUE = _call("rescue_1", 6)
_LARGE_READ_TIMEOUT = 60.0
"""Seconds beyond the timeout that a read of a long history may take."""


class PostgresBackend:
    """A store in one PostgreSQL database: a schema of its own, beside whatever else is there.

    Args:
        url: where; see `docs/how-to/postgresql-in-production.md` for all forms.
        schema: where its tables are; also in the URL, as all of the following.
        prefix: what their names begin with.
        timeout: seconds that connecting may take, and then each answer.
        connections: the most for callers.
        pooler: whether PgBouncer or the like stands between: `auto` finds out, `yes`, `no`.
        clock: tests pass theirs; else the server's own time counts.
        entropy: unused here, taken so that every store is made alike.

    >>> PostgresBackend("postgresql://localhost/app").capabilities.durable
    True
    """

    def __init__(
        self,
        url: str | Address = "postgresql://localhost",
        *,
        schema: str | None = None,
        prefix: str | None = None,
        timeout: float | None = None,
        connections: int | None = None,
        pooler: str | None = None,
        clock: Clock | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        address = url if isinstance(url, Address) else parse(url)
        self.address: Address = address.using(
            schema=schema, prefix=prefix, timeout=timeout, connections=connections, pooler=pooler
        )
        self._given = clock
        self._clock = clock or SystemClock()
        self._entropy = entropy
        self._handle = OpenHandle(self.describe(), lambda: Opened(self.address))

    @classmethod
    def from_url(cls, url: str, **options: object) -> PostgresBackend:
        """The store that `postgresql://localhost/app` names."""
        return cls(url, **options)  # type: ignore[arg-type]

    # --- coming and going ---

    @property
    def capabilities(self) -> Capabilities:
        """What it can do. Behind a pooler nothing is heard of other processes: known when open."""
        opened = self._handle.latest
        pooled = self.address.pooler == "yes" if opened is None else opened.pooled
        return BEHIND_A_POOLER if pooled else CAPABILITIES

    def describe(self) -> str:
        """Name the store."""
        return self.address.describe()

    def sibling(self) -> PostgresBackend:
        """Another handle on the same data, with connections of its own, not open yet."""
        return PostgresBackend(self.address, clock=self._given, entropy=self._entropy)

    async def open(self) -> None:
        """Connect, and check server and format. Repeatable."""
        await self._handle.open()

    async def close(self) -> None:
        """Hang up. Repeatable."""
        await self._handle.close()

    async def exists(self) -> bool:
        """See `Backend.exists`."""
        return True

    async def ping(self) -> None:
        """Return when the server answers."""
        await self._ask("SELECT 1")

    async def now(self) -> float:
        """See `Backend.now`: the clock of the server."""
        statement = """SELECT coalesce(
            $1, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8))"""
        ((now,),) = await self._ask(statement, self._now())
        return float(now) / MICRO

    async def examine(self) -> list[Finding]:
        """See `Backend.examine`."""
        try:
            async with self._here().asks.one() as link:
                return await findings(link, self.address, migrations.wanted(), self._clock)
        except (BackendError, ConfigurationError) as error:
            return [finding_of("server", error)]

    async def plan(self) -> list[str]:
        """See `Backend.plan`."""
        async with self._connect() as connection:
            found = await migrations.standing(connection, self.address)
            return migrations.plan(found, self.address, migrations.wanted())

    async def migrate(self) -> list[str]:
        """See `Backend.migrate`."""
        async with self._connect() as connection:
            return await migrations.migrate(connection, self.address, migrations.wanted())

    async def grant(self, role: str) -> list[str]:
        """See `Backend.grant`."""
        async with self._connect() as connection:
            return await migrations.grant(connection, self.address, migrations.wanted(), role)

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Link]:
        connection = Link(self.address, asyncio.sleep)
        try:
            await connection.connect()
            yield connection
        finally:
            await connection.close()

    def _here(self) -> Opened:
        return self._handle.get()

    def _now(self) -> int | None:
        """The time of a test's clock; the server takes its own when it is told none."""
        return None if self._given is None else micros(self._given.now())

    def _mono(self) -> int | None:
        return None if self._given is None else micros(self._given.monotonic())

    async def _ask(self, statement: str, *arguments: Any, extra: float = 0.0) -> list[Any]:
        opened = self._here()
        return await opened.asks.rows(opened.named(statement), *arguments, extra=extra)

    def _ring(self, queues: Collection[str]) -> None:
        self._here().bell.ring(queues)

    # --- the way in ---

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """See `Backend.enqueue`."""
        if not jobs:
            return []
        if len(jobs) == 1 and await self._enqueue_one(jobs[0]):
            return [Enqueued(jobs[0].id, "created")]
        if enqueueing.is_plain(jobs[0]) and await self._enqueue_plain(jobs):
            self._ring({job.queue for job in jobs})
            return enqueueing.results_of(jobs, None, None)
        opened = self._here()
        asked, extra = enqueueing.arguments_of(jobs), len(jobs) / _A_SECOND
        ((letters, holders),) = await opened.asks.rows(
            opened.named(_ENQUEUE), self._now(), *asked, extra=extra
        )
        results = enqueueing.results_of(jobs, letters, holders)
        if letters is None or "c" in letters:
            self._ring({job.queue for job in jobs})
        return results

    async def _enqueue_one(self, job: NewJob) -> bool:
        """Store a job in the way most of them go; False when it is not one of these."""
        asked = enqueueing.alone(job)
        if asked is None:
            return False
        opened = self._here()
        bell, statement = opened.bell, _ENQUEUE_ONE
        ring = bell.offered([job.queue])
        if ring is not None:
            statement = _ENQUEUE_ONE_RINGING
            asked += bell.channel, ring
        rows = await opened.asks.rows(opened.named(statement), self._now(), *asked)
        ((stored, rung),) = rows
        if stored:
            bell.ring([job.queue], told=rung)
        return bool(stored)

    async def _enqueue_plain(self, jobs: Sequence[NewJob]) -> bool:
        """Store jobs in the way most of them go; False when one of them is not one of these."""
        opened, now, extra = self._here(), self._now(), len(jobs) / _A_SECOND
        statement = opened.named(_ENQUEUE_PLAIN)
        try:
            if len(jobs) > enqueueing.ALONE:
                return await opened.asks.agreed(
                    statement,
                    lambda: ([now, *part] for part in enqueueing.parts_of(jobs)),
                    extra=extra,
                )
            (part,) = enqueueing.parts_of(jobs)
            ((stored,),) = await opened.asks.rows(statement, now, *part, extra=extra)
        except NotPlain:
            return False
        return bool(stored)

    async def enqueue_in(self, lent: Lent, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """See `nimburion.core.backend.Joining`."""
        return await joining.enqueue_in(self._here().joint, lent, jobs, self._now())

    def transaction(self, lent: Lent | None) -> Transaction:
        """See `nimburion.core.backend.Joining`. One of the store's own gives an
        `asyncpg.Connection`."""
        return joining.transaction_of(self._here().joint, lent, self._now)

    # --- workers ---

    async def open_session(self, session: Session) -> None:
        """See `Backend.open_session`."""
        asked = sessions.opening_of(session)
        ((alive,),) = await self._ask(_OPEN_SESSION, self._now(), self._mono(), *asked)
        sessions.check_alive(alive, session.id)
        self._ring([EVERY_QUEUE])

    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        """See `Backend.exchange`."""
        opened = self._here()
        await opened.exchanges.connect()
        try:
            rows = await opened.exchange(self._now(), session_id, number, settlements, want)
        except BackendError as error:
            if error.__cause__ is None or code_of(error.__cause__) != exchanging.NOT_ALL_HELD:
                raise
            rows = await opened.exchange(
                self._now(), session_id, number, settlements, want, one_by_one=True
            )
        said = rows[-1]
        reply = exchanging.reply_of(rows, session_id, number, want)
        opened.floors.note(said)
        opened.bell.ring(exchanging.rung_of(said))
        return reply

    async def beat(self, session_id: str) -> Orders:
        """See `Backend.beat`."""
        statement = "SELECT * FROM nb.beat_1($1, $2)"
        return sessions.orders_of(await self._ask(statement, self._mono(), session_id), session_id)

    async def release(
        self, session_id: str, leases: Sequence[Lease] = (), nonce: bytes | None = None
    ) -> None:
        """See `Backend.release`."""
        asked = sessions.releasing_of(session_id, leases, nonce)
        ((rung,),) = await self._ask(_RELEASE, self._now(), *asked)
        self._ring(rung)

    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        """See `Backend.close_session`."""
        asked = sessions.closing_of(session_id, running)
        ((rung,),) = await self._ask(_CLOSE_SESSION, self._now(), *asked)
        self._ring(rung)

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        """See `Backend.rescue`."""
        asked = sessions.rescuing_of(limit, max_lost)
        rows = await self._ask(_RESCUE, self._now(), self._mono(), *asked)
        self._ring(rows[-1][2])
        return sessions.rescued_of(rows)

    async def promote(self, limit: int) -> Promoted:
        """See `Backend.promote`."""
        statement = """SELECT p.moved, p.next_due, ARRAY(
            SELECT DISTINCT queue FROM nb.lane WHERE id = ANY (p.lanes)
        ) FROM nb.promote_1(nb.clock_1($1), $2, -9223372036854775808) p"""
        ((moved, next_due, rung),) = await self._ask(statement, self._now(), limit)
        self._ring(rung)
        return Promoted(moved, time_of(next_due))

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        """See `Backend.wait`."""
        await self._here().bell.wait(queues, timeout, self._clock.sleep)

    # --- operators ---

    async def cancel(self, job_id: str) -> Cancellation:
        """See `Backend.cancel`."""
        statement = "SELECT * FROM nb.cancel_1($1, $2)"
        ((answer, notified),) = await self._ask(statement, self._now(), asked_id(job_id))
        self._ring([] if notified is None else [notified])
        return operations.cancellation_of(answer, job_id)

    async def replay(self, which: JobFilter, limit: int, after: str | None = None) -> Replayed:
        """See `Backend.replay`."""
        rows = await self._ask(
            "SELECT * FROM nb.replay_1($1, $2, $3, $4, $5, $6, $7, $8)",
            self._now(),
            *queries.filter_of(which, which.failed_states),
            queries.encode_cursor(after),
            limit,
        )
        self._ring({queue for _, job_id, replayed, queue in rows if job_id and replayed})
        return operations.replayed_of(rows)

    async def delete(self, which: JobFilter, limit: int) -> list[str]:
        """See `Backend.delete`."""
        rows = await self._ask(
            "SELECT * FROM nb.delete_1($1, $2, $3, $4, $5, $6, $7)",
            self._now(),
            *queries.filter_of(which, which.finished_states),
            limit,
        )
        return [unpack_id(row[0]) for row in rows]

    async def pause(self, queue: str, *, paused: bool) -> None:
        """See `Backend.pause`."""
        await self._ask("SELECT nb.pause_1($1, $2)", queue, paused)
        if not paused:
            self._ring([queue])

    async def prune(self, keep: Retention, limit: int) -> int:
        """See `Backend.prune`."""
        arguments = operations.pruning_of(keep)
        statement = "SELECT nb.prune_1($1, $2, $3, $4, $5, $6)"
        ((count,),) = await self._ask(
            statement, self._now(), *arguments, limit, extra=_LARGE_READ_TIMEOUT
        )
        await self._ask("SELECT nb.days_1()")
        return int(count)

    # --- readers ---

    async def get(self, job_id: str) -> JobRecord:
        """See `Backend.get`."""
        rows = await self._ask(
            "SELECT * FROM nb.get_1(nb.time_1($1), ARRAY[$2]::bytea[], true)",
            self._now(),
            asked_id(job_id),
        )
        return queries.record_of(rows, job_id)

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
    ) -> Page:
        """See `Backend.list_jobs`."""
        now = self._now()
        found = await self._ask(
            "SELECT seq, id FROM nb.seek_1(nb.time_1($1), $2, $3, $4, $5, $6, $7, $8)",
            now,
            *queries.filter_of(which, which.states),
            queries.encode_cursor(after),
            limit + 1,
            extra=_LARGE_READ_TIMEOUT,
        )
        ids = [packed for _, packed in found[:limit]]
        rows = await self._ask("SELECT * FROM nb.get_1(nb.time_1($1), $2, $3)", now, ids, payloads)
        return queries.page_of(rows, [seq for seq, _ in found], limit)

    async def counts(self, queue: str | None = None) -> dict[State, int]:
        """See `Backend.counts`."""
        arguments = None if queue is None else asked_text(queue)
        statement = "SELECT * FROM nb.counts_1(nb.time_1($1), $2)"
        return queries.counts_of(
            await self._ask(statement, self._now(), arguments, extra=_LARGE_READ_TIMEOUT)
        )

    async def queues(self) -> list[QueueInfo]:
        """See `Backend.queues`."""
        statement = "SELECT * FROM nb.queues_2(nb.time_1($1))"
        return queries.queues_of(await self._ask(statement, self._now()))

    async def sessions(self) -> list[SessionInfo]:
        """See `Backend.sessions`."""
        statement = "SELECT * FROM nb.sessions_1(nb.time_1($1))"
        return queries.sessions_of(await self._ask(statement, self._mono()))

    # --- schedules ---

    async def put_schedule(self, schedule: ScheduleRecord) -> None:
        """See `Backend.put_schedule`."""
        arguments = operations.schedule_of(schedule)
        await self._ask("SELECT nb.put_schedule_1($1, $2, $3, $4, $5, $6)", *arguments)

    async def list_schedules(self) -> list[ScheduleRecord]:
        """See `Backend.list_schedules`."""
        columns = "name, spec, owner, paused, last_tick, last_job"
        return operations.schedules_of(await self._ask(f"SELECT {columns} FROM nb.schedule"))  # noqa: S608

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """See `Backend.pause_schedule`."""
        statement = "UPDATE nb.schedule SET paused = $2 WHERE name = $1 RETURNING 1"
        return bool(await self._ask(statement, asked_text(name), paused))

    async def delete_schedule(self, name: str) -> bool:
        """See `Backend.delete_schedule`."""
        statement = "DELETE FROM nb.schedule WHERE name = $1 RETURNING 1"
        return bool(await self._ask(statement, asked_text(name)))

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        """See `Backend.fire`."""
        arguments = enqueueing.arguments_of([job])
        places = ", ".join(f"${n}" for n in range(1, 6 + len(arguments)))
        (row,) = await self._ask(
            f"SELECT * FROM nb.fire_1({places})",  # noqa: S608
            self._now(),
            asked_text(name),
            expected_last,
            tick,
            overlap,
            *arguments,
        )
        fired = operations.fired_of(row)
        if fired.job_id is not None:
            self._ring([job.queue])
        return fired


class Opened:
    """A store that is open on one event loop: its connections."""

    def __init__(self, address: Address) -> None:
        self.address: Address = address
        self.asks: Links = Links(address, asyncio.sleep)
        """For all that is not exchanged."""
        self.lends: Links = Links(address, asyncio.sleep)
        """For handlers' own transactions: one that waits for another link holds none of these."""
        self.joint: joining.Joint = joining.Joint(address, "", self.lends, self.asks)
        self.exchanges: Link = Link(address, asyncio.sleep, _PLANNING)
        self.bell: Bell = Bell(Link(address, asyncio.sleep), self.asks)
        self.floors: Floors = Floors(time.monotonic)
        self.pooled: bool = False
        self._named: dict[str, str] = {}

    def named(self, statement: str) -> str:
        """A statement with the names of this store."""
        found = self._named.get(statement)
        if found is None:
            found = self._named[statement] = named(statement, self.address)
        return found

    async def exchange(
        self,
        now: int | None,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        want: Want,
        *,
        one_by_one: bool = False,
    ) -> list[Any]:
        """The rows of `exchange_1`."""
        link = self.exchanges
        arguments = exchanging.arguments_of(
            session_id, number, settlements, want, one_by_one=one_by_one
        )
        call = _EXCHANGE_POOLED if link.seen.pooled else _EXCHANGE
        floors = self.floors.asked(link.driver)
        extra = (len(settlements) + want.total) / _A_SECOND
        return await link.rows(self.named(call), now, *arguments, *floors, extra=extra)

    async def start(self) -> None:
        """Look at the server and at the format."""
        async with self.asks.one() as link:
            standing = await migrations.open_format(link, self.address, migrations.wanted())
            self.pooled = link.seen.pooled
            await link.rows(self.named("SELECT nb.days_1()"))
        self.joint = joining.Joint(self.address, standing.identity, self.lends, self.asks)

    async def close(self) -> None:
        """Hang up."""
        await self.bell.close()
        await self.exchanges.close()
        await self.asks.close()
        await self.lends.close()
