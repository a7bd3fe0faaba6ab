"""The connections that callers lend, of whatever driver: how each is begun, committed, rolled
back, and what lies inside it. No driver is imported here: a connection is known by its class.
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
    """One caller's connection."""

    caller: CallerConnection

    async def get_driver_connection(self) -> object:
        """The driver's own connection, once the wrapper around it has begun its transaction."""
        ...

    async def execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        """Run one statement of a server's, with `$1`, `$2`, … for its arguments; its rows.

        `UnusableConnection` where no transaction is open, and none begins by itself.
        """
        ...

    async def begin(self) -> None:
        """Begin a transaction where the wrapper does not do so by itself."""
        ...

    async def commit(self) -> None:
        """Commit it."""
        ...

    async def rollback(self) -> None:
        """Undo it; nothing to undo is no error."""
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
    """What opens this connection. `UnusableConnection` where nothing does."""
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
    """The driver's class that this connection is of."""
    for base in type(connection).__mro__:
        name = f"{base.__module__}.{base.__qualname__}"
        if name in ADAPTERS:
            return name
    return None
