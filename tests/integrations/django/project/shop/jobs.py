"""Each way to declare a job in a Django project."""

from __future__ import annotations

import asyncio
from typing import Any

from django.contrib.auth.models import User
from django.db import connections, transaction

from nimburion.integrations.django import processor
from nimburion.jobs import Context, Job, job

USED: list[Any] = []
"""The connections that handlers have used."""


class Base(Job):
    """The base of job classes: not a job that could be registered."""


class CountUsers(Base, queue="reports"):
    async def process(self, ctx: Context[Any]) -> int:
        return await User.objects.acount()


@job
def shout(word: str) -> str:
    return word.upper()


@processor.job
def describe(word: str) -> str:
    return f"<{word}>"


@processor.job(queue="mail", max_retries=2)
def greet(name: str) -> str:
    """Return a greeting, and note the connection of this thread."""
    USED.append(connections["default"])
    assert User.objects.filter(username=name).exists()
    return f"hello {name}"


@processor.job
def create_user(name: str) -> None:
    User.objects.create(username=name)


@processor.job
def enqueue_in_atomic(word: str) -> None:
    with transaction.atomic():
        describe.enqueue_sync(word)


class TeaIsOut(Exception):
    """Raised by `order_tea`."""


@processor.job(max_retries=1, retry_backoff=60)
def order_tea(kind: str) -> str:
    if kind == "green":
        raise TeaIsOut(kind)
    return kind


@processor.job(timeout=0.05)
async def wait_forever() -> None:
    await asyncio.Event().wait()
