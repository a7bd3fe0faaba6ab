"""Forgets what is older than the settings keep. Every worker does it, in bounded steps."""

from __future__ import annotations

from random import Random

from nimburion.core.backend import Maintaining
from nimburion.core.clock import Clock
from nimburion.core.reading import Retention
from nimburion.core.service import Periodic
from nimburion.core.settings import Settings

_LIMIT = 500
_INTERVAL = 60.0


def retention(settings: Settings) -> Retention:
    """What the settings say about keeping."""
    return Retention(
        completed=settings.keep_completed,
        completed_max=settings.keep_completed_max,
        failed=settings.keep_failed,
        results=settings.keep_results,
    )


class Pruner(Periodic):
    """Prunes about once a minute."""

    def __init__(
        self, backend: Maintaining, clock: Clock, random: Random, settings: Settings
    ) -> None:
        super().__init__(clock, _INTERVAL, random, jitter=0.5)
        self._backend = backend
        self._keep = retention(settings)

    async def tick(self) -> None:
        """Prune until nothing is left to prune."""
        while not self.stopping.is_set():
            if await self._backend.prune(self._keep, _LIMIT) < _LIMIT:
                return
