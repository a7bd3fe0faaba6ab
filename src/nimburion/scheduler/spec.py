"""The stored form of a schedule: JSON that every version reads, and the ids of its jobs."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import blake2b
from typing import Literal

import msgspec

from nimburion.core.errors import DefinitionError
from nimburion.core.job import NO_JOB_OPTIONS, JobOptions, NewJob
from nimburion.core.schedules import Overlap
from nimburion.core.timing.timezones import find_zone
from nimburion.scheduler.triggers import Timetable, parse_trigger

Misfire = Literal["skip", "fire_once", "catch_up"]
"""Policies for missed ticks."""

NAME_HEADER = "nimburion-schedule"
TICK_HEADER = "nimburion-tick"
LONGEST_NAME = 100
"""Longest name of a schedule. The id of a job consists of the name and the time of the tick."""


class ScheduleSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The trigger, the job and the options of a schedule."""

    trigger: str
    job: str
    timezone: str = "UTC"
    queue: str = "default"
    payload: str | None = None
    """Payload as a JSON object; None if the declaring application computes the job."""
    priority: int = 5
    options: JobOptions = NO_JOB_OPTIONS
    jitter: float = 0.0
    """Maximum delay of the job after its tick, in seconds."""
    start: int | None = None
    end: int | None = None
    """Ticks are at or after `start` and before `end`, in epoch seconds."""
    misfire: Misfire = "fire_once"
    grace: float = 60.0
    """Seconds after which a tick counts as missed."""
    window: float = 86_400.0
    """Maximum age in seconds of ticks that `catch_up` fires."""
    overlap: Overlap = "allow"
    enabled: bool = True
    since: float = 0.0
    """Ticks up to this time do not fire: the schedule was created, changed or resumed then."""
    declared_until: float | None = None
    """Time until which the declaration in code is valid; schedulers renew it. None if added by
    hand."""
    run_of: str = ""
    """Name of a declared schedule, if this record only requests one job of it, beside its ticks.
    A scheduler that declares it computes and enqueues the job, and deletes this record."""
    run_id: str = ""
    """Id of the requested job."""

    def get_declaration(self) -> ScheduleSpec:
        """Return the declaration without the times of registration."""
        return msgspec.structs.replace(self, since=0.0, declared_until=None)

    @property
    def timing(self) -> tuple[str, str, int | None, int | None]:
        """The fields that determine the timetable."""
        return self.trigger, self.timezone, self.start, self.end

    def make_timetable(self) -> Timetable:
        """Build the timetable. Raises `DefinitionError` for an invalid trigger or time zone."""
        trigger = parse_trigger(self.trigger, find_zone(self.timezone), self.start or 0)
        return Timetable(trigger, self.start, self.end)

    def encode(self) -> bytes:
        """Return the stored JSON."""
        return msgspec.json.encode(self)

    def make_job(self, name: str, tick: int) -> NewJob:
        """Return the job of a tick. Only for schedules whose job is not computed."""
        job = NewJob(
            make_job_id(name, tick), self.job, self.queue, (self.payload or "{}").encode(),
            self.priority, options=self.options,
        )  # fmt: skip
        return bind_to_tick(job, name, tick, self.jitter)


def parse_spec(encoded: bytes) -> ScheduleSpec:
    """Decode a stored schedule. Raises `DefinitionError` if this version cannot read it."""
    try:
        return msgspec.json.decode(encoded, type=ScheduleSpec)
    except msgspec.MsgspecError as error:
        raise DefinitionError(f"the stored schedule cannot be read: {error}") from error


def bind_to_tick(job: NewJob, name: str, tick: int, jitter: float) -> NewJob:
    """Return a copy of `job` with the id, the due time and the headers of a tick."""
    headers = {**job.options.headers, NAME_HEADER: name, TICK_HEADER: format_time(tick)}
    return msgspec.structs.replace(
        job,
        id=make_job_id(name, tick),
        at=tick + compute_jitter(name, tick, jitter),
        options=msgspec.structs.replace(job.options, headers=headers),
    )


def make_job_id(name: str, tick: int) -> str:
    """Return the id of a tick's job; every scheduler computes the same id.

    >>> make_job_id("nightly", 1_780_000_000)
    'nightly:2026-05-28T20:26:40Z'
    """
    return f"{name}:{format_time(tick)}"


def make_request_name(name: str, now: float, job_id: str | None = None) -> str:
    """Return the name of a request for a job beside the ticks: new each time, or one per `job_id`.

    >>> make_request_name("nightly", 1_780_000_000.5)
    'nightly:now:1780000000500'
    """
    if job_id is None:
        return f"{name}:now:{int(now * 1000)}"
    return f"{name}:now:{blake2b(job_id.encode(), digest_size=8).hexdigest()}"


def format_time(tick: float) -> str:
    """Format an epoch time in UTC as ids and headers contain it."""
    return f"{datetime.fromtimestamp(tick, UTC):%Y-%m-%dT%H:%M:%SZ}"


def compute_jitter(name: str, tick: int, jitter: float) -> float:
    """Return a delay of 0 to `jitter` seconds; every scheduler computes the same delay for a
    tick."""
    if jitter <= 0:
        return 0.0
    hashed = blake2b(f"{name}:{tick}".encode(), digest_size=8).digest()
    return jitter * int.from_bytes(hashed, "big") / 2**64
