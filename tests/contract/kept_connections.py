"""Connections to PostgreSQL that stay open from one case of the contract to the next.

On each new connection, the server compiles its functions and plans their statements anew: two
thirds of what a case costs. So `close` resets a connection and keeps it for the next case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import asyncpg

from nimburion.backends.postgres.connection.connect import _Connection


class KeptConnection(_Connection):
    """A connection of the backend that is reset and kept where others are closed."""

    __slots__ = ("idle", "uses")

    idle: list[KeptConnection] | None
    """Where it waits for its next use; None: it is closed at the end of this one."""
    uses: int

    async def prepare(
        self,
        query: str,
        *,
        name: str | None = None,
        timeout: float | None = None,
        record_class: Any = None,
    ) -> Any:
        """Prepare a statement under a name that no earlier use has had: the driver may close the
        statements of that one, by name, at any later call."""
        unique = f"{name}_{self.uses}" if name else name
        return await super().prepare(query, name=unique, timeout=timeout, record_class=record_class)

    async def close(self, *, timeout: float | None = None) -> None:
        """Make it as good as new, and keep it; close it if it cannot be used again."""
        if self.idle is None or self.is_closed() or self.is_in_transaction():
            await super().close(timeout=timeout)
            return
        await self.reset(timeout=timeout)
        await self.execute("DEALLOCATE ALL")
        self._termination_listeners.clear()  # type: ignore[attr-defined]
        self.uses += 1
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
            kept = idle.pop()
            if not kept.is_closed():
                return kept
        made: KeptConnection = await self._connect(**options | {"connection_class": KeptConnection})
        made.idle, made.uses = idle, 0
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
