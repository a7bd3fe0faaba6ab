"""Tasks of Django 6."""

from __future__ import annotations

import sys
from typing import Any

from django.tasks import TaskContext, task


@task
def add(left: int, right: int) -> int:
    return left + right


@task
async def wait_for(word: str) -> str:
    return f"waited for {word}"


@task(queue_name="reports", priority=7)
def report(year: int) -> str:
    return f"report of {year}"


@task
def leave(code: int) -> None:
    sys.exit(code)


@task(takes_context=True)
def tell_attempt(context: TaskContext[Any, Any]) -> list[Any]:
    result = context.task_result
    return [context.attempt, result.worker_ids[-1], str(result.status)]


def succeed_later(context: TaskContext[Any, Any]) -> int:
    if context.attempt == 1:
        raise LookupError("the first time")
    return context.attempt


# The stubs of Django do not know the options of other task classes.
_task_with_policy: Any = task
fail_once = _task_with_policy(takes_context=True, max_retries=2, retry_backoff=0)(succeed_later)
