"""The statements: each compiles, and those on the hot path use an index, never a scan."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from nimburion.backends.sql_files import Statements
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.connection import opening
from nimburion.backends.sqlite.connection.disk import OpenFiles
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.session import Session
from nimburion.core.settlement import Completed

SQL = Statements(opening.PACKAGE, opening.STATEMENTS)
HOT = {
    "complete_jobs",
    "delete_completed_leases",
    "get_deliveries",
    "get_exchange_head",
    "save_exchange",
    "find_job",
    "delete_surplus_records",
    "delete_old_statistics",
    "get_record",
    "list_due_records",
    "list_records",
    "list_by_ids",
    "list_dead_letters",
    "list_failed",
    "list_last_errors",
    "list_newest",
    "list_statistics",
    "write_record",
    "send_command",
    "get_settled_token",
    "find_waiting_lanes",
    "get_lease",
    "copy_due_to_ready",
    "delete_promoted",
    "get_records",
    "free_unique_keys",
    "delete_ready",
    "read_lane_heads",
    "insert_leases",
    "insert_charged_leases",
    "list_charges",
    "list_turns",
    "list_turn_jobs",
    "list_shares",
    "put_shares",
    "rank_turns",
    "move_turns",
    "read_lane_further",
    "read_lane",
    "delete_taken_from_ready",
    "renew_session",
    "list_cancel_requests",
    "list_job_options",
    "list_uses_of_keys",
    "put_limit_uses",
    "insert_lease_keys",
    "count_lease_keys",
    "delete_lease_keys",
    "release_keys",
    "find_parked_keys",
    "list_parked_lanes",
    "copy_to_parked",
    "copy_from_parked",
    "delete_first_parked",
    "get_next_due",
    "find_job_to_cancel",
    "count_members",
    "delete_alternatives",
    "list_due_conditions",
    "insert_steps",
    "delete_other_steps",
    "take_signals",
    "reset_failures",
    "insert_run_conditions",
    "settle_suspended_runs",
    "insert_suspended_runs",
    "delete_leases",
    "save_flows",
    "delete_conditions",
    "resume_jobs",
    "set_resumed_due",
    "has_signal",
    "list_signalled_jobs",
    "list_known_signals",
    "insert_cancel_signal",
    "list_steps",
    "list_unread_signals",
    "delete_steps",
    "delete_signals",
    "select_first_jobs",
}
SMALL = {
    "limit_rule",
    "changed_limit",
    "changed_key",
    "lease_key",
    "tenant_share",
    "tenant_weight",
    "paused_queue",
    "suspended",
}
"""Tables that may be read whole, as they hold a row a limit or a paused queue. Of `lease_key`,
`tenant_share`, `tenant_weight` and `suspended`, only the first row is read."""


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    connection, _ = opening.open_writer(path, OpenFiles(path))
    yield connection
    connection.close()


def read_plan(connection: sqlite3.Connection, text: str) -> list[str]:
    """How SQLite would run it."""
    numbers = [int(n) for n in re.findall(r"\?(\d+)", text)]
    values = [None] * max(numbers, default=text.count("?"))
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", values)]


def find_scanned_tables(plan: list[str]) -> set[str]:
    """The tables that a plan reads whole."""
    found = [re.match(r"SCAN (\w+)(?! VIRTUAL)(?!.*USING INDEX)", line) for line in plan]
    return {match[1] for match in found if match}


def find_error(connection: sqlite3.Connection, text: str) -> str | None:
    """Return what SQLite says against a statement, or None."""
    try:
        read_plan(connection, text)
    except sqlite3.Error as error:
        return str(error)
    return None


def test_each_statement_compiles(connection: sqlite3.Connection) -> None:
    errors = {name: find_error(connection, text) for name, text in SQL.items()}
    assert {name: error for name, error in errors.items() if error} == {}


def test_a_statement_that_does_not_compile_is_seen(connection: sqlite3.Connection) -> None:
    assert find_error(connection, "SELECT wrong FROM job") == "no such column: wrong"


def test_the_jobs_that_wait_for_a_source_are_read_in_order(connection: sqlite3.Connection) -> None:
    """A step reads the first ones, however many there are: none is sorted."""
    plan = read_plan(connection, SQL["list_waiters"])
    assert len(plan) == 2
    assert "source_kind=? AND source=? AND is_impossible=?" in plan[0]


def test_no_hot_statement_scans_a_table(connection: sqlite3.Connection) -> None:
    assert {name: found for name in HOT if (found := find_large_scans(connection, name))} == {}


def find_large_scans(connection: sqlite3.Connection, name: str) -> set[str]:
    """Return the tables that may be large and that a statement reads whole."""
    plan = read_plan(connection, SQL[name])
    real = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
    aliases = {
        "j": "job",
        "l": "lease",
        "s": "session",
        "r": "ready",
        "k": "lease_key",
        "p": "parked",
    }
    tables = {aliases.get(name, name) for name in find_scanned_tables(plan)} & real
    return tables - SMALL


@pytest.mark.parametrize("name", ["read_lane", "read_lane_heads", "read_lane_further"])
def test_a_reserve_reads_the_lane_in_index_order(connection: sqlite3.Connection, name: str) -> None:
    plan = read_plan(connection, SQL[name])
    assert any(line.startswith("SEARCH ready USING PRIMARY KEY (lane=?") for line in plan)
    assert not any("TEMP B-TREE" in line for line in plan)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("get_job_state", "SEARCH j USING INDEX sqlite_autoindex_job_1 (id=?)"),
        ("get_records", "SEARCH j USING INTEGER PRIMARY KEY (rowid=?)"),
        ("filter_jobs", "SEARCH j USING INTEGER PRIMARY KEY (rowid=?)"),
    ],
)
def test_the_view_of_jobs_becomes_part_of_the_plan(
    connection: sqlite3.Connection, name: str, way: str
) -> None:
    """`job_record` is not computed for all jobs, and each job's status is derived once."""
    plan = read_plan(connection, SQL[name])
    jobs = [line for line in plan if re.match(r"(SCAN|SEARCH) j\b", line)]
    assert jobs
    assert set(jobs) == {way}
    in_ready = [line for line in plan if re.match(r"(SCAN|SEARCH) r\b", line)]
    assert in_ready == len(jobs) * [
        "SEARCH r USING PRIMARY KEY (lane=? AND rank=? AND due=? AND seq=?)"
    ]
    assert plan.count("SEARCH p USING PRIMARY KEY (due=? AND seq=?)") == len(jobs)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("list_newest", "SEARCH job USING INTEGER PRIMARY KEY (rowid<?)"),
        ("list_failed", "SEARCH job USING INDEX job_failed (seq<?)"),
        ("list_records", "SEARCH record USING PRIMARY KEY (kind=? AND position<?)"),
    ],
)
def test_a_page_is_read_from_its_cursor_on_without_sorting(
    connection: sqlite3.Connection, name: str, way: str
) -> None:
    plan = read_plan(connection, SQL[name])
    assert way in plan
    assert not any("TEMP B-TREE" in line for line in plan)


