"""The policy of jobs of one name: retries, backoff, timeout, concurrency, priority."""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypedDict, TypeVar

import msgspec

from nimburion.core.errors import DefinitionError
from nimburion.core.rate_limits import RateLimit
from nimburion.core.settings import Settings
from nimburion.core.text.shortening import shorten
from nimburion.core.text.suggestions import describe_unknown
from nimburion.jobs.declaration.backoff import (
    Backoff,
    BackoffFunction,
    Delays,
    exponential,
    parse_delays,
    parse_seconds,
)
from nimburion.jobs.declaration.batches import Batch
from nimburion.jobs.declaration.execution import (
    ChildProcess,
    Execution,
    parse_execution,
    parse_memory,
)
from nimburion.jobs.declaration.failure_hooks import FailureHook, check_failure_hook
from nimburion.jobs.declaration.limits import Limit, split_limits
from nimburion.jobs.declaration.uniqueness import Fields, Unique, Uniqueness, parse_uniqueness

_log = logging.getLogger("nimburion.jobs")
_T = TypeVar("_T")

MAX_BATCH = 10_000
"""The most jobs that one call of a batch handler may take."""


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
    backoff: BackoffFunction | None = None
    backoff_max: float | None = None
    retry_for: float | None = None
    """No retry starts later than this many seconds after the job was enqueued."""
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


class PolicyOptions(TypedDict, total=False):
    """The policy options of `class X(Job, …)`, `@job(…)` and `register(name, handler, …)`."""

    priority: int
    max_retries: int
    retry_backoff: Delays | Backoff
    """The delays between attempts, in seconds; with `Backoff`, also their maximum and their end."""
    permanent: type[BaseException] | tuple[type[BaseException], ...]
    timeout: float | timedelta | None
    concurrency: int | None
    """How many of these jobs may run at once, over all workers."""
    rate: str | None
    """How many of these jobs may start in a time, over all workers: `"100/min"`."""
    limits: Sequence[Limit]
    """Limits for each key, limits that job names share, and rates with a burst or a cost."""
    unique: Fields | Unique | None
    """Arguments of which at most one unfinished job has the same values; True: all of them."""
    execution: Execution | ChildProcess
    """Where the handler runs."""
    result: bool
    """Whether the handler's return value is stored."""
    on_failure: FailureHook | None
    """Called with the context and the error when an attempt has failed and the job is retried."""
    on_dead: FailureHook | None
    """Called with the context and the error when the job becomes a dead letter."""


POLICY_OPTIONS = frozenset({*PolicyOptions.__annotations__, "batch"})
"""The names of the options of a policy. `batch` is not for every job, so it is not in
`PolicyOptions`."""

_FORMER_OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "retry_backoff_max": "retry_backoff=Backoff(max_delay={})",
        "burst": 'limits=[Limit(rate="100/min", burst={})]',
        "cost": 'limits=[Limit(rate="100/min", cost={})]',
        "key": 'limits=[Limit(rate="100/min", key={})]',
        "unique_for": "unique=Unique(for_={})",
        "unique_while": "unique=Unique(while_={})",
        "on_duplicate": "unique=Unique(on_duplicate={})",
        "debounce": "unique=Unique(debounce={})",
        "max_wait": "unique=Unique(debounce=…, max_wait={})",
        "throttle": "unique=Unique(throttle={})",
        "memory_limit": "execution=ChildProcess(memory={})",
        "retry_over_memory_limit": "execution=ChildProcess(memory=…, retry_over_memory={})",
        "batch_wait": "batch=Batch(100, wait={})",
    }
)
"""Options that are parts of other options now, and what to write instead."""


def read_policy(options: Mapping[str, Any]) -> Policy:
    """Return the policy of options that a user wrote.

    `DefinitionError` names an option that is unknown or has a wrong value.
    """
    if not options.keys() <= POLICY_OPTIONS:
        raise DefinitionError(_describe_unknown_option(options))
    return parse_policy(**options)


def _describe_unknown_option(options: Mapping[str, object]) -> str | None:
    for name, value in options.items():
        if name in _FORMER_OPTIONS:
            instead = _FORMER_OPTIONS[name].format(shorten(repr(value), 40))
            return f"there is no option {name!r}; write `{instead}`"
    return describe_unknown("option", options, {*POLICY_OPTIONS, "name", "queue"})


def parse_policy(
    *,
    priority: int = Priority.NORMAL,
    max_retries: int | None = None,
    retry_backoff: Delays | Backoff | None = None,
    permanent: type[BaseException] | tuple[type[BaseException], ...] = (),
    timeout: float | timedelta | None = None,
    concurrency: int | None = None,
    rate: str | None = None,
    limits: Sequence[Limit] = (),
    unique: Fields | Unique | None = None,
    execution: Execution | ChildProcess = "auto",
    batch: int | Batch | None = None,
    result: bool = True,
    on_failure: FailureHook | None = None,
    on_dead: FailureHook | None = None,
) -> Policy:
    """Return the policy of these options; `DefinitionError` names an option with a wrong value."""
    own, keyed = split_limits(_parse_concurrency(concurrency), rate, limits)
    backoff = retry_backoff if isinstance(retry_backoff, Backoff) else Backoff(retry_backoff)
    child = execution if isinstance(execution, ChildProcess) else ChildProcess()
    calls = batch if isinstance(batch, Batch) else None if batch is None else Batch(batch)
    return Policy(
        max_retries=None if max_retries is None else _parse_int("max_retries", max_retries, 0),
        backoff=None if backoff.delays is None else parse_delays(backoff.delays),
        backoff_max=_parse_optional_seconds("the max_delay of Backoff", backoff.max_delay),
        retry_for=_parse_optional_seconds("the retry_for of Backoff", backoff.retry_for),
        permanent=_parse_exceptions(permanent),
        timeout=_parse_optional_seconds("timeout", timeout),
        concurrency=own.concurrency,
        rate=own.rate,
        limits=keyed,
        priority=_parse_int("priority", priority, 0, 9),
        result=bool(result),
        unique=parse_uniqueness(unique),
        on_failure=_parse_hook("on_failure", on_failure),
        on_dead=_parse_hook("on_dead", on_dead),
        execution=parse_execution(execution),
        memory_limit=parse_memory(child),
        retry_over_memory_limit=bool(child.retry_over_memory),
        batch=None if calls is None else _parse_batch(calls, execution),
        batch_wait=0.0 if calls is None else parse_seconds("the wait of Batch", calls.wait),
    )


def _parse_batch(batch: Batch, execution: Execution | ChildProcess) -> int:
    if parse_execution(execution) == "process":
        raise DefinitionError(
            'a batch handler runs in the worker; execution="process" runs one job in a call'
        )
    return _parse_int("the size of a batch", batch.size, 1, MAX_BATCH)


def _parse_concurrency(concurrency: object) -> int | None:
    limits = concurrency if isinstance(concurrency, list | tuple) else [concurrency]
    if any(isinstance(limit, Limit) for limit in limits):
        raise DefinitionError(f"concurrency is a whole number; write `limits={list(limits)!r}`")
    return None if concurrency is None else _parse_int("concurrency", concurrency, 1)


def _parse_hook(what: str, hook: FailureHook | None) -> FailureHook | None:
    if hook is not None:
        check_failure_hook(what, hook)
    return hook


def _value_or_default(value: _T | None, default: _T) -> _T:
    return default if value is None else value


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
