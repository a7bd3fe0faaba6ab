"""Schedules of the configuration: `scheduler.tasks`."""

from __future__ import annotations

import json
from typing import cast

from nimburion.core.errors import DefinitionError, InvalidJob
from nimburion.core.job import NewJob
from nimburion.core.limits import check_name
from nimburion.core.reading import Overlap
from nimburion.core.settings import TaskSettings
from nimburion.jobs.client import Client
from nimburion.jobs.codec import check_size
from nimburion.scheduler.declaring import Declared, checked, spec_from
from nimburion.scheduler.spec import Misfire


def declared_task(client: Client, task: TaskSettings, timezone: str) -> Declared:
    """A task as a schedule. `DefinitionError` names the task and what cannot be."""
    try:
        job = raw_job(client, task.job_name, task.queue, task.payload, task.priority)
        spec = spec_from(
            task.cron,
            timezone,
            job,
            timezone=task.timezone,
            misfire=cast("Misfire", task.misfire_policy),
            overlap=cast("Overlap", task.overlap),
            enabled=task.enabled,
        )
        return Declared(checked(task.name), spec)
    except (DefinitionError, InvalidJob) as error:
        where = f"{task.place}: " if task.place else ""
        raise DefinitionError(f"{where}scheduler task {task.name!r}: {error}") from error


def raw_job(client: Client, name: str, queue: str, payload: str, priority: int) -> NewJob:
    """A job by name, where its class or function is not at hand; `InvalidJob`."""
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise InvalidJob(f"the payload is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidJob('the payload must be a JSON object, like {"to": "a@example.com"}')
    if priority not in range(10):
        raise InvalidJob(f"priority must be from 0 to 9, not {priority!r}")
    encoded = payload.encode()
    check_size(name, encoded, client.settings.limits)
    return NewJob("-", check_name("job name", name), check_name("queue", queue), encoded, priority)
