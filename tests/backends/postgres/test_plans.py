"""The claim and the settlement go by indexes, whatever the statistics of the planner say.

What PostgreSQL knows of a table is minutes old, and a line of jobs fills and empties in seconds.
The plans here are those of the statements inside the functions, as they were executed.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import psycopg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.postgres.reads import share_budget
from nimburion.core.job import NewJob
from nimburion.core.lease import Delivery
from nimburion.core.queries import COUNT_BUDGET
from nimburion.core.session import Session
from nimburion.core.settlement import Completed
from nimburion.testing.contract.harness import HandDrivenWorker
from tests.servers.binaries import Binary
from tests.servers.postgres import PostgresServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

JOBS = 200_000
AT_ONCE = 50
OFTEN = 8
"""PostgreSQL plans a statement of a function anew five times, and then, as a rule, once for all."""
MOST_BLOCKS = 40
"""Pages of 8 KiB that the way of a job through one exchange may touch."""
LONG = 200
"""Exchanges while an old snapshot is held."""
LARGE = frozenset(
    {
        "job",
        "ready",
        "scheduled",
        "lease",
        "attempt_state",
        "unique_key",
        "exchange_log",
        "finished_job",
        "result",
    }
)
"""Tables that grow; it does not matter how others are read."""

_EXPLAIN = """
    LOAD 'auto_explain';
    SET auto_explain.log_min_duration = 0;
    SET auto_explain.log_nested_statements = on;
    SET auto_explain.log_analyze = on;
    SET auto_explain.log_buffers = on;
    SET auto_explain.log_timing = off;
    SET auto_explain.log_format = json;
    SET auto_explain.log_level = notice;
