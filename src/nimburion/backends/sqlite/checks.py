"""Health checks of the file: location, free space, durability, damage, latency.

They change nothing.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from nimburion.backends.checks import format_size, measure_seconds
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.connection.disk import MAX_REWRITE
from nimburion.backends.sqlite.connection.opening import CHECKPOINT_PAGES, open_reader
from nimburion.backends.sqlite.connection.path import NETWORK_FILE_SYSTEMS, find_file_system
from nimburion.backends.sqlite.errors import get_error_code, map_error
from nimburion.core.diagnosis.checks import CheckResult, make_failed_check
from nimburion.core.errors import BackendError
from nimburion.core.timing.clock import MICRO, Clock

_MIB, _GIB = 1 << 20, 1 << 30
_PAGE = 4096
_CHECKPOINT_BYTES = CHECKPOINT_PAGES * _PAGE
"""Size of the write-ahead log, in bytes, at which the writer runs a checkpoint itself."""
_LONG_LOG_BYTES = 4 * _CHECKPOINT_BYTES
_LOW_DISK_BYTES = _GIB
_FULL_DISK_BYTES = 2 * MAX_REWRITE
_EARLIEST_CLOCK = 1_704_067_200.0
"""2024-01-01, in seconds since 1970. An earlier time means that the clock was never set."""
_SLOW_READ = 0.02
_SLOW_LOCK = 0.5
_READS = 5
_MAX_ERRORS_LISTED = 5
_CHECK_SECONDS = 5.0
_REPEAT_FACTOR = 100.0
_SHORT_CHECK = 0.1
"""Seconds. A check that takes less is repeated each time."""
_CHECK_STEPS = 10_000
"""Instructions of SQLite between two reads of the time; they take well below a millisecond."""
_BOUNDED = (3, 42)
"""The first SQLite version whose integrity check can be interrupted.

