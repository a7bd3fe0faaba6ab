"""Names and numbers in SQL: the marker `{schema}.` stands for schema and prefix."""

from __future__ import annotations

from nimburion.backends.postgres.url import PostgresSettings

MARKER = "{schema}."
"""Not valid SQL: a statement in which it was not replaced fails."""

NOTIFICATION_LOCK = 7043
"""The number of the advisory lock of an enqueue that notifies in its own transaction. The header of
`sql/functions/base.sql` lists all advisory locks.
"""


def insert_schema(text: str, settings: PostgresSettings) -> str:
    """Return the SQL with the schema and prefix of one backend.

    Only the schema is quoted: it may be a keyword of SQL. Prefixes and names need no quotes.

    >>> insert_schema(
    ...     "SELECT {schema}.exchange_1($1)", PostgresSettings(schema="jobs", prefix="a_")
    ... )
    'SELECT "jobs".a_exchange_1($1)'
    """
    return text.replace(MARKER, f'"{settings.schema}".{settings.prefix}')
