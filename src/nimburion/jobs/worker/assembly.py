"""Make the parts of a worker, or of an inline runner, and connect them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from nimburion.core.errors import DefinitionError
from nimburion.core.ids import Entropy
from nimburion.core.service import Service
from nimburion.core.settings import Settings
from nimburion.core.timing.clock import SystemClock
from nimburion.core.transactions import Transaction
from nimburion.jobs.bulk_operations import BulkOperationRunner
from nimburion.jobs.client.client import Client, read_records, send_jobs
from nimburion.jobs.client.client_statistics import ClientStatistics
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.handling.attempt_record import RecordStep, ReportSink, WorkerServices
from nimburion.jobs.handling.handler_setup import HandlerSetup
from nimburion.jobs.worker.attempt.attempt_end import AttemptEnd
from nimburion.jobs.worker.attempt.attempt_runner import AttemptRunner
from nimburion.jobs.worker.attempt.forking import ForkGuard
from nimburion.jobs.worker.attempt.handler_chains import HandlerChains
from nimburion.jobs.worker.attempt.process_calls import ProcessCalls
from nimburion.jobs.worker.attempt.reporter import AttemptReporter
from nimburion.jobs.worker.attempt.threads import HandlerThreads
from nimburion.jobs.worker.children.import_path import find_import_path
from nimburion.jobs.worker.children.pool import ChildPool, count_children
from nimburion.jobs.worker.lifecycle import RunningWorker
from nimburion.jobs.worker.maintenance import Pruner, Rescuer, UnservedWatch
from nimburion.jobs.worker.stop_conditions import StopConditions
from nimburion.jobs.worker.worker import Worker

if TYPE_CHECKING:
    from nimburion.jobs.outbox.outbox import Outbox
    from nimburion.jobs.outbox.relay import OutboxRelay
    from nimburion.jobs.worker.inline import InlineRunner

_log = logging.getLogger("nimburion.worker")


class Assembly:
    """Makes one worker, or one inline runner, of a processor.

    Args:
        processor: the processor, which handlers enqueue with.
        setup: what surrounds its handlers.
        statistics: its counters.
        random: for pauses.
        entropy: for ids.
        import_path: where a child process finds the processor, if that is known.
        make_transaction: makes the transaction of a handler on its connection.
        read_exemplar: returns the labels of an attempt for the metrics, from its id and number.
        choose_kept_arguments: returns whether completed jobs keep their arguments, and the queues
            that differ.
    """

    def __init__(
        self,
        processor: Client,
        setup: HandlerSetup,
        *,
        statistics: ClientStatistics,
        random: Random,
        entropy: Entropy,
        import_path: str | None,
        make_transaction: Callable[[object], Transaction],
        read_exemplar: Callable[[str, int], Mapping[str, str] | None],
        choose_kept_arguments: Callable[[], tuple[bool, dict[str, bool]]],
    ) -> None:
        self._processor = processor
        self._setup = setup
        self._statistics = statistics
        self._random = random
        self._entropy = entropy
        self._import_path = import_path
        self._make_transaction = make_transaction
        self._read_exemplar = read_exemplar
        self._choose_kept_arguments = choose_kept_arguments
        self._children: ChildPool | None = None

    def make_running_worker(
        self,
        services: Sequence[Service],
        conditions: StopConditions,
        request_stop: Callable[[], None],
    ) -> RunningWorker:
        """Return a worker with its threads and services, not started."""
        processor = self._processor
        is_real_time = isinstance(processor.clock, SystemClock)
        worker = Worker(
            processor.backend,
            processor.registry,
            processor.settings,
            clock=processor.clock,
            entropy=self._entropy,
            events=processor.events,
            heartbeat_in_thread=is_real_time,
            calls=self._statistics.calls,
            outage=self._statistics.outage,
            request_stop=request_stop,
            stop_conditions=conditions,
        )
        self._children = self._make_children()
        services = (*services, *self._make_maintenance(worker))
        for service in services:
            service.outage = self._statistics.outage
        return RunningWorker(
            worker,
            services,
            self.make_attempt_runner,
            processor.settings,
            children=self._children,
            job_names=processor.registry.names,
            limits=processor.registry.describe_limits(),
            lifespan=self._setup.lifespan,
            is_real_time=is_real_time,
        )

    def make_inline_runner(self) -> InlineRunner:
        """Return a runner for `drain` and `process_one`."""
        from nimburion.jobs.worker.inline import InlineRunner  # a worker does not load it

        processor = self._processor
        return InlineRunner(
            processor.backend,
            processor.registry,
            processor.settings,
            self.make_attempt_runner,
            self._setup.lifespan,
            clock=processor.clock,
            entropy=self._entropy,
        )

    def make_attempt_runner(
        self,
        threads: HandlerThreads,
        report: ReportSink,
        state: object,
        guard: ForkGuard | None = None,
        *,
        record: RecordStep | None = None,
        hold: float = 0.0,
    ) -> AttemptRunner:
        """Return an attempt runner of the worker; see `MakeAttemptRunner`."""
        processor, setup, clock = self._processor, self._setup, self._processor.clock
        sizes = processor.settings.sizes
        reporter = AttemptReporter(
            self._statistics.jobs,
            processor.events,
            clock,
            log_attempts=processor.settings.log_attempts,
            read_exemplar=self._read_exemplar,
        )
        runs = None
        if record is not None and processor.registry.has_durable:
            from nimburion.jobs.durable.services import RunServices  # most workers have no runs

            runs = RunServices(processor, record, threads.start, reporter, self._random, hold=hold)
        guard = guard or ForkGuard()
        end = AttemptEnd(clock, self._random, reporter, max_error=sizes.error)
        children = self._children
        chains = HandlerChains(
            processor.registry,
            setup,
            threads=threads,
            guard=guard,
            process_calls=None if children is None else ProcessCalls(children, report, sizes.error),
            end=end,
        )
        return AttemptRunner(
            processor.registry,
            chains,
            WorkerServices(clock.monotonic, report, processor, self._make_transaction, state, runs),
            setup.failure_hooks,
            end=end,
            guard=guard,
            clock=clock,
            sizes=sizes,
            reporter=reporter,
            keeps_arguments=self._choose_kept_arguments(),
            read_records=partial(read_records, processor),
        )

    def _make_children(self) -> ChildPool | None:
        """Return the pool of child processes, which start when they are needed.

        None: no job needs one, and the processor is not found where a child could import it.
        `DefinitionError` is raised if a job needs one nevertheless.
        """
        processor = self._processor
        names = processor.registry.process_names
        application = find_import_path(processor, self._import_path)
        if application is None and names:
            raise DefinitionError(
                f'job {min(names)!r} has execution="process": a child process must import the '
                "processor, and it is not a global variable of a module. Write "
                'Processor(…, import_path="myapp.jobs:processor"), where the name is that of the '
                "processor, or of a function without arguments that makes it"
            )
        if application is None or (application.script is not None and not names):
            return None
        return ChildPool(
            count_children(processor.settings),
            application,
            processor.settings.child_recycle,
            partial(send_jobs, processor),
            asyncio.get_running_loop(),
        )

    def _make_maintenance(self, worker: Worker) -> tuple[Service, ...]:
        """Return the maintenance services, which every worker runs on behalf of the whole fleet."""
        processor, random = self._processor, self._random
        backend, clock, settings = processor.backend, processor.clock, processor.settings
        jobs = self._statistics.jobs

        def count_workers() -> int:
            return worker.session.heartbeat.fleet_size

        rescuer = Rescuer(
            backend,
            clock,
            random,
            processor.events,
            jobs,
            ttl=settings.session_ttl,
            max_lost=settings.max_lost,
            no_rescue_before=lambda: worker.session.heartbeat.no_rescue_before,
            report_dead=worker.report_dead,
        )
        pruner = Pruner(backend, clock, random, settings, jobs, count_workers=count_workers)
        watch = UnservedWatch(backend, clock, random, lambda: worker.session.id)
        runner = BulkOperationRunner(backend, clock, random, count_workers=count_workers)
        services = (rescuer, pruner, watch, runner)
        if processor.outbox is None:
            return services
        return (*services, make_relay(processor, processor.outbox, random, count_workers))


def make_relay(
    processor: Client, outbox: Outbox, random: Random, count_workers: Callable[[], int]
) -> OutboxRelay:
    """Return the relay of an outbox, which stores its jobs as the processor does."""
    from nimburion.jobs.outbox.relay import OutboxRelay  # most workers have no outbox

    send = partial(send_jobs, processor)
    return OutboxRelay(outbox, send, processor.clock, random, count_workers=count_workers)


def warn_about_settings(registry: Registry, settings: Settings) -> None:
    """Log what a worker with these handlers and settings does not do."""
    if not registry.names:
        _log.warning(
            "no job is registered, so this worker runs none. Call "
            "processor.register(SendEmail, report) with your Job classes and @job functions "
            "before the worker starts, and import the modules that call it"
        )
    served = {queue.name for queue in settings.queues}
    for handler in registry.handlers if served else ():
        if handler.queue not in served:
            _log.warning(
                "job %r goes to queue %r, which this worker does not serve (it serves %s); add "
                "the queue to `queues` or to --queues, or start a worker for it",
                handler.name,
                handler.queue,
                ", ".join(sorted(served)),
            )
    if settings.processes > 1:
        _log.warning(
            "the setting processes is %d, but this worker runs in one process. Run `nimburion "
            "worker MODULE:NAME --processes %d`",
            settings.processes,
            settings.processes,
        )
    for message in registry.find_unknown_names():
        _log.warning("limits in the settings: %s", message)
