"""Iterate over all jobs that a backend lists, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator

from nimburion.core.backend import Backend
from nimburion.core.job import JobRecord
from nimburion.core.queries import EVERY_JOB, JobFilter


async def iterate_jobs(
    backend: Backend, which: JobFilter = EVERY_JOB, *, step: int = 100, payloads: bool = False
) -> AsyncIterator[JobRecord]:
    """Yield every job that matches, most recently enqueued first; read `step` jobs at a time.

    Each page is a separate read. Jobs that are enqueued meanwhile are not included. A job whose
    state changes meanwhile may be left out if `which` filters by state. Without `payloads`, the
    payload of each record is None. Raises the errors of `list_jobs`.
    """
    after: str | None = None
    while True:
        page = await backend.reads.list_jobs(which, limit=step, after=after, payloads=payloads)
        for record in page.jobs:
            yield record
        after = page.next
        if after is None:
            return
