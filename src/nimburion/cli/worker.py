"""`nimburion worker MODULE:NAME`: run the jobs of an application until told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from nimburion.cli.exit_codes import BadInput
from nimburion.cli.invocation import Invocation, add_shared_options, current_invocation
from nimburion.cli.output import escape_controls, escape_lines
from nimburion.cli.target import find_processor

if TYPE_CHECKING:
    from nimburion.core.settings import QueueSettings, Settings
    from nimburion.jobs import Processor

LEVELS = ("debug", "info", "warning", "error")


@click.command()
@click.argument("target", metavar="MODULE:NAME")
@click.option("--queues", metavar="A,B", help="Serve only these queues.")
@click.option("--concurrency", type=click.IntRange(1, 10_000), help="Handlers at once.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
@click.option("--traceback", is_flag=True, help="Show where MODULE fails when it is imported.")
@add_shared_options
def worker(
    *, target: str, queues: str | None, concurrency: int | None, log_level: str, traceback: bool
) -> None:
    """Run jobs until SIGTERM or Ctrl-C; a second one ends at once.

    NAME is a Processor in MODULE, or a function without arguments that makes one. The working
    directory is looked in first. --config and --backend are what `config.load()` in MODULE sees.
    """
    start_logging(log_level)
    export_configuration(current_invocation())
    processor = find_processor(target, show_traceback=traceback)
    check_store(processor, current_invocation())
    add_scheduler(processor, current_invocation())
    processor.settings = override_settings(processor.settings, queues, concurrency)
    loop_factory = find_fast_loop()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(processor))


async def serve(processor: Processor) -> None:
    """Run until told to stop, then close the backend."""
    async with processor:
        await processor.run(owns_process=True)


def start_logging(level: str) -> None:
    """One line an event on standard error; whoever runs us keeps the time, we say it too."""
    handler = logging.StreamHandler()
    handler.setFormatter(CleanFormatter("%(asctime)s %(levelname)-7s %(name)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


class CleanFormatter(logging.Formatter):
    """Writes out what would steer a terminal; line breaks only in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        # The whole, as another handler may have formatted the traceback before and left it there.
        return escape_lines(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        return escape_controls(super().formatMessage(record))


def export_configuration(invocation: Invocation) -> None:
    """Let `config.load()` in the application's module see `--config` and `--backend`."""
    if invocation.config is not None:
        os.environ["NIMBURION_CONFIG"] = os.path.abspath(invocation.config)  # noqa: PTH100
    if invocation.backend is not None:
        os.environ["NIMBURION_JOBS__URL"] = invocation.backend


def check_store(processor: Processor, invocation: Invocation) -> None:
    """Refuse `--backend` where the application names its own: it would be ignored in silence."""
    if invocation.backend is None:
        return
    from nimburion.backends import open_backend

    wanted = open_backend(invocation.load().jobs.url).describe()
    actual = processor.backend.describe()
    if wanted != actual:
        raise BadInput(f"the processor brings its own backend ({actual}): leave out --backend")


def add_scheduler(processor: Processor, invocation: Invocation) -> None:
    """Every worker is a scheduler too, so that none can be forgotten. The application's own, or
    one for what is configured and what was added by hand."""
    from nimburion.scheduler import Scheduler

    settings = invocation.load().scheduler
    if not settings.enabled:
        processor.services[:] = [
            one for one in processor.services if not isinstance(one, Scheduler)
        ]
        return
    own = next((one for one in processor.services if isinstance(one, Scheduler)), None)
    scheduler = own or Scheduler(processor, timezone=settings.timezone)
    scheduler.add_tasks(settings)


def override_settings(settings: Settings, queues: str | None, concurrency: int | None) -> Settings:
    """The settings with the queues and concurrency of the command line over them."""
    import msgspec

    if queues is not None:
        settings = msgspec.structs.replace(settings, queues=select_queues(settings, queues))
    if concurrency is not None:
        settings = msgspec.structs.replace(settings, concurrency=concurrency)
    return settings


def select_queues(settings: Settings, queues: str) -> tuple[QueueSettings, ...]:
    """These queues, each with its configured priority and concurrency."""
    from nimburion.core.limits import check_name
    from nimburion.core.settings import QueueSettings

    configured = {queue.name: queue for queue in settings.queues}
    names = dict.fromkeys(check_name("queue", name.strip()) for name in queues.split(","))
    return tuple(configured.get(name, QueueSettings(name)) for name in names)


def find_fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed (extra `fast`); None: the standard one."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop
