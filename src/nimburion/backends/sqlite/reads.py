"""`SQLiteReading`: read jobs, queues, sessions, limits and statistics.

A search reads a chunk of jobs from the cheapest statement that lists them, newest enqueue first,
and keeps those that match its filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from nimburion.backends.queue_rows import LaneRow, combine_rows
from nimburion.backends.sqlite.connection.database import Database, Row
from nimburion.backends.sqlite.file import SQLiteFile
from nimburion.backends.sqlite.flows import find_flow, list_flows, make_flow_info
from nimburion.backends.sqlite.limits import find_key_uses, list_limits, read_rules
from nimburion.backends.sqlite.records import get_record, make_record
from nimburion.backends.sqlite.sessions import decode_description
from nimburion.backends.sqlite.tenants import find_turn
from nimburion.backends.sqlite.unique_keys import find_key_holder
from nimburion.core.backend import MAX_HOLDERS, Reading
from nimburion.core.diagnosis import failure_groups
from nimburion.core.diagnosis.explanations import MAX_UNMET, Facts, Unmet
from nimburion.core.diagnosis.failure_groups import FailedJob, FailureGroups
from nimburion.core.errors import JobNotFound
from nimburion.core.fairness import MAX_WAITING_COUNTED, WEIGHT_UNITS, TenantUse, TenantUses
from nimburion.core.flows import FlowInfo, FlowPage, On, SourceKind, WaitCondition, WaitSource
from nimburion.core.job import (
    FAILED_ONLY,
    FINISHED,
    NO_JOB_OPTIONS,
    PROCESSING_ONLY,
    AttemptError,
    JobOptions,
    JobRecord,
    Progress,
    State,
)
from nimburion.core.limits import LimitInfo, concerns_lane
from nimburion.core.metrics.statistics import Counters, Statistics, add_statistics, check_interval
from nimburion.core.queries import (
    COUNT_BUDGET,
    EVERY_JOB,
    SCAN_BUDGET,
    WHOLE_PAYLOAD,
    JobCounts,
    JobFilter,
    Page,
    Pause,
    QueueInfo,
    parse_cursor,
)
from nimburion.core.records import Record, RecordKind, RecordPage
from nimburion.core.session import SessionInfo, Vitals, WorkerCommand
from nimburion.core.timing.clock import MICRO, to_micros

if TYPE_CHECKING:
    from nimburion.core.runs import RunPage

_MANY_UNFINISHED = 10_000
"""Number of unfinished jobs above which a scan back from the newest job is faster than sorting."""
_MAX_CHUNK = 10_000
"""The maximum number of jobs that one statement examines."""
_NO_BUDGET = 2**53
"""Stands for no budget: more rows than a file can hold."""
_MAX_INTEGER = 2**63 - 1
"""The largest integer of SQLite, above every seq."""
_FEW_INTERVALS = 10
"""More intervals of statistics than these take long to read."""

_FAILED = JobFilter(states=FAILED_ONLY)

_COUNT_COLUMNS = (
    State.PENDING,
    State.SCHEDULED,
    State.PROCESSING,
    State.RETRYING,
    State.SUSPENDED,
    State.COMPLETED,
    State.FAILED,
    State.CANCELLED,
)

_encode = msgspec.json.Encoder().encode
_decode_seqs = msgspec.json.Decoder(list[int]).decode
_decode_options = msgspec.json.Decoder(JobOptions).decode
_decode_history = msgspec.json.Decoder(list[AttemptError]).decode
_decode_error = msgspec.json.Decoder(AttemptError).decode
_decode_dead_letters = msgspec.json.Decoder(list[tuple[str, int, int, str]]).decode
_decode_vitals = msgspec.json.Decoder(Vitals).decode
_decode_counters = msgspec.json.Decoder(Counters).decode


class SQLiteReading(Reading):
    """The operations of `Reading` for the SQLite backend."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file

    async def get_job(self, job_id: str) -> JobRecord:
        def get(db: Database) -> JobRecord:
            row = db.fetch_one("find_job", job_id)
            if row is None:
                raise JobNotFound(job_id)
            return read_jobs(db, [row[0]], payload_bytes=WHOLE_PAYLOAD)[0]

        return await self._file.read(get)

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
        payload_bytes: int = WHOLE_PAYLOAD,
        budget: int = SCAN_BUDGET,
    ) -> Page:
        def search(db: Database) -> Page:
            seqs, following, examined = find_matching(db, which, limit, after, budget)
            jobs = read_jobs(db, seqs, payload_bytes=payload_bytes if payloads else 0)
            return Page(jobs, following, examined)

        return await self._file.read(search)

    async def group_failures(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        budget: int = SCAN_BUDGET,
        since: Sequence[float] = (),
    ) -> FailureGroups:
        # Only the latest error of each group is decoded: a history may be large.

        def group(db: Database) -> FailureGroups:
            seqs = _decode_seqs(db.fetch_value("list_failed", _MAX_INTEGER, budget + 1))
            is_complete = len(seqs) <= budget
            del seqs[budget:]
            matching = seqs if which == _FAILED else filter_jobs(db, which, seqs, budget)
            rows = _decode_dead_letters(
                db.fetch_value("list_dead_letters", _encode(matching).decode())
            )
            failed = (
                FailedJob(fingerprint, finished_at / MICRO, job_id, db.get_lane(lane).name)
                for job_id, lane, finished_at, fingerprint in rows
            )
            groups = failure_groups.group_failures(failed, limit, since)
            ids = _encode([group.job_id for group in groups]).decode()
            errors = {
                job_id: _decode_error(body) for job_id, body in db.run("list_last_errors", ids)
            }
            return FailureGroups(
                groups=[failure_groups.add_error(group, errors[group.job_id]) for group in groups],
                examined=len(seqs),
                complete=is_complete,
            )

        return await self._file.read_slowly(group)

    async def explain_job(self, job_id: str) -> Facts:
        # The call reads one snapshot.

        def explain(db: Database) -> Facts:
            row = db.fetch_one("find_job", job_id)
            if row is None:
                raise JobNotFound(job_id)
            (job,) = read_jobs(db, [row[0]])
            key = job.options.unique_key
            holder = None if key is None else find_key_holder(db, job.name, key)
            pause = db.fetch_one("get_pause", job.queue, db.now)
            parked = db.fetch_one("find_parked", row[0])
            return Facts(
                now=db.now / MICRO,
                job=job,
                pause=None if pause is None else make_pause(*pause),
                limits=[
                    limit
                    for name in read_rules(db, job.name).get(job.name, ())
                    if concerns_lane(name, job.queue)
                    for limit in list_limits(db, name, 1, MAX_HOLDERS)
                ],
                keys=find_key_uses(db, row[2], row[0]),
                parked_for=None if parked is None else parked[0],
                turn=find_turn(db, row[0]),
                unmet=list_unmet(db, row[0], job.state),
                unmet_count=db.fetch_value("count_unmet", row[0], job.state is State.CANCELLED),
                key_holder=None if holder == job_id else holder,
                sessions=list_sessions(db),
            )

        return await self._file.read(explain)

    async def get_flow(self, flow_id: str) -> list[FlowInfo]:
        return await self._file.read(
            lambda db: [make_flow_info(row) for row in db.run("list_flow_tree", flow_id)]
        )

    async def read_run(
        self, job_id: str, *, limit: int = 1_000, after: str | None = None
    ) -> RunPage:
        from nimburion.backends.sqlite.runs import read_run  # most processes read none

        def read(db: Database) -> RunPage:
            row = db.fetch_one("find_job", job_id)
            if row is None:
                raise JobNotFound(job_id)
            return read_run(db, row[0], limit, after)

        return await self._file.read(read)

    async def list_flows(
        self, *, running: bool = False, limit: int = 100, after: str | None = None
    ) -> FlowPage:
        before = parse_position(after)
        return await self._file.read(lambda db: list_flows(db, before, limit, running=running))

    async def count_jobs(
        self, queue: str | None = None, *, budget: int | None = COUNT_BUDGET
    ) -> JobCounts:
        most = share_budget(budget)
        read = self._file.read_slowly if budget is None else self._file.read
        row = await read(lambda db: db.fetch_one("count_by_state", queue, db.now, most))
        assert row is not None
        *numbers, is_complete = row
        counts = JobCounts(zip(_COUNT_COLUMNS, numbers, strict=True))
        counts.is_complete = bool(is_complete)
        return counts

    async def list_queues(self, *, budget: int | None = COUNT_BUDGET) -> list[QueueInfo]:
        most = share_budget(budget)

        def list_queues(db: Database) -> list[QueueInfo]:
            return combine_rows(
                make_lane_row(db, row) for row in db.run("list_queues", db.now, most)
            )

        read = self._file.read_slowly if budget is None else self._file.read
        return await read(list_queues)

    async def list_sessions(self) -> list[SessionInfo]:
        return await self._file.read(list_sessions)

    async def list_limits(
        self, *, name: str | None = None, fullest: int = 5, holders: int = MAX_HOLDERS
    ) -> list[LimitInfo]:
        most = max(0, min(holders, MAX_HOLDERS))
        return await self._file.read(lambda db: list_limits(db, name, fullest, most))

    async def list_tenants(self, limit: int = 100) -> TenantUses:
        def list_tenants(db: Database) -> TenantUses:
            uses = [
                TenantUse(
                    tenant=tenant,
                    queue=queue,
                    priority=-rank,
                    weight=units / WEIGHT_UNITS,
                    waiting=waiting,
                    running=running,
                    ahead=max(0, ahead) / MICRO,
                )
                for queue, rank, tenant, units, ahead, waiting, running in db.run(
                    "list_tenants", MAX_WAITING_COUNTED, limit
                )
            ]
            weights = db.run("list_tenant_weights", limit)
            return TenantUses(uses, {tenant: units / WEIGHT_UNITS for tenant, units in weights})

        return await self._file.read_slowly(list_tenants)

    async def list_statistics(
        self,
        since: float,
        until: float,
        step: int,
        *,
        queue: str | None = None,
        name: str | None = None,
    ) -> list[Statistics]:
        check_interval(since, until, step)

        def list_statistics(db: Database) -> list[Statistics]:
            rows = db.run("list_statistics", step, since, until, queue, name).fetchall()
            return add_statistics(
                Statistics(
                    step=step, start=start, queue=queue, name=name, counters=_decode_counters(body)
                )
                for start, queue, name, body in rows
            )

        read = self._file.read_slowly if until - since > _FEW_INTERVALS * step else self._file.read
        return await read(list_statistics)

    async def get_record(self, kind: RecordKind, record_id: str) -> Record | None:
        return await self._file.read(lambda db: get_record(db, kind, record_id))

    async def list_records(
        self,
        kind: RecordKind,
        *,
        limit: int = 100,
        after: str | None = None,
        by_due: bool = False,
    ) -> RecordPage:
        def list_records(db: Database) -> RecordPage:
            now = db.now / MICRO
            if by_due:
                rows = db.run("list_due_records", kind, limit).fetchall()
                return RecordPage([make_record(kind, row) for row in rows], now)
            rows = db.run("list_records", kind, parse_position(after), limit + 1).fetchall()
            found = [make_record(kind, row) for row in rows[:limit]]
            return RecordPage(
                found, now, str(rows[limit - 1][0]) if len(rows) > limit > 0 else None
            )

        return await self._file.read(list_records)


