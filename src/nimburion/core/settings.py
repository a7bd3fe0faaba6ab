"""All settings and their defaults. Durations are in seconds.

`nimburion.config` fills them from file, environment and arguments; all other code only reads them.
A setting is declared once, here. Its annotation holds its type, its bounds and, if the type does
not say it, what kind of text or number it is. `nimburion.config.schema` makes the schema of the
configuration from the annotations, and `merge_settings` checks the keywords of `Processor`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypedDict, get_args, get_type_hints

import msgspec
from msgspec import Meta

from nimburion.core.errors import ConfigurationError
from nimburion.core.fairness import MAX_WEIGHT, MIN_WEIGHT
from nimburion.core.size_limits import SizeLimits
from nimburion.core.text.redaction import redact_url
from nimburion.core.text.suggestions import describe_unknown, lower_first

Choice = Literal["auto", "yes", "no"]
FairnessMode = Literal["tenants", "none"]
Right = Literal["read", "payloads", "stacks", "operate", "admin"]


class Kind(enum.Enum):
    """What a text or a number is, where its type does not say it."""

    NAME = enum.auto()
    """A text as `NAME_PATTERN` allows, of up to 128 characters or `Meta.max_length`."""
    RATE = enum.auto()
    """A text like `100/min`."""
    TIME_ZONE = enum.auto()
    """The IANA name of a time zone."""
    JSON_OBJECT = enum.auto()
    """A JSON object as a text."""
    URL_PATH = enum.auto()
    """The path of a URL, such as `/jobs`."""
    BYTES = enum.auto()
    """A number of bytes."""


Name = Annotated[str, Kind.NAME]
Rate = Annotated[str, Kind.RATE]
ProcessMemory = Annotated[int, Meta(ge=32 * 1024**2, le=1024**4), Kind.BYTES]


class QueueSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the workers of this application serve one queue."""

    name: Name
    priority: Annotated[int, Meta(ge=-1_000_000, le=1_000_000)] = 0
    """Queues with a higher priority come first."""
    concurrency: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    """The maximum number of jobs that run concurrently in each worker process.

    None: only the limit of the worker applies.
    """
    keep_arguments: Choice = "auto"
    """Whether completed jobs of the queue keep their arguments; auto: as the setting of the same
    name.
    """
    fairness: Literal["auto", "tenants", "none"] = "auto"
    """Whether the tenants of the queue take turns; auto: as the setting of the same name."""


class TenantSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The weight of one tenant."""

    name: str
    """The tenant, as in the option `tenant` of `enqueue`."""
    weight: Annotated[float, Meta(ge=MIN_WEIGHT, le=MAX_WEIGHT)] = 1.0
    """The tenant's share of the run time, compared with others. Two decimals count."""


class BatchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The calls of a batch handler. None: as the job declares it."""

    size: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    """The maximum number of jobs of one call."""
    wait: Annotated[float, Meta(ge=0)] | None = None
    """Seconds after the first job of a batch until its call starts, if it is not full before."""


class JobSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the configuration says of the jobs of one name. None: as the job declares it."""

    name: Name
    concurrency: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """How many of these jobs run at once, over all workers."""
    rate: Rate | None = None
    """How many units of these jobs start in a time, over all workers: `100/min`."""
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """How many units may start at once."""
    batch: BatchSettings = BatchSettings()
    """The calls of a batch handler."""


class KeyedLimitSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the configuration says of one limit by key. None: as the jobs declare it."""

    name: Annotated[str, Meta(max_length=256), Kind.NAME]
    """The name of the limit: `JOB:KEY`, or the `name` of the `Limit`."""
    concurrency: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """How many jobs of one key run at once, over all workers."""
    rate: Rate | None = None
    """How many units of one key start in a time, over all workers."""
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


class QueueLimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The limit of a whole queue: of all its jobs, over all workers."""

    name: Name
    """The queue. A worker declares the limit also if it does not serve the queue."""
    concurrency: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """How many jobs of the queue run at once, over all workers."""
    rate: Rate | None = None
    """How many units of the queue start in a time, over all workers: `100/min`."""
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """How many units may start at once."""


