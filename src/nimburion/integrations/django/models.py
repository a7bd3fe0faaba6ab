"""The model `StoredJob`. It has no table, and gives the admin its pages, and permissions."""

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
            ("operate_jobs", "Can pause, cancel and replay jobs"),
            ("administer_jobs", "Can add jobs and schedules, and delete them for good"),
        )

    def __str__(self) -> str:
        return str(self.id)
