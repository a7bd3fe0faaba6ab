"""Schedules as a backend stores them, and the result of a tick."""

from __future__ import annotations

from typing import Literal

import msgspec

Overlap = Literal["allow", "skip", "queue_one", "cancel_previous"]


class ScheduleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A stored schedule. `spec` is the scheduler's own JSON; backends keep it unchanged."""

    name: str
    spec: bytes
    owner: str = ""
    paused: bool = False
    last_tick: float | None = None
    """The nominal time of the latest decided tick, in epoch seconds."""
    last_job: str | None = None
    """The job of the latest tick that enqueued a job."""


class Fired(msgspec.Struct, frozen=True):
    """The result of a tick."""

    outcome: Literal["fired", "skipped", "moved", "paused", "missing"]
    """The outcome of the tick. Only `fired` stores a job.

    - `fired`: the job is stored.
    - `skipped`: the overlap rule decided the tick without a job.
    - `moved`: the last tick was not `expected_last`, because another process decided this tick.
    - `paused`, `missing`: the schedule is paused or does not exist; nothing was written.
    """
    job_id: str | None = None
