"""Queries: encode the arguments of read-only functions, and decode their rows into records."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Any

import msgspec

from nimburion.backends.lane_limits import (
    KeySums,
    StoredLaneLimit,
    describe_limits,
    make_key_use,
    make_rate,
)
from nimburion.backends.postgres.encoding import (
    MAX_INT8,
    decode_job_options,
    encode_lookup_text,
    to_optional_seconds,
    to_seconds,
)
from nimburion.backends.queue_rows import LaneRow, combine_rows
from nimburion.backends.server.encoding import decode_id, encode_id_or_empty, encode_json
from nimburion.core.diagnosis.explanations import Facts
from nimburion.core.diagnosis.failure_groups import FailureGroup, FailureGroups
from nimburion.core.errors import JobNotFound
from nimburion.core.fairness import WEIGHT_UNITS, TenantTurn, TenantUse, TenantUses
from nimburion.core.job import AttemptError, JobRecord, Progress, State
from nimburion.core.limits import (
    JobLimit,
    LimitChange,
    LimitHolder,
    LimitInfo,
    LimitRule,
    LimitUse,
    make_job_limit_name,
)
from nimburion.core.metrics.statistics import Counters, Statistics, add_statistics, check_interval
from nimburion.core.queries import JobCounts, JobFilter, Page, Pause, QueueInfo, parse_cursor
from nimburion.core.rate_limits import RateLimit
from nimburion.core.session import (
    Session,
    SessionInfo,
    Vitals,
    WorkerCommand,
)
from nimburion.core.timing.clock import MICRO, to_micros

_decode_session_info = msgspec.json.Decoder(Session).decode
_decode_error = msgspec.json.Decoder(AttemptError).decode
_decode_vitals = msgspec.json.Decoder(Vitals).decode
_decode_counters = msgspec.json.Decoder(Counters).decode
_MAX_INT4 = (1 << 31) - 1


# --- filters --------------------------------------------------------------------------------------


def encode_filter(which: JobFilter, states: frozenset[State] | None) -> list[Any]:
    """Encode a filter for the functions."""
    return [
        None if states is None else sorted(state.value for state in states),
        *(None if name is None else encode_lookup_text(name) for name in (which.queue, which.name)),
        None if which.reason is None else encode_lookup_text(which.reason) or "\ufffd",
        None if which.ids is None else sorted({encode_id_or_empty(job_id) for job_id in which.ids}),
    ]


def encode_search(which: JobFilter) -> list[Any]:
    """Encode the fields of a filter that have no index."""
    times = (which.created_from, which.created_to, which.finished_from, which.finished_to)
    least = which.min_failures
    return [
        *(None if time is None else _encode_time_bound(time) for time in times),
        *(
            None if one is None else _encode_option(one)
            for one in (which.tenant, which.correlation_id, which.tag)
        ),
        None if which.fingerprint is None else encode_lookup_text(which.fingerprint),
        None if which.flow is None else _encode_option(which.flow),
        None if least is None else min(max(least, 0), _MAX_INT4),
    ]


def _encode_time_bound(seconds: float) -> int:
    """Return a time in microseconds. Times beyond all that can be stored are limited to these."""
    return to_micros(min(max(seconds, -1e12), 1e12))


def _encode_option(text: str) -> str:
    """Return a text as the JSON of the options contains it."""
    try:
        return encode_json(text).decode()
    except UnicodeEncodeError:
        return ""


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


def decode_jobs(rows: list[Any]) -> list[JobRecord]:
    """Decode the rows of `get_jobs_1`."""
    return [_decode_job(row) for row in rows]


def decode_page(rows: list[Any], status: Any) -> Page:  # noqa: ANN401 - a row
    """Decode one page of records. `status` is the last row of `find_jobs_1`."""
    following = None if status["seq"] is None else str(status["seq"])
    return Page(decode_jobs(rows), following, status["examined"])


def decode_failure_groups(rows: list[Any]) -> FailureGroups:
    """Decode the rows of `group_failures_1`."""
    groups = []
    for fingerprint, number, first, last, names, job_id, body, counts in rows[:-1]:
        error = _decode_error(body)
        groups.append(
            FailureGroup(
                fingerprint=fingerprint,
                count=number,
                first=to_seconds(first),
                last=to_seconds(last),
                names=tuple(names),
                type=error.type,
                message=error.message,
                job_id=decode_id(job_id),
                counts_since=tuple(counts),
            )
        )
    status = rows[-1]
    return FailureGroups(groups=groups, examined=status["number"], complete=status["last"] is None)


def _decode_job(row: Any) -> JobRecord:  # noqa: ANN401 - a row
    fraction = row["fraction"]
    history = zip(row["history_at"] or (), row["history"] or (), strict=True)
    return JobRecord(
        id=decode_id(row["id"]),
        name=row["name"],
        queue=row["queue"],
        state=State(row["state"]),
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
        ended_by=row["ended_by"],
        host=row["host"] or "",
        options=decode_job_options(row["options"]),
    )


# --- numbers --------------------------------------------------------------------------------------


def decode_counts(rows: list[Any]) -> JobCounts:
    """Decode the rows of `count_by_state_1`."""
    counts = JobCounts(dict.fromkeys(State, 0))
    for state, number, is_complete in rows:
        counts[State(state)] += number
        counts.is_complete = counts.is_complete and is_complete
    return counts


def decode_queues(rows: list[Any]) -> list[QueueInfo]:
    """Decode the rows of `list_queues_1`, sorted by name."""
    return combine_rows(
        LaneRow(
            queue=queue,
            name=name,
            size=size,
            scheduled=scheduled,
            processing=processing,
            age=None if age is None else max(0, age) / MICRO,
            paused=paused,
            pause=_decode_pause(*pause) if paused else None,
            size_complete=size_complete,
            scheduled_complete=scheduled_complete,
        )
        for (
            queue, name, size, scheduled, processing, age, size_complete, scheduled_complete,
            paused, *pause
        ) in rows
    )  # fmt: skip


def _decode_pause(since: int, ends_at: int | None, paused_by: str, reason: str) -> Pause:
    return Pause(
        by=paused_by, reason=reason, since=to_seconds(since), until=to_optional_seconds(ends_at)
    )


LimitRow = tuple[
    str, str, int | None, str | None, int | None, int | None, int, int | None, int | None
]
"""A row of `limit_rule`: job name, limit, concurrency, rate, interval, burst and cost. Then in_use
and spent_until, if the limit closes lanes.
"""


def decode_limits(
    rules: list[Any],
    fullest_keys: list[Any],
    changes: list[Any],
    holders: list[Any],
    *,
    name: str | None,
    fullest: int,
) -> list[LimitInfo]:
    """Decode the rows of `limit_rule` after the time, of `list_fullest_keys_1`, of `limit_change`
    and of `list_limit_holders_1`.
    """
    held: dict[str, list[LimitHolder]] = {}
    for limit, *holder in holders:
        held.setdefault(limit, []).append(_make_holder(*holder))
    stored: list[LimitRow] = [tuple(row)[1:] for row in rules if row[1] is not None]
    return describe_limits(
        _make_rules(stored),
        _decode_limit_changes(changes),
        _make_lane_limits(stored),
        [(make_key_use(*tuple(row)[:5]), KeySums(*tuple(row)[5:])) for row in fullest_keys],
        held,
        now=rules[0][0],
        name=name,
        fullest=fullest,
    )


def _make_rules(rows: Iterable[LimitRow]) -> dict[str, dict[str, LimitRule]]:
    """Return the limits in force, by job name and limit name."""
    rules: dict[str, dict[str, LimitRule]] = {}
    for job, limit, concurrency, rate, interval, burst, cost, _, _ in rows:
        rule = LimitRule(concurrency, make_rate(rate, interval, burst, cost))
        rules.setdefault(job, {})[limit] = rule
    return rules


def _make_lane_limits(rows: Iterable[LimitRow]) -> list[StoredLaneLimit]:
    """Return the limits that close lanes."""
    return [
        StoredLaneLimit(
            JobLimit((limit, ""), concurrency, make_rate(rate, interval, burst, cost)),
            LimitUse(in_use, spent_until or 0),
        )
        for _, limit, concurrency, rate, interval, burst, cost, in_use, spent_until in rows
        if in_use is not None
    ]


def _make_holder(job_id: bytes, session: str, host: str, started_at: int) -> LimitHolder:
    return LimitHolder(decode_id(job_id), session, host, to_seconds(started_at))


def _decode_limit_changes(rows: list[Any]) -> list[LimitChange]:
    """Decode the rows of `limit_change`."""
    return [
        LimitChange(
            name=name,
            key=key if for_key else None,
            concurrency=concurrency,
            rate=None if rate is None else RateLimit(rate, interval, burst),
            at=to_seconds(at),
            by=by,
            reason=reason,
        )
        for name, for_key, key, concurrency, rate, interval, burst, at, by, reason in rows
    ]


def decode_tenants(rows: list[Any], weights: list[Any]) -> TenantUses:
    """Decode the rows of `list_tenants_1` and of `tenant_weight`."""
    return TenantUses(
        [
            TenantUse(
                tenant=tenant,
                queue=queue,
                priority=9 - rank,
                weight=units / WEIGHT_UNITS,
                waiting=waiting,
                running=running,
                ahead=max(0, ahead) / MICRO,
            )
            for queue, rank, tenant, units, waiting, running, ahead in rows
        ],
        {tenant: units / WEIGHT_UNITS for tenant, units in weights},
    )


def decode_turn(body: str) -> TenantTurn:
    """Decode the row of `find_turn_1`, as JSON."""
    tenant, ahead, tenants_before, jobs_before = _decode_turn(body)
    return TenantTurn(
        tenant=tenant,
        ahead=max(0, ahead) / MICRO,
        tenants_before=tenants_before,
        jobs_before=jobs_before,
    )


def decode_facts(rows: list[Any], job_id: str) -> Facts:
    """Decode the row of a job with the columns of `explain_job_1`.

    Raises:
        JobNotFound: there is no such job.
    """
    if not rows:
        raise JobNotFound(job_id)
    (row,) = rows
    job = _decode_job(row)
    pause = None
    if row["since"] is not None:
        pause = _decode_pause(*(row[column] for column in _PAUSE_COLUMNS))
    held = zip(*(row[f"holder_{column}"] or () for column in _HOLDER_COLUMNS), strict=True)
    stored = _decode_limit_rows(row["lane_limits"] or "[]")
    opened = [row[f"open_{column}"] or () for column in _SESSION_COLUMNS]
    return Facts(
        now=to_seconds(row["now"]),
        job=job,
        pause=pause,
        limits=describe_limits(
            _make_rules(stored),
            (),
            _make_lane_limits(stored),
            (),
            {make_job_limit_name(job.name): [_make_holder(*holder) for holder in held]},
            now=row["now"],
            name=None,
            fullest=1,
        ),
        keys=[make_key_use(*use) for use in _decode_key_rows(row["key_uses"] or "[]")],
        parked_for=row["parked_for"],
        turn=None if row["turn"] is None else decode_turn(row["turn"]),
        key_holder=None if row["key_holder"] is None else decode_id(row["key_holder"]),
        sessions=decode_sessions(list(zip(*opened, strict=True))),
    )


_decode_key_rows = msgspec.json.Decoder(list[tuple[str, str, int, int, int | None]]).decode
_decode_limit_rows = msgspec.json.Decoder(list[LimitRow]).decode
_decode_turn = msgspec.json.Decoder(tuple[str, int, int, int]).decode
_HOLDER_COLUMNS = ("ids", "sessions", "hosts", "started_at")
_PAUSE_COLUMNS = ("since", "ends_at", "paused_by", "pause_reason")
_SESSION_COLUMNS = (
    "ids",
    "descriptions",
    "opened_at",
    "expires_in",
    "has_left",
    "running",
    "vitals",
    "commands",
)


def decode_sessions(rows: list[Any]) -> list[SessionInfo]:
    """Decode the rows of `list_sessions_1`, oldest first."""
    return [_make_session_info(row) for row in rows]


def _make_session_info(columns: Iterable[Any]) -> SessionInfo:
    _, description, opened_at, expires_in, has_left, running, vitals, command = columns
    return _decode_session_info(description).to_info(
        opened_at=to_seconds(opened_at),
        expires_in=expires_in / MICRO,
        left=bool(has_left),
        running=running,
        vitals=None if vitals is None else _decode_vitals(vitals),
        command=None if command is None else WorkerCommand(command),
    )


# --- statistics -----------------------------------------------------------------------------------


def encode_interval(since: float, until: float, step: int) -> list[int] | None:
    """Return step, first and past-the-end start of the intervals in a range; None: there are none.

    Raises:
        InvalidJob: the step or the range is not valid.
    """
    check_interval(since, until, step)
    if not since < until:
        return None
    first, past_end = (min(max(ceil(time), -MAX_INT8), MAX_INT8) for time in (since, until))
    return [step, first, past_end]


def decode_statistics(rows: list[Any]) -> list[Statistics]:
    """Add up the counters of all sources."""
    return add_statistics(
        Statistics(
            step=step, start=start, queue=queue, name=name, counters=_decode_counters(counters)
        )
        for step, start, queue, name, counters in rows
    )
