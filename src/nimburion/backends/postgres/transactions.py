"""Enqueue and complete jobs inside a transaction on a caller's connection.

Each operation is one statement that any driver can send, because its arguments are texts, bytes and
numbers. The server sends the notification at the commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from types import MappingProxyType
from typing import Any

import msgspec

from nimburion.backends.caller_connections.drivers import Row, describe_connection
from nimburion.backends.caller_connections.registry import ConnectionAdapter, find_adapter
from nimburion.backends.planning.flows import refuse_growth
from nimburion.backends.postgres import enqueue as enqueueing
from nimburion.backends.postgres.connection.pool import ConnectionPool
from nimburion.backends.postgres.encoding import clamp_int4, clamp_seq
from nimburion.backends.postgres.errors import DRIVER_ERRORS, map_error, map_server_error
from nimburion.backends.postgres.exchange import encode_settlement
from nimburion.backends.postgres.flows import check_graph_stored, encode_graph
from nimburion.backends.postgres.notifications import make_channel_name
from nimburion.backends.postgres.schema import insert_schema
from nimburion.backends.postgres.url import PostgresSettings
from nimburion.backends.server.encoding import encode_id, encode_json
from nimburion.backends.server.errors import (
    ErrorFactory,
    make_error_factory,
    make_not_applied_error,
)
from nimburion.core.errors import (
    BackendReadOnly,
    BackendUnavailable,
    LeaseLost,
    NimburionError,
    UnusableConnection,
)
from nimburion.core.flows import NewFlow
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.transactions import (
    CallerConnection,
    Transaction,
    TransactionSettlement,
)

_ENQUEUE = (
    "SELECT codes, holders, unknown, other FROM {schema}.enqueue_in_caller_1($1, $2, $3, $4, $5)"
)
_HAS_SCHEMA = "SELECT to_regclass('{schema}.meta') IS NOT NULL"
_IS_SAME = "SELECT count(*) = 1 FROM {schema}.meta WHERE identity = $1"
_CONTINUE_FLOWS = "SELECT {schema}.continue_flows_in_caller_1($1, $2)"
_SETTLE = "SELECT {schema}.settle_in_caller_1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
_PAYLOADS_INDEX = 6
"""The index of the payloads in the arguments of an enqueue; ids and digests precede them."""
_OTHER_DATABASE = "other database"
_NEW_LANE = "new lane"
_DONE_WITH_FLOWS = "done with flows"
_LANES = "SELECT {schema}.create_lanes_1($1, $2, $3, $4)"
_DUE_INDEX = 8
"""The index of the due times in the arguments of an enqueue. The first three arguments name the
lanes.
"""
_DRIVERS = frozenset({"asyncpg", "psycopg", "psycopg2", "pg8000"})
_WRAPPERS = frozenset({*_DRIVERS, "sqlalchemy", "django"})

Now = Callable[[], int | None]


class CallerContext:
    """The parts of an open backend that a caller's transaction needs."""

    def __init__(
        self,
        settings: PostgresSettings,
        identity: str,
        handler_pool: ConnectionPool,
        pool: ConnectionPool,
    ) -> None:
        self.settings: PostgresSettings = settings
        self.identity: str = identity
        self.pool: ConnectionPool = pool
        self.handler_pool: ConnectionPool = handler_pool
        self.channel: str = make_channel_name(settings)

    @property
    def description(self) -> str:
        """A one-line description of the backend, without secrets."""
        return self.settings.describe()

    async def check_database(self, adapter: ConnectionAdapter) -> None:
        """Raise `UnusableConnection` unless the connection is to the backend's database.

        The first statement looks for the schema, because a failed statement would abort the
        caller's transaction.
        """
        schema = self.settings.schema
        with map_errors(self.description):
            ((is_same,),) = await adapter.execute(insert_schema(_HAS_SCHEMA, schema), ())
            if is_same:
                same = insert_schema(_IS_SAME, schema)
                ((is_same,),) = await adapter.execute(same, (self.identity,))
        if not is_same:
            raise self._make_other_database_error()

    def _make_other_database_error(self) -> UnusableConnection:
        return UnusableConnection(
            f"the connection is to another database, or another nimburion schema in it, than "
            f"{self.description}: one commit cannot cover both. Give the processor an outbox"
        )

    async def call_function(
        self, adapter: ConnectionAdapter, statement: str, now: int | None, *arguments: object
    ) -> Row:
        """Run a database function inside the caller's transaction, and return its row.

        Raises:
            UnusableConnection: the connection is to another database or nimburion schema.
        """
        arguments_in_context = (now, self.identity, self.channel, *arguments)
        with map_errors(self.description):
            (row,) = await adapter.execute(
                insert_schema(statement, self.settings.schema), arguments_in_context
            )
        if row[0] == _OTHER_DATABASE:
            raise self._make_other_database_error()
        return row


