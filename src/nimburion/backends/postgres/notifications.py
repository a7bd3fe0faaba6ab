"""Notifications on PostgreSQL: NOTIFY, LISTEN, and the table of idle workers.

`backends/server/notifications.py` explains the path of a wake-up. The idle entry of a handle is its
row in `idle_worker`. The process that wakes the handle sets `is_waiting` to false.

A NOTIFY takes a lock that all notifying commits of a server share. It holds the lock until its
commit is flushed. Therefore a process notifies at most once per 5 ms. If it was quiet before, it
notifies in the transaction that stores the jobs, else in a separate transaction. Each NOTIFY also
costs the server time for each listening connection, so processes share one (`share_listener`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress

from nimburion.backends.postgres.connection.pool import PostgresConnection, Rows
from nimburion.backends.postgres.schema import insert_schema
from nimburion.backends.postgres.url import PostgresSettings
from nimburion.backends.server.notifications import Notifications, ServerListener
from nimburion.backends.waiters import ALL_WORKERS, EVERY_QUEUE, JobCounts, is_session_name
from nimburion.core.errors import BackendError, ConfigurationError
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.listener import Listener, OnListening, OnNotification, ShareListener

_MIN_INTERVAL = 0.005
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


class PostgresListener(ServerListener):
    """Listens with LISTEN.

    Args:
        connection: the connection that listens.
        connect: connects it. None: nothing else uses the connection, so it ends with the listener.
    """

    def __init__(
        self,
        connection: PostgresConnection,
        on_listening: OnListening,
        on_notification: OnNotification,
        connect: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(on_listening, on_notification)
        self._connection = connection
        self._is_own = connect is None
        self._connect_first = connect or connection.connect

    async def _connect(self) -> None:
        await self._connect_first()
        if self._connection.server.pooled:
            raise ConfigurationError(
                "the server is reached through a pooler, which does not support LISTEN"
            )
        self._connection.driver.add_termination_listener(self._handle_end)

    async def _subscribe(self, added: frozenset[str], removed: frozenset[str]) -> None:
        await self._connection.listen(added, removed, self._handle)

    def _handle(self, _connection: object, _pid: int, channel: str, text: str) -> None:
        self._on_notification(channel, text)

    def _handle_end(self, _connection: object) -> None:
        self._note_lost()

    async def _ping(self) -> None:
        await self._connection.fetch("SELECT 1")

    async def _disconnect(self) -> None:
        if self._is_own:
            self._connection.terminate()


class PostgresNotifications(Notifications):
    """Sends and receives the notifications of one handle.

    Args:
        fetch: runs a statement.
        connection: the connection for exchanges, which also listens if no other process does.
        connect: connects it for a worker.
    """

    def __init__(
        self,
        settings: PostgresSettings,
        fetch: Callable[..., Awaitable[Rows]],
        share_listener: ShareListener | None,
        connection: PostgresConnection,
        connect: Callable[[], Awaitable[None]],
    ) -> None:
        self.sender_id: str = secrets.token_hex(8)
        super().__init__(make_channel_name(settings), f"nimburion.{self.sender_id}", share_listener)
        self._settings = settings
        self._fetch = fetch
        self._connection = connection
        self._connect = connect
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
        self._send_task: asyncio.Task[None] | None = None

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

    def _wake_another(self, queue: str, passed: bool) -> None:  # noqa: FBT001 - see `PassOn`
        self.notify({queue: 1}, passed=passed)

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
            self._wake_next(request, reply)

    # --- idle entries ---

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
        return self.own_channel, sorted(self._last_queues)

    async def _add_idle_entries(self, queues: Collection[str]) -> None:
        self._last_queues = wanted = frozenset(queues)
        if wanted <= self._idle_queues:
            return
        self._idle_queues |= wanted  # now: a wake-up may arrive before the reply
        self._was_idle = True
        try:
            await self._fetch(
                insert_schema(_ADD_IDLE_WORKER, self._settings.schema),
                self.own_channel,
                self._session_id,
                sorted(self._idle_queues),
            )
        except BackendError:
            self._idle_queues = frozenset()
        except asyncio.CancelledError:  # the row may not be stored
            self._idle_queues = frozenset()
            raise

    def forget_idle_entries(self) -> None:
        """Note that the table may not say that this handle waits."""
        self._idle_queues = frozenset()

    async def _delete_idle_entry(self) -> None:
        """Let no other handle wake this one. Pass on a wake-up that has not arrived yet."""
        statement = insert_schema(_DELETE_IDLE_WORKER, self._settings.schema)
        for row in await self._fetch(statement, self.own_channel):
            if not row["is_waiting"] and self._idle_queues:
                self.notify(dict.fromkeys(row["queues"], 1))

    # --- receiving ---

    def _make_listener(
        self, on_listening: OnListening, on_notification: OnNotification
    ) -> Listener:
        connection = PostgresConnection(self._settings, asyncio.sleep)
        return PostgresListener(connection, on_listening, on_notification)

    def _make_own_listener(self) -> Listener:
        return PostgresListener(
            self._connection, self._note_listening, self._receive, self._connect
        )

    def _notify_all(self, text: str) -> None:
        sender_id, *names = text.split("\n")
        if sender_id == self.sender_id:  # `notify` has notified the sessions of this handle
            names = [name for name in names if name != EVERY_QUEUE and not is_session_name(name)]
        self._waiters.notify(names)

    async def _leave(self) -> None:
        if self._was_idle:
            with suppress(BackendError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._delete_idle_entry()
        task = self._send_task
        if task is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(task), 1.0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
