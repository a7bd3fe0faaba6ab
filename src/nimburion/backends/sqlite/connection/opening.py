"""Open the file: connection settings, format check and migrations."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from nimburion.backends.sql_files import read_migrations
from nimburion.backends.sqlite.connection.disk import OpenFiles
from nimburion.backends.sqlite.errors import is_busy, map_errors
from nimburion.core.errors import ConfigurationError, FormatMismatch

PACKAGE = "nimburion.backends.sqlite"
STATEMENTS = "sql"
MIGRATIONS = "sql/migrations"
OLDEST_SQLITE = (3, 37)
BUSY_TIMEOUT = 5.0
_CACHE_KIB = 64 * 1024
"""KiB of pages that a connection caches. SQLite's default of 2 MiB thrashes at 1 M jobs."""
CHECKPOINT_PAGES = 16_000
"""Pages (64 MiB) of the write-ahead log at which the writer runs a checkpoint itself."""

_MODE = 0o600
"""Mode of a new file. SQLite gives the log and its index the same mode."""
_CREATING = threading.Lock()
"""Held while a file is created. Closing the new file drops all locks of this process on it, so no
other thread may hold a lock on it yet."""

Migration = tuple[int, str, str]
"""Number, name and SQL text of a migration."""


def connect(path: Path, *, for_handler: bool = False) -> sqlite3.Connection:
    """Open a connection to an existing file. The driver begins no transactions on it.

    This opens the log too, so that it belongs to this file even if the names change later.

    `for_handler`: the driver begins a transaction at the first write, and any thread may use the
    connection.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise ConfigurationError(
            f"this Python has SQLite {sqlite3.sqlite_version}; nimburion needs 3.37 or newer"
        )
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?mode=rw",
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level="IMMEDIATE" if for_handler else None,
        check_same_thread=not for_handler,
        cached_statements=512,
    )
    try:
        for pragma in (
            f"cache_size=-{_CACHE_KIB}",
            "temp_store=MEMORY",
            "trusted_schema=OFF",
            "secure_delete=FAST",
            "schema_version",
        ):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def create_file(path: Path) -> None:
    """Create an empty file that only its owner may read, unless it exists.

    Errors are ignored: connecting to the file reports them.
    """
    with _CREATING, suppress(OSError):
        os.close(os.open(path.resolve(), os.O_RDWR | os.O_CREAT | os.O_EXCL, _MODE))


def open_writer(
    path: Path, files: OpenFiles, origin: OpenFiles | None = None
) -> tuple[sqlite3.Connection, list[str]]:
    """Open a connection for writing; create and migrate the file. Also return the migrations run.

    Records the identities of the opened files in `files`. If another handle of this process has
    the file open, its files are the `origin`: then no other file is opened and none is created.
    """
    if origin is None:
        create_file(path)
        files.note_file()
    else:
        files.expect_same_file(origin)
    connection = connect(path)
    try:
        done = prepare_file(connection, path, read_migrations(PACKAGE, MIGRATIONS))
        files.note_log()
        connection.execute("PRAGMA busy_timeout=0")  # the writer thread retries by itself
    except BaseException:
        connection.close()
        raise
    return connection, done


def connect_for_handler(path: Path) -> sqlite3.Connection:
    """Open a connection for a handler. Raises the errors of the contract, not the driver's."""
    with map_errors(path):
        return connect(path, for_handler=True)


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that can only read."""
    connection = connect(path)
    connection.execute("PRAGMA query_only=ON")
    return connection


def prepare_file(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]
) -> list[str]:
    """Migrate the file to the newest format, under its lock; return descriptions of the steps.

    Raises:
        FormatMismatch: a newer version or another program wrote the file.
    """
    current = check_format(connection, path, migrations) == migrations[-1][0]
    retry_while_busy(lambda: connection.execute("PRAGMA journal_mode=WAL"))
    connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
    if current and is_locked(connection):
        return []
    retry_while_busy(lambda: connection.execute("BEGIN IMMEDIATE"))
    try:
        done = run_migrations(connection, check_format(connection, path, migrations), migrations)
        # Changes nothing, but fails if the file is read-only; BEGIN does not fail then.
        connection.execute("DELETE FROM meta WHERE 0")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return done


def is_locked(connection: sqlite3.Connection) -> bool:
    """Return whether a connection holds the write lock now.

    The caller itself may hold it, to enqueue in its own transaction. Waiting would then deadlock.
    """
    connection.execute("PRAGMA busy_timeout=0")
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if not is_busy(error):
            raise
        return True
    finally:
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT * 1000:.0f}")
    connection.execute("ROLLBACK")
    return False


def check_format(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]
) -> int:
    """Return the format of the file; 0 for a new file or one with only an application's tables.

    An application may keep its rows and its jobs in one file, so that one commit covers both.

    Raises:
        FormatMismatch: the format is newer, or the file has other tables of the names needed.
    """
    newest = migrations[-1][0]
    found_names = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    if not {"meta", "job", "lane"} <= found_names:
        taken = sorted(found_names & list_created_names(migrations))
        if not taken:
            return 0
        raise FormatMismatch(
            f"{path} is a SQLite database, but not one of nimburion, and has tables or indexes "
            f"that nimburion would need the names of ({', '.join(taken)}); choose another file"
        )
    row = connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
    found = int(row[0]) if row else 0
    if found > newest:
        raise FormatMismatch(
            f"{path} has format {found}, this nimburion knows formats up to {newest}; nothing was "
            "changed. Upgrade nimburion here (pip install --upgrade nimburion)"
        )
    return found


def list_created_names(migrations: Sequence[Migration]) -> set[str]:
    """Return the names of the tables and indexes that the migrations create."""
    text = "".join(text for _, _, text in migrations)
    return set(re.findall(r"^CREATE (?:TABLE|INDEX) (\w+)", text, re.MULTILINE))


def plan_migrations(path: Path) -> list[str]:
    """Return descriptions of the migrations that opening the file would run.

    Raises:
        FormatMismatch: a newer version or another program wrote the file.
    """
    migrations = read_migrations(PACKAGE, MIGRATIONS)
    if not path.exists():
        return [describe_migration(migration) for migration in migrations]
    with map_errors(path), closing(connect(path)) as connection:
        found = check_format(connection, path, migrations)
    return [describe_migration(migration) for migration in migrations if migration[0] > found]


def describe_migration(migration: Migration) -> str:
    """Return a description of a migration."""
    return f"format {migration[0]}: {migration[1]}"


def run_migrations(
    connection: sqlite3.Connection, found: int, migrations: Sequence[Migration]
) -> list[str]:
    """Run the missing migrations in the open transaction; return their descriptions."""
    done = []
    for migration in migrations:
        if migration[0] > found:
            for statement in split_statements(migration[2]):
                connection.execute(statement)
            done.append(describe_migration(migration))
    if done:
        connection.execute(
            "INSERT INTO meta (name, value) VALUES ('format', ?1) "
            "ON CONFLICT (name) DO UPDATE SET value = ?1",
            (migrations[-1][0],),
        )
    return done


def split_statements(text: str) -> list[str]:
    """Split a script into statements. The driver's `executescript` would commit first."""
    found, statement = [], ""
    for line in text.splitlines(keepends=True):
        statement += line
        if line.rstrip().endswith(";") and sqlite3.complete_statement(statement):
            found.append(statement)
            statement = ""
    return found


def retry_while_busy(step: Callable[[], object], seconds: float = BUSY_TIMEOUT) -> None:
    """Run `step`; retry for up to `seconds` while another process holds the lock.

    Not every statement of SQLite waits by itself.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            step()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.002)
        else:
            return
