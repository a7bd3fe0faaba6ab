"""The PostgreSQL store."""

from nimburion.backends.postgres.store import PostgresBackend

__all__ = ["PostgresBackend"]
