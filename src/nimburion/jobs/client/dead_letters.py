"""Dead letters: list, show, replay and purge failed jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.errors import JobNotFound
from nimburion.core.job import FAILED_ONLY, JobRecord, State
from nimburion.core.paging import iterate_jobs
from nimburion.core.queries import JobFilter

_BATCH_SIZE = 500
"""The most jobs that one backend operation replays or deletes."""

Ids = list[str]


class DeadLetters:
    """The failed jobs of a backend, as `processor.dead`.

    Each record has the payload byte for byte as it was enqueued, the reason of the failure and the
    whole history of attempts.

    The filters `queue`, `name` and `reason` match exactly; without a filter, all failed jobs match.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def list(
        self,
        *,
        queue: str | None = None,
        name: str | None = None,
        reason: str | None = None,
    ) -> AsyncIterator[JobRecord]:
        """Return an iterator over all failed jobs that match, read page by page.

        The job enqueued last comes first. Use it with `async for`.
        """
        return iterate_jobs(self._backend, self._filter(queue, name, reason), payloads=True)

    async def show(self, job_id: str) -> JobRecord:
        """Return one failed job. `JobNotFound` is raised when no failed job has the id."""
        record = await self._backend.get_job(job_id)
        if record.state is not State.FAILED:
            raise JobNotFound(job_id)
        return record

    async def replay(self, *job_ids: str) -> Ids:
        """Make failed jobs pending again, and return the ids of the jobs replayed.

        A replayed job keeps its id, payload and history; its counts of failures and losses start
        again. Jobs that are not failed are skipped, so a second call changes nothing. So is a job
        whose unique key another job holds now.
        """
        return await self._replay(JobFilter(states=FAILED_ONLY, ids=job_ids))

    async def replay_all(
        self,
        *,
        queue: str | None = None,
        name: str | None = None,
        reason: str | None = None,
    ) -> Ids:
        """Replay all failed jobs that match, and return their ids.

        The jobs are replayed in bounded steps. Each step is atomic, the whole call is not.
        """
        return await self._replay(self._filter(queue, name, reason))

    async def purge(
        self,
        *job_ids: str,
        queue: str | None = None,
        name: str | None = None,
        reason: str | None = None,
    ) -> int:
        """Delete failed jobs for good, and return how many were deleted.

        Pass ids, filters, or both: a job is deleted when it matches all of them. Without any, all
        failed jobs are deleted.
        """
        which = self._filter(queue, name, reason)
        if job_ids:
            which = msgspec.structs.replace(which, ids=job_ids)
        purged = 0
        while ids := await self._backend.delete(which, _BATCH_SIZE):
            purged += len(ids)
        return purged

    async def _replay(self, which: JobFilter) -> Ids:
        ids: Ids = []
        after: str | None = None
        while True:
            step = await self._backend.replay(which, _BATCH_SIZE, after)
            ids += step.ids
            after = step.next
            if after is None:
                return ids

    def _filter(self, queue: str | None, name: str | None, reason: str | None) -> JobFilter:
        return JobFilter(states=FAILED_ONLY, queue=queue, name=name, reason=reason)
