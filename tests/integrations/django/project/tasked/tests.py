"""What Django's own tests of tasks leave open: workers, retries, order, results that end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from unittest import mock, skipUnless

from django.db import transaction
from django.tasks import TaskResultStatus, default_task_backend, task_backends
from django.tasks.exceptions import InvalidTask, InvalidTaskBackend, TaskResultDoesNotExist
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.test import TransactionTestCase, override_settings

from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import DuplicateJob
from nimburion.core.paging import change_matching
from nimburion.core.queries import JobFilter
from nimburion.integrations.django import get_processor
from nimburion.integrations.django.checks import check_project
from nimburion.integrations.django.task_backend import NimburionBackend, StoredTaskError
from nimburion.integrations.django.testing import run_jobs
from nimburion.jobs.client.client import Client
from tests.integrations.django.project.tasked.tasks import (
    HAS_OPTIONS_OF_TASKS,
    add,
    fail_once,
    fail_once_by_option,
    leave,
    report,
    tell_attempt,
    wait_for,
)


async def delete_all(client: Client) -> None:
    for record in (await client.backend.reads.list_jobs(limit=1_000)).jobs:
        await client.cancel(record.id)
    await change_matching(client.backend, BulkAction.DELETE, JobFilter(), 1_000)


async def delete_job(client: Client, job_id: str) -> None:
    await change_matching(client.backend, BulkAction.DELETE, JobFilter(ids=(job_id,)), 1)


class TaskCases(TransactionTestCase):
    def setUp(self) -> None:
        get_processor().sync.call(delete_all)

    def test_a_result_has_arguments_times_and_workers_after_the_end(self) -> None:
        result = add.enqueue(1, right=2)
        self.assertEqual(result.status, TaskResultStatus.READY)
        self.assertEqual(default_task_backend.get_result(result.id), result)
        run_jobs()
        result.refresh()
        self.assertEqual((result.return_value, result.args, result.kwargs), (3, [1], {"right": 2}))
        self.assertEqual((result.attempts, len(set(result.worker_ids))), (1, 1))
        times = [result.started_at, result.last_attempted_at, result.finished_at]
        self.assertEqual(times, sorted(filter(None, times)))

    def test_an_async_task_and_async_calls(self) -> None:
        async def enqueue() -> str:
            return (await wait_for.aenqueue("tea")).id

        async def read(result_id: str) -> Any:
            return (await wait_for.aget_result(result_id)).return_value

        result_id = asyncio.run(enqueue())
        run_jobs()
        self.assertEqual(asyncio.run(read(result_id)), "waited for tea")

    def test_the_order_is_priority_then_run_after_then_enqueue(self) -> None:
        past = datetime.now(UTC) - timedelta(hours=1)
        tasks = [
            ("low", add.using(priority=-100)),
            ("zero", add),
            ("one", add.using(priority=1)),
            ("two", add.using(priority=2)),
            ("earlier", add.using(priority=2, run_after=past)),
            ("high", add.using(priority=100)),
            ("zero again", add),
        ]
        names = {task.enqueue(1, 1).id: name for name, task in tasks}
        ran: list[str] = []

        def note(task_result: Any, **_: object) -> None:
            ran.append(names[task_result.id])

        task_started.connect(note, weak=False)
        self.addCleanup(task_started.disconnect, note)
        run_jobs()
        self.assertEqual(ran, ["high", "earlier", "two", "one", "zero", "zero again", "low"])

    def test_run_after_is_kept_in_any_zone(self) -> None:
        later = datetime.now(timezone(timedelta(hours=-9))) + timedelta(hours=2)
        result = add.using(run_after=later).enqueue(1, 1)
        self.assertEqual(run_jobs(), 0)
        again = add.get_result(result.id)
        self.assertEqual((again.status, again.task.run_after), (TaskResultStatus.READY, later))
        self.assertEqual(again, result)

    def test_queues_of_the_settings_are_served(self) -> None:
        declared, chosen = report.enqueue(2026), report.using(queue_name="other").enqueue(2027)
        self.assertEqual(run_jobs(), 2)
        self.assertEqual(report.get_result(declared.id).return_value, "report of 2026")
        self.assertEqual(report.get_result(chosen.id).task.queue_name, "other")
        with self.assertRaisesMessage(InvalidTask, "'odd' is not valid"):
            report.using(queue_name="odd")

    def test_system_exit_fails_the_task_and_not_the_worker(self) -> None:
        left, following = leave.enqueue(3), add.enqueue(1, 1)
        self.assertEqual(run_jobs(raise_failures=False), 2)
        left.refresh()
        self.assertEqual(left.status, TaskResultStatus.FAILED)
        self.assertIs(left.errors[0].exception_class, SystemExit)
        self.assertEqual(add.get_result(following.id).return_value, 2)

    def test_a_retry_is_another_attempt(self) -> None:
        for retried in (fail_once, fail_once_by_option):
            result: Any = retried.enqueue()
            run_jobs(raise_failures=False)
            result.refresh()
            self.assertEqual((result.return_value, result.attempts), (2, 2))
            self.assertIs(result.errors[0].exception_class, LookupError)
            self.assertGreater(result.last_attempted_at, result.started_at)

    def test_the_context_names_attempt_and_worker(self) -> None:
        result = tell_attempt.enqueue()
        run_jobs()
        result.refresh()
        self.assertEqual(result.return_value, [1, result.worker_ids[0], "RUNNING"])

    def test_signals_name_the_backend(self) -> None:
        heard: list[tuple[str, object]] = []
        for name, signal in (
            ("enqueued", task_enqueued),
            ("started", task_started),
            ("finished", task_finished),
        ):

            def note(sender: object, name: str = name, **_: object) -> None:
                heard.append((name, sender))

            signal.connect(note, weak=False)
            self.addCleanup(signal.disconnect, note)
        add.enqueue(1, 1)
        run_jobs()
        self.assertEqual(
            heard, [(name, NimburionBackend) for name in ("enqueued", "started", "finished")]
        )

    def test_a_cancelled_task_has_failed(self) -> None:
        result = add.enqueue(1, 1)
        get_processor().sync.cancel(result.id)
        result.refresh()
        self.assertEqual(result.status, TaskResultStatus.FAILED)
        self.assertEqual(result.errors[0].exception_class.__name__, "Cancel")

    def test_results_that_do_not_exist(self) -> None:
        gone = add.enqueue(1, 1)
        run_jobs()
        get_processor().sync.call(delete_job, gone.id)
        other_kind = get_processor().sync.enqueue_raw("no_task", {})
        for result_id in (gone.id, other_kind, "never", "not an id"):
            with self.subTest(result_id), self.assertRaises(TaskResultDoesNotExist):
                default_task_backend.get_result(result_id)
        unknown = add.enqueue(1, 1)
        with (
            mock.patch.dict(get_processor().tasks, clear=True),
            self.assertRaises(TaskResultDoesNotExist),
        ):
            default_task_backend.get_result(unknown.id)
        with self.assertRaises(TaskResultDoesNotExist):
            task_backends["second"].get_result(unknown.id)

    def test_a_rollback_leaves_no_task(self) -> None:
        ids: list[str] = []
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            ids.append(add.enqueue(1, 1).id)
            raise ZeroDivisionError
        with self.assertRaises(TaskResultDoesNotExist):
            default_task_backend.get_result(ids[0])

    @skipUnless(HAS_OPTIONS_OF_TASKS, "Django 6.0 has no options of tasks")
    def test_a_unique_key_holds_until_the_end(self) -> None:
        held: Any = add
        first = held.using(unique_key="sum").enqueue(1, 1)
        with self.assertRaises(DuplicateJob):
            held.using(unique_key="sum").enqueue(2, 2)
        run_jobs()
        self.assertNotEqual(held.using(unique_key="sum").enqueue(1, 1).id, first.id)

    def test_no_module_is_imported_for_an_error(self) -> None:
        error = StoredTaskError(exception_class_path="xmlrpc.client.Fault", traceback="")
        with self.assertRaises(ImportError):
            _ = error.exception_class

    def test_wrong_options_are_refused(self) -> None:
        backend = "nimburion.integrations.django.task_backend.NimburionBackend"
        for options in ({"retries": 3}, {"max_retries": -1}):
            wrong = {"default": {"BACKEND": backend, "OPTIONS": options}}
            with (
                self.subTest(options),
                override_settings(TASKS=wrong),
                self.assertRaisesMessage(InvalidTaskBackend, "OPTIONS"),
            ):
                _ = task_backends["default"]

    def test_settings_that_do_not_fit_tasks_are_reported(self) -> None:
        for setting, found in (
            ({"keep_arguments": "no"}, "nimburion.E002"),
            ({"queues": [{"name": "default"}]}, "nimburion.W004"),
        ):
            with self.subTest(setting), override_settings(NIMBURION=setting):
                self.assertEqual([message.id for message in check_project(None)], [found])

    def test_every_flag_is_set(self) -> None:
        flags = ("defer", "async_task", "get_result", "priority")
        self.assertTrue(all(getattr(default_task_backend, f"supports_{flag}") for flag in flags))
