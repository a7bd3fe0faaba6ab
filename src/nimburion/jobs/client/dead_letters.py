"""Failed jobs: kept whole, looked at, replayed or purged."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.errors import JobNotFound
from nimburion.core.job import JobRecord, State
from nimburion.core.paging import iterate_jobs
from nimburion.core.queries import JobFilter

_STEP = 500
_FAILED = frozenset({State.FAILED})

Ids = list[str]


class DeadLetters:
    """The dead letters of a backend.

    Each carries the payload byte for byte as it was enqueued, the reason and the whole history.
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
        """All that match, newest enqueue first, read page by page."""
        return iterate_jobs(self._backend, self._filter(queue, name, reason), payloads=True)

    async def show(self, job_id: str) -> JobRecord:
        """One of them. `JobNotFound` where there is no failed job of that id."""
        record = await self._backend.get(job_id)
        if record.state is not State.FAILED:
            raise JobNotFound(job_id)
        return record

    async def replay(self, *job_ids: str) -> Ids:
        """Make these pending again: same id, payload and history, counts begun anew. Those that
        are not failed are passed over, so a second call does nothing. The ids replayed."""
        return await self._replay(JobFilter(states=_FAILED, ids=job_ids))

    async def replay_all(
        self,
        *,
        queue: str | None = None,
        name: str | None = None,
        reason: str | None = None,
    ) -> Ids:
        """Replay all that match; in bounded steps, each atomic."""
        return await self._replay(self._filter(queue, name, reason))

    async def purge(
        self,
        *job_ids: str,
        queue: str | None = None,
        name: str | None = None,
        reason: str | None = None,
    ) -> int:
        """Forget these, or without ids all that match, for good. How many."""
        which = self._filter(queue, name, reason)
        if job_ids:
            which = msgspec.structs.replace(which, ids=job_ids)
        purged = 0
        while ids := await self._backend.delete(which, _STEP):
            purged += len(ids)
        return purged

    async def _replay(self, which: JobFilter) -> Ids:
        ids: Ids = []
        after: str | None = None
        while True:
            step = await self._backend.replay(which, _STEP, after)
            ids += step.ids
            after = step.next
            if after is None:
                return ids

    def _filter(self, queue: str | None, name: str | None, reason: str | None) -> JobFilter:
        return JobFilter(states=_FAILED, queue=queue, name=name, reason=reason)
