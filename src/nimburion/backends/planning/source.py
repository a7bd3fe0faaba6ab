"""What a plan reads: `PlanSource`, and the values that it returns."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from nimburion.core.exchange import Lane
    from nimburion.core.fairness import PlannedShare, ShareClass
    from nimburion.core.limits import JobLimit, LimitKey, LimitUse

Place = tuple[int, int, int]
"""The place of a job in its lane: minus its priority (its rank), due time in microseconds, seq."""
Tenant = Hashable
"""A tenant, as the backend names it."""


class PlanLane:
    """A requested lane that is not paused."""

    __slots__ = ("has_keys", "is_closed", "lane", "limits", "number")

    def __init__(
        self, number: int, lane: Lane, *, limits: Sequence[JobLimit] = (), has_keys: bool = False
    ) -> None:
        self.number: int = number
        self.lane: Lane = lane
        self.limits: Sequence[JobLimit] = limits
        """The limits in which all jobs of the lane count with the same key. If one of them is full,
        the lane is closed.
        """
        self.has_keys: bool = has_keys
        """Whether its jobs may count in other limits. If one of them is full, the job is parked."""
        self.is_closed: bool = False
        """Whether the plan takes no more jobs of the lane."""


class Turn(NamedTuple):
    """The first job of a group: the waiting jobs of one tenant, lane and priority."""

    rank: int
    virtual_time: int
    due: int
    seq: int
    tenant: Tenant


class ParkedJob(NamedTuple):
    """A job that is parked for a key."""

    rank: int
    due: int
    seq: int
    tenant: Tenant | None
    """None: the job does not wait for the turn of a tenant."""


class PlanSource(Protocol):
    """Reads what an exchange considers. A plan changes nothing, so each answer stays true.

    Jobs are read in chunks, of a size that suits the backend.
    """

    def read_lanes(
        self, lanes: Sequence[PlanLane]
    ) -> Sequence[tuple[PlanLane, Iterator[list[Place]]]]:
        """Return the jobs without a tenant of each lane that has some, in the order of the lane."""
        ...

    def read_turns(self, lane: PlanLane) -> Iterator[list[Turn]]:
        """Return the first jobs of the groups of a lane: by rank, virtual time, due time, seq."""
        ...

    def read_group(
        self, lane: PlanLane, tenant: Tenant, rank: int, after: tuple[int, int] | None
    ) -> Iterator[list[tuple[int, int]]]:
        """Return due time and seq of the jobs of a group after one of them, or of all (None)."""
        ...

    def read_shares(
        self, class_: ShareClass, tenants: Collection[Tenant]
    ) -> dict[Tenant, PlannedShare]:
        """Return the shares of these tenants. A tenant that is not known has a new share."""
        ...

    def read_min_virtual_time(self, class_: ShareClass) -> int:
        """Return the virtual time at which the latest job of a class was reserved; 0: none."""
        ...

    def read_limits(self, jobs: Mapping[int, PlanLane]) -> dict[int, list[JobLimit]]:
        """Return the limits for which jobs may be parked, by seq, in the order of their names."""
        ...

    def read_uses(self, keys: Collection[LimitKey]) -> dict[LimitKey, LimitUse]:
        """Return the uses of these keys, also of those that are not in use."""
        ...

    def read_parked(self, key: LimitKey, lane: PlanLane) -> Iterator[list[ParkedJob]]:
        """Return the jobs of a lane that are parked for a key, in the order of the lane."""
        ...
