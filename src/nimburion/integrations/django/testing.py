"""Run jobs in the tests of a Django project, and keep the jobs of one test out of the next.

```python
from nimburion.integrations.django.testing import JobsTestMixin, run_jobs


class OrderTests(JobsTestMixin, TransactionTestCase):
    def test_the_receipt_is_sent(self):
        self.client.post("/orders")
        self.assertEqual(run_jobs(), 1)
```
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from nimburion.core.bulk_operations import BulkAction
from nimburion.core.paging import change_matching
from nimburion.core.queries import EVERY_JOB
from nimburion.integrations.django import get_processor
from nimburion.integrations.django.django_processor import DjangoProcessor, FailedAttempt
from nimburion.jobs.client.client import Client

__all__ = ["FailedAttempt", "JobRun", "JobsTestMixin", "clear_jobs", "run_jobs"]


class JobRun(int):
    """What `run_jobs` did: the number of attempts, and the attempts that failed."""

    failures: tuple[FailedAttempt, ...] = ()
    """The attempts that failed, in order."""


def run_jobs(*, raise_failures: bool = True) -> JobRun:
    """Run the jobs that are due, one after another, and return the number of attempts.

    If an attempt fails, the other jobs still run; then the error of the first failure is raised,
    with notes that name the job and the other failures. An attempt without an exception of its own,
    such as a timeout, raises `AssertionError`. With `raise_failures=False` nothing is raised, and
    the result has the failures:

    ```python
    run = run_jobs(raise_failures=False)
    self.assertEqual([failure.error.type for failure in run.failures], ["SMTPError"])
    ```

    Jobs see what is committed. If the jobs live in the database under test, use
    `TransactionTestCase`: inside the transaction of a `TestCase` they would wait for it.
    """
    processor = get_processor()
    with processor.collect_failures() as failures:
        run = JobRun(asyncio.run(_drain(processor)))
    run.failures = tuple(failures)
    if raise_failures and failures:
        _raise_first(failures)
    return run


def clear_jobs() -> None:
    """Delete every job, finished or not, and resume every queue.

    Only in memory and in a test database: `ConfigurationError` is raised anywhere else, because
    other programs may use the jobs. Inside the transaction of a `TestCase` on the database that
    holds the jobs, nothing needs to be deleted: the rollback at the end of the test does it.
    """
    processor = get_processor()
    processor.check_is_for_tests()
    opened = processor.transactions.find_open()
    if opened is None or opened.alias != processor.transactions.shared:
        processor.sync.call(_delete_all_jobs)


class JobsTestMixin:
    """Calls `clear_jobs` before each test of a test case. Name it before the class of Django."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (as unittest's)
        """Run one test without the jobs of earlier ones."""
        clear_jobs()
        return super().__call__(*args, **kwargs)  # type: ignore[misc]


async def _drain(processor: DjangoProcessor) -> int:
    async with processor:
        return await processor.drain()


async def _delete_all_jobs(client: Client) -> None:
    backend = client.backend
    for action in (BulkAction.CANCEL, BulkAction.DELETE):
        await change_matching(backend, action, EVERY_JOB, sys.maxsize)
    for queue in await backend.reads.list_queues():
        if queue.paused:
            await backend.maintenance.pause_queue(queue.name, paused=False)


def _raise_first(failures: Sequence[FailedAttempt]) -> None:
    """Raise the error of the first failure, with notes about all."""
    first, *others = failures
    raised = first.exception
    if not isinstance(raised, Exception) or first.error.kind == "timeout":
        raise AssertionError(
            "\n".join([f"{first}: {first.error.type}: {first.error.message}", *map(str, others)])
        ) from raised
    for failure in failures:
        raised.add_note(str(failure))
    raise raised
