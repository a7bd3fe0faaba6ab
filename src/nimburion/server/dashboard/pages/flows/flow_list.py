"""The page of flows: the one stored last first, with a bar of states for each."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.actions.flow_view import FlowView, make_view
from nimburion.core.backend import Inspecting
from nimburion.core.flows import FlowInfo, FlowState
from nimburion.server.api.names import Cursor
from nimburion.server.dashboard.flows.picture import count_states, draw_state_bar
from nimburion.server.dashboard.page import DashboardPage, PageRequest

PAGE_SIZE = 50
MAX_SEARCHED = 1_000
"""The most flows that are read to find those of a state or a name."""


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
        return await _search(readings.backend.reads, query, readings.now)

    return await readings.read(f"flows {query}", read)


async def _search(reads: Inspecting, query: FlowListQuery, now: float) -> FlowListData:
    running, after, examined = query.state is FlowState.RUNNING, query.after, 0
    found: list[FlowView] = []
    while True:
        page = await reads.list_flows(running=running, limit=PAGE_SIZE, after=after)
        examined += len(page.flows)
        after = page.next
        found += [make_view(flow) for flow in page.flows if _matches(flow, query)]
        if after is None or len(found) >= PAGE_SIZE or examined >= MAX_SEARCHED:
            return FlowListData(flows=found, next=after, examined=examined, now=now)


def _matches(flow: FlowInfo, query: FlowListQuery) -> bool:
    has_name = query.name == flow.name or flow.id.startswith(query.name)
    return has_name and query.state in (None, flow.state)


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
