"""The reads that count jobs cost the same however many jobs wait, unless they count all."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.reads import share_budget
from nimburion.core.job import NewJob
from nimburion.core.queries import COUNT_BUDGET
from tests.backends.sqlite.test_statements import SQL

FILL = """
WITH RECURSIVE n (seq) AS (VALUES (:first) UNION ALL SELECT seq + 1 FROM n WHERE seq < :last)
"""
READY = "INSERT INTO ready SELECT lane, rank, due, n.seq, 0 FROM n, ready WHERE ready.seq = 1"
SCHEDULED = """
INSERT INTO scheduled
SELECT due + n.seq, n.seq + 1000000, lane, rank, 0 FROM n, ready WHERE ready.seq = 1
"""
PARKED = """
INSERT INTO parked
SELECT 'x', 'y', lane, rank, due, n.seq + 2000000, 0 FROM n, ready WHERE ready.seq = 1
"""


def fill(connection: sqlite3.Connection, first: int, last: int) -> None:
    """Add so many jobs to each place where jobs wait."""
    for insert in (READY, SCHEDULED, PARKED):
        connection.execute(FILL + insert, {"first": first, "last": last})


def count_steps(connection: sqlite3.Connection, name: str, *arguments: object) -> int:
    """Return how many steps of its virtual machine SQLite makes for a statement, in hundreds."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    connection.set_progress_handler(step, 100)
    connection.execute(SQL[name], arguments).fetchall()
    connection.set_progress_handler(None, 0)
    return steps


async def test_counts_read_no_more_rows_than_their_budget(
    backend: SQLiteBackend, path: Path
) -> None:
    await backend.producing.enqueue([NewJob("a", "send", "mail", b"{}")])
    share = share_budget(COUNT_BUDGET)
    calls = (
        ("list_queues", 0, share),
        ("count_by_state", None, 0, share),
        ("count_by_state", "mail", 0, share),
    )
    with closing(sqlite3.connect(path)) as connection:
        fill(connection, 2, COUNT_BUDGET)
        few = [count_steps(connection, *call) for call in calls]
        fill(connection, COUNT_BUDGET + 1, 5 * COUNT_BUDGET)
        many = [count_steps(connection, *call) for call in calls]
        all_rows = count_steps(connection, "count_by_state", None, 0, 1 << 62)
    assert all(after <= 1.01 * before for before, after in zip(few, many, strict=True)), (few, many)
    assert max(many) < all_rows / 10
