"""`RedisMaintaining`: what operators change, and what is pruned."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from nimburion.backends.redis import records, sessions, statistics
from nimburion.backends.redis.encoding import (
    encode_lookup_text,
    encode_time,
    reject_unstorable_text,
)
from nimburion.backends.redis.queries import SCAN_STEP
from nimburion.backends.redis.reads import finish_read
from nimburion.backends.redis.record_format import NEVER
from nimburion.backends.redis.server import RedisServer
from nimburion.backends.server.encoding import encode_json
from nimburion.core.backend import Maintaining
from nimburion.core.bulk_operations import BulkAction, check_job_ids
from nimburion.core.job import State
from nimburion.core.limits import LimitChange
from nimburion.core.maintenance import JobChanges, Retention
from nimburion.core.records import (
    NewRecord,
    RecordChange,
    RecordKind,
    RecordPut,
)
from nimburion.core.session import WorkerCommand
from nimburion.core.timing.clock import to_micros

_ENDED_SESSION_RETENTION = 86_400.0
"""Seconds for which the id of an ended session is kept."""


class RedisMaintaining(Maintaining):
    """The operations of `Maintaining` for the Redis backend."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def change_jobs(
        self,
        action: BulkAction,
        job_ids: Sequence[str],
        record: RecordChange | None = None,
        *,
        states: Collection[State] | None = None,
    ) -> JobChanges:
        # One script runs the whole step.
        check_job_ids(job_ids)
        arguments = records.encode_changes(action, job_ids, record, states)
        reply = await self._server.run_script("change_jobs", *arguments)
        return records.decode_changes(job_ids, reply)

    async def pause_queue(
        self,
        queue: str,
        *,
        paused: bool,
        by: str = "",
        reason: str = "",
        until: float | None = None,
    ) -> None:
        arguments = encode_pause(queue, by, reason, until) if paused else encode_resume(queue)
        await self._server.run_script("pause_queue", *arguments)

    async def send_command(self, session_id: str, command: WorkerCommand | None) -> bool:
        arguments = sessions.encode_command(session_id, command)
        return bool(await self._server.run_script("send_command", *arguments))

    async def set_tenant_weight(self, tenant: str, weight: float | None) -> None:
        arguments = sessions.encode_tenant_weight(tenant, weight)
        await self._server.run_script("set_tenant_weight", *arguments)

    async def change_limit(self, change: LimitChange) -> None:
        change.check()
        await self._server.run_script("change_limit", *encode_limit_change(change))

    async def reset_limit(self, name: str, key: str | None = None) -> bool:
        arguments = encode_limit_reset(name, key)
        return bool(await self._server.run_script("change_limit", *arguments))

    async def put_record(
        self, record: NewRecord, *, version: int | None = None, keep: int | None = None
    ) -> RecordPut:
        arguments = records.encode_put(record, version, keep)
        return records.decode_put(await self._server.run_script("put_record", *arguments))

    async def delete_record(self, kind: RecordKind, record_id: str) -> bool:
        arguments = records.encode_lookup(kind, record_id)
        return bool(await self._server.run_script("delete_record", *arguments))

    async def prune(self, keep: Retention, limit: int) -> int:
        # Each script deletes up to 500 entries. Statistics expire by themselves, and the
        # sources of each interval are merged once.
        arguments, pruned, more = encode_retention(keep), 0, 1
        now, merged = b"", []
        while pruned < limit and more:
            step = min(limit - pruned, SCAN_STEP)
            count, more, now, merged = await self._server.run_script("prune", step, *arguments)
            more = more or count == step
            pruned += count
        if keep.open_flows is not None:
            await self._server.run_script("continue_flows", b"%d" % to_micros(keep.open_flows))
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


@reject_unstorable_text
def encode_pause(queue: str, by: str, reason: str, until: float | None) -> list[bytes]:
    """Return the arguments of `pause_queue.lua` that pause a queue.

    Raises:
        Unstorable: the time or a text cannot be stored.
    """
    end = NEVER if until is None else encode_time(to_micros(until))
    return [queue.encode(), end, encode_json((by, reason))]


def encode_resume(queue: str) -> list[bytes]:
    """Return the arguments of `pause_queue.lua` that resume a queue."""
    return [encode_lookup_text(queue), b"", b""]


@reject_unstorable_text
def encode_limit_change(change: LimitChange) -> list[bytes]:
    """Return the arguments of `change_limit.lua` that change a limit."""
    return [*_encode_limit(change.name, change.key), encode_json(change)]


def encode_limit_reset(name: str, key: str | None) -> list[bytes]:
    """Return the arguments of `change_limit.lua` that reset a limit."""
    return [*_encode_limit(name, key), b""]


def _encode_limit(name: str, key: str | None) -> list[bytes]:
    return [
        encode_lookup_text(name),
        b"0" if key is None else b"1",
        encode_lookup_text(key or ""),
    ]


def encode_retention(keep: Retention) -> list[bytes]:
    """Return the arguments of `prune.lua` that follow its limit."""
    spans = (keep.completed, keep.failed, keep.results)
    most = b"" if keep.completed_max is None else b"%d" % keep.completed_max
    return [*(_encode_span(span) for span in spans), most, _encode_span(_ENDED_SESSION_RETENTION)]


def _encode_span(seconds: float | None) -> bytes:
    return b"" if seconds is None else b"%d" % to_micros(seconds)
