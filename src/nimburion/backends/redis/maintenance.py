"""`RedisMaintaining`: what operators change, and what is pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nimburion.backends.redis import bulk_operations, operations, queries, sessions, statistics
from nimburion.backends.redis.encoding import encode_lookup_text
from nimburion.backends.redis.queries import SCAN_STEP
from nimburion.backends.redis.reads import finish_read, open_scan
from nimburion.backends.redis.server import RedisServer
from nimburion.backends.server.encoding import encode_id_or_empty, to_micros
from nimburion.core.audit import AuditRecord
from nimburion.core.backend import MAX_AUDIT_RECORDS, MAX_BULK_OPERATIONS, Maintaining
from nimburion.core.bulk_operations import BulkOperation, BulkStep, Claim, NewBulkOperation
from nimburion.core.limits import LimitChange
from nimburion.core.operations import Replayed, Retention
from nimburion.core.queries import JobFilter
from nimburion.core.session import WorkerCommand


class RedisMaintaining(Maintaining):
    """The operations of `Maintaining` for the Redis backend."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def replay(self, which: JobFilter, limit: int, after: str | None = None) -> Replayed:
        # Each script checks 500 dead letters. The scan ends when `limit` jobs are found and it
        # is known whether more match.
        which.check_selects()
        scan = await open_scan(self._server, which, which.failed_states, after)
        replies: list[list[Any]] = []
        while not scan.is_finished:
            reply = await self._server.run_script("replay", *scan.make_arguments(limit))
            replies.append(reply)
            scan.advance(*reply[:2])
            limit -= len(reply[2]) + len(reply[3])
            if reply[5]:
                break
        return operations.decode_replayed(replies)

    async def make_due(self, job_ids: Sequence[str]) -> list[str]:
        # Each script changes up to 500 jobs.
        changed: list[str] = []
        ids = [encode_id_or_empty(job_id) for job_id in dict.fromkeys(job_ids)]
        for first in range(0, len(ids), SCAN_STEP):
            found = await self._server.run_script("make_due", *ids[first : first + SCAN_STEP])
            changed += queries.decode_ids(found)
        return changed

    async def delete(self, which: JobFilter, limit: int) -> list[str]:
        # Each script checks 500 finished jobs.
        which.check_selects()
        scan = await open_scan(self._server, which, which.finished_states, deletes=True)
        ids: list[str] = []
        while len(ids) < limit and not scan.is_finished:
            after, last, found = await self._server.run_script(
                "delete", *scan.make_arguments(limit - len(ids))
            )
            scan.advance(after, last)
            ids += queries.decode_ids(found)
        return ids

    async def pause_queue(
        self,
        queue: str,
        *,
        paused: bool,
        by: str = "",
        reason: str = "",
        until: float | None = None,
    ) -> None:
        if paused:
            arguments = operations.encode_pause(queue, by, reason, until)
        else:
            arguments = operations.encode_resume(queue)
        await self._server.run_script("pause_queue", *arguments)

    async def send_command(self, session_id: str, command: WorkerCommand | None) -> bool:
        arguments = sessions.encode_command(session_id, command)
        return bool(await self._server.run_script("send_command", *arguments))

    async def set_tenant_weight(self, tenant: str, weight: float | None) -> None:
        arguments = sessions.encode_tenant_weight(tenant, weight)
        await self._server.run_script("set_tenant_weight", *arguments)

    async def change_limit(self, change: LimitChange) -> None:
        change.check()
        await self._server.run_script("change_limit", *operations.encode_limit_change(change))

    async def reset_limit(self, name: str, key: str | None = None) -> bool:
        arguments = operations.encode_limit_reset(name, key)
        return bool(await self._server.run_script("change_limit", *arguments))

    async def put_audit(self, record: AuditRecord, *, keep: int = MAX_AUDIT_RECORDS) -> None:
        await self._server.run_script("put_audit", *statistics.encode_audit(record, keep))

    async def start_bulk_operation(
        self, operation: NewBulkOperation, *, keep: int = MAX_BULK_OPERATIONS
    ) -> BulkOperation:
        operation.check()
        arguments = bulk_operations.encode_new(operation, keep)
        return bulk_operations.decode_started(
            await self._server.run_script("start_bulk_operation", *arguments)
        )

    async def claim_bulk_operation(self, ttl: float) -> Claim:
        reply = await self._server.run_script("claim_bulk_operation", to_micros(ttl))
        return bulk_operations.decode_claim(reply)

    async def advance_bulk_operation(
        self, operation_id: str, fence: int, step: BulkStep
    ) -> BulkOperation:
        # One script runs the whole step.
        step.check()
        arguments = bulk_operations.encode_step(operation_id, fence, step)
        reply = await self._server.run_script("advance_bulk_operation", *arguments)
        return bulk_operations.decode_advanced(reply, operation_id)

    async def cancel_bulk_operation(self, operation_id: str) -> BulkOperation:
        reply = await self._server.run_script(
            "cancel_bulk_operation", encode_lookup_text(operation_id)
        )
        return bulk_operations.decode_operation(reply, operation_id)

    async def prune(self, keep: Retention, limit: int) -> int:
        # Each script deletes up to 500 entries. Statistics expire by themselves, and the
        # sources of each interval are merged once.
        arguments, pruned, more = operations.encode_retention(keep), 0, 1
        now, merged = b"", []
        while pruned < limit and more:
            step = min(limit - pruned, SCAN_STEP)
            count, more, now, merged = await self._server.run_script("prune", step, *arguments)
            more = more or count == step
            pruned += count
        if now:
            await self._merge_statistics(now, merged)
        return pruned

    async def _merge_statistics(self, now: bytes, merged: list[bytes]) -> None:
        keys = self._server.get_connections().keys
        for read in statistics.start_merges(now, merged):
            await finish_read(self._server, read)
            for call in statistics.encode_merges(read, keys):
                await self._server.run_script(
                    "merge_statistics", *call.arguments, more_keys=call.keys
                )
