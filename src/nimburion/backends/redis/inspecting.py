"""Reading: what the scripts that write nothing are asked, and records made of what they answer."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from nimburion.backends.packing import MICRO, STATE_CODES, STATES, unpack_id
from nimburion.backends.queue_rows import LaneRow, combine_rows
from nimburion.backends.redis.exchanging import names_of, options_of
from nimburion.backends.redis.records import FINISHED, seconds_of
from nimburion.backends.redis.seeking import cursor_of
from nimburion.core.errors import JobNotFound
from nimburion.core.job import AttemptError, JobRecord, Progress, State
from nimburion.core.reading import Page, QueueInfo
from nimburion.core.session import Session, SessionInfo

_HEAD = struct.Struct(">IQQBB16xB")
_END = struct.Struct(">cQQIH24xH")
_STATE = struct.Struct(">IH4xQQ")
_LEASE = struct.Struct(">32xQcIH7xQ")
_ERROR = struct.Struct(">QI")
_FRACTION = struct.Struct(">d")
_TURN = struct.Struct(">20xQc")
_NO_REASON = 0xFFFF

_STATES = {code.encode(): state for code, state in STATES.items()}
_session = msgspec.json.Decoder(Session).decode
_error = msgspec.json.Decoder(AttemptError).decode

Told = list[Any]
"""What `telling.lua` tells of one job."""


class Past(msgspec.Struct):
    """What became of a job so far."""

    due: int
    failures: int = 0
    lost: int = 0
    started: int = 0
    finished: int = 0
    reason: str | None = None
    cancel: bool = False


def ids_of(packed: Iterable[bytes]) -> list[str]:
    """Ids as their callers know them."""
    return [unpack_id(one) for one in packed]


# --- records --------------------------------------------------------------------------------------


def record_of(answer: list[Any], job_id: str) -> JobRecord:
    """What `get.lua` answered.

    Raises:
        JobNotFound: there is none.
    """
    if not answer:
        raise JobNotFound(job_id)
    names, told = answer
    return _record(told, names_of(names))


def page_of(answers: Sequence[list[Any]], limit: int) -> Page:
    """One page of what calls of `list.lua` answered together: if they found more than `limit`,
    there is a next one."""
    told = [(one, names_of(names)) for _, _, names, found in answers for one in found]
    following = cursor_of(told[limit - 1][0][0]) if len(told) > limit > 0 else None
    return Page([_record(one, names) for one, names in told[:limit]], following)


def _record(told: Told, names: dict[int, tuple[str, str]]) -> JobRecord:
    _, letter, body, moves, payload, history, progress, result, session = told
    lane, created, due, flags, priority, length = _HEAD.unpack_from(body)
    behind_id = _HEAD.size + length
    options, at = options_of(body, behind_id, flags)
    queue, name = names[lane]
    past = _past_of(letter, body[at:] if flags & FINISHED else b"", moves, due)
    return JobRecord(
        id=unpack_id(body[_HEAD.size : behind_id]),
        name=name,
        queue=queue,
        state=_STATES[letter],
        priority=priority,
        payload=payload,
        failures=past.failures,
        lost=past.lost,
        due=seconds_of(past.due),
        created_at=seconds_of(created),
        started_at=_time(past.started),
        finished_at=_time(past.finished),
        reason=past.reason,
        history=history_of(history or b""),
        progress=None if progress is None else progress_of(progress),
        result=result,
        cancel_requested=past.cancel,
        session=None if session is None else session.decode(),
        options=options,
    )


def _past_of(letter: bytes, end: bytes, moves: bytes | None, due: int) -> Past:
    """The past of a job as `layout.lua` has it: behind its body, in its lease, or in its state."""
    if end:
        _, started, finished, failures, lost, size = _END.unpack_from(end)
        reason = None if size == _NO_REASON else end[_END.size : _END.size + size].decode()
        return Past(due, failures, lost, started, finished, reason)
    if moves is None:
        return Past(due)
    if letter == b"L":
        started, cancel, failures, lost, due = _LEASE.unpack_from(moves)
        return Past(due, failures, lost, started, cancel=cancel == b"1")
    failures, lost, started, due = _STATE.unpack_from(moves)
    return Past(due, failures, lost, started)


def _time(biased: int) -> float | None:
    return seconds_of(biased) if biased else None


def history_of(packed: bytes) -> list[AttemptError]:
    """Attempts that ended badly, each with the store's time of its end."""
    errors, at = [], 0
    while at < len(packed):
        ended, length = _ERROR.unpack_from(packed, at)
        at += _ERROR.size + length
        error = _error(packed[at - length : at])
        errors.append(msgspec.structs.replace(error, at=seconds_of(ended)))
    return errors


def progress_of(packed: bytes) -> Progress:
    """The latest word of a job."""
    (fraction,) = _FRACTION.unpack_from(packed)
    return Progress(fraction, packed[_FRACTION.size :].decode())


# --- numbers --------------------------------------------------------------------------------------


def counts_of(answer: list[int]) -> dict[State, int]:
    """What `counts.lua` answered."""
    return dict(zip(STATE_CODES, answer, strict=True))


def queues_of(answer: list[Any]) -> list[QueueInfo]:
    """What `queues.lua` answered, by name."""
    now, told = int.from_bytes(answer[0], "big"), answer[1]
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
        for queue, name, ready, aside, leased, due, paused in _rows(told, 7)
    )


def sessions_of(answer: list[Any]) -> list[SessionInfo]:
    """What `sessions.lua` answered, oldest first."""
    rows = sorted(_rows(answer, 5), key=lambda row: row[1][:4])
    return [_session_of(*row) for _, *row in rows]


def _session_of(turn: bytes, info: bytes, expires: bytes, running: int) -> SessionInfo:
    opened, life = _TURN.unpack(turn)
    return _session(info).as_read(
        opened_at=seconds_of(opened),
        expires_in=int(expires) / MICRO,
        left=life == b"l",
        running=running,
    )


def _rows(flat: list[Any], width: int) -> list[tuple[Any, ...]]:
    return list(zip(*(flat[at::width] for at in range(width)), strict=True))