def test_statistics_are_read_and_deleted_by_step_and_start(connection: sqlite3.Connection) -> None:
    for name in ("list_statistics", "delete_old_statistics"):
        plan = read_plan(connection, SQL[name])
        assert any("USING PRIMARY KEY (step=? AND start" in line for line in plan)
        assert not any("SCAN" in line or "TEMP B-TREE" in line for line in plan)


def test_a_scan_is_seen(connection: sqlite3.Connection) -> None:
    assert find_scanned_tables(read_plan(connection, "SELECT payload FROM job")) == {"job"}
    assert find_scanned_tables(read_plan(connection, "SELECT * FROM ready WHERE seq = ?1")) == {
        "ready"
    }


def test_the_oldest_sqlite_knows_every_function_used() -> None:
    newer = r"->>|RIGHT JOIN|FULL JOIN|IS (NOT )?DISTINCT FROM|\bunixepoch\(|\bstring_agg\("
    assert [name for name in SQL if re.search(newer, SQL[name])] == []


# What goes in comes out


TEXTS = ["", "\0", "a\0b", "ключ", "日本", "🦊", '"quoted" \\ \n', "' OR 1=1 --", "x" * 5000]


@pytest.mark.parametrize("text", TEXTS)
async def test_any_text_and_bytes_come_back_as_they_went_in(
    backend: SQLiteBackend, text: str
) -> None:
    payload = text.encode() + b"\0\xff\xfe"
    options = JobOptions(headers={text: text}, tenant=text, correlation_id=text, unique_key=text)
    await backend.producing.enqueue([NewJob(text, text, text, payload, options=options)])
    await backend.consuming.open_session(Session(id=text, host=text, names=(text,), queues=(text,)))
    request = ReserveRequest(1, (Lane(text, text),), nonce=bytes(16))
    reply = await backend.consuming.exchange(text, 1, [], request)
    (delivery,) = reply.deliveries
    assert (delivery.lease.job_id, delivery.name, delivery.queue) == (text, text, text)
    assert (delivery.payload, delivery.options) == (payload, options)
    record = await backend.reads.get_job(text)
    assert (record.payload, record.options, record.session) == (payload, options, text)
    await backend.consuming.exchange(
        text, 2, [Completed(delivery.lease, payload)], ReserveRequest(0)
    )
    assert (await backend.reads.get_job(text)).result == payload


async def test_payloads_too_large_for_one_value_come_in_parts(backend: SQLiteBackend) -> None:
    payloads = [bytes([n]) * (n * 100) for n in range(1, 40)]
    jobs = [NewJob(f"j-{n}", "n", "q", payload) for n, payload in enumerate(payloads)]
    await backend.producing.enqueue(jobs)
    await backend.consuming.open_session(Session(id="s", names=("n",)))
    await backend._file.write(
        lambda db: db.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)
    )
    reply = await backend.consuming.exchange("s", 1, [], ReserveRequest(100, (Lane("q", "n"),)))
    assert [delivery.payload for delivery in reply.deliveries] == payloads


async def test_a_batch_of_ten_thousand_keeps_its_order(backend: SQLiteBackend) -> None:
    jobs = [NewJob(f"j-{n}", "n", "q", b"%d" % n) for n in range(10_000)]
    results = await backend.producing.enqueue(jobs)
    assert [one.outcome for one in results] == ["created"] * 10_000
    await backend.consuming.open_session(Session(id="s", names=("n",)))
    reply = await backend.consuming.exchange("s", 1, [], ReserveRequest(10_000, (Lane("q", "n"),)))
    assert [int(delivery.payload) for delivery in reply.deliveries] == list(range(10_000))
    settled = [Completed(d.lease, d.payload) for d in reply.deliveries]
    assert set((await backend.consuming.exchange("s", 2, settled, ReserveRequest(0))).results) == {
        "done"
    }
    assert (await backend.reads.get_job("j-9999")).result == b"9999"
