"""The adapters of callers' connections, by driver.

An adapter begins, commits and rolls back a transaction, and returns the driver's own connection. A
driver is recognised by the class name of its connection and is never imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Protocol

from nimburion.backends.caller_connections.drivers import (
    AsyncDbApiAdapter,
    AsyncpgAdapter,
    DbApiAdapter,
    Rows,
    describe_connection,
)
from nimburion.backends.caller_connections.wrappers import (
    AsyncSQLAlchemyAdapter,
    DjangoAdapter,
    SQLAlchemyAdapter,
)
from nimburion.core.errors import UnusableConnection
from nimburion.core.transactions import CallerConnection


class ConnectionAdapter(Protocol):
    """An adapter for one caller's connection."""

    caller: CallerConnection

    async def get_driver_connection(self) -> object:
        """Return the driver's own connection, after its wrapper has begun the transaction."""
        ...

    async def execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        """Run a statement for a server and return its rows. `$1`, `$2`, … stand for the
        arguments.

        Raises:
            UnusableConnection: no transaction is open, and the driver begins none by itself.
        """
        ...

    async def begin(self) -> None:
        """Begin a transaction, unless the wrapper does so by itself."""
        ...

    async def commit(self) -> None:
        """Commit the transaction."""
        ...

    async def rollback(self) -> None:
        """Roll back the transaction. Does nothing if there is nothing to roll back."""
        ...


ADAPTERS: MappingProxyType[str, Callable[[CallerConnection], ConnectionAdapter]] = MappingProxyType(
    {
        "sqlite3.Connection": DbApiAdapter,
        "psycopg.Connection": DbApiAdapter,
        "psycopg.AsyncConnection": AsyncDbApiAdapter,
        "asyncpg.connection.Connection": AsyncpgAdapter,
        "asyncpg.pool.PoolConnectionProxy": AsyncpgAdapter,
        "aiosqlite.core.Connection": AsyncDbApiAdapter,
        "sqlalchemy.engine.base.Connection": SQLAlchemyAdapter,
        "sqlalchemy.orm.session.Session": SQLAlchemyAdapter,
        "sqlalchemy.orm.scoping.scoped_session": SQLAlchemyAdapter,
        "sqlalchemy.ext.asyncio.engine.AsyncConnection": AsyncSQLAlchemyAdapter,
        "sqlalchemy.ext.asyncio.session.AsyncSession": AsyncSQLAlchemyAdapter,
        "sqlalchemy.ext.asyncio.scoping.async_scoped_session": AsyncSQLAlchemyAdapter,
        "django.db.backends.base.base.BaseDatabaseWrapper": DjangoAdapter,
        "django.utils.connection.ConnectionProxy": DjangoAdapter,
    }
)


def find_adapter(caller: CallerConnection) -> ConnectionAdapter:
    """Return the adapter for a caller's connection.

    Raises:
        UnusableConnection: the driver of the connection is unknown.
    """
    kind = find_known_class(caller.connection)
    if kind is None:
        raise UnusableConnection(
            f"{describe_connection(caller.connection)} is no connection that nimburion knows; give "
            "one of sqlite3, "
            "aiosqlite, asyncpg, psycopg, SQLAlchemy (Connection, Session and their async kinds) "
            "or Django"
        )
    return ADAPTERS[kind](caller)


def find_known_class(connection: object) -> str | None:
    """Return the known class of this connection, as `module.name`; None if it has none."""
    for base in type(connection).__mro__:
        name = f"{base.__module__}.{base.__qualname__}"
        if name in ADAPTERS:
            return name
    return None
