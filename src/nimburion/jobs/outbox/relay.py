"""The service of a worker that relays the jobs of an outbox to the backend."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from random import Random

import msgspec

from nimburion.core.errors import InvalidJob, Unstorable
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.service import Periodic
from nimburion.core.timing.clock import Clock
from nimburion.jobs.outbox.outbox import Outbox, OutboxLag, WaitingRow, get_rows

_ROWS_PER_STEP = 100
"""The most jobs that are enqueued before their rows are deleted."""

_MAX_SHARE = 4
"""The most workers that share the looks. The fleet may have workers without this outbox, so one in
n would be too seldom."""

SendJobs = Callable[[Sequence[NewJob]], Awaitable[list[Enqueued]]]
"""Stores jobs in the backend, and returns what it did with each."""


class OutboxRelay(Periodic):
    """Enqueues the jobs of an outbox in the backend, and deletes their rows.

    A job has its id since the call of `enqueue`. So a relay that dies between enqueue and delete,
    or two that read the same row, store one job. In a fleet, each worker looks one time in four.
    """

    logger_name = "nimburion.jobs"

    def __init__(
        self,
        outbox: Outbox,
        send: SendJobs,
        clock: Clock,
        random: Random,
        *,
        count_workers: Callable[[], int] = lambda: 1,
    ) -> None:
        super().__init__(
            clock,
            outbox.interval,
            random,
            count_workers=lambda: min(count_workers(), _MAX_SHARE),
        )
        self._rows = get_rows(outbox)
        self._send = send
        self._database = self._rows.open_database()
        self._refused: set[int] = set()
        """The positions of rows that cannot be enqueued, which the log has named."""
        self._counters = self._rows.counters
        self._has_left_rows = False
        """Whether the latest look has left rows in the outbox."""

    async def stop(self) -> None:
        """Stop the service, and close its connection."""
        await super().stop()
        await self._database.close()

    async def tick(self) -> None:
        """Relay until the outbox is empty or the service stops, then note what is left."""
        lag = OutboxLag(0, 0.0)
        try:
            await self.relay()
        finally:
            if self._has_left_rows:
                lag = await self._rows.measure(self._database, self.clock.now())
            self._counters.jobs, self._counters.oldest_seconds = lag.jobs, lag.seconds

    async def relay(self) -> int:
        """Enqueue the jobs of the outbox, oldest first, and delete their rows. Return their number.

        A job whose unique key is held is dropped, with a warning. The row of a job that cannot be
        enqueued as it is stays, and an error is logged once. Raises `BackendUnavailable` if the
        backend does not answer; the rows that are not enqueued stay.
        """
        total, found, after = 0, 0, None
        self._has_left_rows = True
        while True:
            rows = await self._rows.read(self._database, after, _ROWS_PER_STEP)
            found += len(rows)
            total += await self._relay_rows(rows)
            if len(rows) < _ROWS_PER_STEP:
                self._has_left_rows = total < found
                return total
            if self.stopping.is_set():
                return total
            after = rows[-1].position

    async def _relay_rows(self, rows: Sequence[WaitingRow]) -> int:
        """Enqueue the jobs of these rows, and delete the rows of those that are enqueued.

        These are deleted after an error too: once the backend keeps the record of a finished job no
        more, a second enqueue would run it again.
        """
        done: list[int] = []
        try:
            if not await self._relay_together(rows, done):
                for row in rows:
                    done += [row.position] if await self._relay_row(row) else []
        finally:
            if done:
                await self._rows.delete(self._database, done)
        self._refused.difference_update(done)
        return len(done)

    async def _relay_together(self, rows: Sequence[WaitingRow], done: list[int]) -> bool:
        """Enqueue these jobs in one call; return False if the backend refused one of them."""
        if not rows:
            return True
        try:
            results = await self._send([_decode(row) for row in rows])
        except (msgspec.MsgspecError, InvalidJob, Unstorable):
            return False
        if any(_is_refused(result) for result in results):
            return False
        self._counters.relayed += len(rows)
        done += [row.position for row in rows]
        return True

    async def _relay_row(self, row: WaitingRow) -> bool:
        """Enqueue the job of a row. Return False if that can never succeed as it is."""
        try:
            job = _decode(row)
            (result,) = await self._send([job])
        except (msgspec.MsgspecError, InvalidJob, Unstorable) as error:
            if row.position not in self._refused:
                self._refused.add(row.position)
                self._log.error(
                    "the job in row %s of %s cannot be enqueued: %s; the row stays until you "
                    "correct or delete it",
                    row.position,
                    self._rows.table,
                    error,
                )
            return False
        if _is_refused(result):
            self._counters.dropped += 1
            self._log.warning(
                "the job %s %s of the outbox was not enqueued, and its row is deleted: %s",
                job.name,
                job.id,
                "another job has its id"
                if result.outcome == "conflict"
                else f"job {result.id} holds its unique key",
            )
        else:
            self._counters.relayed += 1
        return True


def _decode(row: WaitingRow) -> NewJob:
    return msgspec.json.decode(row.job, type=NewJob)


def _is_refused(result: Enqueued) -> bool:
    return result.outcome in {"conflict", "taken", "refused"}
