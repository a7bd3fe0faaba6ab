"""Work inside a transaction that a caller owns: the caller's connection, lent to the backend.

Drivers differ in who may use a connection: some tie it to a thread (sqlite3, Django), some to an
event loop (asyncpg, SQLAlchemy's AsyncSession). So a connection travels as a `CallerConnection`,
which knows where work on it is done; the backend's own code never asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from nimburion.core.settlement import Completed

T = TypeVar("T")


class CallerConnection:
    """A connection of the caller's, to be used where the caller may use it: here, on the thread
    of the event loop.

    >>> CallerConnection("a connection").blocking
    False
    """

    __slots__ = ("connection",)

    def __init__(self, connection: object) -> None:
        self.connection: object = connection

    @property
    def blocking(self) -> bool:
        """Whether the caller waits on a thread of its own, so that only drivers that are not
        async can be used."""
        return False

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns, done where the connection may be used."""
        return work()


class Transaction(Protocol):
    """A transaction in which a handler writes its rows, and the backend the end of its job."""

    async def begin(self) -> object:
        """Begin, where that has not been done; the connection to write with."""
        ...

    async def complete(self, session_id: str, completed: Completed) -> None:
        """Write the completion, as the last thing before the commit, under the whole token.

        `LeaseLost`: this session does not hold the job under it any more. Nothing was written and
        all must be rolled back.
        """
        ...

    async def commit(self) -> None:
        """Make all of it true at once, and wake whom it concerns."""
        ...

    async def rollback(self) -> None:
        """Undo all of it. Repeatable, also after a failed commit."""
        ...
