"""`MemoryBackend`: implements the contract. Each operation holds one lock and sees one time."""

from __future__ import annotations

import os

from nimburion.backends.memory.consuming import MemoryConsuming
from nimburion.backends.memory.data import MemoryData, SharedState
from nimburion.backends.memory.maintenance import MemoryMaintaining
from nimburion.backends.memory.producing import MemoryProducing
from nimburion.backends.memory.reads import MemoryReading
from nimburion.backends.memory.transitions import AtomicStep
from nimburion.backends.server.errors import make_no_roles_error
from nimburion.core.backend import Capabilities, Lifecycle
from nimburion.core.diagnosis.checks import CheckResult
from nimburion.core.errors import ConfigurationError
from nimburion.core.ids import Entropy
from nimburion.core.text.redaction import redact_url
from nimburion.core.timing.clock import MICRO, Clock, SystemClock

CAPABILITIES = Capabilities(
    durable=False,
    notifies=True,
    supports_transactions=False,
    atomic_batch=None,
    shared=False,
    keeps_arguments=True,
    blocking_enqueue=True,
)


class MemoryBackend(Lifecycle):
    """A backend in the memory of this process. Its data is lost when the process ends.

    Args:
        clock: source of the time; tests pass a fake clock.
        entropy: unused; accepted so that every backend has the same constructor arguments.

    >>> MemoryBackend().capabilities.durable
    False
    """

    def __init__(self, *, clock: Clock | None = None, entropy: Entropy = os.urandom) -> None:
        self._entropy = entropy
        self._data = MemoryData(SharedState(), clock or SystemClock())
        self.producing: MemoryProducing = MemoryProducing(self._data)
        self.consuming: MemoryConsuming = MemoryConsuming(self._data)
        self.maintenance: MemoryMaintaining = MemoryMaintaining(self._data)
        self.reads: MemoryReading = MemoryReading(self._data)

    @classmethod
    def from_url(cls, url: str, **options: object) -> MemoryBackend:
        """Return a new, empty backend for the URL `memory://`.

        Raises `ConfigurationError` for any other URL.
        """
        if url.lower().rstrip("/") != "memory:":
            raise ConfigurationError(
                f"{redact_url(url)!r}: nothing may follow memory://, which has no server and no "
                "options"
            )
        return cls(**options)  # type: ignore[arg-type]

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of this backend: notifications only."""
        return CAPABILITIES

    def __repr__(self) -> str:
        return f"<MemoryBackend {self.describe()}>"

    def describe(self) -> str:
        """Return a name of the backend for people."""
        return "memory of this process (not durable)"

    def new_handle(self) -> MemoryBackend:
        """Return another handle on the same data, for any thread and event loop."""
        handle = MemoryBackend(clock=self._data.clock, entropy=self._entropy)
        handle._data.shared = self._data.shared
        return handle

    async def open(self) -> None:
        """Do nothing: this backend needs no opening."""

    async def close(self) -> None:
        """Do nothing: the data stays as long as any handle exists."""

    async def exists(self) -> bool:
        return True

    async def ping(self) -> None:
        """Return at once: the backend is always reachable."""

    async def now(self) -> float:
        with AtomicStep(self._data) as step:
            return step.now / MICRO

    async def check(self) -> list[CheckResult]:
        with AtomicStep(self._data) as step:
            count = len(step.state.jobs)
        return [
            CheckResult(
                "durability",
                "warning",
                f"not durable: {count} jobs are lost when this process ends",
                "outside of tests, use a durable backend, like sqlite:///jobs.db",
            )
        ]

    async def migrate(self, *, dry_run: bool = False) -> list[str]:  # noqa: ARG002
        """Return an empty list: there are no migrations."""
        return []

    async def grant(self, role: str) -> list[str]:
        raise make_no_roles_error(self.describe(), role)
