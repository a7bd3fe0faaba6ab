"""Our tables and functions by their names: `nb.` in SQL stands for the schema and the prefix."""

from __future__ import annotations

import re

from nimburion.backends.postgres.url import Address

_OURS = re.compile(r"\bnb\.(\w+)")


def named(text: str, address: Address) -> str:
    """The SQL with the names of one store.

    >>> named("SELECT nb.exchange_1($1)", Address(schema="jobs", prefix="a_"))
    'SELECT "jobs"."a_exchange_1"($1)'
    """
    return _OURS.sub(lambda match: name_of(match[1], address), text)


def name_of(name: str, address: Address) -> str:
    """One table or function of one store."""
    return f'"{address.schema}"."{address.prefix}{name}"'
