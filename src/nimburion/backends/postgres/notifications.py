"""Notifications: NOTIFY and LISTEN tell other processes which queues have new work, and which
sessions have a cancel request or a command.

Each handle that waits listens on two channels. One is its own: a wake-up of one worker. It says in
the table `idle_worker` that it waits, and who wakes it says there that it does not wait any more.
The other channel is common to all handles. It is used if too few workers of a queue are idle, and
for sessions.

A handle listens on a connection of its own. The worker processes of one supervisor share that of
one of them (`NotificationRelay`), because each NOTIFY costs the server time for each listening
connection.

A NOTIFY takes a lock that all notifying commits of a server share. It holds the lock until its
commit is flushed. Therefore a process notifies at most once per 5 ms. If it was quiet before, it
notifies in the transaction that stores the jobs, else in a separate transaction.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress

from nimburion.backends.postgres.connection.pool import PostgresConnection, Rows
from nimburion.backends.postgres.listener import PostgresListener
from nimburion.backends.postgres.schema import insert_schema
from nimburion.backends.postgres.url import PostgresSettings
from nimburion.backends.waiters import (
    ALL_WORKERS,
    EVERY_QUEUE,
    EVERY_SESSION,
    LONGEST_DEAF_WAIT,
    JobCounts,
    Waiters,
    is_session_name,
    wait_until,
)
from nimburion.core.errors import BackendError
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.notification_relay import NotificationReceiver, NotificationRelay

_MIN_INTERVAL = 0.005
_LISTEN_TIMEOUT = 5.0
_PASSED = "!"
"""The first character of a wake-up that another worker has passed on."""
_WAKE = """SELECT set_config('synchronous_commit', 'off', true),
    {schema}.wake_workers_1($1, $2, $3, $4, $5)"""
ON_KNOWN_WORKER = """ON CONFLICT (channel) DO UPDATE
    SET session = excluded.session, queues = excluded.queues, is_waiting = true,
        since = excluded.since"""
_ADD_IDLE_WORKER = f"""INSERT INTO {{schema}}.idle_worker (channel, session, queues, is_waiting)
    SELECT $1, $2, $3, set_config('synchronous_commit', 'off', true) IS NOT NULL
    {ON_KNOWN_WORKER}"""
_DELETE_IDLE_WORKER = """DELETE FROM {schema}.idle_worker WHERE channel = $1
    RETURNING queues, is_waiting"""


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

    def __init__(
        self,
        settings: PostgresSettings,
        fetch: Callable[..., Awaitable[Rows]],
        relay: NotificationRelay | None,
    ) -> None:
        self._settings = settings
        self._fetch = fetch
        self._relay = relay
        """None: this handle listens on a connection of its own."""
        self._listener: PostgresListener | None = None
        self.channel: str = make_channel_name(settings)
        """The channel of all handles."""
        self.sender_id: str = secrets.token_hex(8)
        self._own_channel = f"nimburion.{self.sender_id}"
        self._waiters = Waiters(self._pass_on)
        self._session_id: str | None = None
        self._idle_queues: frozenset[str] = frozenset()
        """The queues for which the table says that this handle waits; none after a wake-up."""
        self._was_idle = False
        """Whether the table may have a row of this handle."""
        self._last_queues: frozenset[str] = frozenset()
        """The queues of the last call of `wait`."""
        self._jobs_wait = False
        """Whether the last exchange left jobs, so that the next one finds some."""
        self._unsent = JobCounts(int)
        self._unsent_passed = JobCounts(int)
        self._last_inline = -_MIN_INTERVAL
        """The time at which a call last notified in its own transaction."""
        self._has_polled = False
        """Whether the last call of `wait` ended with its timeout."""
        self._send_task: asyncio.Task[None] | None = None
        self._has_subscribed = False
        self._is_connected = asyncio.Event()
        """Set while notifications arrive."""
        self.is_pooled: bool = False
        """Whether the server is reached through a pooler, which does not support LISTEN."""

    # --- sending ---

    def begin_inline(self, queue: str) -> bool:
        """Return whether a call may wake a worker in its own transaction, which saves a round trip:
        if this handle has sent no notification within the last 5 ms, and no call waits in it.
        """
        now = asyncio.get_running_loop().time()
        if self._send_task is not None or now < self._last_inline + _MIN_INTERVAL:
            return False
        if self._waiters.has_call(queue):
            return False
        self._last_inline = now
        return True

    def notify(self, names: Mapping[str, int], *, passed: bool = False) -> None:
        """Wake a call for each job of a queue, first of this handle, else of others soon. Notify
        sessions.

        `passed`: another worker found no job for itself after this wake-up.
        """
        unsent = self._unsent_passed if passed else self._unsent
        for name, jobs in names.items():
            if name == EVERY_QUEUE or jobs >= ALL_WORKERS or is_session_name(name):
                self._waiters.notify([name])
                unsent[name] = ALL_WORKERS
                continue
            left = jobs - self._waiters.wake(name, jobs, passed=passed)
            if left > 0:
                unsent[name] = min(unsent.get(name, 0) + left, ALL_WORKERS)
                if not self._is_connected.is_set():  # it will not receive its own notification
                    self._waiters.keep([name])
        if unsent and self._send_task is None:
            self._send_task = asyncio.create_task(
                self._send_unsent(), name="nimburion-postgres-notify"
            )

    def note_exchange(
        self, session_id: str, request: ReserveRequest, reply: Reply, queues: Iterable[str]
    ) -> None:
        """Wake workers after an exchange: for the jobs that it returned to these queues, and the
        next one if it was the first exchange after a call of `wait`.
        """
        if session_id != self._session_id:  # the end of the session before deleted its row
            self._session_id, self._idle_queues = session_id, frozenset()
        self._jobs_wait = bool(reply.waiting)
        if self._has_polled:
            self._has_polled = False
            if reply.deliveries:  # a wake-up was lost: the table says that none waits
                self._idle_queues = frozenset()
        if queues:
            self.notify(Counter(queues))
        if self._waiters.last_wait.has_ended:
            more, passed = self._waiters.last_wait.find_next(request, reply)
            self.notify(dict.fromkeys(more, 1), passed=passed)

    def begin_idle_entry(self, request: ReserveRequest) -> tuple[str, list[str]] | tuple[()]:
        """Return channel and queues of the idle entry that an exchange adds if it reserves no job.
        A worker that then waits needs no statement more. Return nothing if the table has the entry,
        or if the exchange probably reserves jobs.
        """
        is_known = self._idle_queues or not self._is_connected.is_set()
        if is_known or self._jobs_wait or not request.free_slots or not self._last_queues:
            return ()
        self._idle_queues = self._last_queues  # now: a wake-up may arrive before the reply
        self._was_idle = True
        return self._own_channel, sorted(self._last_queues)

    def withdraw_idle_entry(self) -> None:
        """Note that the exchange has added no idle entry, because it reserved jobs or failed."""
        self._idle_queues = frozenset()

    async def _send_unsent(self) -> None:
        statement = insert_schema(_WAKE, self._settings.schema)
        try:
            while self._unsent or self._unsent_passed:
                for counts, passed in ((self._unsent, False), (self._unsent_passed, True)):
                    if not counts:
                        continue
                    names, jobs = [*counts], [*counts.values()]
                    counts.clear()
                    with suppress(BackendError):
                        await self._fetch(
                            statement, self.channel, self.sender_id, names, jobs, passed
                        )
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
        clock = asyncio.get_running_loop()
        until = clock.time() + timeout
        await self._ensure_listening(min(timeout, _LISTEN_TIMEOUT))
        if self._waiters.take_missed(queues):
            return
        if not self._is_connected.is_set():
            until = min(until, clock.time() + LONGEST_DEAF_WAIT)
        self._last_queues = frozenset(queues)
        with self._waiters.expect(queues) as notified:
            await self._add_idle_worker(self._last_queues)
            await wait_until(notified, sleep(max(0.0, until - clock.time())))
        self._has_polled = clock.time() >= until

    async def _add_idle_worker(self, queues: frozenset[str]) -> None:
        """Tell the others that this handle waits for these queues. Do nothing if they know."""
        if not self._is_connected.is_set() or queues <= self._idle_queues:
            return
        self._idle_queues |= queues  # now: a wake-up may arrive before the reply
        self._was_idle = True
        try:
            await self._fetch(
                insert_schema(_ADD_IDLE_WORKER, self._settings.schema),
                self._own_channel,
                self._session_id,
                sorted(self._idle_queues),
            )
        except BackendError:
            self._idle_queues = frozenset()
        except asyncio.CancelledError:  # the row may not be stored
            self._idle_queues = frozenset()
            raise

    async def wait_for_session(self, session_id: str) -> None:
        """Return when the session is notified, or when notifications may have been lost. Behind a
        pooler, only notifications of this handle arrive.
        """
        await self._ensure_listening(_LISTEN_TIMEOUT)
        await self._waiters.wait_for_session(session_id)

    async def _ensure_listening(self, timeout: float) -> None:
        """Wait up to `timeout` seconds until notifications arrive. Polling works without them."""
        if self.is_pooled:
            return
        if not self._has_subscribed:
            self._has_subscribed = True
            self._subscribe()
        if not self._is_connected.is_set():
            # `asyncio.wait_for` of Python 3.11 can lose a cancellation that comes with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._is_connected.wait()

    def _subscribe(self) -> None:
        channels = (self.channel, self._own_channel)
        if self._relay is None:
            self._listener = self._make_listener(self)
            self._listener.listen(channels)
        else:
            self._relay.subscribe(channels, self, self._make_listener)

    def _make_listener(self, receiver: NotificationReceiver) -> PostgresListener:
        return PostgresListener(PostgresConnection(self._settings, asyncio.sleep), receiver)

    def note_listening(self, channels: Collection[str]) -> None:  # noqa: ARG002 (of the protocol)
        """Note that notifications arrive from now on."""
        self._idle_queues = frozenset()  # a wake-up may have been lost
        self._is_connected.set()

    def note_lost(self) -> None:
        """Note that notifications may be lost from now on, and wake all waiters."""
        self._is_connected.clear()
        self._waiters.notify([EVERY_QUEUE, EVERY_SESSION])

    def receive(self, channel: str, text: str) -> None:
        """Handle one notification."""
        if channel == self._own_channel:
            self._wake_one(text)
        else:
            self._notify_named(text)

    def _notify_named(self, text: str) -> None:
        """End the calls for the queues and sessions that a notification of all handles names."""
        sender_id, *names = text.split("\n")
        if sender_id == self.sender_id:  # `notify` has notified the sessions of this handle
            names = [name for name in names if name != EVERY_QUEUE and not is_session_name(name)]
        self._waiters.notify(names)

    def _wake_one(self, text: str) -> None:
        """End a call of this handle. If none waits any more, wake another worker."""
        self._idle_queues = frozenset()
        passed, queue = text.startswith(_PASSED), text.removeprefix(_PASSED)
        if not self._waiters.wake(queue, 1, passed=passed):
            self._waiters.keep([queue])
            self._pass_on(queue, passed)

    def _pass_on(self, queue: str, passed: bool) -> None:  # noqa: FBT001 - see `PassOn`
        self.notify({queue: 1}, passed=passed)

    async def close(self) -> None:
        """Delete the idle entry, send the pending notifications, and stop listening."""
        if self._was_idle:
            with suppress(BackendError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._delete_idle_worker()
        task = self._send_task
        if task is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(task), 1.0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self._listener is not None:
            await self._listener.close()
        elif self._relay is not None and self._has_subscribed:
            await self._relay.unsubscribe()

    async def _delete_idle_worker(self) -> None:
        """Let no other handle wake this one. Pass on a wake-up that has not arrived yet."""
        statement = insert_schema(_DELETE_IDLE_WORKER, self._settings.schema)
        for row in await self._fetch(statement, self._own_channel):
            if not row["is_waiting"] and self._idle_queues:
                self.notify(dict.fromkeys(row["queues"], 1))
