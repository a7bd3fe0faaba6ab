"""`RedisConsuming`: the sessions of workers, their exchanges, and the rescue of lost jobs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from nimburion.backends.redis import sessions, statistics
from nimburion.backends.redis.connection.command_connection import CommandPart
from nimburion.backends.redis.encoding import decode_time
from nimburion.backends.redis.exchange import decode_reply, encode_arguments, encode_lanes
from nimburion.backends.redis.server import RedisServer
from nimburion.backends.server.encoding import LaneEncoder
from nimburion.core.backend import Consuming, LongPolling, SharedListening
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.lease import Lease
from nimburion.core.listener import ShareListener
from nimburion.core.maintenance import Promoted, Rescued
from nimburion.core.metrics.statistics import Statistics
from nimburion.core.session import HeartbeatReply, Session, Vitals
from nimburion.core.settlement import Settlement

_MAX_PER_SCRIPT = 500
"""The largest number of jobs that one script changes."""


class RedisConsuming(Consuming, LongPolling, SharedListening):
    """The operations of `Consuming` for the Redis backend."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._lane_encoder = LaneEncoder(encode_lanes)

    async def open_session(self, session: Session) -> None:
        reply = await self._server.run_script(
            "open_session", *sessions.encode_open_session(session)
        )
        sessions.check_alive(reply, session.id)
        self._server.get_connections().start_closing_unused()

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        connections = self._server.get_connections()
        notifications = connections.notifications
        arguments = encode_arguments(
            session_id,
            number,
            settlements,
            request,
            self._lane_encoder,
            handle=notifications.handle,
            registered=notifications.registered,
        )
        is_long_poll = request.long_poll > 0
        seconds = 0.0 if settlements else request.long_poll
        answer = await self._run_exchange(arguments, seconds, is_long_poll=is_long_poll)
        reply = decode_reply(answer, session_id, number, request)
        notifications.note_exchange(session_id, request, reply)
        return reply

    async def _run_exchange(
        self, arguments: Sequence[CommandPart], seconds: float, *, is_long_poll: bool
    ) -> Any:  # noqa: ANN401 - a script's reply
        """Run the script of an exchange. That of an idle worker (`is_long_poll`) is preceded by a
        blocking read of up to `seconds`.
        """
        connections = self._server.get_connections()
        if not is_long_poll:
            (answer,) = await connections.run_script(
                connections.exchanges, "exchange", arguments, self._server.make_times()
            )
            return answer
        before = connections.long_poll.make_preceding_commands(seconds)
        connection, times = connections.exchanges, self._server.make_times()
        try:
            replies = await connections.run_script(
                connection,
                "exchange",
                arguments,
                times,
                before=before,
                long_poll=seconds,
            )
        finally:
            connections.long_poll.end_wait()
        connections.long_poll.note_replies(before, replies[:-1])
        return replies[-1]

    def interrupt_long_poll(self) -> None:
        connections = self._server.handle.latest
        if connections is not None:
            connections.long_poll.interrupt_long_poll()

    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
        arguments = sessions.encode_heartbeat(session_id, vitals)
        return sessions.decode_heartbeat(
            await self._server.run_script("heartbeat", *arguments), session_id
        )

    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        # Each batch of 500 rows is stored atomically.
        connections = self._server.get_connections()
        for call in statistics.encode_statistics(source, rows, connections.keys):
            await self._server.run_script("put_statistics", *call.arguments, more_keys=call.keys)

    async def release(
        self, session_id: str, leases: Sequence[Lease] = (), nonce: bytes | None = None
    ) -> None:
        # Releases up to 500 leases per script.
        arguments = sessions.encode_release(session_id, leases, nonce, _MAX_PER_SCRIPT)
        while await self._server.run_script("release", *arguments) == b"more":
            pass

    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        # Releases up to 500 leases per script.
        arguments = sessions.encode_close_session(session_id, running, _MAX_PER_SCRIPT)
        while await self._server.run_script("close_session", *arguments) == b"more":
            pass

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        replies: list[list[Any]] = []
        while limit > 0 or not replies:
            step = min(limit, _MAX_PER_SCRIPT)
            reply = await self._server.run_script("rescue", *sessions.encode_rescue(step, max_lost))
            replies.append(reply)
            limit -= step
            if not reply[3]:
                break
        return sessions.decode_rescued(replies)

    async def promote(self, limit: int) -> Promoted:
        count, due = 0, b""
        while True:
            step = min(limit - count, _MAX_PER_SCRIPT)
            moved, due, has_more = await self._server.run_script("promote", step)
            count += moved
            if not has_more or count >= limit:
                break
        next_due = decode_time(int.from_bytes(due, "big")) if due else None
        return Promoted(count, next_due)

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        await self._server.get_connections().notifications.wait(
            queues, timeout, self._server.clock.sleep
        )

    async def wait_for_session(self, session_id: str) -> None:
        await self._server.get_connections().notifications.wait_for_session(session_id)

    def share_listener(self, share: ShareListener) -> None:
        self._server.share_listener = share
