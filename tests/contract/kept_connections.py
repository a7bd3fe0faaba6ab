"""Connections to PostgreSQL that stay open from one case of the contract to the next.

On each new connection, the server compiles its functions, and parses and plans all statements anew:
most of what a case costs. So `close` resets a connection and keeps it, with the statements that are
prepared on it, for the next case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import asyncpg

from nimburion.backends.postgres.connection.connect import _Connection


class KeptConnection(_Connection):
    """A connection of the backend that is reset and kept where others are closed."""

    __slots__ = ("idle", "prepared")

    idle: list[KeptConnection] | None
    """Where it waits for its next use; None: it is closed at the end of this one."""
    prepared: dict[str, Any]
    """The statements that have a name, by their text. The server plans them as the backend asks
    for, once for all arguments, and again when a table changes."""

    async def prepare(
        self,
        query: str,
        *,
        name: str | None = None,
        timeout: float | None = None,
        record_class: Any = None,
    ) -> Any:
        """Prepare a statement; one with a name is prepared once, under a name of its own."""
        if not name:
            return await super().prepare(
                query, name=name, timeout=timeout, record_class=record_class
            )
        if query not in self.prepared:
            self.prepared[query] = await super().prepare(
                query, name=f"kept_{len(self.prepared)}", timeout=timeout
            )
        return self.prepared[query]

    async def close(self, *, timeout: float | None = None) -> None:
        """Make it as good as new but for its statements, and keep it; close it if it cannot be used
        again."""
        if self.idle is None or self.is_closed() or self.is_in_transaction():
            await super().close(timeout=timeout)
            return
        await self.reset(timeout=timeout)
        self._termination_listeners.clear()  # type: ignore[attr-defined]
        self.idle.append(self)


class KeptConnections:
    """The connections of one event loop that are not in use, by the options they were opened
    with."""

    def __init__(self) -> None:
        self._connect: Callable[..., Any] = asyncpg.connect
        self._loop = asyncio.get_running_loop()
        self._idle: dict[str, list[KeptConnection]] = {}

    async def connect(self, **options: Any) -> Any:
        """Stand in for `asyncpg.connect`: return a kept connection, or open one. On another event
        loop, open one that is not kept."""
        if asyncio.get_running_loop() is not self._loop:
            return await self._connect(**options)
        idle = self._idle.setdefault(make_key(options), [])
        while idle:
            # Those that run most statements are opened first: they should meet the same again.
            kept = max(idle, key=lambda one: len(one.prepared))
            idle.remove(kept)
            if not kept.is_closed():
                return kept
        made: KeptConnection = await self._connect(**options | {"connection_class": KeptConnection})
        made.idle, made.prepared = idle, {}
        return made

    async def close(self) -> None:
        """Close them."""
        for idle in self._idle.values():
            for connection in idle:
                connection.idle = None
                await connection.close()


def make_key(options: Mapping[str, Any]) -> str:
    """Return the options as text, the same for the same ones."""
    return repr(sorted(options.items(), key=str))
