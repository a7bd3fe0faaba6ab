"""Bulk operations are finished by any process: steps, rates, crashes, previews."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from nimburion.actions.bulk import MAX_COUNT, preview_jobs
from nimburion.backends.memory import MemoryBackend
from nimburion.core.audit import list_audit
from nimburion.core.bulk_operations import (
    BulkAction,
    BulkOperation,
    BulkState,
    BulkStep,
    NewBulkOperation,
    cancel_bulk_operation,
    claim_bulk_operation,
    get_bulk_operation,
    run_bulk_step,
    start_bulk_operation,
)
from nimburion.core.errors import BackendUnavailable
from nimburion.core.job import NO_JOB_OPTIONS, JobOptions, State
from nimburion.core.maintenance import JobChanges
from nimburion.core.queries import EVERY_JOB, JobFilter
from nimburion.core.settlement import Failed
from nimburion.jobs.bulk_operations import BulkOperationRunner
from nimburion.testing.clock import FakeClock
from nimburion.testing.contract.harness import FAILURE, Harness
from tests.overridden import BackendWrapper, get_operation
from tests.waiting import wait_until

REPLAY = NewBulkOperation(id="op", action=BulkAction.REPLAY, by="ann", origin="cli")


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    await backend.open()
    yield Harness(clock, [backend])
    await backend.close()


async def make_dead_letters(
    harness: Harness, count: int, options: JobOptions = NO_JOB_OPTIONS
) -> None:
    """Enqueue this many jobs and let them fail."""
    await harness.enqueue(*(harness.job(options=options) for _ in range(count)))
    worker = await harness.worker()
    leases = [delivery.lease for delivery in await worker.take(count)]
    await worker.settle(*(Failed(lease, "permanent", FAILURE) for lease in leases))
    await worker.close()


def make_runner(harness: Harness, backend: Any = None) -> BulkOperationRunner:
    """Return a runner as a process has it, on its own handle or on a given backend."""
    return BulkOperationRunner(backend or harness.backend.new_handle(), harness.clock, Random(1))


async def read(harness: Harness) -> BulkOperation:
    return await get_bulk_operation(harness.backend, "op")


async def count_failed(harness: Harness) -> int:
    return (await harness.backend.reads.count_jobs())[State.FAILED]


class DyingBackend(BackendWrapper):
    """A handle whose process dies at one call: this call, and all after it, raise."""

    def __init__(self, backend: Any, call: str, after: int = 0, *, applied: bool = False) -> None:
        self._backend = backend
        self._call = call
        self._left = after
        self._applied = applied
        self.is_dead = False

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **options: Any) -> Any:
            dies = name == self._call and self._left == 0
            if name == self._call:
                self._left -= 1
            if dies and self._applied:
                await get_operation(self._backend, name)(*arguments, **options)
            self.is_dead = self.is_dead or dies
            if self.is_dead:
                raise BackendUnavailable("the process is dead")
            return await get_operation(self._backend, name)(*arguments, **options)

        return call


async def test_an_operation_changes_all_that_matches_in_bounded_steps(harness: Harness) -> None:
    await make_dead_letters(harness, 1_100)
    started = await start_bulk_operation(harness.backend, REPLAY)
    await make_runner(harness).tick()
    operation = await read(harness)
    assert (operation.state, operation.done) == (BulkState.DONE, 1_100)
    assert operation.version == started.version + 8  # three steps and the end, each with its claim
    assert await count_failed(harness) == 0
    (record,) = (await list_audit(harness.backend)).records
    assert (record.action, record.target, record.by) == ("operations.end", "op", "ann")
    assert (record.origin, record.outcome, record.changed) == ("cli", "done", 1_100)


@pytest.mark.parametrize(
    ("action", "state"), [(BulkAction.CANCEL, State.CANCELLED), (BulkAction.DELETE, None)]
)
async def test_jobs_are_cancelled_or_deleted(
    harness: Harness, action: BulkAction, state: State | None
) -> None:
    await make_dead_letters(harness, 2)
    await harness.add("a", "b")
    new = NewBulkOperation(id="op", action=action)
    await start_bulk_operation(harness.backend, new)
    await make_runner(harness).tick()
    assert (await read(harness)).done == 2
    counts = await harness.backend.reads.count_jobs()
    other = {State.FAILED: 2} if state else {State.PENDING: 2}
    expected = other | ({state: 2} if state else {})
    assert {one: count for one, count in counts.items() if count} == expected


async def test_a_filter_without_an_index_and_a_limit_choose(harness: Harness) -> None:
    await make_dead_letters(harness, 3, JobOptions(tenant="red"))
    await make_dead_letters(harness, 3)
    await start_bulk_operation(
        harness.backend,
        NewBulkOperation(id="op", action=BulkAction.REPLAY, which=JobFilter(tenant="red"), limit=2),
    )
    await make_runner(harness).tick()
    assert (await read(harness)).done == 2
    replayed = [
        job for job in (await harness.backend.reads.list_jobs()).jobs if job.state == "pending"
    ]
    assert [job.options.tenant for job in replayed] == ["red", "red"]


async def test_jobs_that_fail_after_the_start_are_not_included(harness: Harness) -> None:
    """So an operation ends, even if all that it replays fails again."""
    await make_dead_letters(harness, 2)
    await harness.add("fails later")
    harness.clock.advance(1.0)
    await start_bulk_operation(harness.backend, REPLAY)
    harness.clock.advance(1.0)
    worker = await harness.worker()
    await worker.settle(Failed((await worker.take_one()).lease, "permanent", FAILURE))
    await make_dead_letters(harness, 2)
    await make_runner(harness).tick()
    operation = await read(harness)
    assert (operation.state, operation.done) == (BulkState.DONE, 2)
    assert await count_failed(harness) == 3


@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("call", "after"),
    [
        ("put_record", 1),  # the claim of the second step
        ("list_jobs", 1),
        ("change_jobs", 0),
        ("change_jobs", 1),
        ("put_record", 3),  # the audit record of the end
        ("put_record", 4),  # the end
    ],
)
async def test_another_process_continues_after_a_death_at_any_point(
    harness: Harness, call: str, after: int, applied: bool
) -> None:
    """Every job is replayed once, and the end is recorded once."""
    await make_dead_letters(harness, 700)
    await start_bulk_operation(harness.backend, REPLAY)
    dying = DyingBackend(harness.backend.new_handle(), call, after, applied=applied)
    with pytest.raises(BackendUnavailable):
        await make_runner(harness, dying).tick()
    assert dying.is_dead
    harness.clock.advance(10.0)
    await make_runner(harness).tick()
    operation = await read(harness)
    assert (operation.state, operation.done, operation.skipped) == (BulkState.DONE, 700, 0)
    assert await count_failed(harness) == 0
    (record,) = (await list_audit(harness.backend)).records
    assert record.changed == 700


async def test_a_process_that_comes_back_late_writes_nothing(harness: Harness) -> None:
    """It stops before it writes its step, and continues after the others have ended all."""
    await make_dead_letters(harness, 700)
    await start_bulk_operation(harness.backend, REPLAY)
    handle = harness.backend.new_handle()
    reached, resumed = asyncio.Event(), asyncio.Event()

    class Pausing(DyingBackend):
        async def change_jobs(self, *arguments: Any, **options: Any) -> JobChanges:
            reached.set()
            await resumed.wait()
            return await handle.maintenance.change_jobs(*arguments, **options)

    late = asyncio.create_task(make_runner(harness, Pausing(handle, "none", -1)).tick())
    await reached.wait()
    harness.clock.advance(10.0)
    await make_runner(harness).tick()
    ended = await read(harness)
    resumed.set()
    await late
    assert (ended.state, ended.done) == (BulkState.DONE, 700)
    assert await read(harness) == ended


async def test_several_processes_share_the_steps(harness: Harness) -> None:
    await make_dead_letters(harness, 1_600)
    await start_bulk_operation(harness.backend, REPLAY)
    await asyncio.gather(*(make_runner(harness).tick() for _ in range(4)))
    await make_runner(harness).tick()
    operation = await read(harness)
    assert (operation.state, operation.done, operation.skipped) == (BulkState.DONE, 1_600, 0)


async def test_the_rate_holds_across_processes(harness: Harness) -> None:
    """Ten a second, by two processes that ask at odd times, and after a pause of both."""
    await make_dead_letters(harness, 100)
    started = harness.clock.now()
    await start_bulk_operation(
        harness.backend, NewBulkOperation(id="op", action=BulkAction.REPLAY, rate=10.0)
    )
    runners, random = [make_runner(harness), make_runner(harness)], Random(3)
    done = [(started, 0)]
    while (await read(harness)).state is BulkState.RUNNING:
        await random.choice(runners).tick()
        done.append((harness.clock.now(), (await read(harness)).done))
        harness.clock.advance(60.0 if len(done) == 50 else random.uniform(0.01, 0.3))
    assert done[-1][1] == 100
    for at, before in done:
        for later, count in done:
            if later > at:
                # One step may begin the span, and one second is made up for at most.
                assert count - before <= 10.0 * (later - at) + 20
    # 9 s for 90 jobs, after the first ten; the pause of 60 s gives one of them back.
    assert 8.0 <= done[-1][0] - started - 60.0 <= 9.0


async def test_a_runner_waits_for_the_next_step_of_its_operation(harness: Harness) -> None:
    """An operation that was started here begins at once, and continues when its step is due."""
    await make_dead_letters(harness, 3)
    runner = make_runner(harness)
    await runner.start()
    await wait_until(lambda: harness.clock.sleepers == 1, "the runner waits")
    await start_bulk_operation(
        harness.backend, NewBulkOperation(id="op", action=BulkAction.REPLAY, rate=1.0)
    )
    runner.wake()
    for expected in (2, 1, 0):

        async def is_waiting(left: int = expected) -> bool:
            return await count_failed(harness) == left and harness.clock.sleepers == 1

        await wait_until(is_waiting, "one more job is replayed, and the runner waits")
        harness.clock.advance(1.0)
    await runner.stop()
    assert (await read(harness)).done == 3


async def test_an_operation_that_cannot_continue_has_failed(harness: Harness) -> None:
    """It says why, in the audit log too."""
    await make_dead_letters(harness, 1)
    await start_bulk_operation(harness.backend, REPLAY)
    claimed = await claim_bulk_operation(harness.backend, 30.0)
    await run_bulk_step(harness.backend, claimed, BulkStep(cursor="no cursor!"))
    await make_runner(harness).tick()
    operation = await read(harness)
    assert operation.state is BulkState.FAILED
    assert "no cursor!" in operation.error
    (record,) = (await list_audit(harness.backend)).records
    assert (record.outcome, record.error) == ("failed", operation.error)


async def test_a_cancelled_operation_stops_between_two_steps(harness: Harness) -> None:
    await make_dead_letters(harness, 30)
    await start_bulk_operation(
        harness.backend, NewBulkOperation(id="op", action=BulkAction.REPLAY, rate=10.0)
    )
    runner = make_runner(harness)
    await runner.tick()
    await cancel_bulk_operation(harness.backend, "op")
    harness.clock.advance(60.0)
    await runner.tick()
    operation = await read(harness)
    assert (operation.state, operation.done) == (BulkState.CANCELLED, 10)
    assert await count_failed(harness) == 20


class CancellingBackend(BackendWrapper):
    """A handle. An operator cancels the operation immediately before its end is written."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **options: Any) -> Any:
            if name == "now":  # the time of the end
                await cancel_bulk_operation(self._backend, "op")
            return await get_operation(self._backend, name)(*arguments, **options)

        return call


