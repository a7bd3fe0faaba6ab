"""One connection with its named statements. Use it only on the thread that created it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from nimburion.backends.planning.flows import FlowResolver
from nimburion.backends.sql_files import Statements
from nimburion.backends.waiters import JobCounts
from nimburion.core.errors import BackendFull
from nimburion.core.exchange import Lane
from nimburion.core.timing.clock import MICRO, Clock

TENANT_UNIT = 1 << 20
"""A lane number plus this times the number of a tenant: jobs of the lane that wait for its turn."""
MAX_LANE = TENANT_UNIT - 1
"""The last number of a lane."""
MAX_TENANT = (1 << 43) - 1
"""The last number of a tenant: SQLite holds whole numbers below 2 to the power of 63."""
_MAX_TENANTS = 10_000
"""The most tenants whose numbers are cached."""
_NO_LANE = -1
ROWS_PER_STATEMENT = 100
"""The most lists of values of one statement: SQLite keeps a prepared statement for each number."""

Row = tuple[Any, ...]


class UsedFeatures(NamedTuple):
    """Which features the jobs of a database use. A call does nothing for the others."""

    limits: bool = True
    """A lane may be closed by a limit."""
    unique_keys: bool = True
    """A job holds a unique key until it has ended."""
    keys: bool = True
    """A job may be parked for a limit, or a lease counts for one, or one has changed."""
    charges: bool = True
    """A lease may have been charged to a tenant."""
    flows: bool = True
    """A flow runs or a job is suspended: a job that ends may concern another one."""
    steps: bool = True
    """A durable run has steps."""


ALL_USED = UsedFeatures()


class Database:
    """A connection with statements by name, the time of the current call, and a cache of lanes."""

    __slots__ = (
        "_by_id",
        "_by_tenant",
        "_is_current",
        "_last_found",
        "_last_requested",
        "_newest_lane",
        "_read_lane",
        "boot_id",
        "boot_time",
        "clock",
        "connection",
        "flow_changes",
        "known_lanes",
        "last_checked",
        "names_to_notify",
        "now",
        "numbering",
        "reads_sizes_first",
        "statements",
        "used",
    )

    def __init__(
        self, connection: sqlite3.Connection, statements: Statements, clock: Clock, boot_id: str
    ) -> None:
        self.connection: sqlite3.Connection = connection
        self.statements: Statements = statements
        self.clock: Clock = clock
        self.boot_id: str = boot_id
        self.now: int = 0
        """The time of this call, in microseconds since 1970."""
        self.boot_time: float = 0.0
        """The time of this call, in seconds since the host booted."""
        self.names_to_notify: JobCounts = JobCounts(int)
        """The queues and sessions whose waiters to wake after the commit."""
        self.reads_sizes_first: bool = False
        """Whether the last exchange had more payloads than its reply could hold.

        The next exchange then reads their sizes before it reads the payloads."""
        self.last_checked: dict[str, int] = {}
        """The last numbers that `free_numbers` checked, by the statement that lists them."""
        self.known_lanes: dict[Lane, int] = {}
        """The numbers of lanes that are known to exist."""
        self.flow_changes: FlowResolver | None = None
        """The changes of members of flows that this call noted and has not applied; None: none."""
        self.used: UsedFeatures = ALL_USED
        """The features that this call must look after. All, unless it has read which are used."""
        self._by_id: dict[int, Lane] = {}
        self._by_tenant: dict[str, int] = {}
        self._is_current = False
        """Whether this call has read the numbering, so that the cache is right."""
        self.numbering: int = 0
        """How often numbers of lanes and tenants were freed or used again, until the lanes and
        tenants in the cache were read."""
        self._newest_lane = 0
        self._read_lane = _NO_LANE
        """The number of the newest lane when all lanes were read last."""
        self._last_requested: tuple[Lane, ...] | None = None
        self._last_found: dict[int, Lane] = {}

    def set_time(self) -> None:
        """Read the clocks, at the start of a call. Another process may have written since the last
        call, so the cache of lanes and tenants may be old.
        """
        self.now = round(self.clock.now() * MICRO)
        self.boot_time = self.clock.monotonic()
        self._is_current = False
        self.used, self.flow_changes = ALL_USED, None

    def resolve_flows(self) -> None:
        """Apply what follows from the changes of members of flows that this call noted."""
        if self.flow_changes is not None:
            self.flow_changes.resolve()
            self.flow_changes = None

    def update_cache(self, *, again: bool = False) -> None:
        """Clear the cache of lanes and tenants if another process freed numbers: each number
        may mean another lane or tenant by now. Reads once in a call, unless `again` is true.
        """
        if self._is_current and not again:
            return
        self._newest_lane, numbering = self.fetch_one("get_numbering")  # type: ignore[misc]
        if numbering != self.numbering:
            self.clear_lane_cache()
            self.numbering = numbering
        self._is_current = True

    def run(self, name: str, *values: object) -> sqlite3.Cursor:
        """Run the statement `name` with these parameters and return its cursor."""
        return self.connection.execute(self.statements[name], values)

    def fetch_one(self, name: str, *values: object) -> Row | None:
        """Return the first row of the statement `name`, or None."""
        row: Row | None = self.run(name, *values).fetchone()
        return row

    def fetch_value(self, name: str, *values: object) -> Any:  # noqa: ANN401 (what SQLite gives)
        """Return the first value of the statement `name`, which always has a row."""
        row: Row = self.run(name, *values).fetchone()
        return row[0]

    def notify(self, names: Iterable[str]) -> None:
        """Wake a waiter of each of these queues, and those of sessions, after the commit."""
        for name in names:
            self.names_to_notify[name] += 1

    def notify_jobs(self, jobs: Mapping[str, int]) -> None:
        """Wake waiters of these queues after the commit, as many as each has new jobs."""
        for queue, count in jobs.items():
            self.names_to_notify[queue] += count

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Apply all statements of the `with` block, or none if it raises."""
        self.connection.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK TO part")
                self.connection.execute("RELEASE part")
                self.clear_lane_cache()
            raise
        self.connection.execute("RELEASE part")

    def get_or_add_lane(self, queue: str, name: str) -> int:
        """Return the number of a lane; insert the lane if it does not exist.

        The number may be old until `update_cache` was called. `insert_jobs` refuses an old one.
        """
        if not self.known_lanes:
            self.update_cache()
        lane = Lane(queue, name)
        found = self.known_lanes.get(lane) or self._find_lane(lane)
        if found is None:
            found = self._add_lane(queue, name)
            self._cache_lane(found, lane)
            self._last_requested = None
        return found

    def find_lanes(self, requested: tuple[Lane, ...]) -> dict[int, Lane]:
        """Return the requested lanes that exist, by number. A lane exists once it had a job.

        Workers request many lanes that do not exist, and repeat the same request. So the result
        for the last request is cached until a lane is added.
        """
        self.update_cache()
        if self._newest_lane != self._read_lane:
            self._read_lanes()
            self._read_lane = self._newest_lane
            self._last_requested = None
        if requested is not self._last_requested:
            numbered = ((self.known_lanes.get(lane), lane) for lane in requested)
            self._last_found = {number: lane for number, lane in numbered if number is not None}
            self._last_requested = requested
        return self._last_found

    def get_lane(self, number: int) -> Lane:
        """Return the lane with this number, which may contain that of a tenant."""
        self.update_cache()
        number %= TENANT_UNIT
        lane = self._by_id.get(number)
        if lane is None:
            self._read_lanes()
            lane = self._by_id[number]
        return lane

    def find_or_add_tenant_lane(self, queue: str, name: str, tenant: str | None) -> int:
        """Return the number of a lane with the number of a tenant; insert what does not exist."""
        lane = self.get_or_add_lane(queue, name)
        if tenant is None:
            return lane
        number = self._by_tenant.get(tenant)
        if number is None:
            row = self.fetch_one("find_tenant", tenant)
            number = self._add_tenant(tenant) if row is None else row[0]
            if len(self._by_tenant) >= _MAX_TENANTS:
                self._by_tenant.clear()
            self._by_tenant[tenant] = number
        return lane + TENANT_UNIT * number

    def change_numbering(self) -> None:
        """Let each process clear its cache: numbers were freed."""
        self.run("change_numbering")
        self.clear_lane_cache()

    def clear_lane_cache(self) -> None:
        """Clear the cache of lanes and tenants. Call it after a rollback, which may have removed
        some.
        """
        self.known_lanes.clear()
        self._by_tenant.clear()
        self._by_id.clear()
        self._read_lane = _NO_LANE
        self._last_requested = None
        self._is_current = False

    def _add_lane(self, queue: str, name: str) -> int:
        """Insert a lane under the next number, or after the last one under one that is free."""
        newest, free = self.fetch_one("find_free_lane", MAX_LANE)  # type: ignore[misc]
        if free is None:
            raise BackendFull(
                f"all {MAX_LANE:,} numbers of lanes are used, and queue {queue!r} with job name "
                f"{name!r} needs one; nothing was written. A lane keeps its number while a job of "
                "its queue and name is kept: use fewer queues, or keep jobs for a shorter time"
            )
        if free <= newest:  # the next lane does not tell others that there is a new one
            self.run("change_numbering")
            self.numbering += 1
        self.run("insert_lane", free, queue, name)
        number: int = free
        return number

    def _add_tenant(self, tenant: str) -> int:
        number = self.run("insert_tenant", tenant).lastrowid
        assert number is not None
        if number > MAX_TENANT:
            raise BackendFull(
                f"all {MAX_TENANT:,} numbers of tenants are used, and tenant {tenant!r} needs one; "
                "nothing was written"
            )
        return number

    def _read_lanes(self) -> None:
        for number, queue, name in self.run("list_lanes").fetchall():
            self._cache_lane(number, Lane(queue, name))

    def _find_lane(self, lane: Lane) -> int | None:
        row = self.fetch_one("find_lane", lane.queue, lane.name)
        if row is None:
            return None
        self._cache_lane(row[0], lane)
        return self.known_lanes[lane]

    def _cache_lane(self, number: int, lane: Lane) -> None:
        self.known_lanes[lane] = number
        self._by_id[number] = lane


def repeat_row(statement: str, row: str, count: int) -> str:
    """Return a statement with its list of values repeated.

    >>> repeat_row("VALUES (?, ?)", "(?, ?)", 2)
    'VALUES (?, ?), (?, ?)'
    """
    return statement.replace(row, ", ".join([row] * count))
