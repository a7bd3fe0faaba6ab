"""Notifications: NOTIFY and LISTEN tell other processes which queues have new work, and which
sessions have a cancel request or a command.

A NOTIFY takes a lock that all notifying commits of a server share. It holds the lock until its
commit is flushed. Therefore a process notifies at most once per 5 ms. If it was quiet before, it
notifies in the transaction that stores the jobs, else in a separate transaction.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from nimburion.backends.postgres.connection.pool import ConnectionPool, PostgresConnection
from nimburion.backends.postgres.errors import DRIVER_ERRORS, map_error
from nimburion.backends.postgres.url import PostgresSettings
from nimburion.backends.waiters import EVERY_QUEUE, EVERY_SESSION, Waiters, wait_until
from nimburion.core.errors import BackendError, BackendUnavailable, ConfigurationError

_log = logging.getLogger("nimburion.backends.postgres")

_MIN_INTERVAL = 0.005
_LISTEN_TIMEOUT = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_PING_AFTER = 15.0
"""Seconds after which the listening connection is checked."""
_MAX_PAYLOAD_BYTES = 7_000
"""The largest total size, in bytes, of the names in one NOTIFY."""
_NOTIFY = "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)"


def make_channel_name(settings: PostgresSettings) -> str:
    """Return the name of the NOTIFY channel that all processes of a backend share.

    >>> make_channel_name(PostgresSettings(schema="jobs"))
    'jobs.notify'
    """
    return f"{settings.schema}.notify"


class PostgresNotifier:
    """Sends and receives the notifications of one handle. Belongs to one event loop; listens from
    the first call that waits.
    """

    def __init__(self, listener: PostgresConnection, pool: ConnectionPool) -> None:
        self._listener = listener
        self._pool = pool
        self.channel: str = make_channel_name(listener.settings)
        self._sender_id = secrets.token_hex(4)
        self._waiters = Waiters()
        self._unsent: set[str] = set()
        self._last_inline = -_MIN_INTERVAL
        """The time at which a call last notified in its own transaction."""
        self._send_task: asyncio.Task[None] | None = None
        self._listen_task: asyncio.Task[None] | None = None
        self._is_connected = asyncio.Event()
        self._has_no_listen = False
        """Whether the connection leads to a pooler, which does not support LISTEN."""
        self._has_warned = False

    # --- sending ---

    def take_inline_payload(self, queues: Collection[str]) -> str | None:
        """Return the payload that a call may send in its own transaction, which saves a round trip.
        Return None if this process has notified within the last 5 ms.
        """
        now = asyncio.get_running_loop().time()
        if self._send_task is not None or now < self._last_inline + _MIN_INTERVAL:
            return None
        self._last_inline = now
        return self._make_payload(queues)

    def notify(self, names: Collection[str], *, already_sent: bool = False) -> None:
        """Wake the waiters of these queues and sessions in this handle. Notify other processes
        soon, unless `already_sent`.
        """
        if not names:
            return
        self._waiters.notify(names)
        if already_sent:
            return
        self._unsent.update(names)
        if self._send_task is None:
            self._send_task = asyncio.create_task(
                self._send_unsent(), name="nimburion-postgres-notify"
            )

    def _make_payload(self, names: Collection[str]) -> str:
        text = "\n".join((self._sender_id, *sorted(names)))
        if len(text) <= _MAX_PAYLOAD_BYTES:
            return text
        return f"{self._sender_id}\n{EVERY_QUEUE}\n{EVERY_SESSION}"

    async def _send_unsent(self) -> None:
        try:
            while self._unsent:
                names, self._unsent = self._unsent, set()
                with suppress(BackendError):
                    await self._pool.fetch(_NOTIFY, self.channel, self._make_payload(names))
                await asyncio.sleep(_MIN_INTERVAL)
        finally:
            self._send_task = None

    # --- receiving ---

    async def wait(
        self, queues: Collection[str], timeout: float, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        """Return when one of the queues is notified, or was notified since the last wait. Return at
        the latest after `timeout` seconds, measured by `sleep`.
        """
        await self._ensure_listening(min(timeout, _LISTEN_TIMEOUT))
        if self._waiters.take_missed(queues):
            return
        with self._waiters.expect(queues) as notified:
            await wait_until(notified, sleep(timeout))

    async def wait_for_session(self, session_id: str) -> None:
        """Return when the session is notified, or when notifications may have been lost. Behind a
        pooler, only notifications of this handle arrive.
        """
        await self._ensure_listening(_LISTEN_TIMEOUT)
        await self._waiters.wait_for_session(session_id)

    async def _ensure_listening(self, timeout: float) -> None:
        """Wait up to `timeout` seconds until the handle listens. Polling works without it."""
        if self._listen_task is None and not self._has_no_listen:
            self._listen_task = asyncio.create_task(
                self._listen_forever(), name="nimburion-postgres-listen"
            )
        if not self._is_connected.is_set() and not self._has_no_listen:
            # `asyncio.wait_for` of Python 3.11 can lose a cancellation that comes with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._is_connected.wait()

    async def _listen_forever(self) -> None:
        """Listen, and reconnect after each failure. Notifications may be lost in between, so a lost
        connection wakes all waiters.
        """
        pause = _FIRST_PAUSE
        while not self._has_no_listen:
            try:
                await self._listen_once()
            except (BackendUnavailable, OSError, EOFError) as error:
                _log.debug("notifications are unavailable; reconnecting: %s", error)
            except (BackendError, ConfigurationError) as error:
                self._warn_once(error)
            if self._is_connected.is_set() and not self._has_no_listen:
                pause = _FIRST_PAUSE
                self._is_connected.clear()
                self._waiters.notify([EVERY_QUEUE, EVERY_SESSION])
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _warn_once(self, error: Exception) -> None:
        """Log a warning once until notifications work again, because the cause may last."""
        if not self._has_warned:
            self._has_warned = True
            _log.warning("notifications are unavailable (%s); idle workers poll instead", error)

    async def _listen_once(self) -> None:
        connection = self._listener
        await connection.connect()
        if connection.server.pooled:
            self._has_no_listen = True
            self._is_connected.set()
            await connection.close()
            return
        lost = asyncio.Event()
        connection.driver.add_termination_listener(lambda _: lost.set())
        try:
            await self._subscribe(connection)
            while not lost.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PING_AFTER):
                        await lost.wait()
                if not lost.is_set():
                    await connection.fetch("SELECT 1")
        finally:
            connection.terminate()

    async def _subscribe(self, connection: PostgresConnection) -> None:
        try:
            async with asyncio.timeout(connection.settings.timeout):
                await connection.driver.add_listener(self.channel, self._on_notification)
        except DRIVER_ERRORS as error:
            raise map_error(error, connection.settings.describe(), sent=False) from error
        self._is_connected.set()
        self._has_warned = False

    def _on_notification(self, _connection: object, _pid: int, _channel: str, text: str) -> None:
        sender_id, *names = text.split("\n")
        if sender_id != self._sender_id:
            self._waiters.notify(names)

    async def close(self) -> None:
        """Send the pending notifications, and stop listening."""
        if self._send_task is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._send_task), 1.0)
        for task in (self._send_task, self._listen_task):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._send_task = self._listen_task = None
