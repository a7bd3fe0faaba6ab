"""Results of the maintenance operations of a backend, and its retention rules."""

from __future__ import annotations

import enum

import msgspec


class Replayed(msgspec.Struct, frozen=True):
    """The result of one bounded replay."""

    ids: list[str]
    """Jobs that became pending again, with the same id, payload and history; counts restart at
    zero.
    """
    held: list[str]
    """Jobs that stayed failed, because another job holds their unique key."""
    next: str | None = None
    """Pass it as `after` to continue; None: every matching job was examined."""


class Rescued(msgspec.Struct, frozen=True):
    """The result of one bounded rescue, as job ids."""

    returned: list[str]
    """Jobs that wait again."""
    failed: list[str]
    """Jobs that reached `max_lost` losses: dead letters with the reason `lost`."""
    cancelled: list[str]
    """Jobs that had a cancel request."""
    more: bool = False
    """More expired leases remain; call again."""


class Promoted(msgspec.Struct, frozen=True):
    """The result of one bounded promotion."""

    count: int
    next_due: float | None
    """The earliest due time that is still scheduled. It may be in the past if `limit` was
    reached.
    """


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long finished jobs are kept, in seconds; None: forever."""

    completed: float | None = 86_400.0
    """For completed and cancelled records."""
    completed_max: int | None = None
    """The maximum number of completed and cancelled records."""
    failed: float | None = 90 * 86_400.0
    results: float | None = 86_400.0


class Cancellation(enum.StrEnum):
    """The result of `cancel`."""

    CANCELLED = "cancelled"
    REQUESTED = "requested"
    """The job runs. Its worker is notified and gets the request with its next heartbeat; an
    earlier completion wins.
    """
    FINISHED = "finished"
    """Too late: the job had finished."""
