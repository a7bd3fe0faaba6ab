"""Fairness among tenants: whose job is next in a queue. The arithmetic of all backends.

The algorithm is start-time fair queueing. Each tenant has a virtual time: the run time that its
jobs have used, divided by its weight. The tenant with the lowest virtual time is next; among equal
ones, the tenant whose first job is due first, then the one whose first job was enqueued first. Its
job is charged when it is reserved, with the mean run time of the tenant's recent jobs. When the
lease ends, the measured run time replaces that charge.

Virtual times are compared only inside one queue and one job priority, a share class. The minimum
virtual time of a class is the one at which its latest job was reserved; no job is charged from
below it. So a tenant that was away has no credit.

When a job begins to wait (enqueued, promoted, replayed, replaced or requeued) and no job of its
tenant, name and priority waits in the queue, the tenant joins: if it has no share yet, or if its
virtual time is below the minimum, its virtual time becomes the minimum plus the charge that its
next job is expected to have, with its weight at that time (`TenantShare.join`). So it stands behind
the tenants that wait already. A virtual time that is at the minimum or ahead of it stays. A job
that returns to its lane after it was parked does not join again: a virtual time below the minimum
becomes the minimum, without a charge (`TenantShare.catch_up`). Otherwise a job that waits for a
shared key could be behind a new tenant each time when the key has room.

Each tenant that joins is thus ahead of the minimum, which rises however many tenants join. The
bound: a waiting tenant is served after each of the other tenants was charged at most as much as the
tenant is ahead of the minimum, and after one job of each tenant that waits at that moment.

All times are whole microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from nimburion.core.errors import InvalidJob

MIN_CHARGE = 1_000
"""Microseconds: the least that a job counts, so that jobs which take no time take turns as well."""
MAX_CHARGE = 86_400_000_000
"""Microseconds: the most that a job counts, so that no backend overflows."""
FIRST_CHARGE = 100_000
"""Microseconds: the expected run time of a tenant whose run times are not known yet. It doubles
with each job that is reserved before the first one ends, so that a tenant with long jobs does not
fill all slots in the meantime.
"""
MAX_DOUBLINGS = 9
"""How often `FIRST_CHARGE` doubles at most: to 51.2 s."""
WEIGHT_UNITS = 100
"""The units of the weight 1: weights have two decimals."""
MIN_WEIGHT, MAX_WEIGHT = 0.01, 1_000.0

MAX_WAITING_COUNTED = 10_000
"""The most jobs that a backend counts for one tenant, so that reading stays bounded."""


def to_weight_units(weight: float) -> int:
    """Return a weight in whole hundredths, within `MIN_WEIGHT` and `MAX_WEIGHT`.

    Raises:
        InvalidJob: the weight is NaN.

    >>> to_weight_units(1.5)
    150
    """
    if math.isnan(weight):
        raise InvalidJob(
            f"the weight of a tenant is NaN; give a number between {MIN_WEIGHT} and {MAX_WEIGHT:g}"
        )
    return round(min(max(weight, MIN_WEIGHT), MAX_WEIGHT) * WEIGHT_UNITS)


def compute_charge(run_time: int, weight_units: int) -> int:
    """Return what a run time adds to a virtual time.

    >>> compute_charge(2_000_000, to_weight_units(4.0))
    500000
    """
    return min(max(run_time, MIN_CHARGE), MAX_CHARGE) * WEIGHT_UNITS // weight_units


ShareClass = tuple[str, int]
"""Queue and rank: the tenants of one class are compared."""


class TenantShare(msgspec.Struct):
    """What one tenant has used of a queue, at one job priority.

    >>> share = TenantShare(virtual_time=5_000_000)
    >>> share.join(5_500_000, weight_units=100)
    >>> share.virtual_time
    5600000
    >>> share.charge(7_000_000, weight_units=100)
    (7000000, 100000)
    >>> share.settle(100_000, 100, run_time=3_000_000)
    >>> share
    TenantShare(virtual_time=10000000, mean_run_time=3000000, unmeasured=1)
    """

    virtual_time: int = -1
    """A tenant that never joined is below every minimum."""
    mean_run_time: int = 0
    """The moving mean of the run times of its jobs; 0 before the first has ended."""
    unmeasured: int = 0
    """How many jobs were reserved before the first run time was known."""

    def join(self, min_virtual_time: int, weight_units: int) -> None:
        """Place the tenant behind those that wait, because a job of it begins to wait."""
        if self.virtual_time < min_virtual_time:
            self.virtual_time = min_virtual_time + self._expect_charge(weight_units)

    def catch_up(self, min_virtual_time: int) -> None:
        """Place the tenant at the minimum if it is below, because a job of it was parked."""
        self.virtual_time = max(self.virtual_time, min_virtual_time)

    def charge(self, min_virtual_time: int, weight_units: int) -> tuple[int, int]:
        """Charge a job that is reserved. Return the new minimum virtual time and the charge."""
        start = max(self.virtual_time, min_virtual_time)
        charge = self._expect_charge(weight_units)
        if self.mean_run_time == 0:
            self.unmeasured += 1
        self.virtual_time = start + charge
        return start, charge

    def _expect_charge(self, weight_units: int) -> int:
        expected = self.mean_run_time
        if expected == 0:
            expected = FIRST_CHARGE * 2 ** min(self.unmeasured, MAX_DOUBLINGS)
        return compute_charge(expected, weight_units)

    def settle(self, charge: int, weight_units: int, *, run_time: int | None) -> None:
        """Replace the charge of a lease that has ended by what the job used.

        `run_time` is the time since the job was reserved; None: its handler was not called, or its
        worker vanished. The tenant is then charged nothing.
        """
        used = 0
        if run_time is not None:
            run_time = min(max(run_time, 0), MAX_CHARGE)
            used = compute_charge(run_time, weight_units)
            mean = self.mean_run_time
            self.mean_run_time = max((7 * mean + run_time) // 8 if mean else run_time, 1)
        self.virtual_time += used - charge


class PlannedShare:
    """The share of a tenant, and its weight in hundredths."""

    __slots__ = ("share", "weight_units")

    def __init__(self, share: TenantShare, weight_units: int) -> None:
        self.share: TenantShare = share
        self.weight_units: int = weight_units


class TenantUse(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant with waiting or running jobs in a queue, at one job priority, when it was read."""

    tenant: str
    queue: str
    priority: int
    weight: float
    waiting: int
    """Its jobs that are due and wait for its turn, at most `MAX_WAITING_COUNTED`. A parked job does
    not count.
    """
    running: int
    """Its jobs that are leased."""
    ahead: float
    """Its virtual time beyond the minimum, in seconds. The tenant with the lowest is next."""


class TenantUses(msgspec.Struct, frozen=True):
    """The tenants with waiting or running jobs, and all weights that were set."""

    tenants: list[TenantUse]
    """Ordered by queue, priority (highest first), virtual time, and tenant."""
    weights: dict[str, float]
    """By tenant, ordered by tenant. A tenant that is not here has the weight 1."""


def compute_shares(uses: Sequence[TenantUse]) -> list[float]:
    """Return the share of each tenant: its part of the weights in its queue and priority."""
    sums: dict[tuple[str, int], float] = {}
    for use in uses:
        peers = (use.queue, use.priority)
        sums[peers] = sums.get(peers, 0.0) + use.weight
    return [use.weight / sums[use.queue, use.priority] for use in uses]


class TenantTurn(msgspec.Struct, frozen=True, kw_only=True):
    """Where a waiting job stands in the turns of its queue."""

    tenant: str
    ahead: float
    """The virtual time of its tenant beyond the minimum, in seconds."""
    tenants_before: int
    """How many other tenants with waiting jobs have a lower virtual time."""
    jobs_before: int
    """How many jobs of its own name and tenant come first, at most `MAX_WAITING_COUNTED`."""
