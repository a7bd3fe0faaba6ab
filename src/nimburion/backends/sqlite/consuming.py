"""`SQLiteConsuming`: the sessions of workers, their exchanges, and the rescue of lost jobs.

An exchange applies settlements, promotes due jobs and reserves jobs, in one transaction.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from nimburion.backends.planning.rescue import OrphanedLease, decide_rescue, note_rescued
from nimburion.backends.sqlite.connection.database import Database, UsedFeatures
from nimburion.backends.sqlite.file import SQLiteFile
from nimburion.backends.sqlite.flows import continue_flows
from nimburion.backends.sqlite.limits import (
    LaneLimits,
    Rules,
    decode_lane_limits,
    follow_clock,
    has_rate,
    read_keyed_rules,
    read_lane_limits,
    set_limits,
)
from nimburion.backends.sqlite.notifications import SocketListener
from nimburion.backends.sqlite.parked_jobs import exclude_changing, unpark_changed, unpark_open
from nimburion.backends.sqlite.reserve import (
    MANY_LANES,
    Lanes,
    LeaseBatch,
    count_fitting_jobs,
    exclude_empty,
    exclude_full,
    find_next_opening,
    find_unpaused_lanes,
    find_waiting_lanes,
    notify_opened,
)
from nimburion.backends.sqlite.sessions import (
    SessionDescription,
    SessionRow,
    decode_description,
    find_session,
)
from nimburion.backends.sqlite.settle import LeaseRow, apply_effect, release_lease, settle_batch
from nimburion.backends.sqlite.tenants import set_tenant_weight
from nimburion.backends.waiters import EVERY_QUEUE, make_session_name
from nimburion.core.backend import Consuming
from nimburion.core.errors import OutOfOrder, SessionLost
from nimburion.core.exchange import (
    DELIVERY_OVERHEAD,
    DUE_WINDOW,
    MAX_PROMOTED,
    Lane,
    Reply,
    ReserveRequest,
)
from nimburion.core.job import NO_JOB_OPTIONS, JobOptions
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.limits import get_limited_job
from nimburion.core.maintenance import Promoted, Rescued
from nimburion.core.metrics.statistics import Statistics
from nimburion.core.session import ConcurrencyLimit, HeartbeatReply, Session, Vitals, WorkerCommand
from nimburion.core.settlement import SETTLED_BY_LETTER, Recorded, Settled, Settlement
from nimburion.core.timing.clock import MICRO

if TYPE_CHECKING:
    from nimburion.core.runs import RunPage

_encode = msgspec.json.Encoder().encode
_decode_names = msgspec.json.Decoder(frozenset[str]).decode
_decode_seqs = msgspec.json.Decoder(list[int]).decode
_decode_options = msgspec.json.Decoder(JobOptions).decode


class SQLiteConsuming(Consuming):
    """The operations of `Consuming` for the SQLite backend."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file

    async def open_session(self, session: Session) -> None:

        def open_session(db: Database) -> None:
            if find_session(db, session.id) is not None:
                renew_session(db, session.id)
                return
            info = SessionDescription(
                session.host, session.pid, session.owner, session.queues, session.names
            )
            db.run(
                "insert_session", session.id, _encode(info).decode(), session.ttl,
                db.boot_time + session.ttl, db.boot_id, db.now,
            )  # fmt: skip
            changed = [set_limits(db, name, session.limits.get(name, {})) for name in session.names]
            for tenant, weight in session.weights.items():
                set_tenant_weight(db, tenant, weight)
            if any(changed):
                db.notify([EVERY_QUEUE])  # others may wait for a limit that has changed

        await self._file.write(open_session, durable=False)
        self._file.listen()

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        result = await self._file.write(
            partial(
                run_exchange,
                session_id=session_id,
                number=number,
                settlements=settlements,
                request=request,
            ),
            durable=False,
        )
        reply = make_reply(result)
        listener, notifier = self._file.listener, self._file.notifier
        if listener is not None and listener.last_wait.has_ended and notifier is not None:
            queues, passed = listener.last_wait.find_next(request, reply)
            if queues:
                notifier.notify(dict.fromkeys(queues, 1), passed=passed)
        return reply

    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:

        def renew(db: Database) -> HeartbeatReply:
            session = renew_session(db, session_id, vitals)
            limits = read_lane_limits(db)
            names = set(decode_description(session.description).names) if limits else ()
            fleet_size, next_expiry = db.fetch_one(  # type: ignore[misc]
                "read_fleet", db.boot_time, db.boot_id, session.ttl / 2
            )
            return HeartbeatReply(
                cancel=[
                    Lease(job_id, Token(fence, nonce), seq)
                    for seq, job_id, fence, nonce in db.run("list_cancel_requests", session.session)
                ],
                paused=[queue for (queue,) in db.run("list_paused_queues", db.now)],
                limits={
                    name: ConcurrencyLimit(concurrency, use.in_use)
                    for name, own in limits.items()
                    for (key, concurrency, _), use in own
                    if name in names
                    and concurrency is not None
                    and get_limited_job(key[0]) is not None
                },
                command=None if session.command is None else WorkerCommand(session.command),
                fleet_size=fleet_size,
                next_expiry=next_expiry,
            )

        return await self._file.write(renew, durable=False)

    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        values = [
            (row.step, row.start, row.queue, row.name, source, _encode(row.counters).decode())
            for row in rows
        ]

        def put(db: Database) -> None:
            db.connection.executemany(db.statements["put_statistics"], values)

        if values:
            await self._file.write(put, durable=False)

    async def release(
        self, session_id: str, leases: Sequence[Lease] = (), nonce: bytes | None = None
    ) -> None:
        wanted = {(lease.ref, lease.token.fence, lease.token.nonce) for lease in leases}

        def release(db: Database) -> None:
            session = find_session(db, session_id)
            if session is None or not session.is_alive:
                return
            for held in read_leases(db, session.session):
                if held.nonce == nonce or (held.seq, held.fence, held.nonce) in wanted:
                    release_lease(db, held, settles=True, unstarted=True)

        await self._file.write(release, durable=False)

    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        still_running = {(lease.ref, lease.token.fence, lease.token.nonce) for lease in running}

        def close(db: Database) -> None:
            session = find_session(db, session_id)
            if session is None or session.ended_at is not None:
                return
            left = False
            for held in read_leases(db, session.session):
                if (held.seq, held.fence, held.nonce) in still_running:
                    left = True
                else:
                    release_lease(db, held, settles=False, unstarted=False)
            db.run("mark_session_left" if left else "end_session", session.session, db.now)

        await self._file.write(close, durable=False)

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:

        def rescue(db: Database) -> Rescued:
            expired = db.run("expire_sessions", db.now, db.boot_time, db.boot_id).fetchall()
            # A worker that lives learns that its session has ended; the socket of a dead one is
            # removed.
            db.notify(make_session_name(session_id) for (session_id,) in expired)
            rows = db.run("list_orphaned_leases", limit + 1).fetchall()
            rescued = Rescued([], [], [])
            for *fields, job_id, failures, lost, session_id, host, left, several in rows[:limit]:
                lease = LeaseRow(*fields)
                orphan = OrphanedLease(
                    failures=failures,
                    lost=lost,
                    started_at=lease.started_at,
                    cancel_requested=bool(lease.cancel_requested),
                    session=session_id,
                    host=host,
                    was_left=bool(left),
                    held_several=bool(several),
                    needs_cleanup=bool(lease.needs_cleanup),
                )
                effect = decide_rescue(orphan, max_lost, db.now)
                apply_effect(db, lease, effect)
                note_rescued(rescued, job_id, effect)
            more = not continue_flows(db) or len(rows) > limit
            return msgspec.structs.replace(rescued, more=more)

        return await self._file.write(rescue, durable=False)

    async def promote(self, limit: int) -> Promoted:

        def promote_and_notify(db: Database) -> Promoted:
            continue_flows(db)
            promoted = promote(db, limit)
            db.notify_jobs(promoted)
            due = db.fetch_value("get_next_due")
            return Promoted(promoted.total(), None if due is None else due / MICRO)

        return await self._file.write(promote_and_notify, durable=False)

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        # Notifications of other processes end the wait too.
        await self._get_listener().wait(queues, timeout, self._file.clock.sleep)

    async def wait_for_session(self, session_id: str) -> None:
        await self._get_listener().wait_for_session(session_id)

    def _get_listener(self) -> SocketListener:
        listener = self._file.listener
        if listener is None or self._file.pid != os.getpid():
            raise self._file.make_not_open_error()
        return listener


