"""`SQLiteInspecting`: read jobs, queues, sessions, limits and statistics."""

from __future__ import annotations

from collections.abc import Sequence

from nimburion.backends.sqlite import bulk_operations, limit_changes, queries, statistics, tenants
from nimburion.backends.sqlite.file import SQLiteFile
from nimburion.backends.sqlite.keyed_limits import list_key_uses, list_keyed_limits
from nimburion.backends.sqlite.rate_limits import list_rates
from nimburion.core.audit import AuditPage
from nimburion.core.backend import Inspecting
from nimburion.core.bulk_operations import BulkOperation, BulkOperationPage
from nimburion.core.diagnosis.explanations import Facts
from nimburion.core.diagnosis.failure_groups import FailureGroups
from nimburion.core.fairness import TenantUses
from nimburion.core.job import JobRecord, State
from nimburion.core.keyed_limits import KeyedLimitInfo, KeyUse
from nimburion.core.limit_changes import LimitChange
from nimburion.core.metrics.statistics import Statistics, check_interval
from nimburion.core.queries import EVERY_JOB, SCAN_BUDGET, JobFilter, Page, QueueInfo
from nimburion.core.rate_limits import RateInfo
from nimburion.core.session import LimitInfo, SessionInfo

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

    async def list_limits(self) -> list[LimitInfo]:
        return await self._file.read(queries.list_limits)

    async def list_rates(self) -> list[RateInfo]:
        return await self._file.read(list_rates)

    async def list_keyed_limits(
        self, *, name: str | None = None, fullest: int = 5
    ) -> list[KeyedLimitInfo]:
        return await self._file.read(lambda db: list_keyed_limits(db, name, fullest))

    async def list_limit_changes(self) -> list[LimitChange]:
        return await self._file.read(limit_changes.list_limit_changes)

    async def list_key_uses(self, limit: int = 100) -> list[KeyUse]:
        return await self._file.read(lambda db: list_key_uses(db, limit))

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

    async def list_audit(self, *, limit: int = 100, after: str | None = None) -> AuditPage:
        return await self._file.read(lambda db: queries.list_audit(db, limit, after))

    async def get_bulk_operation(self, operation_id: str) -> BulkOperation:
        return await self._file.read(lambda db: bulk_operations.get(db, operation_id))

    async def list_bulk_operations(
        self, *, limit: int = 100, after: str | None = None
    ) -> BulkOperationPage:
        return await self._file.read(lambda db: bulk_operations.list_page(db, limit, after))
