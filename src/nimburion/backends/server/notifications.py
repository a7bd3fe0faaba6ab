"""How a wake-up reaches a worker.

A worker that finds no job leaves an idle entry in the backend: its session, its queues, and a
channel of its own. An enqueue of n jobs uses up n entries of the queue, and sends one notification
on the channel of each. A listener (`ServerListener`) receives it on a connection of its own; the
processes of one supervisor share a listener, and the supervisor passes the notification on to the
process of the channel. There, `Notifications` ends one call of `wait`, and the worker makes an
exchange, which reserves the job. If no call waits any more, another worker is woken; if the
notification is lost, a worker finds the job by a poll.

Each handle also listens on a channel that all share. It announces cancels and commands to sessions
and, on PostgreSQL, jobs of a queue for which too few workers are idle. On Redis, a worker that runs
no job waits inside its exchange: a wake-up is an entry of a stream (see `redis/long_poll.py`).
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from nimburion.backends.waiters import (
    EVERY_QUEUE,
    EVERY_SESSION,
    MAX_WAIT_WITHOUT_NOTIFICATIONS,
    LastWait,
    Waiters,
    wait_until,
)
from nimburion.core.errors import BackendUnavailable
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.listener import Listener, OnListening, OnNotification, ShareListener

_log = logging.getLogger("nimburion.backends.server")

_PASSED = "!"
"""The first character of a wake-up that another worker has passed on."""
_LISTEN_TIMEOUT = 5.0
"""Seconds that a call waits until notifications arrive, before it waits without them."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
"""Seconds between the end of a connection that listens and the next."""
_PING_INTERVAL = 15.0
"""Seconds after which the connection that listens is checked."""
_OUTAGES = (BackendUnavailable, OSError, EOFError)


class ServerListener(Listener, ABC):
    """Listens on channels of a server, on a connection that is opened again after each failure.

    It belongs to the event loop of the first call of `listen`, and sends nothing before.
    A backend says how it connects, subscribes, checks the connection and disconnects. It calls
    `_on_notification` with each notification, and `_note_lost` when the connection is lost.
    """

    def __init__(self, on_listening: OnListening, on_notification: OnNotification) -> None:
        self._on_listening = on_listening
        self._on_notification = on_notification
        self._wanted: frozenset[str] = frozenset()
        self._subscribed: frozenset[str] = frozenset()
        """The channels on which the server has confirmed that this connection listens."""
        self._woken = asyncio.Event()
        """Set when other channels are wanted, or the connection is lost."""
        self._is_lost = False
        self._task: asyncio.Task[None] | None = None
        self._last_warning = ""

    def listen(self, channels: Collection[str]) -> None:
        """Listen on these channels from now on, in place of those of the last call."""
        self._wanted = frozenset(channels)
        self._woken.set()
        if self._task is None:
            self._task = asyncio.create_task(self._listen_forever(), name="nimburion-listen")

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
            if self._subscribed:
                pause = _FIRST_PAUSE
                self._report_loss()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _listen_once(self) -> None:
        """Listen until the connection is lost."""
        self._is_lost = False
        try:
            await self._connect()
            while not self._is_lost:
                self._woken.clear()
                await self._subscribe_to_wanted()
                try:
                    async with asyncio.timeout(_PING_INTERVAL):
                        await self._woken.wait()
                except TimeoutError:
                    await self._ping()
        finally:
            await self._disconnect()

    async def _subscribe_to_wanted(self) -> None:
        wanted = self._wanted
        if wanted == self._subscribed:
            return
        await self._subscribe(wanted - self._subscribed, self._subscribed - wanted)
        self._subscribed, self._last_warning = wanted, ""
        self._on_listening(wanted)

    def _report_loss(self) -> None:
        """Report that no notifications arrive."""
        self._subscribed = frozenset()
        try:
            self._on_listening(self._subscribed)
        except Exception as error:  # noqa: BLE001 - a loop in the background must not end
            self._log_failure(error)

    def _note_lost(self) -> None:
        """Note that the connection is lost."""
        self._is_lost = True
        self._woken.set()

    def _log_failure(self, error: Exception) -> None:
        """Log why notifications are unavailable. An outage is logged at debug level, because other
        operations report it. Any other cause is logged as a warning, once until notifications
        arrive again.
        """
        if isinstance(error, _OUTAGES) or str(error) == self._last_warning:
            _log.debug("notifications are not received; reconnecting: %s", error)
            return
        self._last_warning = str(error)
        _log.warning(
            "notifications are not received (%s); idle workers find new jobs by polling", error
        )

    @abstractmethod
    async def _connect(self) -> None:
        """Open a connection."""

    @abstractmethod
    async def _subscribe(self, added: frozenset[str], removed: frozenset[str]) -> None:
        """Listen on more channels. Return when the server has confirmed it.

        Notifications of removed channels may still arrive. They are ignored.
        """

    @abstractmethod
    async def _ping(self) -> None:
        """Raise an error if the connection does not work any more."""

    @abstractmethod
    async def _disconnect(self) -> None:
        """Close the connection at once, if there is one."""


