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
        await self.caller.run(self._begin)

    async def commit(self) -> None:
        """Commit the transaction, also if the driver leaves that to SQL."""
        await self.caller.run(self._commit)

    async def rollback(self) -> None:
        """Roll back the transaction."""
        await self.caller.run(self._connection.rollback)

    def _begin(self) -> None:
        if commits_each_statement(self._connection):
            self._connection.execute(choose_begin(self._connection))

    def _execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        if commits_each_statement(self._connection):
            raise make_no_transaction_error(
                "this connection", advise_begin(self._connection, "with connection.transaction():")
            )
        cursor = self._connection.cursor()
        try:
            cursor.execute(adapt_placeholders(statement, self._connection), arguments)
            rows = [] if cursor.description is None else cursor.fetchall()
            return [convert_to_tuple(row) for row in rows]
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
                "this connection",
                advise_begin(self._connection, "async with connection.transaction():"),
            )
        if is_psycopg(self._connection):
            cursor = self._connection.cursor()
        else:
            cursor = await self._connection.cursor()
        try:
            await cursor.execute(adapt_placeholders(statement, self._connection), arguments)
            rows = [] if cursor.description is None else await cursor.fetchall()
            return [convert_to_tuple(row) for row in rows]
        finally:
            await cursor.close()

    async def begin(self) -> None:
        """Begin a transaction if the driver would commit each statement by itself.

        Otherwise the driver begins one with the first statement.
        """
        if commits_each_statement(self._connection):
            await self._connection.execute(choose_begin(self._connection))

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


def commits_each_statement(connection: Any) -> bool:  # noqa: ANN401 (of any driver)
    """Return whether this connection commits each statement by itself: psycopg, sqlite3, aiosqlite.

    sqlite3 begins a transaction by itself, unless it is told to leave that to SQL.
    """
    if is_psycopg(connection):
        return bool(connection.autocommit and connection.info.transaction_status == 0)
    is_manual = connection.isolation_level is None or getattr(connection, "autocommit", -1) is True
    return is_manual and not connection.in_transaction


def choose_begin(connection: object) -> str:
    """Return the statement that begins a transaction; on SQLite, it takes the write lock."""
    return "BEGIN" if is_psycopg(connection) else "BEGIN IMMEDIATE"


def advise_begin(connection: object, block: str) -> str:
    """Return how to begin a transaction, for messages; `block` is that of psycopg."""
    return f"use `{block}`" if is_psycopg(connection) else 'execute("BEGIN IMMEDIATE") first'


def is_psycopg(connection: object) -> bool:
    """Return whether this is a connection of psycopg, and not of sqlite3 or aiosqlite."""
    return any(kind.__module__.startswith("psycopg") for kind in type(connection).__mro__)


def adapt_placeholders(statement: str, connection: object) -> str:
    """Return the statement with the placeholders that the driver of this connection reads."""
    if is_psycopg(connection):
        return use_percent_placeholders(statement)
    return use_question_marks(statement)


def use_question_marks(statement: str) -> str:
    """Return the statement with `?` for its arguments, in the same order.

    >>> use_question_marks("VALUES ($1, $2)")
    'VALUES (?, ?)'
    """
    return re.sub(r"\$\d+", "?", statement)


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
