"""Our backend in the places of Django's two: with the additions that their tests use."""

from __future__ import annotations

import asyncio
from typing import Any

from django.tasks import TaskResult

from nimburion.core.bulk_operations import BulkAction
from nimburion.core.paging import change_matching
from nimburion.core.queries import JobFilter
from nimburion.integrations.django import get_processor
from nimburion.integrations.django.task_backend import NimburionBackend
from nimburion.integrations.django.testing import run_jobs
from nimburion.jobs.client.client import Client


class DummyBackend(NimburionBackend):
    """Enqueues only; `results` and `clear` are those of Django's dummy backend."""

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self.results: list[TaskResult[..., Any]] = []

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        result: Any = super().enqueue(task, args, kwargs)
        self.results.append(result)
        return result

    async def aenqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        result: Any = await super().aenqueue(task, args, kwargs)
        self.results.append(result)
        return result

    def clear(self) -> None:
        """Delete the jobs that this backend has enqueued."""
        get_processor().sync.call(delete_jobs, tuple(result.id for result in self.results))
        self.results.clear()


async def delete_jobs(client: Client, ids: tuple[str, ...]) -> None:
    """Cancel and delete jobs."""
    for job_id in ids:
        await client.cancel(job_id)
    await change_matching(client.backend, BulkAction.DELETE, JobFilter(ids=ids), len(ids) + 1)


class ImmediateBackend(NimburionBackend):
    """Runs a task as a worker does, before `enqueue` returns its result."""

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        result: Any = super().enqueue(task, args, kwargs)
        run_jobs(raise_failures=False)
        result.refresh()
        return result

    async def aenqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        result: Any = await super().aenqueue(task, args, kwargs)
        await asyncio.to_thread(run_jobs, raise_failures=False)
        await result.arefresh()
        return result
