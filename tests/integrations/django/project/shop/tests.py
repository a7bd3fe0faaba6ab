"""What a project relies on; `manage.py test` runs it, on each backend."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import threading
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from html import unescape
from typing import TYPE_CHECKING, Any
from unittest import TestResult, mock

from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.core.management.base import CommandError, OutputWrapper
from django.db import connection, transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase, override_settings

from nimburion.core.errors import (
    ConfigurationError,
    InvalidJob,
    JobNotFound,
    NotSupported,
    UnusableConnection,
)
from nimburion.core.job import State
from nimburion.integrations.django import get_processor
from nimburion.integrations.django.checks import check_project
from nimburion.integrations.django.management.commands.nimburion import Command
from nimburion.integrations.django.testing import JobsTestMixin, clear_jobs, run_jobs
from nimburion.jobs.client.client import Client
from tests.integrations.django.project.shop.jobs import (
    USED,
    CountUsers,
    TeaIsOut,
    create_user,
    describe,
    enqueue_in_atomic,
    greet,
    order_tea,
    shout,
    wait_forever,
)

SHARED = not json.loads(os.environ.get("NB_DJANGO_JOBS", "{}"))
"""Whether the jobs live in Django's database."""


FORM = "application/x-www-form-urlencoded"
CLEARABLE = override_settings() if SHARED else override_settings(NIMBURION={"url": "memory://"})
"""Jobs in a place that tests may clear."""


def find_state(job_id: str) -> State | None:
    try:
        return get_processor().sync.get_status(job_id).state
    except JobNotFound:
        return None


async def count_enqueued(client: Client) -> int:
    """Write the statistics, and return how many jobs this process has counted."""
    statistics = client._statistics
    assert statistics.writer is not None
    await statistics.writer.tick()
    return sum(lane.enqueued for lane in statistics.jobs.list_lanes())


class TransactionCases(TransactionTestCase):
    def test_a_job_exists_when_its_transaction_has_committed(self) -> None:
        with transaction.atomic():
            User.objects.create(username="ann")
            job_id = greet.enqueue_sync("ann")
            self.assertIsNone(find_state(job_id))
        self.assertEqual(find_state(job_id), State.PENDING)
        run_jobs()
        status = get_processor().sync.get_status(job_id)
        self.assertEqual((status.state, status.result), ("completed", "hello ann"))

    def test_a_missing_time_is_refused_in_async_code(self) -> None:
        missing: Any = None
        before = get_processor().sync.pending_count()
        for enqueue in (get_processor().enqueue_at, get_processor().enqueue_after):
            with self.assertRaisesMessage(InvalidJob, "not None"):
                asyncio.run(enqueue(greet.job("ann"), missing))
        self.assertEqual(get_processor().sync.pending_count(), before)

    def test_django_closes_the_connection_of_a_handler(self) -> None:
        """It does so at once, unless `CONN_MAX_AGE` says otherwise."""
        User.objects.create(username="ann")
        greet.enqueue_sync("ann")
        USED.clear()
        run_jobs()
        keeps = transaction.get_connection().settings_dict["CONN_MAX_AGE"] is None
        self.assertEqual([used.connection is None for used in USED], [not keeps])

    def test_a_rollback_leaves_no_job(self) -> None:
        ids = []
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            ids.append(greet.enqueue_sync("ann"))
            ids += get_processor().sync.enqueue_many([describe.job("a"), describe.job("b")])
            raise ZeroDivisionError
        with transaction.atomic():
            with self.assertRaises(ZeroDivisionError), transaction.atomic():
                ids.append(greet.enqueue_sync("bob"))
                raise ZeroDivisionError
            kept = describe.enqueue_sync("kept")
        self.assertEqual([find_state(job_id) for job_id in ids], [None] * 4)
        self.assertEqual(find_state(kept), State.PENDING)

    def test_statistics_count_jobs_at_the_commit(self) -> None:
        describe.enqueue_sync("first")
        before = get_processor().sync.call(count_enqueued)
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            describe.enqueue_sync("rolled back")
            raise ZeroDivisionError
        with transaction.atomic():
            describe.enqueue_sync("committed")
        after = get_processor().sync.call(count_enqueued)
        self.assertEqual(after - before, 1)

    def test_an_invalid_job_is_refused_inside_the_transaction(self) -> None:
        with transaction.atomic(), self.assertRaises(InvalidJob):
            get_processor().sync.enqueue(greet.job(["no text"]))  # type: ignore[arg-type]

    def test_a_delay_counts_from_the_enqueue(self) -> None:
        with transaction.atomic():
            job_id = describe.options(after=3600).enqueue_sync("later")
        status = get_processor().sync.get_status(job_id)
        self.assertEqual(status.state, State.SCHEDULED)
        self.assertAlmostEqual((status.due - status.created_at).total_seconds(), 3600, delta=60)

    def test_what_a_late_enqueue_cannot_answer(self) -> None:
        with transaction.atomic():
            if SHARED:
                self.assertTrue(get_processor().sync.enqueue_or_get(describe.job("a")).created)
            else:
                with self.assertRaisesMessage(NotSupported, "transaction.on_commit"):
                    get_processor().sync.enqueue_or_get(describe.job("a"))

    def test_without_a_transaction_a_job_is_stored_at_once(self) -> None:
        self.assertEqual(find_state(describe.enqueue_sync("now")), State.PENDING)
        with self.assertRaises(UnusableConnection if SHARED else NotSupported):
            describe.options(connection=transaction.get_connection()).enqueue_sync("now")

    def test_async_code_on_one_event_loop_after_the_other(self) -> None:
        async def enqueue() -> State:
            job_id = await get_processor().enqueue(CountUsers())
            return (await get_processor().get_status(job_id)).state

        self.assertEqual([asyncio.run(enqueue()) for _ in range(2)], [State.PENDING] * 2)

    def test_an_async_handler_uses_the_database(self) -> None:
        User.objects.create(username="ann")
        ids = get_processor().sync.enqueue_many([CountUsers(), shout.job("a")])
        run_jobs()
        results = [get_processor().sync.get_status(job_id).result for job_id in ids]
        self.assertEqual(results, [1, "A"])


