"""`SQLiteMaintaining`: what operators change, and what is pruned."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from nimburion.backends.sqlite import limits, operations, records, sessions, tenants
from nimburion.backends.sqlite.file import SQLiteFile
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


class SQLiteMaintaining(Maintaining):
    """The operations of `Maintaining` for the SQLite backend."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file

    async def change_jobs(
        self,
        action: BulkAction,
        job_ids: Sequence[str],
        record: RecordChange | None = None,
        *,
        states: Collection[State] | None = None,
    ) -> JobChanges:
        return await self._file.write(
            lambda db: operations.change_jobs(db, action, job_ids, record, states)
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
        await self._file.write(lambda db: operations.pause_queue(db, queue, new))

    async def send_command(self, session_id: str, command: WorkerCommand | None) -> bool:
        return await self._file.write(lambda db: sessions.send_command(db, session_id, command))

    async def set_tenant_weight(self, tenant: str, weight: float | None) -> None:
        await self._file.write(lambda db: tenants.set_tenant_weight(db, tenant, weight))

    async def change_limit(self, change: LimitChange) -> None:
        change.check()
        await self._file.write(lambda db: limits.change_limit(db, change))

    async def reset_limit(self, name: str, key: str | None = None) -> bool:
        return await self._file.write(lambda db: limits.reset_limit(db, name, key))

    async def put_record(
        self, record: NewRecord, *, version: int | None = None, keep: int | None = None
    ) -> RecordPut:
        return await self._file.write(lambda db: records.put_record(db, record, version, keep))

    async def delete_record(self, kind: RecordKind, record_id: str) -> bool:
        return await self._file.write(lambda db: records.delete_record(db, kind, record_id))

    async def prune(self, keep: Retention, limit: int) -> int:
        return await self._file.write(lambda db: operations.prune(db, keep, limit), durable=False)
