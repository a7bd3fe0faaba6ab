"""The turns of tenants: their waiting jobs, their virtual times, and who is next in a lane."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from copy import copy
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from nimburion.backends.memory.heaps import iter_heap
from nimburion.backends.planning.source import Tenant
from nimburion.core.fairness import WEIGHT_UNITS, PlannedShare, TenantShare

if TYPE_CHECKING:
    from nimburion.backends.memory.state import JobEntry, LanePosition

Group = tuple[str, str, int, str]
"""Queue, name, priority and tenant: jobs that are reserved in the order of due time and seq."""
TurnRank = tuple[int, int, int, int]
"""Minus the priority, the virtual time of the tenant, due time, seq. Lowest first."""


class ShareClass:
    """The tenants of one queue and priority, whose virtual times are compared."""

    __slots__ = ("leases", "min_virtual_time", "shares")

    def __init__(self) -> None:
        self.min_virtual_time: int = 0
        self.shares: defaultdict[str, TenantShare] = defaultdict(TenantShare)
        self.leases: defaultdict[str, int] = defaultdict(int)
        """The number of charged leases of each tenant."""


class TenantTurns:
    """All jobs that wait for the turn of their tenant."""

    def __init__(self) -> None:
        self.weights: dict[str, int] = {}
        """In hundredths, by tenant. Others have the weight 1."""
        self.classes: defaultdict[tuple[str, int], ShareClass] = defaultdict(ShareClass)
        """By queue and priority."""
        self.groups: dict[Group, list[tuple[int, int, LanePosition, JobEntry]]] = {}
        """A heap by due time and seq for each group. Outdated entries are skipped, as in
        `MemoryState.lanes`.
        """
        self._heads: defaultdict[tuple[str, str], list[tuple[TurnRank, str]]] = defaultdict(list)
        """A heap for each lane, with the tenant of each group. An entry counts only if it is the
        listed one of its group.
        """
        self._listed: dict[Group, TurnRank] = {}

    def __bool__(self) -> bool:
        """Whether a job may be waiting."""
        return bool(self.groups)

    def get_weight(self, tenant: str) -> int:
        """Return the weight of a tenant in hundredths."""
        return self.weights.get(tenant, WEIGHT_UNITS)

    def set_weight(self, tenant: str, units: int) -> None:
        """Store a weight in hundredths; that of all others is not stored."""
        if units == WEIGHT_UNITS:
            self.weights.pop(tenant, None)
        else:
            self.weights[tenant] = units

    def add(self, entry: JobEntry, place: LanePosition, *, was_parked: bool = False) -> None:
        """Add a due job to its group. If the group was empty, the tenant joins the others."""
        group = _get_group(entry)
        first = self.peek_group(group)
        if first is None:
            peers = self.classes[entry.queue, entry.priority]
            share = peers.shares[group[3]]
            before = share.virtual_time
            if was_parked:
                share.catch_up(peers.min_virtual_time)
            else:
                share.join(peers.min_virtual_time, self.get_weight(group[3]))
            if share.virtual_time != before:
                self._push_heads(group)
        heappush(self.groups.setdefault(group, []), (entry.due, entry.seq, place, entry))
        if first is None or (entry.due, entry.seq) < (first.due, first.seq):
            self._push_head(group)

    def peek_group(self, group: Group) -> JobEntry | None:
        """Return the first job of a group, or None if it is empty."""
        heap = self.groups.get(group)
        while heap:
            _, _, place, entry = heap[0]
            if entry.position is place:
                return entry
            heappop(heap)
        self.groups.pop(group, None)
        return None

    def list_lanes(self) -> list[tuple[str, str]]:
        """Return the lanes in which jobs of tenants may wait."""
        return list(self._heads)

    def peek(self, lane: tuple[str, str]) -> JobEntry | None:
        """Return the job of a lane whose turn is next, or None."""
        heap = self._heads.get(lane)
        while heap:
            rank, tenant = heap[0]
            group = (*lane, -rank[0], tenant)
            if self._listed.get(group) == rank:
                entry = self.peek_group(group)
                if entry is not None and self.rank(entry) == rank:
                    return entry
                del self._listed[group]
                self._push_head(group)
                continue
            heappop(heap)
        return None

    def rank(self, entry: JobEntry) -> TurnRank:
        """Return the place of a waiting job among the first jobs of all groups."""
        share = self.classes[entry.queue, entry.priority].shares[_get_tenant(entry)]
        return (-entry.priority, share.virtual_time, entry.due, entry.seq)

    def iter_heads(self, lane: tuple[str, str]) -> Iterator[tuple[TurnRank, str]]:
        """Yield the rank of the first job of each group of a lane, with its tenant, in order."""
        found = set()
        is_current = False
        while not is_current:
            is_current = True
            for rank, tenant in iter_heap(self._heads.get(lane, ())):
                group = (*lane, -rank[0], tenant)
                if group in found or self._listed.get(group) != rank:
                    continue
                entry = self.peek_group(group)
                if entry is None or self.rank(entry) != rank:  # its first job was removed
                    del self._listed[group]
                    self._push_head(group)
                    is_current = False
                    break
                found.add(group)
                yield rank, tenant

    def iter_group(self, group: Group) -> Iterator[JobEntry]:
        """Yield the jobs of a group in their order."""
        heap = iter_heap(self.groups.get(group, []))
        return (entry for _, _, place, entry in heap if entry.position is place)

    def copy_share(self, queue: str, priority: int, tenant: str) -> PlannedShare:
        """Return a copy of the share of a tenant, with its weight."""
        share = self.classes[queue, priority].shares.get(tenant)
        share = TenantShare() if share is None else copy(share)
        return PlannedShare(share, self.get_weight(tenant))

    def save_shares(
        self,
        queue: str,
        priority: int,
        min_virtual_time: int,
        shares: Mapping[Tenant, PlannedShare],
    ) -> None:
        """Store the shares of tenants that were charged, and the minimum of the class."""
        peers = self.classes[queue, priority]
        peers.min_virtual_time = min_virtual_time
        for tenant, weighted in shares.items():
            peers.shares[str(tenant)] = weighted.share

    def count_lease(self, entry: JobEntry) -> None:
        """Count a charged lease, and give the groups of its tenant their new places."""
        group = _get_group(entry)
        self.classes[entry.queue, entry.priority].leases[group[3]] += 1
        self._push_heads(group)

    def rank_again(self, entry: JobEntry) -> None:
        """Give the group of a job that left it the place of its new first job."""
        self._push_head(_get_group(entry))

    def settle(self, entry: JobEntry, charge: int, run_time: int | None) -> None:
        """Replace the charge of a lease that has ended by the run time; None: by nothing."""
        group = _get_group(entry)
        peers = self.classes[entry.queue, entry.priority]
        share = peers.shares[group[3]]
        share.settle(charge, self.get_weight(group[3]), run_time=run_time)
        peers.leases[group[3]] -= 1
        self._push_heads(group)

    def forget(self) -> None:
        """Forget tenants that have no jobs and no virtual time ahead, and classes without jobs."""
        busy = {
            (queue, priority, tenant)
            for queue, name, priority, tenant in list(self.groups)
            if self.peek_group((queue, name, priority, tenant)) is not None
        }
        for (queue, priority), peers in list(self.classes.items()):
            idle = [
                tenant
                for tenant in peers.shares
                if (queue, priority, tenant) not in busy and not peers.leases[tenant]
            ]
            if len(idle) == len(peers.shares):
                del self.classes[queue, priority]
                continue
            for tenant in idle:
                if peers.shares[tenant].virtual_time <= peers.min_virtual_time:
                    del peers.shares[tenant], peers.leases[tenant]

    def _push_heads(self, group: Group) -> None:
        """Rank the groups of a tenant in this queue and priority again, after its virtual time
        changed.
        """
        queue, _, priority, tenant = group
        for lane_queue, name in list(self._heads):
            if lane_queue == queue:
                self._push_head((queue, name, priority, tenant))

    def _push_head(self, group: Group) -> None:
        first = self.peek_group(group)
        if first is None:
            self._listed.pop(group, None)
            return
        rank = self.rank(first)
        if self._listed.get(group) != rank:
            self._listed[group] = rank
            heappush(self._heads[group[0], group[1]], (rank, group[3]))


def _get_tenant(entry: JobEntry) -> str:
    tenant = entry.options.fair_tenant
    if tenant is None:
        raise AssertionError(f"job {entry.id} has no tenant")
    return tenant


def _get_group(entry: JobEntry) -> Group:
    return (entry.queue, entry.name, entry.priority, _get_tenant(entry))