class MoveCases(TransactionTestCase):
    def test_the_teardown_of_the_database_is_changed_once_however_often_settings_change(
        self,
    ) -> None:
        processor = get_processor()
        destroyers = set()
        for _ in range(3):
            processor.mark_stale()
            processor.follow_settings()
            destroyers.add(connection.creation.destroy_test_db)
        self.assertEqual(len(destroyers), 1)

    def test_an_outbox_with_jobs_in_memory_is_none(self) -> None:
        processor = get_processor()
        for url, has_outbox in (("redis://nowhere.invalid", True), ("memory://", False)):
            with override_settings(NIMBURION={"url": url, "outbox": True}):
                processor.follow_settings()
                self.assertEqual(processor.outbox is not None, has_outbox)


class RequestCases(TransactionTestCase):
    def test_jobs_take_the_id_and_the_trace_of_the_request(self) -> None:
        parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        headers = {"X-Request-ID": "req-7", "traceparent": parent}
        for path in ("/orders/tea", "/async-orders/tea"):
            job_id = self.client.get(path, headers=headers).content.decode()
            status = get_processor().sync.get_status(job_id)
            self.assertEqual(status.correlation_id, "req-7")
            self.assertEqual(status.headers, {"traceparent": parent})
        asynchronous = asyncio.run(self.async_client.get("/async-orders/tea", headers=headers))
        status = get_processor().sync.get_status(asynchronous.content.decode())
        self.assertEqual(status.correlation_id, "req-7")
        status = get_processor().sync.get_status(self.client.get(path).content.decode())
        self.assertEqual((status.correlation_id, status.headers), (None, {}))


