"""Notifications: a connection that subscribes to wake-ups while this process waits for jobs.

A handle that waits has idle entries, which the exchange that found nothing, or `wait`, has written.
The script that makes a job available removes one entry, and wakes this handle on its own channel.
Busy workers cause no notifications. Sessions are notified on a common channel, always: cancels and
commands are rare.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from nimburion.backends.redis.connection.topology import ServerLocator
from nimburion.backends.redis.listener import REPLY_TIMEOUT, RedisListener
from nimburion.backends.waiters import (
    EVERY_QUEUE,
    EVERY_SESSION,
    LONGEST_DEAF_WAIT,
    LastWait,
    PassOn,
    Waiters,
    wait_until,
)
from nimburion.core.errors import BackendError
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.notification_relay import NotificationReceiver, NotificationRelay

_PASSED = "!"
"""The first character of a wake-up that another worker has passed on."""

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
        return [self._make_member(queue) for queue in queues]

    def note_added(self, wakeup_count: int) -> None:
        """Note that the server has these members. `wakeup_count` is that of before the call."""
        self._listens = wakeup_count == self.wakeup_count

    def list_members(self) -> list[str]:
        """Return the members of `idle_worker` that the handle may have."""
        return [self._make_member(queue) for queue in self.registered[1:]]

    def _make_member(self, queue: str) -> str:
        return f"{queue}\0{self.session_id}\0{self.registered[0]}"


AddEntries = Callable[[Collection[str]], Awaitable[None]]
"""Writes idle entries of the handle for these queues."""


class RedisNotifications:
    """The notifications that one handle receives. Belongs to one event loop; listens from the first
    call that waits.
    """

    def __init__(
        self,
        locator: ServerLocator,
        channels: tuple[str, str],
        entries: IdleEntries,
        *,
        add_entries: AddEntries,
        pass_on: PassOn,
        relay: NotificationRelay | None = None,
    ) -> None:
        self._locator = locator
        self._channels = channels
        """The channel of sessions, and that of this handle."""
        self._entries = entries
        self._add_entries = add_entries
        self._pass_on = pass_on
        self._relay = relay
        """None: this handle listens on a connection of its own."""
        self._listener: RedisListener | None = None
        self._has_subscribed = False
        self._waiters = Waiters(pass_on)
        self._is_connected = asyncio.Event()
        """Set while notifications arrive."""

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
        await self._ensure_listening(min(timeout, REPLY_TIMEOUT))
        if self._waiters.take_missed(queues):
            return
        if not self._is_connected.is_set():
            timeout = min(timeout, LONGEST_DEAF_WAIT)
        with self._waiters.expect(queues) as notified:
            await self._announce(queues)
            left = max(0.0, timeout - (clock.time() - began))
            await wait_until(notified, sleep(left))

    async def wait_for_session(self, session_id: str) -> None:
        """Return when the session is notified, or when notifications may have been lost."""
        await self._ensure_listening(REPLY_TIMEOUT)
        await self._waiters.wait_for_session(session_id)

    async def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            await self._listener.close()
        elif self._relay is not None and self._has_subscribed:
            await self._relay.unsubscribe()

    async def _ensure_listening(self, timeout: float) -> None:
        """Wait up to `timeout` seconds until notifications arrive. Polling works without them."""
        if not self._has_subscribed:
            self._has_subscribed = True
            self._subscribe()
        if not self._is_connected.is_set():
            # `asyncio.wait_for` of Python 3.11 can lose a cancellation that comes with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._is_connected.wait()

    def _subscribe(self) -> None:
        if self._relay is None:
            self._listener = self._make_listener(self)
            self._listener.listen(self._channels)
        else:
            self._relay.subscribe(self._channels, self, self._make_listener)

    def _make_listener(self, receiver: NotificationReceiver) -> RedisListener:
        return RedisListener(self._locator, receiver)

    async def _announce(self, queues: Collection[str]) -> None:
        """Have idle entries for these queues."""
        if self._is_connected.is_set() and not self._entries.may_listen(queues):
            wakeups = self._entries.wakeup_count
            with suppress(BackendError):
                await self._add_entries(queues)
                self._entries.note_added(wakeups)

    # --- the receiver of the listener ---

    def note_listening(self, channels: Collection[str]) -> None:  # noqa: ARG002 (of the protocol)
        """Note that notifications arrive from now on."""
        if not self._is_connected.is_set():
            self._entries.note_wakeup()  # a wake-up may have been lost
            self._is_connected.set()

    def note_lost(self) -> None:
        """Note that notifications may be lost from now on, and wake all waiters."""
        self._is_connected.clear()
        self._entries.note_wakeup()
        self._waiters.notify([EVERY_QUEUE, EVERY_SESSION])

    def receive(self, channel: str, text: str) -> None:
        """Handle one notification."""
        if channel == self._channels[0]:
            self._waiters.notify(text.split("\0"))
        else:
            self._wake_one(text)

    def _wake_one(self, text: str) -> None:
        """End a call of this handle. If none waits any more, wake another worker."""
        self._entries.note_wakeup()
        passed, queue = text.startswith(_PASSED), text.removeprefix(_PASSED)
        if not self._waiters.wake(queue, 1, passed=passed):
            self._waiters.keep([queue])
            self._pass_on(queue, passed)
