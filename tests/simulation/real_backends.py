"""Real backends below the simulated net, and time that waits for them.

A real backend needs a real event loop: it runs in another thread, and each call holds the simulated
loop, and with it the virtual time, until the backend has answered. So a simulation follows from its
seed alone, whatever the backend takes, and two backends that keep the same contract play it alike.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.backend import Backend, Capabilities
from nimburion.core.errors import BackendUnavailable, JobNotFound, OutOfOrder, SessionLost
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.transactions import CallerConnection, Transaction
from tests.overridden import BackendWrapper, get_operation
from tests.simulation.ledger import CallerTransaction
from tests.simulation.loop import elapse
from tests.simulation.world import begin_late

T = TypeVar("T")

Answer = Any
"""What an operation of the contract answers."""

DEADLINE = 240.0
"""Real seconds after which a call counts as hanging. The simulation itself ends by virtual time
(`Standstill`), so this must only be more than a call takes on a machine that is busy with others.
"""

_ANSWERS = (SessionLost, OutOfOrder, JobNotFound)
"""Errors that say something of the backend's data. All others are trouble, which only the simulated
net may make: from the backend it would pass for simulated trouble."""

_NOTIFYING = frozenset(
    {
        "enqueue",
        "rescue",
        "promote",
        "close_session",
        "open_session",
        "cancel",
        "replay",
        "make_due",
        "pause_queue",
        "change_jobs",
        "send_signals",
    }
)
"""What may bring work to somebody; an exchange may when it settles something."""

_NOTIFYING_SESSIONS = frozenset({"cancel", "fire", "send_command"})
"""What a worker learns from its next heartbeat."""


class Elsewhere:
    """An event loop in a thread of its own, and the handles that live on it.

    with Elsewhere() as elsewhere:
        backend = elsewhere.wrap(SQLiteBackend("jobs.db"))
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="elsewhere")
        self._handles: list[Backend] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._waiting_sessions: list[asyncio.Future[None]] = []

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close what is open, those of killed processes too, and end the thread."""
        try:
            for handle in self._handles:
                self.do(handle.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(DEADLINE)
            self._loop.close()

    def wrap(self, handle: Backend) -> Backend:
        """The handle, to be used from a simulated loop."""
        self._handles.append(handle)
        return cast("Backend", Standing(self, handle))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it over there; whoever calls stands still until it is done."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE)

    async def begin_transaction(self, backend: Backend, job: NewJob) -> CallerTransaction:
        """Enqueue a job in a transaction that stays open, where others go on beside it."""
        handle = cast("Standing", backend)._handle
        if not handle.capabilities.concurrent_transactions:
            return await begin_late(backend, job)
        return self.do(OpenTransaction.begin(self, cast("PostgresBackend", handle), job))

    async def wait(self, timeout: float) -> None:
        """Wait on this side, in virtual time, for any notification: it may be for nothing.
        How backends notify is tested elsewhere."""
        notification: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(notification)
        pause = asyncio.ensure_future(elapse(timeout))
        try:
            await asyncio.wait({notification, pause}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiters.remove(notification)
            pause.cancel()

    async def wait_for_session(self) -> None:
        """Wait on this side for a cancel or a command of any session: it may be for nothing."""
        notification: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting_sessions.append(notification)
        try:
            await notification
        finally:
            self._waiting_sessions.remove(notification)

    def notify(self) -> None:
        """Wake all who wait, in the order in which they came."""
        _resolve_all(self._waiters)

    def notify_sessions(self) -> None:
        """Wake the workers that wait for a cancel or a command, in the order in which they came."""
        _resolve_all(self._waiting_sessions)


def _resolve_all(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


class OpenTransaction:
    """An open transaction on a connection of the backend, in the role of a caller's transaction."""

    def __init__(
        self, elsewhere: Elsewhere, transaction: Transaction, enqueued: list[Enqueued]
    ) -> None:
        self._elsewhere = elsewhere
        self._transaction = transaction
        self._enqueued = enqueued

    @classmethod
    async def begin(
        cls, elsewhere: Elsewhere, handle: PostgresBackend, job: NewJob
    ) -> OpenTransaction:
        """Begin a transaction and enqueue the job in it.

        A serializable transaction may have to be run again, as its error says.
        """
        tries = 3
        while True:
            transaction = handle.producing.transaction(None)
            connection = CallerConnection(await transaction.begin())
            try:
                enqueued = await handle.producing.enqueue_in(connection, [job])
            except BackendUnavailable:
                await transaction.rollback()
                tries -= 1
                if not tries:
                    raise
            else:
                return cls(elsewhere, transaction, enqueued)

    async def commit(self) -> list[Enqueued]:
        """Commit, and wake the workers as the notifications of the commit do."""
        self._elsewhere.do(self._transaction.commit())
        self._elsewhere.notify()
        return self._enqueued


class Standing(BackendWrapper):
    """A handle of a real backend, as simulated processes have it."""

    def __init__(self, elsewhere: Elsewhere, handle: Backend) -> None:
        self._elsewhere = elsewhere
        self._handle = handle

    @property
    def capabilities(self) -> Capabilities:
        return self._handle.capabilities

    def describe(self) -> str:
        return self._handle.describe()

    def new_handle(self) -> Backend:
        return self._elsewhere.wrap(self._handle.new_handle())

    async def wait(self, _: Collection[str], timeout: float) -> None:
        await self._elsewhere.wait(timeout)

    async def wait_for_session(self, _: str) -> None:
        await self._elsewhere.wait_for_session()

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        operation = get_operation(self._handle, name)

        async def call(*args: Any, **kwargs: Any) -> Answer:
            try:
                answer = self._elsewhere.do(operation(*args, **kwargs))
            except _ANSWERS:
                raise
            except Exception as error:
                raise AssertionError(f"the backend failed at {name}: {error!r}") from error
            if name in _NOTIFYING or (name == "exchange" and args[2]):
                self._elsewhere.notify()
            if name in _NOTIFYING_SESSIONS:
                self._elsewhere.notify_sessions()
            return answer

        return call
