"""`MemoryMaintaining`: what operators change, and what is pruned."""

from __future__ import annotations

from collections.abc import Sequence

from nimburion.backends.memory import bulk_operations, operations
from nimburion.backends.memory.data import MemoryData
from nimburion.core.audit import AuditRecord
from nimburion.core.backend import MAX_AUDIT_RECORDS, MAX_BULK_OPERATIONS, Maintaining
from nimburion.core.bulk_operations import BulkOperation, BulkStep, Claim, NewBulkOperation
from nimburion.core.limits import LimitChange
from nimburion.core.operations import Replayed, Retention
from nimburion.core.queries import JobFilter, Pause
from nimburion.core.session import WorkerCommand


class MemoryMaintaining(Maintaining):
    """The operations of `Maintaining` for the memory backend."""

    def __init__(self, data: MemoryData) -> None:
        self._data = data

    async def replay(self, which: JobFilter, limit: int, after: str | None = None) -> Replayed:
        return self._data.run_atomically(lambda step: operations.replay(step, which, limit, after))

    async def make_due(self, job_ids: Sequence[str]) -> list[str]:
        return self._data.run_atomically(lambda step: operations.make_due(step, job_ids))

    async def delete(self, which: JobFilter, limit: int) -> list[str]:
        return self._data.run_atomically(lambda step: operations.delete(step, which, limit))

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
        self._data.run_atomically(lambda step: operations.pause_queue(step, queue, new))

    async def send_command(self, session_id: str, command: WorkerCommand | None) -> bool:
        return self._data.run_atomically(
            lambda step: operations.send_command(step, session_id, command)
        )

    async def set_tenant_weight(self, tenant: str, weight: float | None) -> None:
        self._data.run_atomically(lambda step: operations.set_tenant_weight(step, tenant, weight))

    async def change_limit(self, change: LimitChange) -> None:
        change.check()
        self._data.run_atomically(lambda step: operations.change_limit(step, change))

    async def reset_limit(self, name: str, key: str | None = None) -> bool:
        return self._data.run_atomically(lambda step: operations.reset_limit(step, name, key))

    async def put_audit(self, record: AuditRecord, *, keep: int = MAX_AUDIT_RECORDS) -> None:
        self._data.run_atomically(lambda step: operations.put_audit(step, record, keep))

    async def start_bulk_operation(
        self, operation: NewBulkOperation, *, keep: int = MAX_BULK_OPERATIONS
    ) -> BulkOperation:
        operation.check()
        return self._data.run_atomically(lambda step: bulk_operations.start(step, operation, keep))

    async def claim_bulk_operation(self, ttl: float) -> Claim:
        return self._data.run_atomically(lambda step: bulk_operations.claim(step, ttl))

    async def advance_bulk_operation(
        self, operation_id: str, fence: int, step: BulkStep
    ) -> BulkOperation:
        step.check()
        return self._data.run_atomically(
            lambda atomic: bulk_operations.advance(atomic, operation_id, fence, step)
        )

    async def cancel_bulk_operation(self, operation_id: str) -> BulkOperation:
        return self._data.run_atomically(lambda step: bulk_operations.cancel(step, operation_id))

    async def prune(self, keep: Retention, limit: int) -> int:
        return self._data.run_atomically(lambda step: operations.prune(step, keep, limit))
