"""Add the permission to see the stacks of running jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from django.db import migrations
from django.db.migrations.operations.base import Operation


class Migration(migrations.Migration):
    """Changes no table: the model is unmanaged."""

    dependencies: ClassVar[Sequence[tuple[str, str]]] = [("nimburion", "0003_outbox")]
    operations: ClassVar[Sequence[Operation]] = [
        migrations.AlterModelOptions(
            name="storedjob",
            options={
                "managed": False,
                "verbose_name": "job",
                "default_permissions": ("view",),
                "permissions": (
                    ("view_arguments", "Can view arguments, results and errors of jobs"),
                    ("view_stacks", "Can view the stacks of running jobs"),
                    ("operate_jobs", "Can pause, cancel and replay jobs"),
                    ("administer_jobs", "Can add jobs and schedules, and delete them for good"),
                ),
            },
        ),
    ]
