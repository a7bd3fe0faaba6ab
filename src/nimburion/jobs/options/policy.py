"""The policy of jobs of one name: retries, backoff, timeout, concurrency, priority."""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, TypeVar, get_args

import msgspec

from nimburion.core.errors import DefinitionError, InvalidJob
from nimburion.core.rate_limits import RateLimit
from nimburion.core.settings import Settings
from nimburion.core.text.sizes import read_byte_count
from nimburion.core.timing.durations import Duration, require_positive_seconds, require_seconds
from nimburion.jobs.options.backoff import (
    Backoff,
    BackoffFunction,
    Delays,
    exponential,
    is_listed,
    parse_delays,
)
from nimburion.jobs.options.failure_hooks import FailureHook, check_failure_hook
from nimburion.jobs.options.limits import Limit, make_limit_rule, split_limits
from nimburion.jobs.options.uniqueness import Fields, Unique, Uniqueness, parse_uniqueness

_log = logging.getLogger("nimburion.jobs")
_T = TypeVar("_T")

MAX_BATCH = 10_000
"""The most jobs that one call of a batch handler may take."""


Execution = Literal["auto", "thread", "process"]
"""Where a handler runs. `auto`: an `async def` on the event loop, a `def` in a thread."""

_MIN_MEMORY = 32 * 1024**2
"""Bytes. A child process needs most of it before it runs a handler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildProcess:
    """Run the handler in a child process, which a timeout or a cancel kills: the option
    `execution`.

    Without arguments, it is the same as `"process"`.

    Args:
        memory: bytes, or a text like `"512MB"`. An attempt is killed when its child process uses
            more, and it is not retried.
        retry_over_memory: retry such an attempt like any other that failed.
    """

    memory: int | str | None = None
    retry_over_memory: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """How many jobs one call of a batch handler takes: the option `batch`.

    Args:
        size: the most jobs of one call.
        wait: the call starts this long after its first job if it is not full before, in seconds or
            as a timedelta. 0: it takes the jobs that are due.
    """

    size: int
    wait: Duration = 0.0


class Priority(enum.IntEnum):
    """Names for some of the ten priorities; higher runs first."""

    LOWEST = 1
    """After all other named priorities."""
    LOW = 3
    """After usual jobs."""
    NORMAL = 5
    """The default."""
    HIGH = 7
    """Before usual jobs."""
    HIGHEST = 9
    """Before everything else."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The policy in a declaration. None: as the settings say (no concurrency limit, no timeout)."""

    max_retries: int | None = None
    backoff: BackoffFunction | None = None
    backoff_max: float | None = None
    retry_for: float | None = None
    """No retry starts later than this many seconds after the job was enqueued."""
    retry_on: tuple[type[BaseException], ...] = ()
    """The only exceptions after which a retry is made; empty: all but `permanent`."""
    permanent: tuple[type[BaseException], ...] = ()
    """Exceptions after which no retry is made."""
    timeout: float | None = None
    """Seconds that an attempt may take."""
    expires: float | None = None
    """Seconds after the job is due until which it must have started; later, it is cancelled."""
    concurrency: int | None = None
    """The largest number of these jobs that run at the same time, over all workers."""
    rate: RateLimit | None = None
    """How many of these jobs may start in a time, over all workers."""
    limits: tuple[Limit, ...] = ()
    """Limits that count for each key, or are shared by several job names."""
    tags: tuple[str, ...] = ()
    """The tags of all these jobs."""
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

    def is_permanent(self, raised: BaseException) -> bool:
        """Return whether no retry is made after this exception of the handler."""
        if self.retry_on:
            return not isinstance(raised, self.retry_on)
        return isinstance(raised, self.permanent)

    def find_units(self, cost: int | None) -> int:
        """Return the units that a job took of each of its rates when it was reserved; 0 if it has
        no rate, or if its rates took different numbers. `cost`: the job's own.
        """
        rates = [make_limit_rule(limit).rate for limit in self.limits]
        taken = {rate.cost if cost is None else cost for rate in rates if rate is not None}
        if self.rate is not None:
            taken.add(self.rate.cost)
        return taken.pop() if len(taken) == 1 else 0

    def with_defaults(self, settings: Settings) -> Policy:
        """Return this policy with defaults from the settings; `timeout` and `concurrency` may stay
        None."""
        return msgspec.structs.replace(
            self,
            max_retries=_value_or_default(self.max_retries, settings.max_retries),
            backoff=_value_or_default(self.backoff, exponential(settings.retry_backoff)),
            backoff_max=_value_or_default(
                self.backoff_max,
                math.inf if is_listed(self.backoff) else settings.retry_backoff_max,
            ),
            timeout=_value_or_default(self.timeout, settings.timeout),
        )


