"""What `jobs.policies` and `jobs.keyed_limits` of the settings say of single jobs."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nimburion.core.errors import ConfigurationError, DefinitionError
from nimburion.core.rates import parse_rate
from nimburion.core.settings import JobSettings, KeyedLimitSettings, Settings
from nimburion.core.text.suggestions import describe_unknown
from nimburion.jobs.declaration.limits import Limit
from nimburion.jobs.declaration.policy import Policy


def configure_policy(job: str, policy: Policy, settings: Settings) -> Policy:
    """Return the policy of a job with what the settings say of it and of its limits by key.

    Raises:
        ConfigurationError: the settings do not fit what the job declares.
    """
    keyed = {limit.name: limit for limit in settings.keyed_limits}
    limits = tuple(_configure_limit(job, limit, keyed) for limit in policy.limits)
    policy = msgspec.structs.replace(policy, limits=limits) if keyed else policy
    for own in settings.policies:
        if own.name == job:
            policy = _apply(job, policy, own)
    return policy


def _apply(job: str, policy: Policy, own: JobSettings) -> Policy:
    where = f"jobs.policies, {job!r}"
    changes: dict[str, object] = {}
    if own.concurrency is not None:
        changes["concurrency"] = own.concurrency
    if own.rate is not None or own.burst is not None:
        cost = 1 if policy.rate is None else policy.rate.cost
        rate = own.rate if own.rate is not None or policy.rate is None else policy.rate.rate
        try:
            changes["rate"] = parse_rate(rate, own.burst, cost)
        except DefinitionError as error:
            raise ConfigurationError(f"{where}: {error}") from None
    if own.batch is not None or own.batch_wait is not None:
        if policy.batch is None:
            raise ConfigurationError(
                f"{where}: its handler takes one job; declare it with @job(batch=…) first"
            )
        changes["batch"] = policy.batch if own.batch is None else own.batch
        changes["batch_wait"] = policy.batch_wait if own.batch_wait is None else own.batch_wait
    return msgspec.structs.replace(policy, **changes)


def _configure_limit(job: str, limit: Limit, keyed: dict[str, KeyedLimitSettings]) -> Limit:
    own = keyed.get(limit.choose_name(job))
    if own is None:
        return limit
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


def find_unknown_names(
    settings: Settings, jobs: Iterable[str], keyed_limits: Iterable[str]
) -> list[str]:
    """Return a message for each name in the settings that no registered job has."""
    jobs, keyed_limits = set(jobs), set(keyed_limits)
    found = [describe_unknown("job", [own.name], jobs) for own in settings.policies] + [
        describe_unknown("limit by key", [limit.name], keyed_limits)
        for limit in settings.keyed_limits
    ]
    return [message for message in found if message is not None]
