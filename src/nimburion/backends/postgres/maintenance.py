"""`PostgresMaintaining`: what operators change, and what is pruned."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from nimburion.backends.postgres import records
from nimburion.backends.postgres.database import (
    JOBS_PER_SECOND,
    LARGE_READ_TIMEOUT,
    PostgresDatabase,
    make_call,
)
from nimburion.backends.postgres.encoding import (
    encode_lookup_text,
    encode_text,
    reject_unstorable_text,
)
from nimburion.backends.server.encoding import encode_json
from nimburion.backends.waiters import ALL_WORKERS, EVERY_QUEUE, make_session_name
from nimburion.core.backend import Maintaining
from nimburion.core.bulk_operations import BulkAction, check_job_ids
from nimburion.core.fairness import WEIGHT_UNITS, to_weight_units
from nimburion.core.flows import MAX_CLOSED
from nimburion.core.job import State
from nimburion.core.limits import LimitChange
from nimburion.core.maintenance import JobChanges, Retention
from nimburion.core.metrics.statistics import (
    MERGE_AFTER,
    STEPS,
    Counters,
    Statistics,
    add_statistics,
)
from nimburion.core.records import (
    NewRecord,
    RecordChange,
    RecordKind,
    RecordPut,
)
from nimburion.core.session import WorkerCommand, is_stored
from nimburion.core.timing.clock import to_micros

_CHANGE_LIMIT = make_call("change_limit_1", 10)
_RESET_LIMIT = make_call("reset_limit_1", 4)
_PAUSE = make_call("pause_queue_1", 6)
_PRUNE = make_call("prune_jobs_1", 8)
_CLOSE_LATE_FLOWS = make_call("close_late_flows_1", 3)
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
_KEPT_RECORD = ", ".join(f"(f.kept).{column}" for column in records.COLUMNS)
_PUT_RECORD = f"""SELECT f.outcome, {_KEPT_RECORD}
    FROM {{schema}}.put_record_1($1, $2, $3, $4, $5, $6, $7) f"""  # noqa: S608 - names of ours
_CHANGE_JOBS = make_call("change_jobs_1", 4)
_CHANGE_JOBS_AND_RECORD = f"""SELECT f.changed, f.held, f.to_notify, {_KEPT_RECORD}
    FROM {{schema}}.change_jobs_and_record_1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) f"""  # noqa: S608
_decode_counters = msgspec.json.Decoder(Counters).decode


class PostgresMaintaining(Maintaining):
    """The operations of `Maintaining` for the PostgreSQL backend."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def change_jobs(
        self,
        action: BulkAction,
        job_ids: Sequence[str],
        record: RecordChange | None = None,
        *,
        states: Collection[State] | None = None,
    ) -> JobChanges:
        check_job_ids(job_ids)
        allowed = sorted(action.narrow_states(states))
        arguments = [self._database.now(), action, records.encode_ids(job_ids), allowed]
        extra = len(job_ids) / JOBS_PER_SECOND
        if record is None:
            ((changed, held, notified),) = await self._database.fetch(
                _CHANGE_JOBS, *arguments, extra_time=extra
            )
            kept = None
        else:
            ((changed, held, notified, *columns),) = await self._database.fetch(
                _CHANGE_JOBS_AND_RECORD,
                *arguments,
                *records.encode_change(record),
                extra_time=extra,
            )
            kept = records.decode_record(columns)
        self._database.notify(notified)
        return records.decode_changes(job_ids, changed, held, kept)

    async def pause_queue(
        self,
        queue: str,
        *,
        paused: bool,
        by: str = "",
        reason: str = "",
        until: float | None = None,
    ) -> None:
        arguments = encode_pause(queue, paused=paused, by=by, reason=reason, until=until)
        await self._database.fetch(_PAUSE, self._database.now(), *arguments)
        if not paused:
            self._database.get_connections().notifications.notify({queue: ALL_WORKERS})

    async def send_command(self, session_id: str, command: WorkerCommand | None) -> bool:
        statement = """UPDATE {schema}.session
            SET command = CASE WHEN $2 THEN $3 ELSE command END
            WHERE id = $1 AND ended_at IS NULL RETURNING 1"""
        arguments = (encode_lookup_text(session_id), is_stored(command), command)
        if not await self._database.fetch(statement, *arguments):
            return False
        self._database.notify([make_session_name(session_id)])
        return True

    async def set_tenant_weight(self, tenant: str, weight: float | None) -> None:
        units = WEIGHT_UNITS if weight is None else to_weight_units(weight)
        statement = "SELECT {schema}.set_tenant_weights_1($1, $2)"
        await self._database.fetch(statement, [encode_text(tenant)], [units])

    async def change_limit(self, change: LimitChange) -> None:
        change.check()
        arguments = encode_limit_change(change)
        await self._database.fetch(_CHANGE_LIMIT, self._database.now(), *arguments)
        self._database.notify([EVERY_QUEUE])

    async def reset_limit(self, name: str, key: str | None = None) -> bool:
        arguments = encode_limit_reset(name, key)
        ((existed,),) = await self._database.fetch(_RESET_LIMIT, self._database.now(), *arguments)
        self._database.notify([EVERY_QUEUE])
        return bool(existed)

    async def put_record(
        self, record: NewRecord, *, version: int | None = None, keep: int | None = None
    ) -> RecordPut:
        arguments = records.encode_put(record, version, keep)
        ((outcome, *columns),) = await self._database.fetch(
            _PUT_RECORD, self._database.now(), *arguments
        )
        return records.decode_put(outcome, columns)

    async def delete_record(self, kind: RecordKind, record_id: str) -> bool:
        statement = "DELETE FROM {schema}.record WHERE kind = $1 AND id = $2 RETURNING 1"
        return bool(await self._database.fetch(statement, *records.encode_lookup(kind, record_id)))

    async def prune(self, keep: Retention, limit: int) -> int:
        arguments = encode_retention(keep)
        if keep.open_flows is not None:
            await self._database.fetch(
                _CLOSE_LATE_FLOWS, self._database.now(), to_micros(keep.open_flows), MAX_CLOSED
            )
        ((count,),) = await self._database.fetch(
            _PRUNE, self._database.now(), *arguments, limit, extra_time=LARGE_READ_TIMEOUT
        )
        await self._merge_statistics()
        await self._database.fetch("SELECT {schema}.prune_limit_uses_1($1)", self._database.now())
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
            arguments = merge_statistics(rows)
            ((is_merged,),) = await self._database.fetch(_MERGE_STATISTICS, *arguments)
            if not is_merged or len(rows) < _MERGED_AT_ONCE:
                return


