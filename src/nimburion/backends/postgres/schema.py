"""Names of tables and functions: the marker `{schema}.` in SQL stands for schema and prefix."""

from __future__ import annotations

from nimburion.backends.postgres.url import PostgresSettings

MARKER = "{schema}."
"""Not valid SQL: a statement in which it was not replaced fails."""


def insert_schema(text: str, settings: PostgresSettings) -> str:
    """Return the SQL with the schema and prefix of one backend.

    Only the schema is quoted: it may be a keyword of SQL. Prefixes and names need no quotes.

    >>> insert_schema(
    ...     "SELECT {schema}.exchange_1($1)", PostgresSettings(schema="jobs", prefix="a_")
    ... )
    'SELECT "jobs".a_exchange_1($1)'
    """
    return text.replace(MARKER, f'"{settings.schema}".{settings.prefix}')
