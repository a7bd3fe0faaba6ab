"""Notifications on Redis: SUBSCRIBE, and the idle entries of a handle.

`backends/server/notifications.py` explains the path of a wake-up. An idle entry is a member of the
sorted set `idle_worker`. The exchange that found nothing, or `wait`, has written it. It says where
the handle waits: on its channel, or on a stream of the same name (see `long_poll.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

from hiredis import pack_command

from nimburion.backends.redis.connection.command_connection import CommandConnection, CommandPart
from nimburion.backends.redis.connection.protocol import RedisProtocol
from nimburion.backends.redis.connection.topology import ServerLocator
from nimburion.backends.redis.keys import Keys
from nimburion.backends.redis.url import RedisSettings
from nimburion.backends.server.notifications import Notifications, ServerListener
from nimburion.core.errors import BackendError
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.listener import Listener, OnListening, OnNotification, ShareListener

_REPLY_TIMEOUT = 5.0
"""Seconds for the server to confirm a subscription, or to answer a PING."""
_PING = pack_command((b"PING",))
_CLOSE_TIMEOUT = 1.0
"""Seconds that a handle which closes takes to send wake-ups."""

_ON_STREAM, _ON_CHANNEL = "s", "c"
"""Where the worker waits: its exchange waits on the stream of its handle, or its handle listens on
its channel. `idle_workers.lua` uses the same letters.
"""


class RedisListener(ServerListener):
    """Listens with SUBSCRIBE."""

    def __init__(
        self, settings: RedisSettings, on_listening: OnListening, on_notification: OnNotification
    ) -> None:
        super().__init__(on_listening, on_notification)
        self._locator = ServerLocator(settings)
        self._protocol: RedisProtocol | None = None
        self._reply: asyncio.Future[None] | None = None
        """Completes when the server has confirmed all subscriptions, or has answered a PING."""
        self._unconfirmed: set[str] = set()
        """The channels whose subscription the server has not confirmed."""

    async def _connect(self) -> None:
        protocol = RedisProtocol(await self._locator.connect(), self._handle)
        protocol.lost.add_done_callback(
            lambda _: self._fail(protocol, ConnectionError("the connection is lost"))
        )
        self._protocol = protocol

    async def _subscribe(self, added: frozenset[str], removed: frozenset[str]) -> None:  # noqa: ARG002
        # UNSUBSCRIBE needs another right. Nothing is sent on the channels of handles that are gone.
        if not added:
            return
        self._unconfirmed = set(added)
        await self._request(
            b"".join(pack_command(("SUBSCRIBE", channel)) for channel in sorted(added))  # type: ignore[arg-type]
        )

    async def _ping(self) -> None:
        await self._request(_PING)

    async def _request(self, packed: bytes) -> None:
        """Send commands, and return when the server has answered them."""
        assert self._protocol is not None, "it is connected"
        self._reply = asyncio.get_running_loop().create_future()
        self._protocol.send(packed)
        try:
            async with asyncio.timeout(_REPLY_TIMEOUT):
                await self._reply
        except TimeoutError:
            raise TimeoutError(f"no reply within {_REPLY_TIMEOUT:g} s") from None

    def _handle(self, message: Any) -> None:  # noqa: ANN401 - a reply is what the server says
        """Handle a notification, a confirmation, the reply to a PING, or an error."""
        if isinstance(message, Exception):
            self._fail(self._protocol, message)
            return
        if message[0] == b"message":
            self._on_notification(message[1].decode(), message[2].decode())
            return
        if message[0] == b"subscribe":
            self._unconfirmed.discard(message[1].decode())
        if not self._unconfirmed and self._reply is not None and not self._reply.done():
            self._reply.set_result(None)

    def _fail(self, protocol: RedisProtocol | None, error: Exception) -> None:
        if protocol is not self._protocol:  # the former connection
            return
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)
        self._note_lost()

    async def _disconnect(self) -> None:
        protocol, self._protocol = self._protocol, None
        self._locator.invalidate()
        if protocol is not None:
            await protocol.close()


class RedisNotifications(Notifications):
    """The notifications of one handle, and its idle entries as far as it knows.

    `handle` is the id of the handle, 16 characters. `run_script` runs a script on `commands`.
    """

    def __init__(
        self,
        settings: RedisSettings,
        keys: Keys,
        handle: str,
        commands: CommandConnection,
        *,
        run_script: Callable[[str, Sequence[CommandPart]], Awaitable[Any]],
        share_listener: ShareListener | None,
    ) -> None:
        super().__init__(
            keys.channel.decode(), f"{keys.idle_worker.decode()}:{handle}", share_listener
        )
        self._settings = settings
        self._key = keys.idle_worker
        self._commands = commands
        self._run_script = run_script
        self.handle: str = handle
        self._session_id = ""
        """The session of its latest exchange."""
        self.registered: tuple[str, ...] = ()
        """The handle and where it waits, then the queues; empty if it has no entry."""
        self._may_listen = False
        """Whether these entries say that the handle listens on its channel, and none is used."""
        self._wakeup_count = 0
        """How often an entry was used, or the server may have lost some."""
        self._wake_tasks: set[asyncio.Task[None]] = set()

    def note_exchange(self, session_id: str, request: ReserveRequest, reply: Reply) -> None:
        """Note which entries the script of this exchange has written or removed. Wake the next
        worker if it was the first exchange after a wait.
        """
        self._session_id = session_id
        if request.total:
            if request.long_poll:
                mode, is_idle = _ON_STREAM, not reply.waiting and not reply.deliveries
            else:
                mode = _ON_CHANNEL
                is_idle = not reply.waiting and len(reply.deliveries) < request.free_slots
            queues = dict.fromkeys(lane.queue for lane in request.lanes) if is_idle else ()
            self.registered = (self.handle + mode, *queues) if queues else ()
            self._may_listen = is_idle and mode == _ON_CHANNEL
        if self._waiters.last_wait.has_ended:
            self._wake_next(request, reply)

    # --- idle entries ---

    def has_entries(self, queues: Collection[str]) -> bool:
        """Return whether the server knows that the handle listens for all of these queues."""
        return self._may_listen and {*queues} <= {*self.registered[1:]}

    async def _add_idle_entries(self, queues: Collection[str]) -> None:
        if self.has_entries(queues):
            return
        known = self.registered[1:] if self._may_listen else ()
        self.registered = (self.handle + _ON_CHANNEL, *dict.fromkeys((*known, *queues)))
        self._may_listen = False
        wakeup_count = self._wakeup_count
        parts: list[CommandPart] = []
        for queue in queues:
            parts += (0, self._make_member(queue))
        with suppress(BackendError):
            await self._commands.execute("ZADD", self._key, *parts)
            self._may_listen = wakeup_count == self._wakeup_count

    def forget_idle_entries(self) -> None:
        """Note that an entry is used, or that the server may have lost some."""
        self._wakeup_count += 1
        self._may_listen = False

    def _make_member(self, queue: str) -> str:
        return f"{queue}\0{self._session_id}\0{self.registered[0]}"

    async def _delete_idle_entries(self) -> None:
        members = [self._make_member(queue) for queue in self.registered[1:]]
        if members:
            with suppress(BackendError):
                await self._commands.execute("ZREM", self._key, *members)

    # --- sending and receiving ---

    def _wake_another(self, queue: str, passed: bool) -> None:  # noqa: FBT001 - see `PassOn`
        task = asyncio.get_running_loop().create_task(self._wake_worker(queue, passed=passed))
        self._wake_tasks.add(task)
        task.add_done_callback(self._wake_tasks.discard)

    async def _wake_worker(self, queue: str, *, passed: bool) -> None:
        with suppress(BackendError):
            await self._run_script("wake_workers", [queue, 1, b"1" if passed else b"", self.handle])

    def _make_listener(
        self, on_listening: OnListening, on_notification: OnNotification
    ) -> Listener:
        return RedisListener(self._settings, on_listening, on_notification)

    def _notify_all(self, text: str) -> None:
        self._waiters.notify(text.split("\0"))

    async def _leave(self) -> None:
        if self._wake_tasks:  # another worker has to start the job
            await asyncio.wait(self._wake_tasks, timeout=_CLOSE_TIMEOUT)
        for task in self._wake_tasks:
            task.cancel()
        await asyncio.gather(*self._wake_tasks, return_exceptions=True)
        await self._delete_idle_entries()