def renew_session(db: Database, session_id: str, vitals: Vitals | None = None) -> SessionRow:
    """Let a session expire later, and return it; raise `SessionLost` if it is not alive."""
    session = find_session(db, session_id)
    if session is None or not session.is_alive:
        raise SessionLost(session_id)
    reported = None if vitals is None else _encode(vitals).decode()
    db.run("renew_session", session.session, db.boot_time + session.ttl, db.boot_id, reported)
    return session


def read_leases(db: Database, session: int) -> list[LeaseRow]:
    """Read all leases of a session, before transitions change that table."""
    return [LeaseRow(*row) for row in db.run("list_leases", session)]


class ReservedJob(msgspec.Struct, array_like=True, gc=False):
    """A row of the statement `get_deliveries`: a job without its payload."""

    seq: int
    id: str
    lane: int
    priority: int
    failures: int
    lost: int
    due: int
    created_at: int
    fence: int
    size: int
    options: str | None


ReservedRow = tuple[ReservedJob, bytes, Lane]
"""A job, its payload and its lane."""


_decode_reserved_jobs = msgspec.json.Decoder(list[ReservedJob]).decode


_NO_RUNS: Mapping[int, RunPage] = MappingProxyType({})


class SessionHead(NamedTuple):
    """The session, limits and pauses, read in one statement before an exchange."""

    session: int
    last_exchange_number: int
    results: str
    left_at: int | None
    ended_at: int | None
    paused: str
    limits: str
    next_due: int | None


