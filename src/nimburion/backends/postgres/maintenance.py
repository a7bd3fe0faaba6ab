"""`PostgresMaintaining`: what operators change, and what is pruned."""

from __future__ import annotations

from collections.abc import Sequence

from nimburion.backends.postgres import bulk_operations, operations, queries
from nimburion.backends.postgres.bulk_operations import COLUMNS
from nimburion.backends.postgres.database import (
    JOBS_PER_SECOND,
    LARGE_READ_TIMEOUT,
    PostgresDatabase,
    make_call,
)
from nimburion.backends.postgres.encoding import (
    encode_lookup_text,
    encode_text,
    to_optional_seconds,
)
from nimburion.backends.postgres.reads import PostgresInspecting
from nimburion.backends.server.encoding import decode_id, encode_id_or_empty, to_micros
from nimburion.backends.waiters import EVERY_QUEUE, make_session_name
from nimburion.core.audit import AuditRecord
from nimburion.core.backend import MAX_AUDIT_RECORDS, MAX_BULK_OPERATIONS, Maintaining
from nimburion.core.bulk_operations import BulkOperation, BulkStep, Claim, NewBulkOperation
from nimburion.core.errors import TooManyBulkOperations
from nimburion.core.fairness import WEIGHT_UNITS, to_weight_units
from nimburion.core.limits import LimitChange
from nimburion.core.metrics.statistics import MERGE_AFTER, STEPS
from nimburion.core.operations import Replayed, Retention
from nimburion.core.queries import JobFilter
from nimburion.core.session import WorkerCommand

_CHANGE_LIMIT = make_call("change_limit_1", 10)
_RESET_LIMIT = make_call("reset_limit_1", 4)
_PAUSE = make_call("pause_queue_1", 6)
_PRUNE = make_call("prune_jobs_1", 8)
_UNMERGED_STATISTICS = """SELECT * FROM {schema}.list_unmerged_statistics_1(
    {schema}.get_read_time_1($1), $2, $3, $4)"""
_MERGE_STATISTICS = make_call("merge_statistics_1", 11)
_TENANTS_PER_PRUNE = 1_000
"""The most shares and the most lanes of tenants that one prune reads. Exchanges and enqueues of
these tenants wait for it. It is larger than the batches of jobs that workers prune, so lanes are
read faster than jobs leave them.
"""
_MERGED_AT_ONCE = 1_000
"""The largest number of rows of statistics that one call merges into."""
_BULK_COLUMNS = ", ".join(f"(f.operation).{name.strip()}" for name in COLUMNS.split(","))
_START_BULK_OPERATION = make_call("start_bulk_operation_1", 4)
_CLAIM_BULK_OPERATION = f"""SELECT f.wait, {_BULK_COLUMNS}
    FROM {{schema}}.claim_bulk_operation_1($1, $2) f"""  # noqa: S608 - names of ours
_ADVANCE_BULK_OPERATION = f"""SELECT f.outcome, f.to_notify, {_BULK_COLUMNS}
    FROM {{schema}}.advance_bulk_operation_1($1, $2, $3, $4, $5, $6, $7, $8) f"""  # noqa: S608
_CANCEL_BULK_OPERATION = f"""SELECT {COLUMNS}
    FROM {{schema}}.cancel_bulk_operation_1($1, $2) f"""  # noqa: S608 - names of ours


