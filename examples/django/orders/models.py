"""Orders."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """An order of one item."""

    item: models.CharField[str, str] = models.CharField(max_length=100)
    confirmed: models.BooleanField[bool, bool] = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"{self.pk}: {self.item}"
