"""The worker: slots, prefetched jobs and the reserve loop. Retry policy is decided elsewhere.

The loop makes one exchange at a time, and only when there is a reason for it: settlements to send,
or room together with a sign of possible work. Delivered jobs start immediately while slots are
free. The others are prefetched: at most as many as run in about 20 ms.

From Python 3.12 on, a handler makes its first step while its task is created. A handler that never
waits has then ended, and its slot is free again, before the next job starts.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.errors import OutOfOrder, SessionLost
from nimburion.core.events import Events
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.ids import Entropy
from nimburion.core.lease import Delivery, Lease
from nimburion.core.metrics.counters import CallCounters
from nimburion.core.outage_log import OutageLog
from nimburion.core.service import wait_for_first
from nimburion.core.session import HeartbeatReply, WorkerCommand
from nimburion.core.settings import Settings
from nimburion.core.settlement import Cancelled, Progressed, Released, Settlement, Spent
from nimburion.core.timing.clock import Clock
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.worker.attempt.attempt import Attempt, Interruption
from nimburion.jobs.worker.attempt.attempt_runner import (
    CANCELLED_ON_REQUEST,
    RELEASE_DELAY_AFTER_ERROR,
    AttemptRunner,
    raise_keyboard_interrupt,
)
from nimburion.jobs.worker.attempt.batch_run import BatchRun
from nimburion.jobs.worker.attempt.forking import end_forked
from nimburion.jobs.worker.attempt.unresponsive_handlers import UnresponsiveHandlers
from nimburion.jobs.worker.connectivity import BackendConnectivity
from nimburion.jobs.worker.exchange.batches import Batches
from nimburion.jobs.worker.exchange.exchange_size import ExchangeSize
from nimburion.jobs.worker.exchange.fetcher import Fetcher
from nimburion.jobs.worker.exchange.lane_selector import LaneSelector
from nimburion.jobs.worker.exchange.slots import Prefetch, PrefetchWatchdog, Slots, take
from nimburion.jobs.worker.session.session import WorkerSession, make_session
from nimburion.jobs.worker.session.vitals import VitalsReader
from nimburion.jobs.worker.stop_conditions import RUN_UNTIL_STOPPED, StopConditions

_log = logging.getLogger("nimburion.worker")

_INTERRUPT_TIMEOUT = 1.0
"""Seconds that interrupted handlers have to end."""
_PAUSE_AFTER_ERROR = 5.0
"""Seconds until the next exchange after an error inside nimburion."""
_PAUSE_ON_SLOW_CONNECTION = 1.0
"""Seconds between two sessions if only the exchanges of the first failed, for too long."""
_FLUSH_TIMEOUT = 5.0
"""Seconds that a stopping worker has to send its last settlements."""

_create_task: Callable[..., asyncio.Task[Any]] = asyncio.Task
"""Creates the task of an attempt; from Python 3.12 on, the task makes its first step meanwhile."""
if sys.version_info >= (3, 12):
    _create_task = partial(asyncio.Task, eager_start=True)


class Worker:
    """A worker that runs jobs in this process until it is stopped. Use each instance once."""

    def __init__(
        self,
        backend: Backend,
        registry: Registry,
        settings: Settings,
        *,
        clock: Clock,
        entropy: Entropy,
        events: Events,
        heartbeat_in_thread: bool,
        calls: CallCounters | None = None,
        outage: OutageLog | None = None,
        request_stop: Callable[[], None] = lambda: None,
        stop_conditions: StopConditions = RUN_UNTIL_STOPPED,
    ) -> None:
        self._backend = backend
        self._registry = registry
        self._settings = settings
        self._clock = clock
        self._monotonic = clock.monotonic
        self._entropy = entropy
        self._events = events
        self._heartbeat_in_thread = heartbeat_in_thread
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.connectivity: BackendConnectivity = BackendConnectivity(
            clock, backend.describe(), calls, outage
        )
        self.failure: BaseException | None = None
        """The latest error inside the engine; None once an exchange succeeds again."""
        self.lanes: LaneSelector = LaneSelector(registry, settings, entropy)
        self._slots = slots = Slots(
            settings.concurrency,
            Prefetch(settings.concurrency, remote=backend.capabilities.out_of_process),
        )
        self._batches: Batches | None = None
        if registry.batch_handlers:
            self._batches = Batches(
                registry.batch_handlers, slots, self._loop, on_ready=self._start_jobs
            )
        self.vitals: VitalsReader = VitalsReader(
            settings.concurrency, lambda: slots.occupied_count, settings.code_version
        )
        self._request_stop = request_stop
        self._slots.remaining = stop_conditions.max_jobs
        self._stops_when_empty = stop_conditions.until_empty
        self._is_finishing = stop_conditions.max_jobs is not None
        """Whether to request a stop as soon as no more jobs may start and none runs."""
        self._exchange_size = ExchangeSize(settings.sizes.exchange)
        self._under_way: dict[bytes, bool] = {}
        """The nonce of the exchange in flight, if its reply may contain deliveries; else empty. The
        watchdog's thread takes it to recall these deliveries: `pop` is atomic."""
        self.session: WorkerSession = self._make_session()
        """The current session. It is not open before `start`."""
        self.fetcher: Fetcher = Fetcher(
            backend,
            clock,
            self._loop,
            slots,
            self.session.completer,
            lanes=self.lanes,
            batches=self._batches,
            waits_for_jobs=not stop_conditions.until_empty,
            session_ttl=settings.session_ttl,
        )
        self._prefetch_watchdog = PrefetchWatchdog(
            self._loop, slots.prefetched, self._on_starvation
        )
        self._variables = contextvars.copy_context()
        """The context variables of the code that started the worker; each job gets a copy."""
        self._is_starting_jobs = False
        self._ended_in_first_step = 0
        """The jobs that ended in their first step since the event loop last ran its callbacks."""
        self._unresponsive = UnresponsiveHandlers(settings.concurrency, self._monotonic)
        self._exchanged_at = self._monotonic()
        self._idle = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_aborted = False
        self._leaves_jobs = False
        """Whether the session still holds jobs of handlers that an abort has interrupted."""
        self._attempt_runner: AttemptRunner

    # Start and stop

    async def start(self, attempt_runner: AttemptRunner) -> None:
        """Open a session, then start the reserve loop and the wake-up listener."""
        self._attempt_runner = attempt_runner
        attempt_runner.is_worker_aborted = lambda: self.is_aborted
        await self._open_session(self.session)
        self._task = asyncio.create_task(self._run(), name="nimburion-worker")
        await self.fetcher.wakeups.start()
        await self.fetcher.due_timer.start()

    def stop_reserving(self) -> None:
        """Reserve no more jobs, and release those that have not started."""
        self._slots.draining = True
        self._release_all()
        self.fetcher.wake()
        self._withdraw()

    def abort(self) -> None:
        """Count the jobs that are interrupted from now on as lost, because code in this process
        ends the worker. Safe from any thread."""
        self._is_aborted = True

    @property
    def is_aborted(self) -> bool:
        """Whether code in this process ends the worker.

        It has cancelled the worker's task, which the end of the event loop does too, or `abort` was
        called.
        """
        is_cancelled = self._count_cancels() > 0 and not self.fetcher.closing
        return self._is_aborted or is_cancelled

    def finish(self) -> None:
        """Drain, and request a stop when the last running job has ended, however long it runs."""
        self._is_finishing = True
        self.stop_reserving()
        self._check_finished()

    async def stop(self, grace: float, stop_now: asyncio.Event) -> list[Lease]:
        """Stop reserving, let running jobs finish, interrupt the others and send all settlements.

        Running jobs get `grace` seconds, or less if `stop_now` is set.

        Returns the leases of handlers that still run because they cannot be stopped (threads). The
        session is still open; `close_session` closes it.
        """
        self.stop_reserving()
        await self.fetcher.wakeups.stop()
        await self.fetcher.due_timer.stop()
        await self._wait_until_idle(grace, stop_now)
        for attempt in self._slots.running:
            attempt.interrupt(Interruption.STOP)
        await self._wait_until_idle(_INTERRUPT_TIMEOUT, stop_now)
        self._end_loop()
        if self._task is not None:
            await self._flush(self._task)
        return self._list_unfinished_leases()

    async def close_session(self, running: list[Lease]) -> None:
        """Close the session. Leases in `running` stay until they expire; others are released.

        After an abort that has interrupted handlers, let it expire, so that their jobs count as
        lost.
        """
        if not await self._let_session_expire():
            await self.session.close(running)

    async def _let_session_expire(self) -> bool:
        """Let the session expire if an abort leaves jobs in it; return whether it does."""
        leaves_jobs = self._leaves_jobs or bool(self._list_unfinished_leases())
        if self.is_aborted and leaves_jobs:
            await self.session.let_expire()
        return self.is_aborted and leaves_jobs

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task of the reserve loop; it ends before `stop` only after an engine error."""
        return self._task

    @property
    def takes_no_more_jobs(self) -> bool:
        """Whether the worker drains, or has started as many jobs as it may."""
        return self._slots.draining or self._slots.remaining == 0

    @property
    def running_count(self) -> int:
        """The number of running handlers."""
        return len(self._slots.running)

    @property
    def seconds_since_exchange(self) -> float | None:
        """Seconds since the reserve loop made its last exchange; None if none is due."""
        if self._slots.count_free() <= 0 and not self.session.completer.has_pending:
            return None
        return max(0.0, self._monotonic() - self._exchanged_at)

    @property
    def prefetched_count(self) -> int:
        """The number of jobs that are reserved and have not started."""
        return self._slots.waiting_count

    def recall(self) -> tuple[list[Lease], bytes | None]:
        """Take the jobs that have not started away from the blocked event loop.

        Returns their leases, and the nonce of an exchange in flight that may deliver more jobs (or
        None). The caller releases them. Safe from any thread. A job that the loop takes at the same
        moment is not returned here.
        """
        held = list(self._slots.take_all())
        leases = [delivery.lease for delivery in held]
        for attempt in list(self._slots.not_begun):
            with suppress(KeyError):
                self._slots.not_begun.remove(attempt)
                attempt.settled = True
                leases.append(attempt.delivery.lease)
        if held:
            self._loop.call_soon_threadsafe(self._free_all, held)
        nonce = None
        with suppress(KeyError):
            nonce, _ = self._under_way.popitem()
        return leases, nonce

    def _free_all(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.lanes.free_slot(delivery)
        self.fetcher.note_possible_work()

    def find_attempt(self, task: asyncio.Task[Any]) -> Attempt | None:
        """Return the attempt that `task` performs, or None. Safe from any thread."""
        running = list(self._slots.running)
        return next((attempt for attempt in running if attempt.task is task), None)

    async def report_dead(self, job_id: str) -> None:
        """Call the hooks for a job that became a dead letter because its workers were lost.

        Raises `JobNotFound` if it was deleted since.
        """
        await self._attempt_runner.report_dead(await self._backend.reads.get_job(job_id))

    def report(self, report: Progressed | Spent) -> None:
        """Send what a running job reports with the next exchange. Safe from any thread."""
        if threading.get_ident() == self._thread:
            self._note_report(report)  # synchronously: the settlement must not overtake it
        else:
            self._loop.call_soon_threadsafe(self._note_report, report)

    # The loop

    async def _run(self) -> None:
        cancels = 0
        while True:
            try:
                await self._make_exchanges()
                break
            except asyncio.CancelledError:
                if self.fetcher.closing:
                    raise
                if not self.fetcher.cancelled:
                    self._wind_down()
                elif self._count_cancels() == cancels:
                    break  # a call of the backend raised this; another one might not wait either
                cancels = self._count_cancels()
        await self._let_session_expire()

    def _count_cancels(self) -> int:
        """Return how many times code has cancelled the task of the reserve loop."""
        return 0 if self._task is None else self._task.cancelling()

    def _wind_down(self) -> None:
        """Drain, so that the reserve loop ends when every attempt or the grace time has ended.

        Called when a handler or the end of the event loop cancels the reserve loop.
        """
        _log.error(
            "the worker ends: code in this process has cancelled its tasks (asyncio.all_tasks()), "
            "or has stopped its event loop. Each job that this interrupts counts a loss, and runs "
            "again when the session has expired, within %g s",
            self._settings.session_ttl,
        )
        self.stop_reserving()
        self.fetcher.cancelled = True
        for attempt in self._slots.running:
            if attempt.task is not None:
                attempt.task.add_done_callback(partial(self._end_unstarted, attempt))
        # A handler may wait for the tasks that it has cancelled, of which this loop is one.
        self._loop.call_later(self._settings.grace, self._end_loop)

    def _end_loop(self) -> None:
        """Let the reserve loop send what is pending and end, whatever runs."""
        self._is_aborted = self.is_aborted  # from here on, `_flush` may cancel the task
        self.fetcher.closing = True
        self.fetcher.wake()
        self.fetcher.long_poll.interrupt()

    def _end_unstarted(self, attempt: Attempt, _: object) -> None:
        """Settle an attempt whose task was cancelled before its first step."""
        if attempt not in self._slots.running or attempt.context is not None:
            return
        if attempt.settled:  # the watchdog has released it
            self._free_slot(attempt)
            self.fetcher.note_result()
        else:
            self._slots.not_begun.discard(attempt)
            self._settle(attempt, Released(attempt.delivery.lease, unstarted=True))

    async def _make_exchanges(self) -> None:
        while await self.fetcher.wait_for_reason():
            try:
                await self._exchange()
                self.failure = None
            except Exception as error:  # noqa: BLE001 - the loop must continue; its jobs run again
                self.failure = error
                _log.exception("an exchange failed; its session ends")
                self.session.completer.closed = True
                await self._clock.sleep(_PAUSE_AFTER_ERROR)
            self._exchanged_at = self._monotonic()

    async def _exchange(self) -> None:
        """Make one exchange and process its reply. Open a new session if this one is over."""
        session = self.session
        request = self.fetcher.make_request()
        if request.total:
            self._under_way[request.nonce] = True
        try:
            reply = await session.completer.exchange(request)
        except (SessionLost, OutOfOrder) as error:
            # A completer that was closed locally also raises SessionLost; the backend may still
            # know its session.
            session.lost = isinstance(error, SessionLost) and not session.completer.closed
            await self._reopen_session()
            return
        finally:
            was_recalled = request.total > 0 and not self._under_way.pop(request.nonce, False)
        if was_recalled:
            # The watchdog recalled this exchange because the loop was blocked. Other workers may
            # hold these jobs by now.
            self._return_all(reply.deliveries)
            reply = msgspec.structs.replace(reply, deliveries=[])
        if session.completer.closed:
            await self._reopen_session()
        else:
            self._receive(reply, request)
            if self._stops_when_empty and not was_recalled:
                self._check_empty(reply, request)

    def _receive(self, reply: Reply, request: ReserveRequest) -> None:
        slots = self._slots
        if self.lanes.counts_jobs:
            deliveries, surplus = self.lanes.split_surplus(reply.deliveries)
            for delivery in deliveries:
                self.lanes.occupy_slot(delivery)
            if surplus:
                self._return_all(surplus)
        else:
            deliveries = reply.deliveries
        slots.add_all(deliveries)
        self.fetcher.note_reply(reply, request)
        self._attempt_runner.reporter.note_exchange(reply.now)
        if slots.draining or slots.quiet:
            self._release_all()
        while len(slots.suspects) > 1:
            # Run one suspect at a time. If it kills this worker, the others that wait here would
            # each count a lost lease.
            if (suspect := take(slots.suspects, last=True)) is not None:
                self._return_delivery(suspect, Released(suspect.lease, unstarted=True))
        self._start_jobs()
        if request.long_poll and reply.deliveries:
            self._loop.call_soon(self._listen_while_busy)  # after the first steps of these jobs

    def _listen_while_busy(self) -> None:
        """Make an exchange if jobs run that ended a long poll.

        A busy worker does not wait inside the backend. This exchange subscribes to notifications in
        the same step in which it finds no job.
        """
        if not self._slots.are_empty:
            self.fetcher.note_possible_work()

    def _check_empty(self, reply: Reply, request: ReserveRequest) -> None:
        """Finish if the backend has no job for this worker, and none runs here.

        A reply without a job names waiting lanes if the backend has parked as many jobs as one
        exchange may: the next exchange looks behind them. An outcome that is not stored yet may
        free a place of a limit.
        """
        if not request.total or reply.deliveries or not self._slots.are_empty:
            return
        saw_all = self.lanes.covers_all_lanes(request) and not self.fetcher.expects_jobs
        if saw_all and self.session.completer.all_stored:
            self.finish()
        else:
            self.fetcher.note_possible_work()

    def _check_finished(self) -> None:
        if self._is_finishing and self.takes_no_more_jobs and not self._slots.running:
            self._request_stop()

    def _return_all(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.session.completer.settle(Released(delivery.lease, unstarted=True))
        self.fetcher.note_possible_work()

    # Attempts

    def _start_jobs(self) -> None:
        """Start jobs while slots are free.

        Start none while too many bytes of results wait to be sent. A job that ends in its first
        step counts as running until the event loop has run its other callbacks. Otherwise all
        prefetched jobs could run before them.
        """
        if self._is_starting_jobs:
            return
        self._is_starting_jobs = True
        slots, completer = self._slots, self.session.completer
        held, running = slots.prefetched, slots.running
        try:
            if self._batches is not None:
                self._start_batches(self._batches)
            while (
                held
                and len(running) + self._ended_in_first_step < slots.max_running
                and not (slots.runs_suspect or completer.is_full)
            ):
                try:
                    delivery = held.popleft()
                except IndexError:  # the watchdog has taken it
                    break
                self._start_job(delivery)
            if slots.suspects and slots.hold_only_suspects and completer.all_stored:
                suspect = take(slots.suspects)
                if suspect is not None:
                    # From here on its lease is the only lease of this session. If the suspect kills
                    # this worker, jobs that ended or were released before do not count as lost.
                    slots.runs_suspect = True
                    self._start_job(suspect)
        finally:
            self._is_starting_jobs = False
        if held and not self._prefetch_watchdog.is_watching:
            self._prefetch_watchdog.watch()

    def _start_batches(self, batches: Batches) -> None:
        """Start batches that are ready while slots are free. They take turns with other jobs."""
        slots, completer = self._slots, self.session.completer
        while (
            batches.are_ready
            and slots.count_free_slots() > 0
            and not (slots.runs_suspect or completer.is_full)
        ):
            if batches.are_next or (delivery := take(slots.prefetched)) is None:
                batches.are_next = False
                self._start_batch(batches.take_ready())
            else:
                batches.are_next = True
                self._start_job(delivery)

    def _start_batch(self, deliveries: Sequence[Delivery]) -> None:
        """Start jobs that share one call of their handler, and one slot."""
        if deliveries:  # else the watchdog has taken them
            batch_run = BatchRun(len(deliveries), self._end_batch)
            self._slots.max_running += len(deliveries) - 1
            for delivery in deliveries:
                self._start_job(delivery, batch_run)

    def _end_batch(self) -> None:
        """Free the slot of a batch."""
        self._slots.max_running += 1
        self._start_jobs()
        self.fetcher.note_result()

    def _note_end_in_first_step(self) -> None:
        if not self._ended_in_first_step:
            self._loop.call_soon(self._start_further_jobs)
        self._ended_in_first_step += 1

    def _start_further_jobs(self) -> None:
        """Start further jobs, now that the event loop has run its other callbacks."""
        self._ended_in_first_step = 0
        self._start_jobs()

    def _start_job(self, delivery: Delivery, batch_run: BatchRun | None = None) -> None:
        """Start a job."""
        slots = self._slots
        if slots.remaining is not None:
            slots.remaining -= 1
        attempt = Attempt(delivery, self.session.id)
        if batch_run is not None:
            attempt.batch_run = batch_run
        self._prefetch_watchdog.started_count += 1
        slots.running.add(attempt)
        slots.not_begun.add(attempt)
        task = _create_task(
            self._perform(attempt),
            loop=self._loop,
            name=delivery.name,
            # Not the current context: the end of another job may have led here, and a handler must
            # not see the context variables that the handler before it has set.
            context=self._variables.copy(),
        )
        if task.done():
            self._note_end_in_first_step()
            return
        attempt.task = task
        if self._attempt_runner.guard.in_child:  # forked in the first step, which then waited
            end_forked(task)

    async def _perform(self, attempt: Attempt) -> None:
        if attempt.task is None:  # the first step is made while the task is created
            attempt.task = asyncio.current_task(self._loop)
        slots = self._slots
        try:
            slots.not_begun.remove(attempt)
        except KeyError:  # the watchdog has released it
            self._free_unused_slot(attempt)
            return
        attempt.started = started = self._monotonic()
        if started >= self.session.heartbeat.lease_valid_until:
            # The process was suspended (SIGSTOP, sleep) and the lease expired: another worker may
            # have the job.
            slots.count_unused_start()
            self._settle(attempt, Released(attempt.delivery.lease, unstarted=True))
            return
        settlement: Settlement | None = None
        try:
            settlement = await self._attempt_runner.perform(attempt)
        except BaseException as error:  # noqa: BLE001 - the attempt counts after any error
            # For `finally`, if the next line raises: the interpreter closes the attempt, or
            # a hook raises.
            settlement = Released(attempt.delivery.lease, RELEASE_DELAY_AFTER_ERROR)
            settlement = await self._attempt_runner.settle_after_error(attempt, error)
        finally:
            prefetch = slots.prefetch
            seconds = (attempt.ended or self._monotonic()) - started
            if attempt.batch_run is None:
                prefetch.learn(seconds)
            if self.lanes.counts_jobs:
                self.lanes.note_run(attempt.delivery, seconds)
            self._settle(attempt, settlement)
            if prefetch.is_off and slots.prefetched:  # jobs run longer than it assumed
                self._release_prefetched()
            if attempt.keyboard_interrupt is not None:
                raise_keyboard_interrupt(attempt)

    def _settle(self, attempt: Attempt, settlement: Settlement | None) -> None:
        if settlement is not None:
            attempt.settled = True
            self.session.completer.settle(settlement)
        elif self.is_aborted and not attempt.settled:
            self._leaves_jobs = True
        if attempt.call is not None and attempt.in_thread:
            # A thread cannot be stopped, so the slot stays occupied until it returns.
            attempt.call.on_finish = lambda: self._free_late_slot(attempt)
            self._unresponsive.report_kept_slot(attempt, self._slots.running)
            self.fetcher.wake()
        else:
            self._free_slot(attempt)
            self.fetcher.note_result()

    def _free_unused_slot(self, attempt: Attempt) -> None:
        """Free the slot of an attempt whose handler was never called."""
        self._slots.count_unused_start()
        self._free_slot(attempt)
        self.fetcher.note_result()

    def _free_late_slot(self, attempt: Attempt) -> None:
        """Free the slot of a settled attempt, whose thread has returned."""
        self.fetcher.may_have_work = True  # its queue was at its limit: it may have more jobs
        self._unresponsive.report_return(attempt)
        self._free_slot(attempt)
        self.fetcher.note_result()

    def _free_slot(self, attempt: Attempt) -> None:
        """Free the slot of an attempt that has ended, and start other jobs. `Fetcher.note_result`
        comes after it: a reason for an exchange depends on the jobs that run then.
        """
        slots = self._slots
        slots.running.discard(attempt)
        # `attempt.clear()`, without the call
        attempt.context = attempt.call = attempt.timeout = attempt.task = None
        if self.lanes.counts_jobs:
            self.lanes.free_slot(attempt.delivery)
        if attempt.batch_run is not None:
            slots.max_running -= 1
            attempt.batch_run.leave(attempt)
        if not slots.running:
            slots.runs_suspect = False
            self._idle.set()
        if slots.prefetched or slots.suspects or self._batches is not None:
            self._start_jobs()
        if self._is_finishing:
            self._check_finished()

    # Callbacks

    def _on_starvation(self) -> None:
        """Release the jobs prefetched behind long jobs, so that other workers can run them."""
        self._slots.prefetch.suspend()
        self._release_prefetched()

    def _note_report(self, report: Progressed | Spent) -> None:
        if isinstance(report, Progressed):
            self.session.completer.report_progress(report)
        else:
            self.session.completer.settle(report)
        self.fetcher.wake()

    def _note_heartbeat(self) -> None:
        """Note what each reply to a heartbeat says."""
        self._unresponsive.check(self._slots.running)
        heartbeat = self.session.heartbeat
        has_expired = self._monotonic() >= heartbeat.no_expiry_before
        self.fetcher.note_fleet(heartbeat.fleet_size, has_expired=has_expired)

    def _apply_heartbeat_reply(self, reply: HeartbeatReply) -> None:
        """Apply the command and the cancel requests that the reply carries."""
        self._note_heartbeat()
        self._apply_command(reply.command)
        cancelled = set(reply.cancel)
        slots = self._slots
        for attempt in slots.running:
            if attempt.delivery.lease in cancelled and attempt.interruption is None:
                attempt.interrupt(Interruption.CANCEL)
        for deliveries in slots.list_unstarted():
            for delivery in [each for each in list(deliveries) if each.lease in cancelled]:
                with suppress(ValueError):  # the watchdog has taken it
                    deliveries.remove(delivery)
                    self._return_delivery(delivery, Cancelled(delivery.lease, CANCELLED_ON_REQUEST))

    def _apply_command(self, command: WorkerCommand | None) -> None:
        """Apply the command of an operator; None takes `quiet` back."""
        slots = self._slots
        if command is WorkerCommand.STOP:
            _log.info("stopping: an operator sent the command")
            self._request_stop()
        elif command is WorkerCommand.QUIET and not slots.quiet:
            _log.info("quiet: an operator sent the command; no further job is started")
            slots.quiet = True
            self._release_all()
            self._withdraw()
        elif command is None and slots.quiet:
            _log.info("jobs are started again: the operator took the command back")
            slots.quiet = False
            self.fetcher.note_possible_work()

    def _on_session_end(self, session: WorkerSession) -> None:
        if session is self.session:
            self._drop_leases()
            self.fetcher.wake()
            self.fetcher.long_poll.interrupt()

    # Sessions

    def _make_session(self) -> WorkerSession:
        """Return a new session, not open yet."""
        return WorkerSession(
            self._backend,
            make_session(self._registry, self._settings, self._entropy),
            self._clock,
            self._events,
            self.connectivity,
            threaded=self._heartbeat_in_thread,
            size=self._exchange_size,
            max_unsettled=self._settings.sizes.unsettled,
            vitals=self.vitals,
            on_heartbeat=self._note_heartbeat,
            on_heartbeat_reply=self._apply_heartbeat_reply,
            on_end=self._on_session_end,
        )

    async def _open_session(self, session: WorkerSession) -> None:
        """Open a session and use it. It gets the command `quiet` if the session before had it."""
        while True:
            # `SessionLost`: the session was opened, the reply was lost, and the session was rescued
            # since.
            with suppress(SessionLost):
                await session.open(WorkerCommand.QUIET if self._slots.quiet else None)
                self.session = session
                self.fetcher.begin_session(session.completer)
                return
            session = self._make_session()

    async def _reopen_session(self) -> None:
        """Drop the leases of the ended session, close it, and open a new one unless stopping.

        Its jobs wake other workers: this one does not listen meanwhile. If its exchanges failed
        although its heartbeats were answered, a job may be too large for its connection. So it
        lets the others reserve first.
        """
        self._drop_leases()
        self._withdraw()
        await self._wait_until_idle(_INTERRUPT_TIMEOUT, asyncio.Event())
        if not await self._let_session_expire():
            await self.session.close(
                self._list_unfinished_leases(), until_answered=not self.fetcher.closing
            )
        if self.session.completer.is_connection_slow:
            await self._clock.sleep(_PAUSE_ON_SLOW_CONNECTION)
        if not (self.fetcher.closing or self.fetcher.cancelled):
            await self._open_session(self._make_session())

    def _drop_leases(self) -> None:
        for delivery in self._slots.take_all():
            self.lanes.free_slot(delivery)
        for attempt in self._slots.running:
            attempt.interrupt(Interruption.LOST)

    # Stopping

    def _release_all(self) -> None:
        """Release all jobs that have not started."""
        for delivery in self._slots.take_all():
            self._return_delivery(delivery, Released(delivery.lease, unstarted=True))

    def _withdraw(self) -> None:
        """End a wait for jobs, so that no job wakes this worker in place of another."""
        self.fetcher.wakeups.withdraw()
        self.fetcher.long_poll.interrupt()

    def _release_prefetched(self) -> None:
        """Release the prefetched jobs, but no suspect."""
        while (delivery := take(self._slots.prefetched)) is not None:
            self._return_delivery(delivery, Released(delivery.lease, unstarted=True))

    def _return_delivery(self, delivery: Delivery, settlement: Settlement) -> None:
        self.lanes.free_slot(delivery)
        self.session.completer.settle(settlement)
        self.fetcher.wake()

    async def _wait_until_idle(self, seconds: float, stop_now: asyncio.Event) -> None:
        """Return when no handler runs, after `seconds`, or as soon as `stop_now` is set."""
        self._idle.clear()
        if self._slots.running:
            await wait_for_first(self._clock.sleep(seconds), self._idle.wait(), stop_now.wait())

    async def _flush(self, task: asyncio.Task[None]) -> None:
        """Wait until all settlements are stored, at most `_FLUSH_TIMEOUT`; then cancel the loop."""
        await wait_for_first(self._clock.sleep(_FLUSH_TIMEOUT), asyncio.wait({task}))
        self.session.completer.closed = True
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def _list_unfinished_leases(self) -> list[Lease]:
        """Return the leases of this session whose handlers still run and are not settled."""
        return [
            attempt.delivery.lease
            for attempt in self._slots.running
            if attempt.session_id == self.session.id and not attempt.settled
        ]