class PostgresMaintaining(Maintaining):
    """The operations of `Maintaining` for the PostgreSQL backend."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def replay(self, which: JobFilter, limit: int, after: str | None = None) -> Replayed:
        which.check_selects()
        rows = await self._database.fetch(
            "SELECT * FROM {schema}.replay_jobs_1($1, $2, $3, $4, $5, $6, $7, $8)",
            self._database.now(),
            *queries.encode_filter(which, which.failed_states),
            queries.encode_cursor(after),
            limit,
        )
        self._database.notify({queue for _, job_id, replayed, queue in rows if job_id and replayed})
        return operations.decode_replayed(rows)

    async def make_due(self, job_ids: Sequence[str]) -> list[str]:
        ids = [encode_id_or_empty(job_id) for job_id in job_ids]
        statement = "SELECT * FROM {schema}.make_due_1($1, $2)"
        rows = await self._database.fetch(statement, self._database.now(), ids)
        self._database.notify({queue for _, queue in rows})
        changed = {decode_id(job_id) for job_id, _ in rows}
        return [job_id for job_id in dict.fromkeys(job_ids) if job_id in changed]

    async def delete(self, which: JobFilter, limit: int) -> list[str]:
        which.check_selects()
        rows = await self._database.fetch(
            "SELECT * FROM {schema}.delete_jobs_1($1, $2, $3, $4, $5, $6, $7)",
            self._database.now(),
            *queries.encode_filter(which, which.finished_states),
            limit,
        )
        return [decode_id(row[0]) for row in rows]

    async def pause_queue(
        self,
        queue: str,
        *,
        paused: bool,
        by: str = "",
        reason: str = "",
        until: float | None = None,
    ) -> None:
        arguments = operations.encode_pause(queue, paused=paused, by=by, reason=reason, until=until)
        await self._database.fetch(_PAUSE, self._database.now(), *arguments)
        if not paused:
            self._database.notify([queue])

    async def send_command(self, session_id: str, command: WorkerCommand | None) -> bool:
        statement = """UPDATE {schema}.session SET command = $2
            WHERE id = $1 AND ended_at IS NULL RETURNING 1"""
        if not await self._database.fetch(statement, encode_lookup_text(session_id), command):
            return False
        self._database.notify([make_session_name(session_id)])
        return True

    async def set_tenant_weight(self, tenant: str, weight: float | None) -> None:
        units = WEIGHT_UNITS if weight is None else to_weight_units(weight)
        statement = "SELECT {schema}.set_tenant_weights_1($1, $2)"
        await self._database.fetch(statement, [encode_text(tenant)], [units])

    async def change_limit(self, change: LimitChange) -> None:
        change.check()
        arguments = operations.encode_limit_change(change)
        await self._database.fetch(_CHANGE_LIMIT, self._database.now(), *arguments)
        self._database.notify([EVERY_QUEUE])

    async def reset_limit(self, name: str, key: str | None = None) -> bool:
        arguments = operations.encode_limit_reset(name, key)
        ((existed,),) = await self._database.fetch(_RESET_LIMIT, self._database.now(), *arguments)
        self._database.notify([EVERY_QUEUE])
        return bool(existed)

    async def put_audit(self, record: AuditRecord, *, keep: int = MAX_AUDIT_RECORDS) -> None:
        arguments = operations.encode_audit(record, keep)
        await self._database.fetch(
            "SELECT {schema}.put_audit_1($1, $2, $3, $4)", self._database.now(), *arguments
        )

    async def start_bulk_operation(
        self, operation: NewBulkOperation, *, keep: int = MAX_BULK_OPERATIONS
    ) -> BulkOperation:
        operation.check()
        arguments = bulk_operations.encode_new(operation, keep)
        ((oldest,),) = await self._database.fetch(
            _START_BULK_OPERATION, self._database.now(), *arguments
        )
        if oldest is not None:
            raise TooManyBulkOperations(oldest)
        return await PostgresInspecting(self._database).get_bulk_operation(operation.id)

    async def claim_bulk_operation(self, ttl: float) -> Claim:
        ((wait, *columns),) = await self._database.fetch(
            _CLAIM_BULK_OPERATION, self._database.now(), to_micros(ttl)
        )
        if columns[0] is None:
            return Claim(None, to_optional_seconds(wait))
        return Claim(bulk_operations.decode_operation(columns, ""))

    async def advance_bulk_operation(
        self, operation_id: str, fence: int, step: BulkStep
    ) -> BulkOperation:
        step.check()
        arguments = bulk_operations.encode_step(operation_id, fence, step)
        ((outcome, notified, *columns),) = await self._database.fetch(
            _ADVANCE_BULK_OPERATION,
            self._database.now(),
            *arguments,
            extra_time=len(step.ids) / JOBS_PER_SECOND,
        )
        self._database.notify(notified)
        return bulk_operations.decode_advanced(outcome, columns, operation_id)

    async def cancel_bulk_operation(self, operation_id: str) -> BulkOperation:
        (columns,) = await self._database.fetch(
            _CANCEL_BULK_OPERATION, self._database.now(), encode_lookup_text(operation_id)
        )
        return bulk_operations.decode_operation(columns, operation_id)

    async def prune(self, keep: Retention, limit: int) -> int:
        arguments = operations.encode_retention(keep)
        ((count,),) = await self._database.fetch(
            _PRUNE, self._database.now(), *arguments, limit, extra_time=LARGE_READ_TIMEOUT
        )
        await self._merge_statistics()
        await self._database.fetch("SELECT {schema}.prune_limit_keys_1($1)", self._database.now())
        await self._database.fetch("SELECT {schema}.forget_tenants_1($1)", _TENANTS_PER_PRUNE)
        await self._database.fetch("SELECT {schema}.prune_tenant_lanes_1($1)", _TENANTS_PER_PRUNE)
        await self._database.fetch("SELECT {schema}.maintain_partitions_1()")
        return int(count)

    async def _merge_statistics(self) -> None:
        """Merge the old rows of different processes. Another process may do so at the same time."""
        while True:
            rows = await self._database.fetch(
                _UNMERGED_STATISTICS,
                self._database.now(),
                list(STEPS),
                round(MERGE_AFTER),
                _MERGED_AT_ONCE,
            )
            if not rows:
                return
            arguments = operations.merge_statistics(rows)
            ((is_merged,),) = await self._database.fetch(_MERGE_STATISTICS, *arguments)
            if not is_merged or len(rows) < _MERGED_AT_ONCE:
                return
