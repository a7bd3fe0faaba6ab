"""SUBSCRIBE on a connection of its own, which is opened again after each failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from hiredis import pack_command
from redis import exceptions as driver

from nimburion.backends.redis.connection.protocol import RedisProtocol
from nimburion.backends.redis.connection.topology import ServerLocator
from nimburion.core.errors import BackendUnavailable
from nimburion.core.notification_relay import NotificationReceiver

_log = logging.getLogger("nimburion.backends.redis")

REPLY_TIMEOUT = 5.0
"""Seconds for the server to confirm a subscription, or to answer a PING."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_PING_AFTER = 30.0
"""Seconds of silence after which the listener sends a PING."""
_PING = pack_command((b"PING",))
_OUTAGES = (BackendUnavailable, OSError, EOFError, driver.ConnectionError, driver.TimeoutError)


class RedisListener:
    """Subscribes to channels, and passes each notification to a receiver. Belongs to one event
    loop. Nothing is sent to the server before the first call of `listen`.
    """

    def __init__(self, locator: ServerLocator, receiver: NotificationReceiver) -> None:
        self._locator = locator
        self._receiver = receiver
        self._channels: frozenset[str] = frozenset()
        self._requested: frozenset[str] = frozenset()
        """The channels for which a subscription was sent on this connection."""
        self._subscribed: set[str] = set()
        """The channels for which the server has confirmed it."""
        self._served: frozenset[str] = frozenset()
        """The channels on which the receiver knows that this listens."""
        self._failure: Exception | None = None
        """The error with which the server has refused a subscription."""
        self._woken = asyncio.Event()
        """Set when other channels are wanted, and by each reply of the server."""
        self._task: asyncio.Task[None] | None = None
        self._last_warning = ""

    def listen(self, channels: Collection[str]) -> None:
        """Listen on these channels from now on, in place of those of the last call.

        Notifications of former channels arrive until the connection ends.
        """
        self._channels = frozenset(channels)
        self._woken.set()
        if self._task is None:
            self._task = asyncio.create_task(self._listen_forever(), name="nimburion-redis-listen")

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
            except Exception as error:  # noqa: BLE001 - a loop in the background must not end
                self._log_failure(error)
            if self._served:
                pause = _FIRST_PAUSE
                self._served = frozenset()
                self._receiver.note_lost()
            self._locator.invalidate()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _log_failure(self, error: Exception) -> None:
        """Log why notifications are unavailable. An outage is logged at debug level, because other
        operations report it. Any other cause is logged as a warning, once.
        """
        if isinstance(error, _OUTAGES) or str(error) == self._last_warning:
            _log.debug("notifications are unavailable; reconnecting: %s", error)
            return
        self._last_warning = str(error)
        _log.warning(
            "notifications are not received (%s); idle workers find new jobs by polling, every 1 "
            "to 2 seconds",
            error,
        )

    async def _listen_once(self) -> None:
        """Listen until the connection is lost.

        Raises:
            TimeoutError: the server does not answer.
        """
        self._requested, self._subscribed, self._failure = frozenset(), set(), None
        protocol = RedisProtocol(await self._locator.connect(), self._on_push)
        try:
            while protocol.is_alive:
                self._woken.clear()
                self._request_subscriptions(protocol)
                self._note_confirmed()
                await self._wait(protocol)
                if self._failure is not None:
                    raise self._failure
        finally:
            await protocol.close()

    def _request_subscriptions(self, protocol: RedisProtocol) -> None:
        """Subscribe to the channels that are wanted now. Those of handles that are gone stay until
        the connection ends, because nothing is sent to them, and UNSUBSCRIBE needs another right.
        """
        for channel in sorted(self._channels - self._requested):
            protocol.send(pack_command(("SUBSCRIBE", channel)))  # type: ignore[arg-type]
        self._requested |= self._channels

    def _note_confirmed(self) -> None:
        if self._channels <= self._subscribed and self._channels != self._served:
            self._served, self._last_warning = self._channels, ""
            self._receiver.note_listening(self._channels)

    async def _wait(self, protocol: RedisProtocol) -> None:
        """Return when there is something to do, or the connection is lost. Check it after a long
        silence.
        """
        message_count = protocol.message_count
        await self._wait_for(protocol, _PING_AFTER if self._served else REPLY_TIMEOUT)
        if self._served and protocol.message_count == message_count and not self._woken.is_set():
            protocol.send(_PING)
            await self._wait_for(protocol, REPLY_TIMEOUT)
        is_silent = protocol.message_count == message_count and not self._woken.is_set()
        if is_silent and protocol.is_alive:
            raise TimeoutError(f"no reply within {REPLY_TIMEOUT:g} s")

    async def _wait_for(self, protocol: RedisProtocol, timeout: float) -> None:
        """Return when there is something to do, the connection is lost, or the time is over."""
        woken = asyncio.ensure_future(self._woken.wait())
        ends: tuple[asyncio.Future[Any], ...] = (protocol.lost, woken)
        try:
            await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()

    def _on_push(self, message: Any) -> None:  # noqa: ANN401 - a reply is what the server says
        """Handle a notification, a confirmation, the reply to a PING, or an error."""
        if isinstance(message, Exception):
            self._failure = message
        elif message[0] == b"message":
            self._receiver.receive(message[1].decode(), message[2].decode())
            return
        elif message[0] == b"subscribe":
            self._subscribed.add(message[1].decode())
        self._woken.set()
