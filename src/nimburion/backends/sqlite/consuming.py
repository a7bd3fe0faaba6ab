"""`SQLiteConsuming`: the sessions of workers, their exchanges, and the rescue of lost jobs."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from nimburion.backends.sqlite import exchange as exchanging
from nimburion.backends.sqlite import sessions, statistics
from nimburion.backends.sqlite.connection.database import MICRO
from nimburion.backends.sqlite.file import SQLiteFile
from nimburion.backends.sqlite.notifications import SocketListener
from nimburion.backends.sqlite.rescue import rescue
from nimburion.core.backend import Consuming
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.lease import Lease
from nimburion.core.metrics.statistics import Statistics
from nimburion.core.operations import Promoted, Rescued
from nimburion.core.session import HeartbeatReply, Session, Vitals
from nimburion.core.settlement import Settlement


class SQLiteConsuming(Consuming):
    """The operations of `Consuming` for the SQLite backend."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file

    async def open_session(self, session: Session) -> None:
        await self._file.write(lambda db: sessions.open_session(db, session), durable=False)
        self._file.listen()

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        result = await self._file.write(
            lambda db: exchanging.run_exchange(db, session_id, number, settlements, request),
            durable=False,
        )
        reply = exchanging.make_reply(result)
        listener, notifier = self._file.listener, self._file.notifier
        if listener is not None and listener.last_wait.has_ended and notifier is not None:
            notifier.wake_next(request, reply)
        return reply

    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
        return await self._file.write(
            lambda db: sessions.heartbeat(db, session_id, vitals), durable=False
        )

    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        values = statistics.encode_rows(source, rows)
        if values:
            await self._file.write(lambda db: statistics.put_statistics(db, values), durable=False)

    async def release(
        self, session_id: str, leases: Sequence[Lease] = (), nonce: bytes | None = None
    ) -> None:
        await self._file.write(
            lambda db: sessions.release(db, session_id, leases, nonce), durable=False
        )

    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        await self._file.write(
            lambda db: sessions.close_session(db, session_id, running), durable=False
        )

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        return await self._file.write(lambda db: rescue(db, limit, max_lost), durable=False)

    async def promote(self, limit: int) -> Promoted:
        count, due = await self._file.write(
            lambda db: exchanging.promote_and_notify(db, limit), durable=False
        )
        return Promoted(count, None if due is None else due / MICRO)

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        # Notifications of other processes end the wait too.
        await self._get_listener().wait(queues, timeout, self._file.clock.sleep)

    async def wait_for_session(self, session_id: str) -> None:
        await self._get_listener().wait_for_session(session_id)

    def _get_listener(self) -> SocketListener:
        listener = self._file.listener
        if listener is None or self._file.pid != os.getpid():
            raise self._file.make_not_open_error()
        return listener
