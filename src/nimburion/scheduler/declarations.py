"""Validate the schedules that an application declares and build their stored form."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypedDict, cast, get_args

import msgspec

from nimburion.core.errors import DefinitionError, InvalidJob
from nimburion.core.job import NewJob
from nimburion.core.schedules import Overlap
from nimburion.core.settings import TaskSettings
from nimburion.core.size_limits import NAME_PATTERN, check_name
from nimburion.core.text.suggestions import describe_unknown
from nimburion.core.timing.durations import Duration, require_seconds
from nimburion.core.timing.timezones import find_zone
from nimburion.jobs.client.client import Client, prepare_job
from nimburion.jobs.declaration.job import AnyJob, Job, JobFunction, find_declaration
from nimburion.jobs.options.uniqueness import Unique
from nimburion.jobs.payloads.codec import check_size
from nimburion.scheduler.spec import LONGEST_NAME, Misfire, ScheduleSpec
from nimburion.scheduler.triggers import When, parse_trigger, to_epoch

Compute = Callable[[datetime], AnyJob]
"""A function that returns the job of a tick. Its argument is the nominal time in the time zone
of the schedule."""
Template = AnyJob | Compute
_JOB_OPTIONS = frozenset(
    {"queue", "priority", "headers", "tenant", "correlation_id", "max_retries", "timeout",
     "expires", "tags", "unique_key", "unique"}
)  # fmt: skip


class TickOptions(TypedDict, total=False):
    """Options of the ticks of a schedule. Durations are seconds or a timedelta."""

    timezone: str | None
    """IANA time zone, such as `Europe/Rome`; default: the scheduler's time zone."""
    jitter: Duration
    """Delay the job by up to this many seconds; every scheduler computes the same delay for a
    tick."""
    start: datetime | None
    """Earliest time of a tick. Intervals are counted from it."""
    end: datetime | None
    """End of the ticks, exclusive."""
    misfire: Misfire
    """Policy for missed ticks: `fire_once` (default), `skip` or `catch_up`."""
    misfire_grace: Duration
    """A tick is missed when it is later than this many seconds; default 60."""
    catch_up_window: Duration
    """Maximum age in seconds of ticks that `catch_up` fires; default one day."""
    overlap: Overlap
    """Policy while the previous job of the schedule is unfinished: `allow` (default), `skip`,
    `queue_one` or `cancel_previous`."""
    enabled: bool
    """False: the schedule is declared but never fires."""


class ScheduleOptions(TickOptions, total=False):
    """Options of a schedule, besides its trigger and its job. Durations are seconds or a
    timedelta."""

    name: str | None
    """Name in the backend, 1 to 100 characters; default: the name of the job."""
    queue: str | None
    """The queue of the jobs, in place of the declared one."""
    priority: int | None
    """0 to 9, higher first."""
    headers: dict[str, str] | None
    """Texts that travel with the jobs."""
    tenant: str | None
    """The customer of the jobs."""
    correlation_id: str | None
    """Links the jobs to what caused them."""
    max_retries: int | None
    """How many retries follow a first failure."""
    timeout: Duration | None
    """The time that one attempt may take."""
    expires: Duration | None
    """The time after a tick until which its job must have started. Later, it is cancelled."""
    tags: Sequence[str] | None
    """Words by which the jobs are found, besides those that they declare."""
    unique_key: str | None
    """Unique key of the jobs. A tick enqueues no job while an unfinished job has the key."""
    unique: Unique | None
    """How long a job holds its unique key, as in a call of `enqueue`."""


_OPTIONS = _JOB_OPTIONS | ScheduleOptions.__annotations__.keys()


class DeclaredSchedule(msgspec.Struct, frozen=True):
    """One validated schedule of an application."""

    name: str
    spec: ScheduleSpec
    compute: Compute | None = None
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    """Enqueue options for computed jobs."""


def declare_schedule(
    client: Client, when: When, template: object, timezone: str, options: ScheduleOptions
) -> DeclaredSchedule:
    """Validate a schedule and return it. Raises `DefinitionError` that names the invalid option."""
    unknown = describe_unknown("option", options, _OPTIONS)
    if unknown is not None:
        raise DefinitionError(unknown)
    given: dict[str, Any] = dict(options)
    for_jobs = {key: given.pop(key) for key in _JOB_OPTIONS & given.keys()}
    for_jobs = {key: value for key, value in for_jobs.items() if value is not None}
    compute = _find_compute(template)
    try:
        job = None if compute else prepare_job(client, _find_job(template), **for_jobs)
    except InvalidJob as error:
        raise DefinitionError(f"the job of a schedule: {error}") from error
    name = given.pop("name", None) or (job.name if job else _find_name(template))
    spec = make_spec(when, timezone, job, **given)
    return DeclaredSchedule(check_schedule_name(name), spec, compute, for_jobs if compute else {})


