"""Connections of SQLAlchemy and Django, as callers lend them, and the driver's own ones inside."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any

from nimburion.backends.caller_connections.drivers import (
    Rows,
    check_awaitable,
    not_begun,
    with_percents,
)
from nimburion.core.transactions import Lent


class Alchemy:
    """SQLAlchemy's Connection, Session and scoped_session."""

    def __init__(self, lent: Lent) -> None:
        self.lent: Lent = lent
        self._outer: Any = lent.connection

    async def inner(self) -> object:
        """The driver's connection that its transaction has taken from the pool."""
        return await self.lent.run(self._inner)

    async def execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        """See `Door`."""
        return await self.lent.run(lambda: self._execute(statement, arguments))

    async def begin(self) -> None:
        """It begins by itself when first used."""

    async def commit(self) -> None:
        """Commit it; a Session flushes first."""
        await self.lent.run(self._outer.commit)

    async def rollback(self) -> None:
        """Undo it."""
        await self.lent.run(self._outer.rollback)

    def _inner(self) -> object:
        connection = self._connection()
        if not connection.in_transaction():
            connection.begin()
        return connection.connection.driver_connection

    def _execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        connection = self._connection()
        check_alchemy(connection)
        result = connection.exec_driver_sql(in_style_of(connection, statement), tuple(arguments))
        return [tuple(row) for row in result]

    def _connection(self) -> Any:  # noqa: ANN401 (SQLAlchemy's)
        found: Any = self._outer.connection
        return found() if callable(found) else self._outer


class AsyncAlchemy:
    """SQLAlchemy's AsyncConnection, AsyncSession and async_scoped_session."""

    def __init__(self, lent: Lent) -> None:
        check_awaitable(lent)
        self.lent: Lent = lent
        self._outer: Any = lent.connection

    async def inner(self) -> object:
        """The driver's connection that its transaction has taken from the pool."""
        connection = await self._connection()
        if not connection.in_transaction():
            await connection.begin()
        return (await connection.get_raw_connection()).driver_connection

    async def execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        """See `Door`."""
        connection = await self._connection()
        await connection.run_sync(check_alchemy)
        text = in_style_of(connection, statement)
        return [tuple(row) for row in await connection.exec_driver_sql(text, tuple(arguments))]

    async def begin(self) -> None:
        """It begins by itself when first used."""

    async def commit(self) -> None:
        """Commit it; a Session flushes first."""
        await self._outer.commit()

    async def rollback(self) -> None:
        """Undo it."""
        await self._outer.rollback()

    async def _connection(self) -> Any:  # noqa: ANN401 (SQLAlchemy's)
        is_session = not hasattr(self._outer, "get_raw_connection")
        return await self._outer.connection() if is_session else self._outer


class Django:
    """A database connection of Django: `django.db.connection`, `connections["default"]`."""

    def __init__(self, lent: Lent) -> None:
        self.lent: Lent = lent
        self._wrapper: Any = lent.connection
        self._atomic: AbstractContextManager[object] | None = None

    async def inner(self) -> object:
        """The driver's connection, inside `atomic`."""
        return await self.lent.run(self._inner)

    async def execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        """See `Door`."""
        return await self.lent.run(lambda: self._execute(statement, arguments))

    async def begin(self) -> None:
        """Enter `atomic`."""
        atomic = import_module("django.db.transaction").atomic(using=self._wrapper.alias)
        await self.lent.run(atomic.__enter__)
        self._atomic = atomic

    async def commit(self) -> None:
        """Leave `atomic`; it commits unless it stands inside another."""
        await self._leave(None)

    async def rollback(self) -> None:
        """Leave `atomic` as an error would."""
        await self._leave(_Undone())

    async def _leave(self, error: BaseException | None) -> None:
        atomic, self._atomic = self._atomic, None
        if atomic is not None:
            kind = None if error is None else type(error)
            await self.lent.run(lambda: atomic.__exit__(kind, error, None))

    def _execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        self._inner()
        with self._wrapper.cursor() as cursor:
            cursor.execute(with_percents(statement), arguments)
            return [tuple(row) for row in cursor.fetchall()]

    def _inner(self) -> object:
        wrapper = self._wrapper
        wrapper.validate_thread_sharing()
        wrapper.ensure_connection()
        if not wrapper.in_atomic_block and wrapper.get_autocommit():
            raise not_begun("Django's connection", "use `with transaction.atomic():`")
        wrapper.validate_no_broken_transaction()
        return wrapper.connection


class _Undone(Exception):
    """Tells `atomic` to roll back."""


def check_alchemy(connection: Any) -> None:  # noqa: ANN401 (SQLAlchemy's)
    """Raise `NotJoinable` where SQLAlchemy was told to let each statement commit."""
    if getattr(connection.connection.dbapi_connection, "autocommit", False) is True:
        raise not_begun("this SQLAlchemy connection", "use an isolation level but AUTOCOMMIT")


def in_style_of(connection: Any, statement: str) -> str:  # noqa: ANN401 (SQLAlchemy's)
    """The statement with placeholders as the driver behind SQLAlchemy has them."""
    return statement if "numeric" in connection.dialect.paramstyle else with_percents(statement)
