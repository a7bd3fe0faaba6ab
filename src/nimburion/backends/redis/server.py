"""`RedisServer`: runs the scripts of a backend on its server, on the connections of one handle."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from nimburion.backends.redis import enqueue as enqueueing
from nimburion.backends.redis.connection.command_connection import CommandConnection, CommandPart
from nimburion.backends.redis.connection.topology import ServerLocator
from nimburion.backends.redis.keys import Keys
from nimburion.backends.redis.long_poll import Command, StreamLongPoll
from nimburion.backends.redis.notifications import RedisNotifications
from nimburion.backends.redis.scripts import Script, Scripts
from nimburion.backends.redis.server_check import RedisServerInfo, check_server
from nimburion.backends.redis.url import RedisSettings
from nimburion.backends.server.handle import OpenHandle
from nimburion.core.errors import FormatMismatch
from nimburion.core.listener import ShareListener
from nimburion.core.timing.clock import Clock, SystemClock, to_micros

_log = logging.getLogger("nimburion.backends.redis")

_UNUSED_INTERVAL = 2.0
"""A worker closes connections that were not used for between one and two times these seconds."""
FORMAT = 1
"""The format that this version writes. Workers of the same format run together."""


class RedisServer:
    """Runs scripts on the connections that are open, with the time of the test clock if any.

    Args:
        settings: the settings of the backend.
        test_clock: the clock of a test; None: the server's own time counts.
    """

    def __init__(self, settings: RedisSettings, test_clock: Clock | None) -> None:
        self.settings: RedisSettings = settings
        self.test_clock: Clock | None = test_clock
        self.clock: Clock = test_clock or SystemClock()
        self.warned: set[str] = set()
        """The server warnings already logged; shared by all handles of this backend."""
        self.share_listener: ShareListener | None = None
        """Returns a listener that processes share; None: the handle listens itself."""
        self.handle: OpenHandle[RedisConnections] = OpenHandle(
            settings.describe(), self.make_connections
        )
        self.get_connections: Callable[[], RedisConnections] = self.handle.get
        """Returns the open connections. Raises `NotOpen`."""

    def make_connections(self) -> RedisConnections:
        """Return new connections, which are not open yet."""
        return RedisConnections(
            self.settings,
            self.warned,
            handle=os.urandom(8).hex(),
            share_listener=self.share_listener,
        )

    def make_times(self) -> tuple[CommandPart, CommandPart]:
        """Return the time of the test clock; without one, the script reads the server's time."""
        if self.test_clock is None:
            return b"", b""
        return to_micros(self.test_clock.now()), to_micros(self.test_clock.monotonic())

    async def run_script(
        self, name: str, *arguments: CommandPart, more_keys: Sequence[bytes] = ()
    ) -> Any:  # noqa: ANN401 - a script's reply
        """Run a script on the connection for all operations but enqueue and exchange."""
        connections = self.get_connections()
        (reply,) = await connections.run_script(
            connections.commands, name, arguments, self.make_times(), more_keys=more_keys
        )
        return reply

    async def run_enqueue_script(
        self,
        connections: RedisConnections,
        script: str,
        arguments: Sequence[CommandPart],
        *,
        more_keys: Sequence[bytes] = (),
        flush: bool = True,
    ) -> Any:  # noqa: ANN401 - a script's reply
        """Store new jobs. With `durable_enqueue`, wait until they are on the server's disk."""
        flush = flush and self.settings.durable_enqueue
        then = connections.make_flush_commands(self.settings) if flush else ()
        reply, *flushed = await connections.run_script(
            connections.enqueues,
            script,
            arguments,
            self.make_times(),
            more_keys=more_keys,
            after=then,
        )
        if flush:
            enqueueing.check_flushed(flushed, self.settings)
        return reply


