"""The page of flows: the one stored last first, with a bar of states for each."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.actions.flow_view import FlowView, make_view
from nimburion.actions.flows import search_flows
from nimburion.core.flows import FlowState
from nimburion.server.api.names import Cursor
from nimburion.server.dashboard.flows.picture import count_states, draw_state_bar
from nimburion.server.dashboard.page import DashboardPage, PageRequest

PAGE_SIZE = 50


class FlowListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which flows to show."""

    state: FlowState | None = None
    name: Annotated[str, Meta(max_length=128)] = ""
    """The name of the flow, or the beginning of its id."""
    after: Cursor | None = None


class FlowListData(msgspec.Struct, frozen=True, kw_only=True):
    """A page of flows."""

    flows: list[FlowView]
    next: str | None
    examined: int
    """The number of flows that were read."""
    now: float
    """When the page was read, in epoch seconds."""


async def read_flows(request: PageRequest[FlowListQuery]) -> FlowListData:
    """Read flows until the page is full, or `MAX_SEARCHED` were examined."""
    readings, query = request.readings, request.query

    async def read() -> FlowListData:
        found = await search_flows(
            readings.backend.reads,
            state=query.state,
            name=query.name,
            limit=PAGE_SIZE,
            after=query.after,
        )
        return FlowListData(
            flows=[make_view(flow) for flow in found.flows],
            next=found.next,
            examined=found.examined,
            now=readings.now,
        )

    return await readings.read(f"flows {query}", read)


FLOWS = DashboardPage(
    path="/flows",
    title="Flows",
    section="Flows",
    read=read_flows,
    template="flows/flows.html",
    tables=("flows",),
    query=FlowListQuery,
    constants={"count_states": count_states, "draw_state_bar": draw_state_bar},
)
