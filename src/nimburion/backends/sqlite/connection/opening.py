"""Opening the file: settings of a connection, the format it was written in, and migrations."""

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

from nimburion.backends.sql_files import migrations_of
from nimburion.backends.sqlite.connection.identity import OpenFiles
from nimburion.backends.sqlite.errors import is_busy, map_errors
from nimburion.core.errors import ConfigurationError, FormatMismatch

PACKAGE = "nimburion.backends.sqlite"
MIGRATIONS = "migrations"
OLDEST_SQLITE = (3, 37)
BUSY_TIMEOUT = 5.0
_CACHE_KIB = 64 * 1024
"""KiB of pages a connection may keep. SQLite's own default of 2 MiB thrashes at 1 M jobs."""
CHECKPOINT_PAGES = 16_000
"""Pages (64 MiB) of the write-ahead log at which the writer itself copies them into the file."""

_MODE = 0o600
"""Of a new file; SQLite gives the log and the index the mode of the file."""
_CREATING = threading.Lock()
"""Closing the new file ends all locks that this process has on it: nobody may have any yet."""

Migration = tuple[int, str, str]
"""Number, name and statements."""


def connect(path: Path, *, for_handler: bool = False) -> sqlite3.Connection:
    """A connection to a file that exists, as every thread needs it: no transaction of the driver's.

    The log is opened too, so that it is the one that belongs to this file, whatever becomes of
    their names.

    `for_handler`: the driver begins one with the first write, and any thread may use it.
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
    """Make an empty file that only its owner may read, where there is none. What hinders that is
    for the connection to say."""
    with _CREATING, suppress(OSError):
        os.close(os.open(path.resolve(), os.O_RDWR | os.O_CREAT | os.O_EXCL, _MODE))


def open_writer(path: Path, files: OpenFiles) -> tuple[sqlite3.Connection, list[str]]:
    """A connection that writes, on a file in the newest format; and what was done to get there.

    `files` learns which files these are.
    """
    create_file(path)
    files.note_file()
    connection = connect(path)
    try:
        done = prepare_file(connection, path, migrations_of(PACKAGE, MIGRATIONS))
        files.note_log()
        connection.execute("PRAGMA busy_timeout=0")  # the writer waits for its turn by itself
    except BaseException:
        connection.close()
        raise
    return connection, done


def connect_for_handler(path: Path) -> sqlite3.Connection:
    """A connection for a handler's rows. `BackendReadOnly` and the like are said here."""
    with map_errors(path):
        return connect(path, for_handler=True)


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that only reads."""
    connection = connect(path)
    connection.execute("PRAGMA query_only=ON")
    return connection


def prepare_file(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]
) -> list[str]:
    """Bring the file to the newest format, under its lock; what was done, in words.

    Raises:
        FormatMismatch: written by a newer version, or by something else.
    """
    current = check_format(connection, path, migrations) == migrations[-1][0]
    retry_while_busy(lambda: connection.execute("PRAGMA journal_mode=WAL"))
    connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
    if current and is_locked(connection):
        return []
    retry_while_busy(lambda: connection.execute("BEGIN IMMEDIATE"))
    try:
        done = run_migrations(connection, check_format(connection, path, migrations), migrations)
        # Changes nothing, but fails where a file can only be read; BEGIN does not.
        connection.execute("DELETE FROM meta WHERE 0")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return done


def is_locked(connection: sqlite3.Connection) -> bool:
    """Whether somebody writes just now: it may be the caller, who enqueues inside a transaction
    and would wait for itself."""
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
    """The format of the file; 0 for a new one, and for one that only has tables of others: an
    application keeps its rows beside its jobs, so that one commit can cover both."""
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
    """The tables and indexes that the migrations make."""
    text = "".join(text for _, _, text in migrations)
    return set(re.findall(r"^CREATE (?:TABLE|INDEX) (\w+)", text, re.MULTILINE))


def plan_migrations(path: Path) -> list[str]:
    """What opening would do to bring the file to the newest format, in words.

    Raises:
        FormatMismatch: written by a newer version, or by something else.
    """
    migrations = migrations_of(PACKAGE, MIGRATIONS)
    if not path.exists():
        return [describe_migration(one) for one in migrations]
    with map_errors(path), closing(connect(path)) as connection:
        found = check_format(connection, path, migrations)
    return [describe_migration(one) for one in migrations if one[0] > found]


def describe_migration(migration: Migration) -> str:
    """One step in words."""
    return f"format {migration[0]}: {migration[1]}"


def run_migrations(
    connection: sqlite3.Connection, found: int, migrations: Sequence[Migration]
) -> list[str]:
    """Run what is missing, inside the caller's transaction."""
    done = []
    for one in migrations:
        if one[0] > found:
            for statement in split_statements(one[2]):
                connection.execute(statement)
            done.append(describe_migration(one))
    if done:
        connection.execute(
            "INSERT INTO meta (name, value) VALUES ('format', ?1) "
            "ON CONFLICT (name) DO UPDATE SET value = ?1",
            (migrations[-1][0],),
        )
    return done


def split_statements(text: str) -> list[str]:
    """Split a script; the driver's own way to run one would commit first."""
    found, begun = [], ""
    for line in text.splitlines(keepends=True):
        begun += line
        if line.rstrip().endswith(";") and sqlite3.complete_statement(begun):
            found.append(begun)
            begun = ""
    return found


def retry_while_busy(step: Callable[[], object], seconds: float = BUSY_TIMEOUT) -> None:
    """Do `step`, again while another process holds the lock (not every step waits by itself)."""
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
