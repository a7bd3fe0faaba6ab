"""The memory store's handle: the contract, each operation under one lock at one time."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import msgspec

from nimburion.backends.memory import operations
from nimburion.backends.memory.state import MICRO, Entry, Shelf, micros
from nimburion.backends.memory.transitions import Step
from nimburion.backends.server.errors import no_roles
from nimburion.backends.waiters import EVERY_QUEUE
from nimburion.core.backend import Capabilities
from nimburion.core.checks import Finding
from nimburion.core.clock import Clock, SystemClock
from nimburion.core.errors import ConfigurationError, JobNotFound
from nimburion.core.exchange import Reply, Want
from nimburion.core.ids import Entropy
from nimburion.core.job import Enqueued, JobRecord, NewJob, State
from nimburion.core.lease import Lease
from nimburion.core.operations import Cancellation, Promoted, Replayed, Rescued, Retention
from nimburion.core.queries import EVERY_JOB, JobFilter, Page, QueueInfo
from nimburion.core.redaction import redact_url
from nimburion.core.schedules import Fired, Overlap, ScheduleRecord
from nimburion.core.session import Orders, Session, SessionInfo
from nimburion.core.settlement import Settlement

T = TypeVar("T")

CAPABILITIES = Capabilities(
    durable=False, notifies=True, joins_transaction=False, atomic_batch=None, shared=False
)


class MemoryBackend:
    """A store in this process's memory; gone with it.

    Args:
        clock: its time; a fake one in tests.
        entropy: unused here, taken so that every store is made alike.

    >>> MemoryBackend().capabilities.durable
    False
    """

    def __init__(self, *, clock: Clock | None = None, entropy: Entropy = os.urandom) -> None:
        self._clock = clock or SystemClock()
        self._entropy = entropy
        self._shared = _Shared()

    @classmethod
    def from_url(cls, url: str, **options: object) -> MemoryBackend:
        """The store that `memory://` names: a new, empty one."""
        if url.lower().rstrip("/") != "memory:":
            raise ConfigurationError(
                f"{redact_url(url)!r}: nothing may follow memory://, which has no server and no "
                "options"
            )
        return cls(**options)  # type: ignore[arg-type]

    # Coming and going

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        return CAPABILITIES

    def describe(self) -> str:
        """Name the store."""
        return "memory (of this process; nothing is kept)"

    def sibling(self) -> MemoryBackend:
        """Another handle on the same data; for any thread and loop."""
        handle = MemoryBackend(clock=self._clock, entropy=self._entropy)
        handle._shared = self._shared
        return handle

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do; the data stays as long as a handle does."""

    async def exists(self) -> bool:
        """See `Backend.exists`."""
        return True

    async def ping(self) -> None:
        """Answer."""

    async def now(self) -> float:
        """See `Backend.now`."""
        return self._do(lambda step: step.now / MICRO)

    async def examine(self) -> list[Finding]:
        """See `Backend.examine`."""
        count = self._do(lambda step: len(step.shelf.jobs))
        return [
            Finding(
                "durability",
                "warning",
                f"nothing is kept: with this process its {count} jobs are gone",
                "for anything but tests use a store that lasts, like sqlite:///jobs.db",
            )
        ]

    async def plan(self) -> list[str]:
        """Nothing."""
        return []

    async def migrate(self) -> list[str]:
        """Nothing to do."""
        return []

    async def grant(self, role: str) -> list[str]:
        """See `Backend.grant`."""
        raise no_roles(self.describe(), role)

    # Producing

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """See `Backend.enqueue`."""
        return self._do(lambda step: step.enqueue(jobs))

    async def cancel(self, job_id: str) -> Cancellation:
        """See `Backend.cancel`."""
        return self._do(lambda step: operations.cancel(step, job_id))

    # Consuming

    async def open_session(self, session: Session) -> None:
        """See `Backend.open_session`."""
        monotonic = self._clock.monotonic()
        self._do(lambda step: operations.open_session(step, session, monotonic))

    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        """See `Backend.exchange`."""
        return self._do(
            lambda step: operations.exchange(step, session_id, number, settlements, want)
        )

    async def beat(self, session_id: str) -> Orders:
        """See `Backend.beat`."""
        monotonic = self._clock.monotonic()
        return self._do(lambda step: operations.beat(step, session_id, monotonic))

    async def release(
        self, session_id: str, leases: Sequence[Lease] = (), nonce: bytes | None = None
    ) -> None:
        """See `Backend.release`."""
        self._do(lambda step: operations.release(step, session_id, leases, nonce))

    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        """See `Backend.close_session`."""
        self._do(lambda step: operations.close_session(step, session_id, running))

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        """See `Backend.rescue`."""
        monotonic = self._clock.monotonic()
        return self._do(lambda step: operations.rescue(step, limit, max_lost, monotonic))

    async def promote(self, limit: int) -> Promoted:
        """See `Backend.promote`."""

        def promote(step: Step) -> Promoted:
            moved = step.shelf.promote(step.now, limit)
            step.rung.update(entry.queue for entry in moved)
            return Promoted(len(moved), operations.next_due(step.shelf))

        return self._do(promote)

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        """See `Backend.wait`."""
        waiter = self._shared.add_waiter(queues)
        sleep = asyncio.ensure_future(self._clock.sleep(timeout))
        try:
            await asyncio.wait({waiter, sleep}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            self._shared.drop_waiter(waiter)

    # Maintaining

    async def replay(self, which: JobFilter, limit: int, after: str | None = None) -> Replayed:
        """See `Backend.replay`."""
        return self._do(lambda step: operations.replay(step, which, limit, after))

    async def delete(self, which: JobFilter, limit: int) -> list[str]:
        """See `Backend.delete`."""
        return self._do(lambda step: operations.delete(step, which, limit))

    async def pause(self, queue: str, *, paused: bool) -> None:
        """See `Backend.pause`."""

        def pause(step: Step) -> None:
            if paused:
                step.shelf.paused.add(queue)
            else:
                step.shelf.paused.discard(queue)
                step.rung.add(queue)

        self._do(pause)

    async def prune(self, keep: Retention, limit: int) -> int:
        """See `Backend.prune`."""
        return self._do(lambda step: operations.prune(step, keep, limit))

    # Inspecting

    async def get(self, job_id: str) -> JobRecord:
        """See `Backend.get`."""

        def get(step: Step) -> JobRecord:
            entry = step.shelf.jobs.get(job_id)
            if entry is None:
                raise JobNotFound(job_id)
            return entry.record(step.now, payloads=True)

        return self._do(get)

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
    ) -> Page:
        """See `Backend.list_jobs`."""

        def list_jobs(step: Step) -> Page:
            page, following = operations.page_of(operations.matching(step, which, after), limit)
            return Page([e.record(step.now, payloads=payloads) for e in page], following)

        return self._do(list_jobs)

    async def counts(self, queue: str | None = None) -> dict[State, int]:
        """See `Backend.counts`."""

        def count(step: Step) -> dict[State, int]:
            found = Counter(
                entry.state_at(step.now)
                for entry in step.shelf.jobs.values()
                if queue in (None, entry.queue)
            )
            return {state: found[state] for state in State}

        return self._do(count)

    async def queues(self) -> list[QueueInfo]:
        """See `Backend.queues`."""

        def queues(step: Step) -> list[QueueInfo]:
            unfinished: dict[str, list[Entry]] = {name: [] for name in step.shelf.paused}
            for entry in step.shelf.jobs.values():
                if entry.state is None:
                    unfinished.setdefault(entry.queue, []).append(entry)
            return [
                _queue_info(name, unfinished[name], step.now, paused=name in step.shelf.paused)
                for name in sorted(unfinished)
            ]

        return self._do(queues)

    async def sessions(self) -> list[SessionInfo]:
        """See `Backend.sessions`."""
        monotonic = self._clock.monotonic()

        def sessions(step: Step) -> list[SessionInfo]:
            return [
                tenant.said.as_read(
                    opened_at=tenant.opened_at / 1e6,
                    expires_in=tenant.expires - monotonic,
                    left=tenant.left,
                    running=len(tenant.held),
                )
                for tenant in step.shelf.sessions.values()
                if not tenant.dead
            ]

        return self._do(sessions)

    # Scheduling

    async def put_schedule(self, schedule: ScheduleRecord) -> None:
        """See `Backend.put_schedule`."""

        def put(step: Step) -> None:
            kept = step.shelf.schedules.get(schedule.name)
            step.shelf.schedules[schedule.name] = (
                schedule
                if kept is None
                else msgspec.structs.replace(kept, spec=schedule.spec, owner=schedule.owner)
            )

        self._do(put)

    async def list_schedules(self) -> list[ScheduleRecord]:
        """See `Backend.list_schedules`."""
        return self._do(lambda step: [record for _, record in sorted(step.shelf.schedules.items())])

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """See `Backend.pause_schedule`."""

        def pause(step: Step) -> bool:
            kept = step.shelf.schedules.get(name)
            if kept is None:
                return False
            step.shelf.schedules[name] = msgspec.structs.replace(kept, paused=paused)
            return True

        return self._do(pause)

    async def delete_schedule(self, name: str) -> bool:
        """See `Backend.delete_schedule`."""
        return self._do(lambda step: step.shelf.schedules.pop(name, None) is not None)

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        """See `Backend.fire`."""
        return self._do(lambda step: operations.fire(step, name, expected_last, tick, job, overlap))

    # Inside

    def _do(self, operation: Callable[[Step], T]) -> T:
        """One atomic step; afterwards the queues that it touched are rung."""
        shared = self._shared
        with shared.lock:
            step = Step(shared.shelf, micros(self._clock.now()))
            answer = operation(step)
        if step.rung and shared.waiters:
            shared.ring(step.rung)
        return answer


