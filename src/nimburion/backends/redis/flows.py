"""Flows: encode the arguments and decode the replies of `enqueue_flow.lua`, `get_flow.lua` and
`list_flows.lua`.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from typing import Any

from nimburion.backends.planning.flows import (
    check_graph,
    check_grown,
    check_same_flow,
    list_members,
    make_ended_error,
    make_other_groups_error,
    select_new_flows,
)
from nimburion.backends.redis.encoding import decode_micros, decode_time, reject_unstorable_text
from nimburion.backends.redis.record_format import (
    FLOW,
    FLOW_IDENTITY,
    JOB_SOURCE,
    NO_TIME,
    ON_CODES,
    SIGNAL_SOURCE,
    TIME_SOURCE,
)
from nimburion.backends.server.encoding import decode_id, encode_id
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
from nimburion.core.job import JobRecord, NewJob
from nimburion.core.queries import parse_cursor
from nimburion.core.runs import make_signal_source, make_time_source

_COUNTS = struct.Struct(">IIIII")
_MAX_POSITION = (1 << 53) - 1
_ONS = {code: on for on, code in ON_CODES.items()}


class NamedSources:
    """The jobs and flows that a call of `enqueue` names and does not store."""

    def __init__(self, jobs: Sequence[NewJob], flows: Sequence[NewFlow]) -> None:
        self._jobs, self._flows = jobs, flows
        self._members = list_members(jobs, flows)
        self._new_flows = {flow.id for flow in select_new_flows(flows)}
        named_jobs: dict[str, None] = {}
        named_flows: dict[str, None] = dict.fromkeys(
            flow.parent for flow in flows if flow.parent is not None
        )
        named_flows |= dict.fromkeys(flow.id for flow in flows if flow.growth.adds)
        for job in jobs:
            if job.options.counted_flow is not None:
                named_flows[job.options.counted_flow] = None
            for condition in job.options.conditions:
                is_job = condition.source.kind is SourceKind.JOB
                (named_jobs if is_job else named_flows)[condition.source.id] = None
        self.jobs: list[str] = [job_id for job_id in named_jobs if job_id not in self._members]
        self.flows: list[str] = [
            flow_id for flow_id in named_flows if flow_id not in self._new_flows
        ]

    @reject_unstorable_text
    def encode(self, *, is_first: bool, is_last: bool) -> list[bytes]:
        """Return the first arguments of `enqueue_flow.lua`. The first batch stores the flows, and
        the last one closes them.
        """
        new = select_new_flows(self._flows) if is_first else []
        grown = [flow for flow in self._flows if flow.growth.adds]
        roots = [flow.id for flow in self._flows if flow.parent is None]
        named = (self.jobs, self.flows, roots)
        arguments = [_COUNTS.pack(len(new), len(grown), *map(len, named))]
        for flow in new:
            arguments += (encode_id(flow.id), encode_identity(flow), _encode_growth(flow))
        for flow in grown:
            arguments += (encode_id(flow.id), _encode_growth(flow, closes=is_last))
        return [*arguments, *(encode_id(one) for ids in named for one in ids)]

    def check_reply(self, reply: list[Any]) -> None:
        """Raise `InvalidJob` if the script has stored nothing because of the graph."""
        if reply[0] == b"unknown":
            unknown_jobs, unknown_flows = (set(map(decode_id, ids)) for ids in reply[1:])
            self._check_known(unknown_jobs, unknown_flows)
        if reply[0] == b"other":
            stored = decode_flow(*reply[1:])
            new = next(flow for flow in self._flows if flow.id == stored.id)
            check_same_flow(new, stored)
            raise make_other_groups_error(stored.id)
        if reply[0] == b"ended":
            raise make_ended_error(decode_flow(*reply[1:]))

    def _check_known(self, unknown_jobs: Collection[str], unknown_flows: Collection[str]) -> None:
        known_jobs = self._members.union(self.jobs).difference(unknown_jobs)
        known_flows = self._new_flows.union(self.flows).difference(unknown_flows)
        check_grown(self._flows, known_flows)
        check_graph(self._jobs, self._flows, known_flows, known_jobs)


def encode_identity(flow: NewFlow) -> bytes:
    """Return the end of the record of a flow: what does not change."""
    parent = b"" if flow.parent is None else encode_id(flow.parent)
    head = FLOW_IDENTITY.pack(flow.members, flow.max_failed, flow.fail_fast, len(parent))
    return head + parent + flow.name.encode()


def _encode_growth(flow: NewFlow, *, closes: bool = True) -> bytes:
    """Return whether a new flow is open, or whether a stored one is closed."""
    is_set = flow.growth is Growth.OPEN or (flow.growth is Growth.CLOSE and closes)
    return b"1" if is_set else b""


def decode_flow(flow_id: bytes, record: bytes) -> FlowInfo:
    """Decode a value of the hash `flow`."""
    unfinished, completed, failed, cancelled, added, created, finished, grown = FLOW.unpack_from(
        record
    )
    declared, max_failed, fail_fast, length = FLOW_IDENTITY.unpack_from(record, FLOW.size)
    at = FLOW.size + FLOW_IDENTITY.size
    return FlowInfo(
        id=decode_id(flow_id),
        name=record[at + length :].decode(),
        parent=decode_id(record[at : at + length]) if length else None,
        members=declared + added,
        unfinished=unfinished,
        completed=completed,
        failed=failed,
        cancelled=cancelled,
        max_failed=max_failed,
        fail_fast=fail_fast,
        added=added,
        created_at=decode_time(created),
        grown_at=None if grown == NO_TIME else decode_time(grown),
        finished_at=None if finished == NO_TIME else decode_time(finished),
    )


def decode_flows(reply: list[bytes]) -> list[FlowInfo]:
    """Decode the reply of `get_flow.lua`: the flow, then its groups in the order of their ids."""
    flows = [decode_flow(*row) for row in zip(reply[::2], reply[1::2], strict=True)]
    return [*flows[:1], *sorted(flows[1:], key=lambda flow: flow.id)]


def encode_page(limit: int, after: str | None, *, running: bool) -> list[bytes]:
    """Return the arguments of `list_flows.lua`.

    Raises:
        InvalidJob: `after` is not the `next` of a page.
    """
    before = parse_cursor(after)
    position = b"" if before is None else b"%d" % min(max(0, before), _MAX_POSITION)
    return [b"%d" % (max(0, limit) + 1), position, b"1" if running else b""]


def decode_page(reply: list[bytes], limit: int) -> FlowPage:
    """Decode the reply of `list_flows.lua`; a flow beyond `limit` says that there are more."""
    limit = max(0, limit)
    rows = list(zip(reply[::2], reply[1::2], strict=True))
    has_more = len(rows) > limit > 0
    following = str(_read_position(rows[limit - 1][1])) if has_more else None
    return FlowPage([decode_flow(*row) for row in rows[:limit]], following)


def _read_position(record: bytes) -> int:
    return int.from_bytes(record[FLOW.size - 8 : FLOW.size], "big")


def make_unmet(job_id: str, kind: bytes, source_id: bytes, on: bytes, source: object) -> Unmet:
    """Return an unmet condition. `source`: the record of the job, or that of the flow as stored."""
    return Unmet(
        condition=WaitCondition(
            _make_source(job_id, kind, source_id),
            _ONS.get(on, On.SUCCESS),  # without an end: the flow that cancelled the job has failed
        ),
        job=source if isinstance(source, JobRecord) else None,
        flow=decode_flow(source_id, source) if isinstance(source, bytes) else None,
    )


def _make_source(job_id: str, kind: bytes, source_id: bytes) -> WaitSource:
    """Return a source of a condition of a job. That of a signal has its name only."""
    if kind == SIGNAL_SOURCE:
        return make_signal_source(job_id, source_id.decode())
    if kind == TIME_SOURCE:
        return make_time_source(decode_micros(int.from_bytes(source_id, "big")))
    return WaitSource(
        SourceKind.JOB if kind == JOB_SOURCE else SourceKind.FLOW, decode_id(source_id)
    )
