"""`MemoryBackend`: implements the contract. Each operation holds one lock and sees one time."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import msgspec

from nimburion.backends.memory import bulk_operations, operations
from nimburion.backends.memory.state import MICRO, JobEntry, MemoryState, to_micros
from nimburion.backends.memory.transitions import AtomicStep
from nimburion.backends.server.errors import make_no_roles_error
from nimburion.backends.waiters import EVERY_QUEUE, is_session_name, make_session_name
from nimburion.core.audit import AuditPage, AuditRecord
from nimburion.core.backend import MAX_AUDIT_RECORDS, MAX_BULK_OPERATIONS, Capabilities
from nimburion.core.bulk_operations import (
    BulkOperation,
    BulkOperationPage,
    BulkStep,
    Claim,
    NewBulkOperation,
)
from nimburion.core.diagnosis.checks import CheckResult
from nimburion.core.diagnosis.explanations import Facts
from nimburion.core.diagnosis.failure_groups import FailureGroups
from nimburion.core.errors import ConfigurationError, JobNotFound
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.fairness import TenantUses
from nimburion.core.ids import Entropy
from nimburion.core.job import Enqueued, JobRecord, NewJob, State
from nimburion.core.keyed_limits import KeyedLimitInfo, KeyUse
from nimburion.core.lease import Lease
from nimburion.core.limit_changes import LimitChange
from nimburion.core.metrics.statistics import Statistics
from nimburion.core.operations import Cancellation, Promoted, Replayed, Rescued, Retention
from nimburion.core.queries import EVERY_JOB, SCAN_BUDGET, JobFilter, Page, Pause, QueueInfo
from nimburion.core.rate_limits import RateInfo
from nimburion.core.schedules import Fired, Overlap, ScheduleRecord
from nimburion.core.session import (
    HeartbeatReply,
    LimitInfo,
    Session,
    SessionInfo,
    Vitals,
    WorkerCommand,
)
from nimburion.core.settlement import Settlement
from nimburion.core.text.redaction import redact_url
from nimburion.core.timing.clock import Clock, SystemClock

T = TypeVar("T")

CAPABILITIES = Capabilities(
    durable=False,
    notifies=True,
    supports_transactions=False,
    atomic_batch=None,
    shared=False,
    keeps_arguments=True,
)


class MemoryBackend:
    """A backend in the memory of this process. Its data is lost when the process ends.

    Args:
        clock: source of the time; tests pass a fake clock.
        entropy: unused; accepted so that every backend has the same constructor arguments.

    >>> MemoryBackend().capabilities.durable
    False
    """

    def __init__(self, *, clock: Clock | None = None, entropy: Entropy = os.urandom) -> None:
        self._clock = clock or SystemClock()
        self._entropy = entropy
        self._shared = _SharedState()
        self._seen: int | None = None
        """The number of notifications when this handle reserved jobs last; None: it never did."""

    @classmethod
    def from_url(cls, url: str, **options: object) -> MemoryBackend:
        """Return a new, empty backend for the URL `memory://`.

        Raises `ConfigurationError` for any other URL.
        """
        if url.lower().rstrip("/") != "memory:":
            raise ConfigurationError(
                f"{redact_url(url)!r}: nothing may follow memory://, which has no server and no "
                "options"
            )
        return cls(**options)  # type: ignore[arg-type]

    # Lifecycle

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of this backend: notifications only."""
        return CAPABILITIES

    def describe(self) -> str:
        """Return a name of the backend for people."""
        return "memory of this process (not durable)"

    def new_handle(self) -> MemoryBackend:
        """Return another handle on the same data, for any thread and event loop."""
        handle = MemoryBackend(clock=self._clock, entropy=self._entropy)
        handle._shared = self._shared
        return handle

    async def open(self) -> None:
        """Do nothing: this backend needs no opening."""

    async def close(self) -> None:
        """Do nothing: the data stays as long as any handle exists."""

    async def exists(self) -> bool:
        """See `Backend.exists`."""
        return True

    async def ping(self) -> None:
        """Return at once: the backend is always reachable."""

    async def now(self) -> float:
        """See `Backend.now`."""
        return self._run_atomically(lambda step: step.now / MICRO)

    async def check(self) -> list[CheckResult]:
        """See `Backend.check`."""
        count = self._run_atomically(lambda step: len(step.state.jobs))
        return [
            CheckResult(
                "durability",
                "warning",
                f"not durable: {count} jobs are lost when this process ends",
                "outside of tests, use a durable backend, like sqlite:///jobs.db",
            )
        ]

    async def plan_migration(self) -> list[str]:
        """Return an empty list: there are no migrations."""
        return []

    async def migrate(self) -> list[str]:
        """Return an empty list: there are no migrations."""
        return []

    async def grant(self, role: str) -> list[str]:
        """See `Backend.grant`."""
        raise make_no_roles_error(self.describe(), role)

    # Enqueue and cancel

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """See `Backend.enqueue`."""
        return self._run_atomically(lambda step: step.enqueue(jobs))

    async def cancel(self, job_id: str) -> Cancellation:
        """See `Backend.cancel`."""
        return self._run_atomically(lambda step: operations.cancel(step, job_id))

    # Workers

    async def open_session(self, session: Session) -> None:
        """See `Backend.open_session`."""
        monotonic = self._clock.monotonic()
        self._run_atomically(lambda step: operations.open_session(step, session, monotonic))

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        """See `Backend.exchange`."""
        with self._shared.lock:
            reply = self._run_atomically(
                lambda step: operations.run_exchange(step, session_id, number, settlements, request)
            )
            if request.total > 0:
                self._seen = self._shared.notifications
            return reply

    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
        """See `Backend.heartbeat`."""
        monotonic = self._clock.monotonic()
        return self._run_atomically(
            lambda step: operations.heartbeat(step, session_id, monotonic, vitals)
        )

    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        """See `Backend.put_statistics`."""
        self._run_atomically(lambda step: operations.put_statistics(step, source, rows))

    async def release(
        self, session_id: str, leases: Sequence[Lease] = (), nonce: bytes | None = None
    ) -> None:
        """See `Backend.release`."""
        self._run_atomically(lambda step: operations.release(step, session_id, leases, nonce))

    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        """See `Backend.close_session`."""
        self._run_atomically(lambda step: operations.close_session(step, session_id, running))

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        """See `Backend.rescue`."""
        monotonic = self._clock.monotonic()
        return self._run_atomically(
            lambda step: operations.rescue(step, limit, max_lost, monotonic)
        )

    async def promote(self, limit: int) -> Promoted:
        """See `Backend.promote`."""

        def promote(step: AtomicStep) -> Promoted:
            moved = step.state.promote(step.now, limit)
            step.names_to_notify.update(entry.queue for entry in moved)
            return Promoted(len(moved), operations.find_next_due(step.state))

        return self._run_atomically(promote)

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        """See `Backend.wait`."""
        names = (*queues, EVERY_QUEUE)
        waiter = self._shared.add_waiter(names, self._seen)
        sleep = asyncio.ensure_future(self._clock.sleep(timeout))
        try:
            await asyncio.wait({waiter, sleep}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            self._shared.remove_waiter(waiter)

    async def wait_for_session(self, session_id: str) -> None:
        """See `Backend.wait_for_session`."""
        waiter = self._shared.add_waiter((make_session_name(session_id),))
        try:
            await waiter
        finally:
            self._shared.remove_waiter(waiter)

    # Operators and maintenance

    async def replay(self, which: JobFilter, limit: int, after: str | None = None) -> Replayed:
        """See `Backend.replay`."""
        return self._run_atomically(lambda step: operations.replay(step, which, limit, after))

    async def make_due(self, job_ids: Sequence[str]) -> list[str]:
        """See `Backend.make_due`."""
        return self._run_atomically(lambda step: operations.make_due(step, job_ids))

    async def delete(self, which: JobFilter, limit: int) -> list[str]:
        """See `Backend.delete`."""
        return self._run_atomically(lambda step: operations.delete(step, which, limit))

    async def pause_queue(
        self,
        queue: str,
        *,
        paused: bool,
        by: str = "",
        reason: str = "",
        until: float | None = None,
    ) -> None:
        """See `Backend.pause_queue`."""
        new = Pause(by=by, reason=reason, until=until) if paused else None
        self._run_atomically(lambda step: operations.pause_queue(step, queue, new))

    async def send_command(self, session_id: str, command: WorkerCommand | None) -> bool:
        """See `Backend.send_command`."""
        return self._run_atomically(lambda step: operations.send_command(step, session_id, command))

    async def set_tenant_weight(self, tenant: str, weight: float | None) -> None:
        """See `Backend.set_tenant_weight`."""
        self._run_atomically(lambda step: operations.set_tenant_weight(step, tenant, weight))

    async def change_limit(self, change: LimitChange) -> None:
        """See `Backend.change_limit`."""
        change.check()
        self._run_atomically(lambda step: operations.change_limit(step, change))

    async def reset_limit(self, name: str, key: str | None = None) -> bool:
        """See `Backend.reset_limit`."""
        return self._run_atomically(lambda step: operations.reset_limit(step, name, key))

    async def put_audit(self, record: AuditRecord, *, keep: int = MAX_AUDIT_RECORDS) -> None:
        """See `Backend.put_audit`."""
        self._run_atomically(lambda step: operations.put_audit(step, record, keep))

    async def start_bulk_operation(
        self, operation: NewBulkOperation, *, keep: int = MAX_BULK_OPERATIONS
    ) -> BulkOperation:
        """See `Backend.start_bulk_operation`."""
        operation.check()
        return self._run_atomically(lambda step: bulk_operations.start(step, operation, keep))

    async def claim_bulk_operation(self, ttl: float) -> Claim:
        """See `Backend.claim_bulk_operation`."""
        return self._run_atomically(lambda step: bulk_operations.claim(step, ttl))

    async def advance_bulk_operation(
        self, operation_id: str, fence: int, step: BulkStep
    ) -> BulkOperation:
        """See `Backend.advance_bulk_operation`."""
        step.check()
        return self._run_atomically(
            lambda atomic: bulk_operations.advance(atomic, operation_id, fence, step)
        )

    async def cancel_bulk_operation(self, operation_id: str) -> BulkOperation:
        """See `Backend.cancel_bulk_operation`."""
        return self._run_atomically(lambda step: bulk_operations.cancel(step, operation_id))

    async def prune(self, keep: Retention, limit: int) -> int:
        """See `Backend.prune`."""
        return self._run_atomically(lambda step: operations.prune(step, keep, limit))

    # Queries

    async def get_job(self, job_id: str) -> JobRecord:
        """See `Backend.get_job`."""

        def get(step: AtomicStep) -> JobRecord:
            entry = step.state.jobs.get(job_id)
            if entry is None:
                raise JobNotFound(job_id)
            return entry.make_record(step.now, payloads=True)

        return self._run_atomically(get)

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
        budget: int = SCAN_BUDGET,
    ) -> Page:
        """See `Backend.list_jobs`."""
        return self._run_atomically(
            lambda step: operations.list_jobs(
                step, which, limit, after, payloads=payloads, budget=budget
            )
        )

    async def group_failures(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        budget: int = SCAN_BUDGET,
        since: Sequence[float] = (),
    ) -> FailureGroups:
        """See `Backend.group_failures`."""
        return self._run_atomically(
            lambda step: operations.group_failures(step, which, limit, budget, since)
        )

    async def explain_job(self, job_id: str) -> Facts:
        """See `Backend.explain_job`."""
        monotonic = self._clock.monotonic()
        return self._run_atomically(lambda step: operations.explain_job(step, job_id, monotonic))

    async def list_limits(self) -> list[LimitInfo]:
        """See `Backend.list_limits`."""
        return self._run_atomically(operations.list_limits)

    async def list_rates(self) -> list[RateInfo]:
        """See `Backend.list_rates`."""
        return self._run_atomically(operations.list_rates)

    async def list_keyed_limits(
        self, *, name: str | None = None, fullest: int = 5
    ) -> list[KeyedLimitInfo]:
        """See `Backend.list_keyed_limits`."""
        return self._run_atomically(lambda step: operations.list_keyed_limits(step, name, fullest))

    async def list_limit_changes(self) -> list[LimitChange]:
        """See `Backend.list_limit_changes`."""
        return self._run_atomically(operations.list_limit_changes)

    async def list_key_uses(self, limit: int = 100) -> list[KeyUse]:
        """See `Backend.list_key_uses`."""
        return self._run_atomically(lambda step: operations.list_key_uses(step, limit))

    async def list_tenants(self, limit: int = 100) -> TenantUses:
        """See `Backend.list_tenants`."""
        return self._run_atomically(lambda step: operations.list_tenants(step, limit))

    async def list_statistics(
        self,
        since: float,
        until: float,
        step: int,
        *,
        queue: str | None = None,
        name: str | None = None,
    ) -> list[Statistics]:
        """See `Backend.list_statistics`."""
        return self._run_atomically(
            lambda atomic: operations.read_statistics(atomic, (since, until, step), queue, name)
        )

    async def list_audit(self, *, limit: int = 100, after: str | None = None) -> AuditPage:
        """See `Backend.list_audit`."""
        return self._run_atomically(lambda step: operations.list_audit(step, limit, after))

    async def get_bulk_operation(self, operation_id: str) -> BulkOperation:
        """See `Backend.get_bulk_operation`."""
        return self._run_atomically(lambda step: bulk_operations.get(step, operation_id))

    async def list_bulk_operations(
        self, *, limit: int = 100, after: str | None = None
    ) -> BulkOperationPage:
        """See `Backend.list_bulk_operations`."""
        return self._run_atomically(lambda step: bulk_operations.list_page(step, limit, after))

    async def count_jobs(self, queue: str | None = None) -> dict[State, int]:
        """See `Backend.count_jobs`."""

        def count(step: AtomicStep) -> dict[State, int]:
            found = Counter(
                entry.get_state(step.now)
                for entry in step.state.jobs.values()
                if queue in (None, entry.queue)
            )
            return {state: found[state] for state in State}

        return self._run_atomically(count)

    async def list_queues(self, *, budget: int | None = None) -> list[QueueInfo]:  # noqa: ARG002
        """See `Backend.list_queues`. Counts all jobs."""

        def queues(step: AtomicStep) -> list[QueueInfo]:
            paused = step.state.list_paused(step.now)
            unfinished: dict[str, list[JobEntry]] = {name: [] for name in paused}
            for entry in step.state.jobs.values():
                if entry.final_state is None:
                    unfinished.setdefault(entry.queue, []).append(entry)
            return [
                _make_queue_info(
                    name, unfinished[name], step.now, step.state.find_pause(name, step.now)
                )
                for name in sorted(unfinished)
            ]

        return self._run_atomically(queues)

    async def list_sessions(self) -> list[SessionInfo]:
        """See `Backend.list_sessions`."""
        monotonic = self._clock.monotonic()

        def sessions(step: AtomicStep) -> list[SessionInfo]:
            return [
                session.make_info(monotonic)
                for session in step.state.sessions.values()
                if not session.is_ended
            ]

        return self._run_atomically(sessions)

    # Schedules

    async def put_schedule(self, schedule: ScheduleRecord) -> None:
        """See `Backend.put_schedule`."""

        def put(step: AtomicStep) -> None:
            existing = step.state.schedules.get(schedule.name)
            step.state.schedules[schedule.name] = (
                schedule
                if existing is None
                else msgspec.structs.replace(existing, spec=schedule.spec, owner=schedule.owner)
            )

        self._run_atomically(put)

    async def list_schedules(self) -> list[ScheduleRecord]:
        """See `Backend.list_schedules`."""
        return self._run_atomically(
            lambda step: [record for _, record in sorted(step.state.schedules.items())]
        )

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """See `Backend.pause_schedule`."""

        def pause(step: AtomicStep) -> bool:
            existing = step.state.schedules.get(name)
            if existing is None:
                return False
            step.state.schedules[name] = msgspec.structs.replace(existing, paused=paused)
            return True

        return self._run_atomically(pause)

    async def delete_schedule(self, name: str) -> bool:
        """See `Backend.delete_schedule`."""
        return self._run_atomically(lambda step: step.state.schedules.pop(name, None) is not None)

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        """See `Backend.fire`."""
        return self._run_atomically(
            lambda step: operations.fire(step, name, expected_last, tick, job, overlap)
        )

    # Internals

    def _run_atomically(self, operation: Callable[[AtomicStep], T]) -> T:
        """Run `operation` under the lock, then notify waiters of the queues it changed."""
        shared = self._shared
        with shared.lock:
            step = AtomicStep(shared.state, to_micros(self._clock.now()))
            answer = operation(step)
        if step.names_to_notify:
            shared.notify(step.names_to_notify)
        return answer


