"""Tables and functions are made once, under a lock, and old and new formats are told apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from nimburion.backends.postgres.connection.pool import Link
from nimburion.backends.postgres.migrations import (
    NOTHING,
    Wanted,
    grant,
    migrate,
    open_format,
    plan,
    standing,
    wanted,
)
from nimburion.backends.postgres.url import Address, parse
from nimburion.core.errors import BackendUnavailable, ConfigurationError, FormatMismatch
from tests.servers.server_kinds import RunningPostgres

META = wanted().migrations[0]
ONE = (1, "tables", "CREATE TABLE nb.thing (n int PRIMARY KEY);")
TWO = (2, "colours", "ALTER TABLE nb.thing ADD colour text;")
_BODY = (
    "CREATE OR REPLACE FUNCTION nb.count_1() RETURNS int8 LANGUAGE plpgsql AS $$ BEGIN "
    "RETURN (SELECT count(*) FROM nb.thing); END $$;"
)
COUNT = ("count", _BODY)
FIRST = Wanted([META, ONE], [COUNT])
SECOND = Wanted([META, ONE, TWO], [COUNT])


@asynccontextmanager
async def linked(address: Address) -> AsyncIterator[Link]:
    link = Link(address, asyncio.sleep)
    yield link
    await link.close()


@pytest.fixture
def address(postgres_server: RunningPostgres) -> Address:
    return parse(postgres_server.url)


@pytest.fixture
async def link(address: Address) -> AsyncIterator[Link]:
    async with linked(address) as one:
        yield one


async def test_an_empty_database_gets_its_tables_when_a_store_opens(
    link: Link, address: Address
) -> None:
    assert await standing(link, address) == NOTHING
    found = await open_format(link, address, FIRST)
    assert (found.format, found.functions, len(found.identity)) == (1, FIRST.digest, 32)
    assert await link.value("SELECT nimburion.count_1()") == 0
    assert await open_format(link, address, FIRST) == found


async def test_a_name_that_is_taken_is_said_and_left_alone(link: Link, address: Address) -> None:
    await link.connect()
    await link.driver.execute("CREATE SCHEMA nimburion; CREATE TABLE nimburion.thing (mine int)")
    with pytest.raises(ConfigurationError, match=r'"thing" already exists.*schema.*prefix'):
        await open_format(link, address, FIRST)
    assert await link.rows("SELECT mine FROM nimburion.thing") == []
    assert await standing(link, address) == NOTHING


async def test_a_plan_says_what_is_missing_and_changes_nothing(
    link: Link, address: Address
) -> None:
    assert plan(await standing(link, address), address, FIRST) == [
        "schema nimburion: meta",
        "format 1: tables",
        "functions of format 1: 1",
    ]
    assert await standing(link, address) == NOTHING
    assert await migrate(link, address, FIRST) == [
        "schema nimburion: meta",
        "format 1: tables",
        "functions of format 1: 1",
    ]
    assert plan(await standing(link, address), address, FIRST) == []
    assert await migrate(link, address, FIRST) == []


async def test_an_old_format_is_left_alone_until_told(link: Link, address: Address) -> None:
    first = await open_format(link, address, FIRST)
    with pytest.raises(FormatMismatch, match=r"has format 1.*needs 2; run: nimburion migrate up"):
        await open_format(link, address, SECOND)
    assert await migrate(link, address, SECOND) == ["format 2: colours"]
    second = await open_format(link, address, SECOND)
    assert (second.format, second.identity) == (2, first.identity)


async def test_a_newer_format_is_refused_unless_it_knows_ours(link: Link, address: Address) -> None:
    await migrate(link, address, SECOND)
    with pytest.raises(FormatMismatch, match=r"has format 2.*knows formats up to 1.*Upgrade"):
        await open_format(link, address, FIRST)
    with pytest.raises(FormatMismatch, match="nothing was changed"):
        await migrate(link, address, FIRST)
    await link.rows("UPDATE nimburion.meta SET oldest = 1")
    assert (await open_format(link, address, FIRST)).format == 2
    assert await migrate(link, address, FIRST) == []


async def test_changed_functions_are_made_anew(link: Link, address: Address) -> None:
    await migrate(link, address, FIRST)
    changed = Wanted(FIRST.migrations, [("count", _BODY.replace("count(*)", "41 + count(*)"))])
    await open_format(link, address, changed)
    assert await link.value("SELECT nimburion.count_1()") == 0
    assert await migrate(link, address, changed) == ["functions of format 1: 1"]
    assert await link.value("SELECT nimburion.count_1()") == 41


async def test_whoever_comes_first_makes_them(address: Address) -> None:
    async def opened() -> str:
        async with linked(address) as link:
            await standing(link, address)
            return (await open_format(link, address, FIRST)).identity

    assert len({*await asyncio.gather(*(opened() for _ in range(6)))}) == 1


async def test_stores_with_other_names_are_strangers(address: Address) -> None:
    others = [
        address,
        address.using(schema="user", prefix="a_"),
        address.using(schema="user", prefix="b_"),
    ]
    identities = set()
    for one in others:
        async with linked(one) as link:
            identities.add((await open_format(link, one, FIRST)).identity)
    assert len(identities) == 3


async def test_one_that_breaks_leaves_nothing(link: Link, address: Address) -> None:
    broken = Wanted([META, ONE, (2, "broken", "CREATE TABLE nb.more (n int); SELECT 1/0;")], [])
    with pytest.raises(Exception, match="division by zero"):
        await migrate(link, address, broken)
    assert await standing(link, address) == NOTHING
    assert await migrate(link, address, FIRST) != []


async def test_a_table_that_is_held_is_asked_for_again_and_again(
    link: Link, address: Address, postgres_server: RunningPostgres
) -> None:
    await migrate(link, address, FIRST)
    tried = asyncio.Event()
    let_go = asyncio.Event()

    async def pause(_: float) -> None:
        tried.set()
        await let_go.wait()

    with psycopg.connect(postgres_server.url, prepare_threshold=None) as holder:
        holder.execute("SELECT * FROM nimburion.thing")
        other = Link(address, pause)
        waiting = asyncio.create_task(migrate(other, address, SECOND))
        async with asyncio.timeout(20):
            await tried.wait()
        assert await link.value("SELECT nimburion.count_1()") == 0
        holder.rollback()
        let_go.set()
        assert await waiting == ["format 2: colours"]
    await other.close()


async def test_a_table_that_stays_held_is_given_up(
    link: Link, address: Address, postgres_server: RunningPostgres
) -> None:
    await migrate(link, address, FIRST)
    with psycopg.connect(postgres_server.url, prepare_threshold=None) as holder:
        holder.execute("SELECT * FROM nimburion.thing")
        with pytest.raises(BackendUnavailable, match="others held the tables") as caught:
            await migrate(link, address, SECOND, patience=3)
    assert caught.value.outcome == "not applied"
    assert (await standing(link, address)).format == 1


async def test_a_role_without_rights_is_told_what_to_do(
    link: Link, address: Address, postgres_server: RunningPostgres
) -> None:
    if "PgBouncer" in postgres_server.name:
        pytest.skip("its file of users has one")
    postgres_server.ask("DROP ROLE IF EXISTS worker")
    postgres_server.ask("CREATE ROLE worker LOGIN")
    theirs = parse(postgres_server.url_for("worker"))
    async with linked(theirs) as worker:
        with pytest.raises(ConfigurationError, match=r"may not make the tables.*--grant"):
            await open_format(worker, theirs, FIRST)
        await migrate(link, address, FIRST)
        with pytest.raises(ConfigurationError, match="this role may not"):
            await open_format(worker, theirs, FIRST)
        assert await grant(link, address, FIRST, "worker") == [
            "role worker: may use what is in schema nimburion"
        ]
        assert (await open_format(worker, theirs, FIRST)).format == 1
        await worker.rows("INSERT INTO nimburion.thing VALUES (1)")
        assert await worker.value("SELECT nimburion.count_1()") == 1
        with pytest.raises(ConfigurationError, match="this role may not"):
            await migrate(worker, theirs, SECOND)
        with pytest.raises(ConfigurationError, match="nobody_such"):
            await grant(link, address, FIRST, "nobody_such")
