"""What operators read: complete within a budget, without locks, and as long as it is needed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace

from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.postgres.connection.connect import OpenConnection
from nimburion.backends.postgres.connection.pool import PostgresConnection
from nimburion.core.job import JobOptions, NewJob, State
from nimburion.core.maintenance import Retention
from nimburion.core.queries import EVERY_JOB, JobFilter
from nimburion.core.settlement import Completed, Failed
from nimburion.testing import FakeClock
from nimburion.testing.contract.changing import replay
from nimburion.testing.contract.harness import FAILURE, Harness, ids, wait_in_time
from tests.servers.server_kinds import RunningPostgres

DAY = 86_400.0
JOBS = 2_500
"""More than the first range of seqs that a search reads."""
EVERY_TENTH = JobFilter(tenant="tenth")
FINISHED = frozenset({State.COMPLETED, State.CANCELLED})


@pytest.fixture
async def harness(clean_postgres: RunningPostgres) -> AsyncIterator[Harness]:
    clock = FakeClock()
    backend = PostgresBackend(clean_postgres.url, clock=clock)
    await backend.open()
    yield Harness(clock, [backend])
    await backend.close()


async def test_no_reading_is_worth_compiling(
    clean_postgres: RunningPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above `jit_above_cost`, PostgreSQL compiles a statement, which takes seconds."""
    costs: dict[str, float] = {}
    fetch = PostgresConnection._fetch

    async def explain(
        self: PostgresConnection, opened: OpenConnection, statement: str, arguments: Sequence[Any]
    ) -> Any:
        ((plan,),) = await opened.driver.fetch(f"EXPLAIN (FORMAT JSON) {statement}", *arguments)
        costs[statement] = json.loads(plan)[0]["Plan"]["Total Cost"]
        return await fetch(self, opened, statement, arguments)

    backend = PostgresBackend(clean_postgres.url)
    await backend.open()
    try:
        await backend.producing.enqueue([NewJob("a", "send", "mail", b"{}")])
        monkeypatch.setattr(PostgresConnection, "_fetch", explain)
        await backend.reads.explain_job("a")
        await backend.reads.get_job("a")
        await backend.reads.list_jobs()
        await backend.reads.count_jobs(budget=None)
        await backend.reads.list_queues()
        await backend.reads.group_failures()
        await backend.reads.list_limits()
        await backend.reads.list_tenants()
        await backend.reads.list_sessions()
    finally:
        await backend.close()
    assert len(costs) >= 10
    assert {statement: cost for statement, cost in costs.items() if cost > 100_000} == {}


