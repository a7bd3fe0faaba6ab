"""`SQLiteInspecting`: read jobs, queues, sessions, limits and statistics."""

from __future__ import annotations

from collections.abc import Sequence

from nimburion.backends.sqlite import (
    limits,
    queries,
    records,
    statistics,
    tenants,
)
from nimburion.backends.sqlite.file import SQLiteFile
from nimburion.core.backend import MAX_HOLDERS, Inspecting
from nimburion.core.diagnosis.explanations import Facts
from nimburion.core.diagnosis.failure_groups import FailureGroups
from nimburion.core.fairness import TenantUses
from nimburion.core.job import JobRecord, State
from nimburion.core.limits import LimitInfo
from nimburion.core.metrics.statistics import Statistics, check_interval
from nimburion.core.queries import EVERY_JOB, SCAN_BUDGET, JobFilter, Page, QueueInfo
from nimburion.core.records import (
    Record,
    RecordKind,
    RecordPage,
)
from nimburion.core.session import SessionInfo

_FEW_INTERVALS = 10
"""More intervals of statistics than these take long to read."""


class SQLiteInspecting(Inspecting):
    """The operations of `Inspecting` for the SQLite backend."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file

    async def get_job(self, job_id: str) -> JobRecord:
        return await self._file.read(lambda db: queries.get_job(db, job_id))

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
        budget: int = SCAN_BUDGET,
    ) -> Page:
        return await self._file.read(
            lambda db: queries.list_jobs(db, which, limit, after, payloads=payloads, budget=budget)
        )

    async def group_failures(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        budget: int = SCAN_BUDGET,
        since: Sequence[float] = (),
    ) -> FailureGroups:
        return await self._file.read_slowly(
            lambda db: queries.group_failures(db, which, limit, budget, since)
        )

    async def explain_job(self, job_id: str) -> Facts:
        # The call reads one snapshot.
        return await self._file.read(lambda db: queries.explain_job(db, job_id))

    async def count_jobs(self, queue: str | None = None) -> dict[State, int]:
        return await self._file.read_slowly(lambda db: queries.count_by_state(db, queue))

    async def list_queues(self, *, budget: int | None = None) -> list[QueueInfo]:
        read = self._file.read_slowly if budget is None else self._file.read
        return await read(lambda db: queries.list_queues(db, budget))

    async def list_sessions(self) -> list[SessionInfo]:
        return await self._file.read(queries.list_sessions)

    async def list_limits(
        self, *, name: str | None = None, fullest: int = 5, holders: int = MAX_HOLDERS
    ) -> list[LimitInfo]:
        most = max(0, min(holders, MAX_HOLDERS))
        return await self._file.read(lambda db: limits.list_limits(db, name, fullest, most))

    async def list_tenants(self, limit: int = 100) -> TenantUses:
        return await self._file.read_slowly(lambda db: tenants.list_tenants(db, limit))

    async def list_statistics(
        self,
        since: float,
        until: float,
        step: int,
        *,
        queue: str | None = None,
        name: str | None = None,
    ) -> list[Statistics]:
        check_interval(since, until, step)
        read = self._file.read_slowly if until - since > _FEW_INTERVALS * step else self._file.read
        return await read(
            lambda db: statistics.read_statistics(db, (since, until, step), queue, name)
        )

    async def get_record(self, kind: RecordKind, record_id: str) -> Record | None:
        return await self._file.read(lambda db: records.get_record(db, kind, record_id))

    async def list_records(
        self,
        kind: RecordKind,
        *,
        limit: int = 100,
        after: str | None = None,
        by_due: bool = False,
    ) -> RecordPage:
        return await self._file.read(
            lambda db: records.list_records(db, kind, limit, after, by_due=by_due)
        )
