"""The policy of jobs of one name: retries, backoff, timeout, concurrency, priority."""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, TypeVar, Unpack, cast, get_args

import msgspec

from nimburion.core.errors import DefinitionError
from nimburion.core.rate_limits import RateLimit, parse_rate
from nimburion.core.settings import Settings
from nimburion.core.text.sizes import read_byte_count
from nimburion.core.text.suggestions import describe_unknown
from nimburion.jobs.declaration.backoff import Backoff, exponential, parse_backoff, parse_seconds
from nimburion.jobs.declaration.failure_hooks import FailureHook, check_failure_hook
from nimburion.jobs.declaration.limits import Cost, Key, Limit
from nimburion.jobs.declaration.uniqueness import (
    ALL_FIELDS,
    UNTIL_FINISHED,
    UniqueKeyOptions,
    Uniqueness,
    read_key_rule,
)

_log = logging.getLogger("nimburion.jobs")
_T = TypeVar("_T")

Execution = Literal["auto", "thread", "process"]
"""Where a handler runs. `auto`: an `async def` on the event loop, a `def` in a thread."""

MAX_BATCH = 10_000
"""The most jobs that one call of a batch handler may take."""

_MIN_MEMORY_LIMIT = 32 * 1024**2
"""Bytes. A child process needs most of it before it runs a handler."""


class Priority(enum.IntEnum):
    """Names for some of the ten priorities; higher runs first."""

    LOWEST = 1
    LOW = 3
    NORMAL = 5
    HIGH = 7
    HIGHEST = 9


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The policy in a declaration. None: as the settings say (no concurrency limit, no timeout)."""

    max_retries: int | None = None
    backoff: Backoff | None = None
    backoff_max: float | None = None
    permanent: tuple[type[BaseException], ...] = ()
    """Exceptions after which no retry is made."""
    timeout: float | None = None
    """Seconds that an attempt may take."""
    concurrency: int | None = None
    """The largest number of these jobs that run at the same time, over all workers."""
    rate: RateLimit | None = None
    """How many of these jobs may start in a time, over all workers."""
    limits: tuple[Limit, ...] = ()
    """Limits that count for each key, or are shared by several job names."""
    priority: int = Priority.NORMAL
    result: bool = True
    """Whether the handler's return value is stored."""
    unique: Uniqueness | None = None
    """How its arguments make a unique key; None: only a key that a call passes counts."""
    on_failure: FailureHook | None = None
    """Called when an attempt has failed and the job is retried."""
    on_dead: FailureHook | None = None
    """Called when the job becomes a dead letter."""
    execution: Execution = "auto"
    memory_limit: int | None = None
    """The largest resident memory of the child process that runs the handler, in bytes."""
    retry_over_memory_limit: bool = False
    """Whether an attempt that exceeded `memory_limit` is retried."""
    batch: int | None = None
    """The most jobs of one call of a batch handler; None: the handler takes one job."""
    batch_wait: float = 0.0
    """Seconds after the first job of a batch until its call starts, if it is not full before."""

    def with_defaults(self, settings: Settings) -> Policy:
        """Return this policy with defaults from the settings; `timeout` and `concurrency` may stay
        None."""
        return msgspec.structs.replace(
            self,
            max_retries=_value_or_default(self.max_retries, settings.max_retries),
            backoff=_value_or_default(self.backoff, exponential(settings.retry_backoff)),
            backoff_max=_value_or_default(self.backoff_max, settings.retry_backoff_max),
            timeout=_value_or_default(self.timeout, settings.timeout),
        )


