"""`SQLiteMaintaining`: what operators change, and what is pruned."""

from __future__ import annotations

from collections.abc import Sequence

from nimburion.backends.sqlite import bulk_operations, limit_changes, operations, sessions, tenants
from nimburion.backends.sqlite.file import SQLiteFile
from nimburion.core.audit import AuditRecord
from nimburion.core.backend import MAX_AUDIT_RECORDS, MAX_BULK_OPERATIONS, Maintaining
from nimburion.core.bulk_operations import BulkOperation, BulkStep, Claim, NewBulkOperation
from nimburion.core.limits import LimitChange
from nimburion.core.operations import Replayed, Retention
from nimburion.core.queries import JobFilter, Pause
from nimburion.core.session import WorkerCommand


class SQLiteMaintaining(Maintaining):
    """The operations of `Maintaining` for the SQLite backend."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file

    async def replay(self, which: JobFilter, limit: int, after: str | None = None) -> Replayed:
        return await self._file.write(lambda db: operations.replay(db, which, limit, after))

    async def make_due(self, job_ids: Sequence[str]) -> list[str]:
        return await self._file.write(lambda db: operations.make_due(db, job_ids))

    async def delete(self, which: JobFilter, limit: int) -> list[str]:
        return await self._file.write(lambda db: operations.delete(db, which, limit))

    async def pause_queue(
        self,
        queue: str,
        *,
        paused: bool,
        by: str = "",
        reason: str = "",
        until: float | None = None,
    ) -> None:
        new = Pause(by=by, reason=reason, until=until) if paused else None
        await self._file.write(lambda db: operations.pause_queue(db, queue, new))

    async def send_command(self, session_id: str, command: WorkerCommand | None) -> bool:
        return await self._file.write(lambda db: sessions.send_command(db, session_id, command))

    async def set_tenant_weight(self, tenant: str, weight: float | None) -> None:
        await self._file.write(lambda db: tenants.set_tenant_weight(db, tenant, weight))

    async def change_limit(self, change: LimitChange) -> None:
        change.check()
        await self._file.write(lambda db: limit_changes.change_limit(db, change))

    async def reset_limit(self, name: str, key: str | None = None) -> bool:
        return await self._file.write(lambda db: limit_changes.reset_limit(db, name, key))

    async def put_audit(self, record: AuditRecord, *, keep: int = MAX_AUDIT_RECORDS) -> None:
        await self._file.write(lambda db: operations.put_audit(db, record, keep))

    async def start_bulk_operation(
        self, operation: NewBulkOperation, *, keep: int = MAX_BULK_OPERATIONS
    ) -> BulkOperation:
        operation.check()
        return await self._file.write(lambda db: bulk_operations.start(db, operation, keep))

    async def claim_bulk_operation(self, ttl: float) -> Claim:
        # It writes only if a step is due.
        waiting = await self._file.read(bulk_operations.find_wait)
        if waiting is not None:
            return waiting
        return await self._file.write(lambda db: bulk_operations.claim(db, ttl), durable=False)

    async def advance_bulk_operation(
        self, operation_id: str, fence: int, step: BulkStep
    ) -> BulkOperation:
        step.check()
        return await self._file.write(
            lambda db: bulk_operations.advance(db, operation_id, fence, step)
        )

    async def cancel_bulk_operation(self, operation_id: str) -> BulkOperation:
        return await self._file.write(lambda db: bulk_operations.cancel(db, operation_id))

    async def prune(self, keep: Retention, limit: int) -> int:
        return await self._file.write(lambda db: operations.prune(db, keep, limit), durable=False)
