"""The lifecycle of background services.

A `Service` may be started and stopped any number of times, in any order. A second start or stop
does nothing. If `run` raises an exception, the service logs it and calls `run` again after a
growing pause. A background loop therefore never ends unnoticed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from nimburion.core.errors import BackendError, BackendUnavailable, EnqueueBlocked
from nimburion.core.outage_log import OutageLog
from nimburion.core.timing.clock import Clock
from nimburion.core.timing.pauses import iterate_pauses

_FIRST_PAUSE = 0.1
"""Seconds until `run` is called again after its first exception."""
_LONGEST_PAUSE = 10.0
"""The most seconds until `run` is called again."""


class Service:
    """A background task whose `run` continues until `stopping` is set."""

    logger_name = "nimburion.worker"
    """The name of the logger that the service writes to."""

    def __init__(self, clock: Clock) -> None:
        self.clock: Clock = clock
        """The clock of this process."""
        self.stopping: asyncio.Event = asyncio.Event()
        """Is set when the service was told to stop."""
        self.failure: BaseException | None = None
        """The last exception of `run`, or None once it works again. The health check reads it."""
        self.outage: OutageLog = OutageLog(clock)
        """The log of outages. The services of a processor share one."""
        self._reports_failure = True
        """Whether the next failure outside of an outage is a warning of its own."""
        self._task: asyncio.Task[None] | None = None
        self._log = logging.getLogger(self.logger_name)

    @property
    def running(self) -> bool:
        """Whether the service was started and has not ended."""
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Start the service. Does nothing if it is running."""
        if self.running:
            return
        self.stopping.clear()
        self._task = asyncio.create_task(self._supervise(), name=type(self).__name__)

    async def stop(self) -> None:
        """Stop the service and wait until it has ended. Does nothing if it is not running.

        On another event loop than the one that started it, usually in a forked child, the service
        is not running.
        """
        task, self._task = self._task, None
        if task is not None and task.get_loop() is not asyncio.get_running_loop():
            return
        self.stopping.set()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    async def run(self) -> None:
        """Do the work; return soon after `stopping` is set."""
        raise NotImplementedError

    async def pause(self, seconds: float) -> None:
        """Wait `seconds`, or less if `stopping` is set meanwhile."""
        await wait_for_first(self.clock.sleep(seconds), self.stopping.wait())

    def _note_success(self) -> None:
        """Note that the backend answered; end the outage if it did not answer before."""
        if self.failure is not None:
            self.outage.end()
        self.failure = None
        self._reports_failure = True

    def _note_backend_error(self, error: BackendError, *, in_outage: bool) -> None:
        """Log and note an error of the backend.

        An outage is logged once for all services. A service that keeps failing while the backend
        answers others logs one warning of its own.

        Args:
            error: the error.
            in_outage: whether an outage was in progress when the call began.
        """
        level = logging.DEBUG
        if not in_outage and self.outage.since is None:
            if self.failure is None and not _is_answer(error):
                self.outage.begin(" ".join(str(error).split()))
            elif self._reports_failure:
                level = logging.WARNING
                self._reports_failure = False
        answered = (
            f"answered with {type(error).__name__}" if _is_answer(error) else "did not answer"
        )
        self._log.log(level, "%s: the backend %s (%s)", type(self).__name__, answered, error)
        self.failure = error

    async def _supervise(self) -> None:
        pauses = iterate_pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
        while not self.stopping.is_set():
            try:
                await self.run()
                return
            except Exception as error:  # noqa: BLE001 - the service must continue
                if self.failure is None:  # the service has worked since
                    pauses = iterate_pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
                self.failure, pause = error, next(pauses)
                self._log.exception("%s failed; retrying in %.1f s", type(self).__name__, pause)
                await self.pause(pause)


class Periodic(Service):
    """A service that runs a bounded `tick` every `interval` seconds, with relative `jitter`.

    If n workers share the work, each runs one tick in n, at random. So the fleet runs one each
    interval on average, whichever workers die.
    """

    def __init__(
        self,
        clock: Clock,
        interval: float,
        random: Random,
        jitter: float = 0.1,
        *,
        count_workers: Callable[[], int] = lambda: 1,
    ) -> None:
        super().__init__(clock)
        self.interval: float = interval
        self._random = random
        self._jitter = jitter
        self._count_workers = count_workers

    async def run(self) -> None:
        while not self.stopping.is_set():
            await self.pause(self.draw_interval())
            if not self.stopping.is_set() and self.draw_turn():
                await self._run_tick()

    def draw_interval(self) -> float:
        """Return the seconds until the next tick, with jitter."""
        return self.interval * (1 + self._jitter * (2 * self._random.random() - 1))

    def draw_turn(self) -> bool:
        """Return whether this worker runs the next tick, and not another one."""
        count = self._count_workers()
        return count <= 1 or self._random.random() * count < 1

    async def _run_tick(self) -> None:
        """Run one tick. After an error of the backend, the next tick tries again."""
        in_outage = self.outage.since is not None
        try:
            await self.tick()
        except BackendError as error:
            self._note_backend_error(error, in_outage=in_outage)
        else:
            self._note_success()

    async def tick(self) -> None:
        """Do the work of one tick."""
        raise NotImplementedError


def _is_answer(error: BackendError) -> bool:
    """Return whether the backend answered the call with this error."""
    return isinstance(error, EnqueueBlocked) or not isinstance(error, BackendUnavailable)


async def wait_for_first(*waits: Coroutine[Any, Any, object]) -> None:
    """Return when the first coroutine returns, or raise its exception; cancel the others."""
    tasks = list(map(asyncio.ensure_future, waits))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
