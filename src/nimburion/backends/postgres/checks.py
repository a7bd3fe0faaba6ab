"""Checks of the server for operators: durability, vacuum, size, speed. They change nothing."""

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
from nimburion.backends.postgres.connection.connect import PostgresServerInfo
from nimburion.backends.postgres.connection.pool import PostgresConnection
from nimburion.backends.postgres.migrations import (
    MISSING,
    PACKAGE,
    CurrentFormat,
    InstalledFormat,
    find_wrong_functions,
    read_installed_format,
)
from nimburion.backends.postgres.url import PostgresSettings
from nimburion.backends.sql_files import Statements
from nimburion.core.diagnosis.checks import CheckResult, Verdict
from nimburion.core.timing.clock import Clock

_NEARLY_ALL = 0.8
_PER_WORKER = 2
"""The connections of an idle worker: for exchanges and for heartbeats."""
_SUPERVISED = 8
"""The worker processes of a supervisor, where the report needs a number."""
_OLD_SNAPSHOT = 300.0
"""The age in seconds from which a snapshot counts as old. It prevents the removal of all rows that
were deleted since.
"""
_OLD_SLOT = 1_000_000
"""The age in transactions from which a replication slot counts as old; a slot records no time."""
_DEAD_ROWS = 100_000
_DEAD_SHARE = 0.5
_UNFROZEN = 1_000_000_000

Row = Mapping[str, Any]


async def run_checks(
    connection: PostgresConnection, settings: PostgresSettings, current: CurrentFormat, clock: Clock
) -> list[CheckResult]:
    """Run all checks. The subjects are always the same.

    Raises:
        BackendError: the server does not answer, or this role lacks a permission.
    """
    texts = Statements(PACKAGE, "sql")
    before = clock.now()
    (server,) = await connection.fetch(texts["examined_server"])
    after = clock.now()
    tables = await connection.fetch(texts["examined_tables"], settings.schema)
    snapshots = await connection.fetch(texts["examined_snapshots"])
    return [
        check_version(server),
        check_format(
            await read_installed_format(connection, settings),
            current,
            await find_wrong_functions(connection, settings, current),
        ),
        check_durability(server),
        check_role(server),
        check_vacuum(server, tables),
        check_snapshots(snapshots),
        check_size(server, tables),
        check_connections(server),
        check_notifications(connection.server),
        check_clock(server["time"], before, after),
        await check_latency(connection, clock),
    ]


def check_version(server: Row) -> CheckResult:
    """Report the version of the server and the role of this connection."""
    return CheckResult("server", "good", f"PostgreSQL {server['version']}, as {server['user']}")


def check_format(
    installed: InstalledFormat, current: CurrentFormat, wrong_functions: Mapping[str, str]
) -> CheckResult:
    """Check whether tables and functions have the format of this version."""
    if installed.format != current.format:
        text = f"{installed.format}; this nimburion writes {current.format}"
        advice = "end the workers of the older version, or run: nimburion migrate up"
        return CheckResult("format", "warning", text, advice)
    if installed.functions != current.digest:
        text = f"{installed.format}, but its functions are those of another version"
        return CheckResult("format", "warning", text, "run: nimburion migrate up")
    if wrong_functions:
        name, problem = next(iter(wrong_functions.items()))
        more = f" (and {len(wrong_functions) - 1} more)" if len(wrong_functions) > 1 else ""
        text = f"{installed.format}, but the function {name} {problem}{more}"
        verdict: Verdict = "error" if MISSING in wrong_functions.values() else "warning"
        return CheckResult("format", verdict, text, "run: nimburion migrate up")
    return CheckResult("format", "good", f"{installed.format}, the one that this nimburion writes")


def check_durability(server: Row) -> CheckResult:
    """Report which data a failure could lose, and when."""
    if server["fsync"] != "on":
        text = "fsync is off: a crash of the host may destroy the whole database"
        return CheckResult("durability", "error", text, "set fsync = on")
    if server["full_page_writes"] != "on":
        text = "full_page_writes is off: a power cut may leave torn pages"
        advice = "set full_page_writes = on, unless the file system writes whole pages"
        return CheckResult("durability", "warning", text, advice)
    if server["synchronous_commit"] == "off":
        text = "synchronous_commit is off: a crash of the server loses what was just enqueued"
        advice = "set synchronous_commit = on for this role: ALTER ROLE … SET synchronous_commit"
        return CheckResult("durability", "warning", text, advice)
    where = "its disk and a standby's" if server["synchronous_standbys"] else "its disk"
    text = (
        f"calls of applications are on {where} before they return; a crash of the server may lose "
        "the last writes of workers, and then jobs run again"
    )
    return CheckResult("durability", "good", text)


def check_role(server: Row) -> CheckResult:
    """Check whether the server takes writes."""
    if not server["standby"]:
        return CheckResult("role", "good", "primary")
    advice = "name the primary, or all servers separated by commas"
    return CheckResult("role", "error", "a standby: it is read-only", advice)


