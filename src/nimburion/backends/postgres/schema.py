"""The schema of a backend in SQL: the placeholder `{schema}` stands for its quoted name."""

from __future__ import annotations

PLACEHOLDER = "{schema}"
"""Not valid SQL: a statement in which it was not replaced fails."""

NOTIFICATION_LOCK = 7043
"""The number of the advisory lock of an enqueue that notifies in its own transaction. The header of
`sql/functions/base.sql` lists all advisory locks.
"""
MIGRATION_LOCK = 7047
"""The number of the advisory lock of migrations."""


def insert_schema(text: str, schema: str) -> str:
    """Return the SQL with the schema of one backend. The name is quoted: it may be a keyword.

    >>> insert_schema("SELECT {schema}.exchange_1($1)", "jobs")
    'SELECT "jobs".exchange_1($1)'
    """
    return text.replace(PLACEHOLDER, f'"{schema}"')
