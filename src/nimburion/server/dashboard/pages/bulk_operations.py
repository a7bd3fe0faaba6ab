"""The pages of bulk operations: those that run or have ended, and the preview of a new one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from nimburion.actions.bulk import BulkPreview, preview_jobs
from nimburion.actions.search import UnusableSearch, parse_search
from nimburion.core.bulk_operations import BulkAction, BulkOperationPage, list_bulk_operations
from nimburion.core.queries import JobFilter
from nimburion.server.api import bulk_operations
from nimburion.server.api.bulk_operations import BulkOperationView, make_view
from nimburion.server.api.jobs import JobSummary, summarize_job
from nimburion.server.api.names import Cursor
from nimburion.server.dashboard.page import (
    DashboardAction,
    DashboardPage,
    PageRequest,
    find_operation,
)
from nimburion.server.dashboard.pages.jobs.job_list import SearchText

PAGE_SIZE = 50


class OperationListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which part of the list to show."""

    after: Cursor | None = None


class BulkOperationRow(msgspec.Struct, frozen=True, kw_only=True):
    """One bulk operation."""

    operation: BulkOperationView
    jobs: str
    """The jobs that it changes, as qualifiers of the page of jobs."""
    shown_share: float | None
    """The part of its limit that is done; None without a limit."""


class OperationListData(msgspec.Struct, frozen=True, kw_only=True):
    """A page of bulk operations, newest first."""

    operations: list[BulkOperationRow]
    next: str | None


async def read_operations(request: PageRequest[OperationListQuery]) -> OperationListData:
    """Read a page of bulk operations."""
    backend, after = request.readings.backend, request.query.after

    async def read() -> BulkOperationPage:
        return await list_bulk_operations(backend, limit=PAGE_SIZE, after=after)

    page = await request.readings.read(f"operations {after}", read, 1.0)
    rows = [_make_row(make_view(operation)) for operation in page.operations]
    return OperationListData(operations=rows, next=page.next)


def _make_row(view: BulkOperationView) -> BulkOperationRow:
    return BulkOperationRow(
        operation=view,
        jobs=describe_filter(view.which),
        shown_share=None if view.limit is None else min(1.0, view.done / view.limit),
    )


def describe_filter(which: JobFilter) -> str:
    """Return a filter as qualifiers; times as ISO 8601.

    >>> describe_filter(JobFilter(queue="mail", min_failures=2))
    'queue:mail failures:2'
    >>> describe_filter(JobFilter(tenant="acme inc"))
    'tenant:"acme inc"'
    """
    return " ".join(
        f"{_QUALIFIERS.get(field, field)}:{_quote(value)}"
        for field, values in _list_fields(which)
        for value in (",".join(values) if len(values) <= 3 else f"({len(values)})",)
    )


def _quote(value: str) -> str:
    return f'"{value}"' if " " in value else value


_QUALIFIERS = {
    "correlation_id": "correlation",
    "min_failures": "failures",
    "created_from": "created-from",
    "created_to": "created-before",
    "finished_from": "finished-from",
    "finished_to": "finished-before",
}
"""The qualifier of each field of a filter that has another name."""


def _list_fields(which: JobFilter) -> Iterator[tuple[str, list[str]]]:
    """Yield the fields that are set, as those of the body that starts an operation."""
    if which.states is not None:
        yield "state", sorted(which.states)
    if which.ids is not None:
        yield "ids", list(which.ids)
    texts = ("queue", "name", "reason", "tenant", "correlation_id", "tag", "flow", "fingerprint")
    for field in texts:
        value = getattr(which, field)
        if value is not None:
            yield field, [value]
    for field in ("created_from", "created_to", "finished_from", "finished_to"):
        value = getattr(which, field)
        if value is not None:
            yield field, [datetime.fromtimestamp(value, UTC).isoformat()]
    if which.min_failures is not None:
        yield "min_failures", [str(which.min_failures)]


class NewOperationQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bulk operation to preview."""

    action: BulkAction = BulkAction.REPLAY
    q: SearchText = ""
    """The jobs, as qualifiers; empty: all that the action can change."""


class NewOperationData(msgspec.Struct, frozen=True, kw_only=True):
    """What a bulk operation would change now. Nothing is changed yet."""

    action: BulkAction
    invalid: str | None = None
    """Why the qualifiers cannot be used."""
    count: int = 0
    """The jobs that match, as far as they were counted."""
    complete: bool = True
    """False: there may be more than `count`."""
    examined: int = 0
    first: list[JobSummary] = msgspec.field(default_factory=list)
    """The first ten."""
    fields: list[tuple[str, str]] = msgspec.field(default_factory=list)
    """The fields of the form that starts it."""


async def read_new_operation(request: PageRequest[NewOperationQuery]) -> NewOperationData:
    """Count the jobs that an operation would change, within the budget of one search."""
    readings, query = request.readings, request.query
    try:
        which = parse_search(query.q, readings.now)
    except UnusableSearch as error:
        return NewOperationData(action=query.action, invalid=str(error))

    async def read() -> BulkPreview:
        return await preview_jobs(readings.backend, query.action, which)

    preview = await readings.read(f"preview {query.action} {which}", read, 5.0)
    fields = [(field, value) for field, values in _list_fields(which) for value in values]
    return NewOperationData(
        action=query.action,
        count=preview.count,
        complete=preview.complete,
        examined=preview.examined,
        first=[summarize_job(record) for record in preview.first],
        fields=fields or [("all", "true")],
    )


OPERATIONS = DashboardPage(
    path="/operations",
    title="Operations",
    section="Operations",
    read=read_operations,
    template="bulk_operations/operations.html",
    tables=("operations",),
    query=OperationListQuery,
)
NEW_OPERATION = DashboardPage(
    path="/operations/new",
    title="New operation",
    section="Operations",
    read=read_new_operation,
    template="bulk_operations/new_operation.html",
    query=NewOperationQuery,
    interval=None,
)


def describe_started(view: BulkOperationView) -> str:
    """Return that an operation was started."""
    return f"Operation {view.id} is started. The page Operations shows its progress."


ACTIONS = (
    *(
        DashboardAction(
            path=f"/operations/{action.value.replace('_', '-')}",
            operation=find_operation(bulk_operations.OPERATIONS, f"start_{action.value}"),
            done="The operation is started.",
            back="/operations",
            describe=describe_started,
        )
        for action in BulkAction
    ),
    DashboardAction(
        path="/operations/{id}/cancel",
        operation=find_operation(bulk_operations.OPERATIONS, "cancel_operation"),
        done="Operation {id} is cancelled. What it had changed stays changed.",
        back="/operations",
    ),
)
