"""The SQLite backend, the default: it stores jobs durably in one file and needs no server."""

from nimburion.backends.sqlite.backend import SQLiteBackend

__all__ = ["SQLiteBackend"]
