"""The page on the tables of SQLite says what they are."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from nimburion.core.settlement import Completed
from tests.docs.pages import read, rows_below
from tests.house.tree import ROOT

REFERENCE = read(ROOT / "docs" / "reference" / "sqlite-tables.md")
STATEMENTS = [
    one.strip()
    for block in REFERENCE.blocks
    if block.info == ("sql", "sqlite")
    for one in block.text.split(";\n")
    if one.strip()
]


async def test_a_file_takes_the_statements_of_the_page(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    backend = SQLiteBackend(path)
    await backend.open()
    jobs = [NewJob("my-own-id", "greet", "mail", b"{}"), NewJob("done", "sum", "mail", b"")]
    await backend.producing.enqueue(jobs)
    await backend.consuming.open_session(Session(id="5e" * 16, names=("sum",)))
    request = ReserveRequest(1, (Lane("mail", "sum"),), nonce=bytes(16))
    (delivery,) = (await backend.consuming.exchange("5e" * 16, 1, [], request)).deliveries
    await backend.consuming.exchange(
        "5e" * 16, 2, [Completed(delivery.lease, None)], ReserveRequest(0)
    )
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        replies = {one: connection.execute(one).fetchall() for one in STATEMENTS}
        tables = {
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        }
        states = connection.execute("SELECT id, status FROM job_record ORDER BY seq").fetchall()
    await backend.close()
    assert states == [("my-own-id", "waiting"), ("done", "completed")]
    assert next(replies[one] for one in replies if "payload" in one) == [("{}",)]
    assert [name for one in replies if "max(" in one for name, _, _ in replies[one]] == ["sum"]
    documented = rows_below(REFERENCE.path, "## Tables")
    assert (set(documented), len(documented)) == (tables, len(tables))
