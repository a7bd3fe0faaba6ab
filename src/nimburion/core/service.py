"""The lifecycle of background services.

A `Service` may be started and stopped any number of times, in any order. A second start or stop
does nothing. If `run` raises an exception, the service logs it and calls `run` again after a
growing pause. A background loop therefore never ends unnoticed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from random import Random
from typing import Any

from nimburion.core.errors import BackendError
from nimburion.core.timing.backoff import iterate_pauses
from nimburion.core.timing.clock import Clock

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
        self.stopping: asyncio.Event = asyncio.Event()
        self.failure: BaseException | None = None
        """The last exception of `run`, or None once it works again. The health check reads it."""
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

    def _note(self, failure: BaseException | None) -> None:
        self.failure = failure

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
    """A service that runs a bounded `tick` every `interval` seconds, with relative `jitter`."""

    def __init__(self, clock: Clock, interval: float, random: Random, jitter: float = 0.1) -> None:
        super().__init__(clock)
        self.interval: float = interval
        self._random = random
        self._jitter = jitter

    async def run(self) -> None:
        while not self.stopping.is_set():
            spread = 1 + self._jitter * (2 * self._random.random() - 1)
            await self.pause(self.interval * spread)
            if not self.stopping.is_set():
                await self._run_tick()

    async def _run_tick(self) -> None:
        """Run one tick. After an error of the backend, the next tick tries again.

        The first error is logged as a warning, further ones as debug messages until a tick
        succeeds.
        """
        try:
            await self.tick()
        except BackendError as error:
            level = logging.WARNING if self.failure is None else logging.DEBUG
            self._log.log(
                level,
                "%s: the backend did not answer (%s); next try at the next interval",
                type(self).__name__,
                error,
            )
            self._note(error)
        else:
            self._note(None)

    async def tick(self) -> None:
        """Do the work of one tick."""
        raise NotImplementedError


async def wait_for_first(*waits: Coroutine[Any, Any, object]) -> None:
    """Return when the first coroutine returns, or raise its exception; cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
