"""Reading: records, pages, counts, queues, sessions. Runs on the reader's connection."""

from __future__ import annotations

from typing import Any

import msgspec

from nimburion.backends.queue_rows import LaneRow, combine_rows
from nimburion.backends.sqlite.database import MICRO, Database, Row
from nimburion.backends.sqlite.filtering import matching
from nimburion.backends.sqlite.sessions import info_of
from nimburion.core.errors import JobNotFound
from nimburion.core.job import NO_OPTIONS, AttemptError, JobRecord, Options, Progress, State
from nimburion.core.reading import JobFilter, Page, QueueInfo
from nimburion.core.session import SessionInfo

_encode = msgspec.json.Encoder().encode
_options = msgspec.json.Decoder(Options).decode
_history = msgspec.json.Decoder(list[AttemptError]).decode

_COUNTED = (
    State.PENDING,
    State.SCHEDULED,
    State.PROCESSING,
    State.RETRYING,
    State.COMPLETED,
    State.FAILED,
    State.CANCELLED,
)


def get(db: Database, job_id: str) -> JobRecord:
    """See `Backend.get`."""
    row = db.one("job_find", job_id)
    if row is None:
        raise JobNotFound(job_id)
    return records(db, [row[0]], payloads=True)[0]


def list_jobs(
    db: Database, which: JobFilter, limit: int, after: str | None, *, payloads: bool
) -> Page:
    """See `Backend.list_jobs`."""
    seqs, following = matching(db, which, limit, after)
    return Page(records(db, seqs, payloads=payloads), following)


def records(db: Database, seqs: list[int], *, payloads: bool) -> list[JobRecord]:
    """The whole records of jobs, newest first."""
    rows = db.run("records", _encode(seqs).decode(), payloads, db.now)
    return [record_of(db, row) for row in rows.fetchall()]


def record_of(db: Database, row: Row) -> JobRecord:
    """One row of `records` in the words of the contract."""
    (
        job_id, lane, priority, due, created_at, state, failures, lost, started_at, finished_at,
        reason, options, history, fraction, message, session, at, cancel, result, payload,
    ) = row  # fmt: skip
    stands = db.lane(lane)
    return JobRecord(
        id=job_id,
        name=stands.name,
        queue=stands.queue,
        state=State(state),
        priority=priority,
        payload=payload,
        failures=failures,
        lost=lost,
        due=due / MICRO,
        created_at=created_at / MICRO,
        started_at=seconds(started_at if at is None else at),
        finished_at=seconds(finished_at),
        reason=reason,
        history=_history(history),
        progress=None if fraction is None else Progress(fraction, message),
        result=result,
        cancel_requested=bool(cancel),
        session=session,
        options=NO_OPTIONS if options is None else _options(options),
    )


def seconds(micros: int | None) -> float | None:
    """A time as the contract has it."""
    return None if micros is None else micros / MICRO


def counts(db: Database, queue: str | None) -> dict[State, int]:
    """See `Backend.counts`."""
    row: Row = db.run("counts", queue, db.now).fetchone()
    return dict(zip(_COUNTED, row, strict=True))


def queues(db: Database) -> list[QueueInfo]:
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
        for queue, name, size, later, running, oldest, paused in db.run("queues", db.now)
    )


def sessions(db: Database) -> list[SessionInfo]:
    """See `Backend.sessions`."""
    return [session_of(db, *row) for row in db.run("sessions")]


def session_of(db: Database, job_id: str, info: str, *fields: Any) -> SessionInfo:
    """One row of `sessions` in the words of the contract."""
    ttl, expires, boot, opened_at, left_at, running = fields
    said = info_of(info)
    return SessionInfo(
        id=job_id,
        host=said.host,
        pid=said.pid,
        owner=said.owner,
        queues=said.queues,
        names=said.names,
        opened_at=opened_at / MICRO,
        expires_in=expires - db.boot if boot == db.boot_id else -ttl,
        left=left_at is not None,
        running=running,
    )