@CLEARABLE
class RunJobsCases(JobsTestMixin, TransactionTestCase):
    def test_the_error_of_a_failed_job_is_raised_when_all_jobs_have_run(self) -> None:
        jobs = [order_tea.job(kind) for kind in ("green", "black", "green")]
        ids = get_processor().sync.enqueue_many(jobs)
        with self.assertRaises(TeaIsOut) as caught:
            run_jobs()
        failed = [f"job 'order_tea' ({ids[number]}) failed in attempt 1" for number in (0, 2)]
        self.assertEqual(caught.exception.__notes__, failed)
        self.assertEqual(
            [find_state(job_id) for job_id in ids],
            [State.RETRYING, State.COMPLETED, State.RETRYING],
        )

    def test_failures_are_collected_on_request(self) -> None:
        job_id = order_tea.enqueue_sync("green")
        wait_forever.enqueue_sync()
        run = run_jobs(raise_failures=False)
        self.assertEqual(run, 2)
        first, second = run.failures
        self.assertEqual((first.job_id, first.attempt), (job_id, 1))
        self.assertIsInstance(first.exception, TeaIsOut)
        self.assertEqual((second.name, second.error.kind), ("wait_forever", "timeout"))
        self.assertEqual(run_jobs(raise_failures=False).failures, ())
        wait_forever.enqueue_sync()
        with self.assertRaisesMessage(AssertionError, "Timeout: did not end within 0.05 s"):
            run_jobs()


@CLEARABLE
class ClearJobsCases(JobsTestMixin, TransactionTestCase):
    """Each test leaves a job with the same unique key, which no other test sees."""

    def check_leave_jobs(self) -> None:
        self.assertEqual(get_processor().sync.pending_count(), 0)
        order_tea.options(unique_key="tea").enqueue_sync("black")
        run_jobs()
        order_tea.options(after=60).enqueue_sync("black")
        get_processor().sync.call(pause_queue, "default")

    def test_one_test_leaves_jobs(self) -> None:
        self.check_leave_jobs()

    def test_another_test_leaves_jobs(self) -> None:
        self.check_leave_jobs()


if TYPE_CHECKING:

    class AnyTestCase(JobsTestMixin, TestCase):
        pass
else:
    AnyTestCase = JobsTestMixin


class SharedCases(AnyTestCase):
    """What holds both in a `TestCase`, which never commits, and in a `TransactionTestCase`."""

    def commit(self) -> AbstractContextManager[object]:
        """Return a block whose jobs are stored at its end."""
        return nullcontext()

    def test_jobs_run_and_handlers_share_the_rows_of_the_test(self) -> None:
        User.objects.create(username="ann")
        ids = [greet.enqueue_sync("ann"), get_processor().sync.enqueue(CountUsers())]
        ids.append(create_user.enqueue_sync("bob"))
        self.assertEqual(run_jobs(), 3)
        self.assertEqual(get_processor().sync.wait_all(ids), ["hello ann", 1, None])
        self.assertTrue(User.objects.filter(username="bob").exists())

    def test_a_job_is_stored_with_the_rows_of_its_block(self) -> None:
        with self.commit(), transaction.atomic():
            User.objects.create(username="ann")
            greet.enqueue_sync("ann")
            self.assertNotEnqueued(greet)
        self.assertEqual(self.assertEnqueued(greet, name="ann").queue, "mail")
        self.assertEqual(run_jobs(), 1)

    def test_a_rollback_leaves_no_job(self) -> None:
        with self.commit():
            with self.assertRaises(ZeroDivisionError), transaction.atomic():
                greet.enqueue_sync("ann")
                raise ZeroDivisionError
            with transaction.atomic():
                describe.enqueue_sync("kept")
        self.assertNotEnqueued(greet)
        self.assertEnqueued(describe, word="kept")

    def test_many_jobs_and_a_delay(self) -> None:
        with self.commit(), transaction.atomic():
            get_processor().sync.enqueue_many([describe.job("a"), describe.job("b")])
            describe.options(after=3600).enqueue_sync("later")
        self.assertEqual(run_jobs(), 2)
        self.assertEnqueued(describe, word="later")

    def test_a_request_enqueues(self) -> None:
        with self.commit():
            job_id = self.client.get("/orders/tea").content.decode()
        self.assertEqual(self.assertEnqueued(describe, word="tea").id, job_id)
        run_jobs()
        self.assertEqual(get_processor().sync.get_status(job_id).result, "<tea>")

    def test_a_retry_can_be_run_at_once(self) -> None:
        job_id = order_tea.enqueue_sync("green")
        run_jobs(raise_failures=False)
        self.assertEqual(run_jobs(), 0)
        get_processor().sync.run_now(job_id)
        self.assertEqual(run_jobs(raise_failures=False).failures[0].attempt, 2)

    def test_jobs_that_handlers_enqueue_run_too(self) -> None:
        enqueue_in_atomic.enqueue_sync("a")
        self.assertEqual(run_jobs(), 2)
        self.assertEqual(self.assertEnqueued(describe).state, State.COMPLETED)

    def test_a_model_is_no_argument_of_a_job(self) -> None:
        user = User.objects.create(username="ann")
        greet.enqueue_sync("ann")
        for check in (self.assertEnqueued, self.assertNotEnqueued):
            with self.assertRaisesMessage(InvalidJob, "write `name=name.pk`"):
                check(greet, name=user)

    def test_a_failure_is_raised_and_the_job_is_retried(self) -> None:
        job_id = order_tea.enqueue_sync("green")
        with self.assertRaises(TeaIsOut):
            run_jobs()
        self.assertEqual(find_state(job_id), State.RETRYING)

    def check_starts_without_jobs(self) -> None:
        self.assertEqual(get_processor().sync.pending_count(), 0)
        clear_jobs()
        order_tea.options(unique_key="tea").enqueue_sync("black")

    def test_one_starts_without_jobs(self) -> None:
        self.check_starts_without_jobs()

    def test_another_starts_without_jobs(self) -> None:
        self.check_starts_without_jobs()

    def test_a_misspelt_condition_is_an_error(self) -> None:
        message = "job 'order_tea' has no field 'kinds'; did you mean 'kind'?"
        for check in (self.assertEnqueued, self.assertNotEnqueued):
            with self.assertRaisesMessage(InvalidJob, message):
                check(order_tea, kinds="black")
        with self.assertRaisesMessage(InvalidJob, "did you mean 'order_tea'?"):
            self.assertNotEnqueued("oder_tea")


