"""Adapters for callers' connections of drivers: sqlite3, aiosqlite, psycopg, asyncpg."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nimburion.core.errors import UnusableConnection
from nimburion.core.transactions import CallerConnection

Row = tuple[Any, ...]
Rows = list[Row]


class DbApiAdapter:
    """An adapter for the connection of a blocking driver: sqlite3, psycopg."""

    def __init__(self, caller: CallerConnection) -> None:
        self.caller: CallerConnection = caller
        self._connection: Any = caller.connection

    async def get_driver_connection(self) -> object:
        """Return the connection itself."""
        return self._connection

    async def execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        """See `ConnectionAdapter`."""
        return await self.caller.run(lambda: self._execute(statement, arguments))

    async def begin(self) -> None:
        """Begin a transaction if the driver would commit each statement by itself.

        Otherwise the driver begins one with the first statement.
        """
        if commits_each_statement(self._connection):
            await self.caller.run(lambda: self._connection.execute("BEGIN"))

    async def commit(self) -> None:
        """Commit the transaction, also if the driver leaves that to SQL."""
        await self.caller.run(self._commit)

    async def rollback(self) -> None:
        """Roll back the transaction."""
        await self.caller.run(self._connection.rollback)

    def _execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        if commits_each_statement(self._connection):
            raise make_no_transaction_error(
                "this connection", "use `with connection.transaction():`"
            )
        cursor = self._connection.cursor()
        try:
            cursor.execute(use_percent_placeholders(statement), arguments)
            return [convert_to_tuple(row) for row in cursor.fetchall()]
        finally:
            cursor.close()

    def _commit(self) -> None:
        if getattr(self._connection, "autocommit", False) is True:
            self._connection.execute("COMMIT")
        else:
            self._connection.commit()


class AsyncDbApiAdapter:
    """An adapter for the connection of an async driver: aiosqlite, psycopg."""

    def __init__(self, caller: CallerConnection) -> None:
        check_awaitable(caller)
        self.caller: CallerConnection = caller
        self._connection: Any = caller.connection

    async def get_driver_connection(self) -> object:
        """Return the connection itself."""
        return self._connection

    async def execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        """See `ConnectionAdapter`."""
        if commits_each_statement(self._connection):
            raise make_no_transaction_error(
                "this connection", "use `async with connection.transaction():`"
            )
        cursor = self._connection.cursor()
        try:
            await cursor.execute(use_percent_placeholders(statement), arguments)
            return [convert_to_tuple(row) for row in await cursor.fetchall()]
        finally:
            await cursor.close()

    async def begin(self) -> None:
        """Begin a transaction if the driver would commit each statement by itself.

        Otherwise the driver begins one with the first statement.
        """
        if commits_each_statement(self._connection):
            await self._connection.execute("BEGIN")

    async def commit(self) -> None:
        """Commit the transaction."""
        await self._connection.commit()

    async def rollback(self) -> None:
        """Roll back the transaction."""
        await self._connection.rollback()


class AsyncpgAdapter:
    """An adapter for a connection of asyncpg, from a pool or not."""

    def __init__(self, caller: CallerConnection) -> None:
        check_awaitable(caller)
        self.caller: CallerConnection = caller
        self._connection: Any = caller.connection
        self._transaction: Any = None

    async def get_driver_connection(self) -> object:
        """Return the connection itself."""
        return self._connection

    async def execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        """See `ConnectionAdapter`."""
        if not self._connection.is_in_transaction():
            raise make_no_transaction_error(
                "this asyncpg connection", "use `async with connection.transaction():`"
            )
        return [tuple(row) for row in await self._connection.fetch(statement, *arguments)]

    async def begin(self) -> None:
        """Begin a transaction, or a savepoint inside a transaction."""
        transaction = self._connection.transaction()
        await transaction.start()
        self._transaction = transaction

    async def commit(self) -> None:
        """Commit the transaction, or release the savepoint."""
        transaction, self._transaction = self._transaction, None
        await transaction.commit()

    async def rollback(self) -> None:
        """Roll back the transaction or the savepoint."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            await transaction.rollback()


def check_awaitable(caller: CallerConnection) -> None:
    """Raise `UnusableConnection` if blocking code passes an async connection."""
    if caller.blocking:
        raise UnusableConnection(
            f"{describe_connection(caller.connection)} belongs to an event loop: await the "
            "processor's own method "
            "there, instead of calling `sync`, and use `async with` for a transaction"
        )


def commits_each_statement(connection: Any) -> bool:  # noqa: ANN401 (psycopg's)
    """Return whether this connection of psycopg commits each statement by itself."""
    info = getattr(connection, "info", None)
    return info is not None and connection.autocommit and info.transaction_status == 0


def use_percent_placeholders(statement: str) -> str:
    """Return the statement with `%s` for its arguments, in the same order.

    >>> use_percent_placeholders("SELECT f($1, $2)")
    'SELECT f(%s, %s)'
    """
    return re.sub(r"\$\d+", "%s", statement)


def convert_to_tuple(row: Any) -> Row:  # noqa: ANN401 (of whatever shape the caller's driver makes)
    """Return a row as a tuple."""
    return tuple(row.values()) if isinstance(row, Mapping) else tuple(row)


def make_no_transaction_error(what: str, advice: str) -> UnusableConnection:
    """Return the error for a connection that commits each statement by itself."""
    return UnusableConnection(
        f"no transaction is open on {what}, so each statement would be committed by itself: "
        f"{advice}, and enqueue inside it"
    )


def describe_connection(connection: object) -> str:
    """Return the name of a connection's class, for messages."""
    kind = type(connection)
    return f"a {kind.__module__.partition('.')[0]}.{kind.__qualname__}"