def list_unmet(db: Database, seq: int, state: State) -> list[Unmet]:
    """Return open conditions of a suspended job, or impossible ones of a cancelled job, each with
    its source.
    """
    unmet = []
    values = (seq, state is State.CANCELLED, MAX_UNMET)
    for kind, source_id, awaited in db.run("list_unmet", *values).fetchall():
        source = WaitSource(SourceKind(kind), source_id)
        is_job = source.kind is SourceKind.JOB
        row = db.fetch_one("find_job", source_id) if is_job else None
        unmet.append(
            Unmet(
                condition=WaitCondition(source, On(awaited or On.SUCCESS)),
                job=None if row is None else read_jobs(db, [row[0]])[0],
                flow=find_flow(db, source_id) if source.kind is SourceKind.FLOW else None,
            )
        )
    return unmet


def find_matching(
    db: Database, which: JobFilter, limit: int, after: str | None, budget: int
) -> tuple[list[int], str | None, int]:
    """Examine at most `budget` jobs. Return up to `limit` that match, newest first, the cursor of
    the next page (None at the end), and how many jobs were examined.

    Jobs are examined in chunks that grow, because most searches end early.
    """
    before = parse_position(after)
    source, values, chunk = choose_source(db, which, limit + 1, budget)
    seqs: list[int] = []
    examined = 0
    while True:
        size = min(chunk, budget - examined)
        window = _decode_seqs(db.fetch_value(source, before, size + 1, *values))
        has_more = len(window) > size
        del window[size:]
        wanted = limit - len(seqs) + 1
        found = filter_jobs(db, which, window, wanted)
        if len(found) == wanted:  # one more than fits on the page
            window = window[: window.index(found.pop())]
            has_more = has_next = True
        else:
            has_next = examined + len(window) == budget
        seqs += found
        examined += len(window)
        before = window[-1] if window else before
        if not has_more or has_next:
            return seqs, str(before) if has_more and examined else None, examined
        chunk = min(2 * chunk, _MAX_CHUNK)


