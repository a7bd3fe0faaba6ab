"""Tasks of Django 6."""

from __future__ import annotations

import sys
from typing import Any

import django
from django.tasks import Task, TaskContext, task


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


@task(takes_context=True, backend="retrying")
def fail_once(context: TaskContext[Any, Any]) -> int:
    if context.attempt == 1:
        raise LookupError("the first time")
    return context.attempt


def succeed_later(context: TaskContext[Any, Any]) -> int:
    return fail_once.func(context)


HAS_OPTIONS_OF_TASKS = django.VERSION >= (6, 1)
"""Whether `@task` takes the options of a task class. The stubs of Django do not know them."""
_task_with_options: Any = task
fail_once_by_option: Task[..., int] = (
    _task_with_options(takes_context=True, max_retries=2, retry_backoff=0)(succeed_later)
    if HAS_OPTIONS_OF_TASKS
    else fail_once
)
