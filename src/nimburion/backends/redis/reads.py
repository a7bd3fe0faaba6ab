"""`RedisReading`: read jobs, queues, sessions, limits and statistics."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from nimburion.backends.planning.runs import RunCursor
from nimburion.backends.redis import flows, queries, records, runs
from nimburion.backends.redis.connection.command_connection import CommandPart
from nimburion.backends.redis.encoding import encode_lookup_text
from nimburion.backends.redis.queries import MAX_SORTED, SCAN_STEP, JobScan, PageScan, split_fields
from nimburion.backends.redis.record_format import STATE_CODES
from nimburion.backends.redis.server import RedisServer
from nimburion.backends.redis.statistics import StatisticsRead
from nimburion.backends.server.encoding import encode_id_or_empty
from nimburion.core.backend import MAX_HOLDERS, Reading
from nimburion.core.diagnosis.explanations import Facts
from nimburion.core.diagnosis.failure_groups import FailureGrouper, FailureGroups
from nimburion.core.fairness import TenantUses
from nimburion.core.flows import FlowInfo, FlowPage
from nimburion.core.job import FINISHED, JobRecord, State
from nimburion.core.limits import LimitInfo
from nimburion.core.metrics.statistics import Statistics, add_statistics
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


class RedisReading(Reading):
    """The operations of `Reading` for the Redis backend."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def get_job(self, job_id: str) -> JobRecord:
        reply = await self._server.run_script("get_job", encode_id_or_empty(job_id))
        return queries.decode_record(reply, job_id)

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
        # Each script checks about 500 jobs. The call also stops when it has passed 16 times
        # `budget` deleted jobs.
        scan = await open_scan(self._server, which, which.states, after)
        page = PageScan(scan, limit, budget, payload_bytes=payload_bytes if payloads else 0)
        while not page.is_finished:
            page.add_reply(await self._server.run_script("list_jobs", *page.make_arguments()))
        return page.make_page()

    async def group_failures(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        budget: int = SCAN_BUDGET,
        since: Sequence[float] = (),
    ) -> FailureGroups:
        # Each script checks 500 dead letters, which are grouped before the next one: to decode
        # all at once would hold up other tasks. Another call reads the errors of the groups
        # that it returns.
        scan = await open_scan(self._server, which, which.failed_states)
        grouper = FailureGrouper(since)
        checked, stopped = 0, 0
        while not scan.is_finished and not stopped:
            arguments = scan.make_arguments(0, max(0, budget - checked))
            after, last, stopped, count, found = await self._server.run_script(
                "list_dead_letters", *arguments
            )
            scan.advance(after, last)
            checked += count
            grouper.add(queries.decode_dead_letters(found))
        groups = grouper.list_largest(limit)
        latest = JobFilter(ids=tuple(group.job_id for group in groups))
        jobs = (await self.list_jobs(latest, limit=len(groups))).jobs if groups else []
        return FailureGroups(
            groups=queries.add_errors(groups, jobs),
            examined=checked,
            complete=scan.is_finished,
        )

    async def explain_job(self, job_id: str) -> Facts:
        # One script reads everything.
        reply = await self._server.run_script("explain_job", encode_id_or_empty(job_id))
        return queries.decode_facts(reply, job_id)

    async def get_flow(self, flow_id: str) -> list[FlowInfo]:
        reply = await self._server.run_script("get_flow", encode_id_or_empty(flow_id))
        return flows.decode_flows(reply)

    async def read_run(
        self, job_id: str, *, limit: int = 1_000, after: str | None = None
    ) -> RunPage:
        cursor = RunCursor.parse(after)
        arguments = runs.encode_read(job_id, cursor, limit)
        reply = await self._server.run_script("read_run", *arguments)
        return runs.decode_page(reply, job_id, cursor, limit)

    async def list_flows(
        self, *, running: bool = False, limit: int = 100, after: str | None = None
    ) -> FlowPage:
        arguments = flows.encode_page(limit, after, running=running)
        return flows.decode_page(await self._server.run_script("list_flows", *arguments), limit)

    async def list_limits(
        self, *, name: str | None = None, fullest: int = 5, holders: int = MAX_HOLDERS
    ) -> list[LimitInfo]:
        # Each script reads some 500 keys, or looks for holders among 2,000 leases.
        read = queries.LimitsReading()
        while not read.is_finished:
            read.add_reply(await self._server.run_script("list_limits", read.cursor))
        found = read.summarize(name, fullest)
        jobs = queries.list_limited_jobs(found) if holders > 0 else []
        following: int | None = 0 if jobs else None
        while following is not None:
            following, rows = await self._server.run_script("list_limit_holders", following, *jobs)
            read.add_holders(rows)
        return read.describe_holders(found, min(holders, MAX_HOLDERS))

    async def list_tenants(self, limit: int = 100) -> TenantUses:
        return queries.decode_tenants(await self._server.run_script("list_tenants", limit), limit)

    async def list_statistics(
        self,
        since: float,
        until: float,
        step: int,
        *,
        queue: str | None = None,
        name: str | None = None,
    ) -> list[Statistics]:
        # Each script reads up to 100 intervals.
        read = StatisticsRead(since, until, step, queue, name)
        await finish_read(self._server, read)
        return add_statistics(read.rows)

    async def get_record(self, kind: RecordKind, record_id: str) -> Record | None:
        arguments = records.encode_lookup(kind, record_id)
        return records.decode_record(await self._server.run_script("get_record", *arguments))

    async def list_records(
        self,
        kind: RecordKind,
        *,
        limit: int = 100,
        after: str | None = None,
        by_due: bool = False,
    ) -> RecordPage:
        arguments = records.encode_page(kind, limit, after, by_due=by_due)
        reply = await self._server.run_script("list_records", *arguments)
        return records.decode_page(reply, limit)

    async def count_jobs(
        self,
        queue: str | None = None,
        *,
        budget: int | None = COUNT_BUDGET,  # noqa: ARG002 (reads counters)
    ) -> JobCounts:
        arguments = [] if queue is None else [encode_lookup_text(queue)]
        return queries.decode_counts(await self._run_counting_script("count_jobs", *arguments))

    async def list_queues(
        self,
        *,
        budget: int | None = COUNT_BUDGET,  # noqa: ARG002 (reads counters)
    ) -> list[QueueInfo]:
        return queries.decode_queues(await self._run_counting_script("list_queues"))

    async def list_sessions(self) -> list[SessionInfo]:
        return queries.decode_sessions(await self._server.run_script("list_sessions"))

    async def _run_counting_script(self, name: str, *arguments: CommandPart) -> list[Any]:
        """Run a script that counts jobs, and return its reply. The script counts up to 500 due jobs
        as ready before they are promoted. If there are more, they are promoted first.
        """
        while not (reply := await self._server.run_script(name, *arguments)):
            await self._server.run_script("promote", SCAN_STEP)
        return reply  # type: ignore[no-any-return]


