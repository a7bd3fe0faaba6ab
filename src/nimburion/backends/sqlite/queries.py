"""Read jobs, counts, queues and sessions.

A job filter selects the cheapest statement that can answer it. Jobs are listed newest enqueue
first.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nimburion.backends.queue_rows import LaneRow, combine_rows
from nimburion.backends.sqlite.connection.database import MICRO, Database, Row
from nimburion.backends.sqlite.sessions import decode_description
from nimburion.core.errors import JobNotFound
from nimburion.core.job import (
    FINISHED,
    NO_JOB_OPTIONS,
    AttemptError,
    JobOptions,
    JobRecord,
    Progress,
    State,
)
from nimburion.core.queries import JobFilter, Page, QueueInfo, parse_cursor
from nimburion.core.session import SessionInfo

_MANY_UNFINISHED = 10_000
"""Number of unfinished jobs from which a scan back from the newest job is faster than sorting."""

_encode = msgspec.json.Encoder().encode
_decode_seqs = msgspec.json.Decoder(list[int]).decode


def find_matching(
    db: Database, which: JobFilter, limit: int, after: str | None
) -> tuple[list[int], str | None]:
    """Return the seqs of up to `limit` jobs and the cursor of the next page, or None at the end."""
    name, values = choose_statement(db, which, limit + 1, after)
    seqs = _decode_seqs(db.fetch_value(name, *values))
    if len(seqs) <= limit:
        return seqs, None
    page = seqs[:limit]
    return page, str(page[-1]) if page else after


def choose_statement(
    db: Database, which: JobFilter, limit: int, after: str | None
) -> tuple[str, list[object]]:
    """Return the name of the statement to run, and its parameters."""
    states = None if which.states is None else _encode(sorted(which.states)).decode()
    values: list[object] = [
        states, which.queue, which.name, which.reason, parse_cursor(after), limit, db.now
    ]  # fmt: skip
    if which.ids is not None:
        return "list_ids", [*values, _encode(sorted(set(which.ids))).decode()]
    if which.states is not None and which.states <= {State.FAILED}:
        return "list_failed", values[:-1]
    unfinished = which.states is not None and not which.states & FINISHED
    if unfinished and not db.fetch_value("has_many_unfinished", _MANY_UNFINISHED):
        return "list_unfinished", values
    return "list_newest", values


_decode_options = msgspec.json.Decoder(JobOptions).decode
_decode_history = msgspec.json.Decoder(list[AttemptError]).decode

_COUNT_COLUMNS = (
    State.PENDING,
    State.SCHEDULED,
    State.PROCESSING,
    State.RETRYING,
    State.COMPLETED,
    State.FAILED,
    State.CANCELLED,
)


def get_job(db: Database, job_id: str) -> JobRecord:
    """See `Backend.get`."""
    row = db.fetch_one("find_job", job_id)
    if row is None:
        raise JobNotFound(job_id)
    return read_records(db, [row[0]], payloads=True)[0]


def list_jobs(
    db: Database, which: JobFilter, limit: int, after: str | None, *, payloads: bool
) -> Page:
    """See `Backend.list_jobs`."""
    seqs, following = find_matching(db, which, limit, after)
    return Page(read_records(db, seqs, payloads=payloads), following)


def read_records(db: Database, seqs: list[int], *, payloads: bool) -> list[JobRecord]:
    """Return the records of these jobs, newest first; payloads only if `payloads` is true."""
    rows = db.run("get_records", _encode(seqs).decode(), payloads, db.now)
    return [make_record(db, row) for row in rows.fetchall()]


def make_record(db: Database, row: Row) -> JobRecord:
    """Convert a row of the statement `get_records` to a `JobRecord`."""
    (
        job_id, lane, priority, due, created_at, state, failures, lost, started_at, finished_at,
        reason, options, history, fraction, message, session, at, cancel, result, payload,
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
        started_at=to_seconds(started_at if at is None else at),
        finished_at=to_seconds(finished_at),
        reason=reason,
        history=_decode_history(history),
        progress=None if fraction is None else Progress(fraction, message),
        result=result,
        cancel_requested=bool(cancel),
        session=session,
        options=NO_JOB_OPTIONS if options is None else _decode_options(options),
    )


def to_seconds(micros: int | None) -> float | None:
    """Convert microseconds to seconds; None stays None."""
    return None if micros is None else micros / MICRO


def count_by_state(db: Database, queue: str | None) -> dict[State, int]:
    """See `Backend.counts`."""
    row: Row = db.run("count_by_state", queue, db.now).fetchone()
    return dict(zip(_COUNT_COLUMNS, row, strict=True))


def list_queues(db: Database) -> list[QueueInfo]:
    """See `Backend.queues`."""
    return combine_rows(
        LaneRow(
            queue=queue,
            name=name,
            size=size,
            scheduled=later,
            processing=running,
            age=None if oldest is None else max(0, db.now - oldest) / MICRO,
            paused=bool(paused),
        )
        for queue, name, size, later, running, oldest, paused in db.run("list_queues", db.now)
    )


def list_sessions(db: Database) -> list[SessionInfo]:
    """See `Backend.sessions`."""
    return [make_session_info(db, *row) for row in db.run("list_sessions")]


def make_session_info(db: Database, job_id: str, info: str, *fields: Any) -> SessionInfo:
    """Convert a row of the statement `sessions` to a `SessionInfo`.

    A session from an earlier boot of the host has expired: `expires_in` is then minus its ttl.
    """
    ttl, expires, boot, opened_at, left_at, running = fields
    description = decode_description(info)
    return SessionInfo(
        id=job_id,
        host=description.host,
        pid=description.pid,
        owner=description.owner,
        queues=description.queues,
        names=description.names,
        opened_at=opened_at / MICRO,
        expires_in=expires - db.boot_time if boot == db.boot_id else -ttl,
        left=left_at is not None,
        running=running,
    )
