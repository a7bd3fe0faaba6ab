"""Create the table of the outbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from django.db import migrations, models
from django.db.migrations.operations.base import Operation


class Migration(migrations.Migration):
    """The table stays empty unless the setting `NIMBURION` has `outbox`."""

    dependencies: ClassVar[Sequence[tuple[str, str]]] = [("nimburion", "0002_permissions")]
    operations: ClassVar[Sequence[Operation]] = [
        migrations.CreateModel(
            name="OutboxRow",
            fields=[
                ("position", models.BigAutoField(primary_key=True, serialize=False)),
                ("job_id", models.CharField(max_length=128)),
                ("name", models.CharField(max_length=128)),
                ("created_at", models.FloatField()),
                ("job", models.BinaryField()),
            ],
            options={"db_table": "nimburion_outbox", "default_permissions": ()},
        ),
    ]
