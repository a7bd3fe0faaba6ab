"""Backends whose operations a test overrides, and wrappers that stand before a backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from nimburion.backends.memory import MemoryBackend
from nimburion.backends.memory.consuming import MemoryConsuming
from nimburion.backends.memory.maintenance import MemoryMaintaining
from nimburion.backends.memory.producing import MemoryProducing
from nimburion.backends.memory.reads import MemoryReading
from nimburion.core.timing.clock import Clock


class OverridableBackend(
    MemoryBackend,
    MemoryProducing,
    MemoryConsuming,
    MemoryMaintaining,
    MemoryReading,
):
    """A memory backend that has the operations of all its protocols itself.

    A subclass overrides any of them, and calls the memory backend with `super()`.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        MemoryBackend.__init__(self, clock=clock)
        MemoryConsuming.__init__(self, self._data)
        self.producing = self.consuming = self.maintenance = self.reads = self


class BackendWrapper:
    """Has the operations of all protocols itself; a subclass forwards them in `__getattr__`."""

    @property
    def producing(self) -> Self:
        return self

    @property
    def consuming(self) -> Self:
        return self

    @property
    def maintenance(self) -> Self:
        return self

    @property
    def reads(self) -> Self:
        return self


def get_operation(backend: Any, name: str) -> Callable[..., Any]:
    """Return an operation of a backend, of whichever protocol it is, or of its lifecycle."""
    protocols = ("producing", "consuming", "maintenance", "reads")
    owners = [backend, *(getattr(backend, protocol) for protocol in protocols)]
    owner = next(owner for owner in owners if hasattr(owner, name))
    return getattr(owner, name)  # type: ignore[no-any-return]