class PolicyOptions(UniqueKeyOptions, total=False):
    """The policy options of `class X(Job, …)`, `@job(…)` and `register(name, handler, …)`."""

    max_retries: int
    retry_backoff: float | timedelta | Sequence[float] | Backoff
    retry_backoff_max: float | timedelta
    permanent: type[BaseException] | tuple[type[BaseException], ...]
    timeout: float | timedelta | None
    concurrency: int | Limit | Sequence[Limit] | None
    """How many of these jobs may run at once, over all workers; with `Limit`, for each key."""
    rate: str | None
    """How many units of these jobs may start in a time, over all workers: `"100/min"`."""
    burst: int | None
    """The most units that may start at once; default: what the rate allows in 0.1 s, at least 1."""
    cost: Cost
    """The units that one job takes of the rate: a number, an argument, or a function of the job."""
    key: Key | None
    """What the rate counts separately for: an argument, `"tenant"`, or a function of the job."""
    priority: int
    result: bool
    unique: bool | str | Sequence[str]
    """Arguments of which at most one unfinished job has the same values; True: all of them."""
    on_failure: FailureHook | None
    """Called with the context and the error when an attempt has failed and the job is retried."""
    on_dead: FailureHook | None
    """Called with the context and the error when the job becomes a dead letter."""
    execution: Execution
    memory_limit: int | str | None
    retry_over_memory_limit: bool


BATCH_OPTIONS = frozenset({"batch", "batch_wait"})
"""The options of a batch handler, in addition to `PolicyOptions`."""


def read_policy(options: Mapping[str, Any]) -> Policy:
    """Return the policy of options that a user wrote.

    `DefinitionError` names an option that is unknown or has a wrong value.
    """
    known = {*PolicyOptions.__annotations__, *BATCH_OPTIONS, "queue"}
    unknown = describe_unknown("option", options, known)
    if unknown is not None:
        raise DefinitionError(unknown)
    return parse_policy(**options)


def parse_policy(
    *,
    max_retries: int | None = None,
    retry_backoff: float | timedelta | Sequence[float] | Backoff | None = None,
    retry_backoff_max: float | timedelta | None = None,
    permanent: type[BaseException] | tuple[type[BaseException], ...] = (),
    timeout: float | timedelta | None = None,
    concurrency: int | Limit | Sequence[Limit] | None = None,
    rate: str | None = None,
    burst: int | None = None,
    cost: Cost = 1,
    key: Key | None = None,
    priority: int = Priority.NORMAL,
    result: bool = True,
    unique: bool | str | Sequence[str] = False,
    on_failure: FailureHook | None = None,
    on_dead: FailureHook | None = None,
    execution: Execution = "auto",
    memory_limit: int | str | None = None,
    retry_over_memory_limit: bool = False,
    batch: int | None = None,
    batch_wait: float | timedelta | None = None,
    **key_options: Unpack[UniqueKeyOptions],
) -> Policy:
    """Return the policy of these options; `DefinitionError` names an option with a wrong value."""
    limits = _parse_limits(concurrency)
    number = None if limits or not isinstance(concurrency, int) else concurrency
    if key is not None or not isinstance(cost, int):
        if rate is None:
            raise DefinitionError('burst, key and cost need a `rate`, like rate="100/min"')
        limits, rate = (*limits, Limit(rate=rate, burst=burst, key=key, cost=cost)), None
        burst, cost = None, 1
    return Policy(
        max_retries=None if max_retries is None else _parse_int("max_retries", max_retries, 0),
        backoff=None if retry_backoff is None else parse_backoff(retry_backoff),
        backoff_max=_parse_optional_seconds("retry_backoff_max", retry_backoff_max),
        permanent=_parse_exceptions(permanent),
        timeout=_parse_optional_seconds("timeout", timeout),
        concurrency=None if number is None else _parse_int("concurrency", number, 1),
        rate=parse_rate(rate, burst, cost),
        limits=limits,
        priority=_parse_int("priority", priority, 0, 9),
        result=bool(result),
        unique=_parse_uniqueness(unique, key_options),
        on_failure=_parse_hook("on_failure", on_failure),
        on_dead=_parse_hook("on_dead", on_dead),
        execution=_parse_execution(execution),
        memory_limit=_parse_memory_limit(memory_limit, execution, retry=retry_over_memory_limit),
        retry_over_memory_limit=bool(retry_over_memory_limit),
        batch=_parse_batch(batch, batch_wait, execution),
        batch_wait=0.0 if batch_wait is None else parse_seconds("batch_wait", batch_wait),
    )


