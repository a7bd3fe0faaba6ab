"""Flows: list, show, cancel and replay them."""

from __future__ import annotations

from typing import Literal

import msgspec

from nimburion.actions.flow_view import FlowView, make_view
from nimburion.actions.flows import FlowTree, count_failed_jobs, count_unfinished_jobs
from nimburion.server.api.bulk_operations import BulkPreviewReport, report_preview
from nimburion.server.api.names import Cursor, PageSize, ReasonText
from nimburion.server.api.operation import AnyOperation, ApiRequest, NoBody, NoQuery, Operation
from nimburion.server.problems import Problem

MAX_AT_ONCE = 1_000
"""The most jobs of a flow that a request cancels or replays. More are left to a bulk operation."""


class FlowList(msgspec.Struct, frozen=True):
    """A page of flows, newest first."""

    flows: list[FlowView]
    next: str | None


class FlowQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The flows to list, and the part of the list to return."""

    running: bool = False
    """Only flows that have not ended."""
    limit: PageSize = 100
    after: Cursor | None = None
    """The `next` of the previous page; without it, the list begins."""


class FlowReplayPreview(msgspec.Struct, frozen=True, kw_only=True):
    """What the replay of a flow would do now."""

    failed: BulkPreviewReport
    """The members that failed: they run again."""
    cancelled: BulkPreviewReport
    """The members that were cancelled because others did not complete: those whose dependencies
    run again wait for them again.
    """


class FlowChangeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to change a flow."""

    reason: ReasonText = ""
    """Why, for the audit log."""


class FlowChangeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a change of a flow did."""

    flow: FlowView
    """The flow after the change."""
    changed: int
    """The number of members that were changed."""
    ids: list[str]
    """Their ids; the first 1,000."""


async def list_flows(request: ApiRequest[FlowQuery, NoBody]) -> FlowList:
    """List the flows, newest first. Groups are not listed."""
    query = request.query
    page = await request.services.backend.reads.list_flows(
        running=query.running, limit=query.limit, after=query.after
    )
    return FlowList([make_view(flow) for flow in page.flows], page.next)


async def get_flow(request: ApiRequest[NoQuery, NoBody]) -> FlowView:
    """Show a flow with its groups."""
    return make_view(await request.actions.flows.get(request.path["flow"]))


async def preview_flow_replay(request: ApiRequest[NoQuery, NoBody]) -> FlowReplayPreview:
    """Show what the replay of a flow would run: it changes nothing."""
    preview = await request.actions.flows.preview_replay(request.path["flow"])
    return FlowReplayPreview(
        failed=report_preview(preview.failed), cancelled=report_preview(preview.cancelled)
    )


async def replay_flow(request: ApiRequest[NoQuery, FlowChangeBody]) -> FlowChangeReport:
    """Run the failed part of a flow again. Members that completed stay as they are."""
    flows, flow_id = request.actions.flows, request.path["flow"]
    tree = await flows.get(flow_id)
    _check_size("replay", tree, count_failed_jobs(tree))
    ids = await flows.replay(flow_id, reason=request.body.reason)
    return _report_change(await flows.get(flow_id), ids)


async def cancel_flow(request: ApiRequest[NoQuery, FlowChangeBody]) -> FlowChangeReport:
    """Cancel all members of a flow that have not ended. An open flow is closed first."""
    flows, flow_id = request.actions.flows, request.path["flow"]
    tree = await flows.get(flow_id)
    _check_size("cancel", tree, count_unfinished_jobs(tree))
    ids = await flows.cancel(flow_id, reason=request.body.reason)
    return _report_change(await flows.get(flow_id), ids)


async def close_flow(request: ApiRequest[NoQuery, NoBody]) -> FlowView:
    """Close an open flow: it ends with its last member. Closing it again changes nothing."""
    flows, flow_id = request.actions.flows, request.path["flow"]
    await flows.close(flow_id)
    return make_view(await flows.get(flow_id))


def _check_size(action: Literal["cancel", "replay"], flow: FlowTree, jobs: int) -> None:
    """Raise `Problem` for more jobs than a request changes."""
    if jobs > MAX_AT_ONCE:
        close = ""
        if action == "cancel" and flow.is_open:  # a bulk operation does not close it
            close = f"Close the flow, so that it gets no more: POST /api/v1/flows/{flow.id}/close. "
        raise Problem(
            409,
            "flow-too-large",
            f"{jobs} jobs of the flow are too many for one request. {close}Start a bulk operation: "
            f'POST /api/v1/operations/{action} with the body {{"flow": "{flow.id}"}}',
        )


def _report_change(flow: FlowTree, ids: list[str]) -> FlowChangeReport:
    return FlowChangeReport(flow=make_view(flow), changed=len(ids), ids=ids[:MAX_AT_ONCE])


OPERATIONS: tuple[AnyOperation, ...] = (
    Operation(method="GET", path="/flows", handle=list_flows, query=FlowQuery, answer=FlowList),
    Operation(method="GET", path="/flows/{flow}", handle=get_flow, answer=FlowView),
    Operation(
        method="GET",
        path="/flows/{flow}/replay",
        handle=preview_flow_replay,
        answer=FlowReplayPreview,
    ),
    Operation(
        method="POST",
        path="/flows/{flow}/replay",
        handle=replay_flow,
        action="flows.replay",
        body=FlowChangeBody,
        answer=FlowChangeReport,
    ),
    Operation(
        method="POST",
        path="/flows/{flow}/cancel",
        handle=cancel_flow,
        action="flows.cancel",
        body=FlowChangeBody,
        answer=FlowChangeReport,
    ),
    Operation(
        method="POST",
        path="/flows/{flow}/close",
        handle=close_flow,
        action="flows.close",
        answer=FlowView,
    ),
)
