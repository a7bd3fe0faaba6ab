"""Which jobs wait although they may run? A check of progress that fits any state of a backend.

The answer follows from what a backend says of its jobs and limits. So the check needs no knowledge
of how a backend parks jobs, returns them or takes turns.
"""

from __future__ import annotations

from nimburion.core.backend import Backend
from nimburion.core.diagnosis.explanations import Facts
from nimburion.core.job import State
from nimburion.core.limits import LimitChange, LimitRule, closes_lane, find_limit_key
from nimburion.core.queries import JobFilter

EXCHANGES = 3
"""Within so many exchanges that have idle slots for its lane, a job starts that may run: the bound
of `Consuming.exchange`, where few jobs are parked.
"""

_WAITING = frozenset({State.PENDING, State.RETRYING, State.SCHEDULED})


async def find_idle_jobs(backend: Backend) -> list[Facts]:
    """Return the jobs that may start now, if a worker has a slot: they are due, their queue is not
    paused, and each of their limits has room.
    """
    page = await backend.reads.list_jobs(JobFilter(states=_WAITING), limit=1_000)
    if not page.jobs:
        return []
    known = await backend.reads.list_limits(fullest=0, holders=0)
    limits = {limit.name: limit.rules for limit in known}
    changes = {(one.name, one.key): one for limit in known for one in limit.changes}
    found = []
    for job in page.jobs:
        facts = await backend.reads.explain_job(job.id)
        if facts.job.state in _WAITING and _may_run(facts, limits, changes):
            found.append(facts)
    return found


def _may_run(
    facts: Facts,
    limits: dict[str, dict[str, LimitRule]],
    changes: dict[tuple[str, str | None], LimitChange],
) -> bool:
    job = facts.job
    if job.due > facts.now or facts.pause is not None:
        return False
    for limit in facts.limits:
        rule = limit.rules.get(job.name)
        maximum = None if rule is None else rule.concurrency
        if maximum is not None and limit.in_use >= maximum:
            return False
        if limit.opens_at is not None:
            return False
    return all(
        _has_room(facts, name, by_job[job.name], changes)
        for name, by_job in limits.items()
        if job.name in by_job and not closes_lane(name)
    )


def _has_room(
    facts: Facts,
    name: str,
    limit: LimitRule,
    changes: dict[tuple[str, str | None], LimitChange],
) -> bool:
    """Return whether a limit for which jobs are parked allows the job now."""
    key = find_limit_key(name, facts.job.queue, facts.job.options.limit_keys)
    if key is None:
        return True
    limit = limit.apply(changes.get((name, key)))
    use = next((use for use in facts.keys if (use.limit, use.key) == (name, key)), None)
    if use is None:
        return limit.concurrency != 0
    if limit.concurrency is not None and use.in_use >= limit.concurrency:
        return False
    return limit.rate is None or use.opens_at is None or use.opens_at <= facts.now
