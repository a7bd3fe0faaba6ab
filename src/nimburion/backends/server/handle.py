"""Open and close the connections of a backend, in one process and on one event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from nimburion.core.errors import NotOpen


class Connections(Protocol):
    """The connections of an open backend. They are made on the event loop that uses them."""

    async def start(self) -> None:
        """Connect, and check the server and the format."""

    async def close(self) -> None:
        """Disconnect."""


C = TypeVar("C", bound=Connections)


class OpenHandle(Generic[C]):
    """Keeps the connections of a backend from `open` to `close`.

    Connections belong to the process and the event loop that opened them. After a fork, or on
    another loop, they are neither used nor closed: `open` makes new ones.

    Args:
        name: the name of the backend, for error messages.
        make: makes the connections; called by `open`, on its event loop.
    """

    __slots__ = ("_connections", "_lock", "_loop", "_make", "_name", "_pid")

    def __init__(self, name: str, make: Callable[[], C]) -> None:
        self._name = name
        self._make = make
        self._connections: C | None = None
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()

    @property
    def latest(self) -> C | None:
        """The connections that were opened last and are not closed, in any process or event
        loop.
        """
        return self._connections

    async def open(self) -> None:
        """Connect, unless the handle is open in this process and on this event loop."""
        async with self._lock:
            if self._connections is not None and self._is_open_here():
                return
            connections = self._make()
            try:
                await connections.start()
            except BaseException:
                await connections.close()
                raise
            self._pid, self._loop = os.getpid(), asyncio.get_running_loop()
            self._connections = connections

    async def close(self) -> None:
        """Disconnect, unless the connections belong to another process or event loop."""
        async with self._lock:
            connections, self._connections = self._connections, None
            if connections is not None and self._is_open_here():
                await connections.close()

    def get(self) -> C:
        """Return the connections.

        Raises:
            NotOpen: there are none, or they were opened before a fork.
        """
        connections = self._connections
        if connections is None:
            raise NotOpen(f"{self._name} is not open; call open() first")
        if self._pid != os.getpid():
            raise NotOpen(
                f"{self._name} was opened before a fork; call open() again in this process"
            )
        return connections

    def _is_open_here(self) -> bool:
        return self._pid == os.getpid() and self._loop is asyncio.get_running_loop()
