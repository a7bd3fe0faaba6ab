"""Map errors of the `sqlite3` driver to the errors of the contract."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nimburion.backends.sqlite.connection.path import is_folder
from nimburion.core.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
    Unstorable,
)

_PRIMARY_CODE_MASK = 0xFF
_EFFECTIVE_IDS = os.access in os.supports_effective_ids


@contextmanager
def map_errors(path: Path) -> Iterator[None]:
    """Raise the contract's error in place of a driver's error, which becomes its cause."""
    try:
        yield
    except Exception as error:
        mapped = convert_error(error, path)
        if mapped is error:
            raise
        raise mapped from error


def convert_error(error: Exception, path: Path) -> Exception:
    """Return the contract's error for an error of the driver, which becomes its cause.

    An error that does not come from the driver is returned as it is.
    """
    if isinstance(error, sqlite3.Error):
        mapped: Exception = map_error(error, path)
    elif isinstance(error, UnicodeEncodeError | OverflowError):
        mapped = Unstorable(f"SQLite cannot hold this: {error}")
    else:
        return error
    mapped.__cause__ = error
    return mapped


def get_error_code(error: BaseException) -> int:
    """Return SQLite's primary result code, or 0 if the driver gives none."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return (code or 0) & _PRIMARY_CODE_MASK


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether the statement failed because another connection holds the lock."""
    return get_error_code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def map_error(error: sqlite3.Error, path: Path) -> BackendError:
    """Return the error of the contract for an error of the driver."""
    code = get_error_code(error)
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return BackendUnavailable(
            f"another process, or an open transaction of this one, kept {path} locked; nothing was "
            "written. To enqueue in a transaction, pass `connection=…`",
            outcome="not applied",
        )
    if code == sqlite3.SQLITE_FULL or _cannot_grow(error):
        return BackendFull(
            f"{path} cannot grow: the disk is full except for the space needed to settle the "
            "stored jobs, or a quota or size limit is reached; nothing was written. Free disk "
            "space; workers then continue"
        )
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN}:
        return _map_write_error(error, path)
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return BackendCorrupt(
            f"{path} cannot be read ({error}); nothing was changed. Stop every process that uses "
            f"it, keep a copy of it with its -wal file, then restore a backup or save what can be "
            f"saved: sqlite3 {path.name} .recover | sqlite3 recovered.db"
        )
    if isinstance(error, sqlite3.IntegrityError | sqlite3.DataError | sqlite3.InterfaceError) or (
        isinstance(error, sqlite3.ProgrammingError) and "binding" in str(error)
    ):
        return Unstorable(f"SQLite cannot hold this: {error}")
    return BackendUnavailable(f"{path}: {error}")


def _cannot_grow(error: sqlite3.Error) -> bool:
    """Return whether the system refused to let a file grow.

    SQLite reports FULL for a full disk only; a quota appears as an I/O error.
    """
    found: int = getattr(error, "sqlite_errorcode", 0)
    return found in {sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}


def _map_write_error(error: sqlite3.Error, path: Path) -> BackendError:
    """Return the error for a file that cannot be opened for writing, with cause and advice."""
    if os.access(path.parent.parent, os.X_OK, effective_ids=_EFFECTIVE_IDS) and not is_folder(
        path.parent
    ):
        return BackendUnavailable(
            f"folder {path.parent} does not exist; make it first", outcome="not applied"
        )
    for what in (path, path.parent):
        seen = os.access(what, os.F_OK) or what == path.parent
        if seen and not os.access(what, os.W_OK, effective_ids=_EFFECTIVE_IDS):
            return BackendReadOnly(
                f"{what} is not writable for this user; nothing was written. SQLite needs to write "
                f"the file and its folder: change the owner or mode, or choose another place"
            )
    return BackendReadOnly(
        f"{path} cannot be written ({error}); nothing was written. Is the file system mounted "
        f"read-only, or {path} no regular file?"
    )
