"""Job filters and scans: the Python half of `scan_jobs.lua`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from nimburion.backends.queue_rows import LaneRow, combine_rows
from nimburion.backends.redis.encoding import decode_time
from nimburion.backends.redis.exchange import decode_body_options, decode_lane_names
from nimburion.backends.redis.record_format import (
    ATTEMPT_STATE,
    CANCEL_REQUESTED,
    FLAG_FINISHED,
    HISTORY_ENTRY,
    JOB_END,
    JOB_HEAD,
    LEASE,
    LEASED,
    NO_REASON_LENGTH,
    PROGRESS,
    SESSION_LEFT,
    SESSION_STATE,
)
from nimburion.backends.server.encoding import MICRO, STATE_CODES, STATES, decode_id
from nimburion.core.errors import JobNotFound
from nimburion.core.job import AttemptError, JobRecord, Progress, State
from nimburion.core.queries import JobFilter, Page, QueueInfo, parse_cursor
from nimburion.core.session import Session, SessionInfo

SCAN_STEP = 500
"""The number of jobs that one script checks."""
MAX_SORTED = 5_000
"""The largest number of unfinished jobs that are collected and sorted. With more, all jobs are
scanned.
"""
_MAX_SEQ = (1 << 53) - 1
"""The largest seq: Lua represents integers exactly up to this value."""
_FAILED_ONLY = frozenset({State.FAILED})

_pack = msgspec.msgpack.Encoder().encode


class JobScan:
    """A scan over the jobs that a filter may match. It consists of segments, each newest job first.

    Args:
        which: the filter.
        states: the states of the filter that this operation accepts; None: any.
        after: the cursor after which the scan begins.
        fields: the fields of all jobs that may match; None if they are not known.
        deletes: whether matching jobs are deleted, so that only finished jobs are scanned.

    Raises:
        InvalidJob: the cursor does not come from this backend.
    """

    __slots__ = ("_after", "_filter", "_segments")

    def __init__(
        self,
        which: JobFilter,
        states: frozenset[State] | None,
        after: str | None = None,
        *,
        fields: Iterable[bytes] | None = None,
        deletes: bool = False,
    ) -> None:
        self._after = encode_cursor(after)
        self._filter = encode_filter(which, states)
        self._segments: list[tuple[bytes, bytes]] = []
        if self._filter is not None and fields is not None:
            self._segments = split_segments(fields, self._after)
        elif self._filter is not None:
            self._segments = [(source, b"") for source in choose_sources(states, deletes=deletes)]

    @property
    def is_finished(self) -> bool:
        """Whether the scan has covered all segments."""
        return not self._segments

    def make_arguments(self, limit: int) -> list[bytes]:
        """Return the arguments of the next script, which selects up to `limit` jobs."""
        source, given = self._segments[0]
        return [source, self._after, self._filter or b"", b"%d" % limit, given]

    def advance(self, after: bytes, last: int) -> None:
        """Record the reply of a script: the position to continue from, and whether the segment has
        ended.
        """
        self._after = b"" if last else after
        if last:
            del self._segments[0]


def encode_cursor(after: str | None) -> bytes:
    """Decode the `next` of a page to the field of a job; empty if there is no cursor."""
    seq = parse_cursor(after)
    return b"" if seq is None else min(seq, _MAX_SEQ).to_bytes(8, "big")


def format_cursor(field: bytes) -> str:
    """Return the `next` of a page that ends with this job."""
    return str(int.from_bytes(field, "big"))


def split_fields(joined: bytes | None) -> list[bytes] | None:
    """Split the reply of `unfinished.lua` into fields; None if there were too many jobs."""
    if joined is None:
        return None
    return [joined[at : at + 8] for at in range(0, len(joined), 8)]


def encode_filter(which: JobFilter, states: frozenset[State] | None) -> bytes | None:
    """Encode a filter for the scripts; None if it cannot match any job."""
    if states is not None and not states:
        return None
    codes = False if states is None else "".join(STATE_CODES[state] for state in sorted(states))
    rest = (
        False if condition is None else condition
        for condition in (which.queue, which.name, which.reason)
    )
    try:
        return _pack((codes, *rest))
    except UnicodeEncodeError:  # no backend holds such a name
        return None


def choose_sources(states: frozenset[State] | None, *, deletes: bool) -> list[bytes]:
    """Return the names of the collections to scan, in order."""
    if states is not None and states <= _FAILED_ONLY:
        return [b"dead"]
    if not deletes:
        return [b"all"]
    return [b"dead", b"done"] if states is None or State.FAILED in states else [b"done"]


def split_segments(job_fields: Iterable[bytes], after: bytes) -> list[tuple[bytes, bytes]]:
    """Split listed jobs into segments, newest first, with `SCAN_STEP` jobs each."""
    fields = [
        field for field in sorted(set(job_fields), reverse=True) if not after or field < after
    ]
    return [
        (b"given", b"".join(fields[at : at + SCAN_STEP])) for at in range(0, len(fields), SCAN_STEP)
    ]


_STATES = {code.encode(): state for code, state in STATES.items()}
_decode_session_info = msgspec.json.Decoder(Session).decode
_decode_error = msgspec.json.Decoder(AttemptError).decode

JobDetails = list[Any]
"""The details of one job, as `job_details.lua` returns them."""


class AttemptSummary(msgspec.Struct):
    """A summary of the attempts of a job so far."""

    due: int
    failures: int = 0
    lost: int = 0
    started: int = 0
    finished: int = 0
    reason: str | None = None
    cancel: bool = False


def decode_ids(packed: Iterable[bytes]) -> list[str]:
    """Decode job ids."""
    return [decode_id(packed_id) for packed_id in packed]


# --- records --------------------------------------------------------------------------------------


def decode_record(reply: list[Any], job_id: str) -> JobRecord:
    """Decode the reply of `get.lua`.

    Raises:
        JobNotFound: there is no such job.
    """
    if not reply:
        raise JobNotFound(job_id)
    names, details = reply
    return _decode_job(details, decode_lane_names(names))


def decode_page(replies: Sequence[list[Any]], limit: int) -> Page:
    """Combine the replies of several `list.lua` runs to one page. If they hold more than `limit`
    jobs, the page has a `next`.
    """
    details = [
        (details_of_job, decode_lane_names(names))
        for _, _, names, found in replies
        for details_of_job in found
    ]
    following = format_cursor(details[limit - 1][0][0]) if len(details) > limit > 0 else None
    return Page([_decode_job(job, names) for job, names in details[:limit]], following)


def _decode_job(details: JobDetails, names: dict[int, tuple[str, str]]) -> JobRecord:
    _, code, body, moves, payload, history, progress, result, session = details
    lane, created, due, flags, priority, length = JOB_HEAD.unpack_from(body)
    behind_id = JOB_HEAD.size + length
    options, at = decode_body_options(body, behind_id, flags)
    queue, name = names[lane]
    attempts = _decode_attempts(code, body[at:] if flags & FLAG_FINISHED else b"", moves, due)
    return JobRecord(
        id=decode_id(body[JOB_HEAD.size : behind_id]),
        name=name,
        queue=queue,
        state=_STATES[code],
        priority=priority,
        payload=payload,
        failures=attempts.failures,
        lost=attempts.lost,
        due=decode_time(attempts.due),
        created_at=decode_time(created),
        started_at=_decode_optional_time(attempts.started),
        finished_at=_decode_optional_time(attempts.finished),
        reason=attempts.reason,
        history=decode_history(history or b""),
        progress=None if progress is None else decode_progress(progress),
        result=result,
        cancel_requested=attempts.cancel,
        session=None if session is None else session.decode(),
        options=options,
    )


def _decode_attempts(code: bytes, end: bytes, moves: bytes | None, due: int) -> AttemptSummary:
    """Decode the attempts of a job. `record_format.lua` describes the three places: after the body,
    in the lease, or in the state.
    """
    if end:
        _, started, finished, failures, lost, size = JOB_END.unpack_from(end)
        reason = (
            None if size == NO_REASON_LENGTH else end[JOB_END.size : JOB_END.size + size].decode()
        )
        return AttemptSummary(due, failures, lost, started, finished, reason)
    if moves is None:
        return AttemptSummary(due)
    if code == LEASED:
        started, cancel, failures, lost, due = LEASE.unpack_from(moves)
        return AttemptSummary(due, failures, lost, started, cancel=cancel == CANCEL_REQUESTED)
    failures, lost, started, due = ATTEMPT_STATE.unpack_from(moves)
    return AttemptSummary(due, failures, lost, started)


def _decode_optional_time(biased: int) -> float | None:
    return decode_time(biased) if biased else None


def decode_history(packed: bytes) -> list[AttemptError]:
    """Decode the failed attempts, each with the backend's time of its end."""
    errors, at = [], 0
    while at < len(packed):
        ended, length = HISTORY_ENTRY.unpack_from(packed, at)
        at += HISTORY_ENTRY.size + length
        error = _decode_error(packed[at - length : at])
        errors.append(msgspec.structs.replace(error, at=decode_time(ended)))
    return errors


