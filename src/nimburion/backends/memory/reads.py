"""`MemoryInspecting`: read jobs, queues, sessions, limits and statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nimburion.backends.memory import operations, records
from nimburion.backends.memory.data import MemoryData
from nimburion.backends.memory.state import JobEntry
from nimburion.backends.memory.transitions import AtomicStep
from nimburion.core.backend import MAX_HOLDERS, Inspecting
from nimburion.core.diagnosis.explanations import Facts
from nimburion.core.diagnosis.failure_groups import FailureGroups
from nimburion.core.errors import JobNotFound
from nimburion.core.fairness import TenantUses
from nimburion.core.job import JobRecord, State
from nimburion.core.limits import LimitInfo
from nimburion.core.metrics.statistics import Statistics
from nimburion.core.queries import EVERY_JOB, SCAN_BUDGET, JobFilter, Page, Pause, QueueInfo
from nimburion.core.records import (
    Record,
    RecordKind,
    RecordPage,
)
from nimburion.core.session import SessionInfo


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


class MemoryInspecting(Inspecting):
    """The operations of `Inspecting` for the memory backend."""

    def __init__(self, data: MemoryData) -> None:
        self._data = data

    async def get_job(self, job_id: str) -> JobRecord:

        def get(step: AtomicStep) -> JobRecord:
            entry = step.state.jobs.get(job_id)
            if entry is None:
                raise JobNotFound(job_id)
            return entry.make_record(step.now, payloads=True)

        return self._data.run_atomically(get)

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
        budget: int = SCAN_BUDGET,
    ) -> Page:
        return self._data.run_atomically(
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
        return self._data.run_atomically(
            lambda step: operations.group_failures(step, which, limit, budget, since)
        )

    async def explain_job(self, job_id: str) -> Facts:
        monotonic = self._data.clock.monotonic()
        return self._data.run_atomically(
            lambda step: operations.explain_job(step, job_id, monotonic)
        )

    async def list_limits(
        self, *, name: str | None = None, fullest: int = 5, holders: int = MAX_HOLDERS
    ) -> list[LimitInfo]:
        return self._data.run_atomically(
            lambda step: operations.list_limits(step, name, fullest, holders)
        )

    async def list_tenants(self, limit: int = 100) -> TenantUses:
        return self._data.run_atomically(lambda step: operations.list_tenants(step, limit))

    async def list_statistics(
        self,
        since: float,
        until: float,
        step: int,
        *,
        queue: str | None = None,
        name: str | None = None,
    ) -> list[Statistics]:
        return self._data.run_atomically(
            lambda atomic: operations.read_statistics(atomic, (since, until, step), queue, name)
        )

    async def get_record(self, kind: RecordKind, record_id: str) -> Record | None:
        return self._data.run_atomically(lambda step: records.get_record(step, kind, record_id))

    async def list_records(
        self,
        kind: RecordKind,
        *,
        limit: int = 100,
        after: str | None = None,
        by_due: bool = False,
    ) -> RecordPage:
        return self._data.run_atomically(
            lambda step: records.list_records(step, kind, limit, after, by_due=by_due)
        )

    async def count_jobs(self, queue: str | None = None) -> dict[State, int]:

        def count(step: AtomicStep) -> dict[State, int]:
            found = Counter(
                entry.get_state(step.now)
                for entry in step.state.jobs.values()
                if queue in (None, entry.queue)
            )
            return {state: found[state] for state in State}

        return self._data.run_atomically(count)

    async def list_queues(self, *, budget: int | None = None) -> list[QueueInfo]:  # noqa: ARG002
        # Counts all jobs.

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

        return self._data.run_atomically(queues)

    async def list_sessions(self) -> list[SessionInfo]:
        monotonic = self._data.clock.monotonic()

        def sessions(step: AtomicStep) -> list[SessionInfo]:
            return [
                session.make_info(monotonic)
                for session in step.state.sessions.values()
                if not session.is_ended
            ]

        return self._data.run_atomically(sessions)