class Recycle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a process is replaced by a fresh one. It finishes what it runs first. None: never."""

    jobs: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None
    """After this many jobs."""
    memory: ProcessMemory | None = None
    """When it holds this many bytes of resident memory."""
    age: Annotated[float, Meta(ge=1)] | None = None
    """After this many seconds."""

    @property
    def is_set(self) -> bool:
        """Whether a process is ever replaced."""
        return self != Recycle()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a processor: the section `jobs` of the configuration."""

    url: str = "sqlite:///nimburion.db"
    """The URL of the backend, as `open_backend` takes it."""
    outbox_url: str = ""
    """The URL of the database that holds an outbox, for a processor without an `Outbox`; empty:
    there is none.
    """
    owner: Name = "nimburion"
    """The name of the application. It is shown with its workers, and owns its schedules."""
    concurrency: Annotated[int, Meta(ge=1, le=10_000)] = 10
    """The maximum number of handlers that run concurrently in each worker process."""
    children: Annotated[int, Meta(ge=1, le=1_000)] | None = None
    """The maximum number of child processes of each worker process, for handlers with
    `execution="process"`. None: the number of cores, but not more than `concurrency`.
    """
    child_recycle: Recycle = Recycle()
    """When a child process is replaced, after its job has ended."""
    queues: tuple[QueueSettings, ...] = ()
    """The queues to serve; empty: every queue of the registered jobs."""
    fairness: FairnessMode = "tenants"
    """Whether jobs that are enqueued with a tenant take turns by tenant; none: they run in the
    order of the queue.
    """
    tenants: tuple[TenantSettings, ...] = ()
    """The weights that a worker stores when it starts. Other tenants keep theirs."""
    overrides: tuple[JobSettings, ...] = ()
    """Limits and batches of single jobs. They win over what the jobs declare."""
    keyed_limits: tuple[KeyedLimitSettings, ...] = ()
    """Limits by key. They win over what the jobs declare."""
    queue_limits: tuple[QueueLimitSettings, ...] = ()
    """Limits of whole queues, over all workers."""
    session_ttl: Annotated[float, Meta(ge=1)] = 30.0
    """Seconds after its last heartbeat until a worker counts as dead. A worker sends four
    heartbeats in this time.
    """
    grace: Annotated[float, Meta(ge=0)] = 25.0
    """Seconds that a stopping worker gives its handlers to finish."""
    loop_lag_limit: Annotated[float, Meta(ge=0.05)] = 1.0
    """Seconds within which a blocked event loop is detected."""
    max_retries: Annotated[int, Meta(ge=0, le=1_000_000)] = 3
    retry_backoff: Annotated[float, Meta(ge=0)] = 1.0
    retry_backoff_max: Annotated[float, Meta(ge=0)] = 600.0
    max_lost: Annotated[int, Meta(ge=1, le=1_000_000)] = 3
    timeout: Annotated[float, Meta(ge=0.001)] | None = None
    ageing: Annotated[float, Meta(ge=0)] = 60.0
    enqueue_timeout: Annotated[float, Meta(ge=0)] = 5.0
    """Seconds that `enqueue` retries when the backend does not answer.

    Each caller gets a reply or an error within this time plus a tenth of it (at least 0.25 s).
    It also limits `get_status`, `queue_size` and `pending_count`, if the backend is a server.
    """
    inherit_headers: bool = False
    """Whether the jobs that a handler enqueues have the headers of its job, besides their own."""
    keep_completed: Annotated[float, Meta(ge=0)] | None = 86_400.0
    keep_completed_max: Annotated[int, Meta(ge=0, le=1_000_000_000)] | None = None
    keep_failed: Annotated[float, Meta(ge=0)] | None = 90 * 86_400.0
    keep_results: Annotated[float, Meta(ge=0)] | None = 86_400.0
    keep_open_flows: Annotated[float, Meta(ge=0)] | None = 3_600.0
    """Seconds without new members after which an open flow is closed as cancelled."""
    keep_arguments: Choice = "auto"
    """Whether completed jobs keep their arguments for as long as their records are kept; auto: as
    `Capabilities.keeps_arguments` of the backend.
    """
    processes: Annotated[int, Meta(ge=1, le=1_000)] = 1
    """The number of worker processes that `nimburion worker` runs. `processor.run()` runs one."""
    worker_recycle: Recycle = Recycle()
    """When a worker process is replaced, after its jobs have ended."""
    code_version: str = ""
    """The version of the application. It is shown with its workers and in the metrics."""
    log_attempts: Literal["debug", "info"] = "debug"
    """The level at which a worker logs the start and the end of each attempt."""
    sizes: SizeLimits = SizeLimits()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return the settings by name, with passwords in the URL redacted."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        urls = {"url": redact_url(self.url), "outbox_url": redact_url(self.outbox_url)}
        return list({**values, **urls}.items())

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"Settings({shown})"


RENAMED_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "limits": "sizes",
        "policies": "overrides",
        **{f"child_max_{what}": "child_recycle" for what in ("jobs", "memory", "age")},
        **{f"worker_max_{what}": "worker_recycle" for what in ("jobs", "memory", "age")},
    }
)
"""The names that fields of `Settings` had in earlier versions, with their new names."""


