"""What people and tools ask a backend, and what it answers."""

from __future__ import annotations

from typing import Literal

import msgspec

Overlap = Literal["allow", "skip", "queue_one", "cancel_previous"]


class ScheduleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule as stored. `spec` is the scheduler's own JSON; stores keep it as it is."""

    name: str
    spec: bytes
    owner: str = ""
    paused: bool = False
    last_tick: float | None = None
    """The nominal time of the latest tick that was decided, epoch seconds."""
    last_job: str | None = None
    """The job of the latest tick that enqueued one."""


class Fired(msgspec.Struct, frozen=True):
    """What became of a tick."""

    outcome: Literal["fired", "skipped", "moved", "paused", "missing"]
    """`fired`: the job is stored. `skipped`: the overlap rule let the tick pass without one.
    `moved`: `expected_last` did not hold, somebody else decided this tick. `paused`, `missing`:
    the schedule is; nothing was written."""
    job_id: str | None = None
