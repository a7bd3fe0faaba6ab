"""Which jobs wait although they may run? A check of progress that fits any state of a backend.

The answer follows from what a backend says of its jobs and limits. So the check needs no knowledge
of how a backend parks jobs, returns them or takes turns.
"""

from __future__ import annotations

from nimburion.core.backend import Backend
from nimburion.core.diagnosis.explanations import Facts
from nimburion.core.job import State
from nimburion.core.keyed_limits import KeyedLimit, find_limit_key
from nimburion.core.limit_changes import LimitChange, apply_change
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
    limits = {limit.name: limit.jobs for limit in await backend.reads.list_keyed_limits()}
    changes = {
        (change.name, change.key): change for change in await backend.reads.list_limit_changes()
    }
    found = []
    for job in page.jobs:
        facts = await backend.reads.explain_job(job.id)
        if facts.job.state in _WAITING and _may_run(facts, limits, changes):
            found.append(facts)
    return found


def _may_run(
    facts: Facts,
    limits: dict[str, dict[str, KeyedLimit]],
    changes: dict[tuple[str, str | None], LimitChange],
) -> bool:
    job, limit, rate = facts.job, facts.limit, facts.rate
    if job.due > facts.now or facts.pause is not None:
        return False
    if limit is not None and limit.in_use >= limit.limit:
        return False
    if rate is not None and rate.room == 0:
        return False
    return all(
        _has_room(facts, name, by_job[job.name], changes)
        for name, by_job in limits.items()
        if job.name in by_job
    )


def _has_room(
    facts: Facts,
    name: str,
    limit: KeyedLimit,
    changes: dict[tuple[str, str | None], LimitChange],
) -> bool:
    """Return whether a limit by key allows the job now."""
    key = find_limit_key(name, facts.job.queue, facts.job.options.limit_keys)
    if key is None:
        return True
    limit = apply_change(limit, changes.get((name, key)))
    use = next((use for use in facts.keys if (use.limit, use.key) == (name, key)), None)
    if use is None:
        return limit.concurrency != 0
    if limit.concurrency is not None and use.in_use >= limit.concurrency:
        return False
    return limit.rate is None or use.opens_at is None or use.opens_at <= facts.now
