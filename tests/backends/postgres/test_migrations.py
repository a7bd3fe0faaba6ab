"""Tables and functions are made once, under a lock, and old and new formats are recognised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.postgres.connection.pool import PostgresConnection
from nimburion.backends.postgres.migrations import (
    NOT_INSTALLED,
    CurrentFormat,
    ensure_format,
    find_missing_tables,
    find_wrong_functions,
    grant_role,
    load_current_format,
    plan_migrations,
    read_installed_format,
    run_migrations,
)
from nimburion.backends.postgres.url import PostgresSettings, parse_url
from nimburion.core.errors import BackendUnavailable, ConfigurationError, FormatMismatch
from tests.servers.server_kinds import RunningPostgres

META = load_current_format().migrations[0]
ONE = (1, "tables", "CREATE TABLE {schema}.thing (n int PRIMARY KEY);")
TWO = (2, "colours", "ALTER TABLE {schema}.thing ADD colour text;")
_BODY = (
    "CREATE OR REPLACE FUNCTION {schema}.count_1() RETURNS int8 LANGUAGE plpgsql AS $$ BEGIN "
    "RETURN (SELECT count(*) FROM {schema}.thing); END $$;"
)
COUNT = ("count", _BODY)
FIRST = CurrentFormat([META, ONE], [COUNT])
SECOND = CurrentFormat([META, ONE, TWO], [COUNT])


@asynccontextmanager
async def open_connection(settings: PostgresSettings) -> AsyncIterator[PostgresConnection]:
    connection = PostgresConnection(settings, asyncio.sleep)
    yield connection
    await connection.close()


async def plan(connection: PostgresConnection, settings: PostgresSettings) -> list[str]:
    installed = await read_installed_format(connection, settings)
    wrong = await find_wrong_functions(connection, settings, FIRST)
    missing = await find_missing_tables(connection, settings, FIRST)
    return plan_migrations(installed, settings, FIRST, wrong, missing)


@pytest.fixture
def settings(postgres_server: RunningPostgres) -> PostgresSettings:
    return parse_url(postgres_server.url)


@pytest.fixture
async def connection(settings: PostgresSettings) -> AsyncIterator[PostgresConnection]:
    async with open_connection(settings) as one:
        yield one


async def test_open_creates_the_tables_of_an_empty_database(
    connection: PostgresConnection, settings: PostgresSettings
) -> None:
    assert await read_installed_format(connection, settings) == NOT_INSTALLED
    found = await ensure_format(connection, settings, FIRST)
    assert (found.format, found.functions, len(found.identity)) == (1, FIRST.digest, 32)
    assert await connection.fetch_value("SELECT nimburion.count_1()") == 0
    assert await ensure_format(connection, settings, FIRST) == found


async def test_a_taken_name_is_reported_and_left_alone(
    connection: PostgresConnection, settings: PostgresSettings
) -> None:
    await connection.connect()
    await connection.driver.execute(
        "CREATE SCHEMA nimburion; CREATE TABLE nimburion.thing (mine int)"
    )
    with pytest.raises(
        ConfigurationError, match=r'"thing" already exists.*Choose another `schema`'
    ):
        await ensure_format(connection, settings, FIRST)
    assert await connection.fetch("SELECT mine FROM nimburion.thing") == []
    assert await read_installed_format(connection, settings) == NOT_INSTALLED


async def test_plan_lists_what_is_missing_and_changes_nothing(
    connection: PostgresConnection, settings: PostgresSettings
) -> None:
    assert await plan(connection, settings) == [
        "schema nimburion: meta",
        "format 1: tables",
        "functions of format 1: 1",
    ]
    assert await read_installed_format(connection, settings) == NOT_INSTALLED
    assert await run_migrations(connection, settings, FIRST) == [
        "schema nimburion: meta",
        "format 1: tables",
        "functions of format 1: 1",
    ]
    assert await plan(connection, settings) == []
    assert await run_migrations(connection, settings, FIRST) == []


async def test_an_old_format_is_left_alone_until_migrate(
    connection: PostgresConnection, settings: PostgresSettings
) -> None:
    first = await ensure_format(connection, settings, FIRST)
    with pytest.raises(FormatMismatch, match=r"has format 1.*needs 2; run: nimburion migrate up"):
        await ensure_format(connection, settings, SECOND)
    assert await run_migrations(connection, settings, SECOND) == ["format 2: colours"]
    second = await ensure_format(connection, settings, SECOND)
    assert (second.format, second.identity) == (2, first.identity)


async def test_other_tables_of_the_same_format_are_reported_and_left_alone(
    connection: PostgresConnection, settings: PostgresSettings
) -> None:
    """Before the first release, tables change without a new format."""
    await run_migrations(connection, settings, FIRST)
    await connection.driver.execute("ALTER TABLE nimburion.thing RENAME TO earlier")
    for migrate in (plan(connection, settings), run_migrations(connection, settings, FIRST)):
        with pytest.raises(FormatMismatch, match=r"not its tables thing:.*DROP SCHEMA"):
            await migrate
    assert await connection.fetch("SELECT FROM nimburion.earlier") == []


async def test_a_newer_format_is_refused_unless_it_knows_ours(
    connection: PostgresConnection, settings: PostgresSettings
) -> None:
    await run_migrations(connection, settings, SECOND)
    with pytest.raises(FormatMismatch, match=r"has format 2.*knows formats up to 1.*Upgrade"):
        await ensure_format(connection, settings, FIRST)
    with pytest.raises(FormatMismatch, match="nothing was changed"):
        await run_migrations(connection, settings, FIRST)
    await connection.fetch("UPDATE nimburion.meta SET oldest = 1")
    assert (await ensure_format(connection, settings, FIRST)).format == 2
    assert await run_migrations(connection, settings, FIRST) == []


async def test_changed_functions_are_made_anew(
    connection: PostgresConnection, settings: PostgresSettings
) -> None:
    await run_migrations(connection, settings, FIRST)
    changed = CurrentFormat(
        FIRST.migrations, [("count", _BODY.replace("count(*)", "41 + count(*)"))]
    )
    await ensure_format(connection, settings, changed)
    assert await connection.fetch_value("SELECT nimburion.count_1()") == 0
    assert await run_migrations(connection, settings, changed) == ["functions of format 1: 1"]
    assert await connection.fetch_value("SELECT nimburion.count_1()") == 41


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ("DROP FUNCTION nimburion.count_1()", "function count_1, which is missing"),
        (
            _BODY.replace("{schema}", "nimburion").replace("count(*)", "41"),
            "function count_1, which is not that of this version",
        ),
    ],
)
async def test_a_function_that_is_missing_or_replaced_is_restored(
    connection: PostgresConnection, settings: PostgresSettings, change: str, step: str
) -> None:
    await run_migrations(connection, settings, FIRST)
    await connection.driver.execute(change)
    for _ in range(2):
        assert await plan(connection, settings) == [step]
        assert (await ensure_format(connection, settings, FIRST)).format == 1
    assert await run_migrations(connection, settings, FIRST) == [step]
    assert await connection.fetch_value("SELECT nimburion.count_1()") == 0
    assert await find_wrong_functions(connection, settings, FIRST) == {}
    assert await run_migrations(connection, settings, FIRST) == []


async def test_the_functions_of_this_version_are_recognised(
    postgres_server: RunningPostgres,
) -> None:
    backend = PostgresBackend(postgres_server.url, schema="user")
    await backend.open()
    assert await backend.migrate(dry_run=True) == []
    postgres_server.ask(
        'DROP FUNCTION "user".get_state_1; DROP FUNCTION "user".put_record_1',
        database=postgres_server.database,
    )
    steps = [
        "function get_state_1, which is missing",
        "function put_record_1, which is missing",
    ]
    assert await backend.migrate(dry_run=True) == steps
    (found,) = [one for one in await backend.check() if one.subject == "format"]
    assert (found.verdict, found.advice) == ("error", "run: nimburion migrate up")
    assert found.text == "1, but the function get_state_1 is missing (and 1 more)"
    assert await backend.migrate() == steps
    assert await backend.migrate(dry_run=True) == []
    await backend.close()


async def test_the_first_handle_makes_them(settings: PostgresSettings) -> None:
    async def opened() -> str:
        async with open_connection(settings) as connection:
            await read_installed_format(connection, settings)
            return (await ensure_format(connection, settings, FIRST)).identity

    assert len({*await asyncio.gather(*(opened() for _ in range(6)))}) == 1


async def test_backends_with_other_names_are_independent(settings: PostgresSettings) -> None:
    others = [
        settings,
        settings.replace(schema="user"),
        settings.replace(schema="user_2"),
    ]
    identities = set()
    for one in others:
        async with open_connection(one) as connection:
            identities.add((await ensure_format(connection, one, FIRST)).identity)
    assert len(identities) == 3


async def test_one_that_breaks_leaves_nothing(
    connection: PostgresConnection, settings: PostgresSettings
) -> None:
    broken = CurrentFormat(
        [META, ONE, (2, "broken", "CREATE TABLE {schema}.more (n int); SELECT 1/0;")], []
    )
    with pytest.raises(Exception, match="division by zero"):
        await run_migrations(connection, settings, broken)
    assert await read_installed_format(connection, settings) == NOT_INSTALLED
    assert await run_migrations(connection, settings, FIRST) != []


async def test_a_locked_table_is_retried(
    connection: PostgresConnection, settings: PostgresSettings, postgres_server: RunningPostgres
) -> None:
    await run_migrations(connection, settings, FIRST)
    tried = asyncio.Event()
    let_go = asyncio.Event()

    async def pause(_: float) -> None:
        tried.set()
        await let_go.wait()

    with psycopg.connect(postgres_server.url, prepare_threshold=None) as holder:
        holder.execute("SELECT * FROM nimburion.thing")
        other = PostgresConnection(settings, pause)
        waiting = asyncio.create_task(run_migrations(other, settings, SECOND))
        async with asyncio.timeout(20):
            await tried.wait()
        assert await connection.fetch_value("SELECT nimburion.count_1()") == 0
        holder.rollback()
        let_go.set()
        assert await waiting == ["format 2: colours"]
    await other.close()


async def test_a_table_that_stays_held_is_given_up(
    connection: PostgresConnection, settings: PostgresSettings, postgres_server: RunningPostgres
) -> None:
    await run_migrations(connection, settings, FIRST)
    with psycopg.connect(postgres_server.url, prepare_threshold=None) as holder:
        holder.execute("SELECT * FROM nimburion.thing")
        with pytest.raises(
            BackendUnavailable, match="other transactions held locks on the tables"
        ) as caught:
            await run_migrations(connection, settings, SECOND, timeout=3)
    assert caught.value.outcome == "not applied"
    assert (await read_installed_format(connection, settings)).format == 1


async def test_a_role_without_privileges_gets_the_command_to_run(
    connection: PostgresConnection, settings: PostgresSettings, postgres_server: RunningPostgres
) -> None:
    if "PgBouncer" in postgres_server.name:
        pytest.skip("its file of users has one")
    postgres_server.ask("DROP ROLE IF EXISTS worker")
    postgres_server.ask("CREATE ROLE worker LOGIN")
    theirs = parse_url(postgres_server.url_for("worker"))
    async with open_connection(theirs) as worker:
        with pytest.raises(ConfigurationError, match=r"may not create the tables.*--grant"):
            await ensure_format(worker, theirs, FIRST)
        await run_migrations(connection, settings, FIRST)
        with pytest.raises(ConfigurationError, match="this role lacks a permission"):
            await ensure_format(worker, theirs, FIRST)
        assert await grant_role(connection, settings, FIRST, "worker") == [
            "role worker: may use the tables and functions of schema nimburion"
        ]
        assert (await ensure_format(worker, theirs, FIRST)).format == 1
        await worker.fetch("INSERT INTO nimburion.thing VALUES (1)")
        assert await worker.fetch_value("SELECT nimburion.count_1()") == 1
        with pytest.raises(ConfigurationError, match="this role may not"):
            await run_migrations(worker, theirs, SECOND)
        with pytest.raises(ConfigurationError, match="nobody_such"):
            await grant_role(connection, settings, FIRST, "nobody_such")
