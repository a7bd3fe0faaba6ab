"""`MemoryMaintaining`: what operators change, and what is pruned."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from nimburion.backends.memory import operations, records
from nimburion.backends.memory.data import MemoryData
from nimburion.core.backend import Maintaining
from nimburion.core.bulk_operations import BulkAction
from nimburion.core.job import State
from nimburion.core.limits import LimitChange
from nimburion.core.operations import JobChanges, Retention
from nimburion.core.queries import Pause
from nimburion.core.records import (
    NewRecord,
    RecordChange,
    RecordKind,
    RecordPut,
)
from nimburion.core.session import WorkerCommand


class MemoryMaintaining(Maintaining):
    """The operations of `Maintaining` for the memory backend."""

    def __init__(self, data: MemoryData) -> None:
        self._data = data

    async def change_jobs(
        self,
        action: BulkAction,
        job_ids: Sequence[str],
        record: RecordChange | None = None,
        *,
        states: Collection[State] | None = None,
    ) -> JobChanges:
        return self._data.run_atomically(
            lambda step: operations.change_jobs(step, action, job_ids, record, states)
        )

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

    async def put_record(
        self, record: NewRecord, *, version: int | None = None, keep: int | None = None
    ) -> RecordPut:
        return self._data.run_atomically(
            lambda step: records.put_record(step, record, version, keep)
        )

    async def delete_record(self, kind: RecordKind, record_id: str) -> bool:
        return self._data.run_atomically(lambda step: records.delete_record(step, kind, record_id))

    async def prune(self, keep: Retention, limit: int) -> int:
        return self._data.run_atomically(lambda step: operations.prune(step, keep, limit))