async def enqueue_in(
    context: CallerContext,
    caller: CallerConnection,
    jobs: Sequence[NewJob],
    flows: Sequence[NewFlow],
    now: int | None,
) -> list[Enqueued]:
    """See `nimburion.core.backend.Transactional`."""
    adapter = find_adapter(caller)
    await check_driver_connection(context, adapter)
    if not jobs and not flows:
        await context.check_database(adapter)
        return []
    refuse_growth(flows)
    fields = enqueueing.encode_arguments(jobs)
    lanes, late = fields[:3], fields[_DUE_INDEX] is not None
    graph = encode_graph(jobs, flows) if flows else None
    arguments = encode_for_any_driver(fields, graph)
    codes, holders, unknown, other = await context.call_function(adapter, _ENQUEUE, now, *arguments)
    if codes == _NEW_LANE:
        await context.pool.fetch(insert_schema(_LANES, context.settings.schema), *lanes, late)
        codes, holders, unknown, other = await context.call_function(
            adapter, _ENQUEUE, now, *arguments
        )
        if codes == _NEW_LANE:
            raise make_not_applied_error(
                f"{context.description}: the first job of its name with a due time in the past; "
                "roll this transaction back and run all of it again"
            )
    check_graph_stored(jobs, flows, unknown, other)
    found = [holder and bytes.fromhex(holder) for holder in msgspec.json.decode(holders or "[]")]
    return enqueueing.make_results(jobs, codes, found)


def encode_for_any_driver(fields: list[Any], graph: str | None) -> tuple[str, bytes]:
    """Return the arguments of an enqueue and the graph of its flows as one JSON text, and all
    payloads as one byte string.
    """
    fields, payloads = fields.copy(), fields[_PAYLOADS_INDEX]
    begin, places = 1, []
    for payload in payloads:
        places.append((begin, len(payload)))
        begin += len(payload)
    fields[_PAYLOADS_INDEX] = places
    for place in (_PAYLOADS_INDEX - 2, _PAYLOADS_INDEX - 1):
        fields[place] = [value.hex() for value in fields[place]]
    if graph is not None:
        fields.append(msgspec.Raw(graph.encode()))
    return encode_json(fields).decode(), b"".join(payloads)


async def check_driver_connection(context: CallerContext, adapter: ConnectionAdapter) -> None:
    """Raise `UnusableConnection` if the connection cannot belong to this backend."""
    inner = await adapter.get_driver_connection()
    if _DRIVERS.isdisjoint(kind.__module__.partition(".")[0] for kind in type(inner).__mro__):
        raise UnusableConnection(
            f"{describe_connection(inner)} is no connection to this backend: {context.description}"
        )


async def settle_job(
    context: CallerContext,
    adapter: ConnectionAdapter,
    now: int | None,
    arguments: tuple[object, ...],
) -> str:
    """Settle a job as the last statement before a commit. Return its outcome: `done`, …"""
    (code,) = await context.call_function(adapter, _SETTLE, now, *arguments)
    return str(code)


def make_transaction(
    context: CallerContext, caller: CallerConnection | None, now: Now
) -> Transaction:
    """Create a transaction on the caller's connection, or else on one of the backend's own."""
    return (
        PostgresOwnTransaction(context, now)
        if caller is None
        else PostgresCallerTransaction(context, caller, now)
    )


class PostgresCallerTransaction(Transaction):
    """A transaction on the caller's connection; the caller is responsible for that connection."""

    def __init__(self, context: CallerContext, caller: CallerConnection, now: Now) -> None:
        self._context = context
        self._caller = caller
        self._now = now
        self._adapter: ConnectionAdapter | None = None
        self._changes_flows = False
        """Whether a member of a flow was settled."""

    async def begin(self) -> object:
        adapter = find_adapter(self._caller)
        with map_errors(self._context.description):
            await adapter.begin()
            try:
                await check_driver_connection(self._context, adapter)
            except BaseException:
                await adapter.rollback()
                raise
        self._adapter = adapter
        return self._caller.connection

    async def settle(self, session_id: str, settlement: TransactionSettlement) -> None:
        assert self._adapter is not None, "not begun"
        lease = settlement.lease
        kind, (body, delay, text, _) = encode_settlement(settlement)
        arguments = (
            session_id,
            kind,
            clamp_seq(lease.ref),
            encode_id(lease.job_id),
            clamp_int4(lease.token.fence),
            lease.token.nonce,
            delay,
            text,
            body,
        )
        outcome = await settle_job(self._context, self._adapter, self._now(), arguments)
        if outcome not in {"done", _DONE_WITH_FLOWS}:
            raise LeaseLost(lease.job_id)
        self._changes_flows = outcome == _DONE_WITH_FLOWS

    async def commit(self) -> None:
        assert self._adapter is not None, "not begun"
        with map_errors(self._context.description, at_commit=True):
            await self._adapter.commit()
        if self._changes_flows:
            await self._continue_flows()

    async def _continue_flows(self) -> None:
        """Apply what follows from the end of a member of a flow. If it fails, workers do so."""
        statement = insert_schema(_CONTINUE_FLOWS, self._context.settings.schema)
        with suppress(NimburionError):
            await self._context.pool.fetch(statement, self._now(), self._context.channel)

    async def rollback(self) -> None:
        adapter, self._adapter = self._adapter, None
        if adapter is not None:
            with map_errors(self._context.description):
                await adapter.rollback()


