"""Run jobs in the tests of a Django project, and keep the jobs of one test out of the next.

```python
from nimburion.integrations.django.testing import JobsTestMixin, run_jobs


class OrderTests(JobsTestMixin, TestCase):
    def test_the_receipt_is_sent(self):
        with self.captureOnCommitCallbacks(execute=True):
            self.client.post("/orders")
        self.assertEnqueued(send_receipt, order=1)
        self.assertEqual(run_jobs(), 1)
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from asgiref.sync import async_to_sync
from django.db import connections
from django.db.models import Model
from django.test import SimpleTestCase, TestCase

from nimburion import testing
from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import ConfigurationError, InvalidJob
from nimburion.core.job import JobRecord, NewJob
from nimburion.integrations.django import get_processor
from nimburion.integrations.django.django_processor import (
    DjangoProcessor,
    FailedAttempt,
    enqueue_handler_jobs,
    list_waiting_jobs,
)
from nimburion.jobs.client.client import Client
from nimburion.testing.assertions import format_record
from nimburion.testing.clearing import delete_all_jobs
from nimburion.testing.conditions import Condition

__all__ = [
    "FailedAttempt",
    "JobRun",
    "JobsTestMixin",
    "assert_enqueued",
    "assert_not_enqueued",
    "clear_jobs",
    "keep_jobs_in_memory",
    "run_jobs",
]

__unittest = True
"""Frames of this module and those below it are left out of the traceback of a failed assertion."""
_ADVICE = "enqueue inside `with self.captureOnCommitCallbacks(execute=True):`"


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

    In a `TestCase` with `JobsTestMixin`, handlers use the database connections of the test, with
    its open transaction, and the jobs that they enqueue inside `atomic` run too. Elsewhere, they
    see what is committed. `ConfigurationError` is raised where an open transaction hides the jobs,
    and if no job is due but some wait for a commit.
    """
    processor = get_processor()
    processor.follow_settings()
    opened = processor.transactions.find_open()
    if opened is not None and opened.alias == processor.transactions.shared:
        raise ConfigurationError(
            "the jobs are in a database whose transaction is open, so they cannot run: name "
            "JobsTestMixin before TestCase, or use TransactionTestCase; with pytest-django, use "
            "keep_jobs_in_memory() in a fixture, or transactional_db"
        )
    before = {job.id for job in list_waiting_jobs()}
    with processor.collect_failures() as failures, processor.share_connections():
        attempts = async_to_sync(_drain)(processor)
        while enqueue_handler_jobs(before):
            attempts += async_to_sync(_drain)(processor)
    run = JobRun(attempts)
    run.failures = tuple(failures)
    waiting = list_waiting_jobs()
    if waiting and not run:
        names = ", ".join(sorted({repr(job.name) for job in waiting}))
        raise ConfigurationError(
            f"no job is due, and jobs wait for a commit ({names}): name JobsTestMixin before "
            f"TestCase, and {_ADVICE}"
        )
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
        processor.sync.call(delete_all_jobs)


@contextmanager
def keep_jobs_in_memory() -> Iterator[None]:
    """Keep the jobs of the block in memory, as `JobsTestMixin` does in a `TestCase`.

    For the fixture `db` of pytest-django, whose transaction never commits either.
    """
    with get_processor().keep_jobs_in_memory():
        yield


