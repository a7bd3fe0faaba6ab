"""The service of a worker that relays the jobs of an outbox to the backend."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from random import Random

import msgspec

from nimburion.core.errors import BackendUnavailable, InvalidJob, Unstorable
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.service import Periodic
from nimburion.core.timing.clock import Clock
from nimburion.jobs.outbox.outbox import Outbox, OutboxLag, WaitingRow, describe_error, get_rows

_MAX_ROWS = 100
"""The most jobs that are enqueued before their rows are deleted."""
_MAX_BYTES = 1_048_576
"""The bytes from which a page takes no further job: its enqueue must end within the timeout."""

_MAX_SHARE = 4
"""The most workers that share the polls. The fleet may have workers without this outbox, so one in
n would be too seldom."""

SendJobs = Callable[[Sequence[NewJob]], Awaitable[list[Enqueued]]]
"""Stores jobs in the backend, and returns what it did with each."""


class OutboxRelay(Periodic):
    """Enqueues the jobs of an outbox in the backend, and deletes their rows.

    A job has its id since the call of `enqueue`. So a relay that dies between enqueue and delete,
    or two that read the same row, store one job, as long as the backend keeps the job's record. The
    settings `keep_completed` and `keep_completed_max` say for how long. In a fleet, each worker
    polls one time in n, for n workers; at least one time in four.
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
        self.outbox: Outbox = outbox
        """Where the jobs come from."""
        self._rows = get_rows(outbox)
        self._send = send
        self._database = self._rows.open_database()
        self._refused: set[int] = set()
        """The positions of rows that cannot be enqueued, which the log has named."""
        self._page_rows = _MAX_ROWS
        """The most rows of the next page: fewer after the backend did not answer in time."""
        self._is_database_failing = False
        """Whether the log has said that the database of the outbox fails."""
        self._counters = self._rows.counters
        self._has_left_rows = False
        """Whether the latest poll has left rows in the outbox."""

    async def stop(self) -> None:
        """Stop the service, and close its connection."""
        await super().stop()
        await self.disconnect()

    async def disconnect(self) -> None:
        """Close the connection. The next relay opens another one."""
        await self._database.close()

    async def tick(self) -> None:
        """Relay until the outbox is empty or the service stops, then note what is left."""
        try:
            await self.relay()
        except Exception:
            with suppress(Exception):  # the first error is the one to report
                await self._measure_lag()
            raise
        await self._measure_lag()
        if self._is_database_failing:
            self._log.warning("the outbox %s can be relayed again", self._rows.table)
            self._is_database_failing = False
            self.failure = None

    async def _run_tick(self) -> None:
        """Run one tick. After an error of either database, the next tick tries again."""
        try:
            await super()._run_tick()
        except Exception as error:  # noqa: BLE001 (of any driver)
            if not self._is_database_failing:
                self._log.warning(
                    "the outbox %s cannot be relayed, its jobs wait: %s",
                    self._rows.table,
                    describe_error(error),
                )
            self._log.debug("the error of the outbox", exc_info=error)
            self._is_database_failing = True
            self.failure: BaseException | None = error

    async def _measure_lag(self) -> None:
        lag = OutboxLag(0, 0.0)
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
            limit = self._page_rows
            rows = await self._rows.read(self._database, after, limit, _MAX_BYTES)
            found += len(rows)
            total += await self._relay_rows(rows)
            if len(rows) < limit and sum(len(row.job) for row in rows) < _MAX_BYTES:
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
        except BackendUnavailable:
            self._page_rows = max(1, len(rows) // 2)
            raise
        self._page_rows = min(_MAX_ROWS, self._page_rows * 2)
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