@CLEARABLE
class SharedTransactionTestCases(SharedCases, TransactionTestCase):
    pass


class SharedTestCases(SharedCases, TestCase):
    def commit(self) -> AbstractContextManager[object]:
        return self.captureOnCommitCallbacks(execute=True)


class TestCaseCases(JobsTestMixin, TestCase):
    """The transaction of these tests never commits."""

    def test_a_job_is_stored_when_the_block_commits(self) -> None:
        with self.captureOnCommitCallbacks(execute=True) as callbacks, transaction.atomic():
            order_tea.enqueue_sync("black")
            self.assertNotEnqueued(order_tea)
        self.assertEqual(len(callbacks), 1)
        self.assertEnqueued(order_tea, kind="black")
        self.assertEqual(self.assertEnqueued("order_tea").queue, "default")
        self.assertEqual(run_jobs(), 1)

    def test_a_job_of_a_rolled_back_block_does_not_exist(self) -> None:
        with (
            self.captureOnCommitCallbacks(execute=True),
            self.assertRaises(TeaIsOut),
            transaction.atomic(),
        ):
            order_tea.enqueue_sync("black")
            raise TeaIsOut
        self.assertNotEnqueued(order_tea)

    def test_callbacks_that_have_run_are_not_named(self) -> None:
        with self.captureOnCommitCallbacks(execute=True), transaction.atomic():
            order_tea.enqueue_sync("black")
        with self.assertRaisesMessage(AssertionError, "newest first, there are:") as caught:
            self.assertEnqueued(order_tea, kind="green")
        self.assertFalse(hasattr(caught.exception, "__notes__"))

    def test_a_failed_assertion_says_that_callbacks_wait(self) -> None:
        with transaction.atomic():
            order_tea.enqueue_sync("black")
        with self.assertRaisesMessage(AssertionError, "no job 'order_tea' was enqueued") as caught:
            self.assertEnqueued(order_tea)
        self.assertIn("captureOnCommitCallbacks(execute=True)", caught.exception.__notes__[0])

    def test_a_job_that_waits_for_the_commit_of_the_test_counts_as_enqueued(self) -> None:
        with transaction.atomic():
            order_tea.enqueue_sync("black")
        with self.assertRaisesMessage(AssertionError, "'black' waits for the commit:\n  order_tea"):
            self.assertNotEnqueued(order_tea, kind="black")
        self.assertNotEnqueued(order_tea, kind="green")
        self.assertNotEnqueued(describe)

    def test_jobs_that_wait_for_a_commit_cannot_run(self) -> None:
        with transaction.atomic():
            order_tea.enqueue_sync("black")
        with self.assertRaisesMessage(ConfigurationError, "captureOnCommitCallbacks") as caught:
            run_jobs()
        self.assertIn("jobs wait for a commit ('order_tea')", str(caught.exception))

    def test_the_mixin_must_come_before_the_class_of_django(self) -> None:
        with self.assertRaisesMessage(TypeError, "Wrong(TestCase, JobsTestMixin): name JobsTestM"):
            type("Wrong", (TestCase, JobsTestMixin), {})


