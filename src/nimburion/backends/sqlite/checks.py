"""What an operator should know of the file: place, room, durability, speed. Changes nothing."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nimburion.backends.checks import format_size, measure_seconds
from nimburion.backends.sqlite.connection.database import MICRO, Database
from nimburion.backends.sqlite.connection.opening import CHECKPOINT
from nimburion.backends.sqlite.connection.path import NETWORKED, file_system_of
from nimburion.backends.sqlite.connection.space import KEPT
from nimburion.backends.sqlite.errors import code_of, meaning_of
from nimburion.core.checks import Finding, finding_of
from nimburion.core.clock import Clock
from nimburion.core.errors import BackendError

_MIB, _GIB = 1 << 20, 1 << 30
_PAGE = 4096
_LOG = CHECKPOINT * _PAGE
"""Bytes at which the writer itself empties the write-ahead log."""
_LONG_LOG = 4 * _LOG
_LITTLE_ROOM = _GIB
_NO_ROOM = 2 * KEPT
_BUILT = 1_704_067_200.0
"""2024-01-01: a clock that shows less was never set."""
_SLOW_READ = 0.02
_SLOW_LOCK = 0.5
_READS = 5
_MOST_FAULTS = 5
_CHECK_SECONDS = 5.0
_CHECK_STEPS = 10_000
"""Instructions of SQLite between two looks at the time: well below a millisecond."""
_BOUNDED = (3, 42)
"""The first SQLite whose check can be interrupted; an older one checks only a file that is small
enough to be read in `_CHECK_SECONDS`."""
_SMALL = 512 * _MIB
_EFFECTIVE = os.access in os.supports_effective_ids


def examine(db: Database, path: Path, mounts: Path) -> list[Finding]:
    """All that is found on the reader's thread; what a look is refused becomes its finding."""
    looks: dict[str, Callable[[], Finding]] = {
        "file": lambda: _file(db, path),
        "version": _version,
        "format": lambda: _format(db),
        "durability": lambda: durability(db),
        "folder": lambda: folder(path, mounts),
        "access": lambda: access(path),
        "disk": lambda: disk(path),
        "log": lambda: log(path),
        "clock": lambda: _clock(db),
        "integrity": lambda: integrity(db, path),
    }
    return [_looked(subject, look, path) for subject, look in looks.items()]


def _looked(subject: str, look: Callable[[], Finding], path: Path) -> Finding:
    try:
        return look()
    except sqlite3.Error as error:
        return finding_of(subject, meaning_of(error, path))
    except OSError as error:
        advice = "see that the file and its folder can be reached from here"
        return Finding(subject, "error", f"cannot be looked at: {error}", advice)


def _file(db: Database, path: Path) -> Finding:
    page, pages, free = (
        _pragma(db, name) for name in ("page_size", "page_count", "freelist_count")
    )
    spare = f", {format_size(page * free)} of them free for new jobs" if free else ""
    return Finding("file", "good", f"{path.absolute()}, {format_size(page * pages)}{spare}")


def _version() -> Finding:
    text = f"SQLite {sqlite3.sqlite_version}"
    if resets_safely(sqlite3.sqlite_version_info):
        return Finding("version", "good", text)
    text += (
        ": very rarely, two checkpoints at once damage the file "
        "(https://www.sqlite.org/wal.html#walresetbug)"
    )
    advice = "use a Python that brings SQLite 3.51.3 or newer, or a system package with that fix"
    return Finding("version", "warning", text, advice)


def resets_safely(version: tuple[int, int, int]) -> bool:
    """Whether this SQLite has the repair of the WAL-reset bug, which is as old as the log."""
    repaired = ((3, 44, 6), (3, 50, 7))
    return version >= (3, 51, 3) or any(
        version[:2] == one[:2] and version >= one for one in repaired
    )


def _format(db: Database) -> Finding:
    return Finding("format", "good", f"{_examined(db)[0]}, the one that this nimburion writes")


def durability(db: Database) -> Finding:
    """What would be lost, and when."""
    mode = _pragma(db, "journal_mode")
    if mode == "wal":
        text = (
            "what callers ask for is synced before the call returns (WAL, FULL); what workers note "
            "outlives them, and after a power cut those jobs may run again (NORMAL)"
        )
        return Finding("durability", "good", text)
    text = f"no write-ahead log here (journal mode is {mode}): a power cut may damage the file"
    return Finding("durability", "warning", text, "put the file on an ordinary local disk")


def folder(path: Path, mounts: Path) -> Finding:
    """Whether the file may lie here, and this user may write it."""
    kind = file_system_of(path, mounts)
    if kind in NETWORKED:
        advice = "put the file on a local disk: SQLite's locks do not hold here"
        return Finding("folder", "error", f"on a network file system ({kind})", advice)
    for what in (path, path.parent):
        if not os.access(what, os.W_OK, effective_ids=_EFFECTIVE):
            advice = "change its owner or mode: SQLite writes the file and files beside it"
            return Finding("folder", "error", f"{what} is not writable for this user", advice)
    shown = f"on a local file system ({kind})" if kind else "on a file system of unknown kind"
    return Finding("folder", "good", f"writable, {shown}")


