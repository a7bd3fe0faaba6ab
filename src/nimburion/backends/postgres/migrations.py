"""Tables and functions of the store: which format is there, what is missing, and making it."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from nimburion.backends.postgres.connection.connect import Driver
from nimburion.backends.postgres.connection.pool import Link
from nimburion.backends.postgres.errors import FAULTS, code_of, meaning_of
from nimburion.backends.postgres.schema import name_of, named
from nimburion.backends.postgres.url import Address
from nimburion.backends.sql_files import Statements, migrations_of
from nimburion.core.errors import BackendUnavailable, ConfigurationError, FormatMismatch

PACKAGE = "nimburion.backends.postgres"
PATIENCE = 60.0
"""Seconds for which a table that others hold is waited for, in all."""
_TURN = "2s"
"""How long one try waits for a lock: whoever comes later stands behind us all that time."""
_PAUSE = 1.0
"""Seconds between two tries, in which those who stood behind us go on."""
_LOOK = "SELECT format, oldest, functions, identity FROM {}"
_THERE = """SELECT EXISTS (
    SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2)"""
"""Reads the rows: `to_regclass` may not see yet what was made while we waited for our turn."""
_LOCKED_OUT = frozenset({"55P03", "40P01", "40001"})
_TAKEN = frozenset({"42P07", "42710", "42723"})
"""A table, a type or a function of that name is there."""
_MADE = re.compile(r"^CREATE (?:TABLE|VIEW|SEQUENCE) (nb\.\w+)", re.MULTILINE)

Migration = tuple[int, str, str]
"""Number, name and statements."""


class Standing(msgspec.Struct, frozen=True):
    """What is there."""

    format: int
    """0: nothing yet."""
    oldest: int = 0
    functions: str = ""
    identity: str = ""
    """Random: tells this store from others, also from copies of none."""


NOTHING = Standing(0)


class Wanted(msgspec.Struct, frozen=True):
    """What this version of nimburion brings."""

    migrations: Sequence[Migration]
    functions: Sequence[tuple[str, str]]
    """Name and text, in the order in which they are made."""

    @property
    def format(self) -> int:
        """The number of the newest migration."""
        return self.migrations[-1][0]

    @property
    def digest(self) -> str:
        """Tells these functions from those of other versions."""
        texts = "\0".join(text for _, text in self.functions)
        return hashlib.blake2b(texts.encode(), digest_size=16).hexdigest()


def wanted() -> Wanted:
    """What the files beside this one say."""
    functions = Statements(f"{PACKAGE}.functions")
    return Wanted(
        migrations_of(PACKAGE, "migrations"),
        [(name, functions[name]) for name in sorted(functions)],
    )


async def open_format(link: Link, address: Address, new: Wanted) -> Standing:
    """What a store that opens needs: the tables of an empty database are made, an old format is
    left to `nimburion migrate up`.

    Raises:
        FormatMismatch: older, or newer than this nimburion can work with; the command to run.
        ConfigurationError: nothing is there, and this role may make nothing.
    """
    found = await standing(link, address)
    if found.format == 0:
        await migrate(link, address, new)
        found = await standing(link, address)
    check(found, address, new)
    return found


async def standing(link: Link, address: Address) -> Standing:
    """What is there, without changing anything."""
    if not await link.value(_THERE, address.schema, f"{address.prefix}meta"):
        return NOTHING
    return _standing_of(await link.rows(_LOOK.format(name_of("meta", address))))


def _standing_of(rows: Sequence[Any]) -> Standing:
    ((number, oldest, functions, identity),) = rows
    return Standing(number, oldest, functions, identity)


def check(found: Standing, address: Address, new: Wanted) -> None:
    """Raise unless this nimburion can work there."""
    where = address.describe()
    if found.format < new.format:
        raise FormatMismatch(
            f"{where} has format {found.format}, this nimburion needs {new.format}; run: nimburion "
            "migrate up (it may run while older workers do)"
        )
    refuse_newer(found, address, new)


def refuse_newer(found: Standing, address: Address, new: Wanted) -> None:
    """Raise for a format that this nimburion does not know and that does not know it either."""
    if found.format > new.format and found.oldest > new.format:
        raise FormatMismatch(
            f"{address.describe()} has format {found.format}, this nimburion knows formats up to "
            f"{new.format}; nothing was changed. Upgrade nimburion here (pip install --upgrade "
            "nimburion)"
        )


def plan(found: Standing, address: Address, new: Wanted) -> list[str]:
    """What `migrate` would do, in words.

    Raises:
        FormatMismatch: the format is newer than this nimburion.
    """
    refuse_newer(found, address, new)
    if found.format > new.format:
        return []
    steps = [
        f"format {number}: {name}" if number else f"schema {address.schema}: {name}"
        for number, name, _ in missing(found, new)
    ]
    if found.functions != new.digest:
        steps.append(f"functions of format {new.format}: {len(new.functions)}")
    return steps


def missing(found: Standing, new: Wanted) -> list[Migration]:
    """The migrations that did not run yet; number 0 is the table that says so itself."""
    least = -1 if found == NOTHING else found.format
    return [one for one in new.migrations if one[0] > least]


async def migrate(
    link: Link, address: Address, new: Wanted, *, patience: float = PATIENCE
) -> list[str]:
    """Bring tables and functions to the newest format; what was done, in words.

    All in one transaction, one process at a time. A table that others hold is asked for two
    seconds at a time, so that a busy store stands still for no longer; tried again until it is had.

    Raises:
        BackendUnavailable: not had within `patience` seconds; nothing was changed.
        ConfigurationError: this role may not.
    """
    await link.connect()
    tries = max(1, round(patience / (2 + _PAUSE)))
    for is_last in (*[False] * (tries - 1), True):
        try:
            return await _in_one_step(link, address, new)
        except FAULTS as error:
            if code_of(error) not in _LOCKED_OUT:
                raise refusal(error, address) from error
            if is_last:
                raise BackendUnavailable(
                    f"{address.describe()}: others held the tables for {patience:.0f} s; nothing "
                    "was changed. End long transactions there and run it again",
                    outcome="not applied",
                ) from error
        await link.pause(_PAUSE)
    raise AssertionError("the last try returns or raises")


def refusal(error: Exception, address: Address) -> Exception:
    """Why it did not work: as a rule, a right that lacks."""
    if code_of(error) in _TAKEN:
        return ConfigurationError(
            f"{address.describe()}: a name that the store needs is taken there by something else "
            f"({error}); nothing was changed. Name another `schema`, or a `prefix` for its tables"
        )
    if code_of(error) != "42501":
        return meaning_of(error, address.describe(), sent=True)
    return ConfigurationError(
        f"{address.describe()}: this role may not make the tables of the store ({error}). Run: "
        "nimburion migrate up as a role that may, with --grant for this one"
    )


async def _in_one_step(link: Link, address: Address, new: Wanted) -> list[str]:
    """Look again under the lock: somebody else may have been faster."""
    async with link.driver.transaction(isolation="read_committed"):
        await link.driver.execute(f"SET LOCAL lock_timeout = '{_TURN}'")
        await link.driver.execute(f"SELECT pg_advisory_xact_lock({lock_of(address)})")
        found = await _standing_inside(link.driver, address)
        steps = plan(found, address, new)
        if steps:
            await _make_schema(link.driver, address)
            await link.driver.execute(script(found, address, new))
        return steps


async def _standing_inside(driver: Driver, address: Address) -> Standing:
    if not await driver.fetchval(_THERE, address.schema, f"{address.prefix}meta"):
        return NOTHING
    return _standing_of(await driver.fetch(_LOOK.format(name_of("meta", address))))


async def _make_schema(driver: Driver, address: Address) -> None:
    """Only where it is not there: making it needs a right on the database, even to find it."""
    asked = "SELECT 1 FROM pg_namespace WHERE nspname = $1"
    if await driver.fetchval(asked, address.schema) is None:
        await driver.execute(f'CREATE SCHEMA "{address.schema}"')


def script(found: Standing, address: Address, new: Wanted) -> str:
    """All statements, as one text to run in one transaction."""
    texts = [text for _, _, text in missing(found, new)]
    texts.append("SET LOCAL check_function_bodies = off;")
    texts += [text for _, text in new.functions]
    number = new.format
    texts.append(
        f"UPDATE nb.meta SET format = {number}, oldest = {number}, functions = '{new.digest}';"  # noqa: S608
    )
    return named("\n".join(texts), address)


def lock_of(address: Address) -> int:
    """The number of the advisory lock of this store."""
    text = f"nimburion {address.schema}.{address.prefix}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


async def grant(link: Link, address: Address, new: Wanted, role: str) -> list[str]:
    """Let another role do all that a worker does, and no more; what was done, in words.

    Raises:
        ConfigurationError: there is no such role, or ours may not grant.
    """
    quoted = '"' + role.replace('"', '""') + '"'
    tables = ", ".join(made_by(new))
    text = (
        f'GRANT USAGE ON SCHEMA "{address.schema}" TO {quoted}; '
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {named(tables, address)} TO {quoted}"
    )
    try:
        async with asyncio.timeout(address.timeout):
            await link.driver.execute(text)
    except FAULTS as error:
        if code_of(error) == "42704":
            raise ConfigurationError(f"{address.describe()}: {error}; create it first") from error
        raise meaning_of(error, address.describe(), sent=True) from error
    return [f"role {role}: may use what is in schema {address.schema}"]


def made_by(new: Wanted) -> list[str]:
    """Every table and view of ours, as `nb.NAME`."""
    texts = "\n".join(text for _, _, text in new.migrations)
    return sorted(set(_MADE.findall(texts)))