class Notifications(ABC):
    """The notifications that one handle receives. Belongs to one event loop; listens from the first
    call that waits.

    A backend says how it listens, stores idle entries, wakes workers, and reads notifications on
    the channel that all handles share.
    """

    def __init__(
        self, channel: str, own_channel: str, share_listener: ShareListener | None
    ) -> None:
        self.channel: str = channel
        """The channel of all handles."""
        self.own_channel: str = own_channel
        self.can_listen: bool = True
        """Whether the server can send notifications to this handle."""
        self._share_listener = share_listener
        """None: this handle listens itself."""
        self._listener: Listener | None = None
        self._is_connected = asyncio.Event()
        """Set while notifications arrive."""
        self._waiters = Waiters(self._wake_another)
        self._has_polled = False
        """Whether the last call of `wait` ended with its timeout."""

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
        await self._ensure_listening(min(timeout, _LISTEN_TIMEOUT))
        if self._waiters.take_missed(queues):
            return
        if not self._is_connected.is_set():
            timeout = min(timeout, MAX_WAIT_WITHOUT_NOTIFICATIONS)
        until = began + timeout
        with self._waiters.expect(queues) as notified:
            if self._is_connected.is_set():
                await self._add_idle_entries(queues)
            await wait_until(notified, sleep(max(0.0, until - clock.time())))
        self._has_polled = clock.time() >= until

    async def wait_for_session(self, session_id: str) -> None:
        """Return when the session is notified, or when notifications may have been lost: before the
        handle listened, too. Where notifications cannot be received, only those of this handle
        count.
        """
        was_connected = self._is_connected.is_set()
        await self._ensure_listening(_LISTEN_TIMEOUT)
        if was_connected or not self._is_connected.is_set():
            await self._waiters.wait_for_session(session_id)

    async def close(self) -> None:
        """Send the pending wake-ups, delete the idle entries, and stop listening."""
        try:
            await self._leave()
        finally:
            if self._listener is not None:
                await self._listener.close()

    async def _ensure_listening(self, timeout: float) -> None:
        """Wait up to `timeout` seconds until notifications arrive. Polling works without them."""
        if not self.can_listen:
            return
        if self._listener is None:
            self._listener = self._start_listener()
        if not self._is_connected.is_set():
            # `asyncio.wait_for` of Python 3.11 can lose a cancellation that comes with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._is_connected.wait()

    def _start_listener(self) -> Listener:
        if self._share_listener is None:
            listener = self._make_own_listener()
        else:
            listener = self._share_listener(
                self._make_listener, self._note_listening, self._receive
            )
        listener.listen((self.channel, self.own_channel))
        return listener

    def _note_listening(self, channels: Collection[str]) -> None:
        """Note that notifications arrive from now on; without channels, that none arrive."""
        self.forget_idle_entries()  # a wake-up may have been lost
        if channels:
            self._is_connected.set()
            self._waiters.notify([EVERY_SESSION])
        else:
            self._is_connected.clear()
            self._waiters.notify([EVERY_QUEUE, EVERY_SESSION])

    def _receive(self, channel: str, text: str) -> None:
        """Handle one notification."""
        if channel == self.own_channel:
            self._wake_one(text)
        else:
            self._notify_all(text)

    def _wake_one(self, text: str) -> None:
        """End a call of this handle. If none waits any more, wake another worker."""
        self.forget_idle_entries()
        passed, queue = text.startswith(_PASSED), text.removeprefix(_PASSED)
        if not self._waiters.wake(queue, 1, passed=passed):
            self._waiters.keep([queue])
            self._wake_another(queue, passed)

    def _wake_next(self, request: ReserveRequest, reply: Reply) -> None:
        """Wake another worker after the first exchange that follows a call of `wait`, if it left
        jobs, or if a wake-up ended the call and the exchange reserved nothing.
        """
        queues, passed = self.last_wait.find_next(request, reply)
        for queue in queues:
            self._wake_another(queue, passed)

    @abstractmethod
    def _make_listener(
        self, on_listening: OnListening, on_notification: OnNotification
    ) -> Listener:
        """Return a listener with a connection of its own. It may run on another event loop."""

    def _make_own_listener(self) -> Listener:
        """Return the listener of a handle that shares none."""
        return self._make_listener(self._note_listening, self._receive)

    @abstractmethod
    async def _add_idle_entries(self, queues: Collection[str]) -> None:
        """Store that this handle waits for these queues, unless the backend knows it."""

    @abstractmethod
    def forget_idle_entries(self) -> None:
        """Note that the idle entries of this handle may be used up."""

    @abstractmethod
    def _wake_another(self, queue: str, passed: bool) -> None:  # noqa: FBT001 - see `PassOn`
        """Wake another worker of the queue soon. `passed` is that of `PassOn`."""

    @abstractmethod
    def _notify_all(self, text: str) -> None:
        """End the calls for all that a notification on the channel of all handles names."""

    @abstractmethod
    async def _leave(self) -> None:
        """Send the pending wake-ups, and delete the idle entries of this handle."""
