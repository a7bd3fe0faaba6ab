"""LISTEN on a connection of its own, which is opened again after each failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from contextlib import suppress

from nimburion.backends.postgres.connection.pool import PostgresConnection
from nimburion.backends.postgres.errors import DRIVER_ERRORS, map_error
from nimburion.core.errors import BackendUnavailable, ConfigurationError
from nimburion.core.notification_relay import NotificationReceiver

_log = logging.getLogger("nimburion.backends.postgres")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_PING_AFTER = 15.0
"""Seconds after which the listening connection is checked."""


class PostgresListener:
    """Listens on channels, and passes each notification to a receiver. Belongs to one event loop.

    Nothing is sent to the server before the first call of `listen`.
    """

    def __init__(self, connection: PostgresConnection, receiver: NotificationReceiver) -> None:
        self._connection = connection
        self._receiver = receiver
        self._channels: frozenset[str] = frozenset()
        self._subscribed: frozenset[str] = frozenset()
        """The channels on which the server knows that this connection listens."""
        self._is_listening = False
        self._woken = asyncio.Event()
        """Set when other channels are wanted, or the connection is lost."""
        self._task: asyncio.Task[None] | None = None
        self._has_warned = False

    def listen(self, channels: Collection[str]) -> None:
        """Listen on these channels, and on no other, from now on."""
        self._channels = frozenset(channels)
        self._woken.set()
        if self._task is None:
            self._task = asyncio.create_task(
                self._listen_forever(), name="nimburion-postgres-listen"
            )

    async def close(self) -> None:
        """Stop listening and disconnect."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _listen_forever(self) -> None:
        """Listen, and reconnect after each failure."""
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._listen_once()
            except (BackendUnavailable, OSError, EOFError) as error:
                _log.debug("notifications are unavailable; reconnecting: %s", error)
            except Exception as error:  # noqa: BLE001 - a loop in the background must not end
                self._warn_once(error)
            if self._is_listening:
                pause = _FIRST_PAUSE
                self._is_listening = False
                self._receiver.note_lost()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _warn_once(self, error: Exception) -> None:
        """Log a warning once until notifications work again, because the cause may last."""
        if not self._has_warned:
            self._has_warned = True
            _log.warning("notifications are unavailable (%s); idle workers poll instead", error)

    async def _listen_once(self) -> None:
        """Listen until the connection is lost."""
        connection = self._connection
        await connection.connect()
        if connection.server.pooled:
            raise ConfigurationError(
                "the server is reached through a pooler, which does not support LISTEN"
            )
        lost = asyncio.Event()

        def note_termination(_connection: object) -> None:
            lost.set()
            self._woken.set()

        connection.driver.add_termination_listener(note_termination)
        self._subscribed = frozenset()
        try:
            while not lost.is_set():
                self._woken.clear()
                await self._subscribe()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PING_AFTER):
                        await self._woken.wait()
                if not self._woken.is_set():
                    await connection.fetch("SELECT 1")
        finally:
            connection.terminate()

    async def _subscribe(self) -> None:
        """Listen on the channels that are wanted now."""
        wanted = self._channels
        if self._is_listening and wanted == self._subscribed:
            return
        driver = self._connection.driver
        try:
            async with asyncio.timeout(self._connection.settings.timeout):
                for channel in sorted(self._subscribed - wanted):
                    await driver.remove_listener(channel, self._on_notification)
                for channel in sorted(wanted - self._subscribed):
                    await driver.add_listener(channel, self._on_notification)
        except DRIVER_ERRORS as error:
            where = self._connection.settings.describe()
            raise map_error(error, where, sent=False) from error
        self._subscribed = wanted
        self._is_listening, self._has_warned = True, False
        self._receiver.note_listening(wanted)

    def _on_notification(self, _connection: object, _pid: int, channel: str, text: str) -> None:
        self._receiver.receive(channel, text)