def _parse_batch(batch: int | None, batch_wait: object, execution: Execution) -> int | None:
    if batch is None:
        if batch_wait is not None:
            raise DefinitionError("batch_wait needs batch: the most jobs of one call")
        return None
    if execution == "process":
        raise DefinitionError(
            'a batch handler runs in the worker; execution="process" runs one job in a call'
        )
    return _parse_int("batch", batch, 1, MAX_BATCH)


def _parse_limits(concurrency: int | Limit | Sequence[Limit] | None) -> tuple[Limit, ...]:
    """Return the limits by key in the option `concurrency`; none if it is a number."""
    if concurrency is None or (isinstance(concurrency, int) and not isinstance(concurrency, bool)):
        return ()
    limits: tuple[object, ...] = (
        tuple(concurrency) if isinstance(concurrency, list | tuple) else (concurrency,)
    )
    for limit in limits:
        if not isinstance(limit, Limit):
            raise DefinitionError(
                "concurrency must be a whole number, 1 or more, a Limit or a list of Limits, not "
                f"{concurrency!r}"
            )
    return cast("tuple[Limit, ...]", limits)


def _parse_hook(what: str, hook: FailureHook | None) -> FailureHook | None:
    if hook is not None:
        check_failure_hook(what, hook)
    return hook


def _parse_uniqueness(unique: object, key_options: UniqueKeyOptions) -> Uniqueness | None:
    rule = read_key_rule(key_options, DefinitionError) if key_options else None
    if unique is False:
        if rule is not None:
            given = ", ".join(name for name, value in key_options.items() if value is not None)
            raise DefinitionError(f"{given} needs `unique`: True, or the names of arguments")
        return None
    names = (ALL_FIELDS,) if unique is True else (unique,) if isinstance(unique, str) else unique
    if (
        not isinstance(names, list | tuple)
        or not names
        or not all(isinstance(name, str) for name in names)
    ):
        raise DefinitionError(f"unique must be True or names of arguments, not {unique!r}")
    return Uniqueness(tuple(names), rule or UNTIL_FINISHED)


def _value_or_default(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _parse_execution(value: Execution) -> Execution:
    allowed = get_args(Execution)
    if value not in allowed:
        raise DefinitionError(f"execution must be one of {', '.join(allowed)}, not {value!r}")
    return value


def _parse_memory_limit(
    value: int | str | None, execution: Execution, *, retry: bool
) -> int | None:
    if value is None:
        if retry:
            raise DefinitionError("retry_over_memory_limit needs a memory_limit")
        return None
    if execution != "process":
        raise DefinitionError(
            'memory_limit needs execution="process": only a process has a memory of its own'
        )
    size = read_byte_count(value)
    if size is None:
        raise DefinitionError(
            f"memory_limit must be bytes, or a text like '512MB' or '1GiB', not {value!r}"
        )
    if size < _MIN_MEMORY_LIMIT:
        raise DefinitionError(
            f"memory_limit must be at least {_MIN_MEMORY_LIMIT >> 20}MiB, which Python itself "
            f"needs, not {value!r}"
        )
    return size


def _parse_exceptions(
    value: type[BaseException] | tuple[type[BaseException], ...],
) -> tuple[type[BaseException], ...]:
    kinds: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise DefinitionError(f"permanent must hold exception classes, not {kind!r}")
    return kinds


def _parse_optional_seconds(what: str, value: object) -> float | None:
    if value is None:
        return None
    seconds = parse_seconds(what, value)
    if seconds == 0.0:
        raise DefinitionError(f"{what} must be more than 0 seconds")
    return seconds


def _parse_int(what: str, value: object, low: int, high: int | None = None) -> int:
    number = value if isinstance(value, int) and not isinstance(value, bool) else low - 1
    if low <= number <= (number if high is None else high):
        return int(number)
    allowed = f"{low} or more" if high is None else f"from {low} to {high}"
    raise DefinitionError(f"{what} must be a whole number, {allowed}, not {value!r}")
