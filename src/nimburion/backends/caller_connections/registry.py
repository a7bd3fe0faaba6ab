"""The connections that callers lend, of whatever driver: how each is begun, committed, rolled
back, and what lies inside it. No driver is imported here: a connection is known by its class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Protocol

from nimburion.backends.caller_connections.drivers import Asyncpg, Plain, PlainAsync, Rows, shown
from nimburion.backends.caller_connections.wrappers import Alchemy, AsyncAlchemy, Django
from nimburion.core.errors import NotJoinable
from nimburion.core.transactions import Lent


class Door(Protocol):
    """One caller's connection."""

    lent: Lent

    async def inner(self) -> object:
        """The driver's own connection, once the wrapper around it has begun its transaction."""
        ...

    async def execute(self, statement: str, arguments: Sequence[object]) -> Rows:
        """Run one statement of a server's, with `$1`, `$2`, … for its arguments; its rows.

        `NotJoinable` where no transaction is open, and none begins by itself.
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


DOORS: MappingProxyType[str, Callable[[Lent], Door]] = MappingProxyType(
    {
        "sqlite3.Connection": Plain,
        "psycopg.Connection": Plain,
        "psycopg.AsyncConnection": PlainAsync,
        "asyncpg.connection.Connection": Asyncpg,
        "asyncpg.pool.PoolConnectionProxy": Asyncpg,
        "aiosqlite.core.Connection": PlainAsync,
        "sqlalchemy.engine.base.Connection": Alchemy,
        "sqlalchemy.orm.session.Session": Alchemy,
        "sqlalchemy.orm.scoping.scoped_session": Alchemy,
        "sqlalchemy.ext.asyncio.engine.AsyncConnection": AsyncAlchemy,
        "sqlalchemy.ext.asyncio.session.AsyncSession": AsyncAlchemy,
        "sqlalchemy.ext.asyncio.scoping.async_scoped_session": AsyncAlchemy,
        "django.db.backends.base.base.BaseDatabaseWrapper": Django,
        "django.utils.connection.ConnectionProxy": Django,
    }
)


def door_of(lent: Lent) -> Door:
    """What opens this connection. `NotJoinable` where nothing does."""
    kind = kind_of(lent.connection)
    if kind is None:
        raise NotJoinable(
            f"{shown(lent.connection)} is no connection that nimburion knows; give one of sqlite3, "
            "aiosqlite, asyncpg, psycopg, SQLAlchemy (Connection, Session and their async kinds) "
            "or Django"
        )
    return DOORS[kind](lent)


def kind_of(connection: object) -> str | None:
    """The driver's class that this connection is of."""
    for base in type(connection).__mro__:
        name = f"{base.__module__}.{base.__qualname__}"
        if name in DOORS:
            return name
    return None
