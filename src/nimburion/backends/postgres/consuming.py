"""`PostgresConsuming`: the sessions of workers, their exchanges, and the rescue of lost jobs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from nimburion.backends.postgres import exchange as exchanging
from nimburion.backends.postgres import sessions
from nimburion.backends.postgres.database import (
    JOBS_PER_SECOND,
    PostgresConnections,
    PostgresDatabase,
    make_call,
)
from nimburion.backends.postgres.encoding import (
    encode_text,
    reject_unstorable_text,
    to_optional_seconds,
)
from nimburion.backends.postgres.errors import get_error_code
from nimburion.backends.postgres.low_water_marks import LowWaterMarks
from nimburion.backends.postgres.notifications import ON_KNOWN_WORKER
from nimburion.backends.server.encoding import LaneEncoder, encode_json
from nimburion.backends.waiters import EVERY_QUEUE
from nimburion.core.backend import Consuming, SharedListening
from nimburion.core.errors import BackendError
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.flows import MAX_RESOLVED
from nimburion.core.lease import Lease
from nimburion.core.listener import ShareListener
from nimburion.core.maintenance import Promoted, Rescued
from nimburion.core.metrics.statistics import Statistics
from nimburion.core.session import HeartbeatReply, Session, Vitals
from nimburion.core.settlement import Settlement

if TYPE_CHECKING:
    from nimburion.backends.postgres.planned_exchange import ExchangePlanner

_EXCHANGE = make_call("exchange_1", 22)
_EXCHANGE_POOLED = make_call("exchange_pooled_1", 22)
_EXCHANGE_OR_BE_IDLE = f"""WITH reply AS MATERIALIZED ({_EXCHANGE}), idle AS (
        INSERT INTO {{schema}}.idle_worker (channel, session, queues, is_waiting)
        SELECT CAST($23 AS text), $2, CAST($24 AS text[]), true FROM reply
        HAVING count(*) = 1 AND min(reply.outcome) = 'ok'
        {ON_KNOWN_WORKER}
    ) SELECT * FROM reply"""  # noqa: S608 - names of ours
"""The same, and an idle entry of this handle if the exchange reserves no job: its only row is then
the status.
"""
_OPEN_SESSION = make_call("open_session_1", 10)
_CLOSE_SESSION = make_call("close_session_1", 5)
_RELEASE = make_call("release_leases_1", 6)
_CANCEL_FAILED_MEMBERS = make_call("cancel_failed_members_1", 2)
_CONTINUE_FLOWS = make_call("continue_flows_1", 1)
_RESCUE = make_call("rescue_jobs_1", 6)
_PROMOTE = make_call("promote_1", 3)
_HEARTBEAT = make_call("heartbeat_1", 4)
_PUT_STATISTICS = make_call("put_statistics_1", 6)


class PostgresConsuming(Consuming, SharedListening):
    """The operations of `Consuming` for the PostgreSQL backend."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._is_restricted = False
        """Whether limits or tenants exist, as the server said last. Then exchanges are planned. If
        only the jobs of a queue in a reply are limited, the server does not say it.
        """
        self._planner: ExchangePlanner | None = None
        self._low_water_marks: LowWaterMarks = LowWaterMarks(time.monotonic)
        self._lane_encoder = LaneEncoder(exchanging.encode_lanes)

    async def open_session(self, session: Session) -> None:
        arguments = sessions.encode_open_session(session)
        ((alive, limits_changed),) = await self._database.fetch_for_worker(
            _OPEN_SESSION, self._database.now(), self._database.monotonic(), *arguments
        )
        sessions.check_alive(alive, session.id)
        if limits_changed:
            self._database.notify([EVERY_QUEUE])

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        opened = self._database.get_connections()
        await opened.connect_worker()
        try:
            return await self._exchange(opened, session_id, number, settlements, request)
        except BackendError as error:
            if (
                error.__cause__ is None
                or get_error_code(error.__cause__) != exchanging.NOT_ALL_LEASED
            ):
                raise
        return await self._exchange(
            opened, session_id, number, settlements, request, one_by_one=True
        )

    async def _exchange(
        self,
        opened: PostgresConnections,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
        *,
        one_by_one: bool = False,
    ) -> Reply:
        """Run the plain exchange, or the planned one if limits, tenants or a cap restrict it.

        `one_by_one`: the session does not hold all completed jobs.
        """
        is_capped = exchanging.is_capped(request)
        if is_capped:
            request = exchanging.apply_cap(request)
            is_capped = exchanging.is_capped(request)
        if self._is_restricted or is_capped:
            reply = await self._run_planned_exchange(
                opened, session_id, number, settlements, request, one_by_one=one_by_one
            )
            if reply is not None:
                return reply
        arguments = exchanging.encode_arguments(
            session_id, number, settlements, request, self._lane_encoder, one_by_one=one_by_one
        )
        connection = opened.main
        statement = _EXCHANGE_POOLED if connection.server.pooled else _EXCHANGE
        marks = self._low_water_marks.make_arguments(connection.driver)
        entry = opened.notifications.begin_idle_entry(request)
        if entry:
            statement = _EXCHANGE_OR_BE_IDLE
        rows: list[Any] = []
        try:
            rows = await connection.fetch(
                opened.insert_schema(statement),
                self._database.now(),
                *arguments,
                *marks,
                *entry,
                extra_time=(len(settlements) + request.total) / JOBS_PER_SECOND,
            )
        finally:
            if entry and (len(rows) != 1 or rows[0]["outcome"] != "ok"):
                opened.notifications.forget_idle_entries()  # none was added
        status = rows[-1]
        if status["outcome"] == "restricted":
            self._is_restricted = True
            return await self._exchange(
                opened, session_id, number, settlements, request, one_by_one=one_by_one
            )
        if status["outcome"] != "ok":
            raise exchanging.make_refusal(status, session_id, number)
        reply = exchanging.decode_reply(rows, request)
        self._low_water_marks.learn(status)
        opened.notifications.note_exchange(
            session_id, request, reply, exchanging.get_queues_to_notify(status)
        )
        return reply

    async def _run_planned_exchange(
        self,
        opened: PostgresConnections,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
        *,
        one_by_one: bool,
    ) -> Reply | None:
        """Return the reply; None: it is a repeat, or nothing restricts it, so it is not planned."""
        from nimburion.backends.postgres import planned_exchange  # most workers never plan

        if self._planner is None:
            self._planner = planned_exchange.ExchangePlanner()
        exchange = planned_exchange.PlannedExchange(
            request,
            now=self._database.now(),
            session_id=session_id,
            number=number,
            settlements=exchanging.encode_named_settlements(settlements, one_by_one=one_by_one),
            marks=self._low_water_marks.make_arguments(opened.main.driver),
            insert_schema=opened.insert_schema,
        )
        extra_time = (len(settlements) + request.total) / JOBS_PER_SECOND
        try:
            await self._planner.run(exchange, opened.main, extra_time=extra_time)
        except BaseException:  # what is committed may need workers, and a repeat does not say so
            opened.notifications.notify(Counter(exchange.list_queues_to_notify([])))
            raise
        begun = exchange.begun
        if begun["outcome"] == "plain":
            self._is_restricted = False
        if begun["outcome"] in {"plain", "repeated"}:
            return None
        if begun["outcome"] not in {"ok", "open"}:
            raise exchanging.make_refusal(begun, session_id, number)
        reply = exchange.make_reply()
        self._low_water_marks.learn(begun)
        opened.notifications.note_exchange(
            session_id, request, reply, exchange.list_queues_to_notify(reply.deliveries)
        )
        return reply

    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
        encoded = sessions.encode_vitals(vitals)
        rows = await self._database.fetch_for_worker(
            _HEARTBEAT, self._database.now(), self._database.monotonic(), session_id, encoded
        )
        return sessions.decode_heartbeat(rows, session_id)

    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        if rows:
            await self._database.fetch_for_worker(_PUT_STATISTICS, *encode_statistics(source, rows))

    async def release(
        self, session_id: str, leases: Sequence[Lease] = (), nonce: bytes | None = None
    ) -> None:
        arguments = sessions.encode_release(session_id, leases, nonce)
        ((notified,),) = await self._database.fetch_for_worker(
            _RELEASE, self._database.now(), *arguments
        )
        self._database.notify(notified)

    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        arguments = sessions.encode_close_session(session_id, running)
        ((notified,),) = await self._database.fetch_for_worker(
            _CLOSE_SESSION, self._database.now(), *arguments
        )
        self._database.notify(notified)

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        arguments = sessions.encode_rescue(limit, max_lost)
        rows = await self._database.fetch_for_worker(
            _RESCUE, self._database.now(), self._database.monotonic(), *arguments
        )
        self._database.notify(rows[-1][2])
        rescued = sessions.decode_rescued(rows)
        is_left = await self._cancel_failed_members()
        return msgspec.structs.replace(rescued, more=rescued.more or is_left)

    async def _cancel_failed_members(self) -> bool:
        """Cancel members whose flow has failed. Return whether more may be left.

        What follows is applied in another transaction: it waits for other locks.
        """
        ((notified, is_left),) = await self._database.fetch_for_worker(
            _CANCEL_FAILED_MEMBERS, self._database.now(), MAX_RESOLVED
        )
        if notified is None:
            return bool(is_left)
        ((resumed,),) = await self._database.fetch_for_worker(_CONTINUE_FLOWS, self._database.now())
        self._database.notify([*notified, *resumed])
        return bool(is_left)

    async def promote(self, limit: int) -> Promoted:
        await self._cancel_failed_members()
        ((moved, next_due, notified),) = await self._database.fetch_for_worker(
            _PROMOTE, self._database.now(), limit, MAX_RESOLVED
        )
        self._database.notify(notified)
        return Promoted(moved, to_optional_seconds(next_due))

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        await self._database.get_connections().notifications.wait(
            queues, timeout, self._database.clock.sleep
        )

    async def wait_for_session(self, session_id: str) -> None:
        await self._database.get_connections().notifications.wait_for_session(session_id)

    def share_listener(self, share: ShareListener) -> None:
        self._database.share_listener = share


@reject_unstorable_text
def encode_statistics(source: str, rows: Sequence[Statistics]) -> list[Any]:
    """Return the arguments of `put_statistics_1`. Of several rows with one key, the last counts."""
    latest = {(row.step, row.start, row.queue, row.name): row.counters for row in rows}
    steps, starts, queues, names = zip(*latest, strict=True)
    return [
        encode_text(source),
        steps,
        starts,
        [encode_text(queue) for queue in queues],
        [encode_text(name) for name in names],
        [encode_json(counters).decode() for counters in latest.values()],
    ]