With an older version, only a file that can be read in `_CHECK_SECONDS` is checked."""
_SMALL = 512 * _MIB
_EFFECTIVE_IDS = os.access in os.supports_effective_ids


def run_checks(db: Database, path: Path, mounts: Path) -> list[CheckResult]:
    """Run all short checks that need only the reader thread, in a fixed order.

    A check that raises an SQLite or operating system error reports it as its result.
    """
    checks: dict[str, Callable[[], CheckResult]] = {
        "file": lambda: _check_file(db, path),
        "version": _check_version,
        "format": lambda: _check_format(db),
        "durability": lambda: check_durability(db),
        "folder": lambda: check_folder(path, mounts),
        "access": lambda: access(path),
        "disk": lambda: check_disk(path),
        "log": lambda: check_log(path),
        "clock": lambda: _check_clock(db),
    }
    return [_run_check(subject, check, path) for subject, check in checks.items()]


def _run_check(subject: str, check: Callable[[], CheckResult], path: Path) -> CheckResult:
    try:
        return check()
    except sqlite3.Error as error:
        return make_failed_check(subject, map_error(error, path))
    except OSError as error:
        advice = "check that the file and its folder exist and can be read"
        return CheckResult(subject, "error", f"cannot be read: {error}", advice)


def _check_file(db: Database, path: Path) -> CheckResult:
    page, pages, free = (
        _read_pragma(db, name) for name in ("page_size", "page_count", "freelist_count")
    )
    spare = f", {format_size(page * free)} of them free for new jobs" if free else ""
    return CheckResult("file", "good", f"{path.absolute()}, {format_size(page * pages)}{spare}")


def _check_version() -> CheckResult:
    text = f"SQLite {sqlite3.sqlite_version}"
    if has_wal_reset_fix(sqlite3.sqlite_version_info):
        return CheckResult("version", "good", text)
    text += (
        ": very rarely, two checkpoints at once damage the file "
        "(https://www.sqlite.org/wal.html#walresetbug)"
    )
    advice = "use a Python that brings SQLite 3.51.3 or newer, or a system package with that fix"
    return CheckResult("version", "warning", text, advice)


def has_wal_reset_fix(version: tuple[int, int, int]) -> bool:
    """Return whether this SQLite version contains the fix of the WAL-reset bug.

    The bug is as old as WAL mode. 3.51.3 fixes it, and so do the backports 3.44.6 and 3.50.7.
    """
    repaired = ((3, 44, 6), (3, 50, 7))
    return version >= (3, 51, 3) or any(
        version[:2] == fixed[:2] and version >= fixed for fixed in repaired
    )


def _check_format(db: Database) -> CheckResult:
    return CheckResult(
        "format", "good", f"{_read_format_and_latest(db)[0]}, the one that this nimburion writes"
    )


def check_durability(db: Database) -> CheckResult:
    """Check the journal mode and describe what a crash or a power cut can lose."""
    mode = _read_pragma(db, "journal_mode")
    if mode == "wal":
        text = (
            "what callers ask for is synced before the call returns (WAL, FULL); what workers note "
            "outlives them, and after a power cut those jobs may run again (NORMAL)"
        )
        return CheckResult("durability", "good", text)
    text = f"no write-ahead log here (journal mode is {mode}): a power cut may damage the file"
    return CheckResult("durability", "warning", text, "put the file on an ordinary local disk")


def check_folder(path: Path, mounts: Path) -> CheckResult:
    """Check that the file is on a local file system and that this user can write it."""
    kind = find_file_system(path, mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        advice = "put the file on a local disk: SQLite's locks do not hold here"
        return CheckResult("folder", "error", f"on a network file system ({kind})", advice)
    for what in (path, path.parent):
        if not os.access(what, os.W_OK, effective_ids=_EFFECTIVE_IDS):
            advice = "change its owner or mode: SQLite writes the file and files beside it"
            return CheckResult("folder", "error", f"{what} is not writable for this user", advice)
    shown = f"on a local file system ({kind})" if kind else "on a file system of unknown kind"
    return CheckResult("folder", "good", f"writable, {shown}")


def access(path: Path) -> CheckResult:
    """Check that other users of the host cannot access the file."""
    mode = path.stat().st_mode & 0o777
    if not mode & 0o007:
        whom = "its owner and group" if mode & 0o070 else "its owner alone"
        return CheckResult("access", "good", f"the file is for {whom} (mode {mode:04o})")
    text = f"other users of this host can use the file (mode {mode:04o}): payloads, results, errors"
    advice = "while no process runs: chmod o= the file and its -wal and -shm files"
    return CheckResult("access", "warning", text, advice)


def check_disk(path: Path) -> CheckResult:
    """Check the free space on the disk of the file."""
    free = shutil.disk_usage(path.parent).free
    text = f"{format_size(free)} are free"
    if free >= _LOW_DISK_BYTES:
        return CheckResult("disk", "good", text)
    if free >= _FULL_DISK_BYTES:
        return CheckResult(
            "disk",
            "warning",
            text,
            f"make room: below {format_size(_FULL_DISK_BYTES)} enqueues fail",
        )
    advice = "make room: enqueues are refused, what is left is for settling the jobs stored here"
    return CheckResult("disk", "error", text, advice)


def check_log(path: Path) -> CheckResult:
    """Check the size of the write-ahead log."""
    try:
        length = path.with_name(f"{path.name}-wal").stat().st_size
    except FileNotFoundError:
        length = 0
    text = f"the write-ahead log has {format_size(length)}"
    if length <= _LONG_LOG_BYTES:
        return CheckResult("log", "good", text)
    advice = (
        "find who keeps a read open (a sqlite3 shell, a backup that hangs) and end it: until then "
        "the log grows, and every read is slower"
    )
    return CheckResult(
        "log", "warning", f"{text}, {format_size(_CHECKPOINT_BYTES)} are usual", advice
    )


def _check_clock(db: Database) -> CheckResult:
    now = db.now / MICRO
    if now < _EARLIEST_CLOCK:
        return CheckResult(
            "clock", "error", "the clock of this host was never set", "set it, use NTP"
        )
    latest = (_read_format_and_latest(db)[1] or 0) / MICRO
    if latest <= now + 1:
        return CheckResult("clock", "good", "no job is from the future")
    text = f"the latest job was stored {latest - now:.0f} s in the future: the clock was set back"
    advice = "set it right and use NTP; until then jobs wait longer than they should"
    return CheckResult("clock", "warning", text, advice)


class IntegrityChecks:
    """Checks a file for damage, on a thread and a connection of its own: other reads do not wait.

    A check that took long is not repeated for `_REPEAT_FACTOR` times its duration, unless it found
    a fault: pages that repeat all checks would read a large file all the time.
    """

    def __init__(self, path: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._monotonic = monotonic
        self._latest: CheckResult | None = None
        self._repeat_at = 0.0

    async def run(self) -> CheckResult:
        """Return the result of a check, or of the latest one."""
        if self._latest is None or self._monotonic() >= self._repeat_at:
            started = self._monotonic()
            found = await self._check()
            ended = self._monotonic()
            self._latest = found if found.verdict == "good" else None
            self._repeat_at = ended + _REPEAT_FACTOR * max(0.0, ended - started - _SHORT_CHECK)
            return found
        return self._latest

    async def _check(self) -> CheckResult:
        is_cancelled = threading.Event()

        def check() -> CheckResult:
            with closing(open_reader(self._path)) as connection:
                return check_integrity(connection, self._path, is_cancelled.is_set)

        try:
            return await asyncio.to_thread(_run_check, "integrity", check, self._path)
        finally:
            is_cancelled.set()


def check_integrity(
    connection: sqlite3.Connection,
    path: Path,
    is_cancelled: Callable[[], bool] = lambda: False,
    seconds: float = _CHECK_SECONDS,
) -> CheckResult:
    """Check the file for damage, for at most `seconds`, or until it is cancelled.

    A file that takes longer is checked in part. SQLite before 3.42 cannot stop the check, so a file
    over 512 MiB is then not checked.
    """
    command = f"sqlite3 {shlex.quote(str(path.absolute()))} 'PRAGMA quick_check'"
    whole = f"to check all of it: {command}"
    if sqlite3.sqlite_version_info < _BOUNDED and path.stat().st_size > _SMALL:
        return CheckResult("integrity", "good", f"not checked, as the file is large; {whole}")
    until = time.monotonic() + seconds
    connection.set_progress_handler(
        lambda: is_cancelled() or time.monotonic() > until, _CHECK_STEPS
    )
    try:
        rows = connection.execute(f"PRAGMA quick_check({_MAX_ERRORS_LISTED})").fetchall()
    except sqlite3.OperationalError as error:
        if get_error_code(error) != sqlite3.SQLITE_INTERRUPT:
            raise
        text = f"no fault found in {seconds:g} s; {whole}"
        return CheckResult("integrity", "good", text)
    finally:
        connection.set_progress_handler(None, 0)
    if rows == [("ok",)]:
        return CheckResult("integrity", "good", "the whole file was checked")
    found = " ".join("; ".join(str(row[0]) for row in rows).split())
    advice = (
        "stop every process that uses it, keep a copy of it with its -wal file, then restore a "
        f"backup or save what can be saved: sqlite3 {shlex.quote(path.name)} .recover | "
        "sqlite3 recovered.db"
    )
    return CheckResult("integrity", "error", f"the file is damaged: {found}", advice)


async def check_read_latency(ping: Callable[[], Awaitable[None]], clock: Clock) -> CheckResult:
    """Measure the latency of a read as a caller sees it: the best of 5."""
    try:
        took = min([await measure_seconds(ping, clock) for _ in range(_READS)])
    except BackendError as error:
        return make_failed_check("reading", error)
    text = f"a read takes {1000 * took:.1f} ms"
    if took < _SLOW_READ:
        return CheckResult("reading", "good", text)
    return CheckResult("reading", "warning", text, "see whether the disk or the host is overloaded")


async def check_write_lock(take_lock: Callable[[], Awaitable[None]], clock: Clock) -> CheckResult:
    """Measure how long a write waits for the write lock, which all writers share."""
    try:
        took = await measure_seconds(take_lock, clock)
    except BackendError as error:
        return make_failed_check("write lock", error)
    text = f"acquired after {1000 * took:.1f} ms"
    if took < _SLOW_LOCK:
        return CheckResult("write lock", "good", text)
    advice = "find what else writes this file in long transactions, and end or shorten them"
    return CheckResult("write lock", "warning", text, advice)


def _read_format_and_latest(db: Database) -> tuple[int, int | None]:
    found = db.fetch_one("get_format_and_latest")
    assert found is not None
    return found[0], found[1]


def _read_pragma(db: Database, name: str) -> Any:  # noqa: ANN401 (what SQLite gives)
    return db.connection.execute(f"PRAGMA {name}").fetchone()[0]
