"""The connections that callers lend, of whatever driver: how each is begun, committed, rolled
back, and what lies inside it. No driver is imported here: a connection is known by its class.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from types import MappingProxyType
from typing import Any, Protocol

from nimburion.core.errors import NotJoinable
from nimburion.core.joining import Lent


class Door(Protocol):
    """One caller's connection."""

    lent: Lent

    async def inner(self) -> object:
        """The driver's own connection, once the wrapper around it has begun its transaction."""
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


class Plain:
    """The connection of a driver that blocks: sqlite3, psycopg."""

    def __init__(self, lent: Lent) -> None:
        self.lent: Lent = lent
        self._connection: Any = lent.connection

    async def inner(self) -> object:
        """The very connection."""
        return self._connection

    async def begin(self) -> None:
        """These drivers begin with the first statement, and the store where they do not."""

    async def commit(self) -> None:
        """Commit it, also where the driver itself would leave that to SQL."""
        await self.lent.run(self._commit)

    async def rollback(self) -> None:
        """Undo it."""
        await self.lent.run(self._connection.rollback)

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

    async def begin(self) -> None:
        """These drivers begin with the first statement, and the store where they do not."""

    async def commit(self) -> None:
        """Commit it."""
        await self._connection.commit()

    async def rollback(self) -> None:
        """Undo it."""
        await self._connection.rollback()


class Alchemy:
    """SQLAlchemy's Connection, Session and scoped_session."""

    def __init__(self, lent: Lent) -> None:
        self.lent: Lent = lent
        self._outer: Any = lent.connection

    async def inner(self) -> object:
        """The driver's connection that its transaction has taken from the pool."""
        return await self.lent.run(self._inner)

    async def begin(self) -> None:
        """It begins by itself when first used."""

    async def commit(self) -> None:
        """Commit it; a Session flushes first."""
        await self.lent.run(self._outer.commit)

    async def rollback(self) -> None:
        """Undo it."""
        await self.lent.run(self._outer.rollback)

    def _inner(self) -> object:
        found: Any = self._outer.connection
        connection: Any = found() if callable(found) else self._outer
        if not connection.in_transaction():
            connection.begin()
        return connection.connection.driver_connection


class AsyncAlchemy:
    """SQLAlchemy's AsyncConnection, AsyncSession and async_scoped_session."""

    def __init__(self, lent: Lent) -> None:
        check_awaitable(lent)
        self.lent: Lent = lent
        self._outer: Any = lent.connection

    async def inner(self) -> object:
        """The driver's connection that its transaction has taken from the pool."""
        found = getattr(self._outer, "get_raw_connection", None)
        connection = self._outer if found is not None else await self._outer.connection()
        if not connection.in_transaction():
            await connection.begin()
        return (await connection.get_raw_connection()).driver_connection

    async def begin(self) -> None:
        """It begins by itself when first used."""

    async def commit(self) -> None:
        """Commit it; a Session flushes first."""
        await self._outer.commit()

    async def rollback(self) -> None:
        """Undo it."""
        await self._outer.rollback()


class Django:
    """A database connection of Django: `django.db.connection`, `connections["default"]`."""

    def __init__(self, lent: Lent) -> None:
        self.lent: Lent = lent
        self._wrapper: Any = lent.connection
        self._atomic: AbstractContextManager[object] | None = None

    async def inner(self) -> object:
        """The driver's connection, inside `atomic`."""
        return await self.lent.run(self._inner)

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


DOORS: MappingProxyType[str, Callable[[Lent], Door]] = MappingProxyType(
    {
        "sqlite3.Connection": Plain,
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
            "aiosqlite, SQLAlchemy (Connection, Session and their async kinds) or Django"
        )
    return DOORS[kind](lent)


def kind_of(connection: object) -> str | None:
    """The driver's class that this connection is of."""
    for base in type(connection).__mro__:
        name = f"{base.__module__}.{base.__qualname__}"
        if name in DOORS:
            return name
    return None


def check_awaitable(lent: Lent) -> None:
    """Raise `NotJoinable` where an async connection came from code that is not async."""
    if lent.blocking:
        raise NotJoinable(
            f"{shown(lent.connection)} belongs to an event loop: await the processor's own method "
            "there, instead of calling `sync`, and use `async with` for a transaction"
        )


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
