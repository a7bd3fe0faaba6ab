"""What a change of many parked jobs costs one script, whatever their number."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

import pytest

from nimburion.backends.redis.backend import RedisBackend
from nimburion.core.job import JobOptions
from nimburion.core.lease import Lease
from nimburion.core.limits import MAX_RETURNED, LimitChange, LimitRule
from nimburion.core.rate_limits import RateLimit
from nimburion.core.settlement import Completed
from nimburion.testing import FakeClock
from nimburion.testing.contract.harness import HandDrivenWorker, Harness, ids, list_uses
from tests.servers.server_kinds import RunningRedis

pytestmark = pytest.mark.regression

OPENED = 500
"""The most keys whose parked jobs one exchange returns because their rates allow one."""
ONE_AT_A_TIME = {"mail": {"customer": LimitRule(concurrency=1)}}
TWO_AT_A_TIME = {"mail": {"customer": LimitRule(concurrency=2)}}
ONE_A_SECOND = {"mail": {"customer": LimitRule(rate=RateLimit("1/s", interval=1_000_000, burst=1))}}


@pytest.fixture
async def harness(redis_server: RunningRedis) -> AsyncIterator[Harness]:
    clock = FakeClock()
    backend = RedisBackend(redis_server.url, clock=clock)
    await backend.open()
    yield Harness(clock, [backend])
    await backend.close()


async def enqueue_keys(harness: Harness, *keys: str) -> None:
    """Enqueue a job for each of these keys."""
    options = [JobOptions(limit_keys={"customer": key}) for key in keys]
    await harness.enqueue(*(harness.job(options=one) for one in options))


async def park(worker: HandDrivenWorker, most: int = 500) -> int:
    """Reserve what there is, so that everything else is parked; return how many were reserved."""
    taken = 0
    while (reply := await worker.exchange(want=worker.want(most))).deliveries or reply.waiting:
        taken += len(reply.deliveries)
    return taken


async def count_keys(harness: Harness, *names: str) -> int:
    """Return how many of these keys exist."""
    backend = harness.backend
    assert isinstance(backend, RedisBackend)
    connections = backend._server.get_connections()
    return int(await connections.commands.execute("EXISTS", *connections.keys.select(names)))


async def count_parked(harness: Harness) -> int:
    return sum(use.parked for use in await list_uses(harness.backend))


async def test_a_changed_limit_returns_parked_jobs_in_bounded_steps(harness: Harness) -> None:
    """The first step has the job that fits, and parks the others of this step again."""
    await enqueue_keys(harness, *["a"] * 2_401)
    assert await park(await harness.worker(keyed=ONE_AT_A_TIME)) == 1
    worker = await harness.worker(keyed=TWO_AT_A_TIME)
    replies = [await worker.exchange(want=worker.want(9)) for _ in range(4)]
    assert [len(reply.deliveries) for reply in replies] == [1, 0, 0, 0]
    assert [len(reply.waiting) for reply in replies] == [1, 1, 0, 0]
    assert await count_parked(harness) == 2_399


async def test_a_limit_that_is_removed_returns_as_many_jobs_a_step(harness: Harness) -> None:
    await enqueue_keys(harness, *["a"] * 2_401)
    assert await park(await harness.worker(keyed=ONE_AT_A_TIME)) == 1
    worker = await harness.worker()
    for left in (2_400 - MAX_RETURNED, 2_400 - 2 * MAX_RETURNED, 0):
        reply = await worker.exchange(want=worker.want(9))
        assert (len(reply.deliveries), len(reply.waiting)) == (9, 1)
        assert await count_parked(harness) == left


async def test_jobs_of_a_tenant_return_in_their_order(harness: Harness) -> None:
    options = JobOptions(tenant="t", limit_keys={"customer": "a"})
    await harness.enqueue(*(harness.job(f"{n}", options=options) for n in range(2_401)))
    assert await park(await harness.worker(keyed=ONE_AT_A_TIME)) == 1
    worker = await harness.worker()
    await harness.enqueue(harness.job("2401", options=options))
    ran = [job_id for _ in range(3) for job_id in ids(await worker.take(1_200))]
    assert ran == [f"{n}" for n in range(1, 2_402)]


async def test_a_change_of_several_names_returns_jobs_of_each_in_one_step(harness: Harness) -> None:
    names = ("mail", "post", "page")
    limits = {name: {"smtp": LimitRule(concurrency=1)} for name in names}
    worker = await harness.worker(names=names, keyed=limits)
    for name in names:
        options = [JobOptions(limit_keys={"smtp": f"{name}-{n % 2}"}) for n in range(702)]
        await harness.enqueue(*(harness.job(name=name, options=one) for one in options))
    assert await park(worker) == 6
    await harness.backend.maintenance.change_limit(LimitChange(name="smtp", concurrency=2))
    taken = await worker.take(9)
    assert sorted(one.name for one in taken) == sorted(2 * names)


async def test_many_rates_that_open_at_once_return_jobs_in_bounded_steps(harness: Harness) -> None:
    keys = [f"key-{n}" for n in range(600)]
    await enqueue_keys(harness, *keys)
    await enqueue_keys(harness, *keys)
    worker = await harness.worker(keyed=ONE_A_SECOND)
    assert await park(worker, 1_000) == 600
    harness.clock.advance(1.0)
    reply = await worker.exchange(want=worker.want(1_000))
    assert len(reply.deliveries) == OPENED
    assert reply.next_due is not None
    assert reply.next_due <= harness.clock.now()
    assert len(await worker.take(1_000)) == 600 - OPENED


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_is_left_of_jobs_that_were_parked_and_returned_at_random(
    harness: Harness, seed: int
) -> None:
    """Each job is delivered once, whatever was parked, moved and returned in one exchange, with and
    without tenants, and some replies are too small for what was chosen."""
    luck = Random(seed)
    names = ("mail", "post")
    limits = {
        "customer": LimitRule(concurrency=2),
        "region": LimitRule(concurrency=luck.choice((1, 2))),
        "smtp": LimitRule(rate=RateLimit("2/s", interval=500_000, burst=2)),
    }
    worker = await harness.worker(names=names, keyed=dict.fromkeys(names, limits))
    missing = {f"job-{n}" for n in range(120)}
    held: list[Lease] = []
    for step in range(500):
        if step < 12:
            jobs = [
                harness.job(
                    f"job-{10 * step + n}",
                    name=luck.choice(names),
                    priority=luck.choice((4, 5, 5)),
                    options=JobOptions(
                        tenant=luck.choice((None, "t", "u")),
                        limit_keys={
                            limit: luck.choice("ab") for limit in limits if luck.random() < 0.8
                        },
                    ),
                )
                for n in range(10)
            ]
            await harness.enqueue(*jobs)
        harness.clock.advance(0.25)
        await worker.heartbeat()
        ended = [held.pop() for _ in range(luck.randint(0, len(held)))]
        want = worker.want(luck.randint(1, 6), max_bytes=luck.choice((1, 1_000, 1_000_000)))
        reply = await worker.exchange(*map(Completed, ended), want=want)
        held += [delivery.lease for delivery in reply.deliveries]
        for job_id in ids(reply.deliveries):
            missing.remove(job_id)
        if not missing and not held:
            break
    assert not missing
    keys = ("ready", "parked", "parked_lane", "tenant_job", "tenant_turn")
    assert await count_keys(harness, *keys) == 0
