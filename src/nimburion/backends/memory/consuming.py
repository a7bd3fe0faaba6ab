"""`MemoryConsuming`: the sessions of workers, their exchanges, and the rescue of lost jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from nimburion.backends.memory import operations
from nimburion.backends.memory.data import MemoryData
from nimburion.backends.memory.rescue import rescue
from nimburion.backends.memory.transitions import AtomicStep
from nimburion.backends.waiters import EVERY_QUEUE, LastWait, make_session_name
from nimburion.core.backend import Consuming
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.lease import Lease
from nimburion.core.metrics.statistics import Statistics
from nimburion.core.operations import Promoted, Rescued
from nimburion.core.session import HeartbeatReply, Session, Vitals
from nimburion.core.settlement import Settlement


class MemoryConsuming(Consuming):
    """The operations of `Consuming` for the memory backend."""

    def __init__(self, data: MemoryData) -> None:
        self._data = data
        self._seen: int | None = None
        """The number of notifications when this handle reserved jobs last; None: it never did."""
        self._last_wait = LastWait()

    async def open_session(self, session: Session) -> None:
        monotonic = self._data.clock.monotonic()
        self._data.run_atomically(lambda step: operations.open_session(step, session, monotonic))

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        with self._data.shared.lock:
            reply = self._data.run_atomically(
                lambda step: operations.run_exchange(step, session_id, number, settlements, request)
            )
            if request.total > 0:
                self._seen = self._data.shared.notifications
        if self._last_wait.has_ended:
            queues, passed = self._last_wait.find_next(request, reply)
            self._data.shared.notify(dict.fromkeys(queues, 1), passed=passed)
        return reply

    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
        monotonic = self._data.clock.monotonic()
        return self._data.run_atomically(
            lambda step: operations.heartbeat(step, session_id, monotonic, vitals)
        )

    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        self._data.run_atomically(lambda step: operations.put_statistics(step, source, rows))

    async def release(
        self, session_id: str, leases: Sequence[Lease] = (), nonce: bytes | None = None
    ) -> None:
        self._data.run_atomically(lambda step: operations.release(step, session_id, leases, nonce))

    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        self._data.run_atomically(lambda step: operations.close_session(step, session_id, running))

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        monotonic = self._data.clock.monotonic()
        return self._data.run_atomically(lambda step: rescue(step, limit, max_lost, monotonic))

    async def promote(self, limit: int) -> Promoted:

        def promote(step: AtomicStep) -> Promoted:
            moved = step.state.promote(step.now, limit)
            for entry in moved:
                step.names_to_notify[entry.queue] += 1
            return Promoted(len(moved), operations.find_next_due(step.state))

        return self._data.run_atomically(promote)

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        names = (*queues, EVERY_QUEUE)
        waiter = self._data.shared.add_waiter(names, self._seen)
        sleep = asyncio.ensure_future(self._data.clock.sleep(timeout))
        try:
            waits: set[asyncio.Future[Any]] = {waiter, sleep}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            self._last_wait.note_end(waiter.result() if waiter.done() else ())
        except asyncio.CancelledError:
            waiter.add_done_callback(self._pass_on)  # the result may come after the cancellation
            raise
        finally:
            sleep.cancel()
            self._data.shared.remove_waiter(waiter)

    def _pass_on(self, woken: asyncio.Future[Collection[str]]) -> None:
        """Wake another worker, because the call that was woken is cancelled."""
        if not woken.cancelled() and woken.result():
            self._data.shared.notify(dict.fromkeys(woken.result(), 1))

    async def wait_for_session(self, session_id: str) -> None:
        waiter = self._data.shared.add_waiter((make_session_name(session_id),))
        try:
            await waiter
        finally:
            self._data.shared.remove_waiter(waiter)
