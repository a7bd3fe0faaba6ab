"""The jobs that a schedule has made, as far as they are kept."""

from __future__ import annotations

from collections.abc import AsyncIterator

from nimburion.core.backend import Inspecting
from nimburion.core.errors import DefinitionError
from nimburion.core.job import JobRecord
from nimburion.core.paging import every_job
from nimburion.core.reading import JobFilter, ScheduleRecord
from nimburion.scheduler.spec import NAME_HEADER, Spec, job_id

_PAGE = 500
_MOST_LOOKED_AT = 20_000


async def history_of(
    store: Inspecting, record: ScheduleRecord, spec: Spec, limit: int
) -> list[JobRecord]:
    """Its latest jobs, newest first.

    Those of its ticks are found by their ids, however many others there are. Those that `run_now`
    made, and those of ticks before its last change, are looked for among the latest 20,000 jobs of
    that name.
    """
    found: dict[str, JobRecord] = {}
    looked_at = 0
    async for job in every_job(store, JobFilter(name=spec.job or None), step=_PAGE):
        looked_at += 1
        if job.options.headers.get(NAME_HEADER) == record.name:
            found[job.id] = job
        if len(found) >= limit or looked_at >= _MOST_LOOKED_AT:
            break
    async for job in _of_ticks(store, record, spec, limit):
        found[job.id] = job
    return sorted(found.values(), key=lambda job: job.created_at, reverse=True)[:limit]


async def _of_ticks(
    store: Inspecting, record: ScheduleRecord, spec: Spec, limit: int
) -> AsyncIterator[JobRecord]:
    """The jobs of its last so many ticks."""
    try:
        table = spec.timetable()
    except DefinitionError:  # another version wrote it
        return
    ticks = table.last(limit, record.last_tick or 0.0)
    ids = [job_id(record.name, tick) for tick in ticks]
    for first in range(0, len(ids), _PAGE):
        which = JobFilter(ids=tuple(ids[first : first + _PAGE]))
        async for job in every_job(store, which, step=_PAGE):
            yield job
