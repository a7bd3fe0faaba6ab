"""Which jobs a filter means, and the way through them: the Python half of `seeking.lua`."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from nimburion.backends.queue_rows import LaneRow, combine_rows
from nimburion.backends.redis.encoding import FINISHED, seconds_of
from nimburion.backends.redis.exchange import names_of, options_of
from nimburion.backends.server.encoding import MICRO, STATE_CODES, STATES, unpack_id
from nimburion.core.errors import JobNotFound
from nimburion.core.job import AttemptError, JobRecord, Progress, State
from nimburion.core.queries import JobFilter, Page, QueueInfo, parse_cursor
from nimburion.core.session import Session, SessionInfo

STEP = 500
"""Jobs that one script looks at."""
FEW = 5_000
"""Unfinished jobs that are gathered and sorted, rather than looked for among all."""
_MOST = (1 << 53) - 1
"""No seq is larger: up to here Lua's numbers are exact."""
_FAILED = frozenset({State.FAILED})

_pack = msgspec.msgpack.Encoder().encode


class Walk:
    """The way through the jobs that may be meant, in legs, each from the newest job on.

    Args:
        which: the filter.
        states: what its states come to for this operation; None: any.
        after: the cursor behind which to begin.
        given: the fields of all that may be meant; None where these are not known.
        deletes: whether jobs that are picked are taken out, so that only finished ones are meant.

    Raises:
        InvalidJob: the cursor is none of this store.
    """

    __slots__ = ("_filter", "_legs", "_on")

    def __init__(
        self,
        which: JobFilter,
        states: frozenset[State] | None,
        after: str | None = None,
        *,
        given: Iterable[bytes] | None = None,
        deletes: bool = False,
    ) -> None:
        self._on = encode_cursor(after)
        self._filter = filter_of(which, states)
        self._legs: list[tuple[bytes, bytes]] = []
        if self._filter is not None and given is not None:
            self._legs = legs_of(given, self._on)
        elif self._filter is not None:
            self._legs = [(source, b"") for source in sources_of(states, deletes=deletes)]

    @property
    def ended(self) -> bool:
        """Whether nothing is left to look at."""
        return not self._legs

    def step(self, most: int) -> list[bytes]:
        """What the next script takes, to pick up to `most` jobs."""
        source, given = self._legs[0]
        return [source, self._on, self._filter or b"", b"%d" % most, given]

    def go_on(self, on: bytes, last: int) -> None:
        """Take up what it said: behind which job to go on, and whether nothing is left there."""
        self._on = b"" if last else on
        if last:
            del self._legs[0]


def encode_cursor(after: str | None) -> bytes:
    """The field of the job that a page's `next` names; empty for none."""
    seq = parse_cursor(after)
    return b"" if seq is None else min(seq, _MOST).to_bytes(8, "big")


def cursor_of(field: bytes) -> str:
    """The `next` of a page that ends with this job."""
    return str(int.from_bytes(field, "big"))


def fields_of(joined: bytes | None) -> list[bytes] | None:
    """What `unfinished.lua` answered, apart; None where they were too many."""
    if joined is None:
        return None
    return [joined[at : at + 8] for at in range(0, len(joined), 8)]


def filter_of(which: JobFilter, states: frozenset[State] | None) -> bytes | None:
    """A filter as scripts read it; None when it can mean nothing."""
    if states is not None and not states:
        return None
    letters = False if states is None else "".join(STATE_CODES[state] for state in sorted(states))
    rest = (False if one is None else one for one in (which.queue, which.name, which.reason))
    try:
        return _pack((letters, *rest))
    except UnicodeEncodeError:  # no store holds such a name
        return None


def sources_of(states: frozenset[State] | None, *, deletes: bool) -> list[bytes]:
    """Where to look, one after the other."""
    if states is not None and states <= _FAILED:
        return [b"dead"]
    if not deletes:
        return [b"all"]
    return [b"dead", b"done"] if states is None or State.FAILED in states else [b"done"]


def legs_of(given: Iterable[bytes], on: bytes) -> list[tuple[bytes, bytes]]:
    """Jobs that are named, newest first, as many a leg as one script looks at."""
    fields = [field for field in sorted(set(given), reverse=True) if not on or field < on]
    return [(b"given", b"".join(fields[at : at + STEP])) for at in range(0, len(fields), STEP)]


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
