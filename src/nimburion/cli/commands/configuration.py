"""`nimburion config …`: check and show the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.output import print_fields, print_result
from nimburion.core.text.redaction import redact_url

if TYPE_CHECKING:
    from nimburion.core.settings import Config, TaskSettings
    from nimburion.jobs import Processor


@click.group("config")
def configuration() -> None:
    """Check and show the configuration."""


@configuration.command("check")
@add_shared_options
def check() -> None:
    """Read the configuration and find its backend, without opening it; exit code 2 if it is
    wrong."""
    from nimburion.backends import open_backend
    from nimburion.jobs import Processor

    config = current_invocation().load()
    backend = open_backend(config.jobs.url)
    check_tasks(config, Processor(backend, config.jobs))
    described = backend.describe()
    data = {"ok": True, "source": config.source, "backend": described}
    print_result(data, lambda: print_check(config, described))


def check_tasks(config: Config, processor: Processor) -> None:
    """Validate the expressions and time zones of the configured schedules. Raises
    `DefinitionError`."""
    from nimburion.scheduler import Scheduler

    Scheduler.from_config(processor, config)


def print_check(config: Config, backend: str) -> None:
    """Print the configuration file and the backend."""
    click.echo("the configuration is valid")
    print_fields({"file": config.source or "none: defaults and environment", "backend": backend})


@configuration.command("show")
@add_shared_options
def show_settings() -> None:
    """Show the current value of every setting; passwords are left out."""
    config = current_invocation().load()
    data: dict[str, object] = msgspec.to_builtins(config.jobs)
    data["url"] = redact_url(config.jobs.url)
    scheduler: dict[str, object] = msgspec.to_builtins(config.scheduler)
    scheduler["tasks"] = [task_to_data(task) for task in config.scheduler.tasks]
    server: dict[str, object] = msgspec.to_builtins(config.server)
    telemetry: dict[str, object] = msgspec.to_builtins(config.telemetry)
    sections = {"jobs": data, "scheduler": scheduler, "server": server, "telemetry": telemetry}
    print_result({"source": config.source, **sections}, lambda: print_settings(config, sections))


def task_to_data(task: TaskSettings) -> dict[str, object]:
    """Return a task as data in the form of the configuration file."""
    data: dict[str, object] = msgspec.to_builtins(task)
    del data["place"]
    return data


def print_settings(config: Config, sections: dict[str, dict[str, object]]) -> None:
    """Print one line per setting."""
    click.echo(f"file: {config.source or 'none: defaults and environment'}")
    flat: dict[str, object] = {}
    for section, data in sections.items():
        for key, value in data.items():
            inner = value if isinstance(value, dict) else {"": value}
            for name, item in inner.items():
                shown = "none" if item is None else item
                flat[f"{section}.{key}.{name}".rstrip(".")] = shown
    print_fields(flat)