async def fill(harness: Harness) -> list[str]:
    """Complete the older half of many jobs; return the ids of every tenth job, newest first."""
    tenth = JobOptions(tenant="tenth")
    jobs = [
        harness.job(f"{n:05}", options=tenth if n % 10 == 0 else JobOptions()) for n in range(JOBS)
    ]
    await harness.enqueue(*jobs)
    worker = await harness.worker()
    deliveries = await worker.take(JOBS // 2)
    await worker.settle(*(Completed(delivery.lease) for delivery in deliveries))
    return [job.id for job in reversed(jobs) if job.options == tenth]


async def collect(harness: Harness, which: JobFilter, limit: int, budget: int) -> list[str]:
    """Return the ids of all pages of a search, and check that each page keeps to the budget."""
    found: list[str] = []
    after: str | None = None
    while True:
        page = await harness.backend.reads.list_jobs(which, limit=limit, after=after, budget=budget)
        assert len(page.jobs) <= page.examined <= budget
        found += [job.id for job in page.jobs]
        if page.next is None:
            return found
        after = page.next


@pytest.mark.parametrize(("limit", "budget"), [(7, 300), (100, 999), (1_000, 10_000)])
async def test_a_search_finds_each_job_once(harness: Harness, limit: int, budget: int) -> None:
    expected = await fill(harness)
    assert await collect(harness, EVERY_TENTH, limit, budget) == expected
    finished = replace(EVERY_TENTH, states=FINISHED)
    assert await collect(harness, finished, limit, budget) == expected[JOBS // 20 :]
    waiting = replace(EVERY_TENTH, states=frozenset({State.PENDING}))
    assert await collect(harness, waiting, limit, budget) == expected[: JOBS // 20]


@pytest.mark.parametrize("gap", [900, 5_000, 77_777, 3_000_000])
async def test_a_search_finds_jobs_on_both_sides_of_a_gap(
    harness: Harness, clean_postgres: RunningPostgres, gap: int
) -> None:
    """A gap: the jobs with these numbers are deleted, or they wait while finished ones are asked
    for.
    """
    older = await fill(harness)
    clean_postgres.ask(
        f"SELECT setval(pg_get_serial_sequence('nimburion.job', 'seq'), {JOBS + gap})",
        database=clean_postgres.database,
    )
    worker = await harness.worker(names=("other",))
    newer = await harness.add(*(f"new-{n}" for n in range(3)), name="other")
    await worker.settle(*(Completed(one.lease) for one in await worker.take(3)))
    clean_postgres.ask(
        f"SELECT setval(pg_get_serial_sequence('nimburion.job', 'seq'), {JOBS + 2 * gap})",
        database=clean_postgres.database,
    )
    await harness.add("newest")
    finished = JobFilter(states=FINISHED)
    found = await collect(harness, finished, 100, 10_000)
    assert found == [*reversed(newer), *(f"{n:05}" for n in reversed(range(JOBS // 2)))]
    assert await collect(harness, finished, 100, 7) == found
    everything = await collect(harness, EVERY_JOB, 1_000, 10_000)
    assert (len(everything), everything[:4]) == (JOBS + 4, ["newest", *reversed(newer)])
    assert await collect(harness, EVERY_TENTH, 100, 10_000) == older


async def test_pruned_jobs_are_not_found(harness: Harness) -> None:
    expected = await fill(harness)
    harness.clock.advance(DAY)
    assert await harness.backend.maintenance.prune(Retention(completed=1.0), JOBS) == JOBS // 2
    assert await collect(harness, EVERY_TENTH, 100, 10_000) == expected[: JOBS // 20]
    assert await collect(harness, replace(EVERY_TENTH, states=FINISHED), 100, 10_000) == []


async def test_running_jobs_are_found_behind_many_waiting_ones(harness: Harness) -> None:
    await harness.add("running")
    worker = await harness.worker()
    await worker.take_one()
    await harness.add(*(f"waiting-{n}" for n in range(50)))
    which = JobFilter(states=frozenset({State.PROCESSING}))
    page = await harness.backend.reads.list_jobs(which, budget=5)
    assert ([job.id for job in page.jobs], page.next, page.examined) == (["running"], None, 1)


async def test_a_tenant_is_compared_as_text(harness: Harness) -> None:
    for n, tenant in enumerate(('a "quoted" one', "ünïcode ✓", "back\\slash")):
        await harness.put(harness.job(str(n), options=JobOptions(tenant=tenant)))
        assert await collect(harness, JobFilter(tenant=tenant), 10, 10) == [str(n)]
    assert await collect(harness, JobFilter(tenant="\ud800"), 10, 10) == []


async def test_a_header_is_no_tenant_and_may_hold_a_nul(harness: Harness) -> None:
    options = JobOptions(tenant="x", unique_key="k", headers={"tenant": "y", "raw": "a \0 in it"})
    await harness.put(harness.job("a", options=options))
    assert await collect(harness, JobFilter(tenant="x"), 10, 10) == ["a"]
    assert await collect(harness, JobFilter(tenant="y"), 10, 10) == []
    assert (await harness.backend.reads.explain_job("a")).key_holder is None
    worker = await harness.worker()
    await worker.settle(Failed((await worker.take_one()).lease, "permanent", FAILURE))
    assert (await replay(harness.backend, EVERY_JOB, 10)).ids == ["a"]


async def test_a_fingerprint_is_read_beside_a_nul(harness: Harness) -> None:
    """JSON of PostgreSQL cannot turn a NUL into text."""
    await harness.add("a")
    worker = await harness.worker()
    error = replace(FAILURE, message="a \0 in it", fingerprint="00000000000000aa")
    await worker.settle(Failed((await worker.take_one()).lease, "permanent", error))
    (group,) = (await harness.backend.reads.group_failures()).groups
    assert (group.fingerprint, group.message) == (error.fingerprint, error.message)
    assert await collect(harness, JobFilter(fingerprint=error.fingerprint), 10, 10) == ["a"]


async def test_a_session_is_kept_as_long_as_its_jobs(
    harness: Harness, clean_postgres: RunningPostgres
) -> None:
    await harness.add("a")
    worker = await harness.worker()
    await worker.settle(Completed((await worker.take_one()).lease))
    await worker.close()
    keep = Retention(completed=3 * DAY)
    harness.clock.advance(2 * DAY)
    await harness.backend.maintenance.prune(keep, 10)
    record = await harness.backend.reads.get_job("a")
    assert (record.ended_by, record.host) == (worker.id, "here")
    harness.clock.advance(2 * DAY)
    assert await harness.backend.maintenance.prune(keep, 10) == 1
    await harness.backend.maintenance.prune(keep, 10)
    sessions = "SELECT count(*) FROM nimburion.session"
    assert clean_postgres.ask(sessions, database=clean_postgres.database) == [(0,)]


async def test_a_reading_waits_for_no_lock_of_a_worker(
    harness: Harness, clean_postgres: RunningPostgres
) -> None:
    await harness.add("a")
    worker = await harness.worker(limits={"mail": 1})
    await worker.take_one()
    with psycopg.connect(clean_postgres.url) as other:
        other.execute(
            "LOCK TABLE nimburion.limit_rule, nimburion.paused_queue, nimburion.session, "
            "nimburion.lease, nimburion.job IN EXCLUSIVE MODE"
        )
        backend = harness.backend
        assert (await wait_in_time(backend.reads.explain_job("a"))).job.state is State.PROCESSING
        assert len(await wait_in_time(backend.reads.list_limits())) == 1
        assert (await wait_in_time(backend.reads.list_jobs(EVERY_JOB))).examined == 1
        assert (await wait_in_time(backend.reads.group_failures())).examined == 0


async def test_a_pause_ends_while_another_queue_is_paused(harness: Harness) -> None:
    """Then the exchange looks at each pause, not only at whether there is one."""
    await harness.add("a")
    worker = await harness.worker()
    await harness.backend.maintenance.pause_queue("other", paused=True)
    await harness.backend.maintenance.pause_queue(
        "default", paused=True, until=harness.clock.now() + 10.0
    )
    assert await worker.take(1) == []
    harness.clock.advance(10.0)
    assert ids(await worker.take(1)) == ["a"]
