"""The backend that a handler in a child process sees.

A child never connects to the backend: its parent holds the lease. Jobs that the handler enqueues
go to the parent in a frame. Every other operation raises `NotSupported`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from nimburion.core.backend import Capabilities
from nimburion.core.errors import NotSupported
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.metrics.statistics import Statistics
from nimburion.jobs.worker.children.channel import ParentChannel


class _Refusing:
    """A protocol of the backend, none of whose operations work in a child process."""

    def __getattr__(self, operation: str) -> Any:  # noqa: ANN401 (all operations)
        if operation.startswith("_"):
            raise AttributeError(operation)

        async def refuse(*_: object, **__: object) -> NoReturn:
            raise NotSupported(
                f"{operation}: a handler in a child process can only enqueue; read or change jobs "
                'in a handler with execution="auto", or through the management server'
            )

        return refuse


class _ParentProducing(_Refusing):
    def __init__(self, channel: ParentChannel) -> None:
        self._channel = channel

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """Store jobs through the parent."""
        return await self._channel.enqueue(jobs)


class _ParentConsuming(_Refusing):
    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        """Do nothing: the parent counts the jobs that it stores."""


class ParentBackend(_Refusing):
    """A `Backend` whose only operation is `enqueue`, by way of the parent."""

    capabilities: Capabilities = Capabilities(
        durable=False, notifies=False, supports_transactions=False, atomic_batch=None
    )

    def __init__(self, channel: ParentChannel) -> None:
        self.producing: _ParentProducing = _ParentProducing(channel)
        self.consuming: _ParentConsuming = _ParentConsuming()
        self.maintenance: _Refusing = _Refusing()
        self.reads: _Refusing = _Refusing()
        self.schedules: _Refusing = _Refusing()

    def describe(self) -> str:
        """Return the name of this backend for messages."""
        return "the backend as a child process sees it (its worker enqueues for it)"

    def new_handle(self) -> ParentBackend:
        """Return this backend: it can be used on every event loop."""
        return self

    async def open(self) -> None:
        """Do nothing: the parent's backend is open."""

    async def close(self) -> None:
        """Do nothing: the parent closes its backend."""
