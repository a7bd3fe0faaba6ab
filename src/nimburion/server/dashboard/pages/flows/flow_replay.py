"""The page that shows what the replay of a flow would run, and replays it."""

from __future__ import annotations

import msgspec

from nimburion.actions import Operator
from nimburion.actions.flow_view import FlowView, make_view
from nimburion.actions.flows import FlowActions, ReplayPreview
from nimburion.server.api import flows as flow_operations
from nimburion.server.api.bulk_operations import BulkPreviewReport, report_preview
from nimburion.server.api.flows import MAX_AT_ONCE, FlowChangeReport
from nimburion.server.api.operation import NoQuery
from nimburion.server.dashboard.flows.waits import read_flow_members
from nimburion.server.dashboard.page import (
    DashboardAction,
    DashboardPage,
    PageRequest,
    find_operation,
)


class FlowReplayData(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay of the flow would do now."""

    flow: FlowView
    failed: BulkPreviewReport
    """The jobs that failed: they run again."""
    cancelled: BulkPreviewReport
    """The jobs that were cancelled because others did not complete."""


async def read_replay(request: PageRequest[NoQuery]) -> FlowReplayData:
    """Read the failed part of a flow."""
    readings, flow_id = request.readings, request.path["flow"]
    members = await read_flow_members(readings, flow_id)
    caller = Operator(request.caller.name, "dashboard", request.caller.rights)

    async def read() -> ReplayPreview:
        return await FlowActions(readings.backend, caller).preview_replay(flow_id)

    preview = await readings.read(f"flow replay {flow_id}", read)
    return FlowReplayData(
        flow=make_view(members.tree),
        failed=report_preview(preview.failed),
        cancelled=report_preview(preview.cancelled),
    )


FLOW_REPLAY = DashboardPage(
    path="/flows/{flow}/replay",
    title="Replay flow {flow}",
    section="Flows",
    read=read_replay,
    template="flows/flow_replay.html",
    constants={"max_at_once": MAX_AT_ONCE},
    interval=None,
)


def describe_replay(report: FlowChangeReport) -> str:
    """Return what the replay of a flow did."""
    if not report.changed:
        return "No job of the flow is a dead letter that can be replayed."
    return f"{report.changed} job{'' if report.changed == 1 else 's'} replayed."


ACTIONS = (
    DashboardAction(
        path="/flows/{flow}/replay",
        operation=find_operation(flow_operations.OPERATIONS, "replay_flow"),
        done="The failed part of the flow runs again.",
        back="/flows/{flow}",
        describe=describe_replay,
    ),
)
