"""Register the model `StoredJob`, which has no table."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Creates no table: the model is unmanaged."""

    initial = True
    dependencies = []  # noqa: RUF012
    operations = [  # noqa: RUF012
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
