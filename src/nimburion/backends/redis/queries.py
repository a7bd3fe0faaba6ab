"""Job filters and scans: the Python half of `scan_jobs.lua`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from nimburion.backends.queue_rows import LaneRow, combine_rows
from nimburion.backends.redis.encoding import decode_micros, decode_time
from nimburion.backends.redis.exchange import decode_body_options, decode_lane_names
from nimburion.backends.redis.flows import make_unmet
from nimburion.backends.redis.record_format import (
    ATTEMPT_STATE,
    CANCEL_REQUESTED,
    FLAG_FINISHED,
    HISTORY_ENTRY,
    JOB_END,
    JOB_END_REASON,
    JOB_HEAD,
    LEASE,
    LEASED,
    NEVER,
    NO_REASON_LENGTH,
    NO_SESSION,
    PAUSE,
    PROGRESS,
    SESSION_LEFT,
    SESSION_STATE,
    STATE_CODES,
    STATES,
)
from nimburion.backends.redis.sessions import decode_command
from nimburion.backends.server.encoding import decode_id
from nimburion.core.diagnosis.explanations import Facts, Unmet
from nimburion.core.diagnosis.failure_groups import (
    FailedJob,
    FailureGroup,
    add_error,
)
from nimburion.core.errors import JobNotFound
from nimburion.core.fairness import WEIGHT_UNITS, TenantTurn, TenantUse, TenantUses
from nimburion.core.job import (
    FAILED_ONLY,
    MAX_PRIORITY,
    AttemptError,
    JobRecord,
    Progress,
    State,
)
from nimburion.core.limits import (
    KeyUse,
    LimitChange,
    LimitHolder,
    LimitInfo,
    LimitRule,
    closes_lane,
    get_limited_job,
    summarize_limits,
)
from nimburion.core.queries import JobCounts, JobFilter, Page, Pause, QueueInfo, parse_cursor
from nimburion.core.rate_limits import RateLimit
from nimburion.core.session import (
    Session,
    SessionInfo,
    Vitals,
)
from nimburion.core.timing.clock import MICRO

SCAN_STEP = 500
"""The number of jobs that one script checks."""
MAX_SORTED = 5_000
"""The largest number of unfinished jobs that are collected and sorted. With more, all jobs are
scanned.
"""
_MAX_INTEGER = (1 << 53) - 1
"""The largest seq, time and number: Lua represents integers exactly up to this value."""
_PASSED_PER_CHECKED = 16
"""A call passes at most this many seqs for each job that it may check. A script checks 250 jobs
at least, or passes 4,000 seqs, most of them of deleted jobs.
"""

_unpack_rules = msgspec.msgpack.Decoder(
    list[tuple[str, int | bool, int | bool, int, int, str]]
).decode
_decode_change = msgspec.json.Decoder(LimitChange).decode
_pack = msgspec.msgpack.Encoder().encode


class JobScan:
    """A scan over the jobs that a filter may match. It consists of segments, each newest job first.

    Args:
        which: the filter.
        states: the states of the filter that this operation accepts; None: any.
        after: the cursor after which the scan begins.
        fields: the fields of all jobs that may match; None if they are not known.

    Raises:
        InvalidJob: the cursor does not come from this backend.
    """

    __slots__ = ("_after", "_filter", "_position", "_segments")

    def __init__(
        self,
        which: JobFilter,
        states: frozenset[State] | None,
        after: str | None = None,
        *,
        fields: Iterable[bytes] | None = None,
    ) -> None:
        self._after = self._position = encode_cursor(after)
        self._filter = encode_filter(which, states)
        self._segments: list[tuple[bytes, bytes]] = []
        if self._filter is not None and fields is not None:
            self._segments = split_segments(fields, self._after)
        elif self._filter is not None:
            only_failed = states is not None and states <= FAILED_ONLY
            self._segments = [(b"dead" if only_failed else b"all", b"")]

    @property
    def is_finished(self) -> bool:
        """Whether the scan has covered all segments."""
        return not self._segments

    @property
    def cursor(self) -> str | None:
        """The cursor after the last job that the scan has passed; None if there is none."""
        return format_cursor(self._position) if self._position else None

    def make_arguments(self, limit: int, budget: int | None = None) -> list[bytes]:
        """Return the arguments of the next script, which selects up to `limit` jobs and checks
        up to `budget` jobs.
        """
        source, given = self._segments[0]
        arguments = [source, self._after, self._filter or b"", b"%d" % limit, given]
        return arguments if budget is None else [*arguments, b"%d" % budget]

    def advance(self, after: bytes, last: int) -> None:
        """Record the reply of a script: the position to continue from, and whether the segment has
        ended.
        """
        self._position = after or self._position
        self._after = b"" if last else after
        if last:
            del self._segments[0]


def encode_cursor(after: str | None) -> bytes:
    """Decode the `next` of a page to the field of a job; empty if there is no cursor."""
    seq = parse_cursor(after)
    return b"" if seq is None else min(seq, _MAX_INTEGER).to_bytes(8, "big")


def format_cursor(field: bytes) -> str:
    """Return the `next` of a page that ends with this job."""
    return str(int.from_bytes(field, "big"))


def split_fields(joined: bytes | None) -> list[bytes] | None:
    """Split the reply of `find_unfinished.lua` into fields; None if there were too many jobs."""
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
        return _pack((codes, *rest, _make_search(which)))
    except UnicodeEncodeError:  # no backend holds such a name
        return None


def _make_search(which: JobFilter) -> tuple[object, ...] | bool:
    """Return the fields without an index for the scripts; False if none is set."""
    if not which.needs_search:
        return False
    times = (which.created_from, which.created_to, which.finished_from, which.finished_to)
    least = which.min_failures
    others = (
        which.fingerprint,
        None if least is None else max(0, min(least, _MAX_INTEGER)),
        which.tenant,
        which.correlation_id,
        which.tag,
        which.flow,
    )
    values = (*(None if time is None else _find_first_micros(time) for time in times), *others)
    return tuple(False if value is None else value for value in values)


def _find_first_micros(seconds: float) -> int:
    """Return the first time in microseconds whose seconds are not less than `seconds`."""
    if not -_MAX_INTEGER < seconds * MICRO < _MAX_INTEGER:
        return -_MAX_INTEGER if seconds < 0 else _MAX_INTEGER
    micros = round(seconds * MICRO)
    while micros / MICRO < seconds:
        micros += 1
    while (micros - 1) / MICRO >= seconds:
        micros -= 1
    return micros


def split_segments(job_fields: Iterable[bytes], after: bytes) -> list[tuple[bytes, bytes]]:
    """Split listed jobs into segments, newest first, with `SCAN_STEP` jobs each."""
    fields = [
        field for field in sorted(set(job_fields), reverse=True) if not after or field < after
    ]
    return [
        (b"given", b"".join(fields[at : at + SCAN_STEP])) for at in range(0, len(fields), SCAN_STEP)
    ]


_COMPLETED, _FAILED = (STATE_CODES[state].encode() for state in (State.COMPLETED, State.FAILED))
_STATES = {code.encode(): state for code, state in STATES.items()}
_decode_vitals = msgspec.json.Decoder(Vitals).decode
_decode_pause_texts = msgspec.json.Decoder(tuple[str, str]).decode
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
    ended: bool = False
    """Whether an attempt ended the job."""


# --- records --------------------------------------------------------------------------------------


def decode_record(reply: list[Any], job_id: str) -> JobRecord:
    """Decode the reply of `get_job.lua`.

    Raises:
        JobNotFound: there is no such job.
    """
    if not reply:
        raise JobNotFound(job_id)
    names, details = reply
    return _decode_job(details, decode_lane_names(names))


class PageScan:
    """A scan that fills a page of jobs, with one or more runs of `list_jobs.lua`.

    Args:
        scan: the scan over the jobs.
        limit: the largest number of jobs on the page.
        budget: the largest number of jobs that the scan checks.
        payload_bytes: how many bytes of their payloads the jobs have.
    """

    def __init__(self, scan: JobScan, limit: int, budget: int, *, payload_bytes: int) -> None:
        self._scan = scan
        self._limit, self._budget = max(0, limit), max(0, budget)
        self._payload_bytes = payload_bytes
        self._jobs: list[JobRecord] = []
        self._checked = self._passed = 0
        self._is_stopped = False

    @property
    def is_finished(self) -> bool:
        """Whether the page is full, the budget is used up, or no jobs remain."""
        return self._scan.is_finished or self._is_stopped

    def make_arguments(self) -> list[bytes]:
        """Return the arguments of the next script."""
        left, budget = self._limit - len(self._jobs), self._budget - self._checked
        return [*self._scan.make_arguments(left, budget), b"%d" % self._payload_bytes]

    def add_reply(self, reply: list[Any]) -> None:
        """Add the jobs of a reply."""
        after, last, stopped, checked, passed, lanes, details = reply
        self._scan.advance(after, last)
        names = decode_lane_names(lanes)
        self._jobs += [_decode_job(one, names) for one in details]
        self._checked += checked
        self._passed += passed
        self._is_stopped = bool(stopped) or self._passed > _PASSED_PER_CHECKED * self._budget

    def make_page(self) -> Page:
        """Return the page."""
        has_more = self._limit > 0 and not self._scan.is_finished
        return Page(self._jobs, self._scan.cursor if has_more else None, self._checked)


def _decode_job(details: JobDetails, names: dict[int, tuple[str, str]]) -> JobRecord:
    _, code, body, moves, payload, history, progress, result, session = details
    lane, created, due, flags, priority, length = JOB_HEAD.unpack_from(body)
    behind_id = JOB_HEAD.size + length
    options, at = decode_body_options(body, behind_id, flags)
    queue, name = names[lane]
    attempts = _decode_attempts(code, body[at:] if flags & FLAG_FINISHED else b"", moves, due)
    session_id, session_host = (None, "") if session is None else _decode_session_name(session)
    errors = decode_history(history or b"")
    ended_by = None
    if attempts.ended:
        # The backend forgets a session after a day, but the error of a dead letter names it.
        fallback = errors[-1].session if code == _FAILED and errors else ""
        ended_by = fallback if session_id is None else session_id
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
        history=errors,
        progress=None if progress is None else decode_progress(progress),
        result=result,
        cancel_requested=attempts.cancel,
        session=session_id if code == LEASED else None,
        ended_by=ended_by,
        host=session_host,
        options=options,
    )


def _decode_attempts(code: bytes, end: bytes, moves: bytes | None, due: int) -> AttemptSummary:
    """Decode the attempts of a job. `record_format.lua` describes the three places: after the body,
    in the lease, or in the state.
    """
    if end:
        _, started, finished, failures, lost, session = JOB_END.unpack_from(end)
        reason = None if code == _COMPLETED else _decode_reason(end)
        has_ended = session != NO_SESSION
        return AttemptSummary(due, failures, lost, started, finished, reason, ended=has_ended)
    if moves is None:
        return AttemptSummary(due)
    if code == LEASED:
        started, cancel, failures, lost, due = LEASE.unpack_from(moves)
        return AttemptSummary(due, failures, lost, started, cancel=cancel == CANCEL_REQUESTED)
    failures, lost, started, due = ATTEMPT_STATE.unpack_from(moves)
    return AttemptSummary(due, failures, lost, started)


def _decode_reason(end: bytes) -> str | None:
    (length,) = JOB_END_REASON.unpack_from(end, JOB_END.size)
    at = JOB_END.size + JOB_END_REASON.size
    return None if length == NO_REASON_LENGTH else end[at : at + length].decode()


def _decode_session_name(packed: bytes) -> tuple[str, str]:
    """Return the id and the host of a session."""
    session_id, _, host = packed.decode().partition("\0")
    return session_id, host


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


# --- failures -------------------------------------------------------------------------------------


def decode_dead_letters(rows: list[Any]) -> Iterator[FailedJob]:
    """Decode the rows of `list_dead_letters.lua`."""
    for job_id, name, ended, fingerprint in _split_rows(rows, 4):
        yield FailedJob(
            fingerprint.decode(),
            decode_time(int.from_bytes(ended, "big")),
            decode_id(job_id),
            name.decode(),
        )


def add_errors(groups: Sequence[FailureGroup], jobs: Iterable[JobRecord]) -> list[FailureGroup]:
    """Return the groups with the type and the message of their latest errors, from its jobs."""
    errors = {job.id: job.error for job in jobs}
    return [add_error(group, errors.get(group.job_id)) for group in groups]


# --- numbers --------------------------------------------------------------------------------------


def decode_counts(reply: list[int]) -> JobCounts:
    """Decode the reply of `count_jobs.lua`."""
    return JobCounts(zip(STATE_CODES, reply, strict=True))


def decode_queues(reply: list[Any]) -> list[QueueInfo]:
    """Decode the reply of `list_queues.lua`, sorted by name."""
    now, details = int.from_bytes(reply[0], "big"), reply[1]
    pauses = {queue.decode(): decode_pause(pause) for queue, pause in _split_rows(reply[2], 2)}
    lanes = [
        LaneRow(
            queue=queue.decode(),
            name=name.decode(),
            size=ready,
            scheduled=aside,
            processing=leased,
            age=max(0, now - int.from_bytes(due, "big")) / MICRO if due else None,
            paused=False,
        )
        for queue, name, ready, aside, leased, due in _split_rows(details, 6)
    ]
    paused = [
        LaneRow(queue, None, 0, 0, 0, None, paused=True, pause=pause)
        for queue, pause in pauses.items()
    ]
    return combine_rows([*lanes, *paused])


def decode_pause(packed: bytes) -> Pause:
    """Decode the pause of a queue."""
    until, since = PAUSE.unpack_from(packed)
    by, reason = _decode_pause_texts(packed[PAUSE.size :])
    end = None if packed.startswith(NEVER) else decode_time(until)
    return Pause(by=by, reason=reason, since=decode_time(since), until=end)


class LimitsReading:
    """The limits and the use of their keys, read by several runs of `list_limits.lua` and
    `list_limit_holders.lua`.
    """

    def __init__(self) -> None:
        self.cursor: bytes = b""
        self.is_finished: bool = False
        self._now: int = 0
        self._rules: dict[str, dict[str, LimitRule]] = {}
        self._changes: list[LimitChange] = []
        self._uses: dict[bytes, tuple[bytes, int]] = {}
        """The use, and the number of parked jobs, by the name of the key."""
        self._holders: dict[str, dict[str, LimitHolder]] = {}

    def add_reply(self, reply: list[Any]) -> None:
        """Add one reply of `list_limits.lua`."""
        now, self.cursor, rules, changes, rows = reply
        self._now = decode_micros(int.from_bytes(now, "big"))
        self.is_finished = self.cursor == b""
        self._rules |= {job.decode(): decode_rules(packed) for job, packed in _split_rows(rules, 2)}
        self._changes += [decode_limit_change(record) for record in changes]
        self._uses |= {name: (use, parked) for name, use, parked in _split_rows(rows, 3)}

    def add_holders(self, rows: list[Any]) -> None:
        """Add the rows of `list_limit_holders.lua`."""
        for job, found in _split_rows(rows, 2):
            by_id = self._holders.setdefault(job.decode(), {})
            by_id.update((holder.job_id, holder) for holder in decode_holders(found))

    def summarize(self, name: str | None, fullest: int) -> list[LimitInfo]:
        """Return the limits, or only the one of this name, without their holders."""
        uses = [
            decode_key_use(key, use, parked, self._rules, self._now)
            for key, (use, parked) in self._uses.items()
        ]
        found = summarize_limits(self._rules, self._changes, uses, name=name, fullest=fullest)
        return [
            msgspec.structs.replace(limit, room=self._count_room(limit))
            if get_limited_job(limit.name) in limit.rules
            else limit
            for limit in found
        ]

    def _count_room(self, limit: LimitInfo) -> int | None:
        use, _ = self._uses.get(f"{limit.name}\0".encode(), (b"0", 0))
        return None if limit.rate is None else limit.rate.count_room(read_spent(use), self._now)

    def describe_holders(self, found: list[LimitInfo], most: int) -> list[LimitInfo]:
        """Return the limits with their holders."""
        return [
            msgspec.structs.replace(limit, holders=sort_holders(self._holders[job].values())[:most])
            if (job := get_limited_job(limit.name)) in self._holders
            else limit
            for limit in found
        ]


def list_limited_jobs(limits: list[LimitInfo]) -> list[str]:
    """Return the job names whose limits have a maximum."""
    return [
        job
        for limit in limits
        if (job := get_limited_job(limit.name)) in limit.rules and limit.concurrency is not None
    ]


def decode_rules(packed: bytes) -> dict[str, LimitRule]:
    """Decode a value of the hash `limit`."""
    return {
        name: LimitRule(
            None if maximum is False else maximum,
            None if interval is False else RateLimit(rate, interval, burst, cost),
        )
        for name, maximum, interval, burst, cost, rate in _unpack_rules(packed)
    }


def read_spent(use: bytes) -> int:
    """Return until when the units of a use are spent."""
    _, *times = use.split()
    return int(times[0]) if times else 0


def decode_key_use(
    name: bytes, use: bytes, parked: int, rules: Mapping[str, Mapping[str, LimitRule]], now: int
) -> KeyUse:
    """Decode the use of a key. `rules`: the limits by job name."""
    limit, _, key = name.decode().partition("\0")
    in_use, *times = use.split()
    opens_at = int(times[1]) if parked and times and times[1] != b"-" else None
    if closes_lane(limit):
        openings = [
            rule.rate.find_opening(read_spent(use))
            for by_limit in rules.values()
            if (rule := by_limit.get(limit)) is not None
            and rule.rate is not None
            and not rule.rate.count_room(read_spent(use), now)
        ]
        opens_at = min(openings, default=None)
    return KeyUse(
        limit=limit,
        key=key,
        in_use=int(in_use),
        parked=parked,
        opens_at=None if opens_at is None else opens_at / MICRO,
    )


def decode_tenants(reply: list[Any], limit: int) -> TenantUses:
    """Decode the reply of `list_tenants.lua`."""
    rows, weights = reply
    units = sorted((tenant.decode(), int(weight)) for tenant, weight in _split_rows(weights, 2))
    return TenantUses(
        [_decode_tenant(row) for row in _split_rows(rows, 7)],
        {tenant: weight / WEIGHT_UNITS for tenant, weight in units[:limit]},
    )


def _decode_tenant(row: Sequence[Any]) -> TenantUse:
    tenant, queue, rank, weight, waiting, running, ahead = row
    return TenantUse(
        tenant=tenant.decode(),
        queue=queue.decode(),
        priority=MAX_PRIORITY - rank,
        weight=weight / WEIGHT_UNITS,
        waiting=waiting,
        running=running,
        ahead=ahead / MICRO,
    )


def _decode_turn(tenant: bytes, ahead: int, tenants_before: int, jobs_before: int) -> TenantTurn:
    return TenantTurn(
        tenant=tenant.decode(),
        ahead=ahead / MICRO,
        tenants_before=tenants_before,
        jobs_before=jobs_before,
    )


def decode_limit_change(record: bytes) -> LimitChange:
    """Decode a value of the hash `limit_change`. Its JSON has the names of `core`."""
    at = decode_time(int.from_bytes(record[:8], "big"))
    return msgspec.structs.replace(_decode_change(record[8:]), at=at)


def decode_holders(rows: list[Any]) -> list[LimitHolder]:
    """Decode the holders of a limit."""
    return [_decode_holder(*row) for row in _split_rows(rows, 3)]


def sort_holders(holders: Iterable[LimitHolder]) -> list[LimitHolder]:
    """Return holders, first the one that has counted longest."""
    return sorted(holders, key=lambda holder: (holder.started_at, holder.job_id))


def _decode_holder(started: bytes, job_id: bytes, session: bytes | None) -> LimitHolder:
    session_id, host = _decode_session_name(session or b"")
    started_at = decode_time(int.from_bytes(started, "big"))
    return LimitHolder(decode_id(job_id), session_id, host, started_at)


def decode_facts(reply: list[Any], job_id: str) -> Facts:
    """Decode the reply of `explain_job.lua`.

    Raises:
        JobNotFound: there is no such job.
    """
    if not reply:
        raise JobNotFound(job_id)
    now, names, details, pause, closing, holder, sessions, uses, parked_for, turn = reply[:10]
    unmet, unmet_count = reply[10:]
    lane_names = decode_lane_names(names)
    job = _decode_job(details, lane_names)
    key_holder = None if holder is None else decode_id(holder)
    now_micros = decode_micros(int.from_bytes(now, "big"))
    return Facts(
        now=now_micros / MICRO,
        job=job,
        pause=None if pause is None else decode_pause(pause),
        limits=_describe_lane_limits(job.name, closing, now_micros),
        keys=[
            decode_key_use(key, use, parked, {}, now_micros)
            for key, use, parked in _split_rows(uses, 3)
        ],
        parked_for=None if parked_for is None else parked_for.decode().partition("\0")[0],
        turn=_decode_turn(*turn) if turn else None,
        unmet=[_decode_unmet(job_id, row, lane_names) for row in _split_rows(unmet, 4)],
        unmet_count=unmet_count,
        key_holder=None if key_holder == job_id else key_holder,
        sessions=decode_sessions(sessions),
    )


def _decode_unmet(job_id: str, row: Sequence[Any], lane_names: dict[int, tuple[str, str]]) -> Unmet:
    kind, source_id, on, source = row
    is_job = isinstance(source, list)
    described = _decode_job(source, lane_names) if is_job else source
    return make_unmet(job_id, kind, source_id, on, described)


def _describe_lane_limits(job: str, closing: list[Any], now: int) -> list[LimitInfo]:
    packed, *rows = closing
    rules = {} if packed is None else {job: decode_rules(packed)}
    found = []
    for key, use, change, holders in _split_rows(rows, 4):
        key_use = decode_key_use(key, use, 0, rules, now)
        changes = [] if change is None else [decode_limit_change(change)]
        (limit,) = summarize_limits(rules, changes, [key_use], name=key_use.limit, fullest=1)
        if get_limited_job(limit.name) is not None:
            room = None if limit.rate is None else limit.rate.count_room(read_spent(use), now)
            limit = msgspec.structs.replace(
                limit, room=room, holders=sort_holders(decode_holders(holders))
            )
        found.append(limit)
    return found


def decode_sessions(reply: list[Any]) -> list[SessionInfo]:
    """Decode the reply of `list_sessions.lua`, oldest first."""
    rows = sorted(_split_rows(reply, 7), key=lambda row: row[1][:4])
    return [_decode_session(row[1:]) for row in rows]


def _decode_session(row: Sequence[Any]) -> SessionInfo:
    state, info, expires, running, vitals, command = row
    opened, status = SESSION_STATE.unpack_from(state)
    return _decode_session_info(info).to_info(
        opened_at=decode_time(opened),
        expires_in=int(expires) / MICRO,
        left=status == SESSION_LEFT,
        running=running,
        vitals=None if vitals is None else _decode_vitals(vitals),
        command=decode_command(command),
    )


def _split_rows(flat: list[Any], width: int) -> list[tuple[Any, ...]]:
    return list(zip(*(flat[at::width] for at in range(width)), strict=True))
