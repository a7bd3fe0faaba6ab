"""`MemoryConsuming`: the sessions of workers, their exchanges, and the rescue of lost jobs."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec

from nimburion.backends.memory.data import MemoryData
from nimburion.backends.memory.limits import apply_limits
from nimburion.backends.memory.reserve import Reservation, make_delivery, measure_size
from nimburion.backends.memory.state import JobEntry, LeaseEntry, MemoryState, SessionEntry
from nimburion.backends.memory.transitions import AtomicStep, check_settlement_delays
from nimburion.backends.planning.rescue import OrphanedLease, decide_rescue, note_rescued
from nimburion.backends.waiters import EVERY_QUEUE, LastWait, make_session_name
from nimburion.core.backend import Consuming
from nimburion.core.errors import OutOfOrder, SessionLost
from nimburion.core.exchange import MAX_PROMOTED, Reply, ReserveRequest
from nimburion.core.fairness import to_weight_units
from nimburion.core.lease import Delivery, Lease
from nimburion.core.limits import make_job_limit_name
from nimburion.core.maintenance import Promoted, Rescued
from nimburion.core.metrics.statistics import Statistics
from nimburion.core.session import ConcurrencyLimit, HeartbeatReply, Session, Vitals
from nimburion.core.settlement import Settled, Settlement
from nimburion.core.timing.clock import MICRO, to_micros


class MemoryConsuming(Consuming):
    """The operations of `Consuming` for the memory backend."""

    def __init__(self, data: MemoryData) -> None:
        self._data = data
        self._seen: int | None = None
        """The number of notifications when this handle reserved jobs last; None: it never did."""
        self._last_wait = LastWait()

    async def open_session(self, session: Session) -> None:
        expires_at = self._data.clock.monotonic() + session.ttl
        with AtomicStep(self._data) as step:
            state = step.state
            if session.id in state.sessions:
                get_live_session(state, session.id).expires_at = expires_at
                return
            weights = {name: to_weight_units(weight) for name, weight in session.weights.items()}
            state.sessions[session.id] = SessionEntry(session, step.now, expires_at)
            for name in session.names:
                state.declared_limits[name] = session.limits.get(name, {})
                apply_limits(step, name)
            for tenant, units in weights.items():
                state.turns.set_weight(tenant, units)

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        with self._data.shared.lock:
            with AtomicStep(self._data) as step:
                session = get_live_session(step.state, session_id)
                reply = run_exchange(step, session, number, settlements, request)
            if request.total > 0:
                self._seen = self._data.shared.notifications
        if self._last_wait.has_ended:
            queues, passed = self._last_wait.find_next(request, reply)
            self._data.shared.notify(dict.fromkeys(queues, 1), passed=passed)
        return reply

    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
        monotonic = self._data.clock.monotonic()
        with AtomicStep(self._data) as step:
            state = step.state
            session = get_live_session(state, session_id)
            session.expires_at = monotonic + session.session.ttl
            session.vitals = vitals or session.vitals
            return HeartbeatReply(
                cancel=[
                    entry.make_lease(entry.leased.token)
                    for entry in session.leased_jobs.values()
                    if entry.leased is not None and entry.leased.cancel_requested
                ],
                paused=state.list_paused(step.now),
                limits={
                    name: ConcurrencyLimit(rule.concurrency, state.limit_uses[limit, ""].in_use)
                    for name in session.session.names
                    for limit in (make_job_limit_name(name),)
                    if (rule := state.limits.get(name, {}).get(limit)) is not None
                    and rule.concurrency is not None
                },
                command=session.command,
                fleet_size=step.state.count_fresh_sessions(monotonic + session.session.ttl / 2),
                next_expiry=(
                    0.0 if state.flow_tables.changes else state.find_next_expiry(monotonic)
                ),
            )

    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        with AtomicStep(self._data) as step:
            for row in rows:
                key = (row.step, row.start, row.queue, row.name, source)
                step.state.statistics[key] = copy.deepcopy(row)  # the caller keeps counting in it

    async def release(
        self, session_id: str, leases: Sequence[Lease] = (), nonce: bytes | None = None
    ) -> None:
        wanted = {(lease.job_id, lease.token) for lease in leases}
        with AtomicStep(self._data) as step:
            try:
                session = get_live_session(step.state, session_id)
            except SessionLost:
                return
            for entry in list(session.leased_jobs.values()):
                held = entry.leased
                if held is not None and (
                    (entry.id, held.token) in wanted
                    or (nonce is not None and held.token.nonce == nonce)
                ):
                    step.release(entry, settles=True, unstarted=True)

    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        still_running = {(lease.job_id, lease.token) for lease in running}
        with AtomicStep(self._data) as step:
            session = step.state.sessions.get(session_id)
            if session is None or session.is_ended:
                return
            for entry in list(session.leased_jobs.values()):
                held = entry.leased
                if held is not None and (entry.id, held.token) not in still_running:
                    step.release(entry, settles=False, unstarted=False)
            if session.leased_jobs:
                session.left = True
            else:
                session.ended_at = step.now

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        monotonic = self._data.clock.monotonic()
        with AtomicStep(self._data) as step:
            for session in step.state.sessions.values():
                if not session.is_ended and session.expires_at <= monotonic:
                    session.ended_at = step.now
                    session.held_several = len(session.leased_jobs) > 1
            orphans = list(iter_orphans(step.state))
            rescued = Rescued([], [], [])
            for entry, lease in orphans[:limit]:
                orphan = describe_orphan(step.state, entry, lease)
                effect = decide_rescue(orphan, max_lost, step.now)
                step.apply_effect(entry, effect)
                note_rescued(rescued, entry.id, effect)
            more = not step.resolve_flows() or len(orphans) > limit
            return msgspec.structs.replace(rescued, more=more)

    async def promote(self, limit: int) -> Promoted:
        with AtomicStep(self._data) as step:
            step.resolve_flows()
            moved = step.state.promote(step.now, limit)
            for entry in moved:
                step.names_to_notify[entry.queue] += 1
            return Promoted(len(moved), find_next_due(step.state))

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


def get_live_session(state: MemoryState, session_id: str) -> SessionEntry:
    """Return the session; raise `SessionLost` if it is unknown, ended or closing."""
    session = state.sessions.get(session_id)
    if session is None or session.is_ended or session.left:
        raise SessionLost(session_id)
    return session


def run_exchange(
    step: AtomicStep,
    session: SessionEntry,
    number: int,
    settlements: Sequence[Settlement],
    request: ReserveRequest,
) -> Reply:
    """Settle, promote due jobs and reserve; or return the reply of the last exchange again."""
    if number == session.last_exchange_number and number > 0:
        return repeat_reply(step, session, request)
    if number != session.last_exchange_number + 1:
        raise OutOfOrder(
            f"exchange {number} after {session.last_exchange_number}"
            f" of session {session.session.id}"
        )
    check_settlement_delays(settlements)
    step.state.follow_clock(step.now)
    results: list[Settled] = [step.settle(session, settlement) for settlement in settlements]
    step.resolve_flows()
    promoted = step.state.promote(step.now, MAX_PROMOTED)
    if step.state.limit_uses:
        for queue in step.state.unpark_open(step.now):
            step.names_to_notify[queue] += 1
    if step.state.returning:
        step.state.unpark_changed()
    reserving = Reservation(step.state, request, step.now) if request.lanes else None
    deliveries: list[Delivery] = []
    if reserving is not None and request.total > 0:
        deliveries = reserving.lease_jobs(session, number)
    if promoted:
        left = Counter(entry.queue for entry in promoted)
        left -= Counter(delivery.queue for delivery in deliveries)
        for queue, count in left.items():
            step.names_to_notify[queue] += count
    session.last_exchange_number, session.last_results = number, results
    return Reply(
        results,
        deliveries,
        reserving.find_waiting_lanes() if reserving is not None else [],
        find_next_time(step, session, reserving, request),
        step.now / MICRO,
    )


def repeat_reply(step: AtomicStep, session: SessionEntry, request: ReserveRequest) -> Reply:
    """Build the reply of the last exchange again. Jobs that no longer fit are requeued."""
    deliveries: list[Delivery] = []
    bytes_left = request.max_bytes
    for entry in list(session.leased_jobs.values()):
        lease = entry.leased
        if lease is None or lease.exchange_number != session.last_exchange_number:
            continue
        bytes_left -= measure_size(entry)
        if bytes_left < 0 and deliveries:
            step.release(entry, settles=False, unstarted=True)
        else:
            deliveries.append(make_delivery(entry, lease.token, step.state))
    lanes = Reservation(step.state, request, step.now)
    return Reply(
        list(session.last_results),
        deliveries,
        lanes.find_waiting_lanes(),
        find_next_time(step, session, lanes, request),
        step.now / MICRO,
    )


def find_next_time(
    step: AtomicStep, session: SessionEntry, lanes: Reservation | None, request: ReserveRequest
) -> float | None:
    """Return when the next job is due, or a rate limit allows one of these lanes; None: never, or
    another session looks then. It is now if changes of flows are left.
    """
    state = step.state
    times = []
    if state.limit_uses:
        opening = None if lanes is None else lanes.find_next_opening()
        openings = (opening, state.find_next_key_opening())
        times = [opening / MICRO for opening in openings if opening is not None]
    if state.flow_tables.changes:
        times.append(step.now / MICRO)
    due = find_next_due(state)
    if due is not None and (
        request.total <= 0 or state.report_due(to_micros(due), session.session.id, step.now)
    ):
        times.append(due)
    return min(times, default=None)


def find_next_due(state: MemoryState) -> float | None:
    """Return the earliest due time of the scheduled jobs and the suspended runs, in seconds since
    1970, or None.
    """
    entry, tables = state.peek_scheduled(), state.flow_tables
    due = None if entry is None else entry.due
    time = tables.find_next_time() if tables.times else None
    if due is None or (time is not None and time < due):
        due = time
    return None if due is None else due / MICRO


def iter_orphans(state: MemoryState) -> Iterator[tuple[JobEntry, LeaseEntry]]:
    """Yield the jobs of ended sessions with their leases."""
    for session in state.sessions.values():
        if session.is_ended:
            for entry in session.leased_jobs.values():
                if entry.leased is not None:
                    yield entry, entry.leased


def describe_orphan(state: MemoryState, entry: JobEntry, lease: LeaseEntry) -> OrphanedLease:
    """Return what decides about the rescue of a job."""
    return OrphanedLease(
        failures=entry.failures,
        lost=entry.lost,
        started_at=lease.started_at,
        cancel_requested=lease.cancel_requested,
        session=lease.session.session.id,
        host=lease.session.session.host,
        was_left=lease.session.left,
        held_several=lease.session.held_several,
        needs_cleanup=lease.cancel_requested and state.run_tables.needs_cleanup(entry.id),
    )