class _Shared:
    """What the handles of one store share."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.shelf = Shelf()
        self.waiters: dict[asyncio.Future[None], frozenset[str]] = {}

    def add_waiter(self, queues: Collection[str]) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self.lock:
            self.waiters[waiter] = frozenset(queues)
        return waiter

    def drop_waiter(self, waiter: asyncio.Future[None]) -> None:
        with self.lock:
            self.waiters.pop(waiter, None)

    def ring(self, queues: set[str]) -> None:
        """Wake whoever waits for one of them, each on its own loop."""
        with self.lock:
            rung = [
                waiter
                for waiter, wanted in self.waiters.items()
                if EVERY_QUEUE in queues or not wanted.isdisjoint(queues)
            ]
            for waiter in rung:
                del self.waiters[waiter]
        for waiter in rung:
            waiter.get_loop().call_soon_threadsafe(_wake, waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _queue_info(name: str, entries: list[Entry], now: int, *, paused: bool) -> QueueInfo:
    waiting = [entry for entry in entries if entry.held is None]
    due = [entry.due for entry in waiting if entry.due <= now]
    return QueueInfo(
        name=name,
        size=len(due),
        scheduled=len(waiting) - len(due),
        processing=len(entries) - len(waiting),
        oldest_age=(now - min(due)) / 1e6 if due else 0.0,
        paused=paused,
        names=dict(sorted(Counter(entry.name for entry in waiting).items())),
    )
