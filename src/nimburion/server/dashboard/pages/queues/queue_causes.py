"""Why the due jobs of a queue wait: full limits, keys without room, busy workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from nimburion.core.job import JobRecord
from nimburion.core.limits import (
    LimitInfo,
    closes_lane,
    make_job_limit_name,
    make_queue_limit_name,
)
from nimburion.core.queries import QueueInfo
from nimburion.core.session import SessionInfo

MAX_CAUSES = 5
LIMIT_AGE = 10.0
"""The maximum age of the limits that pages show beside queues, in seconds."""


class QueueCause(msgspec.Struct, frozen=True, kw_only=True):
    """Why jobs of a queue wait although they are due."""

    kind: Literal["key", "limit", "rate", "slots"]
    """`key`: a key of a limit has no room. `limit`: the limit of a name or of the queue is full.
    `rate`: it allows no start now. `slots`: the workers of the queue are busy.
    """
    waiting: int
    """The jobs that wait for it."""
    shared: bool = False
    """Whether jobs of other queues are among them."""
    limit: str | None = None
    key: str | None = None
    in_use: int
    maximum: int | None
    """None: only a rate."""
    since: float | None = None
    """When the job started that has been holding it for longest; None if that is not known."""
    opens_at: float | None = None
    """When the rate allows the next start."""


def count_names(queues: Iterable[QueueInfo]) -> Counter[str]:
    """Return in how many queues jobs of each name wait."""
    return Counter(name for queue in queues for name in queue.names)


def find_queue_causes(
    queue: QueueInfo,
    names: Mapping[str, int],
    limits: Mapping[str, LimitInfo],
    running: Sequence[JobRecord],
    serving: Sequence[SessionInfo],
) -> list[QueueCause]:
    """Return why jobs of the queue wait, the cause of most jobs first.

    `names` is what `count_names` returns for all queues. `running` are running jobs of all queues,
    and `serving` the live workers of this one.
    """
    if not queue.size:
        return []
    elsewhere = {name for name, count in names.items() if count > (name in queue.names)}
    causes = [*_find_full_lanes(queue, limits), *_find_full_keys(queue, limits, elsewhere, running)]
    vitals = [one.vitals for one in serving if one.vitals is not None]
    slots, busy = sum(one.slots for one in vitals), sum(one.busy for one in vitals)
    waiting = queue.size - sum(cause.waiting for cause in causes)
    if slots and busy >= slots and waiting > 0:
        causes.append(QueueCause(kind="slots", waiting=waiting, in_use=busy, maximum=slots))
    return sorted(causes, key=lambda cause: -cause.waiting)[:MAX_CAUSES]


def _find_full_lanes(queue: QueueInfo, limits: Mapping[str, LimitInfo]) -> Iterator[QueueCause]:
    """Yield the limits of the queue and of its names that let no job start."""
    waiting = {make_queue_limit_name(queue.name): queue.size}
    waiting |= {make_job_limit_name(name): count for name, count in queue.names.items()}
    for name, count in waiting.items():
        limit = limits.get(name)
        if limit is None or not count:
            continue
        is_full = limit.concurrency is not None and limit.in_use >= limit.concurrency
        if is_full or limit.opens_at is not None:
            yield QueueCause(
                kind="limit" if is_full else "rate",
                waiting=count,
                limit=name,
                in_use=limit.in_use,
                maximum=limit.concurrency,
                since=min((holder.started_at for holder in limit.holders), default=None),
                opens_at=limit.opens_at,
            )


def _find_full_keys(
    queue: QueueInfo,
    limits: Mapping[str, LimitInfo],
    elsewhere: set[str],
    running: Sequence[JobRecord],
) -> Iterator[QueueCause]:
    """Yield the keys for which jobs of the queue wait."""
    for limit in limits.values():
        concerns = bool(limit.rules.keys() & queue.names.keys())
        if not concerns or closes_lane(limit.name):
            continue
        for use in limit.fullest:
            if use.parked:
                starts = [
                    job.started_at
                    for job in running
                    if job.started_at and job.options.limit_keys.get(limit.name) == use.key
                ]
                yield QueueCause(
                    kind="key",
                    waiting=use.parked,
                    shared=bool(limit.rules.keys() & elsewhere),
                    limit=limit.name,
                    key=use.key,
                    in_use=use.in_use,
                    maximum=_find_maximum(limit, use.key),
                    since=min(starts) if starts and len(starts) >= use.in_use else None,
                    opens_at=use.opens_at,
                )


def _find_maximum(limit: LimitInfo, key: str) -> int | None:
    changed = [change.concurrency for change in limit.changes if change.key == key]
    return next((maximum for maximum in changed if maximum is not None), limit.concurrency)
