"""Notifications: a connection that subscribes to wake-ups while this process waits for jobs.

A queue is notified only when one of its workers is idle. Its name is then in the hash `notify`,
where the exchange that found nothing, or `wait`, has put it. Busy workers cause no notifications.
A session is notified on the same channel, always: cancels and commands are rare.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress

from hiredis import pack_command
from redis import exceptions as driver

from nimburion.backends.redis.connection.protocol import RedisProtocol
from nimburion.backends.redis.connection.topology import ServerLocator
from nimburion.backends.waiters import EVERY_QUEUE, EVERY_SESSION, Waiters, wait_until
from nimburion.core.errors import BackendError, BackendUnavailable

_log = logging.getLogger("nimburion.backends.redis")

_REPLY_TIMEOUT = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_PING_AFTER = 30.0
"""Seconds of silence after which the listener sends a PING."""
_PING = pack_command((b"PING",))

_OUTAGES = (BackendUnavailable, OSError, EOFError, driver.ConnectionError, driver.TimeoutError)

Subscribe = Callable[[Collection[str]], Awaitable[None]]


class PubSubListener:
    """The notifications that one handle receives. Belongs to one event loop; listens from the first
    call that waits.
    """

    def __init__(self, locator: ServerLocator, channel: bytes, subscribe: Subscribe) -> None:
        self._locator = locator
        self.channel: bytes = channel
        self._subscribe = subscribe
        self._subscribed_queues: set[str] = set()
        """The queues that are in the hash, as far as this handle knows."""
        self._waiters = Waiters()
        self._is_connected = asyncio.Event()
        self._listen_task: asyncio.Task[None] | None = None
        self._last_warning = ""

    async def wait(
        self, queues: Collection[str], timeout: float, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        """Return when one of the queues is notified, or was notified since the last wait. Return at
        the latest after `timeout` seconds, measured by `sleep`.
        """
        clock = asyncio.get_running_loop()
        began = clock.time()
        await self._ensure_listening(min(timeout, _REPLY_TIMEOUT))
        if self._waiters.take_missed(queues):
            return
        with self._waiters.expect(queues) as notified:
            await self._subscribe_queues(queues)
            left = max(0.0, timeout - (clock.time() - began))
            await wait_until(notified, sleep(left))

    async def wait_for_session(self, session_id: str) -> None:
        """Return when the session is notified, or when notifications may have been lost."""
        await self._ensure_listening(_REPLY_TIMEOUT)
        await self._waiters.wait_for_session(session_id)

    def note_subscribed(self, queues: Iterable[str]) -> None:
        """Record that an exchange found nothing and put these queues into the hash."""
        if self._listen_task is not None:
            self._subscribed_queues.update(queues)

    async def close(self) -> None:
        """Stop listening."""
        task, self._listen_task = self._listen_task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _ensure_listening(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for the subscription. Polling works without it."""
        if self._listen_task is None:
            self._listen_task = asyncio.create_task(
                self._listen_forever(), name="nimburion-redis-listen"
            )
        if not self._is_connected.is_set():
            # `asyncio.wait_for` of Python 3.11 can lose a cancellation that comes with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._is_connected.wait()

    async def _subscribe_queues(self, queues: Collection[str]) -> None:
        unsubscribed = [queue for queue in queues if queue not in self._subscribed_queues]
        if unsubscribed and self._is_connected.is_set():
            with suppress(BackendError):
                await self._subscribe(unsubscribed)
                self._subscribed_queues.update(unsubscribed)

    def _wake(self, names: Collection[str]) -> None:
        if EVERY_QUEUE in names:
            self._subscribed_queues.clear()
        self._subscribed_queues.difference_update(names)
        self._waiters.notify(names)

    async def _listen_forever(self) -> None:
        """Listen, and reconnect after each failure. Notifications may be lost in between, so a lost
        connection wakes all waiters.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._listen_once()
            except Exception as error:  # noqa: BLE001 - a loop in the background must not end
                self._log_failure(error)
            if self._is_connected.is_set():
                pause = _FIRST_PAUSE
                self._is_connected.clear()
                self._wake([EVERY_QUEUE, EVERY_SESSION])
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
        protocol = RedisProtocol(await self._locator.connect(), self._on_message)
        try:
            command = pack_command((b"SUBSCRIBE", self.channel))  # type: ignore[arg-type]
            (reply,) = await protocol.request(command, 1, _REPLY_TIMEOUT)
            if isinstance(reply, Exception):
                raise reply
            self._subscribed_queues.clear()
            self._is_connected.set()
            self._last_warning = ""
            await _wait_until_lost(protocol)
        finally:
            await protocol.close()

    def _on_message(self, message: list[bytes]) -> None:
        if message[0] == b"message":
            self._wake(message[2].decode().split("\0"))


async def _wait_until_lost(protocol: RedisProtocol) -> None:
    """Return when the connection is lost. After a long silence, send a PING.

    Raises:
        TimeoutError: the server does not answer the PING.
    """
    while protocol.is_alive:
        message_count = protocol.message_count
        await asyncio.wait({protocol.lost}, timeout=_PING_AFTER)
        if protocol.message_count == message_count and protocol.is_alive:
            protocol.send(_PING)
            await asyncio.wait({protocol.lost}, timeout=_REPLY_TIMEOUT)
            if protocol.message_count == message_count:
                raise TimeoutError(f"no reply within {_REPLY_TIMEOUT:g} s")