def check_vacuum(server: Row, tables: Sequence[Row]) -> CheckResult:
    """Check whether dead rows are removed."""
    if server["autovacuum"] != "on":
        text = "autovacuum is off: exchanges become slower and slower"
        return CheckResult("vacuum", "error", text, "set autovacuum = on")
    off = [table["name"] for table in tables if table["switched_off"]]
    if off:
        text = f"autovacuum is switched off for {', '.join(off)}"
        return CheckResult("vacuum", "error", text, "ALTER TABLE … RESET (autovacuum_enabled)")
    if server["unfrozen"] > _UNFROZEN:
        text = f"rows {server['unfrozen']:,} transactions old were never frozen"
        return CheckResult("vacuum", "warning", text, "let autovacuum finish, or run VACUUM FREEZE")
    return _check_dead_rows(tables)


def _check_dead_rows(tables: Sequence[Row]) -> CheckResult:
    worst = max(tables, key=lambda table: table["dead"], default=None)
    if worst is None or worst["dead"] == 0:
        return CheckResult("vacuum", "good", "autovacuum is on, and no table holds dead rows")
    text = f"most dead rows in {worst['name']}: {worst['dead']:,} beside {worst['live']:,} live"
    if worst["dead"] < _DEAD_ROWS or worst["dead"] < _DEAD_SHARE * worst["live"]:
        return CheckResult("vacuum", "good", f"autovacuum is on; {text}")
    advice = (
        "see whether something holds an old snapshot, and give autovacuum more workers or less "
        "cost delay"
    )
    return CheckResult("vacuum", "warning", text, advice)


def check_snapshots(found: Sequence[Row]) -> CheckResult:
    """Check whether an old snapshot prevents the removal of dead rows."""
    old = [holder for holder in found if _is_old(holder)]
    if not old:
        return CheckResult("snapshots", "good", "none is old")
    texts = [f"{holder['kind']} {holder['whose']}, {_format_age(holder)} old" for holder in old]
    advice = (
        "end it (pg_terminate_backend, ROLLBACK PREPARED, pg_drop_replication_slot): until then no "
        "dead row is removed"
    )
    return CheckResult("snapshots", "warning", "; ".join(texts), advice)


def _is_old(holder: Row) -> bool:
    if holder["seconds"] is not None:
        return bool(holder["seconds"] > _OLD_SNAPSHOT)
    return bool(holder["transactions"] > _OLD_SLOT)


def _format_age(holder: Row) -> str:
    if holder["seconds"] is not None:
        return f"{holder['seconds']:.0f} s"
    return f"{holder['transactions']:,} transactions"


def check_size(server: Row, tables: Sequence[Row]) -> CheckResult:
    """Report the disk space in use, and the largest table."""
    total = sum(table["bytes"] for table in tables)
    largest = max(tables, key=lambda table: table["bytes"], default=None)
    most = f", most of it in {largest['name']}" if largest is not None else ""
    text = f"{format_size(total)}{most}; the database has {format_size(server['bytes'])}"
    return CheckResult("size", "good", text)


def check_connections(server: Row) -> CheckResult:
    """Check how many connections are free, and for how many more workers they are enough."""
    usable = server["most_connections"] - server["reserved_connections"]
    free = max(0, usable - server["connections"])
    text = (
        f"{server['connections']} of {usable}; the others are enough for {count_workers(free)} "
        f"more idle workers under supervisors of {_SUPERVISED} processes, or "
        f"{count_workers(free, 1)} alone"
    )
    if server["connections"] < _NEARLY_ALL * usable:
        return CheckResult("connections", "good", text)
    advice = "raise max_connections, or use PgBouncer (transaction mode works)"
    return CheckResult("connections", "warning", text, advice)


def count_workers(connections: int, processes: int = _SUPERVISED) -> int:
    """Return for how many idle workers these connections are enough. Each supervisor has this many
    worker processes, which share one more connection that listens. A worker alone listens on the
    one for exchanges.

    >>> count_workers(97), count_workers(97, 1)
    (45, 48)
    """
    shared = 1 if processes > 1 else 0
    supervisors, left = divmod(connections, _PER_WORKER * processes + shared)
    return supervisors * processes + max(0, left - shared) // _PER_WORKER


def check_notifications(server: PostgresServerInfo) -> CheckResult:
    """Report how workers learn of new jobs."""
    if not server.pooled:
        text = "by LISTEN, on one connection for each supervisor or worker alone"
        return CheckResult("wake-up", "good", text)
    text = (
        "by polling: the server is reached through a pooler (such as PgBouncer), which does not "
        "support LISTEN; with a direct URL, waiting jobs start sooner"
    )
    return CheckResult("wake-up", "good", text)


def check_clock(there: float, before: float, after: float) -> CheckResult:
    """Compare the server's clock, which counts, with the clock of this host."""
    off = there - min(max(there, before), after)
    if abs(off) < MAX_CLOCK_OFFSET:
        return CheckResult("clock", "good", f"within {MAX_CLOCK_OFFSET:g} s of this host's")
    text = f"{off:+.1f} s from this host's"
    return CheckResult(
        "clock", "warning", text, "use NTP on both; jobs are due by the server's clock"
    )


async def check_latency(connection: PostgresConnection, clock: Clock) -> CheckResult:
    """Measure the duration of a call."""
    median = await measure_round_trip(lambda: connection.fetch("SELECT 1"), clock)
    text = f"a call takes {1000 * median:.2f} ms (median of {PINGS})"
    if median < SLOW_ROUND_TRIP:
        return CheckResult("latency", "good", text)
    advice = "run the workers closer to the server; each job needs several calls"
    return CheckResult("latency", "warning", text, advice)