class PostgresOwnTransaction(Transaction):
    """A transaction on one of the backend's own connections, from the pool for handlers."""

    def __init__(self, context: CallerContext, now: Now) -> None:
        self._context = context
        self._now = now
        self._stack = AsyncExitStack()
        self._inner: PostgresCallerTransaction | None = None
        self._terminate: Callable[[], None] = _do_nothing

    async def begin(self) -> object:
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(self._context.handler_pool.acquire())
            await connection.connect()
            self._terminate = connection.terminate
            self._inner = PostgresCallerTransaction(
                self._context, CallerConnection(connection.driver), self._now
            )
            try:
                given = await self._inner.begin()
            except BaseException:
                connection.terminate()
                raise
            self._stack = stack.pop_all()
        return given

    async def settle(self, session_id: str, settlement: TransactionSettlement) -> None:
        assert self._inner is not None, "not begun"
        await self._inner.settle(session_id, settlement)

    async def commit(self) -> None:
        assert self._inner is not None, "not begun"
        await self._finish(self._inner.commit)

    async def rollback(self) -> None:
        if self._inner is not None:
            await self._finish(self._inner.rollback)

    async def _finish(self, how: Callable[[], Awaitable[None]]) -> None:
        try:
            await how()
        except BaseException:
            self._terminate()  # its state is unknown: the server rolls an open transaction back
            raise
        finally:
            self._inner = None
            await self._stack.aclose()


def _do_nothing() -> None:
    """Do nothing: there is no connection yet."""


@contextmanager
def map_errors(where: str, *, at_commit: bool = False) -> Iterator[None]:
    """Convert errors of the caller's driver to errors of nimburion, with the original as cause.

    Before the commit, nothing can have been applied, even if the connection is lost.
    """
    try:
        yield
    except NimburionError:
        raise
    except Exception as error:
        found = map_transaction_error(error, where, at_commit=at_commit)
        if found is None:
            raise
        raise found from error


def map_transaction_error(
    error: Exception, where: str, *, at_commit: bool
) -> NimburionError | None:
    """Return the nimburion error for an error of a driver; None for any other exception."""
    code = find_sqlstate(error)
    if code:
        make_error = _ERRORS_BY_CODE.get(code)
        if make_error:
            return make_error(where, str(error))
        return map_server_error(code, error, where, sent=at_commit)
    if isinstance(error, DRIVER_ERRORS):
        return map_error(error, where, sent=at_commit)
    if type(error).__module__.partition(".")[0] not in _WRAPPERS:
        return None
    outcome: Any = "unknown" if at_commit else "not applied"
    return BackendUnavailable(f"{where}: the caller's connection failed ({error})", outcome=outcome)


def find_sqlstate(error: BaseException | None) -> str:
    """Return the SQLSTATE of an error. The position of the code depends on the caller's driver and
    on the libraries that wrap it.
    """
    while error is not None:
        for holder in (error, getattr(error, "orig", None)):
            code = getattr(holder, "sqlstate", None) or getattr(holder, "pgcode", None)
            if isinstance(code, str):
                return code
        error = error.__cause__
    return ""


_map_other_database = make_error_factory(
    UnusableConnection,
    "the connection is to a database without the tables and functions of {where} ({message}): one "
    "commit cannot cover both. Open the backend on the database that holds your tables, or give "
    "the processor an outbox",
)
_map_conflict = make_error_factory(
    make_not_applied_error,
    "{where}: this transaction conflicts with another one ({message}); roll it back and run all of "
    "it again",
)
_ERRORS_BY_CODE: Mapping[str, ErrorFactory] = MappingProxyType(
    {
        **dict.fromkeys(("42883", "42P01", "3F000"), _map_other_database),
        **dict.fromkeys(("40001", "40P01"), _map_conflict),
        "42501": make_error_factory(
            UnusableConnection,
            "the role of this connection may not enqueue to {where} ({message}); grant it what a "
            "worker needs: nimburion migrate up --grant ROLE",
        ),
        "25P02": make_error_factory(
            UnusableConnection,
            "{where}: this transaction has failed already ({message}); roll it back first",
        ),
        "25006": make_error_factory(
            BackendReadOnly,
            "{where}: this transaction takes no writes ({message}); nothing was written",
        ),
    }
)
"""Codes whose meaning differs between a caller's transaction and the backend's own."""