async def open_scan(
    server: RedisServer,
    which: JobFilter,
    states: frozenset[State] | None,
    after: str | None = None,
) -> JobScan:
    """Start a scan over the jobs of a filter. It covers the listed ids if the filter has ids.
    It covers only the unfinished jobs if the filter allows no others and there are few.
    Otherwise it covers all jobs.
    """
    fields: Iterable[bytes] | None = None
    if which.ids is not None:
        fields = await _find_fields(server, which.ids)
    elif states and states.isdisjoint(FINISHED):
        codes = "".join(STATE_CODES[state] for state in states)
        fields = split_fields(await server.run_script("find_unfinished", codes, MAX_SORTED))
    return JobScan(which, states, after, fields=fields)


async def _find_fields(server: RedisServer, ids: Collection[str]) -> list[bytes]:
    """Return the fields (encoded seqs) of the jobs with these ids; unknown ids are skipped."""
    arguments, found = sorted({encode_id_or_empty(job_id) for job_id in ids}), []
    for at in range(0, len(arguments), SCAN_STEP):
        found += await server.run_script("find_jobs", *arguments[at : at + SCAN_STEP])
    return [field for field in found if field is not None]


async def finish_read(server: RedisServer, read: StatisticsRead) -> None:
    """Read the intervals of statistics that are left. Each script reads up to 100."""
    keys = server.get_connections().keys
    while not read.is_finished:
        call = read.make_call(keys)
        reply = await server.run_script("list_statistics", *call.arguments, more_keys=call.keys)
        read.add_reply(reply)
