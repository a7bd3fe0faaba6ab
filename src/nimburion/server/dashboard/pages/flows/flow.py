"""The page of one flow: its counts, its graph as a picture, and its jobs."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.actions.flow_members import FlowMembers, list_group
from nimburion.actions.flow_view import FlowView, make_view
from nimburion.actions.flows import FlowTree, count_unfinished_jobs
from nimburion.core.backend import Backend
from nimburion.core.errors import FlowNotFound
from nimburion.core.flows import FlowInfo
from nimburion.core.job import JobRecord, State
from nimburion.core.queries import JobFilter
from nimburion.server.api import flows as flow_operations
from nimburion.server.api.flows import MAX_AT_ONCE, FlowChangeReport
from nimburion.server.api.jobs import JobSummary, summarize_job
from nimburion.server.api.names import JobCursor, Name
from nimburion.server.dashboard.flows.graph import FlowBox, make_boxes
from nimburion.server.dashboard.flows.picture import (
    count_states,
    describe_counts,
    draw_flow,
    draw_state_bar,
)
from nimburion.server.dashboard.flows.waits import (
    MAX_SOURCES,
    SourceView,
    read_flow_members,
    read_sources,
)
from nimburion.server.dashboard.page import (
    DashboardAction,
    DashboardPage,
    PageRequest,
    find_operation,
)

PAGE_SIZE = 50


class FlowPageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which jobs of the flow to list."""

    state: State | None = None
    group: Name | None = None
    """The id of the group whose jobs are listed; None: the jobs of the whole flow."""
    start: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """The number of the first job of the group to list, or of the jobs that were found."""
    after: JobCursor | None = None
    """Where the list of the whole flow continues."""


class MemberRow(msgspec.Struct, frozen=True, kw_only=True):
    """One job of the flow."""

    job: JobSummary
    sources: list[SourceView]
    """What it waits for, or waited for, if it has not run."""


class FlowPageData(msgspec.Struct, frozen=True, kw_only=True):
    """One flow."""

    now: float
    """When the page was read, in epoch seconds."""
    flow: FlowView
    group: FlowView | None
    """The group whose jobs are listed; None: those of the whole flow."""
    boxes: list[FlowBox]
    left: int
    """How many of its jobs have not ended, or are not stored yet."""
    missing: int
    """How many members that are in no group were not found, so that the picture lacks them."""
    searched: int
    """The number of jobs of the backend that were searched for members."""
    members: list[MemberRow]
    next: str | None
    """Where the list of the jobs of the whole flow continues."""
    next_start: int | None
    """The `start` with which the list continues."""
    examined: int
    """The number of jobs that were examined for the list."""


class _ListedMembers(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs that the page lists."""

    rows: list[MemberRow]
    next: str | None = None
    next_start: int | None = None
    examined: int
    now: float


async def read_flow(request: PageRequest[FlowPageQuery]) -> FlowPageData:
    """Read a flow, its graph, and some of its jobs."""
    readings, query, flow_id = request.readings, request.query, request.path["flow"]
    members = await read_flow_members(readings, flow_id)
    group = _find_group(members, query.group)

    async def read() -> _ListedMembers:
        return await _list_members(request, members, group)

    listed = await readings.read(f"flow members {flow_id} {query}", read)
    return FlowPageData(
        now=listed.now,
        flow=make_view(members.tree),
        group=None if group is None else make_view(group),
        boxes=make_boxes(members),
        left=count_unfinished_jobs(members.tree),
        missing=members.missing,
        searched=members.examined,
        members=listed.rows,
        next=listed.next,
        next_start=listed.next_start,
        examined=listed.examined,
    )


def _find_group(members: FlowMembers, group_id: str | None) -> FlowTree | None:
    """Return the group with this id. Raises `FlowNotFound`."""
    if group_id is None:
        return None
    for group in members.groups:
        if group.id == group_id:
            return group
    raise FlowNotFound(group_id)


async def _list_members(
    request: PageRequest[FlowPageQuery], members: FlowMembers, group: FlowInfo | None
) -> _ListedMembers:
    """List jobs of the group by their numbers, or search for those of the whole flow."""
    backend, query, now = request.readings.backend, request.query, request.readings.now
    states = None if query.state is None else frozenset({query.state})
    which = JobFilter(flow=request.path["flow"], states=states)
    if group is not None:
        records, following = await list_group(backend, group, which, query.start, PAGE_SIZE)
        examined = max(0, (group.members if following is None else following) - query.start)
        rows = await _make_rows(backend, members, records, now)
        return _ListedMembers(rows=rows, next_start=following, examined=examined, now=now)
    if not members.tree.groups and not members.missing:
        return await _list_known(request, members, now)
    # Backends list the failed jobs without the others, so that search begins with the newest.
    start = None if query.state is State.FAILED else members.start
    after = query.after or start
    page = await backend.reads.list_jobs(which, limit=PAGE_SIZE, after=after)
    rows = await _make_rows(backend, members, page.jobs, now)
    return _ListedMembers(rows=rows, next=page.next, examined=page.examined, now=now)


async def _list_known(
    request: PageRequest[FlowPageQuery], members: FlowMembers, now: float
) -> _ListedMembers:
    """List members that were all found, the one stored last first."""
    query = request.query
    known = [
        record
        for record in sorted(members.records.values(), key=lambda one: one.created_at, reverse=True)
        if record.options.counted_flow is not None and query.state in (None, record.state)
    ]
    shown = known[query.start : query.start + PAGE_SIZE]
    end = query.start + len(shown)
    return _ListedMembers(
        rows=await _make_rows(request.readings.backend, members, shown, now),
        next_start=end if end < len(known) else None,
        examined=len(members.records),
        now=now,
    )


async def _make_rows(
    backend: Backend, members: FlowMembers, records: list[JobRecord], now: float
) -> list[MemberRow]:
    idle = [one for one in records if one.state in {State.SUSPENDED, State.CANCELLED}]
    sources = await read_sources(backend, members, idle, now)
    return [MemberRow(job=summarize_job(one), sources=sources.get(one.id, [])) for one in records]


FLOW = DashboardPage(
    path="/flows/{flow}",
    title="Flow {flow}",
    section="Flows",
    read=read_flow,
    template="flows/flow.html",
    tables=("members", "boxes"),
    query=FlowPageQuery,
    constants={
        "count_states": count_states,
        "describe_counts": describe_counts,
        "draw_flow": draw_flow,
        "draw_state_bar": draw_state_bar,
        "max_at_once": MAX_AT_ONCE,
        "max_sources": MAX_SOURCES,
    },
)


def describe_cancel(report: FlowChangeReport) -> str:
    """Return what the cancel of a flow did."""
    jobs = f"{report.changed} job{'' if report.changed == 1 else 's'}"
    return f"{jobs} cancelled. Those that run are ended by their workers."


ACTIONS = (
    DashboardAction(
        path="/flows/{flow}/cancel",
        operation=find_operation(flow_operations.OPERATIONS, "cancel_flow"),
        done="The members of the flow that had not ended are cancelled.",
        back="/flows/{flow}",
        describe=describe_cancel,
    ),
    DashboardAction(
        path="/flows/{flow}/close",
        operation=find_operation(flow_operations.OPERATIONS, "close_flow"),
        done="The flow is closed: it ends with its last member.",
        back="/flows/{flow}",
    ),
)
