"""SQLAlchemy: enqueue with a transaction that the backend cannot join.

If the jobs live in the database of the application (SQLite, PostgreSQL), neither class is needed:
pass the session as `connection=` to `enqueue`. With Redis or another database there are two ways:

- `Outbox` is safe. The job is a row of your transaction; a relay enqueues it after the commit.
- `enqueue_after_commit` is simple. A job is lost if the process dies between commit and enqueue.

```python
outbox = Outbox(processor, Base.metadata)
processor.add_service(OutboxRelay(outbox, engine))

async with AsyncSession(engine) as session, session.begin():
    session.add(order)
    outbox.add(session, SendReceipt(order=order.number))
```
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, NamedTuple, TypeVar, Unpack

import msgspec

from nimburion.core.errors import DuplicateJob, InvalidJob, JobConflict, Unstorable
from nimburion.core.job import NewJob
from nimburion.core.service import Periodic
from nimburion.integrations import explain_missing
from nimburion.jobs.client.client import enqueue_prepared, prepare_job

try:
    from sqlalchemy import (
        BigInteger,
        Column,
        Connection,
        Engine,
        Float,
        Integer,
        LargeBinary,
        MetaData,
        String,
        Table,
        delete,
        event,
        insert,
        select,
    )
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session, SessionTransaction, registry, scoped_session
    from sqlalchemy.util import await_only
except ModuleNotFoundError as _missing:
    raise explain_missing(_missing, "sqlalchemy") from None

if TYPE_CHECKING:
    from nimburion.jobs.client.client import Client
    from nimburion.jobs.declaration.job import AnyJob
    from nimburion.jobs.declaration.options import EnqueueManyOptions
    from nimburion.jobs.processor import Processor

__all__ = ["Outbox", "OutboxRelay", "enqueue_after_commit"]

_log = logging.getLogger("nimburion.jobs")

T = TypeVar("T")

_ROWS_PER_STEP = 100
"""The most jobs that the relay enqueues before it deletes their rows."""
_PENDING = "nimburion_pending"
"""The key of the jobs to enqueue after the commit, in `Session.info`."""


class Outbox:
    """A table of jobs that were stored in a transaction of the application.

    The table is part of `metadata`, so your migrations create it: Alembic sees it as one of your
    own tables, and so does `metadata.create_all`.
    """

    def __init__(
        self, processor: Processor, metadata: MetaData, name: str = "nimburion_outbox"
    ) -> None:
        self.processor: Processor = processor
        self.table: Table = Table(
            name,
            metadata,
            Column(
                "position",
                BigInteger().with_variant(Integer(), "sqlite"),
                primary_key=True,
                autoincrement=True,
            ),
            Column("job_id", String(128), nullable=False),
            Column("name", String(128), nullable=False),
            Column("created_at", Float, nullable=False),
            Column("job", LargeBinary, nullable=False),
        )
        self._row_class = type("OutboxRow", (), {})
        registry(metadata=metadata).map_imperatively(self._row_class, self.table)

    def add(
        self,
        session: Session | AsyncSession | scoped_session[Session] | Connection,
        job: AnyJob,
        **options: Unpack[EnqueueManyOptions],
    ) -> str:
        """Store a job in the transaction of `session`, and return its id.

        The options are those of `enqueue_many`. `after` counts from now, not from the commit. A
        session writes the row with its next flush, a `Connection` writes it at once. Raises
        `InvalidJob`, as `enqueue` does.
        """
        new = prepare_job(self.processor, job, **options)
        now = self.processor.clock.now()
        new = msgspec.structs.replace(new, at=new.due_at(now), after=0.0)
        values = {
            "job_id": new.id,
            "name": new.name,
            "created_at": now,
            "job": msgspec.json.encode(new),
        }
        if isinstance(session, Connection):
            session.execute(insert(self.table).values(values))
        else:
            row = self._row_class()
            for column, value in values.items():
                setattr(row, column, value)
            session.add(row)
        return new.id


class _Row(NamedTuple):
    position: int
    job: bytes


class OutboxRelay(Periodic):
    """A service that enqueues the jobs of an outbox and deletes their rows.

    Add it to a processor, so that every worker runs it: `processor.add_service(relay)`. A job keeps
    the id that `Outbox.add` returned. So a relay that dies between enqueue and delete, or two that
    read the same row, store one job.

    `engine` is an `Engine` or an `AsyncEngine` of the application's database. `interval` is the
    number of seconds between two looks at an empty outbox.
    """

    logger_name = "nimburion.jobs"

    def __init__(
        self,
        outbox: Outbox,
        engine: Engine | AsyncEngine,
        *,
        interval: float = 1.0,
        random: Random | None = None,
    ) -> None:
        jitter = random or Random()  # noqa: S311 (nothing secret)
        super().__init__(outbox.processor.clock, interval, jitter)
        self._outbox = outbox
        self._engine = engine
        self._refused: set[int] = set()
        """The positions of rows that cannot be enqueued, which the log has named."""

    async def tick(self) -> None:
        """Enqueue jobs, oldest first, until the outbox is empty or the service stops."""
        rows = await self._read_rows(None)
        while rows:
            await self._relay_rows(rows)
            if self.stopping.is_set() or len(rows) < _ROWS_PER_STEP:
                return
            rows = await self._read_rows(rows[-1].position)

    async def relay(self) -> int:
        """Enqueue at most 100 jobs and delete their rows. Return their number.

        A job whose unique key is held is dropped, with a warning. The row of a job that cannot be
        enqueued as it is stays, and an error is logged once. Raises `BackendUnavailable` if the
        backend does not answer; the rows that are not enqueued stay.
        """
        return await self._relay_rows(await self._read_rows(None))

    async def _read_rows(self, after: int | None) -> list[_Row]:
        """Return the oldest rows behind a position; None: the oldest of all."""
        table = self._outbox.table
        read = select(table.c.position, table.c.job).order_by(table.c.position)
        if after is not None:
            read = read.where(table.c.position > after)
        return await self._run(
            lambda connection: [
                _Row(*row) for row in connection.execute(read.limit(_ROWS_PER_STEP))
            ]
        )

    async def _relay_rows(self, rows: list[_Row]) -> int:
        """Enqueue the jobs of these rows, and delete the rows of those that are enqueued.

        These are deleted after an error too: once the backend keeps the record of a finished job no
        more, a second enqueue would run it again.
        """
        done: list[int] = []
        try:
            for row in rows:
                done += [row.position] if await self._relay_row(row) else []
        finally:
            if done:
                table = self._outbox.table
                used = delete(table).where(table.c.position.in_(done))
                await self._run(lambda connection: connection.execute(used))
        return len(done)

    async def _relay_row(self, row: _Row) -> bool:
        """Enqueue the job of a row. Return False if that can never succeed as it is."""
        try:
            await _enqueue(self._outbox.processor, msgspec.json.decode(row.job, type=NewJob))
        except (msgspec.MsgspecError, InvalidJob, Unstorable) as error:
            if row.position not in self._refused:
                self._refused.add(row.position)
                _log.error(
                    "the job in row %s of %s cannot be enqueued: %s; the row stays until you "
                    "correct or delete it",
                    row.position,
                    self._outbox.table.name,
                    error,
                )
            return False
        self._refused.discard(row.position)
        return True

    async def _run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction of its own; a blocking engine is used in a thread."""
        engine = self._engine
        if isinstance(engine, AsyncEngine):
            async with engine.begin() as connection:
                return await connection.run_sync(work)

        def run() -> T:
            with engine.begin() as connection:
                return work(connection)

        return await asyncio.to_thread(run)


