"""The turns of tenants: who is next in a queue, and what a tenant is charged.

`nimburion.core.fairness` explains the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from heapq import heappop, heappush, heapreplace
from itertools import count

from nimburion.backends.planning.lanes import JobReader, QueueRank, RankedPlace
from nimburion.backends.planning.source import Place, PlanLane, PlanSource, Tenant, Turn
from nimburion.core.fairness import PlannedShare, ShareClass, TenantShare

_FIRST = -(2**63)
_BEFORE_ALL = (_FIRST, _FIRST, _FIRST, _FIRST)
"""A place before all groups."""
_UNKNOWN = (-(2**63), -(2**63))
"""Due time and seq of a first job that was not read: the group stands before all others with the
same virtual time until it is read."""


class Shares:
    """The tenants that a plan considers: their shares, the minimum virtual times, the charges."""

    def __init__(self, source: PlanSource) -> None:
        self._source = source
        self._known: dict[ShareClass, dict[Tenant, PlannedShare]] = {}
        self.min_virtual_times: dict[ShareClass, int] = {}
        self.charged: dict[ShareClass, dict[Tenant, PlannedShare]] = {}
        """The shares that changed because jobs were charged."""

    def read(self, class_: ShareClass, tenants: Collection[Tenant]) -> dict[Tenant, PlannedShare]:
        """Read the shares of tenants that are not known yet; return all of the class."""
        known = self._known.setdefault(class_, {})
        unknown = [tenant for tenant in tenants if tenant not in known]
        if unknown:
            known |= self._source.read_shares(class_, unknown)
        return known

    def get_min_virtual_time(self, class_: ShareClass) -> int:
        """Return the virtual time at which the latest job of a class was reserved."""
        if class_ not in self.min_virtual_times:
            self.min_virtual_times[class_] = self._source.read_min_virtual_time(class_)
        return self.min_virtual_times[class_]

    def charge(self, class_: ShareClass, tenant: Tenant, planned: PlannedShare) -> int:
        """Charge a job that is leased to its tenant; return the charge."""
        start, charge = planned.share.charge(
            self.get_min_virtual_time(class_), planned.weight_units
        )
        self.min_virtual_times[class_] = start
        self.charged.setdefault(class_, {})[tenant] = planned
        return charge


class GroupQueue:
    """The waiting jobs of one tenant, lane and rank: they are leased by due time and seq."""

    __slots__ = ("jobs", "lane", "planned", "rank", "share", "tenant")

    def __init__(
        self,
        lane: PlanLane,
        tenant: Tenant,
        rank: int,
        planned: PlannedShare,
        jobs: JobReader[tuple[int, int]],
    ) -> None:
        self.lane: PlanLane = lane
        self.tenant: Tenant = tenant
        self.rank: int = rank
        self.planned: PlannedShare = planned
        self.share: TenantShare = planned.share
        self.jobs: JobReader[tuple[int, int]] = jobs


class TurnReader:
    """Reads the first jobs of the groups of one lane by turn, as far as the plan needs."""

    __slots__ = ("_chunks", "is_exhausted", "lane", "last")

    def __init__(self, source: PlanSource, lane: PlanLane) -> None:
        self._chunks = source.read_turns(lane)
        self.lane: PlanLane = lane
        self.last: tuple[int, int, int, int] = _BEFORE_ALL
        """The place up to which the groups were read."""
        self.is_exhausted: bool = False

    def read_more(self) -> Sequence[Turn]:
        """Return the next groups."""
        turns = next(self._chunks, ())
        self.is_exhausted = not turns
        if turns:
            self.last = turns[-1][:4]
        return turns


class TurnQueue:
    """The jobs of the tenants of one queue, in the order of their turns: one more lane."""

    def __init__(
        self,
        source: PlanSource,
        lanes: Sequence[PlanLane],
        shares: Shares,
        queue_rank: QueueRank,
        note: Callable[[PlanLane, Collection[int]], None],
    ) -> None:
        self._source = source
        self._queue = lanes[0].lane.queue
        self._shares = shares
        self._queue_rank = queue_rank
        self._note = note
        """Called with the seqs of jobs that were read."""
        self._unread = [TurnReader(source, lane) for lane in lanes]
        self._read_to: tuple[int, int, int, int] = _BEFORE_ALL
        """The place up to which all groups were read."""
        self._groups: dict[tuple[int, int, Tenant], GroupQueue] = {}
        """By number of the lane, rank and tenant."""
        self._heap: list[tuple[int, int, int, int, int, GroupQueue]] = []
        """Rank, virtual time, due time and seq of the first job of a group, a number that no other
        entry has, and the group. An entry is corrected when it is the first.
        """
        self._numbers = count()
        self._head: GroupQueue | None = None
        self.lane: PlanLane = lanes[0]
        """The lane of the job that `find_head` returned."""

    def find_head(self) -> RankedPlace | None:
        """Return the rank of the job whose turn is next; None: there is none in an open lane."""
        heap = self._heap
        self._head = None
        while True:
            if self._unread and (not heap or heap[0][:4] > self._read_to):
                self._read_turns()
            if not heap:
                return None
            rank, virtual_time, due, seq, number, group = heap[0]
            if group.lane.is_closed:
                heappop(heap)
                continue
            now_at = group.share.virtual_time
            if now_at != virtual_time and not group.jobs.is_read:
                heapreplace(heap, (rank, now_at, *_UNKNOWN, number, group))
                continue
            place = group.jobs.peek()
            if place is None:
                heappop(heap)
                continue
            if now_at != virtual_time or place != (due, seq):
                heapreplace(heap, (rank, now_at, *place, number, group))
                continue
            self._head = group
            self.lane = group.lane
            return self._queue_rank.rank(rank, due, seq)

    def pop(self) -> None:
        """Remove the job that `find_head` returned."""
        self._get_head().jobs.pop()

    def charge(self) -> int:
        """Charge the job that `find_head` returned to its tenant; return the charge."""
        group = self._get_head()
        return self._shares.charge((self._queue, group.rank), group.tenant, group.planned)

    def add_returned(self, lane: PlanLane, tenant: Tenant, place: Place) -> None:
        """Add a job that was parked. A tenant whose group was empty catches up with the minimum."""
        rank, due, seq = place
        class_ = (self._queue, rank)
        group = self._groups.get((lane.number, rank, tenant))
        if group is None:
            planned = self._shares.read(class_, (tenant,))[tenant]
            group = self._make_group(lane, tenant, rank, planned, None)
        if group.jobs.peek() is None:
            group.share.catch_up(self._shares.get_min_virtual_time(class_))
        group.jobs.add_returned((due, seq))
        self._push(group, (due, seq))

    def _get_head(self) -> GroupQueue:
        if self._head is None:
            raise AssertionError("no job was found whose turn is next")
        return self._head

    def _read_turns(self) -> None:
        """Read all groups that may come before the first one of the heap."""
        heap = self._heap
        for reader in self._unread:
            while (
                not reader.is_exhausted
                and not reader.lane.is_closed
                and (not heap or heap[0][:4] > reader.last)
            ):
                self._add_turns(reader.lane, reader.read_more())
        self._unread = [
            reader
            for reader in self._unread
            if not reader.is_exhausted and not reader.lane.is_closed
        ]
        self._read_to = min((reader.last for reader in self._unread), default=_BEFORE_ALL)

    def _add_turns(self, lane: PlanLane, turns: Sequence[Turn]) -> None:
        by_rank: dict[int, list[Tenant]] = {}
        for turn in turns:
            by_rank.setdefault(turn.rank, []).append(turn.tenant)
        shares = {
            rank: self._shares.read((self._queue, rank), tenants)
            for rank, tenants in by_rank.items()
        }
        for rank, _, due, seq, tenant in turns:
            if (lane.number, rank, tenant) not in self._groups:
                place = (due, seq)
                group = self._make_group(lane, tenant, rank, shares[rank][tenant], place)
                self._push(group, place)
        if lane.has_keys:
            self._note(lane, [turn.seq for turn in turns])

    def _make_group(
        self,
        lane: PlanLane,
        tenant: Tenant,
        rank: int,
        planned: PlannedShare,
        first: tuple[int, int] | None,
    ) -> GroupQueue:
        """Add a group whose first job was read, or none of whose jobs was."""
        chunks = self._read_group(lane, tenant, rank, first)
        jobs = JobReader(chunks, None if first is None else [first])
        group = GroupQueue(lane, tenant, rank, planned, jobs)
        self._groups[lane.number, rank, tenant] = group
        return group

    def _read_group(
        self, lane: PlanLane, tenant: Tenant, rank: int, after: tuple[int, int] | None
    ) -> Iterator[list[tuple[int, int]]]:
        for jobs in self._source.read_group(lane, tenant, rank, after):
            self._note(lane, [seq for _, seq in jobs])
            yield jobs

    def _push(self, group: GroupQueue, place: tuple[int, int]) -> None:
        entry = (group.rank, group.share.virtual_time, *place, next(self._numbers), group)
        heappush(self._heap, entry)
