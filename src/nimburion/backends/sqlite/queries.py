"""Which jobs a filter means, newest enqueue first, by the cheapest way there is."""

from __future__ import annotations

from typing import Any

import msgspec

from nimburion.backends.queue_rows import LaneRow, combine_rows
from nimburion.backends.sqlite.connection.database import MICRO, Database, Row
from nimburion.backends.sqlite.sessions import info_of
from nimburion.core.errors import JobNotFound
from nimburion.core.job import (
    FINISHED,
    NO_OPTIONS,
    AttemptError,
    JobRecord,
    Options,
    Progress,
    State,
)
from nimburion.core.queries import JobFilter, Page, QueueInfo, parse_cursor
from nimburion.core.session import SessionInfo

_MANY = 10_000
"""From so many unfinished jobs on, going back from the newest finds some sooner than sorting."""

_encode = msgspec.json.Encoder().encode
_seqs = msgspec.json.Decoder(list[int]).decode


def matching(
    db: Database, which: JobFilter, limit: int, after: str | None
) -> tuple[list[int], str | None]:
    """The seqs of up to `limit` jobs, and where the next page begins (None: this is the last)."""
    name, values = question(db, which, limit + 1, after)
    seqs = _seqs(db.value(name, *values))
    if len(seqs) <= limit:
        return seqs, None
    page = seqs[:limit]
    return page, str(page[-1]) if page else after


def question(
    db: Database, which: JobFilter, limit: int, after: str | None
) -> tuple[str, list[object]]:
    """The statement to ask, and its values."""
    states = None if which.states is None else _encode(sorted(which.states)).decode()
    values: list[object] = [
        states, which.queue, which.name, which.reason, parse_cursor(after), limit, db.now
    ]  # fmt: skip
    if which.ids is not None:
        return "list_ids", [*values, _encode(sorted(set(which.ids))).decode()]
    if which.states is not None and which.states <= {State.FAILED}:
        return "list_failed", values
    unfinished = which.states is not None and not which.states & FINISHED
    if unfinished and not db.value("unfinished_many", _MANY):
        return "list_unfinished", values
    return "list_newest", values


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
