"""The worker: its sessions and its reserve loop.

The loop makes one exchange at a time, and only when there is a reason for it (`Fetcher`):
settlements to send, or room together with a sign of possible work. Delivered jobs start immediately
while slots are free (`JobStarter`). The others are prefetched: at most as many as run in about 20
ms.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.errors import OutOfOrder, SessionLost
from nimburion.core.events import Events
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.ids import Entropy
from nimburion.core.lease import Lease
from nimburion.core.metrics.counters import CallCounters
from nimburion.core.outage_log import OutageLog
from nimburion.core.service import wait_for_first
from nimburion.core.session import HeartbeatReply, WorkerCommand
from nimburion.core.settings import Settings
from nimburion.core.settlement import Progressed, Recorded, Spent
from nimburion.core.timing.clock import Clock
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.handling.attempt_record import StepAnswer
from nimburion.jobs.worker.attempt.attempt import Attempt, Interruption
from nimburion.jobs.worker.attempt.attempt_runner import AttemptRunner
from nimburion.jobs.worker.attempt.handler_stacks import read_stack
from nimburion.jobs.worker.connectivity import BackendConnectivity
from nimburion.jobs.worker.exchange.batches import Batches
from nimburion.jobs.worker.exchange.exchange_size import ExchangeSize
from nimburion.jobs.worker.exchange.fetcher import Fetcher
from nimburion.jobs.worker.exchange.lane_selector import LaneSelector
from nimburion.jobs.worker.exchange.slots import Prefetch, Slots
from nimburion.jobs.worker.job_starter import JobStarter
from nimburion.jobs.worker.session.session import WorkerSession, make_session
from nimburion.jobs.worker.session.vitals import VitalsReader
from nimburion.jobs.worker.stop_conditions import RUN_UNTIL_STOPPED, StopConditions

if TYPE_CHECKING:
    from nimburion.core.stacks import Place

_log = logging.getLogger("nimburion.worker")

_INTERRUPT_TIMEOUT = 1.0
"""Seconds that interrupted handlers have to end."""
_PAUSE_AFTER_ERROR = 5.0
"""Seconds until the next exchange after an error inside nimburion."""
_PAUSE_ON_SLOW_CONNECTION = 1.0
"""Seconds between two sessions if only the exchanges of the first failed, for too long."""
_FLUSH_TIMEOUT = 5.0
"""Seconds that a stopping worker has to send its last settlements."""


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
        self._request_stop = request_stop
        self._stops_when_empty = stop_conditions.until_empty
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

        # Its parts
        prefetch = Prefetch(settings.concurrency, remote=backend.capabilities.out_of_process)
        self._slots = slots = Slots(settings.concurrency, prefetch)
        slots.remaining = stop_conditions.max_jobs
        batches = Batches(registry.batch_handlers, slots) if registry.batch_handlers else None
        self.lanes: LaneSelector = LaneSelector(registry, settings, entropy)
        self.vitals: VitalsReader = VitalsReader(
            settings.concurrency, lambda: slots.occupied_count, settings.code_version
        )
        self.connectivity: BackendConnectivity = BackendConnectivity(
            clock, backend.describe(), calls, outage
        )
        self._exchange_size = ExchangeSize(settings.sizes.exchange)
        self.session: WorkerSession = self._make_session()
        """The current session. It is not open before `start`."""
        self.fetcher: Fetcher = Fetcher(
            backend,
            clock,
            self._loop,
            slots,
            self.session.completer,
            lanes=self.lanes,
            batches=batches,
            waits_for_jobs=not stop_conditions.until_empty,
            session_ttl=settings.session_ttl,
        )
        self._starter = JobStarter(
            slots, batches, self.lanes, self.fetcher, self.session, clock=clock
        )
        if stop_conditions.max_jobs is not None:
            self._starter.on_free_slot = self._check_finished

        # What it does now
        self._task: asyncio.Task[None] | None = None
        self._under_way: dict[bytes, bool] = {}
        """The nonce of the exchange in flight, if its reply may contain deliveries; else empty. The
        watchdog's thread takes it to recall these deliveries: `pop` is atomic."""
        self._exchanged_at = clock.monotonic()
        self._is_aborted = False
        self._has_stop_command = False
        """Whether an operator sent the command; each heartbeat repeats it."""
        self.failure: BaseException | None = None
        """The latest error inside the engine; None once an exchange succeeds again."""

    # Start and stop

    async def start(self, attempt_runner: AttemptRunner) -> None:
        """Open a session, then start the reserve loop and the wake-up listener."""
        self._starter.runner = attempt_runner
        attempt_runner.end.is_worker_aborted = lambda: self.is_aborted
        await self._open_session(self.session)
        self._task = asyncio.create_task(self._run(), name="nimburion-worker")
        await self.fetcher.wakeups.start()
        await self.fetcher.due_timer.start()

    def stop_reserving(self) -> None:
        """Reserve no more jobs, and release those that have not started."""
        self._slots.draining = True
        self._starter.release_all()
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
        self._starter.on_free_slot = self._check_finished
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
        await self._starter.wait_until_idle(grace, stop_now)
        for attempt in self._slots.running:
            attempt.interrupt(Interruption.STOP)
        await self._starter.wait_until_idle(_INTERRUPT_TIMEOUT, stop_now)
        self._end_loop()
        if self._task is not None:
            await self._flush(self._task)
        return self._starter.list_unfinished_leases()

    async def close_session(self, running: list[Lease]) -> None:
        """Close the session. Leases in `running` stay until they expire; others are released.

        After an abort that has interrupted handlers, let it expire, so that their jobs count as
        lost.
        """
        if not await self._let_session_expire():
            await self.session.close(running)

    async def _let_session_expire(self) -> bool:
        """Let the session expire if an abort leaves jobs in it; return whether it does."""
        leaves_jobs = self._starter.leaves_jobs or bool(self._starter.list_unfinished_leases())
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
        leases = self._starter.recall()
        nonce = None
        with suppress(KeyError):
            nonce, _ = self._under_way.popitem()
        return leases, nonce

    def find_attempt(self, task: asyncio.Task[Any]) -> Attempt | None:
        """Return the attempt that `task` performs, or None. Safe from any thread."""
        running = list(self._slots.running)
        return next((attempt for attempt in running if attempt.task is task), None)

    async def read_stack(self, job_id: str) -> tuple[Place, str] | None:
        """Return where the handler of a running job runs, and its stack; None if it does not run
        here. Safe from any event loop.
        """
        for attempt in list(self._slots.running):
            if attempt.delivery.lease.job_id == job_id:
                if attempt.child is None:
                    return read_stack(attempt, self._thread)
                asked = asyncio.run_coroutine_threadsafe(attempt.child.read_stack(), self._loop)
                return "child process", await asyncio.wrap_future(asked)
        return None

    async def report_dead(self, job_id: str) -> None:
        """Call the hooks for a job that became a dead letter because its workers were lost.

        Raises `JobNotFound` if it was deleted since.
        """
        await self._starter.runner.report_dead(await self._backend.reads.get_job(job_id))

    def report(self, report: Progressed | Spent) -> None:
        """Send what a running job reports with the next exchange. Safe from any thread."""
        if threading.get_ident() == self._thread:
            self._note_report(report)  # synchronously: the settlement must not overtake it
        else:
            self._loop.call_soon_threadsafe(self._note_report, report)

    def record(self, recorded: Recorded, answer: StepAnswer, /, *, is_awaited: bool) -> None:
        """Send a step of a durable run with the next exchange. See `Completer.record`."""
        completer = self.session.completer
        was_awaited = completer.is_awaited
        completer.record(recorded, answer, is_awaited=is_awaited)
        if was_awaited:
            return  # the reserve loop has a reason for an exchange
        if is_awaited:
            self.fetcher.wake()
        elif len(completer.pending) == 1:
            self.fetcher.note_result()

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
                attempt.task.add_done_callback(partial(self._starter.end_unstarted, attempt))
        # A handler may wait for the tasks that it has cancelled, of which this loop is one.
        self._loop.call_later(self._settings.grace, self._end_loop)

    def _end_loop(self) -> None:
        """Let the reserve loop send what is pending and end, whatever runs."""
        self._is_aborted = self.is_aborted  # from here on, `_flush` may cancel the task
        self.fetcher.closing = True
        self.fetcher.wake()
        self.fetcher.long_poll.interrupt()

    async def _make_exchanges(self) -> None:
        while await self.fetcher.wait_for_reason():
            try:
                await self._exchange()
                self.failure = None
                if self.session.completer.has_answered:
                    await asyncio.sleep(0)  # the next steps of these runs join the next exchange
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
            self._starter.return_unheld(reply.deliveries)
            reply = msgspec.structs.replace(reply, deliveries=[])
        if session.completer.closed:
            await self._reopen_session()
        else:
            self._receive(reply, request)
            if self._stops_when_empty and not was_recalled:
                self._check_empty(reply, request)

    def _receive(self, reply: Reply, request: ReserveRequest) -> None:
        """Start or hold the delivered jobs, and note what the reply says."""
        slots, starter = self._slots, self._starter
        starter.hold(reply.deliveries)
        self.fetcher.note_reply(reply, request)
        starter.runner.reporter.note_exchange(reply.now)
        if slots.draining or slots.quiet:
            starter.release_all()
        if slots.suspects:
            starter.release_suspects()
        starter.start_jobs()
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
        if self.takes_no_more_jobs and not self._slots.running:
            self._request_stop()

    # Callbacks

    def _note_report(self, report: Progressed | Spent) -> None:
        if isinstance(report, Progressed):
            self.session.completer.report_progress(report)
        else:
            self.session.completer.settle(report)
        self.fetcher.wake()

    def _note_heartbeat(self) -> None:
        """Note what each reply to a heartbeat says."""
        self._starter.unresponsive.check(self._slots.running)
        heartbeat = self.session.heartbeat
        has_expired = self._monotonic() >= heartbeat.no_expiry_before
        self.fetcher.note_fleet(heartbeat.fleet_size, has_expired=has_expired)

    def _apply_heartbeat_reply(self, reply: HeartbeatReply) -> None:
        """Apply the command and the cancel requests that the reply carries."""
        self._note_heartbeat()
        self._apply_command(reply.command)
        if reply.cancel:
            self._starter.cancel(set(reply.cancel))

    def _apply_command(self, command: WorkerCommand | None) -> None:
        """Apply the command of an operator; None takes `quiet` back."""
        slots = self._slots
        if command is WorkerCommand.STOP:
            if not self._has_stop_command:
                _log.info("stopping: an operator sent the command")
                self._has_stop_command = True
            self._request_stop()
        elif command is WorkerCommand.QUIET and not slots.quiet:
            _log.info("quiet: an operator sent the command; no further job is started")
            slots.quiet = True
            self._starter.release_all()
            self._withdraw()
        elif command is None and slots.quiet:
            _log.info("jobs are started again: the operator took the command back")
            slots.quiet = False
            self.fetcher.note_possible_work()

    def _on_session_end(self, session: WorkerSession) -> None:
        if session is self.session:
            self._starter.drop_leases()
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
            read_stack=self.read_stack,
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
                self.session = self._starter.session = session
                self.fetcher.begin_session(session.completer)
                return
            session = self._make_session()

    async def _reopen_session(self) -> None:
        """Drop the leases of the ended session, close it, and open a new one unless stopping.

        Its jobs wake other workers: this one does not listen meanwhile. If its exchanges failed
        although its heartbeats were answered, a job may be too large for its connection. So it
        lets the others reserve first.
        """
        self._starter.drop_leases()
        self._withdraw()
        await self._starter.wait_until_idle(_INTERRUPT_TIMEOUT, asyncio.Event())
        if not await self._let_session_expire():
            await self.session.close(
                self._starter.list_unfinished_leases(), until_answered=not self.fetcher.closing
            )
        if self.session.completer.is_connection_slow:
            await self._clock.sleep(_PAUSE_ON_SLOW_CONNECTION)
        if not (self.fetcher.closing or self.fetcher.cancelled):
            await self._open_session(self._make_session())

    # Stopping

    def _withdraw(self) -> None:
        """End a wait for jobs, so that no job wakes this worker in place of another."""
        self.fetcher.wakeups.withdraw()
        self.fetcher.long_poll.interrupt()

    async def _flush(self, task: asyncio.Task[None]) -> None:
        """Wait until all settlements are stored, at most `_FLUSH_TIMEOUT`; then cancel the loop."""
        await wait_for_first(self._clock.sleep(_FLUSH_TIMEOUT), asyncio.wait({task}))
        self.session.completer.closed = True
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