class PlainTestCaseCases(TestCase):
    @override_settings(NIMBURION={"url": "memory://"})
    def test_jobs_that_wait_for_a_commit_cannot_run(self) -> None:
        order_tea.enqueue_sync("black")
        with self.assertRaisesMessage(ConfigurationError, "name JobsTestMixin before TestCase"):
            run_jobs()

    def test_jobs_that_an_open_transaction_hides_are_an_error(self) -> None:
        if not SHARED or get_processor().transactions.shared is None:
            self.skipTest("the jobs are not in Django's database")
        with self.assertRaisesMessage(ConfigurationError, "name JobsTestMixin before TestCase"):
            run_jobs()


async def pause_queue(client: Client, queue: str) -> None:
    await client.backend.maintenance.pause_queue(queue, paused=True)


class ClearJobsElsewhereCases(TransactionTestCase):
    def test_jobs_that_other_programs_may_use_are_never_deleted(self) -> None:
        with (
            override_settings(NIMBURION={"url": "sqlite:////tmp/no-test.db"}),
            self.assertRaisesMessage(ConfigurationError, "no test database"),
        ):
            clear_jobs()

    def test_a_test_that_would_delete_them_fails_and_the_others_run(self) -> None:
        case = SharedTransactionTestCases("test_a_request_enqueues")
        result = TestResult()
        with override_settings(NIMBURION={"url": "sqlite:////tmp/no-test.db"}):
            case(result)
        self.assertEqual((result.testsRun, len(result.errors)), (1, 1))


class WorkerCases(TransactionTestCase):
    def test_a_worker_goes_on_when_the_server_ends_all_connections(self) -> None:
        User.objects.create(username="ann")
        processor = get_processor()
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(processor.start(), loop).result(20)
            for _ in range(3):
                job_id = greet.enqueue_sync("ann")
                self.assertEqual(processor.sync.wait(job_id, timeout=20), "hello ann")
                status = processor.sync.get_status(job_id)
                self.assertEqual((status.failures, status.lost), (0, 0))
                cut_other_connections()
        finally:
            asyncio.run_coroutine_threadsafe(processor.close(), loop).result(20)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


def cut_other_connections() -> None:
    """End all connections to the database but this one; they are a server's."""
    if transaction.get_connection().vendor == "postgresql":
        with transaction.get_connection().cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert cursor.fetchone()[0] > 0


class JobsInATestCase(TestCase):
    def test_callbacks_of_the_commit_enqueue(self) -> None:
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            job_id = describe.enqueue_sync("now")
        self.assertEqual(len(callbacks), 0 if SHARED else 1)
        if not SHARED:
            self.assertEqual(find_state(job_id), State.PENDING)


class CommandCases(TransactionTestCase):
    def test_commands_use_the_settings_of_the_project(self) -> None:
        job_id = describe.options(queue="odd").enqueue_sync("now")
        written = io.StringIO()
        with redirect_stdout(written):
            call_command("nimburion", "jobs", "list", "--queue", "odd", "--json")
        self.assertIn(job_id, written.getvalue())
        with self.assertRaises(CommandError) as caught:
            call_command("nimburion", "status", "no-such-job")
        self.assertEqual(caught.exception.returncode, 4)

    def test_an_enqueue_is_checked_and_does_what_the_job_declares(self) -> None:
        written = io.StringIO()
        with redirect_stdout(written), redirect_stderr(io.StringIO()) as printed:
            call_command("nimburion", "enqueue", "greet", "--args", '{"name": "ann"}')
        job_id = written.getvalue().strip()
        self.assertEqual(get_processor().sync.get_status(job_id).queue, "mail")
        self.assertIn("1 job 'greet' waits in queue 'mail'", printed.getvalue())
        for wrong in (("gret",), ("greet", "--args", '{"name": 5}')):
            with redirect_stderr(io.StringIO()), self.assertRaises(CommandError) as caught:
                call_command("nimburion", "enqueue", *wrong)
            self.assertEqual(caught.exception.returncode, 2)


