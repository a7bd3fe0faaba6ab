"""Limits as declarations write them: `limits=[Limit(1, key="customer")]`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from nimburion.core.errors import DefinitionError, InvalidJob
from nimburion.core.job import JobOptions
from nimburion.core.limits import LimitRule, closes_lane, get_limited_job, make_job_limit_name
from nimburion.core.rate_limits import MAX_UNITS, RateLimit, parse_rate
from nimburion.core.size_limits import shorten_key

Key = str | Callable[[Any], object]
"""The name of an argument, `"tenant"`, or a function of the job."""
Cost = int | str | Callable[[Any], int]
"""A number of units, the name of an argument, or a function of the job."""

TENANT = "tenant"
_LIMIT_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,256}")
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Limit:
    """A limit over all workers: for each key, for several job names, or with a burst or a cost.

    ```python
    @job(limits=[Limit(1, key="customer")])  # one job for each customer, in order
    async def sync(customer: str) -> None: ...


    @job(limits=[Limit(5, key="tenant"), Limit(2, name="smtp")])
    async def send(to: str) -> None: ...
    ```

    `concurrency=2` and `rate="100/min"` are shorthands for limits of all jobs of the name.

    Args:
        concurrency: how many jobs of one key may run at once.
        key: what the limit counts separately for: the name of an argument, `"tenant"` (the option
            of the enqueue), or a function of the job that returns a text. None: one count for all.
        name: jobs of several names that name the same limit share its counts. By default the limit
            belongs to the job alone.
        rate: how many units of one key may start in a time, `"100/min"`.
        burst: the most units that may start at once; by default what the rate allows in 0.1 s, at
            least 1.
        cost: the units that one job takes of the rate: a number, the name of an argument, or a
            function of the job.
    """

    __slots__ = ("burst", "concurrency", "cost", "key", "name", "rate")

    def __init__(
        self,
        concurrency: int | None = None,
        *,
        key: Key | None = None,
        name: str | None = None,
        rate: str | None = None,
        burst: int | None = None,
        cost: Cost = 1,
    ) -> None:
        if concurrency is None and rate is None:
            raise DefinitionError("a Limit needs a maximum, like Limit(5), or a rate")
        number: object = concurrency
        if number is not None and (
            not isinstance(number, int) or isinstance(number, bool) or number < 1
        ):
            raise DefinitionError(
                f"the maximum of a Limit must be a whole number, 1 or more, not {concurrency!r}"
            )
        if name is not None and not _LIMIT_NAME.fullmatch(name):
            raise DefinitionError(
                f"the name of a Limit has 1 to 256 of the characters A-Z a-z 0-9 _ . : -, not "
                f"{name!r}"
            )
        if name is not None and closes_lane(name):
            raise DefinitionError(
                f"the name of a Limit does not begin with `job:` or `queue:`, like {name!r}: these "
                "are the limits of job names and of queues"
            )
        self.concurrency: int | None = concurrency
        self.key: Key | None = key
        self.name: str | None = name
        self.cost: Cost = cost
        self.rate: str | None = rate
        self.burst: int | None = burst
        make_limit_rule(self)  # raises for a wrong rate

    def __repr__(self) -> str:
        parts = [repr(self.concurrency)] if self.concurrency is not None else []
        for field in ("key", "name", "rate", "burst"):
            value = getattr(self, field)
            if value is not None:
                parts.append(f"{field}={value!r}")
        if self.cost != 1:
            parts.append(f"cost={self.cost!r}")
        return f"Limit({', '.join(parts)})"


def split_limits(
    concurrency: int | None, rate: str | None, limits: Sequence[Limit]
) -> tuple[LimitRule, tuple[Limit, ...]]:
    """Return the rule that limits all jobs of a name, and the limits of which each job carries a
    key.

    The rule has the options `concurrency` and `rate`, and those of `limits` that have no key, no
    name and no cost of each job. Raises `DefinitionError` if two of them limit the same.
    """
    if not isinstance(limits, list | tuple) or not all(isinstance(one, Limit) for one in limits):
        raise DefinitionError(f"limits must be a list of Limits, not {limits!r}")
    own, keyed = LimitRule(concurrency, parse_rate(rate)), []
    for limit in limits:
        if _is_shared_by_all(limit):
            own = _merge(own, make_limit_rule(limit))
        else:
            keyed.append(limit)
    return own, tuple(keyed)


def make_limit_rule(limit: Limit) -> LimitRule:
    """Return a limit as a worker declares it to the backend."""
    fixed = limit.cost if isinstance(limit.cost, int) else 1
    return LimitRule(limit.concurrency, parse_rate(limit.rate, limit.burst, fixed))


def choose_limit_name(limit: Limit, job: str) -> str:
    """Return the name of a limit for a job name, of which each job carries a key."""
    if limit.name is not None:
        return limit.name
    if limit.key is None:
        key = "cost"
    else:
        key = limit.key if isinstance(limit.key, str) else getattr(limit.key, "__name__", "key")
    name = f"{job}:{re.sub('[^A-Za-z0-9_.-]', '-', key)}"
    if closes_lane(name):
        raise DefinitionError(f"job {job!r}: give its Limit a `name`, like {job + '-' + key!r}")
    return name


def _is_shared_by_all(limit: Limit) -> bool:
    """Return whether a limit is that of all jobs of a name: it needs nothing of a single job."""
    return limit.key is None and limit.name is None and isinstance(limit.cost, int)


class JobLimits:
    """The limits of one job name of which each job carries a key."""

    def __init__(self, job: str, limits: Sequence[Limit]) -> None:
        self._job = job
        self._keyed = {choose_limit_name(limit, job): limit for limit in limits}
        if len(self._keyed) < len(limits):
            raise DefinitionError(f"job {job!r}: two limits have one name; give each a `name`")

    def make_rules(
        self, concurrency: int | None = None, rate: RateLimit | None = None
    ) -> dict[str, LimitRule]:
        """Return the limits as a worker declares them to the backend, by name.

        `concurrency` and `rate` limit all jobs of the name.
        """
        rules = {name: make_limit_rule(limit) for name, limit in self._keyed.items()}
        own = LimitRule(concurrency, rate)
        if own != LimitRule():
            rules[make_job_limit_name(self._job)] = own
        return rules

    def apply(self, options: JobOptions, payload: bytes, job: object) -> JobOptions:
        """Return the options of a job with its keys and its cost.

        Raises:
            InvalidJob: a key or a cost cannot be computed.
        """
        if not self._keyed:
            return options
        members = _decode_members(payload) if payload.startswith(b"{") else {}
        keys = {
            name: _compute_key(limit.key, options, members, job)
            for name, limit in self._keyed.items()
        }
        costs = [limit.cost for limit in self._keyed.values() if not isinstance(limit.cost, int)]
        cost = _compute_cost(costs[0], members, job) if costs else options.cost
        return msgspec.structs.replace(options, limit_keys=keys, cost=cost)


def describe_rules(rules: Mapping[str, LimitRule]) -> str:
    """Return the limits of a job name for people."""
    return " ".join(
        describe_rule(rule) if get_limited_job(name) else f"{describe_rule(rule)} by {name}"
        for name, rule in rules.items()
    )


def describe_rule(rule: LimitRule) -> str:
    """Return the maximum and the rate of a limit for people."""
    maximum = None if rule.concurrency is None else str(rule.concurrency)
    return " ".join(part for part in (maximum, rule.rate and rule.rate.rate) if part)


def _merge(one: LimitRule, other: LimitRule) -> LimitRule:
    """Return one rule of two for the same jobs: one has the maximum, one the rate."""
    if None not in {one.concurrency, other.concurrency} or None not in {one.rate, other.rate}:
        raise DefinitionError("two limits are for all jobs of the name; give one a `key` or `name`")
    return LimitRule(
        other.concurrency if one.concurrency is None else one.concurrency, one.rate or other.rate
    )


def check_limits(job: str, limits: Iterable[Limit], known: Iterable[str]) -> None:
    """Raise `DefinitionError` if a key or a cost names no argument of the job."""
    known = tuple(known)
    for limit in limits:
        for what, value in (("key", limit.key), ("cost", limit.cost)):
            if not isinstance(value, str) or value in known or (what, value) == ("key", TENANT):
                continue
            raise DefinitionError(
                f"job {job!r}: {what} names {value!r}, which is not an argument; the arguments are "
                f"{', '.join(known) or '(none)'}"
            )


def _compute_key(
    key: Key | None, options: JobOptions, members: dict[str, msgspec.Raw], job: object
) -> str:
    if key is None:
        return ""
    if isinstance(key, str):
        if key in members:
            return shorten_key(_read_text(members[key]))
        return options.tenant or "" if key == TENANT else ""
    try:
        return shorten_key(str(key(job)))
    except Exception as error:
        raise InvalidJob(f"the key of a limit failed with {error!r}") from error


def _compute_cost(cost: Cost, members: dict[str, msgspec.Raw], job: object) -> int:
    try:
        if isinstance(cost, str):
            value: object = msgspec.json.decode(members[cost]) if cost in members else 1
        else:
            value = cost(job) if callable(cost) else cost
    except Exception as error:
        raise InvalidJob(f"the cost of a limit failed with {error!r}") from error
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_UNITS:
        return value
    raise InvalidJob(f"a cost must be a whole number from 1 to {MAX_UNITS:,}, not {value!r}")


def _read_text(raw: msgspec.Raw) -> str:
    """Return a text as it is, and any other value as JSON."""
    value = msgspec.json.decode(raw)
    return value if isinstance(value, str) else bytes(raw).decode()
