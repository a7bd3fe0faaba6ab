"""The turns of tenants on PostgreSQL, while other transactions are open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from itertools import pairwise

import asyncpg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.postgres.maintenance import PostgresMaintaining
from nimburion.core.errors import EnqueueBlocked
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.fairness import FIRST_CHARGE, MIN_CHARGE
from nimburion.core.job import JobOptions, NewJob, State
from nimburion.core.maintenance import Retention
from nimburion.core.queries import JobFilter
from nimburion.core.session import Session
from nimburion.core.settlement import Completed, Failed, Settlement
from nimburion.core.transactions import CallerConnection
from nimburion.testing import FakeClock
from nimburion.testing.contract.changing import replay
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker
from tests.servers.server_kinds import RunningPostgres
from tests.waiting import wait_until

DEADLINE = 30.0


class Taker:
    """A worker of one queue that reserves one job at a time."""

    def __init__(self, backend: PostgresBackend, queue: str) -> None:
        session = Session(id=queue * 32, ttl=600.0, queues=(queue,), names=("n",))
        self._worker = HandDrivenWorker(backend, session)

    async def open(self) -> None:
        await self._worker.open()

    async def run(self, most: int, *, total: int = 1) -> list[str]:
        """Run jobs in `most` exchanges that reserve up to `total`. Return their ids."""
        ran: list[str] = []
        ended: list[Completed] = []
        for wanted in (*[total] * most, 0):
            reply = await self._worker.exchange(*ended, want=self._worker.want(wanted))
            ran += [delivery.lease.job_id for delivery in reply.deliveries]
            ended = [Completed(delivery.lease) for delivery in reply.deliveries]
            assert wanted or total > 1 or not reply.waiting
        return ran


def make(job_id: str, queue: str = "a", unique_key: str | None = None) -> NewJob:
    """Return a job of the tenant that its first letter names."""
    options = JobOptions(tenant=job_id[0], unique_key=unique_key)
    return NewJob(job_id, "n", queue, b"{}", options=options)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def backend(
    clean_postgres: RunningPostgres, clock: FakeClock
) -> AsyncIterator[PostgresBackend]:
    made = PostgresBackend(clean_postgres.url, clock=clock, timeout=DEADLINE)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def connection(clean_postgres: RunningPostgres) -> AsyncIterator[asyncpg.Connection]:
    """The application's own."""
    made = await asyncpg.connect(clean_postgres.url, statement_cache_size=0)
    yield made
    await made.close()