class CommandLineCases(SimpleTestCase):
    """Calls that need no database: such cases take a hundredth of the time."""

    def run_command(self, *arguments: str) -> tuple[str, str]:
        """Run `manage.py nimburion` with arguments that end the process; return what it prints."""
        command, written, errors = Command(), io.StringIO(), io.StringIO()
        command.stderr = OutputWrapper(errors)
        with redirect_stdout(written), redirect_stderr(errors), self.assertRaises(SystemExit):
            command.run_from_argv(["manage.py", "nimburion", *arguments])
        return written.getvalue(), errors.getvalue()

    def test_a_wrong_setting_is_one_line(self) -> None:
        with override_settings(NIMBURION={"concurency": 3}):
            line = "NIMBURION: concurency: no such setting; did you mean concurrency?\n"
            self.assertEqual(self.run_command("worker"), ("", f"CommandError: {line}"))
            self.assertEqual(self.run_command("queues", "list"), ("", f"nimburion: {line}"))

    def test_the_worker_of_a_project_takes_no_name_of_a_processor(self) -> None:
        text, _ = self.run_command("worker", "--help")
        self.assertIn("manage.py nimburion worker", text)
        self.assertIn("--autoreload", text)
        self.assertNotIn("MODULE", text + self.run_command("--help")[0])

    def test_the_worker_logs_a_record_of_django_once(self) -> None:
        logger = logging.getLogger("django")
        before = list(logger.handlers)
        self.addCleanup(setattr, logger, "handlers", before)
        with redirect_stdout(io.StringIO()), self.assertRaises(SystemExit):
            Command().run_worker(["--help"])
        kept = [each for each in before if type(each) is not logging.StreamHandler]
        self.assertLess(len(kept), len(before))
        self.assertEqual(logger.handlers, kept)

    def test_a_missing_app_is_named(self) -> None:
        with (
            self.modify_settings(INSTALLED_APPS={"remove": ["nimburion.integrations.django"]}),
            self.assertRaisesMessage(ConfigurationError, "to INSTALLED_APPS in the settings"),
        ):
            get_processor()


class CheckCases(TestCase):
    def find_ids(self) -> list[str]:
        return [str(message.id) for message in check_project(None)]

    def test_all_errors_are_reported_at_once(self) -> None:
        wrong = {
            "concurency": 3,
            "database": "x",
            "keep_completed": "soon",
            "scheduler": {"timezone": "Mars", "tasks": []},
        }
        with override_settings(NIMBURION=wrong):
            messages = [message.msg for message in check_project(None)]
        self.assertEqual(len(messages), 4)
        for key, message in zip(
            ("database", "concurency", "keep_completed", "scheduler.timezone"),
            messages,
            strict=True,
        ):
            self.assertIn(key, message)

    def test_a_wrong_environment_variable_is_one_error(self) -> None:
        with (
            override_settings(NIMBURION={"concurrency": 3, "keep_completed": "1d"}),
            mock.patch.dict(os.environ, NIMBURION_JOBS__GRACE="soon"),
        ):
            self.assertEqual(self.find_ids(), ["nimburion.E001"])

    def test_a_schedule_of_an_unknown_job_is_a_warning(self) -> None:
        tasks = [
            {"name": name, "cron": "@daily", "job_name": name} for name in ("describe", "descirbe")
        ]
        with override_settings(NIMBURION={"scheduler": {"tasks": tasks}}):
            messages = [each for each in check_project(None) if each.id == "nimburion.W005"]
        self.assertEqual(
            [str(message.hint)[:24] for message in messages], ["Did you mean 'describe'?"]
        )

    def test_a_wrong_setting_is_an_error_and_django_still_starts(self) -> None:
        settings: list[Any] = [
            {"concurency": 3},
            {"database": "other"},
            {"autodiscover": "jobs"},
            {"url": "redis://localhost", "outbox_url": "sqlite:///outbox.db"},
            [],
        ]
        for wrong in settings:
            with self.subTest(wrong), override_settings(NIMBURION=wrong):
                self.assertEqual(self.find_ids(), ["nimburion.E001"])
                with self.assertRaisesMessage(ConfigurationError, "NIMBURION"):
                    describe.enqueue_sync("now")

    def test_jobs_in_memory_are_a_warning(self) -> None:
        with override_settings(NIMBURION={"url": "memory://"}):
            self.assertIn("nimburion.W002", self.find_ids())

    def test_a_sound_project_has_no_message(self) -> None:
        self.assertEqual(self.find_ids(), [] if SHARED else ["nimburion.W006"])

    def test_jobs_that_a_crash_can_lose_are_a_warning(self) -> None:
        url = "redis://localhost"
        with override_settings(NIMBURION={"url": url}):
            self.assertEqual(self.find_ids(), ["nimburion.W006"])
        for outbox in (True, False):
            with override_settings(NIMBURION={"url": url, "outbox": outbox}):
                self.assertEqual(self.find_ids(), [])