class ExchangeResult(NamedTuple):
    """The rows that an exchange read. `make_reply` turns them into a `Reply` after the commit."""

    results: list[Settled]
    reserved: list[ReservedRow]
    nonce: bytes
    waiting: list[Lane]
    next_due: int | None
    now: int
    runs: Mapping[int, RunPage] = _NO_RUNS
    """What is stored about the durable runs among the jobs, by seq, if that is little."""


def run_exchange(
    db: Database,
    session_id: str,
    number: int,
    settlements: Sequence[Settlement],
    request: ReserveRequest,
) -> ExchangeResult:
    """Settle, promote due jobs and reserve, in one transaction."""
    head = read_session_head(db, session_id)
    if number == head.last_exchange_number and number > 0:
        return repeat_result(db, head, request)
    if number != head.last_exchange_number + 1:
        raise OutOfOrder(
            f"exchange {number} after {head.last_exchange_number} of session {session_id}"
        )
    used = db.used
    limits_at_start = decode_lane_limits(head.limits) if used.limits else {}
    if used.keys or (used.limits and has_rate(limits_at_start)):
        follow_clock(db)
    # Apply the settlements in order.
    results = settle_batch(db, head.session, settlements) if settlements else []
    # Promote due jobs, resume durable runs, return parked jobs to their lanes.
    left_changes = db.used.flows and not continue_flows(db)
    promoted, next_due = promote_due(db, head, settlements)
    rules = begin_admission(db) if used.keys else {}
    # Choose the lanes to serve.
    limits = read_lane_limits(db) if used.limits else {}
    unpaused = find_unpaused_lanes(db, request, _decode_names(head.paused))
    lanes = exclude_full(limits, unpaused, db.now) if limits else unpaused
    has_turns = bool(lanes) and bool(db.fetch_value("has_turns"))
    if len(lanes) > MANY_LANES and not has_turns:
        lanes = exclude_empty(db, lanes)
    steady = exclude_changing(db, lanes) if used.keys else lanes
    # Reserve their jobs.
    rows = []
    if request.total > 0 and steady:
        batch = LeaseBatch(db, request, steady, limits, rules, has_turns)
        rows = lease_jobs(db, head.session, number, request, batch)
    runs = read_resumed_runs(db, rows) if used.steps else _NO_RUNS
    # Notify others of the jobs that are left, and save the results for a repeat.
    if promoted:
        promoted -= Counter(lane.queue for _, _, lane in rows)
        db.notify_jobs(promoted)
    if used.limits:
        limits = read_lane_limits(db)
        notify_opened(db, limits_at_start, limits)
    letters = "".join([result[0] for result in results])
    db.run("save_exchange", head.session, number, letters)
    # Tell the worker what waits, and when the next job is due.
    waiting = find_waiting_lanes(db, exclude_full(limits, lanes, db.now) if limits else lanes)
    next_due = report_due(db, head, request, next_due)
    if used.limits or used.keys:
        next_due = find_next_time(db, unpaused, limits, next_due)
    if left_changes:
        next_due = db.now
    return ExchangeResult(results, rows, request.nonce, waiting, next_due, db.now, runs)


