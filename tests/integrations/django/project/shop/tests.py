"""What a project relies on; `manage.py test` runs it, on each backend."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
from contextlib import redirect_stdout
from typing import Any

from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import transaction
from django.test import TestCase, TransactionTestCase, override_settings

from nimburion.core.errors import (
    ConfigurationError,
    InvalidJob,
    JobNotFound,
    NotSupported,
    UnusableConnection,
)
from nimburion.integrations.django import get_processor
from nimburion.integrations.django.checks import check_project
from nimburion.integrations.django.testing import run_jobs
from nimburion.jobs import State
from tests.integrations.django.project.shop.jobs import USED, CountUsers, describe, greet, shout

SHARED = not json.loads(os.environ.get("NB_DJANGO_JOBS", "{}"))
"""Whether the jobs live in Django's database."""


def find_state(job_id: str) -> State | None:
    try:
        return get_processor().sync.get_status(job_id).state
    except JobNotFound:
        return None


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


class CheckCases(TestCase):
    def find_ids(self) -> list[str]:
        return [str(message.id) for message in check_project(None)]

    def test_a_wrong_setting_is_an_error_and_django_still_starts(self) -> None:
        settings: list[Any] = [
            {"concurency": 3},
            {"database": "other"},
            {"autodiscover": "jobs"},
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
        self.assertEqual(self.find_ids(), [])


class AdminCases(TransactionTestCase):
    def log_in(self, *permissions: str) -> None:
        user = User.objects.create(username="ann", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        self.client.force_login(user)

    def test_pages_show_jobs_to_those_who_may_see_them(self) -> None:
        job_id = describe.options(queue="admin").enqueue_sync("secret")
        self.log_in("view_storedjob")
        listed = self.client.get("/admin/nimburion/storedjob/?queue=admin&state=pending")
        self.assertContains(listed, job_id)
        self.assertNotContains(self.client.get("/admin/nimburion/storedjob/?queue=none"), job_id)
        shown = self.client.get(f"/admin/nimburion/storedjob/{job_id}/change/")
        self.assertContains(shown, "describe")
        self.assertNotContains(shown, "secret")
        self.assertContains(self.client.get("/admin/nimburion/storedjob/?state=odd"), "no state")
        self.assertEqual(
            self.client.get("/admin/nimburion/storedjob/none/change/").status_code, 404
        )
        self.assertEqual(self.client.get("/admin/nimburion/storedjob/add/").status_code, 403)

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
