"""Connections of drivers, as callers lend them: sqlite3, aiosqlite, psycopg, asyncpg."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nimburion.core.errors import NotJoinable
from nimburion.core.transactions import Lent

Row = tuple[Any, ...]
Rows = list[Row]


class Plain:
    """The connection of a driver that blocks: sqlite3, psycopg."""

    def __init__(self, lent: Lent) -> None:
        self.lent: Lent = lent
        self._connection: Any = lent.connection

    async def inner(self) -> object:
        """The very connection."""
        return self._connection

    async def execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        """See `Door`."""
        return await self.lent.run(lambda: self._execute(statement, arguments))

    async def begin(self) -> None:
        """These drivers begin with the first statement, where they are not told otherwise."""
        if commits_each(self._connection):
            await self.lent.run(lambda: self._connection.execute("BEGIN"))

    async def commit(self) -> None:
        """Commit it, also where the driver itself would leave that to SQL."""
        await self.lent.run(self._commit)

    async def rollback(self) -> None:
        """Undo it."""
        await self.lent.run(self._connection.rollback)

    def _execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        if commits_each(self._connection):
            raise not_begun("this connection", "use `with connection.transaction():`")
        cursor = self._connection.cursor()
        try:
            cursor.execute(with_percents(statement), arguments)
            return [plain(row) for row in cursor.fetchall()]
        finally:
            cursor.close()

    def _commit(self) -> None:
        if getattr(self._connection, "autocommit", False) is True:
            self._connection.execute("COMMIT")
        else:
            self._connection.commit()


class PlainAsync:
    """The connection of an async driver: aiosqlite, psycopg."""

    def __init__(self, lent: Lent) -> None:
        check_awaitable(lent)
        self.lent: Lent = lent
        self._connection: Any = lent.connection

    async def inner(self) -> object:
        """The very connection."""
        return self._connection

    async def execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        """See `Door`."""
        if commits_each(self._connection):
            raise not_begun("this connection", "use `async with connection.transaction():`")
        cursor = self._connection.cursor()
        try:
            await cursor.execute(with_percents(statement), arguments)
            return [plain(row) for row in await cursor.fetchall()]
        finally:
            await cursor.close()

    async def begin(self) -> None:
        """These drivers begin with the first statement, where they are not told otherwise."""
        if commits_each(self._connection):
            await self._connection.execute("BEGIN")

    async def commit(self) -> None:
        """Commit it."""
        await self._connection.commit()

    async def rollback(self) -> None:
        """Undo it."""
        await self._connection.rollback()


class Asyncpg:
    """A connection of asyncpg, from a pool or not."""

    def __init__(self, lent: Lent) -> None:
        check_awaitable(lent)
        self.lent: Lent = lent
        self._connection: Any = lent.connection
        self._transaction: Any = None

    async def inner(self) -> object:
        """The very connection."""
        return self._connection

    async def execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        """See `Door`."""
        if not self._connection.is_in_transaction():
            raise not_begun("this asyncpg connection", "use `async with connection.transaction():`")
        return [tuple(row) for row in await self._connection.fetch(statement, *arguments)]

    async def begin(self) -> None:
        """Begin one; inside another, a part of it."""
        transaction = self._connection.transaction()
        await transaction.start()
        self._transaction = transaction

    async def commit(self) -> None:
        """Commit it, or make it a part of the one around it."""
        transaction, self._transaction = self._transaction, None
        await transaction.commit()

    async def rollback(self) -> None:
        """Undo it."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            await transaction.rollback()


def check_awaitable(lent: Lent) -> None:
    """Raise `NotJoinable` where an async connection came from code that is not async."""
    if lent.blocking:
        raise NotJoinable(
            f"{shown(lent.connection)} belongs to an event loop: await the processor's own method "
            "there, instead of calling `sync`, and use `async with` for a transaction"
        )


def commits_each(connection: Any) -> bool:  # noqa: ANN401 (psycopg's)
    """Whether this connection of psycopg would commit each statement by itself."""
    info = getattr(connection, "info", None)
    return info is not None and connection.autocommit and info.transaction_status == 0


def with_percents(statement: str) -> str:
    """The statement with `%s` for its arguments, which stand in their order.

    >>> with_percents("SELECT f($1, $2)")
    'SELECT f(%s, %s)'
    """
    return re.sub(r"\$\d+", "%s", statement)


def plain(row: Any) -> Row:  # noqa: ANN401 (of whatever shape the caller's driver makes)
    """A row as a tuple."""
    return tuple(row.values()) if isinstance(row, Mapping) else tuple(row)


def not_begun(what: str, advice: str) -> NotJoinable:
    """The error for a connection whose statements are committed one by one."""
    return NotJoinable(
        f"no transaction is open on {what}, so each statement would be committed by itself: "
        f"{advice}, and enqueue inside it"
    )


def shown(connection: object) -> str:
    """A connection as messages name it."""
    kind = type(connection)
    return f"a {kind.__module__.partition('.')[0]}.{kind.__qualname__}"
