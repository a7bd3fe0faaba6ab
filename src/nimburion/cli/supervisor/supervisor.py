"""Keeps worker processes running: starts them, replaces those that end, and stops them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from nimburion.cli.exit_codes import BAD_INPUT, DONE, FAILED
from nimburion.cli.supervisor.combined_health import combine_health
from nimburion.cli.supervisor.file_watch import FileWatch
from nimburion.cli.supervisor.listener_chooser import ListenerChooser
from nimburion.cli.supervisor.messages import WorkerOptions
from nimburion.cli.supervisor.process_metrics import ProcessMetrics
from nimburion.cli.supervisor.reaper import Reaper
from nimburion.cli.supervisor.worker_process import WorkerProcess
from nimburion.cli.systemd import SystemdNotifier, read_watchdog_timeout
from nimburion.core.service import wait_for_first
from nimburion.core.settings import Recycle
from nimburion.core.timing.clock import SystemClock
from nimburion.core.timing.pauses import iterate_pauses
from nimburion.jobs import Health
from nimburion.jobs.worker.recycling import find_reached_limit
from nimburion.telemetry.families import Family

_log = logging.getLogger("nimburion.supervisor")

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PASSED_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals for the application. A worker gets them as if it ran without a supervisor."""

_RELOAD_GRACE = 2.0
"""Seconds that handlers may still run when a file has changed."""
_REPORTS_PER_TIMEOUT = 4
"""Reports within the watchdog timeout of systemd."""


class SupervisorSettings(NamedTuple):
    """The intervals of a supervisor, in seconds, and how often it tries a start."""

    report_interval: float = 5.0
    """Between two reports of a worker, and two checks of the limits of its size and age."""
    report_timeout: float = 1.0
    """How long to wait for a report. A worker whose event loop is blocked sends none."""
    short_life: float = 5.0
    """A worker that ends earlier than this after its start is replaced after a pause."""
    first_pause: float = 0.1
    longest_pause: float = 30.0
    stop_margin: float = 10.0
    """Beyond the grace time of the workers, until those that still run are killed."""
    max_failed_starts: int = 5
    """The supervisor ends when each of its workers has failed to start this often, one after
    another, and none runs.
    """


