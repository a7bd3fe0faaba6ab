"""`nimburion worker MODULE:NAME`: run the jobs of an application until a signal stops it."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from nimburion.cli.burst import log_end_of_burst
from nimburion.cli.exit_codes import BadInput
from nimburion.cli.invocation import Invocation, add_shared_options, current_invocation
from nimburion.cli.target import check_backend, export_configuration, find_processor

if TYPE_CHECKING:
    from nimburion.cli.supervisor.messages import WorkerOptions
    from nimburion.cli.supervisor.supervisor import Supervisor
    from nimburion.core.settings import Config, QueueSettings, Settings
    from nimburion.jobs import Processor
    from nimburion.telemetry.logs import LogFormat

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


def _refuse_app(ctx: click.Context, _: click.Parameter, given: str | None) -> None:
    """Say what to write in place of `-A shop`, the option of Celery."""
    if given is not None:
        name = given if ":" in given else f"{given}:processor"
        ctx.fail(f"there is no option -A; write MODULE:NAME, like `nimburion worker {name}`")


@click.command()
@click.argument("target", metavar="MODULE:NAME")
@click.option("-A", "--app", is_eager=True, expose_value=False, hidden=True, callback=_refuse_app)
@click.option("--queues", metavar="A,B", help="Serve only these queues.")
@click.option(
    "--concurrency", type=click.IntRange(1, 10_000), help="How many handlers run at once."
)
@click.option(
    "--processes",
    type=click.IntRange(1, 1_000),
    metavar="N",
    help="Worker processes, each with this concurrency. Default: the setting processes, 1.",
)
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
@click.option("--reload", is_flag=True, help="For development: restart when a source file changes.")
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
    processes: int | None,
    log_level: str,
    log_format: LogFormat | None,
    with_server: bool,
    server_port: int | None,
    reload: bool,
    burst: bool,
    max_jobs: int | None,
    traceback: bool,
) -> None:
    """Run jobs until SIGTERM or Ctrl-C; a second one ends at once.

    NAME is a Processor in MODULE, or a function without arguments that makes one. The working
    directory is searched first. `config.load()` in MODULE uses --config and --backend.
    """
    if server_port is not None and not with_server:
        raise BadInput("--server-port needs --server")
    if with_server and (burst or max_jobs is not None):
        raise BadInput("--burst and --jobs cannot be combined with --server")
    if reload and (burst or max_jobs is not None):
        raise BadInput("--reload cannot be combined with --burst or --jobs")
    invocation = current_invocation()
    config = invocation.load()
    start_logging(log_level, log_format or config.telemetry.log_format)
    export_configuration(invocation)
    processes = processes or config.jobs.processes
    if max_jobs is not None and processes > 1:
        raise BadInput("--jobs counts the jobs of one process; add --processes 1")
    is_endless = not burst and max_jobs is None
    if processes > 1 or reload or (is_endless and config.jobs.worker_recycle.is_set):
        from nimburion.cli.supervisor.messages import WorkerOptions

        own = invocation.reads_application
        options = WorkerOptions(
            target=target,
            processes=processes,
            config_file=invocation.config,
            backend=invocation.backend,
            queues=queues,
            concurrency=concurrency,
            log_level=log_level,
            log_format=log_format or (config.telemetry.log_format if own else None),
            scheduler=config.scheduler if own else None,
            until_empty=burst,
            max_jobs=config.jobs.worker_recycle.jobs if is_endless else None,
            traceback=traceback,
        )
        if with_server:
            config = invocation.load(server=choose_server(server_port))
        run_supervisor(options, config, with_server=with_server, reload=reload)
        return
    processor = load_worker(target, invocation, queues, concurrency, show_traceback=traceback)
    if "NOTIFY_SOCKET" in os.environ:
        report_to_systemd(processor)
    if with_server:
        run_with_server(processor, server_port)
        return
    run_in_this_process(processor, burst=burst, max_jobs=max_jobs)


def choose_server(port: int | None) -> dict[str, Any]:
    """Return the settings of the management server that --server and --server-port set."""
    return {"enabled": True} if port is None else {"enabled": True, "port": port}


def run_supervisor(
    options: WorkerOptions, config: Config, *, with_server: bool, reload: bool
) -> None:
    """Run worker processes until a signal stops them, and exit with the code of the supervisor."""
    from nimburion.backends import open_backend
    from nimburion.cli.supervisor.file_watch import FileWatch
    from nimburion.cli.supervisor.supervisor import Supervisor
    from nimburion.core.settings import Recycle

    settings = config.jobs
    supervisor = Supervisor(
        options,
        Recycle() if options.until_empty else settings.worker_recycle,
        expected_backend=open_backend(settings.url).describe() if with_server else None,
        watch=FileWatch(".", [config.source] if config.source else []) if reload else None,
    )
    running = run_beside_server(config, supervisor) if with_server else supervisor.run()
    sys.exit(asyncio.run(running))


async def run_beside_server(config: Config, supervisor: Supervisor) -> int:
    """Run the management server in the process of the supervisor."""
    from nimburion.server.application import Application

    async with Application(config, workers=supervisor):
        return await supervisor.run()


def load_worker(
    target: str,
    invocation: Invocation,
    queues: str | None,
    concurrency: int | None,
    *,
    show_traceback: bool,
) -> Processor:
    """Import the processor that `target` names, with the options of the command line."""
    processor = find_processor(target, show_traceback=show_traceback)
    check_backend(processor, invocation)
    processor.import_path = processor.import_path or target
    processor.settings = override_settings(processor.settings, queues, concurrency)
    return processor


def run_in_this_process(processor: Processor, *, burst: bool, max_jobs: int | None) -> None:
    """Run the worker in this process until a signal or a condition stops it."""
    from nimburion.jobs.event_loop import find_fast_loop, limit_exit
    from nimburion.scheduler import Scheduler

    Scheduler.configure(processor, current_invocation().load().scheduler)
    with asyncio.Runner(loop_factory=find_fast_loop()) as runner:
        runner.run(serve(processor, burst=burst, max_jobs=max_jobs))
        lift_limit = limit_exit(runner.get_loop())
    if not current_invocation().owns_process:
        lift_limit()


def run_with_server(processor: Processor, port: int | None) -> None:
    """Run worker, scheduler and management server until a signal stops them."""
    from nimburion.server import bootstrap

    application = bootstrap(current_invocation().load(server=choose_server(port)))
    application.set_job_processor(processor)
    application.run(owns_process=current_invocation().owns_process)


async def serve(processor: Processor, *, burst: bool, max_jobs: int | None) -> None:
    """Run the worker until a signal or a condition stops it, then close the backend."""
    async with processor:
        await processor.run(
            owns_process=current_invocation().owns_process, until_empty=burst, max_jobs=max_jobs
        )
        if burst:
            await log_end_of_burst(processor)


def report_to_systemd(processor: Processor) -> None:
    """Report readiness, status and progress of the worker to systemd while it runs.

    Processes that the handlers start do not inherit the socket of systemd.
    """
    from nimburion.cli.systemd import SYSTEMD_VARIABLES, SystemdNotifier

    own = {name: text for name in SYSTEMD_VARIABLES if (text := os.environ.pop(name, None))}
    notifier = SystemdNotifier(processor.clock, processor.health, processor.settings.grace, own)
    processor.add_service(notifier)


def start_logging(level: str, format: LogFormat) -> None:  # noqa: A002 (of the log)
    """Log one line per event on standard error, with the job that it is about."""
    from nimburion.jobs import get_current_context
    from nimburion.telemetry.logs import configure_logging

    configure_logging(format=format, level=level, find_attempt=get_current_context)


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
