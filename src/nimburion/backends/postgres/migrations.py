"""Migrations: compare the installed tables and functions with this version, and update them."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from nimburion.backends.postgres.connection.connect import Driver
from nimburion.backends.postgres.connection.pool import PostgresConnection
from nimburion.backends.postgres.errors import DRIVER_ERRORS, get_error_code, map_error
from nimburion.backends.postgres.schema import MIGRATION_LOCK, PLACEHOLDER, insert_schema
from nimburion.backends.postgres.url import PostgresSettings
from nimburion.backends.sql_files import Statements, read_migrations
from nimburion.core.errors import BackendUnavailable, ConfigurationError, FormatMismatch

PACKAGE = "nimburion.backends.postgres"
LOCK_TIMEOUT = 60.0
"""Seconds to wait, in total, for tables that other transactions have locked."""
_LOCK_TIMEOUT_PER_TRY = "2s"
"""The wait for a lock in one attempt. During this time all later lock requests queue up behind it.
"""
_PAUSE = 1.0
"""Seconds between two attempts, in which the queued transactions can proceed."""
_META_QUERY = "SELECT format, oldest, functions, identity FROM {schema}.meta"
_IS_INSTALLED = """SELECT EXISTS (
    SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = 'meta')"""
"""Reads the catalog rows. `to_regclass` may not yet see tables that another process created while
this one waited for the advisory lock.
"""
_LOCK = f"SELECT pg_advisory_xact_lock(hashtextextended($1, {MIGRATION_LOCK}))"
_LOCK_CODES = frozenset({"55P03", "40P01", "40001"})
_NAME_TAKEN_CODES = frozenset({"42P07", "42710", "42723"})
"""Codes for a table, type or function whose name exists already."""
_FUNCTION_HASHES = """SELECT p.proname, encode(sha256(convert_to(p.prosrc, 'UTF8')), 'hex')
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = $1"""
_TABLES = """SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1"""
_FUNCTION = re.compile(
    rf"^CREATE OR REPLACE FUNCTION {re.escape(PLACEHOLDER)}\.(\w+)\(.*?\bAS \$\$(.*?)\$\$",
    re.DOTALL | re.MULTILINE,
)
"""A function in a text, with its name and its body."""
MISSING = "is missing"
_CHANGED = "is not that of this version"
_CREATED = re.compile(
    rf"^CREATE (?:(?:UNLOGGED )?TABLE|VIEW|SEQUENCE) ({re.escape(PLACEHOLDER)}\.\w+)", re.MULTILINE
)

Migration = tuple[int, str, str]
"""Number, name and statements."""


class InstalledFormat(msgspec.Struct, frozen=True):
    """The format that is installed in the database."""

    format: int
    """The number of the format; 0: nothing is installed."""
    oldest: int = 0
    functions: str = ""
    identity: str = ""
    """A random value that distinguishes this backend from others."""


NOT_INSTALLED = InstalledFormat(0)


class CurrentFormat(msgspec.Struct, frozen=True):
    """The format that this version of nimburion contains."""

    migrations: Sequence[Migration]
    functions: Sequence[tuple[str, str]]
    """Name and text of each function, in the order of creation."""

    @property
    def format(self) -> int:
        """The number of the newest migration."""
        return self.migrations[-1][0]

    @property
    def digest(self) -> str:
        """A hash that distinguishes these functions from those of other versions."""
        texts = "\0".join(text for _, text in self.functions)
        return hashlib.blake2b(texts.encode(), digest_size=16).hexdigest()

    def hash_functions(self, schema: str) -> dict[str, str]:
        """Return a hash of the body of each function in a schema, by the name of the function."""
        return {
            name: hashlib.sha256(insert_schema(body, schema).encode()).hexdigest()
            for _, text in self.functions
            for name, body in _FUNCTION.findall(text)
        }


@cache
def load_current_format() -> CurrentFormat:
    """Load the migrations and functions from the SQL files of this package, once a process."""
    functions = Statements(PACKAGE, "sql/functions")
    return CurrentFormat(
        tuple(read_migrations(PACKAGE, "sql/migrations")),
        tuple((name, functions[name]) for name in functions),
    )


async def ensure_format(
    connection: PostgresConnection, settings: PostgresSettings, current: CurrentFormat
) -> InstalledFormat:
    """Prepare the format for a backend that opens. In an empty database, create the tables. An old
    format is not changed; `nimburion migrate up` does that.

    Raises:
        FormatMismatch: the format is too old, or too new for this nimburion. The message names
            the command to run.
        ConfigurationError: nothing is installed, and this role may not create tables.
    """
    found = await read_installed_format(connection, settings)
    if found.format == 0:
        await run_migrations(connection, settings, current)
        found = await read_installed_format(connection, settings)
    check_format(found, settings, current)
    return found


async def read_installed_format(
    connection: PostgresConnection, settings: PostgresSettings
) -> InstalledFormat:
    """Read the installed format. Changes nothing."""
    if not await connection.fetch_value(_IS_INSTALLED, settings.schema):
        return NOT_INSTALLED
    return _decode_installed_format(
        await connection.fetch(insert_schema(_META_QUERY, settings.schema))
    )


def _decode_installed_format(rows: Sequence[Any]) -> InstalledFormat:
    ((number, oldest, functions, identity),) = rows
    return InstalledFormat(number, oldest, functions, identity)


async def find_wrong_functions(
    connection: PostgresConnection, settings: PostgresSettings, current: CurrentFormat
) -> dict[str, str]:
    """Return what is wrong with functions of the current format that are missing or have another
    body, by name.
    """
    return _compare_functions(
        await connection.fetch(_FUNCTION_HASHES, settings.schema), settings, current
    )


def _compare_functions(
    rows: Sequence[Any], settings: PostgresSettings, current: CurrentFormat
) -> dict[str, str]:
    installed = {(name, digest) for name, digest in rows}
    names = {name for name, _ in installed}
    return {
        name: _CHANGED if name in names else MISSING
        for name, digest in current.hash_functions(settings.schema).items()
        if (name, digest) not in installed
    }


def check_format(
    installed: InstalledFormat, settings: PostgresSettings, current: CurrentFormat
) -> None:
    """Raise `FormatMismatch` unless this nimburion can work with the installed format."""
    where = settings.describe()
    if installed.format < current.format:
        raise FormatMismatch(
            f"{where} has format {installed.format}, this nimburion needs {current.format}; run: "
            "nimburion "
            "migrate up (it may run while older workers do)"
        )
    reject_newer(installed, settings, current)


def reject_newer(
    installed: InstalledFormat, settings: PostgresSettings, current: CurrentFormat
) -> None:
    """Raise `FormatMismatch` for a newer format that does not support this nimburion."""
    if installed.format > current.format and installed.oldest > current.format:
        raise FormatMismatch(
            f"{settings.describe()} has format {installed.format}, this nimburion knows formats up "
            "to "
            f"{current.format}; nothing was changed. Upgrade nimburion here (pip install --upgrade "
            "nimburion)"
        )


async def find_missing_tables(
    connection: PostgresConnection, settings: PostgresSettings, current: CurrentFormat
) -> list[str]:
    """Return the tables and views of the current format that the database does not have."""
    return _list_missing_tables(await connection.fetch(_TABLES, settings.schema), current)


def _list_missing_tables(rows: Sequence[Any], current: CurrentFormat) -> list[str]:
    installed = {name for (name,) in rows}
    names = (table.removeprefix(f"{PLACEHOLDER}.") for table in list_created_tables(current))
    return [name for name in names if name not in installed]


def reject_other_tables(
    installed: InstalledFormat,
    settings: PostgresSettings,
    current: CurrentFormat,
    missing_tables: Sequence[str],
) -> None:
    """Raise `FormatMismatch` if the format is the current one, but tables of it are missing: before
    the first release, tables change without a new format. `missing_tables` is the result of
    `find_missing_tables`.
    """
    if installed.format == current.format and missing_tables:
        raise FormatMismatch(
            f"{settings.describe()} has format {installed.format}, but not its tables "
            f"{', '.join(missing_tables)}: a version before the first release made it, and nothing "
            "was changed. Keep no jobs there, then drop it "
            f'(DROP SCHEMA "{settings.schema}" CASCADE) and run: nimburion migrate up'
        )


def plan_migrations(
    installed: InstalledFormat,
    settings: PostgresSettings,
    current: CurrentFormat,
    wrong_functions: Mapping[str, str],
    missing_tables: Sequence[str],
) -> list[str]:
    """Return descriptions of what `migrate` would do. `wrong_functions` is the result of
    `find_wrong_functions`, `missing_tables` that of `find_missing_tables`.

    Raises:
        FormatMismatch: the format is newer than this nimburion, or its tables are not those of the
            format.
    """
    reject_newer(installed, settings, current)
    reject_other_tables(installed, settings, current, missing_tables)
    if installed.format > current.format:
        return []
    steps = [
        f"format {number}: {name}" if number else f"schema {settings.schema}: {name}"
        for number, name, _ in find_missing(installed, current)
    ]
    if installed.functions != current.digest:
        return [*steps, f"functions of format {current.format}: {len(current.functions)}"]
    return steps + [
        f"function {name}, which {problem}" for name, problem in wrong_functions.items()
    ]


def find_missing(installed: InstalledFormat, current: CurrentFormat) -> list[Migration]:
    """Return the migrations that have not run. Migration 0 creates the table that records the
    format.
    """
    least = -1 if installed == NOT_INSTALLED else installed.format
    return [migration for migration in current.migrations if migration[0] > least]


async def run_migrations(
    connection: PostgresConnection,
    settings: PostgresSettings,
    current: CurrentFormat,
    *,
    timeout: float = LOCK_TIMEOUT,
) -> list[str]:
    """Update tables and functions to the newest format; return descriptions of the changes.

    All changes are one transaction, and one process runs at a time. Each attempt waits two seconds
    for locked tables, so that a busy backend does not stall for longer. Attempts repeat until the
    locks are acquired.

    Raises:
        BackendUnavailable: the locks were not acquired within the timeout; nothing was changed.
        ConfigurationError: this role lacks a permission.
        FormatMismatch: see `plan_migrations`.
    """
    await connection.connect()
    tries = max(1, round(timeout / (2 + _PAUSE)))
    for is_last in (*[False] * (tries - 1), True):
        try:
            return await _migrate_once(connection, settings, current)
        except DRIVER_ERRORS as error:
            if get_error_code(error) not in _LOCK_CODES:
                raise map_migration_error(error, settings) from error
            if is_last:
                raise BackendUnavailable(
                    f"{settings.describe()}: other transactions held locks on the tables "
                    f"for {timeout:.0f} s; nothing was changed. End long transactions there and "
                    "run it again",
                    outcome="not applied",
                ) from error
        await connection.sleep(_PAUSE)
    raise AssertionError("the last try returns or raises")


def map_migration_error(error: Exception, settings: PostgresSettings) -> Exception:
    """Map an error of a migration; the usual cause is a missing permission."""
    if get_error_code(error) in _NAME_TAKEN_CODES:
        return ConfigurationError(
            f"{settings.describe()}: another object there has a name that the backend needs "
            f"({error}); nothing was changed. Choose another `schema`"
        )
    if get_error_code(error) != "42501":
        return map_error(error, settings.describe(), sent=True)
    return ConfigurationError(
        f"{settings.describe()}: this role may not create the tables of the backend ({error}). "
        "As a role that may, run: nimburion migrate up --grant ROLE, with this role as ROLE"
    )


async def _migrate_once(
    connection: PostgresConnection, settings: PostgresSettings, current: CurrentFormat
) -> list[str]:
    """Read the format again under the lock, because another process may have migrated, then
    migrate.
    """
    async with connection.driver.transaction(isolation="read_committed"):
        await connection.driver.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_PER_TRY}'")
        await connection.driver.fetchval(_LOCK, f"{settings.schema}.meta")
        found = await _read_installed_format(connection.driver, settings)
        hashes = await connection.driver.fetch(_FUNCTION_HASHES, settings.schema)
        wrong_functions = _compare_functions(hashes, settings, current)
        tables = await connection.driver.fetch(_TABLES, settings.schema)
        missing_tables = _list_missing_tables(tables, current)
        steps = plan_migrations(found, settings, current, wrong_functions, missing_tables)
        if steps:
            await _create_schema(connection.driver, settings)
            await connection.driver.execute(make_script(found, settings, current))
        return steps


async def _read_installed_format(driver: Driver, settings: PostgresSettings) -> InstalledFormat:
    if not await driver.fetchval(_IS_INSTALLED, settings.schema):
        return NOT_INSTALLED
    return _decode_installed_format(await driver.fetch(insert_schema(_META_QUERY, settings.schema)))


async def _create_schema(driver: Driver, settings: PostgresSettings) -> None:
    """Create the schema if it does not exist. `CREATE SCHEMA` needs a permission on the database,
    even if the schema exists.
    """
    query = "SELECT 1 FROM pg_namespace WHERE nspname = $1"
    if await driver.fetchval(query, settings.schema) is None:
        await driver.execute(f'CREATE SCHEMA "{settings.schema}"')


def make_script(
    installed: InstalledFormat, settings: PostgresSettings, current: CurrentFormat
) -> str:
    """Return all statements as one text, to run in one transaction."""
    texts = [text for _, _, text in find_missing(installed, current)]
    texts.append("SET LOCAL check_function_bodies = off;")
    texts += [f"{text};" for _, text in current.functions]
    number = current.format
    texts.append(
        f"UPDATE {{schema}}.meta SET format = {number}, oldest = {number}, "  # noqa: S608
        f"functions = '{current.digest}';"
    )
    return insert_schema("\n".join(texts), settings.schema)


async def grant_role(
    connection: PostgresConnection, settings: PostgresSettings, current: CurrentFormat, role: str
) -> list[str]:
    """Grant another role the permissions of a worker, and no more. Return descriptions of the
    changes.

    Raises:
        ConfigurationError: there is no such role, or this role may not grant permissions.
    """
    quoted = '"' + role.replace('"', '""') + '"'
    tables = insert_schema(", ".join(list_created_tables(current)), settings.schema)
    text = (
        f'GRANT USAGE ON SCHEMA "{settings.schema}" TO {quoted}; '
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {quoted}"
    )
    try:
        async with asyncio.timeout(settings.timeout):
            await connection.driver.execute(text)
    except DRIVER_ERRORS as error:
        if get_error_code(error) == "42704":
            raise ConfigurationError(f"{settings.describe()}: {error}; create it first") from error
        raise map_error(error, settings.describe(), sent=True) from error
    return [f"role {role}: may use the tables and functions of schema {settings.schema}"]


def list_created_tables(current: CurrentFormat) -> list[str]:
    """Return every table and view of the backend, as `{schema}.NAME`."""
    texts = "\n".join(text for _, _, text in current.migrations)
    return sorted(set(_CREATED.findall(texts)))
