"""The half of the PostgreSQL store that no worker calls: what operators, readers and schedulers
do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

from nimburion.backends.packing import asked_id, unpack_id
from nimburion.backends.postgres import enqueueing, inspecting, maintaining, scheduling
from nimburion.backends.postgres.records import asked_text
from nimburion.core.job import JobRecord, NewJob, State
from nimburion.core.reading import (
    EVERY_JOB,
    Cancellation,
    Fired,
    JobFilter,
    Overlap,
    Page,
    QueueInfo,
    Replayed,
    Retention,
    ScheduleRecord,
)
from nimburion.core.session import SessionInfo

_LARGE = 60.0
"""Seconds that what reads much of a long history may take, beyond the timeout."""


class Operating(ABC):
    """Operations of `Maintaining`, `Inspecting` and `Scheduling`, and `cancel`."""

    __slots__ = ()

    @abstractmethod
    async def _ask(self, statement: str, *arguments: Any, extra: float = 0.0) -> list[Any]:
        """Run a statement: its rows. It may take `extra` seconds above the timeout."""

    @abstractmethod
    def _now(self) -> int | None:
        """The time of a test's clock."""

    @abstractmethod
    def _mono(self) -> int | None:
        """The time of a test's clock that sessions live by."""

    @abstractmethod
    def _ring(self, queues: Collection[str]) -> None:
        """Ring queues."""

    # --- operators ---

    async def cancel(self, job_id: str) -> Cancellation:
        """See `Backend.cancel`."""
        statement = "SELECT * FROM nb.cancel_1($1, $2)"
        ((answer, rung),) = await self._ask(statement, self._now(), asked_id(job_id))
        self._ring([] if rung is None else [rung])
        return maintaining.cancellation_of(answer, job_id)

    async def replay(self, which: JobFilter, limit: int, after: str | None = None) -> Replayed:
        """See `Backend.replay`."""
        rows = await self._ask(
            "SELECT * FROM nb.replay_1($1, $2, $3, $4, $5, $6, $7, $8)",
            self._now(),
            *inspecting.filter_of(which, maintaining.failed_of(which)),
            inspecting.seq_of(after),
            limit,
        )
        self._ring({queue for _, job_id, replayed, queue in rows if job_id and replayed})
        return maintaining.replayed_of(rows)

    async def delete(self, which: JobFilter, limit: int) -> list[str]:
        """See `Backend.delete`."""
        rows = await self._ask(
            "SELECT * FROM nb.delete_1($1, $2, $3, $4, $5, $6, $7)",
            self._now(),
            *inspecting.filter_of(which, maintaining.finished_of(which)),
            limit,
        )
        return [unpack_id(row[0]) for row in rows]

    async def pause(self, queue: str, *, paused: bool) -> None:
        """See `Backend.pause`."""
        await self._ask("SELECT nb.pause_1($1, $2)", queue, paused)
        if not paused:
            self._ring([queue])

    async def prune(self, keep: Retention, limit: int) -> int:
        """See `Backend.prune`."""
        asked = maintaining.pruning_of(keep)
        statement = "SELECT nb.prune_1($1, $2, $3, $4, $5, $6)"
        ((count,),) = await self._ask(statement, self._now(), *asked, limit, extra=_LARGE)
        await self._ask("SELECT nb.days_1()")
        return int(count)

    # --- readers ---

    async def get(self, job_id: str) -> JobRecord:
        """See `Backend.get`."""
        rows = await self._ask(
            "SELECT * FROM nb.get_1(nb.time_1($1), ARRAY[$2]::bytea[], true)",
            self._now(),
            asked_id(job_id),
        )
        return inspecting.record_of(rows, job_id)

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
    ) -> Page:
        """See `Backend.list_jobs`."""
        now = self._now()
        found = await self._ask(
            "SELECT seq, id FROM nb.seek_1(nb.time_1($1), $2, $3, $4, $5, $6, $7, $8)",
            now,
            *inspecting.filter_of(which, which.states),
            inspecting.seq_of(after),
            limit + 1,
            extra=_LARGE,
        )
        ids = [packed for _, packed in found[:limit]]
        rows = await self._ask("SELECT * FROM nb.get_1(nb.time_1($1), $2, $3)", now, ids, payloads)
        return inspecting.page_of(rows, [seq for seq, _ in found], limit)

    async def counts(self, queue: str | None = None) -> dict[State, int]:
        """See `Backend.counts`."""
        asked = None if queue is None else asked_text(queue)
        statement = "SELECT * FROM nb.counts_1(nb.time_1($1), $2)"
        return inspecting.counts_of(await self._ask(statement, self._now(), asked, extra=_LARGE))

    async def queues(self) -> list[QueueInfo]:
        """See `Backend.queues`."""
        statement = "SELECT * FROM nb.queues_2(nb.time_1($1))"
        return inspecting.queues_of(await self._ask(statement, self._now()))

    async def sessions(self) -> list[SessionInfo]:
        """See `Backend.sessions`."""
        statement = "SELECT * FROM nb.sessions_1(nb.time_1($1))"
        return inspecting.sessions_of(await self._ask(statement, self._mono()))

    # --- schedules ---

    async def put_schedule(self, schedule: ScheduleRecord) -> None:
        """See `Backend.put_schedule`."""
        asked = scheduling.schedule_of(schedule)
        await self._ask("SELECT nb.put_schedule_1($1, $2, $3, $4, $5, $6)", *asked)

    async def list_schedules(self) -> list[ScheduleRecord]:
        """See `Backend.list_schedules`."""
        columns = "name, spec, owner, paused, last_tick, last_job"
        return scheduling.schedules_of(await self._ask(f"SELECT {columns} FROM nb.schedule"))  # noqa: S608

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """See `Backend.pause_schedule`."""
        statement = "UPDATE nb.schedule SET paused = $2 WHERE name = $1 RETURNING 1"
        return bool(await self._ask(statement, asked_text(name), paused))

    async def delete_schedule(self, name: str) -> bool:
        """See `Backend.delete_schedule`."""
        statement = "DELETE FROM nb.schedule WHERE name = $1 RETURNING 1"
        return bool(await self._ask(statement, asked_text(name)))

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        """See `Backend.fire`."""
        asked = enqueueing.arguments_of([job])
        places = ", ".join(f"${n}" for n in range(1, 6 + len(asked)))
        (row,) = await self._ask(
            f"SELECT * FROM nb.fire_1({places})",  # noqa: S608
            self._now(),
            asked_text(name),
            expected_last,
            tick,
            overlap,
            *asked,
        )
        fired = scheduling.fired_of(row)
        if fired.job_id is not None:
            self._ring([job.queue])
        return fired
