"""`SQLiteProducing`: enqueue and cancel jobs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nimburion.backends.sqlite import enqueue as enqueueing
from nimburion.backends.sqlite import operations, statistics
from nimburion.backends.sqlite.file import SQLiteFile
from nimburion.backends.sqlite.transactions import make_transaction
from nimburion.core.backend import BlockingProducing, Producing, Transactional
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.operations import Cancellation
from nimburion.core.transactions import CallerConnection, EnqueueCount, Transaction


class SQLiteProducing(Producing, BlockingProducing, Transactional):
    """The operations of `Producing` for the SQLite backend."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        # The whole call is atomic.
        if not jobs:
            return []
        return await self._file.write(partial(enqueueing.enqueue_jobs, jobs=jobs))

    def enqueue_blocking(self, jobs: Sequence[NewJob], timeout: float) -> list[Enqueued]:
        if not jobs:
            return []
        return self._file.get_writer().run(partial(enqueueing.enqueue_jobs, jobs=jobs), timeout)

    async def cancel(self, job_id: str) -> Cancellation:
        return await self._file.write(lambda db: operations.cancel(db, job_id))

    async def enqueue_in(
        self, connection: CallerConnection, jobs: Sequence[NewJob]
    ) -> list[Enqueued]:
        return await self._file.get_caller_transactions().enqueue_in(connection, jobs)

    async def take_enqueue_counts(self, min_age: float) -> list[EnqueueCount]:
        return await self._file.write(
            lambda db: statistics.take_enqueue_counts(db, min_age), durable=False
        )

    def transaction(self, connection: CallerConnection | None) -> Transaction:
        # Without a caller's connection, the transaction provides a `sqlite3.Connection`.
        return make_transaction(self._file.get_caller_transactions(), connection, self._file.clock)
