"""System checks of the app: `manage.py check` runs them, and so does `manage.py nimburion worker`.

- `nimburion.E001`: the setting `NIMBURION` is wrong, or the driver of the backend is missing.
- `nimburion.E002`: completed tasks would lose their arguments.
- `nimburion.W001`: a SQLite database begins its transactions without the lock for writing.
- `nimburion.W002`: the jobs are in the memory of one process.
- `nimburion.W003`: connections that live long are used without a health check.
- `nimburion.W004`: workers do not serve a queue of `TASKS`.
- `nimburion.W005`: a schedule of the settings names a job that no app declares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error, register
from django.db import connections

from nimburion.backends import open_backend
from nimburion.core.errors import ConfigurationError
from nimburion.core.text.suggestions import find_nearest
from nimburion.integrations.django import get_processor
from nimburion.integrations.django.databases import find_shared_database
from nimburion.integrations.django.project_settings import (
    SETTING,
    ProjectSettings,
    read_project_settings,
)


@register("nimburion")
def check_project(
    app_configs: Sequence[AppConfig] | None,  # noqa: ARG001 (Django names it)
    **_: Any,
) -> list[CheckMessage]:
    """Check the setting `NIMBURION` and the databases that it leads to."""
    project = read_project_settings()
    errors = list(project.errors)
    if not errors:
        try:
            open_backend(project.config.jobs.url)
        except ConfigurationError as error:
            errors.append(error)
    if errors:
        return [
            Error(str(error), obj=f"settings.{SETTING}", id="nimburion.E001") for error in errors
        ]
    return [
        *_check_database(project),
        *_check_memory(project),
        *_check_loss(project),
        *_check_tasks(project),
        *_check_schedules(project),
    ]


def _check_database(project: ProjectSettings) -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    alias = find_shared_database(project.config.jobs.url)
    if alias is not None and connections[alias].vendor == "sqlite":
        mode = (connections[alias].settings_dict.get("OPTIONS") or {}).get("transaction_mode")
        if str(mode).upper() not in {"IMMEDIATE", "EXCLUSIVE"}:
            messages.append(
                checks.Warning(
                    f"The database {alias!r} also holds the jobs, and begins its transactions "
                    "without the lock for writing.",
                    hint="A transaction that reads before it writes then fails with “database is "
                    f'locked” while a worker writes. Set DATABASES["{alias}"]["OPTIONS"] = '
                    '{"transaction_mode": "IMMEDIATE"}.',
                    id="nimburion.W001",
                )
            )
    for name in connections:
        options = connections[name].settings_dict
        if options.get("CONN_MAX_AGE") != 0 and not options.get("CONN_HEALTH_CHECKS"):
            messages.append(
                checks.Warning(
                    f"The connections of the database {name!r} live longer than one job, and are "
                    "used without a health check.",
                    hint="After a restart of the server, a job of each thread fails once. Set "
                    f'DATABASES["{name}"]["CONN_HEALTH_CHECKS"] = True.',
                    id="nimburion.W003",
                )
            )
    return messages


def _check_memory(project: ProjectSettings) -> list[CheckMessage]:
    written = getattr(settings, SETTING, {})
    if project.config.jobs.url.startswith("memory:") and "url" in written and not settings.DEBUG:
        return [
            checks.Warning(
                "The jobs are in the memory of one process: no worker sees them, and they are lost "
                "when it ends.",
                hint=f"Name a durable backend in {SETTING}; memory:// is for tests.",
                id="nimburion.W002",
            )
        ]
    return []


def _check_loss(project: ProjectSettings) -> list[CheckMessage]:
    """Check that a job that is enqueued in a transaction cannot be lost, unless that is wanted."""
    jobs = project.config.jobs
    if (
        jobs.url.startswith("memory:")
        or "outbox" in getattr(settings, SETTING, {})
        or find_shared_database(jobs.url) is not None
    ):
        return []
    return [
        checks.Warning(
            "Jobs that are enqueued inside `atomic` are stored after the commit: a process that "
            "dies between the two loses them.",
            hint=f'Set {SETTING}["outbox"] = True, or False to accept this.',
            obj=f"settings.{SETTING}",
            id="nimburion.W006",
        )
    ]


def _check_tasks(project: ProjectSettings) -> list[CheckMessage]:
    """Check the settings that tasks depend on; without tasks there is nothing to check."""
    messages: list[CheckMessage] = []
    jobs, processor = project.config.jobs, get_processor()
    if not processor.tasks:
        return messages
    forgetful = [queue.name for queue in jobs.queues if queue.keep_arguments == "no"]
    if jobs.keep_arguments == "no" or processor.task_queues.intersection(forgetful):
        messages.append(
            Error(
                "Completed tasks lose their arguments, which their results show.",
                hint=f'Remove "keep_arguments": "no" from {SETTING}.',
                obj=f"settings.{SETTING}",
                id="nimburion.E002",
            )
        )
    unserved = processor.task_queues.difference(queue.name for queue in jobs.queues)
    if jobs.queues and unserved:
        messages.append(
            checks.Warning(
                f"Workers do not serve these queues of TASKS: {', '.join(sorted(unserved))}.",
                hint=f'Add them to {SETTING}["queues"], or run a worker with --queues.',
                obj=f"settings.{SETTING}",
                id="nimburion.W004",
            )
        )
    return messages


def _check_schedules(project: ProjectSettings) -> list[CheckMessage]:
    """Check that the schedules of the settings name jobs that the apps declare."""
    known = get_processor().registry.names
    return [
        checks.Warning(
            f"The schedule {task.name!r} fires the job {task.job_name!r}, which no app declares.",
            hint=(f"Did you mean {near!r}? " if near else "")
            + "Correct `job_name`, or declare the job in a module that is imported at the start: "
            + " or ".join(f"{module}.py" for module in project.modules)
            + ".",
            obj=f"settings.{SETTING}",
            id="nimburion.W005",
        )
        for task in project.config.scheduler.tasks
        if task.job_name not in known
        for near in [find_nearest(task.job_name, known)]
    ]
