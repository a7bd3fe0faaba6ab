"""The pages on PostgreSQL say what a server takes, which roles are enough, what the tables are."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.errors import ConfigurationError, FormatMismatch
from nimburion.core.job import NewJob, State
from nimburion.core.session import Session
from nimburion.testing.contract.harness import make_limits
from tests.docs.pages import Page, every_page, read, rows_below
from tests.house.tree import PACKAGE, ROOT
from tests.servers.binaries import Binary
from tests.servers.postgres import PostgresServer

PRODUCTION = read(ROOT / "docs" / "how-to" / "postgresql-in-production.md")
REFERENCE = read(ROOT / "docs" / "reference" / "postgresql-tables.md")
MIGRATIONS = PACKAGE / "backends" / "postgres" / "sql" / "migrations"
ROLES = "roles"
"""Marks the blocks that a test of its own runs."""


def statements_of(page: Page) -> Iterator[str]:
    """Each statement of the blocks of SQL on a page."""
    for block in page.blocks:
        if block.info == ("sql",):
            yield from filter(None, map(str.strip, block.text.split(";\n")))


async def test_a_server_takes_the_statements_of_the_pages(postgres_binary: Binary) -> None:
    statements = [one for page in every_page() for one in statements_of(page)]
    assert len(statements) > 15
    with PostgresServer(postgres_binary) as server:
        backend = PostgresBackend(server.url)
        await backend.open()
        await backend.producing.enqueue([NewJob("my-own-id", "greet", "mail", b"{}")])
        await backend.consuming.open_session(
            Session(id="5e" * 16, names=("greet",), limits=make_limits({"greet": 1}))
        )
        for statement in statements:
            server.ask(statement)  # it raises what the server refuses
        columns = server.ask(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'jobs'"
        )
        text = REFERENCE.path.read_text(encoding="utf-8").split("## Tables")[0]
        documented = [
            name
            for line in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
            for name in re.findall(r"`(\w+)`", line)
        ]
        assert sorted(documented) == sorted(name for (name,) in columns)
        payload = next(one for one in statements if "convert_from" in one)
        assert server.ask(payload) == [("{}",)]
        await backend.close()


def of_roles(words: str) -> str:
    """The text of the one block of that kind that is about roles."""
    (text,) = (block.text for block in PRODUCTION.blocks if block.info == (words, ROLES))
    return text


async def test_the_roles_of_the_page_are_enough(postgres_binary: Binary, tmp_path: Path) -> None:
    hba = ["host all jobs_owner,jobs_worker 127.0.0.1/32 scram-sha-256"]
    with PostgresServer(postgres_binary, hba=hba) as server:
        server.empty()
        for statement in of_roles("sql").split(";\n"):
            server.ask(statement)
        worker = PostgresBackend(server.url_for("jobs_worker", "two"))
        with pytest.raises((ConfigurationError, FormatMismatch)):
            await worker.open()
        script = of_roles("sh").replace("@localhost/app", at(server))
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = ["bash", "-euc", script]
        await asyncio.to_thread(
            subprocess.run, command, check=True, cwd=tmp_path, env={**os.environ, "PATH": path}
        )
        await worker.open()
        await worker.producing.enqueue([NewJob("a", "greet", "mail", b"{}")])
        assert (await worker.reads.count_jobs())[State.PENDING] == 1
        await worker.close()
        with psycopg.connect(server.url_for("jobs_worker", "two")) as connection:
            for statement in ("CREATE TABLE nimburion.mine ()", "DROP TABLE nimburion.job"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)
                connection.rollback()
        server.ask("CREATE ROLE reader LOGIN")
        for grant in re.findall(r"`(GRANT .*)`", PRODUCTION.path.read_text(encoding="utf-8")):
            server.ask(grant)
        with psycopg.connect(server.url_for("reader")) as connection:
            found = connection.execute("SELECT id, state FROM nimburion.jobs").fetchall()
            assert found == [("a", "pending")]
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT * FROM nimburion.job")


def at(server: PostgresServer) -> str:
    return f"@127.0.0.1:{server.port}/{server.database}"


def test_every_table_is_there() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(MIGRATIONS.glob("*.sql")))
    made = set(re.findall(r"^CREATE (?:UNLOGGED )?TABLE \{schema\}\.(\w+) \(", text, re.MULTILINE))
    documented = rows_below(REFERENCE.path, "## Tables")
    assert set(documented) == made
    assert len(documented) == len(made)
