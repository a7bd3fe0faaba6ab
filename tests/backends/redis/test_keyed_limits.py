"""What a change of many parked jobs costs one script, whatever their number."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nimburion.backends.redis.backend import RedisBackend
from nimburion.core.job import JobOptions
from nimburion.core.keyed_limits import KeyedLimit
from nimburion.core.rate_limits import RateLimit
from nimburion.testing import FakeClock
from nimburion.testing.contract.harness import HandDrivenWorker, Harness
from tests.servers.server_kinds import RunningRedis

pytestmark = pytest.mark.regression

RETURNED = 500
"""The most jobs that one exchange returns to their lanes."""
ONE_AT_A_TIME = {"mail": {"customer": KeyedLimit(concurrency=1)}}
TWO_AT_A_TIME = {"mail": {"customer": KeyedLimit(concurrency=2)}}
ONE_A_SECOND = {
    "mail": {"customer": KeyedLimit(rate=RateLimit("1/s", interval=1_000_000, burst=1))}
}


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


async def count_parked(harness: Harness) -> int:
    return sum(use.parked for use in await harness.backend.list_key_uses())


async def test_a_changed_limit_returns_parked_jobs_in_bounded_steps(harness: Harness) -> None:
    await enqueue_keys(harness, *["a"] * 1_201)
    assert await park(await harness.worker(keyed=ONE_AT_A_TIME)) == 1
    worker = await harness.worker(keyed=TWO_AT_A_TIME)
    assert await count_parked(harness) == 1_200
    for left in (1_200 - RETURNED, 1_200 - 2 * RETURNED):
        reply = await worker.exchange(want=worker.want(9))
        assert (reply.deliveries, len(reply.waiting)) == ([], 1)
        assert await count_parked(harness) == left
    assert len(await worker.take(9)) == 1


async def test_many_rates_that_open_at_once_return_jobs_in_bounded_steps(harness: Harness) -> None:
    keys = [f"key-{n}" for n in range(600)]
    await enqueue_keys(harness, *keys)
    await enqueue_keys(harness, *keys)
    worker = await harness.worker(keyed=ONE_A_SECOND)
    assert await park(worker, 1_000) == 600
    harness.clock.advance(1.0)
    reply = await worker.exchange(want=worker.want(1_000))
    assert len(reply.deliveries) == RETURNED
    assert reply.next_due is not None
    assert reply.next_due <= harness.clock.now()
    assert len(await worker.take(1_000)) == 600 - RETURNED
