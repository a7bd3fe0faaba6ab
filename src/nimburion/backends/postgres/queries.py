"""Queries: encode the arguments of read-only functions, and decode their rows into records."""

from __future__ import annotations

from typing import Any

import msgspec

from nimburion.backends.postgres.encoding import (
    MAX_INT8,
    decode_job_options,
    encode_lookup_text,
    to_optional_seconds,
    to_seconds,
)
from nimburion.backends.queue_rows import LaneRow, combine_rows
from nimburion.backends.server.encoding import (
    MICRO,
    STATE_CODES,
    STATES,
    decode_id,
    encode_id_or_empty,
)
from nimburion.core.errors import JobNotFound
from nimburion.core.job import AttemptError, JobRecord, Progress, State
from nimburion.core.queries import JobFilter, Page, QueueInfo, parse_cursor
from nimburion.core.session import Session, SessionInfo

_decode_session_info = msgspec.json.Decoder(Session).decode
_decode_error = msgspec.json.Decoder(AttemptError).decode


# --- filters --------------------------------------------------------------------------------------


def encode_filter(which: JobFilter, states: frozenset[State] | None) -> list[Any]:
    """Encode a filter for the functions."""
    return [
        None if states is None else "".join(STATE_CODES[state] for state in states),
        *(None if name is None else encode_lookup_text(name) for name in (which.queue, which.name)),
        None if which.reason is None else encode_lookup_text(which.reason) or "\ufffd",
        None if which.ids is None else sorted({encode_id_or_empty(job_id) for job_id in which.ids}),
    ]


def encode_cursor(after: str | None) -> int:
    """Return the seq before which a page begins.

    Raises:
        InvalidJob: the cursor does not come from this backend.
    """
    seq = parse_cursor(after)
    return MAX_INT8 if seq is None else min(seq, MAX_INT8)


# --- records --------------------------------------------------------------------------------------


def decode_record(rows: list[Any], job_id: str) -> JobRecord:
    """Decode the rows of `get_jobs_1` for one job.

    Raises:
        JobNotFound: there is no such job.
    """
    if not rows:
        raise JobNotFound(job_id)
    return _decode_job(rows[0])


def decode_page(rows: list[Any], found: list[int], limit: int) -> Page:
    """Decode one page of records. If more than `limit` jobs were found, the page has a `next`."""
    following = str(found[limit - 1]) if len(found) > limit > 0 else None
    return Page([_decode_job(row) for row in rows], following)


def _decode_job(row: Any) -> JobRecord:  # noqa: ANN401 - a row
    fraction = row["fraction"]
    history = zip(row["history_at"] or (), row["history"] or (), strict=True)
    return JobRecord(
        id=decode_id(row["id"]),
        name=row["name"],
        queue=row["queue"],
        state=STATES[row["code"]],
        priority=9 - row["rank"],
        payload=row["payload"],
        failures=row["failures"],
        lost=row["lost"],
        due=to_seconds(row["due"]),
        created_at=to_seconds(row["created_at"]),
        started_at=to_optional_seconds(row["started_at"]),
        finished_at=to_optional_seconds(row["finished_at"]),
        reason=row["reason"],
        history=[
            msgspec.structs.replace(_decode_error(body), at=to_seconds(at)) for at, body in history
        ],
        progress=None if fraction is None else Progress(fraction, row["message"]),
        result=row["result"],
        cancel_requested=row["cancel_requested"],
        session=row["holder"],
        options=decode_job_options(row["options"]),
    )


# --- numbers --------------------------------------------------------------------------------------


def decode_counts(rows: list[Any]) -> dict[State, int]:
    """Decode the rows of `count_by_state_1`."""
    counts = dict.fromkeys(State, 0)
    for letter, number in rows:
        counts[STATES[letter]] += number
    return counts


def decode_queues(rows: list[Any]) -> list[QueueInfo]:
    """Decode the rows of `list_queues_2`, sorted by name."""
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


def decode_sessions(rows: list[Any]) -> list[SessionInfo]:
    """Decode the rows of `list_sessions_1`, oldest first."""
    return [_make_session_info(_decode_session_info(info), *rest) for _, info, *rest in rows]


def _make_session_info(
    session: Session, opened_at: int, life: int, gone: object, running: int
) -> SessionInfo:
    return session.to_info(
        opened_at=to_seconds(opened_at),
        expires_in=life / MICRO,
        left=bool(gone),
        running=running,
    )
