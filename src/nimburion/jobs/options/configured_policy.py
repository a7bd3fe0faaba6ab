"""What the settings say of jobs, limits and queues: `overrides`, `keyed_limits`, `queue_limits`
and `fairness`."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from nimburion.core.errors import ConfigurationError, DefinitionError
from nimburion.core.job import NewJob
from nimburion.core.limits import LimitRule, make_queue_limit_name
from nimburion.core.rate_limits import parse_rate
from nimburion.core.settings import BatchSettings, JobSettings, KeyedLimitSettings, Settings
from nimburion.core.size_limits import check_declared_name
from nimburion.core.text.suggestions import describe_unknown, find_nearest
from nimburion.jobs.options.limits import Limit, choose_limit_name
from nimburion.jobs.options.policy import Policy

_BURST_ALONE = "`burst` needs a `rate`, like `rate: 100/min`"


def configure_policy(job: str, policy: Policy, settings: Settings) -> Policy:
    """Return the policy of a job with what the settings say of it and of its limits by key.

    Raises:
        ConfigurationError: the settings do not fit what the job declares.
    """
    keyed = {limit.name: limit for limit in settings.keyed_limits}
    limits = tuple(_configure_limit(job, limit, keyed) for limit in policy.limits)
    policy = msgspec.structs.replace(policy, limits=limits) if keyed else policy
    for own in settings.overrides:
        if own.name == job:
            policy = _apply(job, policy, own)
    return policy


def _apply(job: str, policy: Policy, own: JobSettings) -> Policy:
    where = f"jobs.overrides, {job!r}"
    changes: dict[str, object] = {}
    if own.concurrency is not None:
        changes["concurrency"] = own.concurrency
    if own.rate is not None or own.burst is not None:
        cost = 1 if policy.rate is None else policy.rate.cost
        rate = own.rate if own.rate is not None or policy.rate is None else policy.rate.rate
        if rate is None:
            raise ConfigurationError(f"{where}: {_BURST_ALONE}")
        try:
            changes["rate"] = parse_rate(rate, own.burst, cost)
        except DefinitionError as error:
            raise ConfigurationError(f"{where}: {error}") from None
    if own.batch != BatchSettings():
        if policy.batch is None:
            raise ConfigurationError(
                f"{where}: its handler takes one job; declare it with @job(batch=…) first"
            )
        size, wait = own.batch.size, own.batch.wait
        changes["batch"] = policy.batch if size is None else size
        changes["batch_wait"] = policy.batch_wait if wait is None else wait
    return msgspec.structs.replace(policy, **changes)


def _configure_limit(job: str, limit: Limit, keyed: dict[str, KeyedLimitSettings]) -> Limit:
    own = keyed.get(choose_limit_name(limit, job))
    if own is None:
        return limit
    if own.burst is not None and own.rate is None and limit.rate is None:
        raise ConfigurationError(f"jobs.keyed_limits, {own.name!r}: {_BURST_ALONE}")
    try:
        return Limit(
            limit.concurrency if own.concurrency is None else own.concurrency,
            key=limit.key,
            name=limit.name,
            rate=limit.rate if own.rate is None else own.rate,
            burst=limit.burst if own.rate is None and own.burst is None else own.burst,
            cost=limit.cost,
        )
    except DefinitionError as error:
        raise ConfigurationError(f"jobs.keyed_limits, {own.name!r}: {error}") from None


def make_queue_limits(settings: Settings) -> dict[str, LimitRule]:
    """Return the limits of whole queues in the settings, by the name of the limit.

    Raises:
        ConfigurationError: a limit has neither a maximum nor a rate, or is wrong.
    """
    limits = {}
    for own in settings.queue_limits:
        where = f"jobs.queue_limits, {own.name!r}"
        if own.rate is None and own.burst is not None:
            raise ConfigurationError(f"{where}: {_BURST_ALONE}")
        if own.rate is None and own.concurrency is None:
            raise ConfigurationError(f"{where}: give the queue a `concurrency` or a `rate`")
        try:
            check_declared_name("the name of a queue", own.name)
            limit = LimitRule(own.concurrency, parse_rate(own.rate, own.burst))
        except DefinitionError as error:
            raise ConfigurationError(f"{where}: {error}") from None
        limits[make_queue_limit_name(own.name)] = limit
    if len(limits) < len(settings.queue_limits):
        raise ConfigurationError("jobs.queue_limits: a queue occurs twice")
    return limits


def find_misspelt_queues(settings: Settings, queues: Collection[str]) -> list[str]:
    """Return a message for each limited queue that looks like a misspelt name of another one."""
    near = {
        own.name: find_nearest(own.name, queues)
        for own in settings.queue_limits
        if own.name not in queues
    }
    return [
        f"no job here declares the queue {name!r}; did you mean {other!r}?"
        for name, other in near.items()
        if other is not None
    ]


def find_unknown_names(
    settings: Settings, jobs: Iterable[str], keyed_limits: Iterable[str]
) -> list[str]:
    """Return a message for each name in the settings that no registered job has."""
    jobs, keyed_limits = set(jobs), set(keyed_limits)
    found = [describe_unknown("job", [own.name], jobs) for own in settings.overrides] + [
        describe_unknown("limit by key", [limit.name], keyed_limits)
        for limit in settings.keyed_limits
    ]
    return [message for message in found if message is not None]


class QueueFairness:
    """The setting `fairness` of each queue. It is applied when a job is enqueued."""

    __slots__ = ("_by_queue", "_default", "has_exceptions")

    def __init__(self, settings: Settings) -> None:
        self._default = settings.fairness == "tenants"
        self._by_queue = {
            queue.name: queue.fairness == "tenants"
            for queue in settings.queues
            if queue.fairness != "auto"
        }
        self.has_exceptions: bool = not (self._default and all(self._by_queue.values()))
        """Whether `apply` may change something."""

    def apply(self, job: NewJob) -> NewJob:
        """Return a job as the setting of its queue wants it."""
        options = job.options
        fair = self._by_queue.get(job.queue, self._default)
        if options.tenant is None or options.fair == fair:
            return job
        return msgspec.structs.replace(job, options=msgspec.structs.replace(options, fair=fair))
