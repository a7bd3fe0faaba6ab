"""A flow as it is shown: by the API, by the dashboard and in an export."""

from __future__ import annotations

import msgspec

from nimburion.actions.flows import FlowTree
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
    groups = flow.groups if isinstance(flow, FlowTree) else ()
    return FlowView(
        id=flow.id,
        name=flow.name,
        state=flow.state,
        parent=flow.parent,
        members=flow.members,
        unfinished=flow.unfinished,
        completed=flow.completed,
        failed=flow.failed,
        cancelled=flow.cancelled,
        max_failed=flow.max_failed,
        fail_fast=flow.fail_fast,
        added=flow.added,
        is_open=flow.is_open,
        created_at=flow.created_at,
        finished_at=flow.finished_at,
        groups=[make_view(group) for group in groups],
    )
