"""The own transaction of a handler or a hook: its rows and the settlement of its job in one commit.

Unless the commit of a hook has succeeded, the worker settles the attempt afterwards as usual. The
lease token tells the backend what the settlement means. If the commit was applied, the job is
completed already. If not, the attempt ends with its own outcome. So an unknown outcome of the
commit does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from nimburion.core.errors import DefinitionError, LeaseLost, NotOpen, UseAwait
from nimburion.core.settlement import Completed
from nimburion.core.transactions import Transaction, TransactionSettlement
from nimburion.jobs.handling.loop_calls import ThreadBoundConnection, run_on_loop

if TYPE_CHECKING:
    from nimburion.jobs.handling.attempt_record import AttemptRecord

T = TypeVar("T")


class HandlerTransaction:
    """The context manager that `ctx.transaction()` returns; it yields the connection.

    Use `async with` in an `async def` function, and `with` in a `def` function. Leaving the block
    without an error commits; an error rolls back. In a handler, the commit completes the job. In a
    hook `on_failure` or `on_dead`, it stores the outcome of the failed attempt, whatever the hook
    does afterwards. `LeaseLost` is raised when another worker has the job by now; nothing was
    stored.
    """

    def __init__(
        self, record: AttemptRecord, make: Callable[[object], Transaction], connection: object
    ) -> None:
        self._record = record
        self._make = make
        self._connection = connection
        self._thread_connection: ThreadBoundConnection | None = None
        self._transaction: Transaction | None = None

    async def __aenter__(self) -> Any:  # noqa: ANN401 (the connection, of whatever driver)
        return await self._begin(self._connection)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end(undone=error is not None)

    def __enter__(self) -> Any:  # noqa: ANN401
        connection = self._connection
        if connection is not None:
            connection = self._thread_connection = ThreadBoundConnection(connection)
        return self._run_on_loop(lambda: self._begin(connection))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._run_on_loop(lambda: self._end(undone=error is not None))

    def _run_on_loop(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task = self._record.task
        if task is None:
            raise NotOpen("the attempt has ended, and its transactions with it")
        try:
            return run_on_loop(task.get_loop(), make, self._thread_connection)
        except UseAwait:
            raise UseAwait(
                "use `async with ctx.transaction()` in an `async def` handler; `with` is for `def` "
                "handlers, which run on their own threads"
            ) from None

    async def _begin(self, connection: object) -> object:
        self._choose_settlement()
        transaction = self._make(connection)
        given = await transaction.begin()
        self._transaction = transaction
        return given

    async def _end(self, *, undone: bool) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is None:
            return
        if undone:
            await transaction.rollback()
            return
        record = self._record
        try:
            settlement = self._choose_settlement()
            await transaction.settle(record.session_id, settlement)
            await transaction.commit()
        except BaseException as error:
            if isinstance(error, LeaseLost):
                record.lease_lost = error
            await transaction.rollback()
            raise
        if isinstance(settlement, Completed):
            record.completed = True
        else:
            record.failure = None

    def _choose_settlement(self) -> TransactionSettlement:
        """Return what the commit stores.

        Raises:
            DefinitionError: the attempt has failed, and this is not the first transaction of its
                hooks; or the job lost its worker.
        """
        record = self._record
        if not record.is_decided:
            return Completed(
                record.delivery.lease, record.encode_transaction_result(), record.keep_payload
            )
        if record.failure is None:
            raise DefinitionError(
                "the outcome of this attempt is decided: after an attempt has failed, one "
                "transaction of one hook can store it, and none can for a job that lost its "
                "worker. Write other rows with a connection of your own"
            )
        return record.failure