"""
_FILL = """
WITH n AS (
    SELECT nextval(pg_get_serial_sequence('nimburion.job', 'seq')) AS seq,
        CAST(extract(epoch FROM clock_timestamp()) * 1e6 AS int8) - JOBS + n AS due
    FROM generate_series(1, JOBS) n
), j AS (
    INSERT INTO nimburion.job (seq, due, created_at, lane, id, digest, payload)
    SELECT seq, due, due, (SELECT min(id) FROM nimburion.lane), convert_to('fill-' || seq, 'UTF8'),
        '\\x00', '{}'
    FROM n
    RETURNING seq, due, lane
)
INSERT INTO nimburion.ready (due, seq, lane, attempt_status) SELECT due, seq, lane, 0 FROM j
"""


class ExplainedBackend:
    """A worker, and the plans of all that its exchanges made the server do."""

    def __init__(self, backend: PostgresBackend) -> None:
        self._backend = backend
        session = Session(id="5e" * 16, queues=("default",), names=("quick",))
        self._worker = HandDrivenWorker(backend, session)
        self._plans: list[str] = []
        self.held: Sequence[Delivery] = ()

    async def open(self) -> None:
        """Open the session."""
        await self._worker.open()

    async def listen(self) -> None:
        """Let the server tell its plans from now on."""
        connection = self._backend._database.get_connections().main
        await connection.connect()
        await connection.driver.execute(_EXPLAIN)
        connection.driver.add_log_listener(lambda _, message: self._plans.append(message.message))

    async def exchange(self) -> list[Any]:
        """Settle what was handed out, and take as many; the plans."""
        self._plans.clear()
        done = [Completed(one.lease) for one in self.held]
        reply = await self._worker.exchange(*done, want=self._worker.want(AT_ONCE))
        assert len(reply.deliveries) == AT_ONCE
        self.held = reply.deliveries
        return [found["Plan"] for found in self._decode_plans()]

    async def explain(self, statement: str) -> list[Any]:
        """What the server did for a statement, with its functions."""
        self._plans.clear()
        await self._backend._database.get_connections().main.driver.execute(statement)
        return self._decode_plans()

    def _decode_plans(self) -> list[Any]:
        return [json.loads(text[text.index("{") :]) for text in self._plans if "{" in text]


@pytest.fixture
async def server(postgres_binary: Binary) -> AsyncIterator[PostgresServer]:
    """It learns of its tables only what a test lets it learn."""
    with PostgresServer(postgres_binary, "autovacuum=off") as server:
        yield server


@pytest.fixture
async def worker(server: PostgresServer) -> AsyncIterator[ExplainedBackend]:
    backend = PostgresBackend(server.url)
    await backend.open()
    await backend.producing.enqueue([NewJob("first", "quick", "default", b"{}")])
    worker = ExplainedBackend(backend)
    await worker.open()
    server.ask("ANALYZE")
    await worker.listen()
    yield worker
    await backend.close()


async def test_an_exchange_reads_by_indexes(
    server: PostgresServer, worker: ExplainedBackend
) -> None:
    """With what was true of empty tables; with what is true; and when most of it is not there any
    more."""
    server.ask(_FILL.replace("JOBS", str(JOBS)))
    await check(worker, "the statistics are those of empty tables")
    server.ask("ANALYZE")
    await check(worker, "the statistics are new")
    server.ask("DELETE FROM nimburion.ready WHERE seq % 10 <> 0")
    server.ask(
        "DELETE FROM nimburion.job WHERE seq % 10 <> 0 "
        "AND NOT seq IN (SELECT seq FROM nimburion.lease)"
    )
    await check(worker, "nine of ten are gone and not vacuumed", most=None)
    await check(worker, "nine of ten are gone")


async def test_an_exchange_reads_each_job_once_after_a_vacuum_of_empty_tables(
    server: PostgresServer, worker: ExplainedBackend
) -> None:
    """The planner then expects one row, and finds a scan of the whole index as cheap as one row."""
    server.ask(_FILL.replace("JOBS", "2000"))
    server.ask("DELETE FROM nimburion.ready")
    server.ask("DELETE FROM nimburion.job")
    server.ask("VACUUM ANALYZE")
    server.ask(_FILL.replace("JOBS", "2000"))
    for _ in range(OFTEN):
        nodes = [node for plan in await worker.exchange() for node in iter_nodes(plan)]
        read = {
            node["Relation Name"]: node["Actual Rows"] * node["Actual Loops"]
            for node in sorted(nodes, key=lambda node: node["Actual Rows"] * node["Actual Loops"])
            if is_of_large(node)
        }
        assert max(read.values()) <= 2 * AT_ONCE, f"rows that were read: {read}"


@pytest.mark.wide
async def test_an_old_snapshot_makes_no_exchange_slower(
    server: PostgresServer, worker: ExplainedBackend
) -> None:
    """Nothing that was deleted can be removed while it is held; what is dead is not read again."""
    server.ask(_FILL.replace("JOBS", str(JOBS)))
    with psycopg.connect(server.url) as report:
        report.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        report.execute("SELECT FROM nimburion.ready LIMIT 1")
        needed = [max(map(count_blocks, await worker.exchange())) for _ in range(LONG)]
    early, late = needed[LONG // 10], needed[-1]
    assert late < 1.1 * early < MOST_BLOCKS * AT_ONCE, f"{early} pages at first, {late} later"


async def test_queues_are_counted_within_the_budget(
    server: PostgresServer, worker: ExplainedBackend
) -> None:
    """A budget bounds what is read; without one, all is read, but nothing is compiled for it."""
    server.ask(_FILL.replace("JOBS", str(JOBS)))
    server.ask("VACUUM ANALYZE")
    for budget, most in (("1000", 1_000), ("NULL", JOBS + 1)):
        for _ in range(OFTEN):
            found = await worker.explain(f"SELECT * FROM nimburion.list_queues_1(0, {budget})")
            assert [plan for plan in found if "JIT" in plan] == []
            nodes = [node for plan in found for node in iter_nodes(plan["Plan"])]
            read = [
                node["Actual Rows"] * node["Actual Loops"]
                for node in nodes
                if node.get("Relation Name") == "ready"
            ]
            assert most / 2 < max(read) <= most, f"{read} rows with the budget {budget}"


async def test_counts_read_no_more_rows_than_their_budget(
    server: PostgresServer, worker: ExplainedBackend
) -> None:
    """By default, a call reads about 10,000 rows, whether a queue is named or not."""
    server.ask(_FILL.replace("JOBS", str(JOBS)))
    server.ask(
        "INSERT INTO nimburion.scheduled (due, seq, lane, attempt_status)"
        " SELECT due + 86400000000, seq + 10000000, lane, 0 FROM nimburion.ready"
    )
    server.ask("VACUUM ANALYZE")
    share = share_budget(COUNT_BUDGET)
    for call in (
        f"list_queues_1(0, {share})",
        f"count_by_state_1(0, NULL, {share})",
        f"count_by_state_1(0, 'default', {share})",
    ):
        for _ in range(OFTEN):
            found = await worker.explain(f"SELECT * FROM nimburion.{call}")
            read = [
                node["Actual Rows"] * node["Actual Loops"] + node.get("Rows Removed by Filter", 0)
                for plan in found
                for node in iter_nodes(plan["Plan"])
                if node.get("Relation Name") in LARGE
            ]
            assert COUNT_BUDGET / 4 < sum(read) <= COUNT_BUDGET, f"{read} rows read by {call}"


async def check(worker: ExplainedBackend, when: str, most: int | None = MOST_BLOCKS) -> None:
    """Let it work for a while, and look at each plan."""
    for n in range(OFTEN):
        plans = await worker.exchange()
        assert len(plans) > 4, "nothing was explained"
        read = [one for plan in plans for one in iter_nodes(plan) if is_of_large(one)]
        whole = [one["Relation Name"] for one in read if one["Node Type"] == "Seq Scan"]
        assert whole == [], f"read from end to end, when {when}"
        blocks = max(count_blocks(plan) for plan in plans) / AT_ONCE
        assert most is None or n == 0 or blocks < most, f"{blocks} pages a job, when {when}"


def iter_nodes(plan: Any) -> Iterator[Any]:
    """A plan's node, and all below it."""
    yield plan
    for one in plan.get("Plans", ()):
        yield from iter_nodes(one)


def is_of_large(node: Any) -> bool:
    """Of one of these, or of a day of it."""
    name: str = node.get("Relation Name", "")
    return name in LARGE or name.startswith(("done_", "result_"))


def count_blocks(plan: Any) -> int:
    """Pages that were touched in all; of the statement that calls the function, all of them."""
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