class _SharedState:
    """The data, the lock and the waiters that all handles of one backend share."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.state = MemoryState()
        self.waiters: dict[asyncio.Future[None], frozenset[str]] = {}
        self.notifications = 0
        """How many notifications there were."""
        self._last_notified: dict[str, int] = {}
        """By queue, the number of its last notification."""

    def add_waiter(self, names: Collection[str], seen: int | None = None) -> asyncio.Future[None]:
        """Return a future that is done when one of these queues or sessions is notified.

        It is done already if one of the queues was notified after the first `seen` notifications.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self.lock:
            if seen is not None and any(self._last_notified.get(name, 0) > seen for name in names):
                waiter.set_result(None)
            else:
                self.waiters[waiter] = frozenset(names)
        return waiter

    def remove_waiter(self, waiter: asyncio.Future[None]) -> None:
        with self.lock:
            self.waiters.pop(waiter, None)

    def notify(self, names: set[str]) -> None:
        """Wake the callers that wait for any of these queues or sessions, each on its own loop."""
        with self.lock:
            self.notifications += 1
            for name in names:
                if not is_session_name(name):
                    self._last_notified[name] = self.notifications
            if not self.waiters:
                return
            notified = [
                waiter
                for waiter, names_of_waiter in self.waiters.items()
                if not names_of_waiter.isdisjoint(names)
            ]
            for waiter in notified:
                del self.waiters[waiter]
        for waiter in notified:
            waiter.get_loop().call_soon_threadsafe(_wake, waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _make_queue_info(
    name: str, entries: list[JobEntry], now: int, pause: Pause | None
) -> QueueInfo:
    waiting = [entry for entry in entries if entry.leased is None]
    due = [entry.due for entry in waiting if entry.due <= now]
    return QueueInfo(
        name=name,
        size=len(due),
        scheduled=len(waiting) - len(due),
        processing=len(entries) - len(waiting),
        oldest_age=(now - min(due)) / 1e6 if due else 0.0,
        paused=pause is not None,
        pause=pause,
        names=dict(sorted(Counter(entry.name for entry in waiting).items())),
    )
