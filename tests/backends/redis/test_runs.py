"""What durable runs need of the Redis backend: what comes with a lease, and what is left."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from nimburion.backends.redis import RedisBackend
from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import Unstorable
from nimburion.core.job import State
from nimburion.core.maintenance import Cancellation, Retention
from nimburion.core.runs import (
    CANCEL_SIGNAL,
    CLEANUP_STEP,
    MAX_DELIVERED_RUN,
    MAX_UNREAD_SIGNALS,
    NewSignal,
    SignalOutcome,
    make_signal_source,
)
from nimburion.core.settlement import Completed, Recorded, Released, Retried, Suspended
from nimburion.testing import FakeClock
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness, ids
from nimburion.testing.contract.runs.run_jobs import (
    PAID,
    RUN,
    read,
    read_signals,
    record,
    send,
    start,
    suspend,
)
from tests.servers.server_kinds import RunningRedis

MAX_REMOVED = 1_000
"""As in `run_data.lua`."""


@pytest.fixture
async def harness(redis_server: RunningRedis) -> AsyncIterator[Harness]:
    clock = FakeClock()
    handles = [RedisBackend(redis_server.url, clock=clock) for _ in range(2)]
    for handle in handles:
        await handle.open()
    yield Harness(clock, handles)
    for handle in handles:
        await handle.close()


@pytest.fixture
async def worker(harness: Harness) -> HandDrivenWorker:
    return await harness.worker()


@pytest.fixture
async def other(harness: Harness) -> HandDrivenWorker:
    """A worker of another process."""
    return await harness.worker(backend=harness.handles[1])


async def test_another_worker_resumes_a_run_and_reserves_it(
    harness: Harness, worker: HandDrivenWorker, other: HandDrivenWorker
) -> None:
    await suspend(worker, await start(harness, worker), delay=60.0)
    harness.clock.advance(59.0)
    assert (await other.exchange(want=other.want(1))).next_due == harness.clock.now() + 1.0
    await harness.put(harness.job("later", after=0.5))
    harness.clock.advance(1.0)
    reply = await other.exchange(want=other.want(9))
    assert sorted(ids(reply.deliveries)) == ["later", RUN]
    assert reply.next_due is None


async def test_another_worker_releases_a_run_that_is_to_end(
    harness: Harness, worker: HandDrivenWorker, other: HandDrivenWorker
) -> None:
    held = await start(harness, worker)
    await record(worker, held, CLEANUP_STEP)
    await worker.settle(Retried(held.lease, 0.0, FAILURE))
    held = await other.take_one()
    assert await harness.backend.producing.cancel(RUN) is Cancellation.REQUESTED
    await other.exchange(Released(held.lease))
    assert await harness.state(RUN) is State.RETRYING
    assert await read_signals(harness) == [(CANCEL_SIGNAL, b"")]


async def test_another_worker_ends_a_plain_job_to_which_a_cancel_was_requested(
    harness: Harness, other: HandDrivenWorker
) -> None:
    await harness.add("plain")
    held = await other.take_one()
    await harness.backend.producing.cancel("plain")
    await other.exchange(Released(held.lease))
    assert await harness.state("plain") is State.CANCELLED


async def test_a_reply_names_a_retry_of_the_same_exchange(
    harness: Harness, other: HandDrivenWorker
) -> None:
    await harness.add("first", "second")
    await harness.put(harness.job("later", after=60.0))
    first, second = await other.take(2)
    failed = [Retried(one.lease, 30.0 + at, FAILURE) for at, one in enumerate((first, second))]
    assert (await other.exchange(*failed)).next_due == harness.clock.now() + 30.0
    harness.clock.advance(30.0)
    held = await other.take_one()
    reply = await other.exchange(Retried(held.lease, 90.0, FAILURE))
    assert reply.next_due == harness.clock.now() + 1.0


async def test_a_step_and_a_failure_in_one_exchange(
    harness: Harness, worker: HandDrivenWorker
) -> None:
    held = await start(harness, worker)
    await worker.settle(Retried(held.lease, 0.0, FAILURE))
    held = await worker.take_one()
    await worker.exchange(Recorded(held.lease, 1, b"x"), Retried(held.lease, 0.0, FAILURE))
    assert (await worker.take_one()).failures == 1


async def test_a_full_run_that_is_to_end_gets_one_more(
    harness: Harness, worker: HandDrivenWorker
) -> None:
    held = await start(harness, worker)
    await record(worker, held, CLEANUP_STEP)
    await suspend(worker, held)
    await harness.backend.producing.cancel(RUN)
    signals = [NewSignal(RUN, "n", str(number), b"") for number in range(MAX_UNREAD_SIGNALS + 1)]
    outcomes = await harness.backend.producing.send_signals(signals)
    expected = [SignalOutcome.STORED] * MAX_UNREAD_SIGNALS + [SignalOutcome.FULL]
    assert outcomes == expected


async def test_what_a_deletion_leaves_is_pruned(
    harness: Harness, worker: HandDrivenWorker, redis_server: RunningRedis
) -> None:
    held = await start(harness, worker)
    await send(harness)
    for first in range(0, 2 * MAX_REMOVED, 500):
        numbers = range(first, first + 500)
        await worker.exchange(*(Recorded(held.lease, number, b"x") for number in numbers))
    await worker.settle(Completed(held.lease))
    await harness.backend.maintenance.change_jobs(BulkAction.DELETE, [RUN])
    entries = int(redis_server.ask("HLEN", "{nimburion}:run_entry"))
    assert MAX_REMOVED < entries < 2 * MAX_REMOVED
    await start(harness, worker)
    page = await read(harness)
    assert (page.steps, page.signals) == ([], [])
    while await harness.backend.maintenance.prune(Retention(), 100):
        pass
    for name in ("run_entry", "run_order", "removed_run"):
        assert int(redis_server.ask("EXISTS", f"{{nimburion}}:{name}")) == 0


async def test_a_name_is_stored_or_refused_as_a_whole(
    harness: Harness, worker: HandDrivenWorker
) -> None:
    held = await start(harness, worker)
    name = "n" * 65_527
    with pytest.raises(Unstorable, match="at most 65527 bytes"):
        await worker.exchange(Suspended(held.lease, (make_signal_source(RUN, f"{name}n"),)))
    await suspend(worker, held, PAID, make_signal_source(RUN, name))
    await send(harness, name)
    assert ids(await worker.take(1)) == [RUN]


async def test_a_small_run_comes_with_its_lease(
    harness: Harness, worker: HandDrivenWorker, other: HandDrivenWorker
) -> None:
    held = await start(harness, worker)
    for number in (2, 1, CLEANUP_STEP):
        await record(worker, held, number, b"%d" % number)
    await suspend(worker, held, PAID)
    await send(harness, "early", key="s0")
    await send(harness)
    held = await other.take_one()
    assert held.run == await read(harness)
    await record(other, held, 3, takes=1)
    await other.settle(Retried(held.lease, 0.0, FAILURE))
    held = await worker.take_one()
    assert held.run == await read(harness)
    await record(worker, held, 4, b"x" * MAX_DELIVERED_RUN)
    await suspend(worker, held, PAID)
    assert (await worker.take_one()).run is None


async def test_a_run_of_many_steps_comes_without_them(
    harness: Harness, worker: HandDrivenWorker
) -> None:
    held = await start(harness, worker)
    await worker.exchange(*(Recorded(held.lease, number, b"x") for number in range(101)))
    await worker.settle(Released(held.lease))
    assert (await worker.take_one()).run is None


async def test_runs_come_while_the_reply_has_room(
    harness: Harness, worker: HandDrivenWorker
) -> None:
    await harness.add("first", "plain", "second")
    for held in await worker.take(3):
        if held.lease.job_id != "plain":
            await record(worker, held, 1, b"x" * 3_000)
        await worker.settle(Retried(held.lease, 0.0, FAILURE))
    wanted = msgspec.structs.replace(worker.want(3), max_bytes=5_000)
    deliveries = (await worker.exchange(want=wanted)).deliveries
    assert ids(deliveries) == ["first", "plain", "second"]
    assert [held.run is None for held in deliveries] == [False, True, True]


async def test_a_repeated_reply_has_no_runs(harness: Harness, worker: HandDrivenWorker) -> None:
    held = await start(harness, worker)
    await record(worker, held, 1)
    await worker.settle(Retried(held.lease, 0.0, FAILURE))
    wanted = worker.want(1)
    assert (await worker.exchange(want=wanted)).deliveries[0].run is not None
    assert (await worker.repeat(want=wanted)).deliveries[0].run is None