def make_spec(
    when: When,
    default_zone: str,
    job: NewJob | None,
    *,
    timezone: str | None = None,
    jitter: Duration = 0.0,
    start: datetime | None = None,
    end: datetime | None = None,
    misfire: Misfire = "fire_once",
    misfire_grace: Duration = 60.0,
    catch_up_window: Duration = 86_400.0,
    overlap: Overlap = "allow",
    enabled: bool = True,
) -> ScheduleSpec:
    """Return the stored form of a schedule. `job` is None if a function computes the jobs."""
    zone = timezone or default_zone
    begin = None if start is None else to_epoch("start", start)
    trigger = parse_trigger(when, find_zone(zone), begin or 0)
    spec = ScheduleSpec(
        trigger=trigger.text,
        timezone=zone,
        job=job.name if job else "",
        jitter=require_seconds("jitter", jitter, DefinitionError),
        start=begin,
        end=None if end is None else to_epoch("end", end),
        misfire=_parse_choice("misfire", misfire, get_args(Misfire)),
        grace=require_seconds("misfire_grace", misfire_grace, DefinitionError),
        window=require_seconds("catch_up_window", catch_up_window, DefinitionError),
        overlap=_parse_choice("overlap", overlap, get_args(Overlap)),
        enabled=bool(enabled),
    )
    return spec if job is None else set_job(spec, job)


def set_job(spec: ScheduleSpec, job: NewJob) -> ScheduleSpec:
    """Return a copy of the schedule that enqueues `job` at each tick. Raises `DefinitionError`
    if its payload is not UTF-8."""
    try:
        payload = job.payload.decode()
    except UnicodeDecodeError:
        raise DefinitionError("the payload of a schedule's job must be UTF-8") from None
    return msgspec.structs.replace(
        spec,
        job=job.name,
        queue=job.queue,
        payload=payload,
        priority=job.priority,
        options=job.options,
    )


def check_schedule_name(name: object) -> str:
    """Return `name` if it is a valid schedule name. Raises `DefinitionError` with the allowed
    form."""
    if isinstance(name, str) and len(name) <= LONGEST_NAME and NAME_PATTERN.fullmatch(name):
        return name
    shown = ascii(name) if len(str(name)) <= LONGEST_NAME else f"{len(str(name))} characters"
    raise DefinitionError(
        f"the name of a schedule must be 1-{LONGEST_NAME} characters of A-Z a-z 0-9 _ . : -, "
        f"not {shown}"
    )


def _find_compute(template: object) -> Compute | None:
    """Return the function that computes jobs; None if the template is a job."""
    is_job = isinstance(template, JobFunction | type) or find_declaration(template) is not None
    return cast("Compute", template) if callable(template) and not is_job else None


def _find_job(template: object) -> Any:  # noqa: ANN401 (prepare says what is no job)
    """Return the job of a template. A job class or function stands for a job without arguments."""
    if isinstance(template, JobFunction):
        try:
            return template.job()
        except TypeError as error:
            name = _find_name(template)
            raise DefinitionError(f"{error}; schedule {name}.job(…)") from None
    if isinstance(template, type) and issubclass(template, Job):
        try:
            return template()
        except TypeError as error:
            raise DefinitionError(
                f"{template.__name__} needs arguments ({error}); schedule {template.__name__}(…)"
            ) from None
    return template


def _find_name(template: object) -> str:
    return str(getattr(template, "__name__", ""))


def _parse_choice(what: str, value: Any, allowed: tuple[str, ...]) -> Any:  # noqa: ANN401 (of a Literal)
    if value not in allowed:
        raise DefinitionError(f"{what} must be one of {', '.join(allowed)}, not {value!r}")
    return value


def declare_task(client: Client, task: TaskSettings, timezone: str) -> DeclaredSchedule:
    """Build a schedule from a configured task. Raises `DefinitionError` that names the task and
    the cause."""
    try:
        job = make_raw_job(client, task.job_name, task.queue, task.payload, task.priority)
        spec = make_spec(
            task.cron,
            timezone,
            job,
            timezone=task.timezone,
            misfire=task.misfire_policy,
            overlap=task.overlap,
            enabled=task.enabled,
        )
        if task.expires is not None:
            options = msgspec.structs.replace(spec.options, expires=task.expires)
            spec = msgspec.structs.replace(spec, options=options)
        return DeclaredSchedule(check_schedule_name(task.name), spec)
    except (DefinitionError, InvalidJob) as error:
        where = f"{task.place}: " if task.place else ""
        raise DefinitionError(f"{where}scheduler task {task.name!r}: {error}") from error


def make_raw_job(client: Client, name: str, queue: str, payload: str, priority: int) -> NewJob:
    """Build a job from a name and JSON text, without its class or function. Raises `InvalidJob`."""
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise InvalidJob(f"the payload is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidJob('the payload must be a JSON object, like {"to": "a@example.com"}')
    if priority not in range(10):
        raise InvalidJob(f"priority must be from 0 to 9, not {priority!r}")
    encoded = payload.encode()
    check_size(name, encoded, client.settings.sizes)
    return NewJob("-", check_name("job name", name), check_name("queue", queue), encoded, priority)
