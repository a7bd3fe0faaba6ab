"""Work inside a transaction that a caller owns, on the caller's connection.

Drivers differ in where a connection may be used. Some tie it to a thread (sqlite3, Django), some to
an event loop (asyncpg, SQLAlchemy's AsyncSession). A `CallerConnection` therefore runs work on its
connection where that is allowed, and backends need no special cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from nimburion.core.settlement import Completed, Failed, Recorded, Retried

T = TypeVar("T")


class CallerConnection:
    """A caller's connection that may be used here, on the thread of the event loop.

    >>> CallerConnection("a connection").blocking
    False
    """

    __slots__ = ("connection",)

    def __init__(self, connection: object) -> None:
        self.connection: object = connection

    @property
    def blocking(self) -> bool:
        """Whether the caller waits on a thread of its own. If so, only drivers that are not
        async work.
        """
        return False

    async def run(self, work: Callable[[], T]) -> T:
        """Call `work` where the connection may be used, and return its result."""
        return work()


class EnqueueCount(NamedTuple):
    """How many jobs of one name a caller's transaction stored in one queue."""

    queue: str
    name: str
    jobs: int


MAX_ENQUEUE_COUNTS = 1_000
"""The maximum number of stored counts that one `take_enqueue_counts` takes."""


def sum_enqueue_counts(rows: Iterable[Sequence[Any]]) -> list[EnqueueCount]:
    """Return one count for each queue and name of these rows: queue, name, number of jobs."""
    sums: dict[tuple[str, str], int] = {}
    for queue, name, count in rows:
        sums[queue, name] = sums.get((queue, name), 0) + count
    return [EnqueueCount(queue, name, count) for (queue, name), count in sums.items()]


TransactionSettlement = Completed | Retried | Failed | Recorded
"""What a transaction can contain: a handler completes its job or stores a step of its durable run,
a hook for a failed attempt writes the outcome of this attempt.
"""


class Transaction(Protocol):
    """A transaction that contains the writes of a handler or a hook, and the settlement of its
    job."""

    async def begin(self) -> object:
        """Begin the transaction, unless it has begun, and return the connection for the writes."""
        ...

    async def settle(self, session_id: str, settlement: TransactionSettlement) -> None:
        """Write the settlement as the last statement before the commit. Checks the whole token.

        Raises:
            LeaseLost: the session no longer holds the job under this token. Nothing was written;
                roll the transaction back.
        """
        ...

    async def commit(self) -> None:
        """Commit all writes atomically, and notify the waiting workers."""
        ...

    async def rollback(self) -> None:
        """Roll back all writes. Repeatable, also after a failed commit."""
        ...
