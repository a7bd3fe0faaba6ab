"""List, pause and resume queues."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime

from nimburion.actions.operator import SubjectActions
from nimburion.core.diagnosis.unserved import QueueSummary, is_live, summarize_queues
from nimburion.core.errors import InvalidJob, PastTime
from nimburion.core.queries import COUNT_BUDGET
from nimburion.core.size_limits import check_name

Names = list[str]


class QueueActions(SubjectActions):
    """List, pause and resume queues: `processor.queues`."""

    async def list(self, *, exact: bool = False) -> AsyncIterator[QueueSummary]:
        """Iterate over the queues that hold jobs or are paused, by name. Use it with `async for`.

        `unserved` of a queue has the names whose waiting jobs no live worker takes.

        SQLite and PostgreSQL count up to about 10,000 waiting jobs. If there may be more, the
        numbers are marked (`size_complete`, `scheduled_complete`). `exact` counts all, which takes
        long where millions wait.
        """
        reads = self._backend.reads
        found = await reads.list_queues(budget=None if exact else COUNT_BUDGET)
        for queue in summarize_queues(found, await reads.list_sessions()):
            yield queue

    async def pause(
        self,
        queue: str,
        *,
        reason: str = "",
        seconds: float | None = None,
        until: datetime | None = None,
    ) -> float | None:
        """Start no more jobs of a queue until it is resumed. Running jobs continue.

        Return when the pause ends by itself, in epoch seconds; None: with `resume`.

        ```python
        await processor.queues.pause("mail", reason="the provider is down", seconds=600)
        ```

        Errors:

        - `InvalidJob`: both `seconds` and `until` are given, `seconds` is not above 0, or `until`
          has no time zone.
        - `PastTime`: `until` has passed.
        """
        check_name("queue", queue)
        async with self._operator.record(
            self._backend, "queue.pause", queue, **_describe(reason, seconds, until)
        ):
            end = await self._find_end(seconds, until)
            await self._pause((queue,), reason, end)
        return end

    async def resume(self, queue: str) -> None:
        """Start the jobs of a paused queue again."""
        check_name("queue", queue)
        async with self._operator.record(self._backend, "queue.resume", queue):
            await self._backend.maintenance.pause_queue(queue, paused=False)

    async def pause_all(
        self, *, reason: str = "", seconds: float | None = None, until: datetime | None = None
    ) -> tuple[Names, float | None]:
        """Pause each queue that holds a job or that a live worker serves.

        Queues that are paused already keep their pause, and a queue that is used later is not
        paused. Return the names, and what `pause` returns. Raises the errors of `pause`.
        """
        backend = self._backend
        details = _describe(reason, seconds, until)
        async with self._operator.record(backend, "queue.pause_all", **details) as change:
            end = await self._find_end(seconds, until)
            found = await backend.reads.list_queues(budget=None)
            sessions = await backend.reads.list_sessions()
            served = {queue for one in sessions if is_live(one) for queue in one.queues}
            paused = {queue.name for queue in found if queue.paused}
            names = sorted({queue.name for queue in found}.union(served) - paused)
            await self._pause(names, reason, end)
            change.count = len(names)
        return names, end

    async def resume_all(self) -> Names:
        """Start the jobs of all paused queues again, and return their names."""
        async with self._operator.record(self._backend, "queue.resume_all") as change:
            found = await self._backend.reads.list_queues()
            names = sorted(queue.name for queue in found if queue.paused)
            for name in names:
                await self._backend.maintenance.pause_queue(name, paused=False)
            change.count = len(names)
        return names

    async def _pause(self, queues: Iterable[str], reason: str, end: float | None) -> None:
        for queue in queues:
            await self._backend.maintenance.pause_queue(
                queue, paused=True, by=self._operator.name, reason=reason, until=end
            )

    async def _find_end(self, seconds: float | None, until: datetime | None) -> float | None:
        """Return when a pause ends, in epoch seconds on the backend's clock."""
        if seconds is not None and until is not None:
            raise InvalidJob("give either the seconds of a pause or its end, not both")
        if seconds is not None:
            if not 0 < seconds < math.inf:
                raise InvalidJob(
                    f"a pause must have a number of seconds above 0, not {seconds:g}; leave them "
                    "out for a pause without an end"
                )
            return await self._backend.now() + seconds
        if until is None:
            return None
        if until.utcoffset() is None:
            raise InvalidJob(
                f"until must have a time zone, {until!r} has none: "
                "datetime(…, tzinfo=timezone.utc), or .astimezone() for the local one"
            )
        end = until.timestamp()
        if end <= await self._backend.now():
            raise PastTime("until: this time is past, so nothing would be paused; give a later one")
        return end


def _describe(reason: str, seconds: float | None, until: datetime | None) -> dict[str, object]:
    return {
        "reason": reason,
        "for": None if seconds is None else float(seconds),
        "until": None if until is None else until.astimezone(UTC).isoformat(),
    }
