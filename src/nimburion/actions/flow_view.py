"""A flow as it is shown: by the API, by the dashboard and in an export."""

from __future__ import annotations

import msgspec

from nimburion.core.flows import FlowInfo, FlowState


class FlowView(msgspec.Struct, frozen=True, kw_only=True):
    """A flow or a group with the counts of its members. Times are epoch seconds."""

    id: str
    name: str
    state: FlowState
    parent: str | None
    """The flow of which this group is a member."""
    members: int
    """The number of its jobs and groups."""
    unfinished: int
    completed: int
    failed: int
    cancelled: int
    max_failed: int
    """How many members may fail or be cancelled without failure of the flow."""
    fail_fast: bool
    """Whether its failure cancels the members that have not started."""
    added: int
    """How many of its members were added after it was stored."""
    is_open: bool
    """Whether more members may come. One of the unfinished members stands for them."""
    created_at: float
    finished_at: float | None
    groups: list[FlowView] = msgspec.field(default_factory=list)
    """The groups inside it; empty in a list of flows."""


def make_view(flow: FlowInfo) -> FlowView:
    """Return a flow with its groups as it is shown."""
    return msgspec.convert(flow, FlowView, from_attributes=True)
