"""The worker: slots, prefetched jobs and the reserve loop. Retry policy is decided elsewhere.

The loop makes one exchange at a time, and only when there is a reason for it: settlements to send,
or room together with a sign of possible work. Delivered jobs start at once while slots are free.
The others are prefetched: at most as many as run in about 20 ms.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.clock import Clock
from nimburion.core.errors import OutOfOrder, SessionLost
from nimburion.core.events import Events
from nimburion.core.exchange import RESERVE_NOTHING, Reply, ReserveRequest
from nimburion.core.ids import Entropy
from nimburion.core.lease import SUSPECT_AFTER, Delivery, Lease
from nimburion.core.service import wait_for_first
from nimburion.core.session import HeartbeatReply
from nimburion.core.settings import Settings
from nimburion.core.settlement import Cancelled, Progressed, Released, Settlement
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.worker.attempt import (
    CANCELLED_ON_REQUEST,
    Attempt,
    AttemptRunner,
    Interruption,
    raise_keyboard_interrupt,
)
from nimburion.jobs.worker.connectivity import BackendConnectivity
from nimburion.jobs.worker.exchange_size import ExchangeSize
from nimburion.jobs.worker.exchange_trigger import ExchangeTrigger
from nimburion.jobs.worker.prefetch import MAX_REQUESTED, LaneSelector, Prefetch, PrefetchWatchdog
from nimburion.jobs.worker.session import WorkerSession, make_session
from nimburion.jobs.worker.wakeups import LongPoll, WakeupListener

_log = logging.getLogger("nimburion.worker")

_INTERRUPT_TIMEOUT = 1.0
"""Seconds that interrupted handlers have to end."""
_PAUSE_AFTER_ERROR = 5.0
"""Seconds until the next exchange, or the next attempt of a job, after an error inside nimburion.
"""
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
        self._concurrency = settings.concurrency
        self.connectivity: BackendConnectivity = BackendConnectivity(clock, backend.describe())
        self.failure: BaseException | None = None
        """The latest error inside the engine; None once an exchange succeeds again."""
        self.lanes: LaneSelector = LaneSelector(registry, settings, entropy)
        self._prefetch_size = Prefetch(
            settings.concurrency, remote=backend.capabilities.out_of_process
        )
        self._size = ExchangeSize(settings.limits.exchange)
        self._prefetched: deque[Delivery] = deque()
        self._suspects: deque[Delivery] = deque()
        self._runs_suspect = False
        self._running: set[Attempt] = set()
        # The watchdog's thread shares this set, `_prefetched` and `_suspects`. Only the thread that
        # removes an entry may use it. `remove` and `pop` are atomic, so no lock is needed.
        self._not_begun: set[Attempt] = set()
        self._under_way: deque[bytes] = deque()
        """The nonce of the exchange in flight, if its reply may contain deliveries; else empty."""
        self._long_poll = LongPoll(backend, self.lanes.queues)
        self._trigger = ExchangeTrigger(
            self._loop,
            self._prefetch_size,
            held=self._prefetched,
            running=self._running,
            count_free_slots=self._count_free_places,
            long_poll=self._long_poll.is_supported,
        )
        self.wakeups: WakeupListener = WakeupListener(
            backend, self.lanes.queues, clock, self._trigger.note_possible_work
        )
        self._prefetch_watchdog = PrefetchWatchdog(
            self._loop, self._prefetched, self._on_starvation
        )
        self._draining = False
        self._idle = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._attempt_runner: AttemptRunner
        self.session: WorkerSession

    # Start and stop

    async def start(self, attempt_runner: AttemptRunner) -> None:
        """Open a session, then start the reserve loop and the wake-up listener."""
        self._attempt_runner = attempt_runner
        await self._open_session()
        self._task = asyncio.create_task(self._run(), name="nimburion-worker")
        await self.wakeups.start()

    def drain(self) -> None:
        """Reserve no more jobs, and release those that have not started."""
        self._draining = True
        self._release_all_prefetched()
        self._trigger.wake()
        self._long_poll.interrupt()

    async def stop(self, grace: float, stop_now: asyncio.Event) -> list[Lease]:
        """Stop reserving, let running jobs finish, interrupt the others and send all settlements.

        Running jobs get `grace` seconds, or less if `stop_now` is set.

        Returns the leases of handlers that still run because they cannot be stopped (threads). The
        session is still open; `close_session` closes it.
        """
        self.drain()
        await self.wakeups.stop()
        await self._wait_until_idle(grace, stop_now)
        for attempt in self._running:
            attempt.interrupt(Interruption.STOP)
        await self._wait_until_idle(_INTERRUPT_TIMEOUT, stop_now)
        self._trigger.closing = True
        self._trigger.wake()
        self._long_poll.interrupt()
        if self._task is not None:
            if self._task.done() and self.session.completer.has_pending:  # cancelled twice
                self._task = asyncio.create_task(self._run(), name="nimburion-worker")
            await self._flush(self._task)
        return self._list_unfinished_leases()

    async def close_session(self, running: list[Lease]) -> None:
        """Close the session. Leases in `running` stay until they expire; others are released."""
        await self.session.close(running)

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task of the reserve loop; it ends before `stop` only after an engine error."""
        return self._task

    @property
    def running_count(self) -> int:
        """The number of running handlers."""
        return len(self._running)

    @property
    def prefetched_count(self) -> int:
        """The number of jobs that are reserved and have not started."""
        return len(self._prefetched) + len(self._suspects)

    def recall(self) -> tuple[list[Lease], bytes | None]:
        """Take the jobs that have not started away from the blocked event loop.

        Returns their leases, and the nonce of an exchange in flight that may deliver more jobs (or
        None). The caller releases them. Safe from any thread. A job that the loop takes at the same
        moment is not returned here.
        """
        held: list[Delivery] = []
        for line in (self._prefetched, self._suspects):
            while (delivery := _take(line)) is not None:
                held.append(delivery)
        leases = [delivery.lease for delivery in held]
        for attempt in list(self._not_begun):
            with suppress(KeyError):
                self._not_begun.remove(attempt)
                attempt.settled = True
                leases.append(attempt.delivery.lease)
        if held:
            self._loop.call_soon_threadsafe(self._free_all, held)
        nonce = None
        with suppress(IndexError):
            nonce = self._under_way.pop()
        return leases, nonce

    def _free_all(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.lanes.free_slot(delivery)
        self._trigger.note_possible_work()

    def find_attempt(self, task: asyncio.Task[Any]) -> Attempt | None:
        """Return the attempt that `task` performs, or None. Safe from any thread."""
        return next((attempt for attempt in list(self._running) if attempt.task is task), None)

    def report(self, lease: Lease, fraction: float, message: str) -> None:
        """Send a job's progress with the next exchange. Safe from any thread."""
        progress = Progressed(lease, fraction, message)
        if threading.get_ident() == self._thread:
            self._note_progress(progress)  # synchronously: the settlement must not overtake it
        else:
            self._loop.call_soon_threadsafe(self._note_progress, progress)

    # The loop

    async def _run(self) -> None:
        try:
            await self._make_exchanges()
        except asyncio.CancelledError:
            if self._trigger.closing:
                raise
            _log.warning("the worker's task was cancelled from outside; it takes no more jobs")
            self._wind_down()
            await self._make_exchanges()

    def _wind_down(self) -> None:
        """Drain, so that the reserve loop ends after every attempt is settled and stored.

        Called when a handler or the end of the event loop cancels the reserve loop.
        """
        self.drain()
        self._trigger.cancelled = True
        for attempt in self._running:
            if attempt.task is not None:
                attempt.task.add_done_callback(partial(self._end_unstarted, attempt))

    def _end_unstarted(self, attempt: Attempt, _: object) -> None:
        """Settle an attempt whose task was cancelled before its first step."""
        if attempt not in self._running or attempt.context is not None:
            return
        if attempt.settled:  # the watchdog has released it
            self._free_slot(attempt)
        else:
            self._not_begun.discard(attempt)
            self._finish(attempt, Released(attempt.delivery.lease))

    async def _make_exchanges(self) -> None:
        while not self._trigger.is_over:
            await self._trigger.wait_for_reason()
            try:
                await self._exchange()
                self.failure = None
            except Exception as error:  # noqa: BLE001 - the loop must not die; its jobs run again
                self.failure = error
                _log.exception("an exchange failed; its session is given up")
                self.session.completer.closed = True
                await self._clock.sleep(_PAUSE_AFTER_ERROR)

    async def _exchange(self) -> None:
        """Make one exchange and process its reply. Open a new session if this one is over."""
        request = self._make_request()
        self._trigger.start_exchange(request)
        if request.total and not request.long_poll:
            self.wakeups.resume()
        session = self.session
        if request.total:
            self._under_way.append(request.nonce)
        try:
            reply = await session.completer.exchange(request)
        except (SessionLost, OutOfOrder) as error:
            # A completer that was closed locally also raises SessionLost; the backend may still
            # know its session.
            session.lost = isinstance(error, SessionLost) and not session.completer.closed
            await self._reopen_session()
            return
        finally:
            was_recalled = request.total > 0 and not self._under_way
            self._under_way.clear()
        if was_recalled:
            # The watchdog recalled this exchange because the loop was blocked. Other workers may
            # hold these jobs by now.
            self._return_all(reply.deliveries)
            reply = msgspec.structs.replace(reply, deliveries=[])
        if session.completer.closed:
            await self._reopen_session()
        else:
            self._receive(reply, request)

    def _make_request(self) -> ReserveRequest:
        total = min(self._count_free_places(), MAX_REQUESTED)
        if total <= 0:
            return RESERVE_NOTHING
        everything = self._trigger.may_have_work or not self._trigger.lanes_not_empty
        long_poll = 0.0 if self._running else self._long_poll.choose_timeout(self.wakeups.due_in)
        return self.lanes.make_request(total, everything=everything, long_poll=long_poll)

    def _receive(self, reply: Reply, request: ReserveRequest) -> None:
        for delivery in reply.deliveries:
            self.lanes.occupy_slot(delivery)
            line = self._suspects if delivery.lost >= SUSPECT_AFTER else self._prefetched
            line.append(delivery)
        if request.total:
            self._trigger.lanes_not_empty = bool(reply.waiting)
            self.lanes.note_non_empty(reply.waiting)
        self.wakeups.note_reply(reply, found=bool(reply.deliveries))
        self._attempt_runner.read_log_level()
        if self._draining:
            self._release_all_prefetched()
        while len(self._suspects) > 1:
            # Run one suspect at a time. If it kills this worker, the others that wait here would
            # each count a lost lease.
            if (suspect := _take(self._suspects, last=True)) is not None:
                self._return_delivery(suspect, Released(suspect.lease))
        self._start_jobs()

    def _return_all(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.session.completer.settle(Released(delivery.lease))
        self._trigger.note_possible_work()

    def _count_free_places(self) -> int:
        """Return how many more jobs this worker can take, running and prefetched together."""
        if self._draining or self._suspects or self._runs_suspect or self.session.completer.is_full:
            return 0
        return (
            self._concurrency
            + self._prefetch_size.size
            - len(self._running)
            - len(self._prefetched)
        )

    # Attempts

    def _start_jobs(self) -> None:
        """Start jobs while slots are free.

        Start none while too many bytes of results wait to be sent.
        """
        held, running = self._prefetched, self._running
        if self.session.completer.is_full:
            if held:
                self._prefetch_watchdog.watch()
            return
        while held and len(running) < self._concurrency and not self._runs_suspect:
            if (delivery := _take(held)) is not None:
                self._start_job(delivery)
        if held:
            self._prefetch_watchdog.watch()
        if self._suspects and not running and not held and self.session.completer.all_stored:
            suspect = _take(self._suspects)
            if suspect is not None:
                # From here on its lease is the only lease of this session. If the suspect kills
                # this worker, jobs that ended or were released before do not count as lost.
                self._runs_suspect = True
                self._start_job(suspect)

    def _start_job(self, delivery: Delivery) -> None:
        self._prefetch_watchdog.started_count += 1
        attempt = Attempt(delivery, self.session.session.id)
        self._running.add(attempt)
        self._not_begun.add(attempt)
        attempt.task = asyncio.Task(self._perform(attempt), loop=self._loop, name=delivery.name)

    async def _perform(self, attempt: Attempt) -> None:
        try:
            self._not_begun.remove(attempt)
        except KeyError:  # the watchdog has released it
            self._free_slot(attempt)
            return
        started = self._monotonic()
        if started >= self.session.heartbeat.lease_valid_until:
            # The process was suspended (SIGSTOP, sleep) and the lease expired: another worker may
            # have the job.
            self._finish(attempt, Released(attempt.delivery.lease))
            return
        settlement: Settlement | None = Released(attempt.delivery.lease, _PAUSE_AFTER_ERROR)
        try:
            settlement = await self._attempt_runner.perform(attempt)
        except BaseException as error:  # noqa: BLE001 - whatever happens, the attempt counts
            settlement = self._attempt_runner.settle_after_error(attempt, error)
        finally:
            self._prefetch_size.learn(self._monotonic() - started)
            self._finish(attempt, settlement)
            # Size 0 with prefetched jobs: jobs run longer than the prefetch assumed.
            if self._prefetched and not self._prefetch_size.size:
                self._release_prefetched(self._prefetched)
            if attempt.keyboard_interrupt is not None:
                raise_keyboard_interrupt(attempt)

    def _finish(self, attempt: Attempt, settlement: Settlement | None) -> None:
        if settlement is not None:
            attempt.settled = True
            self.session.completer.settle(settlement)
        if attempt.in_thread and attempt.call is not None:
            # A thread cannot be stopped, so the slot stays occupied until it returns.
            attempt.call.on_finish = lambda: self._free_slot(attempt, late=True)
            self._trigger.wake()
        else:
            self._free_slot(attempt)

    def _free_slot(self, attempt: Attempt, *, late: bool = False) -> None:
        self._trigger.may_have_work |= late  # its queue was at its limit: it may have more jobs
        self._running.discard(attempt)
        attempt.clear()
        self.lanes.free_slot(attempt.delivery)
        if not self._running:
            self._runs_suspect = False
            self._idle.set()
        if self._prefetched or self._suspects:
            self._start_jobs()
        self._trigger.note_result()

    # Callbacks

    def _on_starvation(self) -> None:
        """Release the jobs prefetched behind long jobs, so that other workers can run them."""
        self._prefetch_size.suspend()
        self._release_prefetched(self._prefetched)

    def _note_progress(self, progress: Progressed) -> None:
        self.session.completer.report_progress(progress)
        self._trigger.wake()

    def _apply_heartbeat_reply(self, reply: HeartbeatReply) -> None:
        """Cancel the jobs for which the reply carries a cancel request."""
        cancelled = set(reply.cancel)
        for attempt in self._running:
            if attempt.delivery.lease in cancelled and attempt.interruption is None:
                attempt.interrupt(Interruption.CANCEL)
        for line in (self._prefetched, self._suspects):
            for delivery in [d for d in list(line) if d.lease in cancelled]:
                with suppress(ValueError):  # the watchdog has taken it
                    line.remove(delivery)
                    self._return_delivery(delivery, Cancelled(delivery.lease, CANCELLED_ON_REQUEST))

    def _on_session_end(self, session: WorkerSession) -> None:
        if session is self.session:
            self._drop_leases()
            self._trigger.wake()
            self._long_poll.interrupt()

    # Sessions

    async def _open_session(self) -> None:
        while True:
            session = WorkerSession(
                self._backend,
                make_session(self._registry, self._settings, self._entropy),
                self._clock,
                self._events,
                self.connectivity,
                threaded=self._heartbeat_in_thread,
                size=self._size,
                max_unsettled=self._settings.limits.unsettled,
                on_heartbeat_reply=self._apply_heartbeat_reply,
                on_end=self._on_session_end,
            )
            # `SessionLost`: the session was opened, the reply was lost, and the session was rescued
            # since.
            with suppress(SessionLost):
                await session.open()
                self.session, self._trigger.completer = session, session.completer
                return

    async def _reopen_session(self) -> None:
        """Drop the leases of the ended session, close it, and open a new one unless stopping."""
        self._drop_leases()
        await self._wait_until_idle(_INTERRUPT_TIMEOUT, asyncio.Event())
        await self.session.close(
            self._list_unfinished_leases(), until_answered=not self._trigger.closing
        )
        if not (self._trigger.closing or self._trigger.cancelled):
            await self._open_session()
            self._trigger.may_have_work = True

    def _drop_leases(self) -> None:
        for line in (self._prefetched, self._suspects):
            while (delivery := _take(line)) is not None:
                self.lanes.free_slot(delivery)
        for attempt in self._running:
            attempt.interrupt(Interruption.LOST)

    # Stopping

    def _release_all_prefetched(self) -> None:
        for line in (self._prefetched, self._suspects):
            self._release_prefetched(line)

    def _release_prefetched(self, line: deque[Delivery]) -> None:
        while (delivery := _take(line)) is not None:
            self._return_delivery(delivery, Released(delivery.lease))

    def _return_delivery(self, delivery: Delivery, settlement: Settlement) -> None:
        self.lanes.free_slot(delivery)
        self.session.completer.settle(settlement)
        self._trigger.wake()

    async def _wait_until_idle(self, seconds: float, stop_now: asyncio.Event) -> None:
        """Return when no handler runs, after `seconds`, or as soon as `stop_now` is set."""
        self._idle.clear()
        if self._running:
            await wait_for_first(self._clock.sleep(seconds), self._idle.wait(), stop_now.wait())

    async def _flush(self, task: asyncio.Task[None]) -> None:
        """Wait until all settlements are stored, at most `_FLUSH_TIMEOUT`; then cancel the loop."""
        await wait_for_first(self._clock.sleep(_FLUSH_TIMEOUT), asyncio.wait({task}))
        self.session.completer.closed = True
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def _list_unfinished_leases(self) -> list[Lease]:
        """Return the leases of this session whose handlers still run and are not settled."""
        session_id = self.session.session.id
        return [
            attempt.delivery.lease
            for attempt in self._running
            if attempt.session_id == session_id and not attempt.settled
        ]


def _take(line: deque[Delivery], *, last: bool = False) -> Delivery | None:
    """Remove and return the first delivery (with `last`, the last), or None if the deque is empty.

    Safe while another thread empties the same deque.
    """
    try:
        return line.pop() if last else line.popleft()
    except IndexError:
        return None