async def _enqueue(client: Client, new: NewJob) -> None:
    try:
        await enqueue_prepared(client, new)
    except (DuplicateJob, JobConflict) as error:
        _log.warning("a job of the outbox was not enqueued, and its row is deleted: %s", error)


class _PendingJob(NamedTuple):
    job: AnyJob
    options: EnqueueManyOptions
    transaction: SessionTransaction
    """The transaction or savepoint in which it was added."""


def enqueue_after_commit(
    processor: Processor,
    session: Session | AsyncSession | scoped_session[Session],
    job: AnyJob,
    **options: Unpack[EnqueueManyOptions],
) -> None:
    """Enqueue a job when the transaction of `session` commits. After a rollback, do nothing.

    A job is lost if the process dies between commit and enqueue, or if the enqueue fails then, for
    example because the backend does not answer. A failure is logged as an error, because the commit
    cannot be undone. Use an `Outbox` for jobs that must not be lost.

    Raises `InvalidJob` for arguments and options that `enqueue` would refuse.

    A job that was added inside a savepoint is dropped when that savepoint is rolled back.
    """
    prepare_job(processor, job, **options)  # checks them now, while the transaction can fail
    is_async = isinstance(session, AsyncSession)
    if isinstance(session, AsyncSession):
        target = session.sync_session
    elif isinstance(session, scoped_session):
        target = session()
    else:
        target = session
    pending = target.info.get(_PENDING)
    if pending is None:
        pending = target.info[_PENDING] = []
        _listen(target, processor, pending, is_async=is_async)
    transaction = (
        target.get_nested_transaction() or target.get_transaction() or target.begin()
    )  # without a transaction, a rollback would not be noticed
    pending.append(_PendingJob(job, options, transaction))


def _listen(
    session: Session, processor: Processor, pending: list[_PendingJob], *, is_async: bool
) -> None:
    """Enqueue the pending jobs of a session after each commit; drop those that it rolls back."""

    def after_commit(_: Session) -> None:
        if session.in_nested_transaction():  # a savepoint was released, nothing is committed yet
            return
        jobs = pending.copy()
        pending.clear()
        for each in jobs:
            try:
                if is_async:
                    await_only(processor.enqueue(each.job, **each.options))
                else:
                    processor.sync.enqueue(each.job, **each.options)
            except Exception:  # noqa: BLE001 - the commit cannot be undone
                _log.exception("a job could not be enqueued after the commit, and is lost")

    def after_soft_rollback(_: Session, ended: SessionTransaction) -> None:
        pending[:] = [each for each in pending if not _is_within(each.transaction, ended)]

    def after_transaction_end(_: Session, ended: SessionTransaction) -> None:
        if ended.parent is None:  # `close()` ends a transaction without a rollback of its own
            after_soft_rollback(session, ended)

    event.listen(session, "after_commit", after_commit)
    event.listen(session, "after_soft_rollback", after_soft_rollback)
    event.listen(session, "after_transaction_end", after_transaction_end)


def _is_within(inner: SessionTransaction, outer: SessionTransaction) -> bool:
    """Return whether a rollback of `outer` also rolls back what was done in `inner`."""
    within: SessionTransaction | None = inner
    while within is not None and within is not outer:
        within = within.parent
    return within is outer
