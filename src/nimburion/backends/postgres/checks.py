"""What an operator should know of the server: durability, vacuum, room, speed. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nimburion.backends.checks import (
    MAX_CLOCK_OFFSET,
    PINGS,
    SLOW_ROUND_TRIP,
    format_size,
    measure_round_trip,
)
from nimburion.backends.postgres.connection.connect import Seen
from nimburion.backends.postgres.connection.pool import Link
from nimburion.backends.postgres.migrations import PACKAGE, Standing, Wanted, standing
from nimburion.backends.postgres.url import Address
from nimburion.backends.sql_files import Statements
from nimburion.core.checks import Finding
from nimburion.core.clock import Clock

_NEARLY_ALL = 0.8
_OLD_SNAPSHOT = 300.0
"""Seconds: what lives so long holds up the removal of every row that died meanwhile."""
_OLD_SLOT = 1_000_000
"""Transactions; a slot notes no time."""
_DEAD_ROWS = 100_000
_DEAD_SHARE = 0.5
_UNFROZEN = 1_000_000_000

Row = Mapping[str, Any]


async def findings(link: Link, address: Address, new: Wanted, clock: Clock) -> list[Finding]:
    """All that is found, always on the same subjects.

    Raises:
        BackendError: no answer, or this role may not ask.
    """
    texts = Statements(PACKAGE)
    before = clock.now()
    (server,) = await link.rows(texts["examined_server"])
    after = clock.now()
    tables = await link.rows(texts["examined_tables"], address.schema, address.prefix)
    snapshots = await link.rows(texts["examined_snapshots"])
    return [
        version(server),
        format_found(await standing(link, address), new),
        durability(server),
        role(server),
        vacuum(server, tables),
        snapshot(snapshots),
        size(server, tables),
        connections(server),
        notifications(link.seen),
        server_clock(server["time"], before, after),
        await latency(link, clock),
    ]


def version(server: Row) -> Finding:
    """Which server this is, and who we are there."""
    return Finding("server", "good", f"PostgreSQL {server['version']}, as {server['user']}")


def format_found(found: Standing, new: Wanted) -> Finding:
    """Whether tables and functions are those of this version."""
    if found.format != new.format:
        text = f"{found.format}; this nimburion writes {new.format}"
        advice = "end the workers of the older version, or run: nimburion migrate up"
        return Finding("format", "warning", text, advice)
    if found.functions != new.digest:
        text = f"{found.format}, but its functions are those of another version"
        return Finding("format", "warning", text, "run: nimburion migrate up")
    return Finding("format", "good", f"{found.format}, the one that this nimburion writes")


def durability(server: Row) -> Finding:
    """What would be lost, and when."""
    if server["fsync"] != "on":
        text = "fsync is off: a crash of the host may destroy the whole database"
        return Finding("durability", "error", text, "set fsync = on")
    if server["full_page_writes"] != "on":
        text = "full_page_writes is off: a power cut may leave torn pages"
        advice = "set full_page_writes = on, unless the file system writes whole pages"
        return Finding("durability", "warning", text, advice)
    if server["synchronous_commit"] == "off":
        text = "synchronous_commit is off: a crash of the server loses what was just enqueued"
        advice = "set synchronous_commit = on for this role: ALTER ROLE … SET synchronous_commit"
        return Finding("durability", "warning", text, advice)
    where = "its disk and a standby's" if server["synchronous_standbys"] else "its disk"
    text = (
        f"what callers ask for is on {where} before the call returns; what workers note outlives "
        "them, and after a crash of the server those jobs may run again"
    )
    return Finding("durability", "good", text)


def role(server: Row) -> Finding:
    """Whether it takes writes."""
    if not server["standby"]:
        return Finding("role", "good", "primary")
    advice = "name the primary, or all servers with commas between; this one can only be read"
    return Finding("role", "error", "a standby: it takes no writes", advice)


def vacuum(server: Row, tables: Sequence[Row]) -> Finding:
    """Whether dead rows are removed."""
    if server["autovacuum"] != "on":
        text = "autovacuum is off: every claim gets slower, until nothing moves"
        return Finding("vacuum", "error", text, "set autovacuum = on")
    off = [table["name"] for table in tables if table["switched_off"]]
    if off:
        text = f"autovacuum is switched off for {', '.join(off)}"
        return Finding("vacuum", "error", text, "ALTER TABLE … RESET (autovacuum_enabled)")
    if server["unfrozen"] > _UNFROZEN:
        text = f"rows {server['unfrozen']:,} transactions old were never frozen"
        return Finding("vacuum", "warning", text, "let autovacuum finish, or run VACUUM FREEZE")
    return _of_dead_rows(tables)


def _of_dead_rows(tables: Sequence[Row]) -> Finding:
    worst = max(tables, key=lambda table: table["dead"], default=None)
    if worst is None or worst["dead"] == 0:
        return Finding("vacuum", "good", "autovacuum is on, and no table holds dead rows")
    text = f"most dead rows in {worst['name']}: {worst['dead']:,} beside {worst['live']:,} live"
    if worst["dead"] < _DEAD_ROWS or worst["dead"] < _DEAD_SHARE * worst["live"]:
        return Finding("vacuum", "good", f"autovacuum is on; {text}")
    advice = (
        "see whether something holds an old snapshot, and give autovacuum more workers or less "
        "cost delay"
    )
    return Finding("vacuum", "warning", text, advice)


def snapshot(found: Sequence[Row]) -> Finding:
    """Whether something old keeps dead rows from being removed."""
    old = [one for one in found if _is_old(one)]
    if not old:
        return Finding("snapshots", "good", "none is old")
    texts = [f"{one['kind']} {one['whose']}, {_age_of(one)} old" for one in old]
    advice = (
        "end it (pg_terminate_backend, ROLLBACK PREPARED, pg_drop_replication_slot): until then no "
        "dead row is removed"
    )
    return Finding("snapshots", "warning", "; ".join(texts), advice)


def _is_old(one: Row) -> bool:
    if one["seconds"] is not None:
        return bool(one["seconds"] > _OLD_SNAPSHOT)
    return bool(one["transactions"] > _OLD_SLOT)


def _age_of(one: Row) -> str:
    if one["seconds"] is not None:
        return f"{one['seconds']:.0f} s"
    return f"{one['transactions']:,} transactions"


def size(server: Row, tables: Sequence[Row]) -> Finding:
    """How much room is taken, and by what."""
    total = sum(table["bytes"] for table in tables)
    largest = max(tables, key=lambda table: table["bytes"], default=None)
    most = f", most of it in {largest['name']}" if largest is not None else ""
    text = f"{format_size(total)}{most}; the database has {format_size(server['bytes'])}"
    return Finding("size", "good", text)


def connections(server: Row) -> Finding:
    """How many connections are left."""
    usable = server["most_connections"] - server["reserved_connections"]
    text = f"{server['connections']} of {usable}"
    if server["connections"] < _NEARLY_ALL * usable:
        return Finding("connections", "good", text)
    advice = "raise max_connections, or put PgBouncer before it (transaction mode will do)"
    return Finding("connections", "warning", text, advice)


def notifications(seen: Seen) -> Finding:
    """How workers learn of new jobs."""
    if not seen.pooled:
        return Finding("wake-up", "good", "by LISTEN, on one connection a process")
    text = (
        "by polling: a pooler stands between (as PgBouncer does), which lets no LISTEN through; a "
        "direct URL starts waiting jobs sooner"
    )
    return Finding("wake-up", "good", text)


def server_clock(there: float, before: float, after: float) -> Finding:
    """How far the clock that counts is from that of this host."""
    off = there - min(max(there, before), after)
    if abs(off) < MAX_CLOCK_OFFSET:
        return Finding("clock", "good", f"within {MAX_CLOCK_OFFSET:g} s of this host's")
    text = f"{off:+.1f} s from this host's"
    return Finding("clock", "warning", text, "use NTP on both; jobs are due by the server's clock")


async def latency(link: Link, clock: Clock) -> Finding:
    """How long a call takes."""
    median = await measure_round_trip(lambda: link.rows("SELECT 1"), clock)
    text = f"a call takes {1000 * median:.2f} ms (median of {PINGS})"
    if median < SLOW_ROUND_TRIP:
        return Finding("latency", "good", text)
    advice = "bring workers and server closer together; each job waits for some of these"
    return Finding("latency", "warning", text, advice)
