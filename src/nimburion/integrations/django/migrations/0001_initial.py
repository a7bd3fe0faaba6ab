"""Register the model `StoredJob`, which has no table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from django.db import migrations, models
from django.db.migrations.operations.base import Operation


class Migration(migrations.Migration):
    """Creates no table: the model is unmanaged."""

    initial: ClassVar[bool | None] = True
    dependencies: ClassVar[Sequence[tuple[str, str]]] = []
    operations: ClassVar[Sequence[Operation]] = [
        migrations.CreateModel(
            name="StoredJob",
            fields=[
                ("id", models.CharField(max_length=128, primary_key=True, serialize=False)),
            ],
            options={
                "managed": False,
                "verbose_name": "job",
                "default_permissions": ("view",),
                "permissions": (
                    ("view_arguments", "Can view arguments, results and errors of jobs"),
                ),
            },
        ),
    ]
