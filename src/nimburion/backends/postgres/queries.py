"""Reading: what functions that write nothing are asked, and records made of their answers."""

from __future__ import annotations

from typing import Any

import msgspec

from nimburion.backends.postgres.encoding import ALWAYS, asked_text, options_of, seconds_of, time_of
from nimburion.backends.queue_rows import LaneRow, combine_rows
from nimburion.backends.server.encoding import MICRO, STATE_CODES, STATES, asked_id, unpack_id
from nimburion.core.errors import JobNotFound
from nimburion.core.job import AttemptError, JobRecord, Progress, State
from nimburion.core.queries import JobFilter, Page, QueueInfo, parse_cursor
from nimburion.core.session import Session, SessionInfo

_session = msgspec.json.Decoder(Session).decode
_error = msgspec.json.Decoder(AttemptError).decode


# --- which ----------------------------------------------------------------------------------------


def filter_of(which: JobFilter, states: frozenset[State] | None) -> list[Any]:
    """A filter as the functions read it."""
    return [
        None if states is None else "".join(STATE_CODES[state] for state in states),
        *(None if one is None else asked_text(one) for one in (which.queue, which.name)),
        None if which.reason is None else asked_text(which.reason) or "\ufffd",
        None if which.ids is None else sorted({asked_id(one) for one in which.ids}),
    ]


def encode_cursor(after: str | None) -> int:
    """The seq before which a page begins.

    Raises:
        InvalidJob: it is no cursor of this store.
    """
    seq = parse_cursor(after)
    return ALWAYS if seq is None else min(seq, ALWAYS)


# --- records --------------------------------------------------------------------------------------


def record_of(rows: list[Any], job_id: str) -> JobRecord:
    """What `get_1` answered of one.

    Raises:
        JobNotFound: there is none.
    """
    if not rows:
        raise JobNotFound(job_id)
    return _record(rows[0])


def page_of(rows: list[Any], found: list[int], limit: int) -> Page:
    """One page of records; if more than `limit` were found, there is a next one."""
    following = str(found[limit - 1]) if len(found) > limit > 0 else None
    return Page([_record(row) for row in rows], following)


def _record(row: Any) -> JobRecord:  # noqa: ANN401 - a row
    fraction = row["fraction"]
    history = zip(row["history_at"] or (), row["history"] or (), strict=True)
    return JobRecord(
        id=unpack_id(row["id"]),
        name=row["name"],
        queue=row["queue"],
        state=STATES[row["letter"]],
        priority=9 - row["rank"],
        payload=row["payload"],
        failures=row["failures"],
        lost=row["lost"],
        due=seconds_of(row["due"]),
        created_at=seconds_of(row["created"]),
        started_at=time_of(row["started"]),
        finished_at=time_of(row["finished"]),
        reason=row["reason"],
        history=[msgspec.structs.replace(_error(body), at=seconds_of(at)) for at, body in history],
        progress=None if fraction is None else Progress(fraction, row["message"]),
        result=row["result"],
        cancel_requested=row["cancel"],
        session=row["holder"],
        options=options_of(row["options"]),
    )


# --- numbers --------------------------------------------------------------------------------------


def counts_of(rows: list[Any]) -> dict[State, int]:
    """What `counts_1` answered."""
    counts = dict.fromkeys(State, 0)
    for letter, number in rows:
        counts[STATES[letter]] += number
    return counts


def queues_of(rows: list[Any]) -> list[QueueInfo]:
    """What `queues_2` answered, by name."""
    return combine_rows(
        LaneRow(
            queue=queue,
            name=name,
            size=size,
            scheduled=scheduled,
            processing=processing,
            age=None if age is None else max(0, age) / MICRO,
            paused=paused,
        )
        for queue, name, size, scheduled, processing, age, paused in rows
    )


def sessions_of(rows: list[Any]) -> list[SessionInfo]:
    """What `sessions_1` answered, oldest first."""
    return [_session_of(_session(info), *rest) for _, info, *rest in rows]


def _session_of(said: Session, opened: int, life: int, gone: object, running: int) -> SessionInfo:
    return said.as_read(
        opened_at=seconds_of(opened),
        expires_in=life / MICRO,
        left=bool(gone),
        running=running,
    )
