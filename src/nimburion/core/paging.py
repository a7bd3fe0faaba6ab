"""Going through all the jobs that a backend lists, however many pages they fill."""

from __future__ import annotations

from collections.abc import AsyncIterator

from nimburion.core.backend import Inspecting
from nimburion.core.job import JobRecord
from nimburion.core.queries import EVERY_JOB, JobFilter


async def iterate_jobs(
    backend: Inspecting, which: JobFilter = EVERY_JOB, *, step: int = 100, payloads: bool = False
) -> AsyncIterator[JobRecord]:
    """Every job that matches, newest enqueue first; `step` of them are read at a time.

    Each page is one reading: what is enqueued meanwhile is not among them, and what changes its
    state meanwhile may be left out where `which` asks for states. Without `payloads` the payload of
    each is None. Raises what `list_jobs` does.
    """
    after: str | None = None
    while True:
        page = await backend.list_jobs(which, limit=step, after=after, payloads=payloads)
        for record in page.jobs:
            yield record
        after = page.next
        if after is None:
            return
