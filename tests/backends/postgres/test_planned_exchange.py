"""What happens between the two calls of a planned exchange on PostgreSQL."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.postgres.connection.pool import PostgresConnection
from nimburion.core.errors import BackendUnavailable
from nimburion.core.exchange import Lane, QueueOptions
from nimburion.core.job import JobOptions
from nimburion.core.limits import LimitChange, LimitRule
from nimburion.core.rate_limits import RateLimit
from nimburion.core.settlement import Completed
from nimburion.testing import FakeClock
from nimburion.testing.contract.harness import Harness, ids, list_uses
from tests.servers.server_kinds import RunningPostgres
from tests.waiting import wait_until

DEADLINE = 30.0
KEYED = {"mail": {"customer": LimitRule(concurrency=2)}}
QUEUE_LIMIT = LimitChange(name="queue:default", concurrency=1)
LOCK_LIMIT = "SELECT FROM nimburion.limit_rule"
NAMES = ("mail", "page")

Hook = Callable[[], Awaitable[None]]


@pytest.fixture
async def harness(clean_postgres: RunningPostgres) -> AsyncIterator[Harness]:
    """Two backends: exchanges of one wait for each other."""
    clock = FakeClock()
    backends = [PostgresBackend(clean_postgres.url, clock=clock, timeout=DEADLINE) for _ in "ab"]
    for backend in backends:
        await backend.open()
    yield Harness(clock, backends)
    for backend in backends:
        await backend.close()


@pytest.fixture
async def caller(harness: Harness, clean_postgres: RunningPostgres) -> AsyncIterator[Any]:
    """A connection for a transaction that holds jobs."""
    connection = await asyncpg.connect(clean_postgres.url, statement_cache_size=0)
    yield connection
    await connection.close()


def get_exchange_connection(backend: Any) -> PostgresConnection:
    connection: PostgresConnection = backend._database.get_connections().main
    return connection


def lock_next_exchange_first(backend: Any) -> None:
    """Let the next planned exchange take the locks first, as after a conflict."""
    backend.consuming._planner._locked_left = 1


def run_before_apply(backend: Any, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run something once, when the next plan is made and not applied yet."""
    connection = get_exchange_connection(backend)
    hooks = [hook]
    for name in ("_fetch", "_fetch_in_transaction"):
        original = getattr(connection, name)

        async def fetch(
            opened: Any, statement: str, arguments: Sequence[Any], original: Any = original
        ) -> Any:
            if "apply_plan_1" in statement and hooks:
                await hooks.pop()()
            return await original(opened, statement, arguments)

        monkeypatch.setattr(connection, name, fetch)


def count_open_transactions(server: RunningPostgres) -> int:
    """Return how many connections are idle in a transaction."""
    ((count,),) = server.ask(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND state = 'idle in transaction'"
    )
    return int(count)


def make_jobs(harness: Harness, *job_ids: str) -> list[Any]:
    options = JobOptions(limit_keys={"customer": "c"})
    return [harness.job(job_id, options=options) for job_id in job_ids]


async def test_a_plan_of_a_key_that_was_used_meanwhile_is_made_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs of the two workers differ, so only the key is in conflict."""
    first = await harness.worker(keyed=KEYED, backend=harness.handles[0])
    second = await harness.worker(keyed=KEYED, backend=harness.handles[1], queues=("other",))
    await harness.enqueue(*make_jobs(harness, "a", "b", "c", "d"))
    options = JobOptions(limit_keys={"customer": "c"})
    await harness.enqueue(harness.job("x", queue="other", options=options))

    async def take_one() -> None:
        assert ids(await second.take(1)) == ["x"]

    run_before_apply(harness.handles[0], take_one, monkeypatch)
    assert ids(await first.take(9)) == ["a"]
    (use,) = await list_uses(harness.backend)
    assert (use.in_use, use.parked) == (2, 3)


async def test_a_plan_beyond_an_own_limit_is_made_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs of the two workers differ, so only the limit is in conflict."""
    first = await harness.worker(names=NAMES, limits={"mail": 2}, backend=harness.handles[0])
    second = await harness.worker(
        names=NAMES, limits={"mail": 2}, backend=harness.handles[1], queues=("other",)
    )
    await harness.add("a", "b", "c")
    await harness.add("p", name="page")  # jobs of two lanes are planned
    await harness.add("x", queue="other")

    async def take_one() -> None:
        assert ids(await second.take(1)) == ["x"]

    run_before_apply(harness.handles[0], take_one, monkeypatch)
    assert ids(await first.take(9)) == ["a", "p"]
    (limit,) = await harness.backend.reads.list_limits()
    assert limit.in_use == 2