class PolicyOptions(TypedDict, total=False):
    """The policy options of `class X(Job, …)`, `@job(…)` and `register(name, handler, …)`."""

    priority: int
    """0 to 9, higher first; `Priority` has names for some."""
    max_retries: int
    """How many retries follow a first failure."""
    retry_backoff: Delays | Backoff
    """The delays between attempts, in seconds; with `Backoff`, also their maximum and their end."""
    retry_on: type[BaseException] | tuple[type[BaseException], ...]
    """The only exceptions after which a retry is made. Not together with `permanent`."""
    permanent: type[BaseException] | tuple[type[BaseException], ...]
    """Exceptions after which no retry is made."""
    timeout: Duration | None
    """The time that one attempt may take."""
    expires: Duration | None
    """The time after the job is due until which it must have started. Later, it is cancelled."""
    concurrency: int | None
    """How many of these jobs may run at once, over all workers."""
    rate: str | None
    """How many of these jobs may start in a time, over all workers: `"100/min"`."""
    limits: Sequence[Limit]
    """Limits for each key, limits that job names share, and rates with a burst or a cost."""
    tags: Sequence[str]
    """Names by which people find these jobs."""
    unique: Fields | Unique | None
    """At most one unfinished job has the same values of these arguments; True: of all of them."""
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


def read_policy(options: Mapping[str, Any]) -> Policy:
    """Return the policy of options that a user wrote.

    `DefinitionError` names an option that is unknown or has a wrong value.
    """
    if not options.keys() <= POLICY_OPTIONS:
        raise DefinitionError(_describe_unknown_option(options))
    return parse_policy(**options)


def read_job_policy(name: str, options: PolicyOptions) -> Policy:
    """Return the policy of a job. `DefinitionError` names the job too."""
    try:
        return read_policy(options)
    except DefinitionError as error:
        raise DefinitionError(f"job {name!r}: {error}") from None


def _describe_unknown_option(options: Mapping[str, object]) -> str | None:
    from nimburion.jobs.options.enqueue_options import EnqueueOptions
    from nimburion.jobs.options.unknown_options import describe_unknown_job_option

    known = {*POLICY_OPTIONS, "name", "queue"}
    return describe_unknown_job_option(options, known, EnqueueOptions.__annotations__)