def parse_position(after: str | None) -> int:
    """Return the number before which a page begins; above every number for the first page."""
    number = parse_cursor(after)
    return _MAX_INTEGER if number is None else number


def choose_source(
    db: Database, which: JobFilter, chunk: int, budget: int
) -> tuple[str, list[object], int]:
    """Return the statement that lists the jobs to examine, its further inputs and first chunk.

    The statement is the one that lists the fewest jobs. `chunk` is the size of chunk to begin with.
    """
    if which.ids is not None:
        return "list_by_ids", [_encode(sorted(set(which.ids))).decode()], chunk
    if which.fingerprint is not None or (
        which.states is not None and which.states <= {State.FAILED}
    ):
        return "list_failed", [], chunk
    if which.states == PROCESSING_ONLY:
        return "list_leased", [], chunk
    if which.states is not None and not which.states & FINISHED:
        few = min(_MANY_UNFINISHED, budget)
        if not db.fetch_value("has_many_unfinished", few):
            return "list_unfinished", [], few
    return "list_newest", [], chunk


def filter_jobs(db: Database, which: JobFilter, seqs: list[int], limit: int) -> list[int]:
    """Return the first `limit` of these jobs that match the filter, in the same order."""
    if not seqs or not _can_match(which):
        return []
    listed = db.fetch_value(
        "filter_jobs",
        _encode(seqs).decode(),
        limit,
        db.now,
        None if which.states is None else _encode(sorted(which.states)).decode(),
        None if which.ids is None else _encode(which.ids).decode(),
        which.queue,
        which.name,
        which.reason,
        to_micros_or_none(which.created_from),
        to_micros_or_none(which.created_to),
        to_micros_or_none(which.finished_from),
        to_micros_or_none(which.finished_to),
        which.tenant,
        which.correlation_id,
        which.fingerprint,
        which.min_failures,
        which.tag,
        which.flow,
    )
    return _decode_seqs(listed)