@reject_unstorable_text
def encode_pause(
    queue: str, *, paused: bool, by: str, reason: str, until: float | None
) -> list[Any]:
    """Return the arguments of `pause_queue_1` after the time."""
    ends_at = None if until is None else to_micros(until)
    return [encode_text(queue), paused, encode_text(by), encode_text(reason), ends_at]


@reject_unstorable_text
def encode_limit_change(change: LimitChange) -> list[Any]:
    """Return the arguments of `change_limit_1` after the time."""
    rate = change.rate
    return [
        encode_text(change.name),
        change.key is not None,
        encode_text(change.key or ""),
        change.concurrency,
        *((None,) * 3 if rate is None else (encode_text(rate.rate), rate.interval, rate.burst)),
        encode_text(change.by),
        encode_text(change.reason),
    ]


def encode_limit_reset(name: str, key: str | None) -> list[Any]:
    """Return the arguments of `reset_limit_1` after the time."""
    return [encode_lookup_text(name), key is not None, encode_lookup_text(key or "")]


def encode_retention(keep: Retention) -> list[Any]:
    """Return the arguments of `prune_jobs_1` that precede its limit."""
    spans = (keep.completed, keep.failed, keep.results)
    return [
        *(None if span is None else to_micros(span) for span in spans),
        keep.completed_max,
        list(STEPS),
        [round(seconds) for seconds in STEPS.values()],
    ]


def merge_statistics(rows: list[Any]) -> list[Any]:
    """Return the arguments of `merge_statistics_1` for the rows of `list_unmerged_statistics_1`."""
    old = [
        (*key, source, counters)
        for *key, sources, all_counters in rows
        for source, counters in zip(sources, all_counters, strict=True)
    ]
    merged = add_statistics(
        Statistics(
            step=step, start=start, queue=queue, name=name, counters=_decode_counters(counters)
        )
        for step, start, queue, name, _, counters in old
    )
    return [
        *(list(column) for column in zip(*old, strict=True)),
        [row.step for row in merged],
        [row.start for row in merged],
        [row.queue for row in merged],
        [row.name for row in merged],
        [encode_json(row.counters).decode() for row in merged],
    ]