class JobsTestMixin:
    """Each test begins without jobs. Name the mixin before the class of Django.

    - In a `TestCase`, the jobs are in memory during each test. A job that is enqueued inside
      `atomic` is stored when the block commits, so wrap it in
      `self.captureOnCommitCallbacks(execute=True)`. Handlers use the connections of the test.
    - In a `TransactionTestCase`, the jobs are where the settings say. `clear_jobs` deletes those of
      earlier tests.

    ```python
    class OrderTests(JobsTestMixin, TestCase):
        def test_an_order_is_charged(self):
            with self.captureOnCommitCallbacks(execute=True):
                self.client.post("/orders", {"item": "tea"})
            self.assertEnqueued(charge, order=1)
            run_jobs()
            self.assertEqual(Order.objects.get().state, "paid")
    ```
    """

    def __init_subclass__(cls, /, **kwargs: Any) -> None:
        """Raise `TypeError` if Django's class comes first: the mixin would do nothing."""
        super().__init_subclass__(**kwargs)
        first, *_ = (each for each in cls.__mro__ if each in (JobsTestMixin, SimpleTestCase))
        if first is SimpleTestCase:
            bases = [each.__name__ for each in cls.__bases__]
            raise TypeError(
                f"{cls.__name__}({', '.join(bases)}): name JobsTestMixin before the class of "
                "Django, or it does nothing"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (as unittest's)
        """Run one test without the jobs of earlier ones."""
        if isinstance(self, TestCase):
            with keep_jobs_in_memory():
                return super().__call__(*args, **kwargs)  # type: ignore[misc]
        try:
            clear_jobs()
        except ConfigurationError as error:
            return self._fail(error, *args, **kwargs)
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def _fail(self, error: ConfigurationError, result: Any = None) -> Any:  # noqa: ANN401
        """Report the error as that of this test, so that the others run."""
        if result is None:
            raise error
        result.startTest(self)
        result.addError(self, (type(error), error, error.__traceback__))
        result.stopTest(self)
        return result

    def assertEnqueued(self, what: object, /, **fields: object) -> JobRecord:  # noqa: N802
        """Return the newest job that matches; fail with a list of the jobs if there is none.

        The arguments are those of `nimburion.testing.assert_enqueued`.
        """
        return assert_enqueued(what, **fields)

    def assertNotEnqueued(self, what: object, /, **fields: object) -> None:  # noqa: N802
        """Fail, with the newest such job, if a job matches, or will match after the commit.

        Inside `atomic`, the jobs of this block do not count: it may be rolled back.
        """
        assert_not_enqueued(what, **fields)


def assert_enqueued(what: object, /, **fields: object) -> JobRecord:
    """Return the newest job of the project that matches, as `JobsTestMixin.assertEnqueued` does.

    For tests without a test case, such as those of pytest-django.
    """
    _check_fields(fields)
    found: list[JobRecord] = []

    async def find(client: Client) -> None:
        found.append(await testing.assert_enqueued(client, what, **fields))

    try:
        get_processor().sync.call(find)
    except AssertionError as error:
        if _has_waiting_callbacks():
            error.add_note(f"Some callbacks wait for a commit, and may enqueue jobs: {_ADVICE}")
        raise
    return found[0]


def assert_not_enqueued(what: object, /, **fields: object) -> None:
    """Fail if a job of the project matches, as `JobsTestMixin.assertNotEnqueued` does."""
    _check_fields(fields)
    processor = get_processor()
    processor.follow_settings()
    waiting = list_waiting_jobs() if processor.transactions.find_open() is None else []

    async def find(client: Client) -> None:
        await testing.assert_not_enqueued(client, what, **fields)
        await _assert_not_waiting(waiting, Condition(client, what, fields))

    processor.sync.call(find)


def _check_fields(fields: Mapping[str, object]) -> None:
    """Raise `InvalidJob` for an instance of a model: a job has its primary key."""
    for name, value in fields.items():
        if isinstance(value, Model):
            raise InvalidJob(
                f"field {name!r}: a job cannot hold an instance of {type(value).__name__}; "
                f"write `{name}={name}.pk`"
            )


def _has_waiting_callbacks() -> bool:
    """Return whether callbacks wait for the commit of Django's transactions, other than those that
    have stored their jobs already."""
    callbacks = (
        callback
        for each in connections.all(initialized_only=True)
        for _, callback, *_ in each.run_on_commit
    )
    return any(getattr(callback, "waiting", True) for callback in callbacks)


async def _assert_not_waiting(jobs: Sequence[NewJob], condition: Condition) -> None:
    """Raise `AssertionError` if one of these jobs, which wait for a commit, matches."""
    backend = MemoryBackend()
    for job in jobs:
        await backend.producing.enqueue([job])
    record = await condition.find_newest(backend)
    if record is not None:
        raise AssertionError(f"{condition} waits for the commit:\n  {format_record(record)}")


async def _drain(processor: DjangoProcessor) -> int:
    async with processor:
        return await processor.drain()


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