async def test_a_turn_without_a_job_delays_no_other_tenant(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """A caller's open transaction adds a job to a tenant whose last other job is taken meanwhile.
    The row of its turn then stays when the added job was taken, or is rolled back."""
    taker = Taker(backend, "a")
    await taker.open()
    await backend.producing.enqueue([make("x1"), make("y1")])
    await connection.execute("BEGIN")
    await backend.producing.enqueue_in(CallerConnection(connection), [make("x2")])
    assert await taker.run(2) == ["x1", "y1"]
    await connection.execute("COMMIT")
    assert await taker.run(1) == ["x2"]
    await backend.producing.enqueue([make("y2")])
    await connection.execute("BEGIN")
    await backend.producing.enqueue_in(CallerConnection(connection), [make("y3")])
    assert await taker.run(1) == ["y2"]
    await connection.execute("ROLLBACK")
    others = [f"z{n}" for n in range(6)]
    await backend.producing.enqueue([make(job_id) for job_id in others])
    assert await taker.run(6) == others


async def test_a_job_that_comes_while_a_turn_is_removed_keeps_it(
    clean_postgres: RunningPostgres, backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """The exchange has found the lane empty, and is about to delete the row of its turn."""
    taker = Taker(backend, "a")
    await taker.open()
    await backend.producing.enqueue([make("x1")])
    await taker.run(0, total=2)  # merges the row that the enqueue added
    await hold_deletes(connection, "tenant_turn")
    try:
        taking = asyncio.create_task(taker.run(1, total=2))
        await wait_until(lambda: count_waiting(clean_postgres) == 1, "the exchange deletes the row")
        adding = asyncio.create_task(backend.producing.enqueue([make("x2")]))
        await wait_until(
            lambda: adding.done() or count_waiting(clean_postgres) == 2,
            "the job is there, or its enqueue waits for the exchange",
        )
    finally:
        await connection.execute("COMMIT")
        await connection.execute(
            "DROP TRIGGER wait_for_test ON nimburion.tenant_turn;"
            "DROP FUNCTION public.wait_for_test()"
        )
    async with asyncio.timeout(DEADLINE):
        await adding
        assert await taking == ["x1"]
    assert await taker.run(1) == ["x2"]


async def hold_deletes(connection: asyncpg.Connection, table: str) -> None:
    """Begin a transaction in which every deletion from a table of others waits for its end."""
    await connection.execute(
        "CREATE FUNCTION public.wait_for_test() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$;"
        f"CREATE TRIGGER wait_for_test BEFORE DELETE ON nimburion.{table}"
        " EXECUTE FUNCTION public.wait_for_test();"
    )
    await connection.execute("BEGIN")  # behind PgBouncer, only a transaction can hold a lock
    await connection.execute("SELECT pg_advisory_xact_lock(1)")


def count_waiting(server: RunningPostgres) -> int:
    """Return how many locks are waited for."""
    ((count,),) = server.ask("SELECT count(*) FROM pg_locks WHERE NOT granted")
    return int(count)


async def test_an_exchange_does_not_wait_for_the_tenants_of_other_queues(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """An exchange that serves another queue changes the shares of its tenants. If the first one
    changed them as well, each could wait for the other."""
    first, other = Taker(backend, "a"), Taker(backend, "b")
    await first.open()
    await other.open()
    jobs = ["x1", "y1", "y2", "y3", "y4"]
    await backend.producing.enqueue([make(job_id, "b") for job_id in jobs])
    assert sorted(await other.run(5)) == jobs
    await connection.execute("BEGIN")
    await connection.execute("SELECT nimburion.lock_share_classes_1(ARRAY['b'], 0, '{}')")
    await connection.execute("UPDATE nimburion.tenant_share SET unmeasured = 1 WHERE queue = 'b'")
    await backend.producing.enqueue(
        [make("x2", "b"), make("x1 of a")]
    )  # below the minimum of its queue
    async with asyncio.timeout(DEADLINE / 3):
        assert await first.run(1) == ["x1 of a"]
    await connection.execute("ROLLBACK")
    assert await other.run(1) == ["x2"]


async def test_a_job_that_is_locked_is_charged_nothing(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """The exchange plans it and then finds that another transaction has locked it.

    Exchanges that check the sizes of payloads plan otherwise, also after the large payloads of
    another test.
    """
    await connection.execute("TRUNCATE nimburion.job")
    taker = Taker(backend, "a")
    await taker.open()
    await backend.producing.enqueue([make(f"x{n}") for n in range(3)])
    await connection.execute("BEGIN")
    await connection.execute("SELECT FROM nimburion.ready ORDER BY seq LIMIT 1 FOR UPDATE")
    assert await taker.run(1, total=3) == ["x1", "x2"]
    await connection.execute("ROLLBACK")
    used = await connection.fetchval("SELECT virtual_time FROM nimburion.tenant_share")
    assert used == FIRST_CHARGE + 2 * MIN_CHARGE


async def test_tenants_are_forgotten_in_steps(
    backend: PostgresBackend, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each prune reads two tenants and goes on after those of the last one. Tenants with jobs and
    those ahead of the others are kept, wherever a step ends.
    """
    monkeypatch.setattr(f"{PostgresMaintaining.__module__}._TENANTS_PER_PRUNE", 2)
    taker = Taker(backend, "a")
    await taker.open()
    await backend.producing.enqueue([make(f"{tenant}1") for tenant in "stuvwxyz"])
    assert await taker.run(1, total=8) == [f"{tenant}1" for tenant in "stuvwxyz"]
    await backend.producing.enqueue([make(job_id) for job_id in ("s2", "t2", "u2")])
    assert await taker.run(1, total=3) == ["s2", "t2", "u2"]
    await backend.producing.enqueue([make("w2")])
    counts = []
    for _ in range(5):
        await backend.maintenance.prune(Retention(), 9)
        counts.append(await connection.fetchval("SELECT count(*) FROM nimburion.tenant_share"))
    assert all(before - after <= 2 for before, after in pairwise([8, *counts]))
    kept = await connection.fetch("SELECT tenant FROM nimburion.tenant_share ORDER BY tenant")
    assert [row["tenant"] for row in kept] == ["s", "t", "u", "w"]
    assert await taker.run(1) == ["w2"]
    await prune_all(backend, Retention())
    assert await connection.fetchval("SELECT count(*) FROM nimburion.tenant_share") == 0
    assert await connection.fetchval("SELECT count(*) FROM nimburion.share_class") == 0


async def test_one_process_at_a_time_reads_the_tenants(
    backend: PostgresBackend, connection: asyncpg.Connection, clock: FakeClock
) -> None:
    """A prune does not wait for that process, and leaves the tenants to it."""
    taker = Taker(backend, "a")
    await taker.open()
    await backend.producing.enqueue([make("x1")])
    assert await taker.run(1) == ["x1"]
    clock.advance(1.0)
    await connection.execute("BEGIN")
    await connection.execute(
        """SELECT pg_advisory_xact_lock(hashtextextended('"nimburion".forget_tenants_1', 7048))"""
    )
    async with asyncio.timeout(DEADLINE):
        await backend.maintenance.prune(KEEP_NOTHING, 9)
    assert await connection.fetchval("SELECT count(*) FROM nimburion.tenant_share") == 1
    await connection.execute("COMMIT")
    await backend.maintenance.prune(KEEP_NOTHING, 9)
    assert await connection.fetchval("SELECT count(*) FROM nimburion.tenant_share") == 0
    assert await count_lanes(connection) == 0


async def prune_all(backend: PostgresBackend, keep: Retention) -> None:
    """Prune as often as it takes to read all tenants of a test twice, in steps of two or more."""
    for _ in range(16):
        await backend.maintenance.prune(keep, 99)


async def enqueue_together(backend: PostgresBackend, ids: tuple[str, str]) -> None:
    await backend.producing.enqueue([make(job_id) for job_id in ids])


async def enqueue_one_by_one(backend: PostgresBackend, ids: tuple[str, str]) -> None:
    """Enqueue jobs with unique keys."""
    await backend.producing.enqueue([make(job_id, unique_key=job_id) for job_id in ids])


async def add_until_stored(
    add: Callable[[PostgresBackend, tuple[str, str]], Coroutine[None, None, None]],
    backend: PostgresBackend,
    ids: tuple[str, str],
) -> None:
    """Repeat an enqueue that has waited too long for a lock, as a client does."""
    while True:
        try:
            return await add(backend, ids)
        except EnqueueBlocked:
            continue


async def replay_all(backend: PostgresBackend, ids: tuple[str, str]) -> None:
    del ids
    await replay(backend, JobFilter(queue="a", states=frozenset({State.FAILED})), 9)


@pytest.mark.parametrize("add", [enqueue_together, enqueue_one_by_one, replay_all])
async def test_two_calls_do_not_wait_for_each_other(
    backend: PostgresBackend,
    connection: asyncpg.Connection,
    add: Callable[[PostgresBackend, tuple[str, str]], Awaitable[None]],
) -> None:
    """Each adds the first jobs of the same tenants, in another order of the jobs."""
    await backend.producing.enqueue([make("x1"), make("y1"), make("z1")])
    rows = await connection.fetch("SELECT tenant FROM nimburion.lane WHERE id < 0 ORDER BY id")
    first, *_, last = [row["tenant"] for row in rows]
    if add is replay_all:  # which begins with the newest
        await take_jobs(backend, first, last, fail=True)
    else:
        await take_jobs(backend, last, first, fail=False)
    await connection.execute("BEGIN; SET LOCAL lock_timeout = '0.5 s'")
    await backend.producing.enqueue_in(CallerConnection(connection), [make(f"{first}2")])
    async with asyncio.timeout(DEADLINE):
        await add(backend, (f"{last}3", f"{first}3"))
    await backend.producing.enqueue_in(CallerConnection(connection), [make(f"{last}2")])
    await connection.execute("COMMIT")
    uses = (await backend.reads.list_tenants()).tenants
    assert {use.tenant: use.waiting for use in uses} == {first: 2, last: 2}


async def take_jobs(backend: PostgresBackend, *tenants: str, fail: bool) -> None:
    """Lease all jobs, and one more of each of these tenants, which come in this order. Complete the
    others. Those of the tenants keep their leases, or fail.
    """
    await backend.consuming.open_session(Session(id="b" * 32, ttl=600.0, names=("n",)))
    ids = [f"{tenant}0" for tenant in tenants]
    await backend.producing.enqueue([make(job_id) for job_id in ids])
    reply = await backend.consuming.exchange("b" * 32, 1, [], ReserveRequest(9, (Lane("a", "n"),)))
    leases = {delivery.lease.job_id: delivery.lease for delivery in reply.deliveries}
    ended: list[Settlement] = [
        Completed(lease) for job_id, lease in leases.items() if job_id not in ids
    ]
    if fail:
        ended += [Failed(leases[job_id], "broken", FAILURE) for job_id in ids]
    await backend.consuming.exchange("b" * 32, 2, ended, ReserveRequest(0, ()))


async def count_lanes(connection: asyncpg.Connection) -> int:
    """Return the number of lanes with a tenant."""
    return int(await connection.fetchval("SELECT count(*) FROM nimburion.lane WHERE tenant <> ''"))


KEEP_NOTHING = Retention(completed=0.0, failed=0.0, results=0.0)


async def test_tenants_that_come_and_go_leave_no_lanes(
    backend: PostgresBackend,
    connection: asyncpg.Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that are left have a job: waiting, scheduled, failed, or completed and kept."""
    monkeypatch.setattr(f"{PostgresMaintaining.__module__}._TENANTS_PER_PRUNE", 3)
    await take_jobs(backend, "s", "t", fail=True)
    taker = Taker(backend, "a")
    await taker.open()
    await backend.producing.enqueue([make(f"{tenant}1") for tenant in "efghijklmn"])
    assert len(await taker.run(1, total=10)) == 10
    clock.advance(1.0)
    await backend.producing.enqueue([make("u1")])
    assert await taker.run(1) == ["u1"]
    await prune_all(backend, Retention(completed=0.5, results=0.0))
    clock.advance(0.1)
    later = NewJob("v1", "n", "a", b"{}", after=9.0, options=JobOptions(tenant="v"))
    await backend.producing.enqueue([make("w1"), later])
    await prune_all(backend, Retention(completed=0.5, results=0.0))
    kept = await connection.fetch("SELECT tenant FROM nimburion.lane WHERE tenant <> '' ORDER BY 1")
    assert [row["tenant"] for row in kept] == ["s", "t", "u", "v", "w"]
    assert await taker.run(1) == ["w1"]
    clock.advance(9.0)
    assert await taker.run(1) == ["v1"]
    clock.advance(1.0)
    await prune_all(backend, KEEP_NOTHING)
    assert await count_lanes(connection) == 0
    await backend.producing.enqueue([make("s2"), make("w2")])
    assert await taker.run(2) == ["s2", "w2"]


async def test_prune_looks_for_unused_lanes_twice_however_many_there_are(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """Before and after it locks them. Enqueues of their tenants wait meanwhile."""
    await connection.execute(
        "INSERT INTO nimburion.lane (id, queue, name, rank, tenant, share) OVERRIDING SYSTEM VALUE"
        " SELECT -n, 'a', 'n', 4, 't' || n, -n FROM generate_series(1, 50) n"
    )
    async with connection.transaction(isolation="read_committed"):
        await connection.execute("SET LOCAL track_functions = 'all'")
        await connection.execute("SELECT nimburion.prune_tenant_lanes_1(20)")
        assert await connection.fetchval("SELECT count(*) FROM nimburion.lane") == 30
        calls = await connection.fetchval(
            "SELECT calls FROM pg_stat_xact_user_functions WHERE schemaname = 'nimburion'"
            " AND funcname = 'find_unused_shares_1'"
        )
    assert calls == 2


async def test_a_lane_stays_while_a_caller_adds_a_job_to_it(
    backend: PostgresBackend, connection: asyncpg.Connection, clock: FakeClock
) -> None:
    """The prune does not wait for the caller's transaction, whether this adds a new name or not."""
    taker = Taker(backend, "a")
    await taker.open()
    await backend.producing.enqueue([make("x1"), make("y1"), make("z1")])
    await taker.run(3)
    clock.advance(1.0)
    await connection.execute("BEGIN")
    other = NewJob("y2", "m", "a", b"{}", options=JobOptions(tenant="y"))
    await backend.producing.enqueue_in(CallerConnection(connection), [make("x2"), other])
    async with asyncio.timeout(DEADLINE / 3):
        await backend.maintenance.prune(KEEP_NOTHING, 99)
    await connection.execute("COMMIT")
    assert await count_lanes(connection) == 3
    assert await taker.run(2) == ["x2"]


async def test_the_first_lane_of_a_tenant_stays_while_another_one_is_created(
    backend: PostgresBackend, connection: asyncpg.Connection, clock: FakeClock
) -> None:
    taker = Taker(backend, "a")
    await taker.open()
    await backend.producing.enqueue([make("x1")])
    await taker.run(1)
    clock.advance(1.0)
    await connection.execute("BEGIN")
    await connection.execute(
        "SELECT nimburion.create_lanes_1(ARRAY[E'a\\nx'], ARRAY['m'], ARRAY[4::int2], false)"
    )
    await backend.maintenance.prune(KEEP_NOTHING, 99)
    await connection.execute("COMMIT")
    shares = await connection.fetch("SELECT id, share FROM nimburion.lane WHERE tenant <> ''")
    assert len(shares) == 2
    assert {row["share"] for row in shares} < {row["id"] for row in shares}


@pytest.mark.parametrize("add", [enqueue_together, enqueue_one_by_one])
async def test_a_job_that_comes_while_its_lane_is_deleted_gets_a_new_one(
    clean_postgres: RunningPostgres,
    backend: PostgresBackend,
    connection: asyncpg.Connection,
    clock: FakeClock,
    add: Callable[[PostgresBackend, tuple[str, str]], Coroutine[None, None, None]],
) -> None:
    taker = Taker(backend, "a")
    await taker.open()
    await backend.producing.enqueue([make("x1")])
    await taker.run(1)
    clock.advance(1.0)
    await hold_deletes(connection, "lane")
    try:
        pruning = asyncio.create_task(backend.maintenance.prune(KEEP_NOTHING, 99))
        await wait_until(lambda: count_waiting(clean_postgres) == 1, "the lane is deleted")
        adding = asyncio.create_task(add_until_stored(add, backend, ("x2", "x3")))
        await wait_until(lambda: count_waiting(clean_postgres) == 2, "the enqueue waits for it")
    finally:
        await connection.execute("COMMIT")
        await connection.execute(
            "DROP TRIGGER wait_for_test ON nimburion.lane; DROP FUNCTION public.wait_for_test()"
        )
    async with asyncio.timeout(DEADLINE):
        await pruning
        await adding
    assert await taker.run(2) == ["x2", "x3"]


async def test_no_job_is_lost_while_lanes_are_deleted(
    clean_postgres: RunningPostgres, backend: PostgresBackend, clock: FakeClock
) -> None:
    """Tenants come and go, while other processes enqueue, run and prune."""
    producer, pruner = (
        PostgresBackend(clean_postgres.url, clock=clock, timeout=DEADLINE) for _ in range(2)
    )
    await producer.open()
    await pruner.open()
    taker = Taker(backend, "a")
    await taker.open()
    wanted = [f"{tenant}{n}" for n in range(40) for tenant in "xyz"]
    is_done = False

    async def prune() -> int:
        pruned = 0
        while not is_done:
            await pruner.maintenance.prune(KEEP_NOTHING, 999)
            pruned += 1
        return pruned

    async def produce() -> None:
        for job_id in wanted:
            await producer.producing.enqueue([make(job_id)])

    ran: list[str] = []
    pruning = asyncio.create_task(prune())
    producing = asyncio.create_task(produce())
    async with asyncio.timeout(DEADLINE):
        while len(ran) < len(wanted):
            ran += await taker.run(1, total=5)
            clock.advance(0.001)
        await producing
    is_done = True
    assert await pruning > 1
    assert sorted(ran) == sorted(wanted)
    await producer.close()
    await pruner.close()


async def test_numbers_of_lanes_begin_again_after_the_last_one(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """Numbers of lanes that exist are passed over."""
    sequence = "pg_get_serial_sequence('nimburion.lane', 'id')"
    taker = Taker(backend, "a")
    await taker.open()
    await backend.producing.enqueue([NewJob("p", "n", "a", b"{}"), make("x1")])
    await connection.execute(f"SELECT setval({sequence}, 2147483646)")
    old = NewJob("late", "n", "a", b"{}", at=1.0)
    other = NewJob("other", "n", "b", b"{}")
    await backend.producing.enqueue([make("y1"), make("z1"), old, other])
    rows = await connection.fetch("SELECT abs(id) AS number FROM nimburion.lane ORDER BY 1")
    *numbers, last = [row["number"] for row in rows]
    assert last == 2147483647
    assert len({*numbers}) == len(numbers) == 5
    assert numbers[-1] < 99
    assert sorted(await taker.run(5)) == ["late", "p", "x1", "y1", "z1"]