class AdminCases(TransactionTestCase):
    def log_in(self, *permissions: str) -> None:
        user = User.objects.create(username="ann", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        self.client.force_login(user)

    def test_pages_show_jobs_to_those_who_may_see_them(self) -> None:
        job_id = describe.options(queue="admin").enqueue_sync("secret")
        self.log_in("view_storedjob")
        self.assertContains(self.list_jobs("queue:admin state:pending"), job_id)
        self.assertNotContains(self.list_jobs("queue:none"), job_id)
        shown = self.client.get(f"/admin/nimburion/storedjob/{job_id}/change/")
        self.assertContains(shown, "describe")
        self.assertContains(shown, f'href="/jobs/dashboard/jobs/{job_id}"')
        self.assertNotContains(shown, "secret")
        self.assertEqual(
            self.client.get("/admin/nimburion/storedjob/none/change/").status_code, 404
        )
        self.assertEqual(self.client.get("/admin/nimburion/storedjob/add/").status_code, 403)
        for page in ("history", "delete"):
            answer = self.client.get(f"/admin/nimburion/storedjob/{job_id}/{page}/")
            self.assertEqual(answer.status_code, 404, page)

    def test_a_search_finds_jobs_by_id_and_by_qualifiers(self) -> None:
        describe.enqueue_sync("other")
        job_id = describe.options(tags=("urgent",)).enqueue_sync("searched")
        self.log_in("view_storedjob")
        for text in (job_id, "tag:urgent", "name:describe tag:urgent created:1h"):
            listed = self.list_jobs(text)
            self.assertContains(listed, "describe</td>", 1, msg_prefix=text)
            self.assertContains(listed, job_id)
        self.assertContains(self.list_jobs("tga:urgent"), "did you mean")
        self.assertContains(self.list_jobs("state:odd"), "no state")

    def test_a_link_narrows_a_search_to_one_state(self) -> None:
        self.log_in("view_storedjob")
        listed = self.list_jobs("tag:urgent state:failed")
        self.assertContains(listed, 'href="?q=tag%3Aurgent+state%3Apending"')
        self.assertContains(listed, 'href="?q=tag%3Aurgent">All')
        self.assertContains(listed, '<span aria-current="true">Failed</span>')

    def test_older_jobs_have_a_page_of_their_own(self) -> None:
        ids = get_processor().sync.enqueue_many([describe.job("many")] * 51)
        self.log_in("view_storedjob")
        newest = self.list_jobs("queue:default name:describe")
        self.assertNotContains(newest, ids[0])
        (address,) = re.findall(r'href="(\S+)">Older jobs', newest.content.decode())
        older = self.client.get(f"/admin/nimburion/storedjob/{unescape(address)}")
        self.assertContains(older, ids[0])

    def list_jobs(self, text: str) -> Any:
        return self.client.get("/admin/nimburion/storedjob/", {"q": text})

    def test_breadcrumbs_follow_the_version_of_django(self) -> None:
        """Django 6.1 has a list, and styles no other element."""
        job_id = describe.enqueue_sync("shown")
        self.log_in("view_storedjob")
        breadcrumbs = []
        for page in ("nimburion/", "nimburion/storedjob/", f"nimburion/storedjob/{job_id}/change/"):
            shown = self.client.get(f"/admin/{page}").content.decode()
            breadcrumbs.append(re.findall(r'<(\w+) class="breadcrumbs">', shown))
        self.assertEqual(breadcrumbs, [breadcrumbs[0]] * 3)

    def test_arguments_need_a_permission_of_their_own(self) -> None:
        job_id = describe.options(queue="admin").enqueue_sync("secret")
        self.log_in("view_storedjob", "view_arguments")
        self.assertContains(
            self.client.get(f"/admin/nimburion/storedjob/{job_id}/change/"), "secret"
        )

    def test_others_see_nothing(self) -> None:
        self.log_in()
        self.assertEqual(self.client.get("/admin/nimburion/storedjob/").status_code, 403)
        self.assertEqual(self.client.get("/admin/nimburion/storedjob/x/change/").status_code, 403)


class DashboardCases(TransactionTestCase):
    def log_in(self, *permissions: str, staff: bool = True) -> None:
        user = User.objects.create(username="ann@example.com", is_staff=staff)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        self.client.force_login(user)

    def pause(self, queue: str, **headers: str) -> int:
        path = f"/jobs/dashboard/queues/{queue}/pause"
        return self.client.post(path, "reason=deploy", FORM, headers=headers).status_code

    def test_staff_see_the_pages_below_the_prefix(self) -> None:
        job_id = describe.options(queue="board").enqueue_sync("secret")
        self.log_in("view_storedjob")
        self.assertEqual(self.client.get("/jobs/")["Location"], "/jobs/dashboard")
        self.assertContains(self.client.get("/jobs/dashboard?x=1"), "parameter", status_code=422)
        shown = self.client.get("/jobs/dashboard/queues/board")
        self.assertContains(shown, 'href="/jobs/dashboard/queues"')
        self.assertContains(shown, 'data-poll="1.0"')
        self.assertIn("default-src 'none'", shown["Content-Security-Policy"])
        fragment = self.client.get(f"/jobs/dashboard/jobs/{job_id}?format=fragment")
        self.assertContains(fragment, "describe")
        self.assertNotContains(fragment, "secret")
        read = self.client.get("/jobs/dashboard/jobs", {"q": "queue:board", "format": "json"})
        self.assertEqual(read["Content-Type"], "application/json")
        self.assertIn(job_id, read.content.decode())

    def test_a_change_needs_its_permission_and_a_page_of_this_site(self) -> None:
        describe.options(queue="board").enqueue_sync("secret")
        own = {"sec-fetch-site": "same-origin"}
        self.log_in("view_storedjob")
        self.assertEqual(self.pause("board", **own), 403)
        self.client.logout()
        User.objects.all().delete()
        self.log_in("view_storedjob", "operate_jobs")
        self.assertEqual(self.pause("board"), 403)
        self.assertEqual(self.pause("board", **{"sec-fetch-site": "cross-site"}), 403)
        self.assertEqual(self.pause("board", **own), 303)
        records = self.client.get("/jobs/dashboard/audit?format=json").json()["records"]
        record = records[0]["record"]
        self.assertEqual((record["by"], record["target"]), ("ann@example.com", "board"))
        self.assertEqual(record["origin"], "dashboard")

    def test_others_sign_in_or_see_nothing(self) -> None:
        shown = self.client.get("/jobs/dashboard/queues?sort=name")
        sign_in = "/admin/login/?next=/jobs/dashboard/queues%3Fsort%3Dname"
        self.assertRedirects(shown, sign_in, fetch_redirect_response=False)
        self.assertEqual(self.client.get("/jobs/dashboard?format=fragment").status_code, 403)
        own = {"sec-fetch-site": "same-origin"}
        self.assertEqual(self.pause("board", **own), 403)
        self.log_in("view_storedjob", "operate_jobs", staff=False)
        self.assertEqual(self.client.get("/jobs/dashboard").status_code, 403)
        self.assertEqual(self.pause("board", **own), 403)

    def test_superusers_have_all_rights(self) -> None:
        self.client.force_login(User.objects.create_superuser("root"))
        self.assertContains(self.client.get("/jobs/dashboard"), "admin, operate, payloads, read")
