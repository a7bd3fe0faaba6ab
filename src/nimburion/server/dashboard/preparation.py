"""Prepare the pages when the server starts, so that the first request of each is fast."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress

from nimburion.core.errors import BackendError
from nimburion.core.service import Service
from nimburion.core.timing.clock import Clock
from nimburion.server.dashboard.readings import PageReadings, SharedReadings
from nimburion.server.dashboard.rendering import make_environment

PAUSE = 0.05
"""Seconds between two templates: together they take half a second of CPU time."""


class PagePreparation(Service):
    """Compiles each template once, on another thread, and then ends.

    With `reads_ahead` it also reads the statistics of the last hour, of which later reads need the
    latest minutes only, and has the garbage collector ignore all objects of the start: to look
    through them holds all pages up for 50 to 100 ms, each time that statistics are read. That is
    for processes that do nothing but serve pages.
    """

    logger_name = "nimburion.server"

    def __init__(self, clock: Clock, readings: SharedReadings, *, reads_ahead: bool) -> None:
        super().__init__(clock)
        self._readings = readings
        self._reads_ahead = reads_ahead

    async def run(self) -> None:
        if self._reads_ahead:
            with suppress(BackendError, TimeoutError):  # the first page says what is wrong
                await PageReadings(self._readings).read_hour()
        environment = make_environment()
        for name in sorted(environment.list_templates()):
            if self.stopping.is_set():
                return
            await asyncio.to_thread(environment.get_template, name)
            await self.pause(PAUSE)
        if self._reads_ahead:
            gc.collect()
            gc.freeze()
