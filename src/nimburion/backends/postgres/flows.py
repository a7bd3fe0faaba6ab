"""Flows: encode the graph of an enqueue, and decode the rows of flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from nimburion.backends.planning.flows import (
    check_graph,
    check_grown,
    check_same_flow,
    list_members,
    make_ended_error,
    make_other_groups_error,
    select_new_flows,
)
from nimburion.backends.postgres.encoding import (
    encode_text,
    reject_unstorable_text,
    to_optional_seconds,
    to_seconds,
)
from nimburion.backends.server.encoding import decode_id, encode_id, encode_json
from nimburion.core.diagnosis.explanations import Unmet
from nimburion.core.flows import (
    FlowInfo,
    FlowPage,
    Growth,
    NewFlow,
    On,
    SourceKind,
    WaitCondition,
    WaitSource,
)
from nimburion.core.job import JobOptions, JobRecord, NewJob


class _Graph(msgspec.Struct, frozen=True):
    """The graph of an enqueue, as `enqueue_flow_1` takes it. Ids are hexadecimal."""

    flows: list[tuple[str, str, str | None, int, int, bool, bool]]
    grown: list[tuple[str, bool]]
    members: list[tuple[str, bool]]
    places: list[int]
    conditions: list[tuple[int, str, str, str]]
    sources: list[tuple[str, str]]


@reject_unstorable_text
def encode_graph(jobs: Sequence[NewJob], flows: Sequence[NewFlow]) -> str:
    """Return flows, members and conditions as JSON.

    Raises:
        Unstorable: a text cannot be stored.
    """
    own = {WaitSource(SourceKind.JOB, job_id) for job_id in list_members(jobs, flows)}
    conditions = [
        (place, condition.source, condition.on)
        for place, job in enumerate(jobs, start=1)
        for condition in job.options.conditions
    ]
    members = [_find_counting(job.options) for job in jobs]
    named = dict.fromkeys(member for member in members if member is not None)
    places = {member: place for place, member in enumerate(named, start=1)}
    graph = _Graph(
        flows=[
            (
                _encode_hex(flow.id),
                encode_text(flow.name),
                None if flow.parent is None else _encode_hex(flow.parent),
                flow.members,
                flow.max_failed,
                flow.fail_fast,
                flow.growth is Growth.OPEN,
            )
            for flow in _sort_by_depth(select_new_flows(flows))
        ],
        grown=[
            (_encode_hex(flow.id), flow.growth is Growth.CLOSE)
            for flow in flows
            if flow.growth.adds
        ],
        members=[(_encode_hex(flow_id), is_counted) for flow_id, is_counted in places],
        places=[0 if member is None else places[member] for member in members],
        conditions=[
            (place, source.kind, _encode_hex(source.id), needs)
            for place, source, needs in conditions
        ],
        sources=[
            (source.kind, _encode_hex(source.id))
            for source in sorted({source for _, source, _ in conditions} - own)
        ],
    )
    return encode_json(graph).decode()


def _find_counting(options: JobOptions) -> tuple[str, bool] | None:
    """Return the flow of a job, and whether it counts the job; None: it is in no flow."""
    if options.flow is None:
        return None
    counted = options.counted_flow
    return counted or options.flow, counted is not None


def _encode_hex(text: str) -> str:
    return encode_id(text).hex()


def _sort_by_depth(flows: Sequence[NewFlow]) -> list[NewFlow]:
    """Return the flows so that each group comes after its parent."""
    parents = {flow.id: flow.parent for flow in flows}

    def count_parents(flow: NewFlow) -> int:
        depth, parent = 0, flow.parent
        while parent is not None and depth <= len(parents):
            depth, parent = depth + 1, parents.get(parent)
        return depth

    return sorted(flows, key=count_parents)


def check_graph_stored(
    jobs: Sequence[NewJob], flows: Sequence[NewFlow], unknown: str | None, other: str | None
) -> None:
    """Raise `InvalidJob` if `enqueue_flow_1` has refused the graph.

    `unknown` and `other` are its results.
    """
    if other is not None:
        stored_id, name, parent, members, max_failed, fail_fast, failed, cancelled = (
            msgspec.json.decode(other)
        )
        stored = FlowInfo(
            id=_decode_hex(stored_id),
            name=name,
            parent=None if parent is None else _decode_hex(parent),
            members=members,
            unfinished=0,  # not known: it matters for one that has ended only
            failed=failed,
            cancelled=cancelled,
            max_failed=max_failed,
            fail_fast=fail_fast,
        )
        for flow in flows:
            if flow.id == stored.id and flow.growth.adds:
                raise make_ended_error(stored)
            if flow.id == stored.id:
                check_same_flow(flow, stored)
                raise make_other_groups_error(stored.id)
    if unknown is not None:
        missing = {(kind, _decode_hex(found)) for kind, found in msgspec.json.decode(unknown)}
        named_flows = {flow.parent for flow in flows} | {job.options.counted_flow for job in jobs}
        named_flows |= {flow.id for flow in flows if flow.growth.adds}
        sources = [condition.source for job in jobs for condition in job.options.conditions]
        named = {(source.kind.value, source.id) for source in sources}
        named |= {(SourceKind.FLOW.value, flow_id) for flow_id in named_flows if flow_id}
        known = named - missing
        known_flows = {found for kind, found in known if kind == SourceKind.FLOW}
        check_grown(flows, known_flows)
        known_jobs = {found for kind, found in known if kind == SourceKind.JOB}
        check_graph(jobs, flows, known_flows, known_jobs)


def _decode_hex(text: str) -> str:
    return decode_id(bytes.fromhex(text))


def decode_flow(row: Any) -> FlowInfo:  # noqa: ANN401 - a row
    """Decode a row of `get_flows_1` or `list_flows_1`."""
    return FlowInfo(
        id=decode_id(row["id"]),
        name=row["name"],
        parent=None if row["parent"] is None else decode_id(row["parent"]),
        members=row["members"] + row["added"],
        unfinished=row["unfinished"],
        completed=row["completed"],
        failed=row["failed"],
        cancelled=row["cancelled"],
        max_failed=row["max_failed"],
        fail_fast=row["fail_fast"],
        added=row["added"],
        created_at=to_seconds(row["created_at"]),
        grown_at=to_optional_seconds(row["grown_at"]),
        finished_at=to_optional_seconds(row["finished_at"]),
    )


def decode_page(rows: list[Any], limit: int) -> FlowPage:
    """Decode a page of flows; one beyond `limit` says that there are more."""
    following = str(rows[limit - 1]["number"]) if len(rows) > limit > 0 else None
    return FlowPage([decode_flow(row) for row in rows[:limit]], following)


def decode_unmet(
    rows: list[Any], jobs: Sequence[JobRecord], flows: Sequence[FlowInfo]
) -> tuple[list[Unmet], int]:
    """Decode the rows of `list_unmet_1`: conditions with their sources, and the number of all."""
    jobs_by_id = {job.id: job for job in jobs}
    flows_by_id = {flow.id: flow for flow in flows}
    unmet, count = [], 0
    for kind, source_id, needs, count in rows:  # noqa: B007 - the same number in each row
        source = WaitSource(SourceKind(kind), decode_id(source_id))
        is_job = source.kind is SourceKind.JOB
        unmet.append(
            Unmet(
                condition=WaitCondition(source, On(needs or On.SUCCESS)),
                job=jobs_by_id.get(source.id) if is_job else None,
                flow=None if is_job else flows_by_id.get(source.id),
            )
        )
    return unmet, count
