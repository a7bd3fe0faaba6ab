"""The models `StoredJob`, which has no table, and `OutboxRow`, the table of the outbox."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class StoredJob(models.Model):
    """A job as the admin shows it. Its rows come from the backend, not from a table."""

    id: models.CharField[str, str] = models.CharField(primary_key=True, max_length=128)

    class Meta:
        """No table, and the permissions of the admin and of the dashboard."""

        managed = False
        verbose_name = "job"
        app_label = "nimburion"
        default_permissions: ClassVar[tuple[str, ...]] = ("view",)
        permissions: ClassVar[tuple[tuple[str, str], ...]] = (
            ("view_arguments", "Can view arguments, results and errors of jobs"),
            ("view_stacks", "Can view the stacks of running jobs"),
            ("operate_jobs", "Can pause, cancel and replay jobs"),
            ("administer_jobs", "Can add jobs and schedules, and delete them for good"),
        )

    def __str__(self) -> str:
        return str(self.id)


class OutboxRow(models.Model):
    """A job that waits for the commit of a transaction, and then for its relay to the backend.

    `nimburion.jobs.outbox` writes and reads the table, without this model.
    """

    position: models.BigAutoField[int, int] = models.BigAutoField(primary_key=True)
    job_id: models.CharField[str, str] = models.CharField(max_length=128)
    name: models.CharField[str, str] = models.CharField(max_length=128)
    created_at: models.FloatField[float, float] = models.FloatField()
    job: models.BinaryField[bytes, bytes] = models.BinaryField()

    class Meta:
        """The table that `Outbox` expects. No permission refers to it."""

        db_table = "nimburion_outbox"
        app_label = "nimburion"
        default_permissions: ClassVar[tuple[str, ...]] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.job_id}"
