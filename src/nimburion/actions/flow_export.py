"""One flow as data for support: states, errors, dependencies, and what operators changed."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nimburion.actions.flow_members import MAX_RECORDS, read_members
from nimburion.actions.flow_view import FlowView, make_view
from nimburion.actions.flows import FlowTree, check_is_whole
from nimburion.core.audit import AuditRecord, list_audit
from nimburion.core.backend import Backend
from nimburion.core.flows import WaitCondition
from nimburion.core.job import FAILED_ONLY, AttemptError, AttemptInfo, JobRecord, State
from nimburion.core.queries import JobFilter
from nimburion.core.version import __version__

MAX_AUDIT = 1_000
"""The newest audit records that are searched for those of the flow."""


class ExportedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job of the flow, without its arguments, its result and its tracebacks."""

    id: str
    name: str
    queue: str
    state: State
    reason: str | None
    group: str | None
    """The group that counts it; None: the flow counts it. Empty: it is a callback."""
    priority: int
    failures: int
    lost: int
    due: float
    created_at: float
    finished_at: float | None
    conditions: tuple[WaitCondition, ...]
    """What it waits for, or waited for."""
    results: list[str]
    """The names of the arguments that are results of other jobs."""
    attempts: list[AttemptInfo]
    errors: list[AttemptError]


class FlowExport(msgspec.Struct, frozen=True, kw_only=True):
    """A flow with those of its jobs that were found. Times are epoch seconds."""

    version: str
    """The version of nimburion that made the export."""
    backend: str
    at: float
    """When it was made, on the backend's clock."""
    flow: FlowView
    jobs: list[ExportedJob]
    """Single members, some jobs of each group, the callbacks, and the members that failed."""
    missing: int
    """How many members that are in no group were not found."""
    audit: list[AuditRecord]
    """What operators did with the flow, newest first."""


async def read_export(backend: Backend, tree: FlowTree) -> FlowExport:
    """Return a flow as data for support. At most some thousand jobs are read.

    Raises `InvalidJob` for a group.
    """
    check_is_whole(tree)
    members = await read_members(backend, tree)
    which = JobFilter(flow=tree.id, states=FAILED_ONLY)
    failed = await backend.reads.list_jobs(which, limit=MAX_RECORDS)
    records = {**members.records, **{record.id: record for record in failed.jobs}}
    audit = await list_audit(backend, limit=MAX_AUDIT)
    return FlowExport(
        version=__version__,
        backend=backend.describe(),
        at=await backend.now(),
        flow=make_view(tree),
        jobs=_export_jobs(records.values()),
        missing=members.missing,
        audit=[one for one in audit.records if one.target == tree.id],
    )


def _export_jobs(records: Iterable[JobRecord]) -> list[ExportedJob]:
    """Return the jobs in the order in which they were stored."""
    return [
        msgspec.convert(
            {
                **msgspec.structs.asdict(record),
                **msgspec.structs.asdict(record.options),
                "results": sorted(record.options.results),
                "attempts": record.attempts,
                "errors": [msgspec.structs.replace(one, traceback="") for one in record.history],
            },
            ExportedJob,
        )
        for record in sorted(records, key=lambda one: (one.created_at, one.id))
    ]
