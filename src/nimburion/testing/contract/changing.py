"""Change jobs by id or by filter, with the reply that a test looks at."""

from __future__ import annotations

from collections.abc import Sequence

from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import BulkAction
from nimburion.core.paging import ChangedJobs, change_matching
from nimburion.core.queries import JobFilter


async def _change(
    backend: Backend, action: BulkAction, which: JobFilter, limit: int, after: str | None = None
) -> ChangedJobs:
    """Change jobs that match. Ids alone are given to the backend as they are, without a look."""
    if which.ids is not None and which == JobFilter(ids=which.ids):
        changes = await backend.maintenance.change_jobs(action, which.ids)
        return ChangedJobs(changes.ids, changes.held)
    return await change_matching(backend, action, which, limit, after)


async def replay(
    backend: Backend, which: JobFilter, limit: int, after: str | None = None
) -> ChangedJobs:
    """Make up to `limit` failed jobs pending again."""
    return await _change(backend, BulkAction.REPLAY, which, limit, after)


async def delete(backend: Backend, which: JobFilter, limit: int) -> list[str]:
    """Delete up to `limit` finished jobs, and return their ids."""
    return (await _change(backend, BulkAction.DELETE, which, limit)).ids


async def make_due(backend: Backend, job_ids: Sequence[str]) -> list[str]:
    """Make jobs due that wait for a later time, and return the ids of those that were."""
    return (await _change(backend, BulkAction.RUN_NOW, JobFilter(ids=tuple(job_ids)), 0)).ids
