"""The PostgreSQL store."""

from nimburion.backends.postgres.backend import PostgresBackend

__all__ = ["PostgresBackend"]