class RedisConnections:
    """The open connections of a backend on one event loop, and the properties of its server."""

    def __init__(
        self,
        settings: RedisSettings,
        warned: set[str],
        *,
        handle: str,
        share_listener: ShareListener | None,
    ) -> None:
        self.settings: RedisSettings = settings
        self.locator: ServerLocator = ServerLocator(settings, timeout=settings.timeout)
        where = settings.describe()
        self.commands: CommandConnection = CommandConnection(self.locator, where, settings.timeout)
        """The connection for all operations other than enqueue and exchange."""
        self.enqueues: CommandConnection = CommandConnection(self.locator, where, settings.timeout)
        self.exchanges: CommandConnection = CommandConnection(self.locator, where, settings.timeout)
        self.keys: Keys = Keys(settings.namespace)
        self.notifications: RedisNotifications = RedisNotifications(
            settings,
            self.keys,
            handle,
            self.commands,
            run_script=partial(self.run_script, self.commands),
            share_listener=share_listener,
        )
        self.long_poll: StreamLongPoll = StreamLongPoll(
            self.notifications.own_channel.encode(),
            self.notifications.last_wait,
            self.exchanges,
            self.commands,
        )
        self._closing_unused: asyncio.Task[None] | None = None
        self.server: RedisServerInfo
        self._warned = warned
        self._scripts: dict[str, tuple[Script, tuple[bytes, ...]]] = {}

    async def start(self) -> None:
        """Check the server and the format of the namespace; write the format if there is none.

        Raises:
            ConfigurationError: the server is not suitable.
            FormatMismatch: the namespace was written by another version.
            BackendUnavailable: the server does not answer.
        """
        self.server = await check_server(self.commands.execute, self.settings, self._warned)
        self._scripts = {
            script.name: (script, self.keys.select(script.keys))
            for script in Scripts(self.server.version)
        }
        (found,) = await self.run_script(self.commands, "open", [b"%d" % FORMAT])
        _check_format(found, self.settings)
        for connection in (self.commands, self.enqueues, self.exchanges):
            connection.is_verified = True

    async def plan_migration(self) -> list[str]:
        """Return descriptions of what `start` would change in the namespace. Writes nothing.

        Raises:
            ConfigurationError: the server is not suitable.
            FormatMismatch: the namespace was written by another version.
            BackendUnavailable: the server does not answer.
        """
        await check_server(self.commands.execute, self.settings, self._warned)
        (meta,) = self.keys.select(["meta"])
        found = await self.commands.execute("HGET", meta, "format")
        if found is None:
            return [f"format {FORMAT}: namespace {self.settings.namespace!r}"]
        _check_format(int(found), self.settings)
        return []

    def run_script(
        self,
        connection: CommandConnection,
        name: str,
        arguments: Sequence[CommandPart],
        times: tuple[CommandPart, CommandPart] = (b"", b""),
        *,
        more_keys: Sequence[bytes] = (),
        before: Sequence[Command] = (),
        after: Sequence[Command] = (),
        long_poll: float = 0.0,
    ) -> Coroutine[Any, Any, list[Any]]:
        """Run a script with commands before and after it in one request. Return all replies in
        order.
        """
        script, keys = self._scripts[name]
        return connection.run_script(
            script,
            [*keys, *more_keys],
            [*times, *arguments],
            before=before,
            after=after,
            long_poll=long_poll,
        )

    def make_flush_commands(self, settings: RedisSettings) -> list[enqueueing.FlushCommand]:
        """Return the commands that follow a write and wait until it is on the disk."""
        return enqueueing.make_flush_commands(*self._scripts["flush"], settings)

    def start_closing_unused(self) -> None:
        """Close the connections for callers and for all other operations whenever they are not
        used: this handle is a worker's, and an idle worker needs the one for exchanges.
        """
        if self._closing_unused is None:
            self._closing_unused = asyncio.create_task(
                self._close_unused(), name="nimburion-redis-unused"
            )

    async def _close_unused(self) -> None:
        while True:
            await asyncio.sleep(_UNUSED_INTERVAL)
            for connection in (self.enqueues, self.commands):
                try:
                    await connection.close_if_unused()
                except Exception as error:  # noqa: BLE001 - a loop in the background must not end
                    _log.debug("an unused connection was not closed cleanly: %s", error)

    async def close(self) -> None:
        """Send the pending wake-ups, remove the idle entries, and close all connections."""
        if self._closing_unused is not None:
            self._closing_unused.cancel()
            await asyncio.gather(self._closing_unused, return_exceptions=True)
        try:
            await self.notifications.close()
        finally:
            await self.long_poll.close()
            for connection in (self.exchanges, self.enqueues, self.commands):
                await connection.close()


def _check_format(found: int, settings: RedisSettings) -> None:
    """Raise `FormatMismatch` if the format is newer than `FORMAT`."""
    if found > FORMAT:
        raise FormatMismatch(
            f"{settings.describe()} has format {found}, this nimburion knows formats up to "
            f"{FORMAT}; nothing was changed. Upgrade nimburion here (pip install --upgrade "
            "nimburion)"
        )
