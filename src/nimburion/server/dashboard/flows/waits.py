"""What jobs of a flow wait for, as pages show it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nimburion.actions.flow_members import FlowMembers, read_dependencies, read_members
from nimburion.actions.flow_view import FlowView, make_view
from nimburion.actions.flows import check_is_whole, read_tree
from nimburion.core.backend import Backend
from nimburion.core.diagnosis.explanations import describe_source
from nimburion.core.errors import FlowNotFound
from nimburion.core.flows import On, SourceKind
from nimburion.core.job import JobRecord
from nimburion.server.dashboard.flows.graph import make_group_link
from nimburion.server.dashboard.readings import PageReadings

MEMBERS_AGE = 2.0
"""Seconds for which the members of a flow that were read count."""
MAX_WAITERS = 20
"""The most jobs that wait for a job which its page shows."""
MAX_SOURCES = 20
"""The most dependencies of a job that a page shows."""


class SourceView(msgspec.Struct, frozen=True, kw_only=True):
    """A job, a group or a flow for which a job waits, or waited."""

    id: str
    on: On
    is_met: bool | None
    """None: it has not ended. False: the job was cancelled because of it."""
    text: str
    """The source with its state, for people."""
    link: str
    """The path of its page, below the dashboard."""


async def read_flow_members(readings: PageReadings, flow_id: str) -> FlowMembers:
    """Return the flow with those of its jobs that are found.

    Raises `FlowNotFound`, and `InvalidJob` for a group: it is shown on the page of its flow.
    """

    async def read() -> FlowMembers:
        tree = await read_tree(readings.backend, flow_id)
        check_is_whole(tree)
        return await read_members(readings.backend, tree)

    return await readings.read(f"flow {flow_id}", read, MEMBERS_AGE)


async def read_sources(
    backend: Backend, members: FlowMembers, records: Iterable[JobRecord], now: float
) -> dict[str, list[SourceView]]:
    """Return for what each of these jobs waits, or waited, by the id of the job."""
    found = await read_dependencies(backend, members, records, MAX_SOURCES)
    return {
        job_id: [
            SourceView(
                id=source.id,
                on=one.condition.on,
                is_met=one.is_met,
                text=describe_source(one, now),
                link=_find_link(source.kind, source.id, members.tree.id),
            )
            for one in dependencies
            for source in (one.condition.source,)
        ]
        for job_id, dependencies in found.items()
    }


class WaiterView(msgspec.Struct, frozen=True, kw_only=True):
    """A job that waits, or waited, for another one or for its group."""

    id: str
    name: str
    state: str


class JobFlow(msgspec.Struct, frozen=True, kw_only=True):
    """The place of a job in its flow."""

    flow: FlowView
    group: str | None
    """The group that counts it; None: the flow counts it, or it is a callback."""
    is_callback: bool
    sources: list[SourceView]
    """What it waits for, or waited for; the first `MAX_SOURCES`."""
    source_count: int
    waiters: list[WaiterView]
    """Jobs that wait for it or for its group, as far as they were found; the first `MAX_WAITERS`.
    """
    waiter_count: int
    missing: int
    """How many members of the flow were not found: some may wait for it, too."""


async def read_job_flow(readings: PageReadings, job: JobRecord, now: float) -> JobFlow | None:
    """Return the place of a job in its flow; None: it is in no flow, or the flow is not kept."""
    if job.options.flow is None:
        return None
    try:
        members = await read_flow_members(readings, job.options.flow)
    except FlowNotFound:
        return None

    async def read() -> list[SourceView]:
        return (await read_sources(readings.backend, members, [job], now))[job.id]

    sources = await readings.read(f"sources {job.id}", read, MEMBERS_AGE)
    waiters = members.list_waiters(job)
    return JobFlow(
        flow=make_view(msgspec.structs.replace(members.tree, groups=())),
        group=job.options.group or None,
        is_callback=job.options.group == "",
        sources=sources,
        source_count=len(job.options.conditions),
        waiters=[
            WaiterView(id=one.id, name=one.name, state=one.state.value)
            for one in waiters[:MAX_WAITERS]
        ],
        waiter_count=len(waiters),
        missing=members.missing,
    )


def _find_link(kind: SourceKind, source_id: str, flow_id: str) -> str:
    if kind is SourceKind.JOB:
        return f"/jobs/{source_id}"
    return f"/flows/{flow_id}" if source_id == flow_id else make_group_link(flow_id, source_id)
