"""Slots and the reserve loop; knows no policy.

The loop makes one exchange after another, each when there is a reason for it: something to settle,
or room and a hint that there is work. What comes back starts at once while slots are free; the rest
is held, at most what runs in about 20 ms.
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
from nimburion.core.exchange import NOTHING, Reply, Want
from nimburion.core.ids import Entropy
from nimburion.core.lease import SUSPECT_AFTER, Delivery, Lease
from nimburion.core.service import first_of
from nimburion.core.session import Orders
from nimburion.core.settings import Settings
from nimburion.core.settlement import Cancelled, Progressed, Released, Settlement
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.worker.attempt import (
    CANCELLED_ON_REQUEST,
    Attempt,
    Attempts,
    Why,
    raise_keyboard_interrupt,
)
from nimburion.jobs.worker.connectivity import Reach
from nimburion.jobs.worker.exchange_size import ExchangeSize
from nimburion.jobs.worker.exchange_trigger import Reasons
from nimburion.jobs.worker.prefetch import MOST_ASKED, Demand, Prefetch, StallWatch
from nimburion.jobs.worker.session import Tenure, new_session
from nimburion.jobs.worker.wakeups import Hints, Patience

_log = logging.getLogger("nimburion.worker")

_UNWIND_PATIENCE = 1.0
_AFTER_FAULT = 5.0
_FLUSH_PATIENCE = 5.0


class Worker:
    """Runs jobs in this process until it is stopped. Used once."""

    def __init__(
        self,
        backend: Backend,
        registry: Registry,
        settings: Settings,
        *,
        clock: Clock,
        entropy: Entropy,
        events: Events,
        threaded_keeper: bool,
    ) -> None:
        self._backend = backend
        self._registry = registry
        self._settings = settings
        self._clock = clock
        self._monotonic = clock.monotonic
        self._entropy = entropy
        self._events = events
        self._threaded_keeper = threaded_keeper
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._concurrency = settings.concurrency
        self.reach: Reach = Reach(clock)
        self.failure: BaseException | None = None
        """A fault of the engine, until an exchange works again."""
        self.demand: Demand = Demand(registry, settings, entropy)
        self._prefetch = Prefetch(settings.concurrency, remote=backend.capabilities.remote)
        self._size = ExchangeSize(settings.limits.exchange)
        self._held: deque[Delivery] = deque()
        self._suspects: deque[Delivery] = deque()
        self._alone = False
        self._running: set[Attempt] = set()
        # Shared with the watchdog's thread, as `_held` and `_suspects` are. Whoever takes an entry
        # out has it: `remove` and `pop` are atomic, so no lock is needed.
        self._not_begun: set[Attempt] = set()
        self._under_way: deque[bytes] = deque()
        """The nonce of the exchange whose reply is awaited, if it may hand out jobs."""
        self._patience = Patience(backend, self.demand.queues)
        self._reasons = Reasons(
            self._loop,
            self._prefetch,
            held=self._held,
            running=self._running,
            count_room=self._room,
            long_poll=self._patience.offered,
        )
        self.hints: Hints = Hints(backend, self.demand.queues, clock, self._reasons.hint)
        self._stall = StallWatch(self._loop, self._held, self._on_stall)
        self._draining = False
        self._quiet = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._attempts: Attempts
        self.tenure: Tenure

    # Coming and going

    async def start(self, attempts: Attempts) -> None:
        """Open a session and begin to reserve."""
        self._attempts = attempts
        await self._open_tenure()
        self._task = asyncio.create_task(self._run(), name="nimburion-worker")
        await self.hints.start()

    def take_no_more(self) -> None:
        """From now on reserve nothing, and hand back what has not started."""
        self._draining = True
        self._give_back_held()
        self._reasons.ring()
        self._patience.end()

    async def stop(self, grace: float, hurry: asyncio.Event) -> list[Lease]:
        """Take no more, let what runs finish for `grace` seconds (or until `hurry`), interrupt it,
        write everything down.

        Returns the leases of handlers that are still running: nobody could stop them. The session
        is still open; `leave` closes it.
        """
        self.take_no_more()
        await self.hints.stop()
        await self._until_quiet(grace, hurry)
        for attempt in self._running:
            attempt.interrupt(Why.STOP)
        await self._until_quiet(_UNWIND_PATIENCE, hurry)
        self._reasons.closing = True
        self._reasons.ring()
        self._patience.end()
        if self._task is not None:
            if self._task.done() and self.tenure.conveyor.loaded:  # it was cancelled twice
                self._task = asyncio.create_task(self._run(), name="nimburion-worker")
            await self._flushed(self._task)
        return self._stuck()

    async def leave(self, running: list[Lease]) -> None:
        """Close the session. `running` stay leased until it expires; all others are free."""
        await self.tenure.close(running)

    @property
    def done(self) -> asyncio.Task[None] | None:
        """The reserve loop; it ends early only by a fault of the engine."""
        return self._task

    @property
    def running(self) -> int:
        """How many handlers run."""
        return len(self._running)

    @property
    def held(self) -> int:
        """How many jobs are reserved and have not begun."""
        return len(self._held) + len(self._suspects)

    def recall(self) -> tuple[list[Lease], bytes | None]:
        """Take what has not begun away from the loop, which is blocked: leases, and the nonce of an
        exchange that may bring more. The caller gives them back. From any thread; what the loop
        takes at the same time belongs to the loop."""
        held: list[Delivery] = []
        for line in (self._held, self._suspects):
            while (delivery := _take(line)) is not None:
                held.append(delivery)
        leases = [delivery.lease for delivery in held]
        for attempt in list(self._not_begun):
            with suppress(KeyError):
                self._not_begun.remove(attempt)
                attempt.accounted = True
                leases.append(attempt.delivery.lease)
        if held:
            self._loop.call_soon_threadsafe(self._free_all, held)
        nonce = None
        with suppress(IndexError):
            nonce = self._under_way.pop()
        return leases, nonce

    def _free_all(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.demand.free(delivery)
        self._reasons.hint()

    def attempt_of(self, task: asyncio.Task[Any]) -> Attempt | None:
        """The attempt that this task performs; from any thread."""
        return next((one for one in list(self._running) if one.task is task), None)

    def report(self, lease: Lease, fraction: float, message: str) -> None:
        """Send a job's progress with the next exchange; from any thread."""
        progress = Progressed(lease, fraction, message)
        if threading.get_ident() == self._thread:
            self._note_progress(progress)  # at once: the settlement must not overtake it
        else:
            self._loop.call_soon_threadsafe(self._note_progress, progress)

    # The loop

    async def _run(self) -> None:
        try:
            await self._make_exchanges()
        except asyncio.CancelledError:
            if self._reasons.closing:
                raise
            _log.warning("the worker's task was cancelled from outside; it takes no more jobs")
            self._wind_down()
            await self._make_exchanges()

    def _wind_down(self) -> None:
        """The reserve loop was cancelled: by a handler, or because the event loop ends. Every
        attempt must still be counted, so the loop goes on until all have ended and are stored."""
        self.take_no_more()
        self._reasons.cancelled = True
        for attempt in self._running:
            if attempt.task is not None:
                attempt.task.add_done_callback(partial(self._end_unstarted, attempt))

    def _end_unstarted(self, attempt: Attempt, _: object) -> None:
        """A task that is cancelled before its first step runs none of its code."""
        if attempt not in self._running or attempt.context is not None:
            return
        if attempt.accounted:  # the watchdog has given it back
            self._vacate(attempt)
        else:
            self._not_begun.discard(attempt)
            self._end(attempt, Released(attempt.delivery.lease))

    async def _make_exchanges(self) -> None:
        while not self._reasons.is_over:
            await self._reasons.wait_for_reason()
            try:
                await self._turn()
                self.failure = None
            except Exception as error:  # noqa: BLE001 - the loop must not die; its jobs run again
                self.failure = error
                _log.exception("an exchange failed; its session is given up")
                self.tenure.conveyor.abandoned = True
                await self._clock.sleep(_AFTER_FAULT)

    async def _turn(self) -> None:
        """One exchange, and what comes of it."""
        want = self._want()
        self._reasons.begin(want)
        if want.total and not want.patience:
            self.hints.listen()
        tenure = self.tenure
        if want.total:
            self._under_way.append(want.nonce)
        try:
            reply = await tenure.conveyor.turn(want)
        except (SessionLost, OutOfOrder) as error:
            # An abandoned conveyor says so too, whose session its store may still believe in.
            tenure.lost = isinstance(error, SessionLost) and not tenure.conveyor.abandoned
            await self._begin_anew()
            return
        finally:
            was_recalled = want.total > 0 and not self._under_way
            self._under_way.clear()
        if was_recalled:
            # The loop was blocked meanwhile, and other workers may have these jobs by now.
            self._return_all(reply.deliveries)
            reply = msgspec.structs.replace(reply, deliveries=[])
        if tenure.conveyor.abandoned:
            await self._begin_anew()
        else:
            self._receive(reply, want)

    def _want(self) -> Want:
        total = min(self._room(), MOST_ASKED)
        if total <= 0:
            return NOTHING
        everything = self._reasons.hinted or not self._reasons.more
        patience = 0.0 if self._running else self._patience.until(self.hints.due_in)
        return self.demand.want(total, everything=everything, patience=patience)

    def _receive(self, reply: Reply, want: Want) -> None:
        for delivery in reply.deliveries:
            self.demand.take(delivery)
            line = self._suspects if delivery.lost >= SUSPECT_AFTER else self._held
            line.append(delivery)
        if want.total:
            self._reasons.more = bool(reply.waiting)
            self.demand.remember(reply.waiting)
        self.hints.expect(reply, found=bool(reply.deliveries))
        self._attempts.read_log_level()
        if self._draining:
            self._give_back_held()
        while len(self._suspects) > 1:
            # If the one that runs kills this worker, those that wait here would share the blame.
            if (suspect := _take(self._suspects, last=True)) is not None:
                self._put_back(suspect, Released(suspect.lease))
        self._fill()

    def _return_all(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.tenure.conveyor.settle(Released(delivery.lease))
        self._reasons.hint()

    def _room(self) -> int:
        """How many more jobs would be welcome."""
        if self._draining or self._suspects or self._alone or self.tenure.conveyor.is_full:
            return 0
        return self._concurrency + self._prefetch.size - len(self._running) - len(self._held)

    # Attempts

    def _fill(self) -> None:
        """Start what may start; nothing while too many results wait to be written."""
        held, running = self._held, self._running
        if self.tenure.conveyor.is_full:
            if held:
                self._stall.watch()
            return
        while held and len(running) < self._concurrency and not self._alone:
            if (delivery := _take(held)) is not None:
                self._begin(delivery)
        if held:
            self._stall.watch()
        if self._suspects and not running and not held and self.tenure.conveyor.all_stored:
            suspect = _take(self._suspects)
            if suspect is not None:
                # From here on its lease is the only one of this session: if the suspect kills this
                # worker, what has ended or was given back before is not counted as lost with it.
                self._alone = True
                self._begin(suspect)

    def _begin(self, delivery: Delivery) -> None:
        self._stall.begun += 1
        attempt = Attempt(delivery, self.tenure.session.id)
        self._running.add(attempt)
        self._not_begun.add(attempt)
        attempt.task = asyncio.Task(self._perform(attempt), loop=self._loop, name=delivery.name)

    async def _perform(self, attempt: Attempt) -> None:
        try:
            self._not_begun.remove(attempt)
        except KeyError:  # the watchdog has given it back
            self._vacate(attempt)
            return
        started = self._monotonic()
        if started >= self.tenure.keeper.believed_until:
            # This process slept (SIGSTOP, suspend): somebody else may have the job by now.
            self._end(attempt, Released(attempt.delivery.lease))
            return
        settlement: Settlement | None = Released(attempt.delivery.lease, _AFTER_FAULT)
        try:
            settlement = await self._attempts.perform(attempt)
        except BaseException as error:  # noqa: BLE001 - whatever happens, the attempt counts
            settlement = self._attempts.after_fault(attempt, error)
        finally:
            self._prefetch.learn(self._monotonic() - started)
            self._end(attempt, settlement)
            if self._held and not self._prefetch.size:  # longer jobs than it was held for
                self._give_back(self._held)
            if attempt.keyboard_interrupt is not None:
                raise_keyboard_interrupt(attempt)

    def _end(self, attempt: Attempt, settlement: Settlement | None) -> None:
        if settlement is not None:
            attempt.accounted = True
            self.tenure.conveyor.settle(settlement)
        if attempt.in_thread and attempt.call is not None:
            # The thread cannot be stopped: its slot is taken until it returns.
            attempt.call.on_finish = lambda: self._vacate(attempt, late=True)
            self._reasons.ring()
        else:
            self._vacate(attempt)

    def _vacate(self, attempt: Attempt, *, late: bool = False) -> None:
        self._reasons.hinted |= (
            late  # its queue may have been at its cap: there may be more for it now
        )
        self._running.discard(attempt)
        attempt.let_go()
        self.demand.free(attempt.delivery)
        if not self._running:
            self._alone = False
            self._quiet.set()
        if self._held or self._suspects:
            self._fill()
        self._reasons.note_result()

    # What others say

    def _on_stall(self) -> None:
        """Give back what is held behind long jobs: other workers could run it."""
        self._prefetch.suspend()
        self._give_back(self._held)

    def _note_progress(self, progress: Progressed) -> None:
        self.tenure.conveyor.report(progress)
        self._reasons.ring()

    def _obey(self, orders: Orders) -> None:
        """Cancel what somebody wants cancelled."""
        asked = set(orders.cancel)
        for attempt in self._running:
            if attempt.delivery.lease in asked and attempt.why is None:
                attempt.interrupt(Why.CANCEL)
        for line in (self._held, self._suspects):
            for delivery in [d for d in list(line) if d.lease in asked]:
                with suppress(ValueError):  # the watchdog has taken it
                    line.remove(delivery)
                    self._put_back(delivery, Cancelled(delivery.lease, CANCELLED_ON_REQUEST))

    def _on_tenure_end(self, tenure: Tenure) -> None:
        if tenure is self.tenure:
            self._give_up()
            self._reasons.ring()
            self._patience.end()

    # Sessions

    async def _open_tenure(self) -> None:
        while True:
            tenure = Tenure(
                self._backend,
                new_session(self._registry, self._settings, self._entropy),
                self._clock,
                self._events,
                self.reach,
                threaded=self._threaded_keeper,
                size=self._size,
                max_unsettled=self._settings.limits.unsettled,
                on_orders=self._obey,
                on_end=self._on_tenure_end,
            )
            # `SessionLost`: it was opened, the answer got lost, and it was rescued since.
            with suppress(SessionLost):
                await tenure.open()
                self.tenure, self._reasons.conveyor = tenure, tenure.conveyor
                return

    async def _begin_anew(self) -> None:
        """The session is over: stop believing in what it held, and open another."""
        self._give_up()
        await self._until_quiet(_UNWIND_PATIENCE, asyncio.Event())
        await self.tenure.close(self._stuck(), patiently=not self._reasons.closing)
        if not (self._reasons.closing or self._reasons.cancelled):
            await self._open_tenure()
            self._reasons.hinted = True

    def _give_up(self) -> None:
        for line in (self._held, self._suspects):
            while (delivery := _take(line)) is not None:
                self.demand.free(delivery)
        for attempt in self._running:
            attempt.interrupt(Why.LOST)

    # Stopping

    def _give_back_held(self) -> None:
        for line in (self._held, self._suspects):
            self._give_back(line)

    def _give_back(self, line: deque[Delivery]) -> None:
        while (delivery := _take(line)) is not None:
            self._put_back(delivery, Released(delivery.lease))

    def _put_back(self, delivery: Delivery, settlement: Settlement) -> None:
        self.demand.free(delivery)
        self.tenure.conveyor.settle(settlement)
        self._reasons.ring()

    async def _until_quiet(self, seconds: float, hurry: asyncio.Event) -> None:
        """Return when nothing runs, after `seconds`, or at once when `hurry` is set."""
        self._quiet.clear()
        if self._running:
            await first_of(self._clock.sleep(seconds), self._quiet.wait(), hurry.wait())

    async def _flushed(self, task: asyncio.Task[None]) -> None:
        """Wait until all is written; a store that does not answer is not waited for for ever."""
        await first_of(self._clock.sleep(_FLUSH_PATIENCE), asyncio.wait({task}))
        self.tenure.conveyor.abandoned = True
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def _stuck(self) -> list[Lease]:
        """Leases of this session whose handlers are still running."""
        session_id = self.tenure.session.id
        return [
            attempt.delivery.lease
            for attempt in self._running
            if attempt.session_id == session_id and not attempt.accounted
        ]


def _take(line: deque[Delivery], *, last: bool = False) -> Delivery | None:
    """The next of a line that another thread may empty at the same time; None: it is empty."""
    try:
        return line.pop() if last else line.popleft()
    except IndexError:
        return None
