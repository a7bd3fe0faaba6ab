"""Preview, start and cancel bulk operations. Workers and management servers run their steps."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Literal, Unpack

import msgspec

from nimburion.actions.filters import FilterOptions, narrow_filter
from nimburion.actions.operator import SubjectActions
from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import (
    BulkAction,
    BulkOperation,
    NewBulkOperation,
    cancel_bulk_operation,
    get_bulk_operation,
    list_bulk_operations,
    narrow_to_action,
    start_bulk_operation,
)
from nimburion.core.errors import BulkOperationConflict, InvalidJob
from nimburion.core.ids import make_bulk_operation_id
from nimburion.core.job import JobRecord
from nimburion.core.paging import iterate_items
from nimburion.core.queries import EVERY_JOB, JobFilter, describe_filter

MAX_COUNT = 1_000
"""A preview counts up to this number of jobs."""
_SHOWN = 10
"""The number of jobs that a preview shows."""
_RATE = re.compile(r"(\d+(?:\.\d+)?)(?:/(s|min|h))?")
_UNIT_SECONDS = (("s", 1.0), ("min", 60.0), ("h", 3600.0))

BulkActionName = Literal["replay", "run_now", "cancel", "delete"]
"""The values of `BulkAction`."""


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


class BulkActions(SubjectActions):
    """Change all jobs that match a filter, step by step: `processor.bulk`.

    The filter is given by keywords: `name`, `queue`, `states`, `reason`, `ids`, `tenant`,
    `correlation_id`, `tag`, `flow`, `fingerprint`, `min_failures`, and datetimes as `created_from`,
    `created_to`, `finished_from` and `finished_to`. A job must match all of them.

    ```python
    preview = await processor.bulk.preview("replay", name="send_email")
    operation = await processor.bulk.start("replay", name="send_email", rate="10/s")
    ```

    The actions are `replay` (failed jobs), `run_now` (jobs that wait for a later time), `cancel`
    (unfinished jobs) and `delete` (finished jobs).
    """

    def list(self) -> AsyncIterator[BulkOperation]:
        """Iterate over the bulk operations that are kept, the newest first. Use it with
        `async for`.
        """
        backend = self._backend
        return iterate_items(
            lambda after: list_bulk_operations(backend, after=after), lambda page: page.operations
        )

    async def get(self, operation_id: str) -> BulkOperation:
        """Return a bulk operation with its progress. Raises `BulkOperationNotFound`."""
        return await get_bulk_operation(self._backend, operation_id)

    async def preview(
        self,
        action: BulkAction | BulkActionName,
        which: JobFilter = EVERY_JOB,
        /,
        **filters: Unpack[FilterOptions],
    ) -> BulkPreview:
        """Return how many jobs a bulk operation would change now, and the first ten.

        The count stops at `MAX_COUNT`, or when 10,000 jobs were examined, whatever comes first.

        ```python
        preview = await processor.bulk.preview("replay", queue="mail")
        print(preview.count if preview.complete else f"at least {preview.count}")
        ```
        """
        which = narrow_filter(which, filters)
        return await preview_jobs(self._backend, _parse_action(action), which)

    async def start(
        self,
        action: BulkAction | BulkActionName,
        which: JobFilter = EVERY_JOB,
        /,
        *,
        rate: str | float | None = None,
        limit: int | None = None,
        id: str | None = None,  # noqa: A002 (the name of the option)
        why: str = "",
        **filters: Unpack[FilterOptions],
    ) -> BulkOperation:
        """Start a bulk operation. A worker or a management server then runs it.

        `rate` is the maximum number of jobs in a time, as `"10/s"`, `"90/min"`, `"500/h"` or a
        number per second. `limit` is the maximum number of jobs. With your own `id`, a repeat
        starts no second operation. Without a filter, all jobs match that the action can change. The
        audit record has `why`; `reason` is a filter of dead letters.

        ```python
        await processor.bulk.start("replay", queue="mail", rate="10/s")
        ```

        Errors:

        - `InvalidJob`: a value is wrong, or the action can change none of the jobs.
        - `BulkOperationConflict`: the id belongs to an operation that does something else.
        - `TooManyBulkOperations`: the oldest of those that are kept still runs.
        """
        which = narrow_filter(which, filters)
        action = _parse_action(action)
        per_second = parse_bulk_rate(rate) if isinstance(rate, str) else rate
        new = NewBulkOperation(
            id=id or make_bulk_operation_id(),
            action=action,
            which=which,
            by=self._operator.name,
            origin=self._operator.origin,
            rate=per_second,
            limit=limit,
        )
        async with self._operator.record(
            self._backend,
            f"operations.start_{action}",
            new.id,
            **describe_filter(which),
            rate=None if per_second is None else f"{per_second:g}/s",
            limit=limit,
            why=why,
        ):
            started = await start_bulk_operation(self._backend, new)
            if any(getattr(started, field) != getattr(new, field) for field in _WHAT_IT_DOES):
                raise BulkOperationConflict(new.id)
        return started

    async def cancel(self, operation_id: str) -> BulkOperation:
        """End a bulk operation. What it has changed stays changed."""
        async with self._operator.record(self._backend, "operations.cancel", operation_id):
            return await cancel_bulk_operation(self._backend, operation_id)


def parse_bulk_rate(text: str) -> float:
    """Return the jobs per second of a rate. Raises `InvalidJob` if the text is no rate.

    >>> [parse_bulk_rate(text) for text in ("10/s", "90/min", "0.5")]
    [10.0, 1.5, 0.5]
    """
    found = _RATE.fullmatch(text)
    if found is None or float(found[1]) == 0:
        raise InvalidJob(f"rate {text!r} is no rate; write 10/s, 90/min or 500/h")
    return float(found[1]) / dict(_UNIT_SECONDS)[found[2] or "s"]


def _parse_action(action: str) -> BulkAction:
    try:
        return BulkAction(action)
    except ValueError:
        known = ", ".join(map(repr, map(str, BulkAction)))
        raise InvalidJob(f"{action!r} is no action of a bulk operation: {known}") from None


_WHAT_IT_DOES = ("action", "which", "rate", "limit")


async def preview_jobs(
    backend: Backend, action: BulkAction, which: JobFilter, after: str | None = None
) -> BulkPreview:
    """Return what `BulkActions.preview` does, of the jobs from the cursor `after` on."""
    wanted = narrow_to_action(which, action)
    page = await backend.reads.list_jobs(wanted, limit=MAX_COUNT, after=after)
    return BulkPreview(
        count=len(page.jobs),
        complete=page.next is None,
        examined=page.examined,
        first=page.jobs[:_SHOWN],
    )