async def test_a_plan_is_made_again_after_a_queue_got_its_first_limit(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan has read no limit by key: own limits of two names restrict it."""
    worker = await harness.worker(names=NAMES, limits={"mail": 9}, backend=harness.handles[0])
    await harness.add("a", "b")
    await harness.add("p", name="page")

    async def set_limit() -> None:
        await harness.handles[1].maintenance.change_limit(QUEUE_LIMIT)

    run_before_apply(harness.handles[0], set_limit, monkeypatch)
    assert len(await worker.take(9)) == 1


async def test_a_plan_is_made_again_after_a_name_got_a_limit_by_key(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan has read no key of its jobs."""
    limits = {"mail": 9, "page": 9}
    worker = await harness.worker(names=NAMES, limits=limits, backend=harness.handles[0])
    await harness.enqueue(*make_jobs(harness, "a", "b"))
    await harness.add("p", name="page")
    one = {"mail": {"customer": LimitRule(concurrency=1)}}

    async def declare() -> None:
        await harness.worker(names=NAMES, limits=limits, keyed=one, backend=harness.handles[1])

    run_before_apply(harness.handles[0], declare, monkeypatch)
    assert ids(await worker.take(9)) == ["a", "p"]


async def test_turns_are_taken_again_after_a_queue_got_its_first_limit(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short plan for many tenants has read no limit by key either."""
    worker = await harness.worker(backend=harness.handles[0])
    for number in range(4):
        await harness.put(harness.job(options=JobOptions(tenant=f"t{number}")))

    async def set_limit() -> None:
        await harness.handles[1].maintenance.change_limit(QUEUE_LIMIT)

    run_before_apply(harness.handles[0], set_limit, monkeypatch)
    assert len(await worker.take(2)) == 1


async def test_a_plan_that_only_parks_jobs_of_tenants_locks_their_turns(
    harness: Harness, clean_postgres: RunningPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves the turns, as another worker does that charges the tenants at the same time."""
    keyed = {"mail": {"customer": LimitRule(concurrency=1)}}
    worker = await harness.worker(keyed=keyed, backend=harness.handles[0])
    options = JobOptions(limit_keys={"customer": "c"}, tenant="t")
    await harness.enqueue(*(harness.job(job_id, options=options) for job_id in "ab"))
    assert ids(await worker.take(1)) == ["a"]
    other = await asyncpg.connect(clean_postgres.url, statement_cache_size=0)
    locked = asyncio.Event()

    async def lock_turns() -> None:
        await other.execute("BEGIN")
        await other.execute("SELECT FROM nimburion.share_class FOR NO KEY UPDATE")
        locked.set()

    async def is_waiting() -> bool:
        assert not exchange.done()
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        return bool(await other.fetchval(waits))

    run_before_apply(harness.handles[0], lock_turns, monkeypatch)
    exchange = asyncio.create_task(worker.take(1))
    await asyncio.wait_for(locked.wait(), DEADLINE)
    await wait_until(is_waiting, "the exchange waits for the turns")
    await other.execute("ROLLBACK")
    await other.close()
    assert await asyncio.wait_for(exchange, DEADLINE) == []
    (use,) = await list_uses(harness.backend)
    assert (use.in_use, use.parked) == (1, 1)


async def test_limits_are_locked_before_jobs_are_settled(
    harness: Harness, clean_postgres: RunningPostgres
) -> None:
    """The lease needs the limit of a name that has no job until one is promoted. An exchange that
    locks it last may wait for another one, which waits for it.
    """
    limits = {"mail": 9, "page": 9}
    worker = await harness.worker(names=NAMES, limits=limits, backend=harness.handles[0])
    await harness.add("p", name="page")
    (page,) = await worker.take(1)
    await harness.put(harness.job("m", after=1.0))
    harness.clock.advance(2.0)
    other = await asyncpg.connect(clean_postgres.url, statement_cache_size=0)
    await other.execute("BEGIN")
    await other.execute(f"{LOCK_LIMIT} WHERE job_name = 'mail' FOR NO KEY UPDATE")
    want = worker.want(1, lanes=(Lane("default", "mail"),))
    exchange = asyncio.create_task(worker.exchange(Completed(page.lease), want=want))

    async def is_waiting() -> bool:
        return bool(await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    await wait_until(is_waiting, "the exchange waits for the limit")
    free = await other.fetch(f"{LOCK_LIMIT} WHERE job_name = 'page' FOR NO KEY UPDATE SKIP LOCKED")
    await other.execute("ROLLBACK")
    await other.close()
    assert ids((await exchange).deliveries) == ["m"]
    assert len(free) == 1


async def test_an_exchange_that_locks_first_locks_the_limits_of_promoted_jobs_too(
    harness: Harness, clean_postgres: RunningPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its plan locks them after the turns of tenants."""
    limits = {"mail": 9, "page": 9}
    worker = await harness.worker(names=NAMES, limits=limits, backend=harness.handles[0])
    assert await worker.take(1) == []
    await harness.add("p", name="page")
    await harness.put(harness.job("m", after=1.0))
    harness.clock.advance(2.0)
    free: list[Any] = []

    async def find_free_limits() -> None:
        other = await asyncpg.connect(clean_postgres.url, statement_cache_size=0)
        free.extend(await other.fetch(f"{LOCK_LIMIT} FOR NO KEY UPDATE SKIP LOCKED"))
        await other.close()

    lock_next_exchange_first(harness.handles[0])
    run_before_apply(harness.handles[0], find_free_limits, monkeypatch)
    assert sorted(ids(await worker.take(2))) == ["m", "p"]
    assert free == []


async def test_a_plan_that_arrives_after_a_repeat_leases_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker lost the connection, and repeated the exchange, while its plan was on the way."""
    worker = await harness.worker(names=NAMES, keyed=KEYED, backend=harness.handles[0])
    await harness.enqueue(*make_jobs(harness, "a"))
    await harness.add("p", name="page")
    want = worker.want(9)

    async def repeat() -> None:
        other = harness.handles[1]
        reply = await other.consuming.exchange(worker.id, worker.number + 1, [], want)
        assert reply.deliveries == []

    run_before_apply(harness.handles[0], repeat, monkeypatch)
    assert (await worker.exchange(want=want)).deliveries == []
    assert ids(await worker.take(9)) == ["a", "p"]


async def test_a_released_exchange_leases_nothing_any_more(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await harness.worker(names=NAMES, keyed=KEYED, backend=harness.handles[0])
    await harness.enqueue(*make_jobs(harness, "a"))
    await harness.add("p", name="page")
    want = worker.want(9)

    async def release() -> None:
        await harness.handles[1].consuming.release(worker.id, nonce=want.nonce)

    run_before_apply(harness.handles[0], release, monkeypatch)
    assert (await worker.exchange(want=want)).deliveries == []
    assert ids(await worker.take(9)) == ["a", "p"]


@pytest.mark.parametrize(
    "options",
    [JobOptions(limit_keys={"customer": "c"}), JobOptions(tenant="t")],
    ids=["key", "tenant"],
)
async def test_jobs_behind_those_that_a_caller_holds_are_leased(
    harness: Harness, caller: asyncpg.Connection, options: JobOptions
) -> None:
    """A single exchange skips any number of them, and does not wait for the caller."""
    worker = await harness.worker(names=NAMES, keyed=KEYED, backend=harness.handles[0])
    held = [f"held{n}" for n in range(12)]
    await harness.enqueue(*(harness.job(one, options=options) for one in [*held, "a", "b"]))
    await harness.add("p", name="page")  # jobs of two lanes are planned
    async with caller.transaction():
        await caller.execute(
            "SELECT FROM nimburion.ready r JOIN nimburion.job j USING (seq)"
            " WHERE starts_with(encode(j.id, 'escape'), 'held') FOR UPDATE OF r"
        )
        async with asyncio.timeout(DEADLINE):
            assert ids(await worker.take(1)) == ["a"]
            assert ids(await worker.take(2)) == ["b", "p"]
            assert (await worker.exchange(want=worker.want(1))).deliveries == []


async def test_promoted_jobs_are_announced_if_the_plan_is_not_applied(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first call has promoted is committed, and a repeat does not promote it again."""
    worker = await harness.worker(names=NAMES, keyed=KEYED, backend=harness.handles[0])
    await harness.enqueue(*make_jobs(harness, "a"), harness.job("x", queue="other", after=1.0))
    await harness.add("p", name="page")
    harness.clock.advance(2.0)
    notified: Counter[str] = Counter()
    database: Any = harness.handles[0]
    notifications = database._database.get_connections().notifications
    monkeypatch.setattr(notifications, "notify", notified.update)
    planned = asyncio.Event()

    async def stop() -> None:
        planned.set()
        await asyncio.Event().wait()

    run_before_apply(harness.handles[0], stop, monkeypatch)
    exchange = asyncio.create_task(worker.take(9))
    await asyncio.wait_for(planned.wait(), DEADLINE)
    exchange.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange
    assert notified["other"] == 1


async def test_a_reply_says_when_a_limit_opens_if_the_planned_jobs_are_gone(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = {"mail": {"customer": LimitRule(rate=RateLimit("1/min", 60_000_000, burst=1))}}
    worker = await harness.worker(names=NAMES, keyed=once, backend=harness.handles[0])
    await harness.enqueue(*make_jobs(harness, "a", "b"))
    assert ids(await worker.take(9)) == ["a"]  # `b` is parked
    await harness.add("c")
    await harness.add("p", name="page")

    async def cancel() -> None:
        for job_id in "cp":
            await harness.backend.producing.cancel(job_id)

    run_before_apply(harness.handles[0], cancel, monkeypatch)
    reply = await worker.exchange(want=worker.want(9))
    assert reply.deliveries == []
    assert reply.next_due == harness.clock.now() + 60.0


async def test_only_the_limits_of_requested_queues_need_a_plan(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exchange that has such a limit is planned, and the next one without it is not."""
    worker = await harness.worker(queues=("one", "two"), backend=harness.handles[0])
    connection = get_exchange_connection(harness.handles[0])
    original: Any = connection._fetch
    called: list[str] = []

    async def fetch(opened: Any, statement: str, arguments: Sequence[Any]) -> Any:
        called.extend(re.findall(r"\b((?:begin_planned_)?exchange)(?:_pooled)?_1\b", statement))
        return await original(opened, statement, arguments)

    monkeypatch.setattr(connection, "_fetch", fetch)
    capped, other = QueueOptions(limit=1), worker.lanes[:1]
    await worker.take(2, queues={"one": capped})
    await worker.take(2, queues={"two": capped}, lanes=other)
    await worker.take(2, queues={"one": capped, "two": capped}, lanes=other)
    await worker.take(2)
    assert called == ["begin_planned_exchange", *["exchange"] * 3]


@pytest.mark.timeout(60)
async def test_a_worker_that_is_stopped_with_locks_delays_others_for_seconds_only(
    harness: Harness, clean_postgres: RunningPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has met a conflict, holds the locks, and is stopped before it applies the next plan."""
    first = await harness.worker(names=NAMES, keyed=KEYED, backend=harness.handles[0])
    second = await harness.worker(keyed=KEYED, backend=harness.handles[1])
    await harness.enqueue(*make_jobs(harness, "a", "b", "c"))
    await harness.add("p", name="page")
    (held,) = await second.take(1)
    continued = asyncio.Event()
    stopped = asyncio.Event()

    async def conflict() -> None:
        await second.settle(Completed(held.lease))
        run_before_apply(harness.handles[0], stop, monkeypatch)

    async def stop() -> None:
        stopped.set()
        await continued.wait()

    run_before_apply(harness.handles[0], conflict, monkeypatch)
    exchange = asyncio.create_task(first.take(1))
    await asyncio.wait_for(stopped.wait(), DEADLINE)
    assert count_open_transactions(clean_postgres) == 1
    assert ids(await asyncio.wait_for(second.take(9), DEADLINE)) == ["b", "c"]
    assert count_open_transactions(clean_postgres) == 0
    continued.set()
    with pytest.raises(BackendUnavailable):
        await exchange