def read_resumed_runs(db: Database, rows: Sequence[ReservedRow]) -> Mapping[int, RunPage]:
    """Return the durable runs among jobs that had a lease before, by seq, if they are small."""
    seqs = [job.seq for job, _, _ in rows if job.fence]
    if not seqs:
        return _NO_RUNS
    from nimburion.backends.sqlite.runs import read_small_runs  # most workers resume no run

    return read_small_runs(db, seqs)


def repeat_result(db: Database, head: SessionHead, request: ReserveRequest) -> ExchangeResult:
    """Build the result of the last exchange again. Jobs that no longer fit are requeued."""
    listed, nonce = db.fetch_one(
        "get_repeated_leases", head.session, head.last_exchange_number
    ) or (
        "[]",
        None,
    )
    seqs = _decode_seqs(listed)
    count = count_fitting_jobs(db, seqs, request.max_bytes)
    for seq in seqs[count:]:
        lease_row = db.fetch_one("get_lease", head.session, seq)
        assert lease_row is not None, "it was read just now, in this transaction"
        release_lease(db, LeaseRow(*lease_row), settles=False, unstarted=True)
    limits = read_lane_limits(db)
    lanes = find_unpaused_lanes(db, request, _decode_names(head.paused))
    # A released job may be due later again: the clock may have been set back.
    due = db.fetch_value("get_next_due") if seqs[count:] else head.next_due
    next_due = report_due(db, head, request, due)
    return ExchangeResult(
        [SETTLED_BY_LETTER[letter] for letter in head.results],
        read_reserved_jobs(db, seqs[:count])[0],
        nonce or b"",
        find_waiting_lanes(db, exclude_full(limits, lanes, db.now)),
        find_next_time(db, lanes, limits, next_due),
        db.now,
    )


def read_session_head(db: Database, session_id: str) -> SessionHead:
    """Read the session with limits and pauses, and set `db.used`; raise `SessionLost` if the
    session is not alive.
    """
    row = db.fetch_one("get_exchange_head", session_id, db.now)
    if row is None:
        raise SessionLost(session_id)
    head = SessionHead(*row[:8])
    db.used = UsedFeatures(head.limits != "[]", *row[8:])
    if head.left_at is not None or head.ended_at is not None:
        raise SessionLost(session_id)
    return head


def begin_admission(db: Database) -> Rules:
    """Return parked jobs whose rate allows one now, or whose limit changed, to their lanes; read
    the limits for which jobs may be parked.
    """
    unpark_open(db)
    unpark_changed(db)
    return read_keyed_rules(db)


def promote_due(
    db: Database, head: SessionHead, settlements: Sequence[Settlement]
) -> tuple[Counter[str], int | None]:
    """Promote the jobs that are due. Return their number by queue, and the earliest due time of the
    remaining, or None. A settlement may change it, unless it is a step that is stored.
    """
    may_differ = bool(settlements) and set(map(type, settlements)) != {Recorded}
    due = db.fetch_value("get_next_due") if may_differ else head.next_due
    if due is None or due > db.now:
        return Counter(), due
    return promote(db, MAX_PROMOTED), db.fetch_value("get_next_due")


def promote(db: Database, limit: int) -> Counter[str]:
    """Move up to `limit` due jobs into their lanes, earliest first; return the number by queue."""
    lanes = db.run("copy_due_to_ready", db.now, limit).fetchall()
    db.run("delete_promoted", db.now, limit)
    return Counter(db.get_lane(lane).queue for (lane,) in lanes)