def _can_match(which: JobFilter) -> bool:
    """Return whether SQLite can hold the texts of a filter. It holds no lone surrogates."""
    texts = (
        which.queue,
        which.name,
        which.reason,
        which.tenant,
        which.correlation_id,
        which.fingerprint,
        which.tag,
        which.flow,
    )
    try:
        "".join(text for text in texts if text is not None).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_jobs(db: Database, seqs: list[int], *, payload_bytes: int = 0) -> list[JobRecord]:
    """Return the records of these jobs, newest first, with the first bytes of their payloads."""
    rows = db.run("get_records", _encode(seqs).decode(), payload_bytes, db.now)
    return [make_job(db, row) for row in rows.fetchall()]


def make_job(db: Database, row: Row) -> JobRecord:
    """Convert a row of the statement `get_records` to a `JobRecord`."""
    (
        job_id, lane, priority, due, created_at, state, failures, lost, started_at, finished_at,
        reason, options, history, fraction, message, session, leased_at,
        cancel_requested, ended_by, host, result, payload,
    ) = row  # fmt: skip
    lane_names = db.get_lane(lane)
    return JobRecord(
        id=job_id,
        name=lane_names.name,
        queue=lane_names.queue,
        state=State(state),
        priority=priority,
        payload=payload,
        failures=failures,
        lost=lost,
        due=due / MICRO,
        created_at=created_at / MICRO,
        started_at=to_seconds(started_at if leased_at is None else leased_at),
        finished_at=to_seconds(finished_at),
        reason=reason,
        history=_decode_history(history),
        progress=None if fraction is None else Progress(fraction, message),
        result=result,
        cancel_requested=bool(cancel_requested),
        session=session,
        ended_by=ended_by,
        host=host or "",
        options=NO_JOB_OPTIONS if options is None else _decode_options(options),
    )


