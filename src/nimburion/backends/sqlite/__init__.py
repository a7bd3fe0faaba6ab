"""The SQLite backend: the embedded default. One file, no server, durable."""

from nimburion.backends.sqlite.backend import SQLiteBackend

__all__ = ["SQLiteBackend"]
