"""Limits by key: how many jobs of one key may run or start, for example of one customer.

Jobs of all keys wait in the lane of their name. An exchange that finds a job whose key has no room
parks it: the job leaves the lane until its key has room, so that it is passed over once.
"""

from __future__ import annotations

import msgspec

from nimburion.core.rate_limits import RateLimit

MAX_PARKED = 1_000
"""The most jobs that one exchange parks. If it stops there, its lanes are among those that wait."""

MAX_RETURNED = 1_000
"""The most parked jobs that one exchange considers again after the limits of their name changed."""


class KeyedLimit(msgspec.Struct, frozen=True):
    """A limit by key, as a worker declares it for one job name. Jobs carry their keys.

    Counts are kept by limit and key, so several job names can share a limit.
    """

    concurrency: int | None = None
    """How many jobs of one key may run at once, over all workers."""
    rate: RateLimit | None = None
    """How many units of one key may start in a time. Its `cost` is that of jobs that carry none."""


class KeyUse(msgspec.Struct, frozen=True, kw_only=True):
    """A key of a limit that is in use, or for which jobs wait."""

    limit: str
    """The name of the limit."""
    key: str
    in_use: int
    """The number of jobs that run."""
    parked: int
    """The number of jobs that wait for this key to have room."""
    opens_at: float | None = None
    """When the rate of the key allows the next parked job, in epoch seconds; None: no rate delays
    one."""