def parse_policy(
    *,
    priority: int = Priority.NORMAL,
    max_retries: int | None = None,
    retry_backoff: Delays | Backoff | None = None,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = (),
    permanent: type[BaseException] | tuple[type[BaseException], ...] = (),
    timeout: Duration | None = None,
    expires: Duration | None = None,
    concurrency: int | None = None,
    rate: str | None = None,
    limits: Sequence[Limit] = (),
    tags: Sequence[str] = (),
    unique: Fields | Unique | None = None,
    execution: Execution | ChildProcess = "auto",
    batch: int | Batch | None = None,
    result: bool = True,
    on_failure: FailureHook | None = None,
    on_dead: FailureHook | None = None,
) -> Policy:
    """Return the policy of these options; `DefinitionError` names an option with a wrong value."""
    if retry_on and permanent:
        raise DefinitionError(
            "pass retry_on or permanent, not both: with retry_on, all other exceptions are "
            "permanent"
        )
    own, keyed = split_limits(_parse_concurrency(concurrency), rate, limits)
    backoff = retry_backoff if isinstance(retry_backoff, Backoff) else Backoff(retry_backoff)
    child = execution if isinstance(execution, ChildProcess) else ChildProcess()
    calls = batch if isinstance(batch, Batch) else None if batch is None else Batch(batch)
    return Policy(
        max_retries=None if max_retries is None else _parse_int("max_retries", max_retries, 0),
        backoff=None if backoff.delays is None else parse_delays(backoff.delays),
        backoff_max=_parse_optional_seconds("the max_delay of Backoff", backoff.max_delay),
        retry_for=_parse_optional_seconds("the retry_for of Backoff", backoff.retry_for),
        retry_on=_parse_exceptions("retry_on", retry_on),
        permanent=_parse_exceptions("permanent", permanent),
        timeout=_parse_optional_seconds("timeout", timeout),
        expires=_parse_optional_seconds("expires", expires),
        concurrency=own.concurrency,
        rate=own.rate,
        limits=keyed,
        tags=_parse_tags(tags) if tags else (),
        priority=_parse_int("priority", priority, 0, 9),
        result=bool(result),
        unique=parse_uniqueness(unique),
        on_failure=_parse_hook("on_failure", on_failure),
        on_dead=_parse_hook("on_dead", on_dead),
        execution=_parse_execution(execution),
        memory_limit=_parse_memory(child),
        retry_over_memory_limit=bool(child.retry_over_memory),
        batch=None if calls is None else _parse_batch(calls, execution),
        batch_wait=0.0
        if calls is None
        else require_seconds("the wait of Batch", calls.wait, DefinitionError),
    )


def _parse_batch(batch: Batch, execution: Execution | ChildProcess) -> int:
    if _parse_execution(execution) == "process":
        raise DefinitionError(
            'a batch handler runs in the worker; execution="process" runs one job in a call'
        )
    return _parse_int("the size of a batch", batch.size, 1, MAX_BATCH)


def _parse_tags(tags: object) -> tuple[str, ...]:
    from nimburion.jobs.options.enqueue_options import parse_tags

    try:
        return parse_tags(tags)
    except InvalidJob as error:
        raise DefinitionError(str(error)) from None


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


def _parse_execution(value: Execution | ChildProcess) -> Execution:
    """Return where a handler runs. Raises `DefinitionError`."""
    if isinstance(value, ChildProcess):
        return "process"
    allowed = get_args(Execution)
    if value not in allowed:
        names = ", ".join(map(repr, allowed))
        raise DefinitionError(f"execution must be one of {names} or a ChildProcess, not {value!r}")
    return value


def _parse_memory(child: ChildProcess) -> int | None:
    """Return the most bytes of memory of a child process; None: no limit. Raises
    `DefinitionError`.
    """
    if child.memory is None:
        if child.retry_over_memory:
            raise DefinitionError("the retry_over_memory of ChildProcess needs `memory`")
        return None
    size = read_byte_count(child.memory)
    if size is None:
        raise DefinitionError(
            "the memory of ChildProcess must be bytes, or a text like '512MB' or '1GiB', not "
            f"{child.memory!r}"
        )
    if size < _MIN_MEMORY:
        raise DefinitionError(
            f"the memory of ChildProcess must be at least {_MIN_MEMORY >> 20}MiB, which Python "
            f"itself needs, not {child.memory!r}"
        )
    return size


def _parse_exceptions(
    what: str,
    value: type[BaseException] | tuple[type[BaseException], ...],
) -> tuple[type[BaseException], ...]:
    kinds: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise DefinitionError(f"{what} must hold exception classes, not {kind!r}")
    return kinds


def _parse_optional_seconds(what: str, value: object) -> float | None:
    return None if value is None else require_positive_seconds(what, value, DefinitionError)


def _parse_int(what: str, value: object, low: int, high: int | None = None) -> int:
    number = value if isinstance(value, int) and not isinstance(value, bool) else low - 1
    if low <= number <= (number if high is None else high):
        return int(number)
    allowed = f"{low} or more" if high is None else f"from {low} to {high}"
    raise DefinitionError(f"{what} must be a whole number, {allowed}, not {value!r}")
