"""Reads the data of the memory backend for a plan."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from nimburion.backends.memory.state import MemoryState
from nimburion.backends.planning.source import ParkedJob, Place, PlanLane, PlanSource, Tenant, Turn
from nimburion.core.fairness import PlannedShare, ShareClass
from nimburion.core.limits import JobLimit, LimitKey, LimitUse, closes_lane

_CHUNK = 8
"""The number of jobs that are read at a time."""

T = TypeVar("T")


class MemorySource(PlanSource):
    """Reads for a plan; see `PlanSource`."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    def read_lanes(
        self, lanes: Sequence[PlanLane]
    ) -> Sequence[tuple[PlanLane, Iterator[list[Place]]]]:
        state = self._state
        return [
            (lane, split(entry.get_place() for entry in state.iter_lane(key)))
            for lane in lanes
            if state.peek_lane(key := (lane.lane.queue, lane.lane.name)) is not None
        ]

    def read_turns(self, lane: PlanLane) -> Iterator[list[Turn]]:
        heads = self._state.turns.iter_heads((lane.lane.queue, lane.lane.name))
        return split(Turn(*rank, tenant) for rank, tenant in heads)

    def read_group(
        self, lane: PlanLane, tenant: Tenant, rank: int, after: tuple[int, int] | None
    ) -> Iterator[list[tuple[int, int]]]:
        group = (lane.lane.queue, lane.lane.name, -rank, str(tenant))
        places = ((entry.due, entry.seq) for entry in self._state.turns.iter_group(group))
        return split(place for place in places if after is None or place > after)

    def read_shares(
        self, class_: ShareClass, tenants: Collection[Tenant]
    ) -> dict[Tenant, PlannedShare]:
        queue, rank = class_
        turns = self._state.turns
        return {tenant: turns.copy_share(queue, -rank, str(tenant)) for tenant in tenants}

    def read_min_virtual_time(self, class_: ShareClass) -> int:
        queue, rank = class_
        return self._state.turns.classes[queue, -rank].min_virtual_time

    def read_limits(self, jobs: Mapping[int, PlanLane]) -> dict[int, list[JobLimit]]:
        return {
            seq: [
                limit
                for limit in self._state.list_limits(self._state.jobs_by_seq[seq])
                if not closes_lane(limit.key[0])
            ]
            for seq in jobs
        }

    def read_uses(self, keys: Collection[LimitKey]) -> dict[LimitKey, LimitUse]:
        return {key: self._state.read_use(key) for key in keys}

    def read_parked(self, key: LimitKey, lane: PlanLane) -> Iterator[list[ParkedJob]]:
        parked = self._state.iter_parked(key, (lane.lane.queue, lane.lane.name))
        return split(ParkedJob(*entry.get_place(), entry.options.fair_tenant) for entry in parked)


def split(items: Iterator[T]) -> Iterator[list[T]]:
    """Yield the items in chunks."""
    while chunk := list(islice(items, _CHUNK)):
        yield chunk
