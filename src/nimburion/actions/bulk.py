"""Preview, start and cancel bulk operations. Workers and management servers run their steps."""

from __future__ import annotations

import msgspec

from nimburion.actions.operator import Operator
from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import (
    BulkAction,
    BulkOperation,
    NewBulkOperation,
    cancel_bulk_operation,
    narrow_to_action,
    start_bulk_operation,
)
from nimburion.core.errors import BulkOperationConflict
from nimburion.core.ids import make_bulk_operation_id
from nimburion.core.job import JobRecord
from nimburion.core.queries import EVERY_JOB, JobFilter, describe_filter

MAX_COUNT = 1_000
"""A preview counts up to this number of jobs."""
_SHOWN = 10
"""The number of jobs that a preview shows."""


class BulkPreview(msgspec.Struct, frozen=True, kw_only=True):
    """What a bulk operation would change now."""

    count: int
    """The number of jobs that match, or that were counted until the count stopped."""
    complete: bool
    """Whether `count` is the number of all jobs that match; False: there may be more."""
    examined: int
    """The number of jobs examined."""
    first: list[JobRecord]
    """The first ten, without their payloads: those that would be changed first."""


class BulkActions:
    """Change all jobs that match a filter, step by step: `processor.bulk`."""

    def __init__(self, backend: Backend, operator: Operator) -> None:
        self._backend = backend
        self._operator = operator

    async def preview(self, action: BulkAction, which: JobFilter = EVERY_JOB) -> BulkPreview:
        """Return how many jobs a bulk operation would change now, and the first ten.

        The count stops at `MAX_COUNT`, or when 10,000 jobs were examined, whatever comes first.

        ```python
        preview = await processor.bulk.preview(BulkAction.REPLAY, JobFilter(queue="mail"))
        print(preview.count if preview.complete else f"at least {preview.count}")
        ```
        """
        return await preview_jobs(self._backend, action, which)

    async def start(
        self,
        action: BulkAction,
        which: JobFilter = EVERY_JOB,
        *,
        rate: float | None = None,
        limit: int | None = None,
        id: str | None = None,  # noqa: A002 (the name of the option)
    ) -> BulkOperation:
        """Start a bulk operation. A worker or a management server then runs it.

        `rate` is the maximum number of jobs per second, `limit` the maximum number of jobs. With
        your own `id`, a repeat starts no second operation.

        ```python
        await processor.bulk.start(BulkAction.REPLAY, JobFilter(queue="mail"), rate=10)
        ```

        Errors:

        - `InvalidJob`: a value is wrong, or the action can change none of the jobs.
        - `BulkOperationConflict`: the id belongs to an operation that does something else.
        - `TooManyBulkOperations`: the oldest of those that are kept still runs.
        """
        new = NewBulkOperation(
            id=id or make_bulk_operation_id(),
            action=action,
            which=which,
            by=self._operator.name,
            origin=self._operator.origin,
            rate=rate,
            limit=limit,
        )
        async with self._operator.record(
            self._backend,
            f"operations.start_{action}",
            new.id,
            **describe_filter(which),
            rate=None if rate is None else f"{rate:g}/s",
            limit=limit,
        ):
            started = await start_bulk_operation(self._backend, new)
            if any(getattr(started, field) != getattr(new, field) for field in _WHAT_IT_DOES):
                raise BulkOperationConflict(new.id)
        return started

    async def cancel(self, operation_id: str) -> BulkOperation:
        """End a bulk operation. What it has changed stays changed."""
        async with self._operator.record(self._backend, "operations.cancel", operation_id):
            return await cancel_bulk_operation(self._backend, operation_id)


_WHAT_IT_DOES = ("action", "which", "rate", "limit")


async def preview_jobs(backend: Backend, action: BulkAction, which: JobFilter) -> BulkPreview:
    """Return what `BulkActions.preview` does."""
    page = await backend.reads.list_jobs(narrow_to_action(which, action), limit=MAX_COUNT)
    return BulkPreview(
        count=len(page.jobs),
        complete=page.next is None,
        examined=page.examined,
        first=page.jobs[:_SHOWN],
    )