_ADVICE: Mapping[str, str] = MappingProxyType(
    {
        # Celery
        "broker": 'pass the URL first: `Processor("redis://…")`',
        "task_always_eager": 'in tests, write `Processor("memory://")` and call `drain()`',
        "task_routes": "write `queue=…` on each job",
        "timezone": "write `Scheduler(processor, timezone=…)`",
    }
)
"""What to do in place of a setting of another job system."""

_SETTINGS_BY_NAME: Mapping[str, type[msgspec.Struct]] = MappingProxyType(
    {
        "overrides": JobSettings,
        "keyed_limits": KeyedLimitSettings,
        "queue_limits": QueueLimitSettings,
        "tenants": TenantSettings,
    }
)
"""The fields of `Settings` that hold settings with a name each."""


class SettingsOptions(TypedDict, total=False):
    """The fields of `Settings` as keyword arguments, all optional."""

    url: str
    outbox_url: str
    owner: str
    concurrency: int
    children: int | None
    child_recycle: Recycle
    queues: tuple[QueueSettings, ...]
    fairness: FairnessMode
    tenants: tuple[TenantSettings, ...]
    overrides: tuple[JobSettings, ...]
    keyed_limits: tuple[KeyedLimitSettings, ...]
    queue_limits: tuple[QueueLimitSettings, ...]
    session_ttl: float
    grace: float
    loop_lag_limit: float
    max_retries: int
    retry_backoff: float
    retry_backoff_max: float
    max_lost: int
    timeout: float | None
    ageing: float
    enqueue_timeout: float
    inherit_headers: bool
    keep_completed: float | None
    keep_completed_max: int | None
    keep_failed: float | None
    keep_results: float | None
    keep_open_flows: float | None
    keep_arguments: Choice
    processes: int
    worker_recycle: Recycle
    code_version: str
    log_attempts: Literal["debug", "info"]
    sizes: SizeLimits


class TaskSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A schedule of the configuration: an entry of `scheduler.tasks`."""

    name: Annotated[str, Meta(max_length=100), Kind.NAME]
    cron: str
    """A cron expression, a macro, or an interval like `@every 5m`."""
    job_name: Name
    queue: Name = "default"
    payload: Annotated[str, Kind.JSON_OBJECT] = "{}"
    """A JSON object."""
    timezone: Annotated[str, Kind.TIME_ZONE] | None = None
    """None: the time zone of the scheduler."""
    misfire_policy: Literal["fire_once", "skip", "catch_up"] = "fire_once"
    overlap: Literal["allow", "skip", "queue_one", "cancel_previous"] = "allow"
    priority: Annotated[int, Meta(ge=0, le=9)] = 5
    expires: Annotated[float, Meta(ge=0.001)] | None = None
    """Seconds after a tick until which its job must have started; later, it is cancelled."""
    enabled: bool = True
    place: str = ""
    """The place of the cron expression, for messages: `config.yaml:12`."""


class SchedulerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section `scheduler` of the configuration."""

    enabled: bool = True
    """Whether workers run the scheduler."""
    timezone: Annotated[str, Kind.TIME_ZONE] = "UTC"
    """The time zone of schedules that name none."""
    tasks: tuple[TaskSettings, ...] = ()


class TokenSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token of the management server: an entry of `server.tokens`.

    The token itself is in a file or in an environment variable, so that the configuration holds no
    secret.
    """

    name: Name
    """The name of the caller. It is shown in logs, and never secret."""
    rights: tuple[Right, ...]
    """What the caller may do: `read`, `payloads`, `stacks`, `operate`, `admin`."""
    file: str | None = None
    """The file that holds the token."""
    variable: str | None = None
    """The environment variable that holds the token."""


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section `server` of the configuration: the management server."""

    enabled: bool = True
    """Whether `server.bootstrap` runs the management server."""
    host: str = "127.0.0.1"
    """The address to listen on. Beyond loopback, tokens are required."""
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8420
    """The port to listen on; 0: any free one."""
    tokens: tuple[TokenSettings, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    """The values of the header `Host` to accept, besides the names of loopback. Without tokens, no
    other host is accepted. With tokens and without this setting, every host is accepted.
    """
    max_body: Annotated[int, Meta(ge=1024, le=512 * 1024**2), Kind.BYTES] = 2 * 1024 * 1024
    """The maximum size of the body of a request, in bytes."""
    root_path: Annotated[str, Kind.URL_PATH] = ""
    """The path below which a proxy shows the server, such as `/jobs`. Links begin with it. The
    server answers with and without it, so the proxy may strip it or not.
    """


class TelemetrySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section `telemetry` of the configuration."""

    log_format: Literal["text", "json"] = "text"
    """How `nimburion worker` formats its log."""
    traces: Literal["none", "nested", "linked"] = "none"
    """Whether a processor that is made from the configuration traces its jobs with OpenTelemetry.
    `nested`: the attempts belong to the trace of the enqueue. `linked`: each attempt is a trace of
    its own with a link to the enqueue.
    """
    span_name: Literal["queue", "job"] = "queue"
    """What the names of spans end with."""
    trace_tenant: bool = False
    """Whether spans have the attribute `nimburion.tenant`."""
    trace_baggage: bool = False
    """Whether the baggage travels from the enqueue to the attempts."""
    trace_exceptions: bool = True
    """Whether spans have the exceptions of handlers, with their tracebacks."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The complete configuration, as loaded."""

    jobs: Settings = Settings()
    scheduler: SchedulerSettings = SchedulerSettings()
    server: ServerSettings = ServerSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    source: str | None = None
    """The absolute path of the file that was loaded, or the name of a framework's setting; None:
    only defaults, environment and arguments.
    """


class Bounds(msgspec.Struct, frozen=True):
    """The bounds of a number."""

    least: float
    most: float | None = None
    optional: bool = False
    """Whether the value may be None."""

    def allow(self, value: float) -> bool:
        """Return whether a number is within the bounds. NaN is never within them."""
        return value >= self.least and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        if self.most is None:
            return f"{self.least:g} or more"
        return f"from {self.least:.15g} to {self.most:.15g}"


@cache
def read_bounds(settings: type[msgspec.Struct]) -> Mapping[str, Bounds]:
    """Return the bounds of the settings of a class by name. Settings without bounds are left
    out.
    """
    found = {}
    for name, hint in get_type_hints(settings, include_extras=True).items():
        optional = type(None) in get_args(hint)
        for kind in get_args(hint) if optional else (hint,):
            for meta in getattr(kind, "__metadata__", ()):
                if isinstance(meta, Meta) and meta.ge is not None:
                    found[name] = Bounds(meta.ge, meta.le, optional)
    return MappingProxyType(found)


def merge_settings(settings: Settings, single: SettingsOptions) -> Settings:
    """Return the settings with single ones over them.

    A wrong name, type or value raises `ConfigurationError`.
    """
    known = settings.__struct_fields__
    for name in single:
        if name in _ADVICE:
            raise ConfigurationError(f"there is no setting {name!r}; {_ADVICE[name]}")
        if name not in known:
            raise ConfigurationError(describe_unknown("setting", single, known, RENAMED_SETTINGS))
    given = {name: getattr(settings, name) for name in known} | dict(single)
    _check_bounds(given)
    try:
        return msgspec.convert(given, Settings)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        place = path.rstrip("`") or "of the processor"
        hint = '; write QueueSettings("mail"), from nimburion.config' if "[" in place else ""
        raise ConfigurationError(f"the setting {place!r}: {lower_first(what)}{hint}") from error


def _check_bounds(given: dict[str, Any]) -> None:
    """Raise `ConfigurationError` for a number outside its bounds; types are checked elsewhere."""
    for name, bounds in read_bounds(Settings).items():
        if not _is_allowed(given[name], bounds):
            raise ConfigurationError(f"the setting {name!r} must be {bounds}, not {given[name]!r}")
    for queue in given["queues"]:
        is_zero = getattr(queue, "concurrency", None) == 0
        hint = "; leave it out of `queues` to stop serving it" if is_zero else ""
        _check_fields(queue, QueueSettings, "of queue {!r}", hint)
    for key in ("child_recycle", "worker_recycle"):
        _check_fields(given[key], Recycle, f"of {key!r}")
    for key, kind in _SETTINGS_BY_NAME.items():
        for own in given[key]:
            _check_fields(own, kind, f"of {{!r}} in {key!r}")
    for own in given["overrides"]:
        where = f"of the batch of {getattr(own, 'name', None)!r}"
        _check_fields(getattr(own, "batch", None), BatchSettings, where)


def _check_fields(settings: object, kind: type[msgspec.Struct], where: str, hint: str = "") -> None:
    """Raise `ConfigurationError` for a field outside its bounds. `where` takes the name."""
    for field, allowed in read_bounds(kind).items():
        value = getattr(settings, field, None)
        if not _is_allowed(value, allowed):
            place = where.format(getattr(settings, "name", ""))
            raise ConfigurationError(f"the {field} {place} must be {allowed}, not {value!r}{hint}")


def _is_allowed(value: object, bounds: Bounds) -> bool:
    return not isinstance(value, int | float) or bounds.allow(value)
