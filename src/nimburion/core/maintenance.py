"""Results of the maintenance operations of a backend, and its retention rules."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from nimburion.core.records import Record


class JobChanges(msgspec.Struct, frozen=True):
    """The result of `change_jobs`, as job ids."""

    ids: list[str]
    """Jobs that were changed, in the order of the call."""
    held: list[str] = msgspec.field(default_factory=list)
    """Jobs that stayed failed, because another job holds their unique key."""
    record: Record | None = None
    """The record as it was written; None: none was given, or it has another version."""


class Rescued(msgspec.Struct, frozen=True):
    """The result of one bounded rescue, as job ids."""

    returned: list[str]
    """Jobs that wait again."""
    failed: list[str]
    """Jobs that reached `max_lost` losses: dead letters with the reason `lost`."""
    cancelled: list[str]
    """Jobs that had a cancel request."""
    more: bool = False
    """More expired leases remain, or changes of flows are left; call again."""


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
    """For failed records, and for jobs of flows that were cancelled because of another job."""
    results: float | None = 86_400.0
    open_flows: float | None = 3_600.0
    """For open flows, since they got members last. After that they are closed as cancelled."""

    @property
    def flows(self) -> float | None:
        """For flows: as long as for any of their members."""
        if self.completed is None or self.failed is None:
            return None
        return max(self.completed, self.failed)


class Cancellation(enum.StrEnum):
    """The result of `cancel`."""

    CANCELLED = "cancelled"
    REQUESTED = "requested"
    """The job runs. Its worker is notified and gets the request with its next heartbeat; an
    earlier completion wins.
    """
    FINISHED = "finished"
    """Too late: the job had finished."""
