"""Limits: how many jobs may run at once, and how many may start in a time.

There is one kind of limit. A `LimitRule` says what a limit allows each of its keys, and one
`LimitUse` counts for each key. A limit of a job name is named `job:NAME` and that of a whole queue
`queue:NAME`; their only key is "". Jobs carry the keys of all other limits, which several job names
may share.

All jobs of a lane have the same key of `job:NAME` and of `queue:NAME`, so a lane is closed while
one of these limits has no room. If any other limit has no room for a job, an exchange parks the
job: it leaves its lane until its key has room, so that it is passed over once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.rate_limits import MAX_UNITS, RateLimit

JOB_LIMIT = "job:"
"""The name of the limit of a job name begins with this text; the name of the jobs follows."""
QUEUE_LIMIT = "queue:"
"""The name of the limit of a whole queue begins with this text; the name of the queue follows."""

LIMIT_PATTERN = r"^[A-Za-z0-9_.:-]{1,262}$"
"""The names of limits: of jobs and queues, and of each `Limit`."""

MAX_CONCURRENCY = 1_000_000
"""The largest maximum that a change may set."""
MAX_PARKED = 1_000
"""The most jobs that one exchange parks. If it stops there, its lanes are among those that wait."""
MAX_RETURNED = 1_000
"""The most parked jobs that one exchange considers again after the limits of their name changed."""

LimitKey = tuple[str, str]
"""The name of a limit, and a key."""


class LimitRule(msgspec.Struct, frozen=True):
    """What a limit allows each of its keys, as a worker declares it for one job name.

    Counts are kept by limit and key, so several job names can share a limit.
    """

    concurrency: int | None = None
    """How many jobs of one key may run at once, over all workers."""
    rate: RateLimit | None = None
    """How many units of one key may start in a time. Its `cost` is that of jobs that carry none."""

    def count_at_once(self) -> int:
        """Return how many jobs of one key can start at once, at least 1.

        When a limit changes, this is the number of parked jobs that return to each lane for each
        key. Further ones would only be parked again.
        """
        burst = 0 if self.rate is None else self.rate.burst
        if self.concurrency is None or self.rate is None:
            return max(self.concurrency or burst, 1)
        return max(min(self.concurrency, burst), 1)

    def apply(self, change: LimitChange | None) -> LimitRule:
        """Return the rule with what a change sets. A changed rate keeps the declared cost."""
        if change is None:
            return self
        concurrency = self.concurrency if change.concurrency is None else change.concurrency
        rate = self.rate
        if change.rate is not None:
            cost = 1 if rate is None else rate.cost
            rate = msgspec.structs.replace(change.rate, cost=cost)
        return LimitRule(concurrency, rate)


class LimitUse(msgspec.Struct, array_like=True, gc=False):
    """The use of one key of a limit."""

    in_use: int = 0
    """The number of jobs that run."""
    spent_until: int = 0
    """The time until which the units of its rate are spent: see `RateLimit`."""
    opens_at: int | None = None
    """When its parked jobs are considered again because of the rate; None: no time is known."""
    has_parked: bool = False


class JobLimit(NamedTuple):
    """A limit in which a job counts: its key there, the maximum, and the rate with its cost."""

    key: LimitKey
    concurrency: int | None
    rate: RateLimit | None


class LimitChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A change of a limit at run time. It wins over what workers declare until it is reset.

    A change of the limit of a job name or of a queue also makes a limit that no worker declares.
    """

    name: str
    """The name of the limit: `job:NAME`, `queue:NAME`, or that of a shared one."""
    key: str | None = None
    """The one key that is changed; None: the limit itself."""
    concurrency: int | None = None
    """How many jobs may run at once, 0 for none; None: not changed."""
    rate: RateLimit | None = None
    """How many units may start in a time; None: not changed. Its `cost` is not used: a change
    keeps the cost that the job declares.
    """
    by: str = ""
    """Who changed it."""
    reason: str = ""
    at: float = 0.0
    """When it was last changed, in epoch seconds; set by the backend."""

    def check(self) -> None:
        """Raise `InvalidJob` unless the change sets something, within bounds."""
        if self.concurrency is None and self.rate is None:
            raise InvalidJob("a change of a limit needs a maximum or a rate")
        if self.concurrency is not None and not 0 <= self.concurrency <= MAX_CONCURRENCY:
            raise InvalidJob(
                f"the maximum of a limit is 0 to {MAX_CONCURRENCY:,}, not {self.concurrency}"
            )
        if self.rate is not None and not (
            1 <= self.rate.burst <= MAX_UNITS and self.rate.interval >= 1
        ):
            raise InvalidJob(f"the burst of a rate is 1 to {MAX_UNITS:,}, not {self.rate.burst}")

    def merge(self, newer: LimitChange) -> LimitChange:
        """Return the newer change, with what it does not set from this one."""
        return msgspec.structs.replace(
            newer,
            concurrency=self.concurrency if newer.concurrency is None else newer.concurrency,
            rate=newer.rate or self.rate,
        )


