"""Adapters for callers' connections of SQLAlchemy and Django."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any

from nimburion.backends.caller_connections.drivers import (
    Rows,
    check_awaitable,
    commits_each_statement,
    make_no_transaction_error,
    use_percent_placeholders,
    use_question_marks,
)
from nimburion.core.transactions import CallerConnection


class SQLAlchemyAdapter:
    """An adapter for SQLAlchemy's Connection, Session and scoped_session."""

    def __init__(self, caller: CallerConnection) -> None:
        self.caller: CallerConnection = caller
        self._wrapper: Any = caller.connection

    async def get_driver_connection(self) -> object:
        """Return the driver's connection that the transaction has taken from the pool."""
        return await self.caller.run(self._get_driver_connection)

    async def execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        """See `ConnectionAdapter`."""
        return await self.caller.run(lambda: self._execute(statement, arguments))

    async def begin(self) -> None:
        """Do nothing: SQLAlchemy begins a transaction at first use."""

    async def commit(self) -> None:
        """Commit the transaction; a Session flushes first."""
        await self.caller.run(self._wrapper.commit)

    async def rollback(self) -> None:
        """Roll back the transaction."""
        await self.caller.run(self._wrapper.rollback)

    def _get_driver_connection(self) -> object:
        connection = self._get_connection()
        if not connection.in_transaction():
            connection.begin()
        return connection.connection.driver_connection

    def _execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        connection = self._get_connection()
        check_not_autocommit(connection)
        result = connection.exec_driver_sql(
            adapt_placeholders(connection, statement), tuple(arguments)
        )
        return [tuple(row) for row in result] if result.returns_rows else []

    def _get_connection(self) -> Any:  # noqa: ANN401 (SQLAlchemy's)
        found: Any = self._wrapper.connection
        return found() if callable(found) else self._wrapper


class AsyncSQLAlchemyAdapter:
    """An adapter for SQLAlchemy's AsyncConnection, AsyncSession and async_scoped_session."""

    def __init__(self, caller: CallerConnection) -> None:
        check_awaitable(caller)
        self.caller: CallerConnection = caller
        self._wrapper: Any = caller.connection

    async def get_driver_connection(self) -> object:
        """Return the driver's connection that the transaction has taken from the pool."""
        connection = await self._get_connection()
        if not connection.in_transaction():
            await connection.begin()
        return (await connection.get_raw_connection()).driver_connection

    async def execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        """See `ConnectionAdapter`."""
        connection = await self._get_connection()
        await connection.run_sync(check_not_autocommit)
        text = adapt_placeholders(connection, statement)
        result = await connection.exec_driver_sql(text, tuple(arguments))
        return [tuple(row) for row in result] if result.returns_rows else []

    async def begin(self) -> None:
        """Do nothing: SQLAlchemy begins a transaction at first use."""

    async def commit(self) -> None:
        """Commit the transaction; a Session flushes first."""
        await self._wrapper.commit()

    async def rollback(self) -> None:
        """Roll back the transaction."""
        await self._wrapper.rollback()

    async def _get_connection(self) -> Any:  # noqa: ANN401 (SQLAlchemy's)
        is_session = not hasattr(self._wrapper, "get_raw_connection")
        return await self._wrapper.connection() if is_session else self._wrapper


class DjangoAdapter:
    """An adapter for Django's connections: `django.db.connection`, `connections["default"]`."""

    def __init__(self, caller: CallerConnection) -> None:
        self.caller: CallerConnection = caller
        self._wrapper: Any = caller.connection
        self._atomic: AbstractContextManager[object] | None = None

    async def get_driver_connection(self) -> object:
        """Return the driver's connection, inside `atomic`."""
        return await self.caller.run(self._get_driver_connection)

    async def execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        """See `ConnectionAdapter`."""
        return await self.caller.run(lambda: self._execute(statement, arguments))

    async def begin(self) -> None:
        """Enter `atomic`."""
        atomic = import_module("django.db.transaction").atomic(using=self._wrapper.alias)
        await self.caller.run(atomic.__enter__)
        self._atomic = atomic

    async def commit(self) -> None:
        """Leave `atomic`. This commits, unless the block is inside another `atomic`."""
        await self._exit_atomic(None)

    async def rollback(self) -> None:
        """Leave `atomic` with an error, so that it rolls back."""
        await self._exit_atomic(_Rollback())

    async def _exit_atomic(self, error: BaseException | None) -> None:
        atomic, self._atomic = self._atomic, None
        if atomic is not None:
            kind = None if error is None else type(error)
            await self.caller.run(lambda: atomic.__exit__(kind, error, None))

    def _execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        self._get_driver_connection()
        with self._wrapper.cursor() as cursor:
            cursor.execute(use_percent_placeholders(statement), arguments)
            return [] if cursor.description is None else [tuple(row) for row in cursor.fetchall()]

    def _get_driver_connection(self) -> object:
        wrapper = self._wrapper
        wrapper.validate_thread_sharing()
        wrapper.ensure_connection()
        if not wrapper.in_atomic_block and wrapper.get_autocommit():
            raise make_no_transaction_error(
                "Django's connection", "use `with transaction.atomic():`"
            )
        wrapper.validate_no_broken_transaction()
        return wrapper.connection


class _Rollback(Exception):
    """Makes `atomic` roll back."""


def check_not_autocommit(connection: Any) -> None:  # noqa: ANN401 (SQLAlchemy's)
    """Raise `UnusableConnection` if SQLAlchemy commits each statement by itself."""
    is_manual = getattr(connection.connection.dbapi_connection, "autocommit", False) is True
    if connection.dialect.name == "sqlite":
        is_manual = commits_each_statement(connection.connection.driver_connection)
    if is_manual:
        raise make_no_transaction_error(
            "this SQLAlchemy connection", "use an isolation level but AUTOCOMMIT"
        )


def adapt_placeholders(connection: Any, statement: str) -> str:  # noqa: ANN401 (SQLAlchemy's)
    """Return the statement with the placeholders of the driver behind SQLAlchemy."""
    style = connection.dialect.paramstyle
    if "numeric" in style:
        return statement
    return (
        use_question_marks(statement) if style == "qmark" else use_percent_placeholders(statement)
    )
