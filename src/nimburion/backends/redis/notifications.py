"""Notifications: a connection that subscribes to wake-ups while this process waits for jobs.

A handle that waits has idle entries, which the exchange that found nothing, or `wait`, has written.
The script that makes a job available removes one entry, and wakes this handle on its own channel.
Busy workers cause no notifications. Sessions are notified on a common channel, always: cancels and
commands are rare.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from hiredis import pack_command
from redis import exceptions as driver

from nimburion.backends.redis.connection.protocol import RedisProtocol
from nimburion.backends.redis.connection.topology import ServerLocator
from nimburion.backends.waiters import (
    EVERY_QUEUE,
    EVERY_SESSION,
    LastWait,
    PassOn,
    Waiters,
    wait_until,
)
from nimburion.core.errors import BackendError, BackendUnavailable
from nimburion.core.exchange import Reply, ReserveRequest

_log = logging.getLogger("nimburion.backends.redis")

_REPLY_TIMEOUT = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_PING_AFTER = 30.0
"""Seconds of silence after which the listener sends a PING."""
_PING = pack_command((b"PING",))
_PASSED = "!"
"""The first character of a wake-up that another worker has passed on."""

_OUTAGES = (BackendUnavailable, OSError, EOFError, driver.ConnectionError, driver.TimeoutError)

_ON_STREAM, _ON_CHANNEL = "s", "c"
"""How the worker waits: its exchange waits on the stream of its handle, or its handle listens on
its channel. `idle_workers.lua` uses the same letters.
"""


class IdleEntries:
    """The idle entries that a handle may have, as far as it knows. Belongs to one event loop."""

    __slots__ = ("_listens", "handle", "registered", "session_id", "wakeup_count")

    def __init__(self, handle: str) -> None:
        self.handle: str = handle
        """The id of the handle, 16 characters."""
        self.session_id: str = ""
        """The session of its latest exchange."""
        self.registered: tuple[str, ...] = ()
        """The handle and how it waits, then the queues; empty if it has no entry."""
        self.wakeup_count: int = 0
        """How often an entry was used, or the server may have lost some."""
        self._listens = False
        """Whether these entries say that the handle listens on its channel, and none is used."""

    def note_reply(self, session_id: str, request: ReserveRequest, reply: Reply) -> None:
        """Note which entries the script of this exchange has written or removed."""
        self.session_id = session_id
        if not request.total:
            return
        if request.long_poll:
            mode, is_idle = _ON_STREAM, not reply.waiting and not reply.deliveries
        else:
            mode = _ON_CHANNEL
            is_idle = not reply.waiting and len(reply.deliveries) < request.free_slots
        queues = dict.fromkeys(lane.queue for lane in request.lanes) if is_idle else ()
        self.registered = (self.handle + mode, *queues) if queues else ()
        self._listens = is_idle and mode == _ON_CHANNEL

    def may_listen(self, queues: Collection[str]) -> bool:
        """Return whether the server knows that the handle listens for all of these queues."""
        return self._listens and {*queues} <= {*self.registered[1:]}

    def note_wakeup(self) -> None:
        """Note that an entry is used, or that the server may have lost some."""
        self.wakeup_count += 1
        self._listens = False

    def add_members(self, queues: Collection[str]) -> list[str]:
        """Return the members of `idle_worker` that say that the handle listens for these queues."""
        known = self.registered[1:] if self._listens else ()
        self.registered = (self.handle + _ON_CHANNEL, *dict.fromkeys((*known, *queues)))
        self._listens = False
        return [f"{queue}\0{self.registered[0]}{self.session_id}" for queue in queues]

    def note_added(self, wakeup_count: int) -> None:
        """Note that the server has these members. `wakeup_count` is that of before the call."""
        self._listens = wakeup_count == self.wakeup_count

    def list_members(self) -> list[str]:
        """Return the members of `idle_worker` that the handle may have."""
        queues = self.registered[1:]
        return [f"{queue}\0{self.registered[0]}{self.session_id}" for queue in queues]


AddEntries = Callable[[Collection[str]], Awaitable[None]]
"""Writes idle entries of the handle for these queues."""


class PubSubListener:
    """The notifications that one handle receives. Belongs to one event loop; listens from the first
    call that waits.
    """

    def __init__(
        self,
        locator: ServerLocator,
        channels: tuple[bytes, bytes],
        entries: IdleEntries,
        *,
        add_entries: AddEntries,
        pass_on: PassOn,
    ) -> None:
        self._locator = locator
        self._channels = channels
        """The channel of sessions, and that of this handle."""
        self._entries = entries
        self._add_entries = add_entries
        self._pass_on = pass_on
        self._waiters = Waiters(pass_on)
        self._is_connected = asyncio.Event()
        self._listen_task: asyncio.Task[None] | None = None
        self._last_warning = ""

    @property
    def last_wait(self) -> LastWait:
        """How the last call of `wait` ended."""
        return self._waiters.last_wait

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
            await self._announce(queues)
            left = max(0.0, timeout - (clock.time() - began))
            await wait_until(notified, sleep(left))

    async def wait_for_session(self, session_id: str) -> None:
        """Return when the session is notified, or when notifications may have been lost."""
        await self._ensure_listening(_REPLY_TIMEOUT)
        await self._waiters.wait_for_session(session_id)

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

    async def _announce(self, queues: Collection[str]) -> None:
        """Have idle entries for these queues."""
        if self._is_connected.is_set() and not self._entries.may_listen(queues):
            wakeups = self._entries.wakeup_count
            with suppress(BackendError):
                await self._add_entries(queues)
                self._entries.note_added(wakeups)

    def _notify_all(self) -> None:
        self._entries.note_wakeup()
        self._waiters.notify([EVERY_QUEUE, EVERY_SESSION])

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
                self._notify_all()
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
            commands = [pack_command((b"SUBSCRIBE", channel)) for channel in self._channels]  # type: ignore[arg-type]
            for reply in await protocol.request(b"".join(commands), len(commands), _REPLY_TIMEOUT):
                if isinstance(reply, Exception):
                    raise reply
            self._entries.note_wakeup()
            self._is_connected.set()
            self._last_warning = ""
            await _wait_until_lost(protocol)
        finally:
            await protocol.close()

    def _on_message(self, message: list[bytes]) -> None:
        if message[0] != b"message":
            return
        if message[1] == self._channels[0]:
            self._waiters.notify(message[2].decode().split("\0"))
        else:
            self._wake_one(message[2].decode())

    def _wake_one(self, text: str) -> None:
        """End a call of this handle. If none waits any more, wake another worker."""
        self._entries.note_wakeup()
        passed, queue = text.startswith(_PASSED), text.removeprefix(_PASSED)
        if not self._waiters.wake(queue, 1, passed=passed):
            self._waiters.keep([queue])
            self._pass_on(queue, passed)


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