class KeyUse(msgspec.Struct, frozen=True, kw_only=True):
    """A key of a limit that is in use, for which jobs wait, or whose rate allows no job now."""

    limit: str
    """The name of the limit."""
    key: str
    in_use: int
    """The number of jobs that run."""
    parked: int
    """The number of jobs that wait for this key to have room. Jobs whose lane is closed are not
    among them.
    """
    opens_at: float | None = None
    """When the rate of the key allows the next job that waits, in epoch seconds; None: no rate
    delays one.
    """


class LimitHolder(msgspec.Struct, frozen=True):
    """A job that counts against a concurrency limit."""

    job_id: str
    session: str
    """The id of the session that runs the job."""
    host: str
    started_at: float
    """Epoch seconds on the backend's clock."""


class LimitInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A limit when it was read."""

    name: str
    rules: dict[str, LimitRule] = msgspec.field(default_factory=dict)
    """What is in force for each job name that has the limit, with the changes of the whole limit.
    """
    changes: list[LimitChange] = msgspec.field(default_factory=list)
    """The changes in force: that of the whole limit first, then those of single keys, by key."""
    room: int | None = None
    """How many jobs the rate of a job name allows to start now; None: it has none, or the limit is
    no limit of a job name.
    """
    keys: int = 0
    """The number of keys that are in use or for which jobs wait."""
    in_use: int = 0
    """The number of jobs that run, of all keys."""
    parked: int = 0
    """The number of jobs that wait for their key to have room, of all keys."""
    fullest: list[KeyUse] = msgspec.field(default_factory=list)
    """The keys with the most running and waiting jobs, first the one with most. For the limit of a
    job name: its only key, if it is in use or its rate allows no job now.
    """
    holders: list[LimitHolder] = msgspec.field(default_factory=list)
    """For the limit of a job name with a maximum: the jobs that have counted longest, longest
    first.
    """

    @property
    def change(self) -> LimitChange | None:
        """The change of the whole limit, if there is one."""
        return next((change for change in self.changes if change.key is None), None)

    @property
    def concurrency(self) -> int | None:
        """How many jobs of one key may run at once, the largest number of all job names; None: no
        maximum.
        """
        maxima = [rule.concurrency for rule in self.rules.values() if rule.concurrency is not None]
        return max(maxima, default=None)

    @property
    def rate(self) -> RateLimit | None:
        """The rate of the first job name that has one."""
        return next((rule.rate for rule in self.rules.values() if rule.rate is not None), None)

    @property
    def opens_at(self) -> float | None:
        """When the rate of the limit of a job name or a queue allows the next job; None: now."""
        return self.fullest[0].opens_at if self.fullest else None


LimitRules = Mapping[str, LimitRule]
"""The limits of one job name, by the name of the limit."""


def make_job_limit_name(job: str) -> str:
    """Return the name of the limit of a job name.

    >>> make_job_limit_name("send_mail")
    'job:send_mail'
    """
    return JOB_LIMIT + job


def get_limited_job(limit: str) -> str | None:
    """Return the job name whose limit has this name; None: it is no limit of a job name."""
    return limit[len(JOB_LIMIT) :] if limit.startswith(JOB_LIMIT) else None


def make_queue_limit_name(queue: str) -> str:
    """Return the name of the limit of a whole queue.

    >>> make_queue_limit_name("mail")
    'queue:mail'
    """
    return QUEUE_LIMIT + queue


def get_limited_queue(limit: str) -> str | None:
    """Return the queue whose limit has this name; None: it is no limit of a queue."""
    return limit[len(QUEUE_LIMIT) :] if limit.startswith(QUEUE_LIMIT) else None


def closes_lane(limit: str) -> bool:
    """Return whether all jobs of a lane have the same key in a limit: in that of a job name or of a
    queue. If it has no room, no job of the lane is read. All other limits park single jobs.
    """
    return limit.startswith((JOB_LIMIT, QUEUE_LIMIT))


def concerns_lane(limit: str, queue: str) -> bool:
    """Return whether a limit that a job name has closes the lane of the name in a queue."""
    return limit.startswith(JOB_LIMIT) or limit == QUEUE_LIMIT + queue


def drop_lane_limits(rules: LimitRules) -> dict[str, LimitRule]:
    """Return the limits of a job name for which jobs are parked."""
    return {limit: rule for limit, rule in rules.items() if not closes_lane(limit)}


def find_limit_key(limit: str, queue: str, limit_keys: Mapping[str, str]) -> str | None:
    """Return the key for which a job counts in a limit that its name has; None: it does not count.

    Args:
        limit: the name of the limit.
        queue: the queue in which the job waits. It decides for the limits of queues.
        limit_keys: the keys that the job carries, by the name of the limit.
    """
    if limit.startswith(JOB_LIMIT):
        return ""
    if limit.startswith(QUEUE_LIMIT):
        return "" if limit == QUEUE_LIMIT + queue else None
    return limit_keys.get(limit)


def apply_changes(
    job: str, declared: LimitRules, changes: Mapping[str, LimitChange]
) -> dict[str, LimitRule]:
    """Return the limits of a job name with the changes of whole limits, sorted by name.

    `changes` are by the name of the limit. A change of the limit of the job name, or of a queue,
    makes the limit if it is not declared.
    """
    own = make_job_limit_name(job)
    rules = dict(declared)
    for name in changes:
        if name == own or get_limited_queue(name) is not None:
            rules.setdefault(name, LimitRule())
    return {name: rules[name].apply(changes.get(name)) for name in sorted(rules)}


def summarize_limits(
    rules: Mapping[str, LimitRules],
    changes: Iterable[LimitChange],
    uses: Iterable[KeyUse],
    *,
    name: str | None,
    fullest: int,
) -> list[LimitInfo]:
    """Return every limit, or only the one of this name, ordered by name.

    `rules` are by job name and then by the name of the limit. A limit that no job name has any more
    is listed while its keys are in use or it is changed.
    """
    by_job: dict[str, dict[str, LimitRule]] = {}
    for job, named in sorted(rules.items()):
        for limit, rule in named.items():
            by_job.setdefault(limit, {})[job] = rule
    changed: dict[str, list[LimitChange]] = {}
    for change in sorted(changes, key=get_order):
        changed.setdefault(change.name, []).append(change)
    used: dict[str, list[KeyUse]] = {}
    for use in uses:
        if use.in_use or use.parked or use.opens_at is not None:
            used.setdefault(use.limit, []).append(use)
    names = {*by_job, *changed, *used} if name is None else {name} & {*by_job, *changed, *used}
    return [
        LimitInfo(
            name=limit,
            rules=by_job.get(limit, {}),
            changes=changed.get(limit, []),
            keys=sum(bool(use.in_use or use.parked) for use in used.get(limit, ())),
            in_use=sum(use.in_use for use in used.get(limit, ())),
            parked=sum(use.parked for use in used.get(limit, ())),
            fullest=heapq.nsmallest(fullest, used.get(limit, ()), key=get_fullness),
        )
        for limit in sorted(names)
    ]


def get_fullness(use: KeyUse) -> tuple[int, str]:
    """Return the sort key of uses: first the key with the most running and waiting jobs."""
    return -use.in_use - use.parked, use.key


def get_order(change: LimitChange) -> tuple[str, bool, str]:
    """Return the sort key of changes: by name, that of the whole limit first, then by key."""
    return change.name, change.key is not None, change.key or ""