def to_seconds(micros: int | None) -> float | None:
    """Convert microseconds to seconds; None stays None."""
    return None if micros is None else micros / MICRO


def share_budget(budget: int | None) -> int:
    """Return how many jobs are counted in each place where jobs wait: due ones without and with a
    tenant, parked ones, and scheduled ones.
    """
    return _NO_BUDGET if budget is None else max(1, budget // 4)


def to_micros_or_none(seconds: float | None) -> int | None:
    """Convert seconds to microseconds; None stays None."""
    return None if seconds is None else to_micros(seconds)


def make_lane_row(db: Database, row: Row) -> LaneRow:
    """Convert a row of the statement `list_queues`: a lane, or a paused queue without a name."""
    queue, name, size, later, running, oldest, size_complete, scheduled_complete, *pause = row
    return LaneRow(
        queue=queue,
        name=name,
        size=size,
        scheduled=later,
        processing=running,
        age=None if oldest is None else max(0, db.now - oldest) / MICRO,
        paused=name is None,
        pause=make_pause(*pause) if name is None else None,
        size_complete=bool(size_complete),
        scheduled_complete=bool(scheduled_complete),
    )


def make_pause(by: str, reason: str, since: int, until: int | None) -> Pause:
    """Convert the columns of `paused_queue` to a `Pause`."""
    return Pause(by=by, reason=reason, since=since / MICRO, until=to_seconds(until))


def list_sessions(db: Database) -> list[SessionInfo]:
    """Return the sessions that have not ended."""
    return [make_session_info(db, *row) for row in db.run("list_sessions")]


def make_session_info(db: Database, session_id: str, info: str, *fields: Any) -> SessionInfo:
    """Convert a row of the statement `list_sessions` to a `SessionInfo`.

    A session from an earlier boot of the host has expired: `expires_in` is then minus its ttl.
    """
    ttl, expires, boot, opened_at, left_at, running, vitals, command = fields
    description = decode_description(info)
    return SessionInfo(
        id=session_id,
        host=description.host,
        pid=description.pid,
        owner=description.owner,
        queues=description.queues,
        names=description.names,
        opened_at=opened_at / MICRO,
        expires_in=expires - db.boot_time if boot == db.boot_id else -ttl,
        left=left_at is not None,
        running=running,
        vitals=None if vitals is None else _decode_vitals(vitals),
        command=None if command is None else WorkerCommand(command),
    )
