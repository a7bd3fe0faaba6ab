"""Starts the jobs that a worker holds while slots are free, and settles them when they end.

From Python 3.12 on, a handler makes its first step while its task is created. A handler that never
waits has then ended, and its slot is free again, before the next job starts.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from nimburion.core.lease import SUSPECT_AFTER, Delivery, Lease
from nimburion.core.service import wait_for_first
from nimburion.core.settlement import Released, Settlement
from nimburion.core.timing.clock import Clock
from nimburion.jobs.worker.attempt.attempt import Attempt, Interruption
from nimburion.jobs.worker.attempt.attempt_end import RELEASE_DELAY_AFTER_ERROR
from nimburion.jobs.worker.attempt.attempt_runner import AttemptRunner, raise_keyboard_interrupt
from nimburion.jobs.worker.attempt.batch_run import BatchRun
from nimburion.jobs.worker.attempt.forking import end_forked
from nimburion.jobs.worker.attempt.unresponsive_handlers import UnresponsiveHandlers
from nimburion.jobs.worker.exchange.batches import Batches
from nimburion.jobs.worker.exchange.fetcher import Fetcher
from nimburion.jobs.worker.exchange.lane_selector import LaneSelector
from nimburion.jobs.worker.exchange.slots import PrefetchWatchdog, Slots, take
from nimburion.jobs.worker.session.session import WorkerSession

_create_task: Callable[..., asyncio.Task[Any]] = asyncio.Task
"""Creates the task of an attempt; from Python 3.12 on, the task makes its first step meanwhile."""
if sys.version_info >= (3, 12):
    _create_task = partial(asyncio.Task, eager_start=True)


class JobStarter:
    """Moves the jobs of one worker through its slots: held, running, settled.

    Args:
        slots: the jobs that the worker holds.
        batches: the batches of its batch handlers; None without any.
        lanes: counts the jobs that queues and child processes limit.
        fetcher: decides about the next exchange when a job has ended.
        session: the session whose jobs start, and which sends their settlements.
    """

    def __init__(
        self,
        slots: Slots,
        batches: Batches | None,
        lanes: LaneSelector,
        fetcher: Fetcher,
        session: WorkerSession,
        *,
        clock: Clock,
    ) -> None:
        self._slots = slots
        self._batches = batches
        if batches is not None:
            batches.on_ready = self.start_jobs
        self._lanes = lanes
        self._fetcher = fetcher
        self.session: WorkerSession = session
        """The current session of the worker."""
        self.runner: AttemptRunner
        """Runs the attempts. The worker sets it when it starts."""
        self.on_free_slot: Callable[[], None] | None = None
        """Called when a slot is free."""
        self.leaves_jobs: bool = False
        """Whether the session still holds jobs of handlers that an abort has interrupted."""
        self._clock = clock
        self._monotonic = clock.monotonic
        self._loop = asyncio.get_running_loop()
        self._variables = contextvars.copy_context()
        """The context variables of the code that started the worker; each job gets a copy."""
        self._is_starting_jobs = False
        self._ended_in_first_step = 0
        """The jobs that ended in their first step since the event loop last ran its callbacks."""
        self._prefetch_watchdog = PrefetchWatchdog(
            self._loop, slots.prefetched, self._on_starvation
        )
        self.unresponsive: UnresponsiveHandlers = UnresponsiveHandlers(
            slots.concurrency, clock.monotonic
        )
        """Logs handlers that do not end when they are told to."""
        self._idle = asyncio.Event()

    # Start

    def hold(self, deliveries: Sequence[Delivery]) -> None:
        """Hold delivered jobs until they start. Return those that no child process can run soon. A
        suspect joins no batch, because it runs alone.
        """
        if self._lanes.counts_jobs:
            deliveries, surplus = self._lanes.split_surplus(deliveries)
            for delivery in deliveries:
                self._lanes.occupy_slot(delivery)
            if surplus:
                self.return_unheld(surplus)
        slots = self._slots
        for delivery in deliveries:
            if delivery.lost >= SUSPECT_AFTER:
                slots.suspects.append(delivery)
            else:
                slots.batched.get(delivery.name, slots.prefetched).append(delivery)

    def start_jobs(self) -> None:
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
        self.start_jobs()
        self._fetcher.note_result()

    def _note_end_in_first_step(self) -> None:
        if not self._ended_in_first_step:
            self._loop.call_soon(self._start_further_jobs)
        self._ended_in_first_step += 1

    def _start_further_jobs(self) -> None:
        """Start further jobs, now that the event loop has run its other callbacks."""
        self._ended_in_first_step = 0
        self.start_jobs()

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
        if self.runner.guard.in_child:  # forked in the first step, which then waited
            end_forked(task)

    # End

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
            settlement = await self.runner.perform(attempt)
        except BaseException as error:  # noqa: BLE001 - the attempt counts after any error
            # For `finally`, if the next line raises: the interpreter closes the attempt, or
            # a hook raises.
            settlement = Released(attempt.delivery.lease, RELEASE_DELAY_AFTER_ERROR)
            settlement = await self.runner.settle_after_error(attempt, error)
        finally:
            prefetch = slots.prefetch
            seconds = (attempt.ended or self._monotonic()) - started
            if attempt.batch_run is None:
                prefetch.learn(seconds)
            if self._lanes.counts_jobs:
                self._lanes.note_run(attempt.delivery, seconds)
            self._settle(attempt, settlement)
            if prefetch.is_off and slots.prefetched:  # jobs run longer than it assumed
                self._release_prefetched()
            if attempt.keyboard_interrupt is not None:
                raise_keyboard_interrupt(attempt)

    def _settle(self, attempt: Attempt, settlement: Settlement | None) -> None:
        if settlement is not None:
            attempt.settled = True
            self.session.completer.settle(settlement)
        elif self.runner.end.is_worker_aborted() and not attempt.settled:
            self.leaves_jobs = True
        if attempt.call is not None and (call := attempt.find_thread_call()) is not None:
            # A thread cannot be stopped, so the slot stays occupied until it returns.
            call.on_finish = lambda: self._free_late_slot(attempt)
            self.unresponsive.report_kept_slot(attempt, self._slots.running)
            self._fetcher.wake()
        else:
            self._free_slot(attempt)
            self._fetcher.note_result()

    def end_unstarted(self, attempt: Attempt, _: object) -> None:
        """Settle an attempt whose task was cancelled before its first step."""
        if attempt not in self._slots.running or attempt.context is not None:
            return
        if attempt.settled:  # the watchdog has released it
            self._free_slot(attempt)
            self._fetcher.note_result()
        else:
            self._slots.not_begun.discard(attempt)
            self._settle(attempt, Released(attempt.delivery.lease, unstarted=True))

    def _free_unused_slot(self, attempt: Attempt) -> None:
        """Free the slot of an attempt whose handler was never called."""
        self._slots.count_unused_start()
        self._free_slot(attempt)
        self._fetcher.note_result()

    def _free_late_slot(self, attempt: Attempt) -> None:
        """Free the slot of a settled attempt, whose thread has returned."""
        call = attempt.find_thread_call()
        if call is not None:  # that of another step, which ran beside it
            call.on_finish = lambda: self._free_late_slot(attempt)
            return
        attempt.forget_ended_calls()
        self._fetcher.may_have_work = True  # its queue was at its limit: it may have more jobs
        self.unresponsive.report_return(attempt)
        self._free_slot(attempt)
        self._fetcher.note_result()

    def _free_slot(self, attempt: Attempt) -> None:
        """Free the slot of an attempt that has ended, and start other jobs. `Fetcher.note_result`
        comes after it: a reason for an exchange depends on the jobs that run then.
        """
        slots = self._slots
        slots.running.discard(attempt)
        # `attempt.clear()`, without the call
        attempt.context = attempt.call = attempt.timeout = attempt.task = None
        if self._lanes.counts_jobs:
            self._lanes.free_slot(attempt.delivery)
        if attempt.batch_run is not None:
            slots.max_running -= 1
            attempt.batch_run.leave(attempt)
        if not slots.running:
            slots.runs_suspect = False
            self._idle.set()
        if slots.prefetched or slots.suspects or self._batches is not None:
            self.start_jobs()
        if self.on_free_slot is not None:
            self.on_free_slot()

    # Give back

    def _on_starvation(self) -> None:
        """Release the jobs prefetched behind long jobs, so that other workers can run them."""
        self._slots.prefetch.suspend()
        self._release_prefetched()

    def _release_prefetched(self) -> None:
        """Release the prefetched jobs, but no suspect."""
        while (delivery := take(self._slots.prefetched)) is not None:
            self._return_delivery(delivery, Released(delivery.lease, unstarted=True))

    def release_all(self) -> None:
        """Release all jobs that have not started."""
        for delivery in self._slots.take_all():
            self._return_delivery(delivery, Released(delivery.lease, unstarted=True))

    def return_unheld(self, deliveries: Sequence[Delivery]) -> None:
        """Release delivered jobs that the worker does not hold."""
        for delivery in deliveries:
            self.session.completer.settle(Released(delivery.lease, unstarted=True))
        self._fetcher.note_possible_work()

    def _return_delivery(self, delivery: Delivery, settlement: Settlement) -> None:
        self._lanes.free_slot(delivery)
        self.session.completer.settle(settlement)
        self._fetcher.wake()

    def release_suspects(self) -> None:
        """Release all suspects but one, which runs alone. If it kills this worker, the others that
        wait here would each count a lost lease.
        """
        slots = self._slots
        while len(slots.suspects) > 1:
            if (suspect := take(slots.suspects, last=True)) is not None:
                self._return_delivery(suspect, Released(suspect.lease, unstarted=True))

    def cancel(self, leases: Collection[Lease]) -> None:
        """Interrupt the running jobs of these leases, and settle those that have not started."""
        for attempt in self._slots.running:
            if attempt.delivery.lease in leases and attempt.interruption is None:
                attempt.interrupt(Interruption.CANCEL)
        for deliveries in self._slots.list_unstarted():
            for delivery in [each for each in list(deliveries) if each.lease in leases]:
                with suppress(ValueError):  # the watchdog has taken it
                    deliveries.remove(delivery)
                    self._return_delivery(delivery, self.runner.settle_cancelled(delivery))

    def recall(self) -> list[Lease]:
        """Take the jobs that have not started away from the blocked event loop; return their
        leases. Safe from any thread.
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
        return leases

    def _free_all(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._lanes.free_slot(delivery)
        self._fetcher.note_possible_work()

    def drop_leases(self) -> None:
        """Drop the jobs of a session that has ended: nothing is written about them."""
        for delivery in self._slots.take_all():
            self._lanes.free_slot(delivery)
        for attempt in self._slots.running:
            attempt.interrupt(Interruption.LOST)

    # What runs

    async def wait_until_idle(self, seconds: float, stop_now: asyncio.Event) -> None:
        """Return when no handler runs, after `seconds`, or as soon as `stop_now` is set."""
        self._idle.clear()
        if self._slots.running:
            await wait_for_first(self._clock.sleep(seconds), self._idle.wait(), stop_now.wait())

    def list_unfinished_leases(self) -> list[Lease]:
        """Return the leases of this session whose handlers still run and are not settled."""
        return [
            attempt.delivery.lease
            for attempt in self._slots.running
            if attempt.session_id == self.session.id and not attempt.settled
        ]