@pytest.mark.parametrize("cursor", [None, "no cursor!"])
async def test_an_end_that_comes_after_a_cancel_is_in_no_audit_record(
    harness: Harness, cursor: str | None
) -> None:
    """It would be done or failed. The cancel has an audit record of its own."""
    await start_bulk_operation(harness.backend, REPLAY)
    claimed = await claim_bulk_operation(harness.backend, 30.0)
    step = BulkStep(cursor=cursor, exhausted=cursor is None)
    await run_bulk_step(harness.backend, claimed, step)
    await make_runner(harness, CancellingBackend(harness.backend)).tick()
    assert (await read(harness)).state is BulkState.CANCELLED
    assert (await list_audit(harness.backend)).records == []


async def test_a_preview_counts_and_shows_the_first(harness: Harness) -> None:
    await make_dead_letters(harness, 12)
    await harness.add("pending")
    preview = await preview_jobs(harness.backend, BulkAction.REPLAY, EVERY_JOB)
    assert (preview.count, preview.complete) == (12, True)
    assert len(preview.first) == 10
    newest = (
        await harness.backend.reads.list_jobs(JobFilter(states=frozenset({State.FAILED})))
    ).jobs
    assert preview.first == newest[:10]


async def test_a_preview_stops_counting(harness: Harness) -> None:
    """At 1,000 jobs, and at the budget of the search."""
    await harness.enqueue(*(harness.job() for _ in range(MAX_COUNT + 1)))
    preview = await preview_jobs(harness.backend, BulkAction.CANCEL, EVERY_JOB)
    assert (preview.count, preview.complete) == (MAX_COUNT, False)
    await harness.enqueue(*(harness.job(queue="red") for _ in range(9_500)))
    searched = JobFilter(queue="default", tenant="nobody")
    preview = await preview_jobs(harness.backend, BulkAction.CANCEL, searched)
    assert (preview.count, preview.complete, preview.examined) == (0, False, 10_000)
