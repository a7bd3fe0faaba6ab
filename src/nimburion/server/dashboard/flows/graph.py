"""The graph of a flow as boxes: jobs that do the same are one box, so that any flow has few.

A group is one box. In a flow of more than `MANY_BOXES` boxes, jobs with the same name and the same
dependencies are one box. If that leaves more than `MAX_BOXES`, the jobs of a layer are, and at last
those of several layers. The *layer* of a box is the length of the longest path that leads to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Literal
from urllib.parse import quote_plus

import msgspec

from nimburion.actions.flow_members import FlowMembers
from nimburion.core.flows import FlowInfo, On, SourceKind
from nimburion.core.job import JobRecord, State

MAX_BOXES = 200
"""The most boxes of a picture."""
MANY_BOXES = 60
"""In a flow of more boxes, those that do the same become one."""
NOT_ENDED = "not ended"
"""The state of members of a group that have not ended, or are not stored yet."""

BoxKind = Literal["job", "group", "several", "callback"]


class BoxSource(msgspec.Struct, frozen=True):
    """What a box waits for."""

    box: int
    """The number of the other box."""
    on: On


class FlowBox(msgspec.Struct, frozen=True, kw_only=True):
    """One box of the picture of a flow."""

    kind: BoxKind
    label: str
    """The name of the member, or that of the jobs."""
    job_name: str
    """The name of the handler; empty if it is unknown, or if there are several."""
    boxes: int
    """How many members it stands for: jobs outside groups, and groups."""
    jobs: int
    counts: dict[str, int]
    """The number of jobs by state. Those of a group that have not ended are `not ended`."""
    state: str
    """The state for people: the worst of its jobs."""
    link: str
    """The path of a page with the jobs, below the dashboard."""
    sources: tuple[BoxSource, ...]
    """What it waits for, or waited for."""
    layer: int


class _Node(msgspec.Struct, kw_only=True):
    """A box while the graph is folded."""

    kind: BoxKind
    label: str
    job_name: str
    boxes: int = 1
    jobs: int
    counts: Counter[str]
    is_waiting: bool
    """Whether it waits for other jobs, as far as that is known."""
    link: str
    sources: dict[str, On]
    """By the key of the other node."""


_Nodes = dict[str, _Node]


def make_boxes(members: FlowMembers) -> list[FlowBox]:
    """Return the boxes of a flow, in the order of their layers."""
    nodes, flow_id = _make_nodes(members), members.tree.id
    steps = (_join_equal, _join_names, _join_layers, _join_bands)
    for join, most in zip(steps, (MANY_BOXES, MAX_BOXES, MAX_BOXES, MAX_BOXES), strict=True):
        if len(nodes) > most:
            nodes = _merge(nodes, join(nodes), flow_id)
    return _number(nodes)


def _make_nodes(members: FlowMembers) -> _Nodes:
    """Return one node for each job outside groups, each group and each callback."""
    tree, records = members.tree, members.records
    tops = {group.id: group.id for group in tree.groups}
    for group in members.groups:  # those at the top come before those inside them
        tops.setdefault(group.id, tops.get(group.parent or "", group.id))
    nodes: _Nodes = {}
    for record in sorted(records.values(), key=lambda one: (one.created_at, one.id)):
        if record.options.group is None:
            nodes[record.id] = _make_job_node(record, "job", tree.id)
    for group in tree.groups:
        nodes[group.id] = _make_group_node(group, records.get(f"{group.id}.0"), tree.id)
    for key, node in nodes.items():
        first = records.get(f"{key}.0" if key in tops else key)
        if first is not None:
            node.sources = _find_sources(first, nodes, tops)
    for record in records.values():
        if record.options.group == "":
            nodes[record.id] = _make_job_node(record, "callback", tree.id)
    return nodes


def _make_job_node(record: JobRecord, kind: BoxKind, flow_id: str) -> _Node:
    return _Node(
        kind=kind,
        label=record.id.removeprefix(f"{flow_id}."),
        job_name=record.name,
        jobs=1,
        counts=Counter({record.state.value: 1}),
        is_waiting=record.state is State.SUSPENDED,
        link=f"/jobs/{record.id}",
        sources={},
    )


def _make_group_node(group: FlowInfo, first: JobRecord | None, flow_id: str) -> _Node:
    counts = Counter(
        {
            State.COMPLETED.value: group.completed,
            State.FAILED.value: group.failed,
            State.CANCELLED.value: group.cancelled,
            NOT_ENDED: group.unfinished,
        }
    )
    return _Node(
        kind="group",
        label=group.id.removeprefix(f"{flow_id}."),
        job_name=first.name if first is not None else "",
        jobs=group.members,
        counts=+counts,
        is_waiting=first is not None and first.state is State.SUSPENDED,
        link=make_group_link(flow_id, group.id),
        sources={},
    )


def make_group_link(flow_id: str, group_id: str) -> str:
    """Return the path of the page with the jobs of a group, below the dashboard."""
    return f"/flows/{flow_id}?group={quote_plus(group_id)}"


def _find_sources(record: JobRecord, nodes: _Nodes, tops: Mapping[str, str]) -> dict[str, On]:
    """Return the nodes for which a job waits, or waited."""
    sources: dict[str, On] = {}
    for condition in record.options.conditions:
        source = condition.source
        key = tops.get(source.id, source.id)
        if source.kind is SourceKind.JOB and key not in nodes:
            key = tops.get(source.id.rpartition(".")[0], "")  # a job of a group
        if key in nodes:
            sources[key] = condition.on
    return sources


def _join_equal(nodes: _Nodes) -> dict[str, Hashable]:
    """Join jobs, and groups, with the same name and the same dependencies."""
    joined: dict[str, Hashable] = {}
    for key in _sort(nodes):
        node = nodes[key]
        sources = frozenset((joined.get(source), on) for source, on in node.sources.items())
        joined[key] = (node.kind, node.job_name, sources) if node.job_name else key
    return joined


def _join_names(nodes: _Nodes) -> dict[str, Hashable]:
    """Join jobs with the same name on the same layer."""
    return {key: (layer, nodes[key].job_name) for key, layer in _find_layers(nodes).items()}


def _join_layers(nodes: _Nodes) -> dict[str, Hashable]:
    """Join all jobs of a layer."""
    return dict(_find_layers(nodes))


def _join_bands(nodes: _Nodes) -> dict[str, Hashable]:
    """Join all jobs of consecutive layers."""
    layers = _find_layers(nodes)
    count = max(layers.values()) + 1
    return {key: layer * MANY_BOXES // count for key, layer in layers.items()}


def _merge(nodes: _Nodes, joined: Mapping[str, Hashable], flow_id: str) -> _Nodes:
    """Return the nodes with those of the same value in `joined` as one. Callbacks stay."""
    parts: dict[Hashable, list[str]] = {}
    for key, node in nodes.items():
        own = ("callback", key) if node.kind == "callback" else ("member", joined[key])
        parts.setdefault(own, []).append(key)
    new_keys = {key: keys[0] for keys in parts.values() for key in keys}
    return {
        keys[0]: _join_nodes([nodes[key] for key in keys], keys[0], new_keys, flow_id)
        for keys in parts.values()
    }


def _join_nodes(
    parts: list[_Node], new_key: str, new_keys: Mapping[str, str], flow_id: str
) -> _Node:
    """Return one node for several."""
    sources: dict[str, On] = {}
    for part in parts:
        for source, on in part.sources.items():
            if new_keys[source] != new_key:
                sources.setdefault(new_keys[source], on)
    if len(parts) == 1:
        return msgspec.structs.replace(parts[0], sources=sources)
    names = list(dict.fromkeys(part.job_name for part in parts))
    job_name = names[0] if len(names) == 1 else ""
    search = f"flow:{flow_id} name:{job_name}" if job_name else f"flow:{flow_id}"
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts)
    return _Node(
        kind="several",
        label=job_name or ", ".join(name for name in names[:3] if name),
        job_name=job_name,
        boxes=sum(part.boxes for part in parts),
        jobs=sum(part.jobs for part in parts),
        counts=counts,
        is_waiting=all(part.is_waiting for part in parts),
        link=f"/jobs?q={quote_plus(search)}",
        sources=sources,
    )


def _sort(nodes: _Nodes) -> list[str]:
    """Return the keys, each after those for which its node waits."""
    waiters: dict[str, list[str]] = {key: [] for key in nodes}
    open_sources = {key: len(node.sources) for key, node in nodes.items()}
    for key, node in nodes.items():
        for source in node.sources:
            waiters[source].append(key)
    ordered = [key for key, count in open_sources.items() if not count]
    for key in ordered:  # grows
        for waiter in waiters[key]:
            open_sources[waiter] -= 1
            if not open_sources[waiter]:
                ordered.append(waiter)
    return list(dict.fromkeys([*ordered, *nodes]))  # a cycle, which is never stored, comes last


def _find_layers(nodes: _Nodes) -> dict[str, int]:
    """Return the layer of each node. Callbacks come after all others."""
    layers: dict[str, int] = {}
    for key in _sort(nodes):
        layers[key] = max((layers.get(source, 0) + 1 for source in nodes[key].sources), default=0)
    members = (layer for key, layer in layers.items() if nodes[key].kind != "callback")
    last = max(members, default=-1) + 1
    return {key: last if nodes[key].kind == "callback" else layer for key, layer in layers.items()}


def _number(nodes: _Nodes) -> list[FlowBox]:
    """Return the nodes as boxes, in the order of their layers."""
    layers = _find_layers(nodes)
    ordered = sorted(layers, key=lambda key: layers[key])
    numbers = {key: number for number, key in enumerate(ordered)}
    return [
        FlowBox(
            kind=node.kind,
            label=node.label,
            job_name=node.job_name,
            boxes=node.boxes,
            jobs=node.jobs,
            counts=dict(node.counts),
            state=_choose_state(node),
            link=node.link,
            sources=tuple(
                BoxSource(numbers[source], on)
                for source, on in sorted(node.sources.items(), key=lambda one: numbers[one[0]])
            ),
            layer=layers[key],
        )
        for key in ordered
        for node in (nodes[key],)
    ]


_WORST_FIRST = (
    State.FAILED,
    State.PROCESSING,
    State.RETRYING,
    State.PENDING,
    State.SCHEDULED,
    State.SUSPENDED,
    State.CANCELLED,
    State.COMPLETED,
)


def _choose_state(node: _Node) -> str:
    """Return the state of a box: the worst of its jobs. One of which some members have not ended
    is running.
    """
    counts = node.counts
    if counts[State.FAILED]:
        return State.FAILED.value
    if counts[NOT_ENDED]:
        return State.SUSPENDED.value if node.is_waiting else "running"
    return next((state.value for state in _WORST_FIRST if counts[state]), "completed")