def access(path: Path) -> Finding:
    """Who may read and write the file."""
    mode = path.stat().st_mode & 0o777
    if not mode & 0o007:
        whom = "its owner and group" if mode & 0o070 else "its owner alone"
        return Finding("access", "good", f"the file is for {whom} (mode {mode:04o})")
    text = f"other users of this host can use the file (mode {mode:04o}): payloads, results, errors"
    advice = "while no process runs: chmod o= the file and its -wal and -shm files"
    return Finding("access", "warning", text, advice)


def disk(path: Path) -> Finding:
    """How much room there is."""
    free = shutil.disk_usage(path.parent).free
    text = f"{format_size(free)} are free"
    if free >= _LITTLE_ROOM:
        return Finding("disk", "good", text)
    if free >= _NO_ROOM:
        return Finding(
            "disk", "warning", text, f"make room: below {format_size(_NO_ROOM)} enqueues fail"
        )
    advice = "make room: enqueues are refused, what is left is for settling the jobs stored here"
    return Finding("disk", "error", text, advice)


def log(path: Path) -> Finding:
    """How long the write-ahead log has grown."""
    try:
        length = path.with_name(f"{path.name}-wal").stat().st_size
    except FileNotFoundError:
        length = 0
    text = f"the write-ahead log has {format_size(length)}"
    if length <= _LONG_LOG:
        return Finding("log", "good", text)
    advice = (
        "find who keeps a read open (a sqlite3 shell, a backup that hangs) and end it: until then "
        "the log grows, and every read is slower"
    )
    return Finding("log", "warning", f"{text}, {format_size(_LOG)} are usual", advice)


def _clock(db: Database) -> Finding:
    now = db.now / MICRO
    if now < _BUILT:
        return Finding("clock", "error", "the clock of this host was never set", "set it, use NTP")
    latest = (_examined(db)[1] or 0) / MICRO
    if latest <= now + 1:
        return Finding("clock", "good", "no job is from the future")
    text = f"the latest job was stored {latest - now:.0f} s in the future: the clock was set back"
    advice = "set it right and use NTP; until then jobs wait longer than they should"
    return Finding("clock", "warning", text, advice)


def integrity(db: Database, path: Path, seconds: float = _CHECK_SECONDS) -> Finding:
    """Whether the file is whole, as far as `seconds` of reading tell."""
    command = f"sqlite3 {shlex.quote(str(path.absolute()))} 'PRAGMA quick_check'"
    whole = f"to check all of it: {command}"
    if sqlite3.sqlite_version_info < _BOUNDED and path.stat().st_size > _SMALL:
        return Finding("integrity", "good", f"not checked, as the file is large; {whole}")
    until = time.monotonic() + seconds
    db.connection.set_progress_handler(lambda: time.monotonic() > until, _CHECK_STEPS)
    try:
        rows = db.connection.execute(f"PRAGMA quick_check({_MOST_FAULTS})").fetchall()
    except sqlite3.OperationalError as error:
        if code_of(error) != sqlite3.SQLITE_INTERRUPT:
            raise
        text = f"no fault found in {seconds:g} s; {whole}"
        return Finding("integrity", "good", text)
    finally:
        db.connection.set_progress_handler(None, 0)
    if rows == [("ok",)]:
        return Finding("integrity", "good", "the whole file was checked")
    found = " ".join("; ".join(str(row[0]) for row in rows).split())
    advice = (
        "stop every process that uses it, keep a copy of it with its -wal file, then restore a "
        f"backup or save what can be saved: sqlite3 {shlex.quote(path.name)} .recover | "
        "sqlite3 recovered.db"
    )
    return Finding("integrity", "error", f"the file is damaged: {found}", advice)


async def reading(ping: Callable[[], Awaitable[None]], clock: Clock) -> Finding:
    """How long a read takes, the way that a caller's does: the best of some."""
    try:
        took = min([await measure_seconds(ping, clock) for _ in range(_READS)])
    except BackendError as error:
        return finding_of("reading", error)
    text = f"a read takes {1000 * took:.1f} ms"
    if took < _SLOW_READ:
        return Finding("reading", "good", text)
    return Finding("reading", "warning", text, "see whether the disk or the host is overloaded")


async def write_lock(take: Callable[[], Awaitable[None]], clock: Clock) -> Finding:
    """How long the lock that all who write share is waited for."""
    try:
        took = await measure_seconds(take, clock)
    except BackendError as error:
        return finding_of("write lock", error)
    text = f"had after {1000 * took:.1f} ms"
    if took < _SLOW_LOCK:
        return Finding("write lock", "good", text)
    advice = "find what else writes this file in long transactions, and end or shorten them"
    return Finding("write lock", "warning", text, advice)


def _examined(db: Database) -> tuple[int, int | None]:
    found = db.one("examined")
    assert found is not None
    return found[0], found[1]


def _pragma(db: Database, name: str) -> Any:  # noqa: ANN401 (what SQLite gives)
    return db.connection.execute(f"PRAGMA {name}").fetchone()[0]
