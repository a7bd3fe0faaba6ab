"""The PostgreSQL backend."""

from nimburion.backends.postgres.backend import PostgresBackend

__all__ = ["PostgresBackend"]
