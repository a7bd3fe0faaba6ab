"""How an idle worker waits: in its store, where that can; a job and its news then come together."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from nimburion.core.backend import Backend, Patient

_LONGEST = 2.0
"""Seconds: an idle worker looks that often in any case, as news may be lost."""


class Patience:
    """Lets exchanges of an idle worker wait in a store that is `patient`."""

    __slots__ = ("_store", "offered")

    def __init__(self, backend: Backend, queues: Collection[str]) -> None:
        self.offered: bool = backend.capabilities.patient and bool(queues)
        """Whether the store can wait, and there is something to wait for."""
        self._store = cast("Patient", backend)

    def until(self, due_in: float) -> float:
        """Seconds for which the next exchange may wait, when something is due in `due_in`."""
        return min(_LONGEST, max(0.001, due_in)) if self.offered else 0.0

    def end(self) -> None:
        """Something has come up: let an exchange that waits answer now."""
        if self.offered:
            self._store.hurry()
