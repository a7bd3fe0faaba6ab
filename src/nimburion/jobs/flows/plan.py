"""What a flow becomes in the backend: ids, conditions and references to results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.flows import (
    Growth,
    NewFlow,
    On,
    ResultRef,
    SourceKind,
    WaitCondition,
    WaitSource,
)
from nimburion.core.job import JobOptions
from nimburion.core.size_limits import NAME_PATTERN
from nimburion.jobs.declaration.job import AnyJob
from nimburion.jobs.flows.flow import (
    AnyMember,
    Flow,
    FlowEntry,
    Members,
    count_tolerated,
    find_results,
    list_callbacks,
    list_entries,
    list_taken,
)
from nimburion.jobs.flows.placeholder import MemberResult

_CALLBACK_ENDS = {
    "on_success": On.SUCCESS,
    "on_failure": On.FAILURE,
    "on_finished": On.FINISHED,
}


class GraphPlace(NamedTuple):
    """Where a job stands in a graph. The jobs of a group share one, unless they take results."""

    flow: str
    group: str | None
    """Empty: a callback, which nothing counts."""
    conditions: tuple[WaitCondition, ...] = ()
    results: Mapping[str, ResultRef] = MappingProxyType({})
    keeps_none: bool = False

    def add_to_options(self, options: JobOptions) -> JobOptions:
        """Return the options of a job with its place in the graph."""
        return msgspec.structs.replace(
            options,
            flow=self.flow,
            group=self.group,
            conditions=self.conditions,
            results=dict(self.results),
            keeps_none=self.keeps_none,
        )


class PlannedJob(NamedTuple):
    """A job of a flow with its id and its place in the graph."""

    id: str
    name: str
    """Its name in the flow."""
    job: AnyJob
    place: GraphPlace


class FlowPlan:
    """A flow under an id. `InvalidJob` is raised if the id of a member would be too long."""

    def __init__(self, flow: Flow, flow_id: str) -> None:
        self._entries = list_entries(flow)
        self._callbacks = list_callbacks(flow)
        self._taken = list_taken(flow)
        self.id: str = flow_id
        self.count: int = len(flow) + len(self._callbacks)
        """The number of jobs, with the callbacks."""
        for entry in self._entries:
            last = "" if entry.max_failed is None else f".{max(0, len(entry.jobs) - 1)}"
            self._check_id(f"{entry.name}{last}")
        for kind in self._callbacks:
            self._check_id(kind)
        self.flow: NewFlow = NewFlow(
            id=flow_id,
            name=flow.name,
            members=len(self._entries),
            max_failed=count_tolerated(flow.max_failed, len(self._entries)),
            fail_fast=flow.fail_fast,
            growth=Growth.OPEN if flow.open else Growth.NONE,
        )
        self.groups: dict[str, NewFlow] = {
            group.id: group
            for entry in self._entries
            if (group := self._make_group(entry)) is not None
        }
        """The groups by id."""

    def list_jobs(self) -> Iterator[PlannedJob]:
        """Yield the callbacks, then the members: each after those it depends on."""
        own = WaitSource(SourceKind.FLOW, self.id)
        for kind, job in self._callbacks.items():
            condition = WaitCondition(own, _CALLBACK_ENDS[kind])
            place = GraphPlace(self.id, "", (condition,))
            yield PlannedJob(self._make_id(kind), kind, job, place)
        for entry in self._entries:
            yield from self._list_entry(entry)

    def _list_entry(self, entry: FlowEntry) -> Iterator[PlannedJob]:
        common = {self._make_source(one): on for one, on in entry.conditions.items()}
        is_group = entry.max_failed is not None
        group = self._make_id(entry.name) if is_group else None
        shared = GraphPlace(
            self.id, group, _make_conditions(common), keeps_none=entry.name in self._taken
        )
        for number, job in enumerate(entry.jobs):
            name = f"{entry.name}.{number}" if is_group else entry.name
            results = find_results(job)
            place = self._add_results(shared, common, results) if results else shared
            yield PlannedJob(self._make_id(name), name, job, place)

    def _add_results(
        self,
        place: GraphPlace,
        common: Mapping[WaitSource, On],
        results: Mapping[str, MemberResult],
    ) -> GraphPlace:
        """Return the place of a job that takes results: it waits for their members, too."""
        conditions = dict(common)
        for result in results.values():
            conditions.setdefault(self._make_source(result.source), On.SUCCESS)
        return place._replace(
            conditions=_make_conditions(conditions),
            results={
                argument: self._make_reference(result.source)
                for argument, result in results.items()
            },
        )

    def _make_group(self, entry: FlowEntry) -> NewFlow | None:
        if entry.max_failed is None:
            return None
        count = len(entry.jobs)
        return NewFlow(
            id=self._make_id(entry.name),
            name=entry.name,
            members=count,
            parent=self.id,
            max_failed=count_tolerated(entry.max_failed, count),
        )

    def _make_source(self, member: AnyMember) -> WaitSource:
        kind = SourceKind.FLOW if isinstance(member, Members) else SourceKind.JOB
        return WaitSource(kind, self._make_id(member.name))

    def _make_reference(self, member: AnyMember) -> ResultRef:
        count = len(member) if isinstance(member, Members) else None
        return ResultRef(self._make_id(member.name), count)

    def _make_id(self, name: str) -> str:
        return f"{self.id}.{name}"

    def _check_id(self, name: str) -> None:
        if NAME_PATTERN.fullmatch(job_id := self._make_id(name)) is None:
            raise InvalidJob(
                f"member {name!r}: its id {job_id!r} would have {len(job_id)} characters, over the "
                "limit of 128; use a shorter id of the flow, or a shorter `name`"
            )


def _make_conditions(conditions: Mapping[WaitSource, On]) -> tuple[WaitCondition, ...]:
    return tuple(WaitCondition(source, on) for source, on in conditions.items())
