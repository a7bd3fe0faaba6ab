"""Bulk operations: preview, start, list and cancel them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.actions.bulk import BulkPreview
from nimburion.core.bulk_operations import (
    BulkAction,
    BulkOperation,
    BulkState,
    get_bulk_operation,
    list_bulk_operations,
)
from nimburion.core.ids import make_repeatable_id
from nimburion.core.job import State
from nimburion.core.queries import JobFilter
from nimburion.server.api.body_rules import include_state, select_jobs
from nimburion.server.api.jobs import JobSearch, JobSummary, check_selection, summarize_job
from nimburion.server.api.names import Name, PageQuery, ReasonText
from nimburion.server.api.operation import (
    AnyOperation,
    ApiRequest,
    NoBody,
    NoQuery,
    Operation,
)


class BulkSelection(JobSearch, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The jobs of a bulk operation. A job must match all that is set."""

    ids: Annotated[tuple[Name, ...], Meta(max_length=1000)] = ()
    state: tuple[State, ...] = ()

    def make_selection(self) -> JobFilter:
        """Return the filter."""
        which = self.make_filter(frozenset(self.state) or None)
        return msgspec.structs.replace(which, ids=self.ids or None)


class PreviewQuery(BulkSelection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bulk operation to preview. Without a filter: of all jobs that the action can change."""

    action: BulkAction


class BulkPreviewReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a bulk operation would change now."""

    count: int
    """The number of jobs that match, at most 1,000."""
    complete: bool
    """False: there may be more than `count`."""
    examined: int
    """The number of jobs examined, at most 10,000."""
    first: list[JobSummary]
    """The first ten."""


class StartBody(BulkSelection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bulk operation to start, and its jobs: `ids`, or filters, or `all` that can change."""

    all: bool = False
    id: Name | None = None
    rate: Annotated[float, Meta(ge=0.001, le=1_000_000)] | None = None
    """The maximum number of jobs per second."""
    limit: Annotated[int, Meta(ge=1)] | None = None
    """The maximum number of jobs that it changes."""
    why: ReasonText = ""
    """The reason of the operator, for the audit log. `reason` is that of dead letters."""

    def make_selection(self) -> JobFilter:
        """Return the filter. Raises `Problem` for a combination that makes no sense."""
        filtered = self.make_filter(frozenset(self.state) or None) != JobFilter()
        check_selection(self.ids, filtered, self.all)
        return super().make_selection()


class BulkOperationView(msgspec.Struct, frozen=True, kw_only=True):
    """A bulk operation with its progress. Times are epoch seconds on the backend's clock."""

    id: str
    action: BulkAction
    state: BulkState
    which: JobFilter = msgspec.field(name="filter")
    rate: float | None
    limit: int | None
    by: str
    origin: str
    started_at: float
    ended_at: float | None
    done: int
    """Jobs that it changed."""
    skipped: int
    """Jobs that had another state, or were deleted, when their turn came."""
    failed: int
    """Dead letters that it could not replay, because another job holds their unique key."""
    error: str
    due: float
    """When its next step may run."""


class BulkOperationList(msgspec.Struct, frozen=True):
    """A page of bulk operations, newest first."""

    operations: list[BulkOperationView]
    next: str | None


async def list_operations(request: ApiRequest[PageQuery, NoBody]) -> BulkOperationList:
    """List bulk operations, newest first."""
    query = request.query
    page = await list_bulk_operations(
        request.services.backend, limit=query.limit, after=query.after
    )
    return BulkOperationList([make_view(operation) for operation in page.operations], page.next)


async def preview_operation(request: ApiRequest[PreviewQuery, NoBody]) -> BulkPreviewReport:
    """Count the jobs that a bulk operation would change, up to 1,000, and show the first ten."""
    query = request.query
    preview = await request.actions.bulk.preview(query.action, query.make_selection())
    return report_preview(preview)


def report_preview(preview: BulkPreview) -> BulkPreviewReport:
    """Return a preview as the API shows it."""
    return BulkPreviewReport(
        count=preview.count,
        complete=preview.complete,
        examined=preview.examined,
        first=[summarize_job(record) for record in preview.first],
    )


async def get_operation(request: ApiRequest[NoQuery, NoBody]) -> BulkOperationView:
    """Show one bulk operation."""
    return make_view(await get_bulk_operation(request.services.backend, request.path["id"]))


async def start_replay(request: ApiRequest[NoQuery, StartBody]) -> BulkOperationView:
    """Start to replay all dead letters that match."""
    return await _start(request, BulkAction.REPLAY)


async def start_run_now(request: ApiRequest[NoQuery, StartBody]) -> BulkOperationView:
    """Start to make all jobs due that match and are scheduled or wait for a retry."""
    return await _start(request, BulkAction.RUN_NOW)


async def start_cancel(request: ApiRequest[NoQuery, StartBody]) -> BulkOperationView:
    """Start to cancel all unfinished jobs that match."""
    return await _start(request, BulkAction.CANCEL)


async def start_delete(request: ApiRequest[NoQuery, StartBody]) -> BulkOperationView:
    """Start to delete all finished jobs that match, for good."""
    return await _start(request, BulkAction.DELETE)


async def _start(request: ApiRequest[NoQuery, StartBody], action: BulkAction) -> BulkOperationView:
    body, key = request.body, request.idempotency_key
    operation_id = body.id
    if operation_id is None and key is not None:
        operation_id = make_repeatable_id(request.caller.name, key)
    started = await request.actions.bulk.start(
        action,
        body.make_selection(),
        rate=body.rate,
        limit=body.limit,
        id=operation_id,
        why=body.why,
    )
    request.services.bulk_operations.wake()
    return make_view(started)


async def cancel_operation(request: ApiRequest[NoQuery, NoBody]) -> BulkOperationView:
    """End a bulk operation. What it has changed stays changed."""
    return make_view(await request.actions.bulk.cancel(request.path["id"]))


def make_view(operation: BulkOperation) -> BulkOperationView:
    """Return an operation as the API shows it."""
    return msgspec.convert(operation, BulkOperationView, from_attributes=True)


OPERATIONS: tuple[AnyOperation, ...] = (
    Operation(
        method="GET",
        path="/operations",
        handle=list_operations,
        query=PageQuery,
        answer=BulkOperationList,
    ),
    Operation(
        method="GET",
        path="/operations/preview",
        handle=preview_operation,
        query=PreviewQuery,
        answer=BulkPreviewReport,
    ),
    *(
        Operation(
            method="POST",
            path=f"/operations/{action.replace('_', '-')}",
            handle=start,
            action=f"operations.start_{action}",
            body=StartBody,
            rules=(
                select_jobs("state", *JobSearch.__struct_fields__),
                include_state(*sorted(action.states)),
            ),
            answer=BulkOperationView,
            status=201,
            idempotency_key=True,
        )
        for action, start in (
            (BulkAction.REPLAY, start_replay),
            (BulkAction.RUN_NOW, start_run_now),
            (BulkAction.CANCEL, start_cancel),
            (BulkAction.DELETE, start_delete),
        )
    ),
    Operation(
        method="GET",
        path="/operations/{id}",
        handle=get_operation,
        answer=BulkOperationView,
    ),
    Operation(
        method="POST",
        path="/operations/{id}/cancel",
        handle=cancel_operation,
        action="operations.cancel",
        answer=BulkOperationView,
    ),
)
