"""Jobs that live elsewhere commit with the rows of the project; `manage.py test` runs it."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection, transaction
from django.test import TransactionTestCase, override_settings

from nimburion.core.errors import BackendUnavailable, NotSupported
from nimburion.integrations.django import get_processor
from nimburion.integrations.django.checks import check_project
from nimburion.integrations.django.models import OutboxRow
from nimburion.integrations.django.testing import run_jobs
from tests.integrations.django.project.shop.jobs import describe


class OutboxTests(TransactionTestCase):
    def test_the_job_is_a_row_of_the_transaction(self) -> None:
        processor = get_processor()
        with transaction.atomic():
            User.objects.create_user("ann")
            job_id = describe.enqueue_sync("ann")
            self.assertEqual(OutboxRow.objects.get().job_id, job_id)
        self.assertEqual(processor.sync.get_status(job_id).state, "pending")
        self.assertEqual(run_jobs(), 1)
        self.assertEqual(processor.sync.wait(job_id), "<ann>")
        self.assertEqual(OutboxRow.objects.count(), 0)

    def test_a_process_that_starts_while_the_backend_is_away_enqueues(self) -> None:
        setting = {"url": "redis://127.0.0.1:1", "outbox": True}
        with override_settings(NIMBURION=setting):
            with transaction.atomic():
                describe.enqueue_sync("tea")
            with transaction.atomic():
                job_id = describe.enqueue_sync("cake")
            with self.assertRaises(BackendUnavailable):
                get_processor().sync.get_status(job_id)
        self.assertEqual(OutboxRow.objects.count(), 2)
        self.assertEqual(run_jobs(), 2)

    def test_a_rollback_drops_the_job(self) -> None:
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            describe.enqueue_sync("tea")
            raise ZeroDivisionError
        self.assertEqual(OutboxRow.objects.count(), 0)
        self.assertEqual(run_jobs(), 0)

    def test_a_savepoint_drops_its_job(self) -> None:
        with transaction.atomic():
            describe.enqueue_sync("tea")
            with self.assertRaises(ZeroDivisionError), transaction.atomic():
                describe.enqueue_sync("cake")
                raise ZeroDivisionError
        self.assertEqual(OutboxRow.objects.count(), 1)
        self.assertEqual(run_jobs(), 1)

    def test_outside_of_a_transaction_the_job_is_enqueued_at_once(self) -> None:
        describe.enqueue_sync("tea")
        self.assertEqual(OutboxRow.objects.count(), 0)
        self.assertEqual(run_jobs(), 1)

    def test_the_connection_may_be_named(self) -> None:
        with transaction.atomic():
            get_processor().sync.enqueue(describe.job("tea"), connection=connection)
        self.assertEqual(run_jobs(), 1)

    def test_enqueue_or_get_is_refused(self) -> None:
        with transaction.atomic(), self.assertRaises(NotSupported):
            get_processor().sync.enqueue_or_get(describe.job("tea"))

    def test_doctor_shows_the_lag(self) -> None:
        with transaction.atomic():
            describe.enqueue_sync("tea")
        written: Any = io.StringIO()
        with redirect_stdout(written):
            call_command("nimburion", "doctor")
        self.assertRegex(written.getvalue(), r"good +outbox +1 job waits, the oldest for \d+ s")
        self.assertEqual(run_jobs(), 1)

    def test_a_wrong_setting_is_reported(self) -> None:
        with override_settings(NIMBURION={"outbox": "yes"}):
            (error,) = check_project(None)
        self.assertIn('NIMBURION["outbox"]: expected True or False', error.msg)

    def test_the_migrations_are_those_of_the_models(self) -> None:
        written: Any = io.StringIO()
        call_command("makemigrations", "nimburion", check=True, dry_run=True, stdout=written)
        self.assertIn("No changes", written.getvalue())
