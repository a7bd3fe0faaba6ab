"""The lifecycle of everything that runs in the background, written once.

A `Service` may be started and stopped any number of times, in any order; a second start or stop
does nothing. An exception in `run` is logged and `run` is called again after a growing pause: a
background loop never dies in silence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from random import Random
from typing import Any

from nimburion.core.clock import Clock
from nimburion.core.errors import BackendError

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0


class Service:
    """Something with a `run` that goes on until `stopping` is set."""

    def __init__(self, clock: Clock) -> None:
        self.clock: Clock = clock
        self.stopping: asyncio.Event = asyncio.Event()
        self.failure: BaseException | None = None
        """What `run` raised last, until it works again: health reads it."""
        self._task: asyncio.Task[None] | None = None
        self._log = logging.getLogger(f"nimburion.{type(self).__name__}")

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Begin; does nothing when it runs."""
        if self.running:
            return
        self.stopping.clear()
        self._task = asyncio.create_task(self._supervise(), name=type(self).__name__)

    async def stop(self) -> None:
        """Ask it to end and wait until it has; does nothing when it does not run. On another loop
        than that of its start (in a forked child, as a rule) it does not run."""
        task, self._task = self._task, None
        if task is not None and task.get_loop() is not asyncio.get_running_loop():
            return
        self.stopping.set()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    async def run(self) -> None:
        """The work; returns soon after `stopping` is set."""
        raise NotImplementedError

    async def pause(self, seconds: float) -> None:
        """Let `seconds` pass, or less when `stopping` is set meanwhile."""
        await wait_for_first(self.clock.sleep(seconds), self.stopping.wait())

    def _note(self, failure: BaseException | None) -> None:
        self.failure = failure

    async def _supervise(self) -> None:
        pause = _FIRST_PAUSE
        while not self.stopping.is_set():
            try:
                await self.run()
                return
            except Exception as error:  # noqa: BLE001 - a loop must never die in silence
                if self.failure is None:  # it has worked since
                    pause = _FIRST_PAUSE
                self.failure = error
                self._log.exception("failed; again in %.1f s", pause)
                await self.pause(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)


class Periodic(Service):
    """A service that does one bounded thing every `interval` seconds, give or take `jitter`."""

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
        """One turn; a backend that fails it is asked again at the next. Said once, until it
        works."""
        try:
            await self.tick()
        except BackendError as error:
            level = logging.WARNING if self.failure is None else logging.DEBUG
            self._log.log(
                level, "the backend did not answer (%s); next try at the next interval", error
            )
            self._note(error)
        else:
            self._note(None)

    async def tick(self) -> None:
        """One turn."""
        raise NotImplementedError


async def wait_for_first(*waits: Coroutine[Any, Any, object]) -> None:
    """Return when the first of them does, or raise what it raised; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
