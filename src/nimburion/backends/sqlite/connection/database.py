"""One connection with the statements that run on it; used by the one thread that made it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from nimburion.backends.sql_files import Statements
from nimburion.core.clock import Clock
from nimburion.core.errors import Unstorable
from nimburion.core.exchange import Lane

MICRO = 1_000_000

Row = tuple[Any, ...]


def micros(seconds: float) -> int:
    """Seconds as the file holds them: whole microseconds, the resolution of this store's clock."""
    try:
        return round(seconds * MICRO)
    except (ValueError, OverflowError) as error:
        raise Unstorable(f"{seconds} seconds is no time that SQLite can hold") from error


class Database:
    """Statements by name, the time of the call that runs, and the lanes met so far."""

    __slots__ = (
        "_asked",
        "_by_id",
        "_by_lane",
        "_found",
        "_latest_lane",
        "boot",
        "boot_id",
        "clock",
        "connection",
        "looks_ahead",
        "now",
        "rung",
        "sql",
    )

    def __init__(
        self, connection: sqlite3.Connection, sql: Statements, clock: Clock, boot_id: str
    ) -> None:
        self.connection: sqlite3.Connection = connection
        self.sql: Statements = sql
        self.clock: Clock = clock
        self.boot_id: str = boot_id
        self.now: int = 0
        """The time of this call, in microseconds since 1970."""
        self.boot: float = 0.0
        """The time of this call, in seconds since the host booted."""
        self.rung: set[str] = set()
        """The queues whose waiters are to be woken after the commit."""
        self.looks_ahead: bool = False
        """Whether the last exchange read payloads that its reply had no room for: then the next
        looks at their sizes before it reads them."""
        self._by_lane: dict[Lane, int] = {}
        self._by_id: dict[int, Lane] = {}
        self._latest_lane = 0
        self._asked: tuple[Lane, ...] | None = None
        self._found: dict[int, Lane] = {}

    def tick(self) -> None:
        """Note the time for the call that begins."""
        self.now = micros(self.clock.now())
        self.boot = self.clock.monotonic()

    def run(self, name: str, *values: object) -> sqlite3.Cursor:
        """Run the statement of this name."""
        return self.connection.execute(self.sql[name], values)

    def one(self, name: str, *values: object) -> Row | None:
        """The first row of the statement of this name."""
        row: Row | None = self.run(name, *values).fetchone()
        return row

    def value(self, name: str, *values: object) -> Any:  # noqa: ANN401 (what SQLite gives)
        """The only value of the statement of this name, which always gives one."""
        row = self.one(name, *values)
        assert row is not None
        return row[0]

    def ring(self, queues: Iterable[str]) -> None:
        """Wake those who wait for these queues, once what was written is committed."""
        self.rung.update(queues)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """All of what is inside, or nothing of it."""
        self.connection.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK TO part")
                self.connection.execute("RELEASE part")
                self.forget_lanes()
            raise
        self.connection.execute("RELEASE part")

    def lane_of(self, queue: str, name: str) -> int:
        """The lane's number, a new one where there is none yet."""
        lane = Lane(queue, name)
        found = self._by_lane.get(lane) or self._find_lane(lane)
        if found is None:
            found = self.run("lane_add", queue, name).lastrowid
            assert found is not None
            self._note_lane(found, lane)
        return found

    def lanes_of(self, asked: tuple[Lane, ...]) -> dict[int, Lane]:
        """Those of the lanes in which a job was ever enqueued, by number.

        Workers ask for many that never were, and again and again for the same: so the file is
        looked at once, and the answer to the very same request is kept until there is a new lane.
        """
        latest = self.value("lane_latest")
        if latest != self._latest_lane:
            self._read_lanes()
            self._latest_lane = latest
            self._asked = None
        if asked is not self._asked:
            numbered = ((self._by_lane.get(lane), lane) for lane in asked)
            self._found = {number: lane for number, lane in numbered if number is not None}
            self._asked = asked
        return self._found

    def lane(self, number: int) -> Lane:
        """The lane with this number."""
        lane = self._by_id.get(number)
        if lane is None:
            self._read_lanes()
            lane = self._by_id[number]
        return lane

    def forget_lanes(self) -> None:
        """After a rollback: a lane added by it is there no more."""
        self._by_lane.clear()
        self._by_id.clear()
        self._latest_lane = 0
        self._asked = None

    def _read_lanes(self) -> None:
        for number, queue, name in self.run("lane_all").fetchall():
            self._note_lane(number, Lane(queue, name))

    def _find_lane(self, lane: Lane) -> int | None:
        row = self.one("lane_find", lane.queue, lane.name)
        if row is None:
            return None
        self._note_lane(row[0], lane)
        return self._by_lane[lane]

    def _note_lane(self, number: int, lane: Lane) -> None:
        self._by_lane[lane] = number
        self._by_id[number] = lane