class Supervisor:
    """Runs worker processes of one application until a signal stops them.

    It belongs to one event loop, on the main thread. Use each instance once.

    `expected_backend` describes the backend of the management server; a worker with another one is
    an error. When `watch` finds a changed file, all workers are replaced.
    """

    def __init__(
        self,
        options: WorkerOptions,
        recycle: Recycle,
        settings: SupervisorSettings = SupervisorSettings(),  # noqa: B008 (immutable)
        *,
        environment: Mapping[str, str] = os.environ,
        expected_backend: str | None = None,
        watch: FileWatch | None = None,
    ) -> None:
        self._options = options
        self._expected_backend = expected_backend
        self._watch = watch
        self._change_count = 0
        """How often a file has changed."""
        self._changed = asyncio.Event()
        self._metrics = ProcessMetrics()
        self._recycle = recycle
        self._settings = settings
        self._listener_chooser = ListenerChooser(settings.report_timeout)
        self._environment = environment
        self._slots = [_Slot(number) for number in range(1, options.processes + 1)]
        self._reaper: Reaper
        self._processes: set[WorkerProcess] = set()
        """All that run, also those that finish while their replacement works."""
        self._may_start_others = asyncio.Event()
        """Set when the first worker has imported the application: the others can do so too."""
        self._all_started = asyncio.Event()
        self._stopping = asyncio.Event()
        self._signal_count = 0
        self._exit_code = DONE

    async def run(self) -> int:
        """Run the workers until they are stopped, or cannot be started; return the exit code."""
        loop = asyncio.get_running_loop()
        self._reaper = Reaper(loop)
        self._reaper.start()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_stop_signal)
        for number in _PASSED_SIGNALS:
            loop.add_signal_handler(number, self._send_signal, number)
        background = [
            asyncio.create_task(self._check_regularly()),
            asyncio.create_task(self._report_to_systemd()),
            asyncio.create_task(self._reload_changes()),
        ]
        try:
            async with asyncio.TaskGroup() as slots:
                for slot in self._slots:
                    slots.create_task(self._run_slot(slot))
            await self._wait_for_end()
        finally:
            for task in background:
                task.cancel()
            for process in self._processes:  # only after an error of the supervisor itself
                process.kill()
            await asyncio.gather(*background, return_exceptions=True)
        return self._exit_code

    # Slots

    async def _run_slot(self, slot: _Slot) -> None:
        """Keep one worker process running, until the supervisor stops or its work is done."""
        if slot.number > 1:
            await wait_for_first(self._may_start_others.wait(), self._stopping.wait())
        while not self._stopping.is_set():
            process = await self._start(slot)
            await wait_for_first(self._wait_for_replacement_time(process), self._stopping.wait())
            if self._stopping.is_set():
                return
            if not process.has_ended:
                # It finishes its jobs; its replacement takes new ones meanwhile.
                await self._pause(self._choose_pause(slot, process))
                continue
            if self._options.until_empty and process.exit_code == DONE:
                return
            await self._handle_end(slot, process)

    async def _start(self, slot: _Slot) -> WorkerProcess:
        loop = asyncio.get_running_loop()
        process = WorkerProcess(loop, self._reaper, self._change_count)
        process.on_listener_message = self._listener_chooser.handle
        slot.predecessor, slot.process = slot.process, process
        self._processes.add(process)
        try:
            await process.start(self._options, self._environment)
        except OSError as error:
            _log.error("a worker process cannot be started: %s", error)
            process.note_failed_start()
        if self._stopping.is_set():  # the signal came before there was a process to send it to
            process.send_signal(signal.SIGTERM)
        self._follow(process, process.loaded, lambda: self._note_loaded(process))
        self._follow(process, process.started, lambda: self._note_started(slot, process))
        self._follow(process, process.stopping, self._listener_chooser.review)
        self._follow(process, process.ended, lambda: self._note_end(process))
        return process

    def _follow(
        self, process: WorkerProcess, event: asyncio.Event, then: Callable[[], None]
    ) -> None:
        """Call `then` when the event of the process is set, unless the process ends before."""

        async def wait() -> None:
            await wait_for_first(event.wait(), process.ended.wait())
            if event.is_set():
                then()

        task = asyncio.create_task(wait())
        process.tasks.add(task)
        task.add_done_callback(process.tasks.discard)

    def _note_loaded(self, process: WorkerProcess) -> None:
        if self._expected_backend in {None, process.backend}:
            self._may_start_others.set()
            return
        _log.error(
            "the application uses %s, but the management server would show %s, which the "
            "configuration names; let the application use config.load(), or leave out --server",
            process.backend,
            self._expected_backend,
        )
        self._stop_workers(BAD_INPUT)

    def _note_end(self, process: WorkerProcess) -> None:
        self._processes.discard(process)
        self._listener_chooser.review()
        self._metrics.note_end(process.report.families if process.report else [])

    def _note_started(self, slot: _Slot, process: WorkerProcess) -> None:
        slot.has_started, slot.failed_starts = True, 0
        if all(each.has_started for each in self._slots):
            self._all_started.set()
        _log.info(
            "worker process %d (%d of %d) is ready",
            process.id,
            slot.number,
            len(self._slots),
        )

    async def _wait_for_replacement_time(self, process: WorkerProcess) -> None:
        """Return when the process takes no more jobs and is to be replaced."""
        event = process.ended if self._options.until_empty else process.stopping
        await event.wait()

    async def _handle_end(self, slot: _Slot, process: WorkerProcess) -> None:
        """Log the end of a process, and return when its replacement may be started."""
        if self._watch is not None and not process.started.is_set():
            await self._wait_for_change(process)
            return
        if not process.started.is_set():
            slot.failed_starts += 1
            if self._cannot_start(process):
                self._give_up(process)
                return
        pause = self._choose_pause(slot, process)
        _log.log(
            logging.INFO if process.exit_code == DONE else logging.ERROR,
            "worker process %d %s after %.1f s; a new one starts in %.1f s",
            process.id,
            process.describe_end(),
            process.age,
            pause,
        )
        await self._pause(pause)

    def _choose_pause(self, slot: _Slot, process: WorkerProcess) -> float:
        """Return the seconds until the replacement of a process starts.

        0.0 after a long life. After a short one, pauses grow from crash to crash.
        """
        if process.age >= self._settings.short_life:
            slot.pauses = None
            return 0.0
        if process.exit_code in {None, DONE}:
            return self._settings.first_pause
        slot.pauses = slot.pauses or iterate_pauses(
            self._settings.first_pause, self._settings.longest_pause
        )
        return next(slot.pauses)

    async def _pause(self, seconds: float) -> None:
        await wait_for_first(asyncio.sleep(seconds), self._stopping.wait())

    async def _wait_for_change(self, process: WorkerProcess) -> None:
        """Return when a file has changed since the process was started."""
        if process.change_count == self._change_count:
            _log.error(
                "worker process %d %s; a new one starts when a file changes",
                process.id,
                process.describe_end(),
            )
            self._changed.clear()
            await wait_for_first(self._changed.wait(), self._stopping.wait())

    def _cannot_start(self, process: WorkerProcess) -> bool:
        """Return whether to give up: no worker runs, and a further try would fail too."""
        if not any(slot.has_started for slot in self._slots):
            exited_by_itself = process.exit_code is not None and process.exit_code > 0
            if exited_by_itself or self._slots[0].failed_starts >= self._settings.max_failed_starts:
                return True
        return all(slot.failed_starts >= self._settings.max_failed_starts for slot in self._slots)

    def _give_up(self, process: WorkerProcess) -> None:
        if self._stopping.is_set():
            return
        code = process.exit_code or FAILED
        code = code if code > 0 else FAILED
        _log.error(
            "no worker process can be started: the last one %s. The supervisor ends with exit "
            "code %d",
            process.describe_end(),
            code,
        )
        self._stop_workers(code)

    def _stop_workers(self, exit_code: int) -> None:
        """Stop all workers, and end with this exit code."""
        self._exit_code = exit_code
        self._stopping.set()
        self._send_signal(signal.SIGTERM)

    # Health and metrics

    @property
    def all_started(self) -> bool:
        """Whether each of the workers has had a session."""
        return self._all_started.is_set()

    @property
    def longest_lag(self) -> float:
        """Seconds for which a worker has not answered, at most: its event loop is blocked."""
        return max((process.lag for process in self._processes), default=0.0)

    def read_health(self) -> Health:
        """Return the health of all workers as one, from their last reports."""
        current = [slot.process for slot in self._slots]
        return combine_health(
            [process.health if process else None for process in current],
            [process.health for process in self._processes if process not in current],
            stopping=self._stopping.is_set(),
        )

    def collect(self) -> Iterable[Family]:
        """Return the metrics of all workers added up, from their last reports."""
        reports = [process.report for process in self._processes]
        return self._metrics.combine(
            [report.families for report in reports if report is not None], len(self._processes)
        )

    def _has_progress(self, timeout: float) -> bool:
        """Return whether each worker makes progress, for the watchdog of systemd."""
        return all(process.has_progress(timeout) for process in self._processes)

    async def _report_to_systemd(self) -> None:
        """Report readiness once all workers have started, then status and progress."""
        if "NOTIFY_SOCKET" not in self._environment:
            return
        await self._all_started.wait()
        grace = max((process.grace for process in self._processes), default=0.0)
        notifier = SystemdNotifier(
            SystemClock(),
            self.read_health,
            grace,
            self._environment,
            check_progress=self._has_progress,
        )
        await notifier.start()
        await self._stopping.wait()
        await notifier.stop()

    # Recycling

    async def _check_regularly(self) -> None:
        timeout = read_watchdog_timeout(self._environment)
        interval = self._settings.report_interval
        if timeout is not None:
            interval = min(interval, timeout / _REPORTS_PER_TIMEOUT)
        while True:
            await asyncio.sleep(interval)
            await self.request_reports()
            self._listener_chooser.review()
            for slot in self._slots:
                self._recycle_if_needed(slot)

    async def request_reports(self) -> None:
        """Let all workers send reports, and wait for those that answer soon."""
        requests: list[Awaitable[None]] = [
            process.request_report(self._settings.report_timeout)
            for process in self._processes
            if process.loaded.is_set()
        ]
        await asyncio.gather(*requests)

    def _recycle_if_needed(self, slot: _Slot) -> None:
        process = slot.process
        if process is None or not process.started.is_set() or process.stopping.is_set():
            return
        if slot.predecessor is not None and not slot.predecessor.has_ended:
            return  # at most one process per slot finishes its jobs
        reached = find_reached_limit(self._recycle, process)
        if reached:
            _log.info(
                "worker process %d has reached its limit (%s); it finishes its jobs, and a new one "
                "starts",
                process.id,
                reached,
            )
            process.finish()

    async def _reload_changes(self) -> None:
        """Replace all workers whenever a file has changed."""
        loop = asyncio.get_running_loop()
        while self._watch is not None:
            path = await self._watch.wait_for_change()
            _log.info("%s has changed; the workers are replaced", path)
            self._change_count += 1
            self._changed.set()
            for process in self._processes:
                process.send_signal(signal.SIGTERM)
                loop.call_later(_RELOAD_GRACE, process.send_signal, signal.SIGTERM)

    # Stopping

    def _on_stop_signal(self) -> None:
        """Stop the workers. A second signal interrupts their handlers, a third one kills them."""
        self._signal_count += 1
        self._stopping.set()
        steps = ("stopping", "interrupting the handlers of", "killing")
        step = steps[min(self._signal_count, len(steps)) - 1]
        count = len(self._processes)
        _log.info("%s %d worker process%s", step, count, "" if count == 1 else "es")
        for process in self._processes:
            if self._signal_count >= len(steps):
                process.kill()
            else:
                process.send_signal(signal.SIGTERM)

    def _send_signal(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)

    async def _wait_for_end(self) -> None:
        """Return when all processes have ended; kill those that exceed their time."""
        if not self._processes:
            return
        margin = self._settings.stop_margin
        timeout = margin + max(process.grace for process in self._processes)
        ends = [asyncio.create_task(process.ended.wait()) for process in self._processes]
        _, late = await asyncio.wait(ends, timeout=timeout)
        if late:
            for process in self._processes:
                _log.error("worker process %d does not stop; it is killed", process.id)
                process.kill()
            self._exit_code = self._exit_code or FAILED
            await asyncio.wait(late, timeout=margin)


class _Slot:
    """The place of one worker process: its process now, and how its starts went."""

    def __init__(self, number: int) -> None:
        self.number = number
        """From 1."""
        self.process: WorkerProcess | None = None
        self.predecessor: WorkerProcess | None = None
        self.has_started = False
        """Whether a worker has had a session here."""
        self.failed_starts = 0
        """The number of processes that ended before they had a session, since the last that had."""
        self.pauses: Iterator[float] | None = None
