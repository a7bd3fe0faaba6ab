"""The backends that a run can be about: how to start them, and what can go wrong with them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal, Protocol

from benchmarks.chaos.event_log import now
from benchmarks.postgres.family import FAMILY as POSTGRES
from benchmarks.redis.family import FAMILY as REDIS
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Proxy
from tests.servers.server import Server

TargetName = Literal["sqlite", "redis", "postgres"]
TARGETS: tuple[TargetName, ...] = ("sqlite", "redis", "postgres")
PROXIES = 2
"""Half of the workers, or the other half, can be cut off."""


class Restartable(Protocol):
    """A server that can be ended as a crash ends it, and started again."""

    @property
    def port(self) -> int: ...

    @property
    def url(self) -> str: ...

    def start(self) -> None: ...


class Target:
    """A backend of a run: its URLs, and its server if it has one."""

    def __init__(
        self,
        title: str,
        url: str,
        server: Restartable | None = None,
        crash: Callable[[], None] = lambda: None,
        proxies: tuple[Proxy, ...] = (),
    ) -> None:
        self.title = title
        self.url = url
        """The way to the backend without a proxy."""
        self.proxies = proxies
        self._server = server
        self._crash = crash

    @property
    def has_server(self) -> bool:
        """Whether there is a network to it, and a server to restart."""
        return self._server is not None

    def get_url(self, member: int) -> str:
        """Return the URL for a member of the fleet: the members share the proxies out."""
        if self._server is None or not self.proxies:
            return self.url
        proxy = self.proxies[member % len(self.proxies)]
        return self.url.replace(f":{self._server.port}", f":{proxy.port}")

    async def restart(self) -> float:
        """End the server as a crash does, and start it again. Return when it had ended."""
        assert self._server is not None
        await asyncio.to_thread(self._crash)
        down = now()
        await asyncio.to_thread(self._server.start)
        return down


@asynccontextmanager
async def serve(name: TargetName, folder: Path, proxies: int = PROXIES) -> AsyncIterator[Target]:
    """An empty backend that keeps what it acknowledged; servers with so many proxies."""
    if name == "sqlite":
        yield Target(f"SQLite {sqlite3.sqlite_version}", f"sqlite:///{folder}/jobs.db")
        return
    async with AsyncExitStack() as stack:
        if name == "redis":
            binary = REDIS.program()
            redis = stack.enter_context(Server(binary, "appendfsync always", appendonly=True))
            title, server, crash = f"{binary.name}, appendfsync always", redis, redis.kill
            yield await _add_proxies(stack, title, server, crash, proxies)
        else:
            binary = POSTGRES.program()
            server_of_fleet = PostgresServer(binary, "max_connections=600", durable=True)
            postgres = stack.enter_context(server_of_fleet)
            title, crash = f"{binary.name}, fsync on", postgres.stop_immediately
            yield await _add_proxies(stack, title, postgres, crash, proxies)


async def _add_proxies(
    stack: AsyncExitStack,
    title: str,
    server: Restartable,
    crash: Callable[[], None],
    proxies: int,
) -> Target:
    entered = [await stack.enter_async_context(Proxy(server.port)) for _ in range(proxies)]
    return Target(title, server.url, server, crash, tuple(entered))
