"""Names of tables and functions: `nb.` in SQL stands for the schema and the prefix."""

from __future__ import annotations

import re

from nimburion.backends.postgres.url import PostgresSettings

_OURS = re.compile(r"\bnb\.(\w+)")


def insert_schema(text: str, settings: PostgresSettings) -> str:
    """Return the SQL with the schema and prefix of one backend.

    >>> insert_schema("SELECT nb.exchange_1($1)", PostgresSettings(schema="jobs", prefix="a_"))
    'SELECT "jobs"."a_exchange_1"($1)'
    """
    return _OURS.sub(lambda match: qualify_name(match[1], settings), text)


def qualify_name(name: str, address: PostgresSettings) -> str:
    """Return the quoted name of a table or function of one backend."""
    return f'"{address.schema}"."{address.prefix}{name}"'
