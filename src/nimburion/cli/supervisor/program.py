"""The program of a worker process: run the worker of the application for a supervisor."""

from __future__ import annotations

import asyncio
import logging
import sys
from functools import partial
from typing import cast

import msgspec

from nimburion.cli.burst import log_end_of_burst
from nimburion.cli.commands.worker import load_worker, start_logging
from nimburion.cli.exit_codes import BadInput, report_error
from nimburion.cli.invocation import Invocation
from nimburion.cli.supervisor.messages import (
    FinishRequest,
    ListenerState,
    ListenRequest,
    Notification,
    ReportRequest,
    ToWorker,
    WorkerLoaded,
    WorkerOptions,
    WorkerReport,
    WorkerStarted,
    WorkerStopping,
)
from nimburion.cli.supervisor.shared_listener import SharedListener
from nimburion.cli.supervisor.supervisor_channel import SupervisorChannel
from nimburion.core.backend import SharedListening
from nimburion.core.service import Service
from nimburion.jobs import Processor
from nimburion.jobs.event_loop import find_fast_loop, limit_exit
from nimburion.scheduler import Scheduler


def run_worker_process(descriptor: int) -> None:
    """Run a worker with the options that arrive on a socket, and exit with its code."""
    channel = SupervisorChannel(descriptor)
    options = channel.receive_options()
    try:
        _run_worker(channel, options)
    except BaseException as error:  # noqa: BLE001 (every ending has its code; bugs are re-raised)
        sys.exit(report_error(error))


def _run_worker(channel: SupervisorChannel, options: WorkerOptions) -> None:
    invocation = Invocation()
    invocation.config = options.config_file
    invocation.backends = () if options.backend is None else (options.backend,)
    scheduler, log_format = options.scheduler, options.log_format
    if scheduler is None:
        config = invocation.load()
        scheduler, log_format = config.scheduler, log_format or config.telemetry.log_format
    start_logging(options.log_level, log_format or "text")
    processor = load_worker(
        options.target,
        invocation,
        options.queues,
        options.concurrency,
        show_traceback=options.traceback,
    )
    check_shared(processor, options.processes)
    processor.settings = msgspec.structs.replace(processor.settings, processes=1)
    Scheduler.configure(processor, scheduler)
    processor.add_service(_StateNotices(processor, channel))
    channel.send(WorkerLoaded(processor.backend.describe(), processor.settings.grace))
    with asyncio.Runner(loop_factory=find_fast_loop()) as runner:
        runner.run(_serve(processor, channel, options))
        limit_exit(runner.get_loop())
    logging.shutdown()


def check_shared(processor: Processor, processes: int) -> None:
    """Raise `BadInput` if the processes would not share the backend of the application."""
    if processes > 1 and not processor.backend.capabilities.shared:
        raise BadInput(
            f"{processor.backend.describe()} exists only inside one process, so {processes} "
            "processes would not see each other's jobs; choose another backend, such as "
            "sqlite:///jobs.db, or --processes 1"
        )


async def _serve(processor: Processor, channel: SupervisorChannel, options: WorkerOptions) -> None:
    loop = asyncio.get_running_loop()
    listener = SharedListener(channel)
    if processor.backend.capabilities.shares_listener:
        cast("SharedListening", processor.backend.consuming).share_listener(listener.attach)
    channel.attach(loop, partial(_receive, processor, channel, listener))
    async with processor:
        await processor.run(
            owns_process=True, until_empty=options.until_empty, max_jobs=options.max_jobs
        )
        if options.until_empty:
            await log_end_of_burst(processor)
        channel.send(_make_report(processor))


def _receive(
    processor: Processor, channel: SupervisorChannel, listener: SharedListener, message: ToWorker
) -> None:
    match message:
        case ReportRequest():
            channel.send(_make_report(processor))
        case FinishRequest():
            processor.finish()
        case ListenRequest() | ListenerState() | Notification():
            listener.handle(message)


def _make_report(processor: Processor) -> WorkerReport:
    return WorkerReport(processor.health(), processor.metrics.collect())


class _StateNotices(Service):
    """Tells the supervisor when the worker has started, and when it takes no more jobs."""

    def __init__(self, processor: Processor, channel: SupervisorChannel) -> None:
        super().__init__(processor.clock)
        self._processor = processor
        self._channel = channel

    async def run(self) -> None:
        self._channel.send(_make_report(self._processor))
        self._channel.send(WorkerStarted())
        await self.stopping.wait()
        self._channel.send(WorkerStopping())
