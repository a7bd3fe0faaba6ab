"""What durable runs cost on SQLite: statements, rows that are left, and bounded transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from nimburion.backends.sqlite import SQLiteBackend, maintenance
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.runs import take_page
from nimburion.core.bulk_operations import BulkAction
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.flows import On, SourceKind
from nimburion.core.job import NewJob
from nimburion.core.lease import Delivery
from nimburion.core.maintenance import Retention
from nimburion.core.records import NewRecord, RecordChange
from nimburion.core.runs import NewSignal, make_signal_source
from nimburion.core.session import Session
from nimburion.core.settlement import Completed, Recorded, Settlement, Suspended
from nimburion.testing.clock import FakeClock

WORKER = "5" * 32
NOTHING = ReserveRequest(0, ())
KEEP_NOTHING = Retention(completed=0.0)


async def start(backend: SQLiteBackend, count: int) -> list[Delivery]:
    """Reserve new runs, in the first exchange of the worker."""
    await backend.producing.enqueue([NewJob(f"r{n}", "n", "q", b"{}") for n in range(count)])
    await backend.consuming.open_session(Session(id=WORKER, ttl=60.0, names=("n",)))
    request = ReserveRequest(count, (Lane("q", "n"),))
    return (await backend.consuming.exchange(WORKER, 1, [], request)).deliveries


async def end_with_steps(backend: SQLiteBackend, count: int, steps: int) -> None:
    """Complete new runs that have this number of steps, and a signal."""
    held = await start(backend, count)
    await backend.producing.send_signals(
        [NewSignal(one.lease.job_id, "n", "s", b"1") for one in held]
    )
    recorded: list[Settlement] = [
        Recorded(one.lease, number, b"x") for one in held for number in range(steps)
    ]
    await backend.consuming.exchange(WORKER, 2, recorded, NOTHING)
    completed = [Completed(one.lease) for one in held]
    await backend.consuming.exchange(WORKER, 3, completed, NOTHING)


def count_rows(path: Path) -> tuple[int, int]:
    """Return the numbers of stored steps and signals."""
    with closing(sqlite3.connect(path)) as connection:
        steps = connection.execute("SELECT count(*) FROM step").fetchone()[0]
        return steps, connection.execute("SELECT count(*) FROM signal").fetchone()[0]


async def test_a_deleted_run_leaves_no_rows(backend: SQLiteBackend, path: Path) -> None:
    await end_with_steps(backend, 2, 3)
    assert count_rows(path) == (6, 2)
    await backend.maintenance.change_jobs(BulkAction.DELETE, ["r0"])
    assert count_rows(path) == (3, 1)


def note_deletions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of jobs of each deletion."""
    delete_jobs = maintenance.delete_jobs
    parts: list[int] = []

    def delete_and_note(db: Database, listed: str) -> None:
        parts.append(listed.count(",") + 1)
        delete_jobs(db, listed)

    monkeypatch.setattr(maintenance, "delete_jobs", delete_and_note)
    return parts


async def test_a_prune_deletes_many_steps_in_several_transactions(
    backend: SQLiteBackend, path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call ends when all are deleted, as one without steps does."""
    await end_with_steps(backend, 5, 8)
    clock.advance(10.0)
    monkeypatch.setattr(maintenance, "MAX_RUN_ROWS", 20)
    parts = note_deletions(monkeypatch)
    assert await backend.maintenance.prune(KEEP_NOTHING, 3) == 3
    assert parts == [2, 1]
    assert await backend.maintenance.prune(KEEP_NOTHING, 100) == 2
    assert count_rows(path) == (0, 0)


async def test_a_bulk_deletion_deletes_many_steps_in_several_transactions(
    backend: SQLiteBackend, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of the operation counts all of them."""
    await end_with_steps(backend, 5, 8)
    kept = await backend.maintenance.put_record(
        NewRecord(kind="bulk_operation", id="o1", body=b"{}")
    )
    assert kept.record is not None
    monkeypatch.setattr(maintenance, "MAX_RUN_ROWS", 20)
    parts = note_deletions(monkeypatch)
    job_ids = ["r4", "unknown", "r2", "r0", "r1"]
    change = RecordChange(kind="bulk_operation", id="o1", body=b"{}", version=kept.record.version)
    changes = await backend.maintenance.change_jobs(BulkAction.DELETE, job_ids, change)
    assert changes.ids == ["r4", "r2", "r0", "r1"]
    assert parts == [2, 2]
    assert changes.record is not None
    assert changes.record.changed == 4
    assert count_rows(path) == (8, 1)


async def test_a_run_with_more_steps_than_a_transaction_deletes_is_deleted(
    backend: SQLiteBackend, path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await end_with_steps(backend, 2, 8)
    clock.advance(10.0)
    monkeypatch.setattr(maintenance, "MAX_RUN_ROWS", 3)
    assert await backend.maintenance.prune(KEEP_NOTHING, 100) == 2
    assert count_rows(path) == (0, 0)


async def count_statements(backend: SQLiteBackend, number: int, steps: Sequence[Recorded]) -> int:
    """Return how many statements an exchange with these steps runs, without those that begin and
    end transactions: calls at the same time may share one.
    """
    seen: list[str] = []
    await backend._file.write(lambda db: db.connection.set_trace_callback(seen.append))
    await backend.consuming.exchange(WORKER, number, steps, NOTHING)
    await backend._file.write(lambda db: db.connection.set_trace_callback(None))
    return sum(not one.startswith(("BEGIN", "COMMIT", "PRAGMA")) for one in seen)


async def test_the_steps_of_an_exchange_are_stored_together(backend: SQLiteBackend) -> None:
    held = await start(backend, 50)
    one = await count_statements(backend, 2, [Recorded(held[0].lease, 1, b"x")])
    many = [Recorded(run.lease, number, b"x") for run in held for number in (2, 3)]
    assert await count_statements(backend, 3, many) == one


def test_a_page_of_large_steps_is_not_read_whole() -> None:
    """One row more is read than fills the page: it says that another page follows."""
    rows = iter([(1, b"xx"), (2, b"xx"), (3, b"xx"), (4, b"xx")])
    assert list(take_page(rows, 1, 3)) == [(1, b"xx"), (2, b"xx"), (3, b"xx")]
    assert next(rows) == (4, b"xx")


async def test_the_explanation_names_what_a_run_waits_for(
    backend: SQLiteBackend, clock: FakeClock
) -> None:
    (held,) = await start(backend, 1)
    wait = Suspended(held.lease, (make_signal_source("r0", "paid"),), 60.0)
    await backend.consuming.exchange(WORKER, 2, [wait], NOTHING)
    facts = await backend.reads.explain_job("r0")
    due = f"{round((clock.now() + 60.0) * 1_000_000):020d}"
    found = {(one.condition.source.kind, one.condition.source.id) for one in facts.unmet}
    assert found == {(SourceKind.SIGNAL, "r0/paid"), (SourceKind.TIME, due)}
    assert {one.condition.on for one in facts.unmet} == {On.ANY}
    assert [(one.job, one.flow) for one in facts.unmet] == [(None, None)] * 2
    assert facts.unmet_count == 2
