"""What people and tools ask a backend, and what it answers."""

from __future__ import annotations

import enum

import msgspec


class Replayed(msgspec.Struct, frozen=True):
    """What one bounded replay did."""

    ids: list[str]
    """Became pending again: same id, same payload, history kept, counts begun anew."""
    held: list[str]
    """Stayed failed: another job holds their unique key."""
    next: str | None = None
    """Pass it on to go on; None: everything that matched was looked at."""


class Rescued(msgspec.Struct, frozen=True):
    """What one bounded rescue did, by job id."""

    returned: list[str]
    """Waiting again."""
    failed: list[str]
    """Their losses are spent: dead letters, reason `lost`."""
    cancelled: list[str]
    """A cancel had been requested."""
    more: bool = False
    """Expired leases are left: call again."""


class Promoted(msgspec.Struct, frozen=True):
    """What one bounded promotion did."""

    count: int
    next_due: float | None
    """The earliest due time still scheduled (may be past when the bound was reached)."""


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long finished jobs are kept, in seconds; None: for ever."""

    completed: float | None = 86_400.0
    """Completed and cancelled records."""
    completed_max: int | None = None
    """And at most so many of them."""
    failed: float | None = 90 * 86_400.0
    results: float | None = 86_400.0


class Cancellation(enum.StrEnum):
    """The answer to `cancel`."""

    CANCELLED = "cancelled"
    REQUESTED = "requested"
    """It runs: its worker is told with the next heartbeat; a completion that comes first wins."""
    FINISHED = "finished"
    """Too late: it had ended."""
