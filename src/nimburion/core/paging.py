"""Iterate over all jobs that a backend lists, and change those that match, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import MAX_STEP, BulkAction, narrow_to_action
from nimburion.core.job import JobRecord
from nimburion.core.queries import EVERY_JOB, JobFilter


class AnyPage(Protocol):
    """A page of a list."""

    @property
    def next(self) -> str | None:
        """The cursor of the next page; None: this is the last one."""
        ...


PageT = TypeVar("PageT", bound=AnyPage)
T = TypeVar("T")


async def iterate_items(
    read: Callable[[str | None], Awaitable[PageT]], get_items: Callable[[PageT], Iterable[T]]
) -> AsyncIterator[T]:
    """Yield the items of every page. `read` returns the page after a cursor; None: the first."""
    after: str | None = None
    while True:
        page = await read(after)
        for item in get_items(page):
            yield item
        after = page.next
        if after is None:
            return


def iterate_jobs(
    backend: Backend, which: JobFilter = EVERY_JOB, *, step: int = 100, payloads: bool = False
) -> AsyncIterator[JobRecord]:
    """Iterate over the jobs that match, most recently enqueued first; read `step` jobs at a time.

    Each page is a separate read. Jobs that are enqueued meanwhile are not included. A job whose
    state changes meanwhile may be left out if `which` filters by state. Without `payloads`, the
    payload of each record is None. Raises the errors of `list_jobs`.
    """
    return iterate_items(
        lambda after: backend.reads.list_jobs(which, limit=step, after=after, payloads=payloads),
        lambda page: page.jobs,
    )


class ChangedJobs(msgspec.Struct, frozen=True):
    """The jobs that match a filter and were changed."""

    ids: list[str]
    held: list[str]
    """Jobs that stayed failed, because another job holds their unique key."""
    next: str | None = None
    """Pass it as `after` to continue; None: every matching job was examined."""


async def change_matching(
    backend: Backend, action: BulkAction, which: JobFilter, limit: int, after: str | None = None
) -> ChangedJobs:
    """Change up to `limit` jobs that match, most recently enqueued first, in atomic steps.

    Jobs whose state the action cannot change do not match. Jobs that change to a state that does
    not match, before their step, are skipped. Raises the errors of `list_jobs` and
    `change_jobs`.
    """
    which = narrow_to_action(which, action)
    ids: list[str] = []
    held: list[str] = []
    while True:
        page = await backend.reads.list_jobs(which, limit=min(limit, MAX_STEP), after=after)
        if page.jobs:
            changes = await backend.maintenance.change_jobs(
                action, [record.id for record in page.jobs], states=which.states
            )
            ids += changes.ids
            held += changes.held
        limit -= len(page.jobs)
        after = page.next
        if after is None or limit <= 0:
            return ChangedJobs(ids, held, after)
