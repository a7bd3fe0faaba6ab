"""`nimburion worker MODULE:NAME`: run the jobs of an application until a signal stops it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import click

from nimburion.cli.exit_codes import BadInput
from nimburion.cli.invocation import Invocation, add_shared_options, current_invocation
from nimburion.cli.target import find_processor

if TYPE_CHECKING:
    from nimburion.core.settings import QueueSettings, Settings
    from nimburion.jobs import Processor
    from nimburion.telemetry.logs import LogFormat

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


@click.command()
@click.argument("target", metavar="MODULE:NAME")
@click.option("--queues", metavar="A,B", help="Serve only these queues.")
@click.option("--concurrency", type=click.IntRange(1, 10_000), help="Handlers at once.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
@click.option(
    "--log-format", type=click.Choice(FORMATS), help="Default: the setting telemetry.log_format."
)
@click.option(
    "--server",
    "with_server",
    is_flag=True,
    help="Run the management server too: health checks, metrics and JSON API.",
)
@click.option(
    "--server-port",
    type=click.IntRange(0, 65_535),
    metavar="PORT",
    help="The port of --server, instead of the configured one; 0: any free port.",
)
@click.option("--burst", is_flag=True, help="Stop when no job is due that this worker may run.")
@click.option(
    "--jobs",
    "max_jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Stop after N jobs.",
)
@click.option("--traceback", is_flag=True, help="Show where MODULE fails when it is imported.")
@add_shared_options
def worker(
    *,
    target: str,
    queues: str | None,
    concurrency: int | None,
    log_level: str,
    log_format: LogFormat | None,
    with_server: bool,
    server_port: int | None,
    burst: bool,
    max_jobs: int | None,
    traceback: bool,
) -> None:
    """Run jobs until SIGTERM or Ctrl-C; a second one ends at once.

    NAME is a Processor in MODULE, or a function without arguments that makes one. The working
    directory is searched first. `config.load()` in MODULE uses --config and --backend.
    """
    from nimburion.jobs.event_loop import find_fast_loop
    from nimburion.scheduler import Scheduler

    if server_port is not None and not with_server:
        raise BadInput("--server-port needs --server")
    if with_server and (burst or max_jobs is not None):
        raise BadInput("--burst and --jobs cannot be combined with --server")
    start_logging(log_level, log_format or current_invocation().load().telemetry.log_format)
    export_configuration(current_invocation())
    processor = find_processor(target, show_traceback=traceback)
    check_backend(processor, current_invocation())
    processor.import_path = processor.import_path or target
    processor.settings = override_settings(processor.settings, queues, concurrency)
    if "NOTIFY_SOCKET" in os.environ:
        report_to_systemd(processor)
    if with_server:
        run_with_server(processor, server_port)
        return
    Scheduler.configure(processor, current_invocation().load().scheduler)
    with asyncio.Runner(loop_factory=find_fast_loop()) as runner:
        runner.run(serve(processor, burst=burst, max_jobs=max_jobs))


def run_with_server(processor: Processor, port: int | None) -> None:
    """Run worker, scheduler and management server until a signal stops them."""
    from nimburion.server import bootstrap

    chosen: dict[str, Any] = {} if port is None else {"port": port}
    application = bootstrap(current_invocation().load(server={**chosen, "enabled": True}))
    application.set_job_processor(processor)
    application.run()


async def serve(processor: Processor, *, burst: bool, max_jobs: int | None) -> None:
    """Run the worker until a signal or a condition stops it, then close the backend."""
    async with processor:
        await processor.run(owns_process=True, until_empty=burst, max_jobs=max_jobs)


def report_to_systemd(processor: Processor) -> None:
    """Report readiness, status and progress of the worker to systemd while it runs."""
    from nimburion.cli.systemd import SystemdNotifier

    notifier = SystemdNotifier(processor.clock, processor.health, processor.settings.grace)
    processor.add_service(notifier)


def start_logging(level: str, format: LogFormat) -> None:  # noqa: A002 (of the log)
    """Log one line per event on standard error, with the job that it is about."""
    from nimburion.jobs import get_current_context
    from nimburion.telemetry.logs import configure_logging

    configure_logging(format=format, level=level, find_attempt=get_current_context)


def export_configuration(invocation: Invocation) -> None:
    """Pass `--config` and `--backend` to `config.load()` in the application's module by
    environment variables."""
    if invocation.config is not None:
        os.environ["NIMBURION_CONFIG"] = os.path.abspath(invocation.config)  # noqa: PTH100
    if invocation.backend is not None:
        os.environ["NIMBURION_JOBS__URL"] = invocation.backend


def check_backend(processor: Processor, invocation: Invocation) -> None:
    """Raise `BadInput` if the application opens a backend other than `--backend`: the option
    would be ignored silently."""
    if invocation.backend is None:
        return
    from nimburion.backends import open_backend

    wanted = open_backend(invocation.load().jobs.url).describe()
    actual = processor.backend.describe()
    if wanted != actual:
        raise BadInput(f"the processor opens its own backend ({actual}); leave out --backend")


def override_settings(settings: Settings, queues: str | None, concurrency: int | None) -> Settings:
    """Return the settings with the queues and the concurrency of the command line."""
    import msgspec

    if queues is not None:
        settings = msgspec.structs.replace(settings, queues=select_queues(settings, queues))
    if concurrency is not None:
        settings = msgspec.structs.replace(settings, concurrency=concurrency)
    return settings


def select_queues(settings: Settings, queues: str) -> tuple[QueueSettings, ...]:
    """Return the named queues, each with its configured priority and concurrency."""
    from nimburion.core.settings import QueueSettings
    from nimburion.core.size_limits import check_name

    configured = {queue.name: queue for queue in settings.queues}
    names = dict.fromkeys(check_name("queue", name.strip()) for name in queues.split(","))
    return tuple(configured.get(name, QueueSettings(name)) for name in names)
