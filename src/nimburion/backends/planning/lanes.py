"""The jobs of a lane in their order, and their rank among the lanes.

No index can hold the order of the contract: the rank of a first job changes with its age, and no
job of a lane overtakes the first one. So a plan reads a few jobs at a time from the front of each
lane, and merges the lanes by the rank of their first jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Generic, TypeVar

from nimburion.backends.planning.source import ParkedJob, Place, PlanLane
from nimburion.core.exchange import DEFAULT_QUEUE_OPTIONS, ReserveRequest

P = TypeVar("P", Place, tuple[int, int], ParkedJob)

RankedPlace = tuple[int, int, int, int]
"""The rank of the first job of a lane: minus the level of its queue, then its place. The lowest is
leased first."""


class QueueRank:
    """Ranks the first jobs of the lanes of one queue."""

    __slots__ = ("_ageing", "_now", "_priority")

    def __init__(self, request: ReserveRequest, queue: str, now: int) -> None:
        self._priority = request.queues.get(queue, DEFAULT_QUEUE_OPTIONS).priority
        self._ageing = round(request.ageing * 1_000_000)
        self._now = now

    def rank(self, rank: int, due: int, seq: int) -> RankedPlace:
        """Return the rank of a job that is the first of its lane.

        Its level is the priority of the queue, plus one for each whole ageing interval that it has
        been due.
        """
        age = (self._now - due) // self._ageing if self._ageing and self._now > due else 0
        return (-self._priority - age, rank, due, seq)


class JobReader(Generic[P]):
    """Jobs in the order of their places: read in chunks, with those that return in between."""

    __slots__ = ("_chunks", "_read", "_returned")

    def __init__(self, chunks: Iterator[list[P]], first: list[P] | None = None) -> None:
        """`first`: jobs that were read before the chunks."""
        self._chunks: Iterator[list[P]] = chunks
        self._read: list[P] = [] if first is None else first[::-1]
        """The first job is the last one here."""
        self._returned: list[P] = []
        """A heap."""

    @property
    def is_read(self) -> bool:
        """Whether the first job is known without reading."""
        return bool(self._read)

    def add_returned(self, place: P) -> None:
        """Add a job that was parked."""
        heappush(self._returned, place)

    def peek(self) -> P | None:
        """Return the place of the first job, or None at the end."""
        if not self._read:
            self._read = next(self._chunks, [])[::-1]
        if not self._returned:
            return self._read[-1] if self._read else None
        if self._read and self._read[-1] < self._returned[0]:
            return self._read[-1]
        return self._returned[0]

    def pop(self) -> None:
        """Remove the job that `peek` returned."""
        if not self._returned or (self._read and self._read[-1] < self._returned[0]):
            self._read.pop()
        else:
            heappop(self._returned)


class LaneQueue(JobReader[Place]):
    """The jobs without a tenant of one lane, ranked among those of the other lanes."""

    __slots__ = ("_head", "_queue_rank", "lane")

    def __init__(
        self,
        lane: PlanLane,
        queue_rank: QueueRank,
        chunks: Iterator[list[Place]],
        first: list[Place],
    ) -> None:
        super().__init__(chunks, first)
        self.lane: PlanLane = lane
        self._queue_rank = queue_rank
        self._head: RankedPlace | None = None
        """The rank of the first job; None: not computed."""

    def find_head(self) -> RankedPlace | None:
        """Return the rank of the first job; None: there is none, or the lane is closed."""
        if self.lane.is_closed:
            return None
        if self._head is None:
            place = self._read[-1] if self._read and not self._returned else self.peek()
            self._head = None if place is None else self._queue_rank.rank(*place)
        return self._head

    def pop(self) -> None:
        """Remove the first job."""
        self._head = None
        if self._returned:
            super().pop()
        else:
            self._read.pop()

    def add_returned(self, place: Place) -> None:
        """Add a job that was parked."""
        super().add_returned(place)
        self._head = None
