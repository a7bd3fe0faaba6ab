"""`PostgresReading`: read jobs, queues, sessions, limits and statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from nimburion.backends.planning.flows import REOPENED_REASONS
from nimburion.backends.planning.runs import RunCursor
from nimburion.backends.postgres import flows, queries, records, runs
from nimburion.backends.postgres.database import LARGE_READ_TIMEOUT, PostgresDatabase, make_call
from nimburion.backends.postgres.encoding import encode_lookup_text
from nimburion.backends.server.encoding import decode_id, encode_id_or_empty
from nimburion.core.backend import MAX_HOLDERS, Reading
from nimburion.core.diagnosis.explanations import MAX_UNMET, Facts, Unmet
from nimburion.core.diagnosis.failure_groups import GROUP_NAMES, FailureGroups
from nimburion.core.fairness import MAX_WAITING_COUNTED, TenantUses
from nimburion.core.flows import FlowInfo, FlowPage, SourceKind
from nimburion.core.job import JobRecord, State
from nimburion.core.limits import LimitInfo, get_limited_job
from nimburion.core.metrics.statistics import Statistics
from nimburion.core.queries import (
    COUNT_BUDGET,
    EVERY_JOB,
    SCAN_BUDGET,
    WHOLE_PAYLOAD,
    JobCounts,
    JobFilter,
    Page,
    QueueInfo,
)
from nimburion.core.records import (
    Record,
    RecordKind,
    RecordPage,
)
from nimburion.core.runs import RunPage
from nimburion.core.session import SessionInfo
from nimburion.core.timing.clock import to_micros

_LIST_LIMIT_CHANGES = """SELECT name, for_key, key, concurrency, rate, interval, burst, changed_at,
    changed_by, reason FROM {schema}.limit_change ORDER BY name, for_key, key"""
_GET_JOBS = "SELECT * FROM {schema}.get_jobs_1({schema}.get_read_time_1($1), $2, $3::int4)"
_NO_PAYLOADS = 0
_READ_RUN = make_call("read_run_1", 5)
_LIST_UNMET = "SELECT * FROM {schema}.list_unmet_1($1, $2)"
_GROUP_FAILURES = make_call("group_failures_1", 20)
_FIND_JOBS = """SELECT seq, id, examined FROM {schema}.find_jobs_1({schema}.get_read_time_1($1),
    $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)"""
_LIST_RULES = """SELECT t.now, r.job_name, r.limit_name, r.concurrency, r.rate, r.interval, r.burst,
    r.cost, u.in_use, u.spent_until
    FROM {schema}.get_read_time_1($1) AS t (now) LEFT JOIN {schema}.limit_rule r ON true
    LEFT JOIN {schema}.limit_use u
        ON r.closes_lane AND u.key = '' AND u.limit_name = r.limit_name"""
"""Their rows hold the time, also if there are no rules."""
_EXPLAIN = """SELECT g.*, e.*, h.*, t.now, (
        SELECT json_agg(json_build_array(g.name, l.limit_name, l.concurrency, l.rate, l.unit_time,
            l.burst, l.cost, l.in_use, l.spent_until) ORDER BY l.limit_name)
        FROM {schema}.list_lane_limits_1(g.queue, g.name) l
    ) AS lane_limits, (
        SELECT json_agg(json_build_array(k.limit_name, k.key, k.in_use, k.parked, k.opens_at))
        FROM {schema}.list_key_uses_1(g.name, g.seq) k
    ) AS key_uses, (
        SELECT p.limit_name FROM {schema}.parked p WHERE p.seq = g.seq
    ) AS parked_for, (
        SELECT json_build_array(u.tenant, u.ahead, u.tenants_before, u.jobs_before)
        FROM {schema}.find_turn_1(g.id, 10000) u
    ) AS turn FROM {schema}.get_read_time_1($1) AS t (now),
    {schema}.get_jobs_1(t.now, ARRAY[$3]::bytea[], 0) g,
    {schema}.explain_job_1(t.now, coalesce($2, t.now), g.id, g.queue, g.name, g.options) e,
    LATERAL (
        SELECT array_agg(h.id) AS holder_ids, array_agg(h.session) AS holder_sessions,
            array_agg(h.host) AS holder_hosts, array_agg(h.started_at) AS holder_started_at
        FROM {schema}.list_limit_holders_1(g.name, $4) h
    ) h"""
"""One statement, so that everything is read in one snapshot."""
_STATISTICS = """SELECT step, start, queue, name, counters FROM {schema}.statistics
    WHERE step = $1 AND start >= $2 AND start < $3
        AND ($4::text IS NULL OR queue = $4) AND ($5::text IS NULL OR name = $5)"""
_RECORD = ", ".join(records.COLUMNS)
_GET_RECORD = f"SELECT {_RECORD} FROM {{schema}}.record WHERE kind = $1 AND id = $2"  # noqa: S608
_LIST_RECORDS = f"""SELECT t.now, r.* FROM {{schema}}.get_read_time_1($1) AS t (now) LEFT JOIN (
        SELECT {_RECORD} FROM {{schema}}.record WHERE kind = $2 AND position < $4
        ORDER BY position DESC LIMIT $3
    ) r ON true ORDER BY r.position DESC"""  # noqa: S608 - names of ours
_LIST_DUE_RECORDS = f"""SELECT t.now, r.* FROM {{schema}}.get_read_time_1($1) AS t (now) LEFT JOIN (
        SELECT {_RECORD} FROM {{schema}}.record WHERE kind = $2 AND due IS NOT NULL
        ORDER BY due, position LIMIT $3
    ) r ON true ORDER BY r.due, r.position"""  # noqa: S608 - names of ours
"""Their rows hold the time of the page, also if there are no records."""


class PostgresReading(Reading):
    """The operations of `Reading` for the PostgreSQL backend."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def get_job(self, job_id: str) -> JobRecord:
        rows = await self._database.fetch(
            """SELECT *
            FROM {schema}.get_jobs_1({schema}.get_read_time_1($1), ARRAY[$2]::bytea[], $3::int4)""",
            self._database.now(),
            encode_id_or_empty(job_id),
            WHOLE_PAYLOAD,
        )
        return queries.decode_record(rows, job_id)

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
        payload_bytes: int = WHOLE_PAYLOAD,
        budget: int = SCAN_BUDGET,
    ) -> Page:
        now = self._database.now()
        *found, status = await self._database.fetch(
            _FIND_JOBS,
            now,
            *queries.encode_filter(which, which.states),
            *queries.encode_search(which),
            queries.encode_cursor(after),
            limit,
            budget,
            extra_time=LARGE_READ_TIMEOUT,
        )
        rows = await self._database.fetch(
            _GET_JOBS,
            now,
            [packed for _, packed, _ in found],
            payload_bytes if payloads else 0,
        )
        return queries.decode_page(rows, status)

    async def group_failures(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        budget: int = SCAN_BUDGET,
        since: Sequence[float] = (),
    ) -> FailureGroups:
        rows = await self._database.fetch(
            _GROUP_FAILURES,
            self._database.now(),
            *queries.encode_filter(which, which.failed_states),
            *queries.encode_search(which),
            limit,
            budget,
            GROUP_NAMES,
            [to_micros(time) for time in since],
            extra_time=LARGE_READ_TIMEOUT,
        )
        return queries.decode_failure_groups(rows)

    async def explain_job(self, job_id: str) -> Facts:
        rows = await self._database.fetch(
            _EXPLAIN,
            self._database.now(),
            self._database.monotonic(),
            encode_id_or_empty(job_id),
            MAX_HOLDERS,
        )
        found = queries.decode_facts(rows, job_id)
        if found.job.state is not State.SUSPENDED and found.job.reason not in REOPENED_REASONS:
            return found
        unmet, count = await self._list_unmet(job_id)
        return msgspec.structs.replace(found, unmet=unmet, unmet_count=count)

    async def _list_unmet(self, job_id: str) -> tuple[list[Unmet], int]:
        """Return the first conditions of `list_unmet_1`, and the number of all."""
        rows = await self._database.fetch(_LIST_UNMET, encode_id_or_empty(job_id), MAX_UNMET)
        jobs: list[Any] = []
        if sources := [source for kind, source, *_ in rows if kind == SourceKind.JOB]:
            jobs = await self._database.fetch(
                _GET_JOBS, self._database.now(), sources, _NO_PAYLOADS
            )
        trees = [
            await self.get_flow(decode_id(source))
            for kind, source, *_ in rows
            if kind == SourceKind.FLOW
        ]
        return flows.decode_unmet(
            rows, queries.decode_jobs(jobs), [tree[0] for tree in trees if tree]
        )

    async def get_flow(self, flow_id: str) -> list[FlowInfo]:
        rows = await self._database.fetch(
            "SELECT * FROM {schema}.get_flows_1($1)", encode_id_or_empty(flow_id)
        )
        return [flows.decode_flow(row) for row in rows]

    async def read_run(
        self, job_id: str, *, limit: int = 1_000, after: str | None = None
    ) -> RunPage:
        cursor = RunCursor.parse(after)
        rows = await self._database.fetch(_READ_RUN, *runs.encode_cursor(job_id, cursor, limit))
        return runs.decode_page(rows, job_id, cursor, limit)

    async def list_flows(
        self, *, running: bool = False, limit: int = 100, after: str | None = None
    ) -> FlowPage:
        rows = await self._database.fetch(
            "SELECT * FROM {schema}.list_flows_1($1, $2, $3)",
            running,
            queries.encode_cursor(after),
            limit + 1,
        )
        return flows.decode_page(rows, limit)

    async def list_limits(
        self, *, name: str | None = None, fullest: int = 5, holders: int = MAX_HOLDERS
    ) -> list[LimitInfo]:
        holders = max(0, min(holders, MAX_HOLDERS))
        stored = None if name is None else encode_lookup_text(name)
        fetch = self._database.fetch
        held: list[Any] = []
        if holders > 0 and (name is None or get_limited_job(name) is not None):
            job = None if stored is None else get_limited_job(stored)
            held = await fetch("SELECT * FROM {schema}.list_limit_holders_1($1, $2)", job, holders)
        return queries.decode_limits(
            await fetch(_LIST_RULES, self._database.now()),
            await fetch(
                "SELECT * FROM {schema}.list_fullest_keys_1($1, $2)", stored, max(1, fullest)
            ),
            await fetch(_LIST_LIMIT_CHANGES),
            held,
            name=name,
            fullest=fullest,
        )

    async def list_tenants(self, limit: int = 100) -> TenantUses:
        uses = "SELECT * FROM {schema}.list_tenants_1($1, $2)"
        weights = "SELECT tenant, units FROM {schema}.tenant_weight ORDER BY tenant LIMIT $1"
        return queries.decode_tenants(
            await self._database.fetch(uses, MAX_WAITING_COUNTED, limit),
            await self._database.fetch(weights, limit),
        )

    async def list_statistics(
        self,
        since: float,
        until: float,
        step: int,
        *,
        queue: str | None = None,
        name: str | None = None,
    ) -> list[Statistics]:
        interval = queries.encode_interval(since, until, step)
        if interval is None:
            return []
        filters = (None if one is None else encode_lookup_text(one) for one in (queue, name))
        rows = await self._database.fetch(
            _STATISTICS, *interval, *filters, extra_time=LARGE_READ_TIMEOUT
        )
        return queries.decode_statistics(rows)

    async def get_record(self, kind: RecordKind, record_id: str) -> Record | None:
        rows = await self._database.fetch(_GET_RECORD, *records.encode_lookup(kind, record_id))
        return records.decode_record(rows[0]) if rows else None

    async def list_records(
        self,
        kind: RecordKind,
        *,
        limit: int = 100,
        after: str | None = None,
        by_due: bool = False,
    ) -> RecordPage:
        now = self._database.now()
        if by_due:
            rows = await self._database.fetch_for_worker(_LIST_DUE_RECORDS, now, kind, limit)
        else:
            before = queries.encode_cursor(after)
            rows = await self._database.fetch(_LIST_RECORDS, now, kind, limit + 1, before)
        return records.decode_page(rows, limit)

    async def count_jobs(
        self, queue: str | None = None, *, budget: int | None = COUNT_BUDGET
    ) -> JobCounts:
        arguments = None if queue is None else encode_lookup_text(queue), share_budget(budget)
        statement = "SELECT * FROM {schema}.count_by_state_1({schema}.get_read_time_1($1), $2, $3)"
        return queries.decode_counts(
            await self._database.fetch(
                statement, self._database.now(), *arguments, extra_time=LARGE_READ_TIMEOUT
            )
        )

    async def list_queues(self, *, budget: int | None = COUNT_BUDGET) -> list[QueueInfo]:
        statement = "SELECT * FROM {schema}.list_queues_1({schema}.get_read_time_1($1), $2)"
        return queries.decode_queues(
            await self._database.fetch(statement, self._database.now(), share_budget(budget))
        )

    async def list_sessions(self) -> list[SessionInfo]:
        statement = "SELECT * FROM {schema}.list_sessions_1({schema}.get_read_time_1($1))"
        return queries.decode_sessions(
            await self._database.fetch_for_worker(statement, self._database.monotonic())
        )


def share_budget(budget: int | None) -> int | None:
    """Return how many jobs are counted in each table: due, parked, scheduled, and dead letters."""
    return None if budget is None else max(1, budget // 4)