def decode_progress(packed: bytes) -> Progress:
    """Decode the last progress report of a job."""
    (fraction,) = PROGRESS.unpack_from(packed)
    return Progress(fraction, packed[PROGRESS.size :].decode())


# --- numbers --------------------------------------------------------------------------------------


def decode_counts(reply: list[int]) -> dict[State, int]:
    """Decode the reply of `counts.lua`."""
    return dict(zip(STATE_CODES, reply, strict=True))


def decode_queues(reply: list[Any]) -> list[QueueInfo]:
    """Decode the reply of `queues.lua`, sorted by name."""
    now, details = int.from_bytes(reply[0], "big"), reply[1]
    return combine_rows(
        LaneRow(
            queue=queue.decode(),
            name=name.decode() or None,
            size=ready,
            scheduled=aside,
            processing=leased,
            age=max(0, now - int.from_bytes(due, "big")) / MICRO if due else None,
            paused=bool(paused),
        )
        for queue, name, ready, aside, leased, due, paused in _split_rows(details, 7)
    )


def decode_sessions(reply: list[Any]) -> list[SessionInfo]:
    """Decode the reply of `sessions.lua`, oldest first."""
    rows = sorted(_split_rows(reply, 5), key=lambda row: row[1][:4])
    return [_decode_session(*row) for _, *row in rows]


def _decode_session(state: bytes, info: bytes, expires: bytes, running: int) -> SessionInfo:
    opened, status = SESSION_STATE.unpack_from(state)
    return _decode_session_info(info).to_info(
        opened_at=decode_time(opened),
        expires_in=int(expires) / MICRO,
        left=status == SESSION_LEFT,
        running=running,
    )


def _split_rows(flat: list[Any], width: int) -> list[tuple[Any, ...]]:
    return list(zip(*(flat[at::width] for at in range(width)), strict=True))
