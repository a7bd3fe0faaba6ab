"""A schedule as it is stored: JSON that every version reads, and the times that come of it."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import blake2b
from typing import Literal

import msgspec

from nimburion.core.errors import DefinitionError
from nimburion.core.job import NO_JOB_OPTIONS, JobOptions, NewJob
from nimburion.core.schedules import Overlap
from nimburion.core.timezones import find_zone
from nimburion.scheduler.triggers import Timetable, parse_trigger

Misfire = Literal["skip", "fire_once", "catch_up"]
"""What becomes of ticks that were missed."""

NAME_HEADER = "nimburion-schedule"
TICK_HEADER = "nimburion-tick"
LONGEST_NAME = 100
"""A name and a time make the id of a job."""


class ScheduleSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When, what, and by which rules."""

    trigger: str
    job: str
    timezone: str = "UTC"
    queue: str = "default"
    payload: str | None = None
    """A JSON object; None: it is computed, by those who declare the schedule."""
    priority: int = 5
    options: JobOptions = NO_JOB_OPTIONS
    jitter: float = 0.0
    """The job is due up to so many seconds after its tick."""
    start: int | None = None
    end: int | None = None
    """Ticks from `start` on and before `end`, epoch seconds."""
    misfire: Misfire = "fire_once"
    grace: float = 60.0
    """A tick that is later than so many seconds was missed."""
    window: float = 86_400.0
    """`catch_up` goes back so many seconds."""
    overlap: Overlap = "allow"
    enabled: bool = True
    since: float = 0.0
    """Ticks up to then are none of this schedule's: it was made, changed or resumed then."""
    declared_until: float | None = None
    """Whoever declares it in code says so again before then; None: it was made by hand."""

    def body(self) -> ScheduleSpec:
        """What was declared, without the times at which it was."""
        return msgspec.structs.replace(self, since=0.0, declared_until=None)

    @property
    def timing(self) -> tuple[str, str, int | None, int | None]:
        """What its timetable is made of."""
        return self.trigger, self.timezone, self.start, self.end

    def timetable(self) -> Timetable:
        """When it ticks. `DefinitionError` for a trigger or a time zone that cannot be."""
        trigger = parse_trigger(self.trigger, find_zone(self.timezone), self.start or 0)
        return Timetable(trigger, self.start, self.end)

    def encode(self) -> bytes:
        """The JSON that is stored."""
        return msgspec.json.encode(self)

    def make_job(self, name: str, tick: int) -> NewJob:
        """The job of a tick, of a schedule whose arguments are not computed."""
        job = NewJob(
            make_job_id(name, tick), self.job, self.queue, (self.payload or "{}").encode(),
            self.priority, options=self.options,
        )  # fmt: skip
        return bind_to_tick(job, name, tick, self.jitter)


def parse_spec(encoded: bytes) -> ScheduleSpec:
    """What is stored. `DefinitionError` where this version cannot read it."""
    try:
        return msgspec.json.decode(encoded, type=ScheduleSpec)
    except msgspec.MsgspecError as error:
        raise DefinitionError(f"the stored schedule cannot be read: {error}") from error


def bind_to_tick(job: NewJob, name: str, tick: int, jitter: float) -> NewJob:
    """A job as the job of this tick: its id, its time, and where it comes from."""
    headers = {**job.options.headers, NAME_HEADER: name, TICK_HEADER: format_time(tick)}
    return msgspec.structs.replace(
        job,
        id=make_job_id(name, tick),
        at=tick + compute_jitter(name, tick, jitter),
        options=msgspec.structs.replace(job.options, headers=headers),
    )


def make_job_id(name: str, tick: int) -> str:
    """The id of a tick's job, the same whoever fires it.

    >>> job_id("nightly", 1_780_000_000)
    'nightly:2026-05-28T20:26:40Z'
    """
    return f"{name}:{format_time(tick)}"


def format_time(tick: float) -> str:
    """A time in UTC as ids and headers have it."""
    return f"{datetime.fromtimestamp(tick, UTC):%Y-%m-%dT%H:%M:%SZ}"


def compute_jitter(name: str, tick: int, jitter: float) -> float:
    """Seconds from 0 to `jitter`, the same for this tick whoever computes them."""
    if jitter <= 0:
        return 0.0
    hashed = blake2b(f"{name}:{tick}".encode(), digest_size=8).digest()
    return jitter * int.from_bytes(hashed, "big") / 2**64