def report_due(
    db: Database, head: SessionHead, request: ReserveRequest, due: int | None
) -> int | None:
    """Return the earliest due time, and note that it is reported to this session. None if another
    session looks for jobs by then.
    """
    if due is None or request.total <= 0 or due - db.now > DUE_WINDOW * MICRO:
        return due
    last_due, session = db.fetch_one("read_reported_due") or (None, None)
    if last_due is not None and db.now < last_due <= due and session != head.session:
        return None
    if (last_due, session) != (due, head.session):
        db.run("save_reported_due", due, head.session)
    return due


def lease_jobs(
    db: Database, session: int, number: int, request: ReserveRequest, batch: LeaseBatch
) -> list[ReservedRow]:
    """Lease the first jobs of the merge that fit into one reply; return them in rank order.

    Payloads are read before their sizes are known, because they rarely exceed `max_bytes`. Jobs
    that do not fit stay in their lanes. After that, exchanges read the sizes first
    (`Database.reads_sizes_first`) until everything fits again.
    """
    batch.choose()
    if db.reads_sizes_first and batch.seqs:
        count = count_fitting_jobs(db, batch.seqs, request.max_bytes)
        db.reads_sizes_first = count < len(batch.seqs)
        batch.keep(count)
    rows, size = read_reserved_jobs(db, batch.seqs)
    if size + DELIVERY_OVERHEAD * len(rows) > request.max_bytes and len(rows) > 1:
        db.reads_sizes_first = True
        count = count_fitting_jobs(db, batch.seqs, request.max_bytes)
        batch.keep(count)
        del rows[count:]
    batch.save(session, number)
    return rows


def read_reserved_jobs(db: Database, seqs: list[int]) -> tuple[list[ReservedRow], int]:
    """Return the jobs with their payloads, in the order of `seqs`, and the size in bytes of all
    their payloads and options.
    """
    if not seqs:
        return [], 0
    try:
        listed, payloads, options_size = db.fetch_one(  # type: ignore[misc]
            "get_deliveries", _encode(seqs).decode()
        )
    except sqlite3.DataError:  # all payloads together are too large for one value of SQLite
        if len(seqs) == 1:
            raise
        half = len(seqs) // 2
        (first, first_size), (second, second_size) = (
            read_reserved_jobs(db, part) for part in (seqs[:half], seqs[half:])
        )
        return first + second, first_size + second_size
    found, at = {}, 0
    lanes: dict[int, Lane] = {}
    for job in _decode_reserved_jobs(listed):
        lane = lanes.get(job.lane)
        if lane is None:
            lane = lanes[job.lane] = db.get_lane(job.lane)
        end = at + job.size
        found[job.seq] = (job, payloads[at:end], lane)
        at = end
    return [found[seq] for seq in seqs], at + options_size


def find_next_time(
    db: Database, lanes: Lanes, limits: LaneLimits, next_due: int | None
) -> int | None:
    """Return `next_due`, or when a rate limit allows a job of these lanes, if that is earlier."""
    times = [
        next_due,
        find_next_opening(db, limits, lanes) if limits else None,
        db.fetch_value("get_next_key_opening", db.now) if db.used.keys else None,
    ]
    return min((time for time in times if time is not None), default=None)


def make_reply(result: ExchangeResult) -> Reply:
    """Convert the result of an exchange to a `Reply`."""
    nonce, runs = result.nonce, result.runs
    # Members of a flow have the same options.
    known: dict[str | None, JobOptions] = {None: NO_JOB_OPTIONS}
    deliveries = [
        Delivery(
            Lease(job.id, Token(job.fence + 1, nonce), job.seq),
            lane.name,
            lane.queue,
            payload,
            job.priority,
            job.failures,
            job.lost,
            job.due / MICRO,
            job.created_at / MICRO,
            known.get(job.options)
            or known.setdefault(job.options, _decode_options(job.options or "{}")),
            runs.get(job.seq) if runs else None,
        )
        for job, payload, lane in result.reserved
    ]
    next_due = None if result.next_due is None else result.next_due / MICRO
    return Reply(result.results, deliveries, result.waiting, next_due, result.now / MICRO)
