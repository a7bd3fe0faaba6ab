"""`wait`: returns on a notification that jobs may be ready, or after a timeout."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable

import pytest

from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import (
    BulkAction,
    BulkStep,
    NewBulkOperation,
    claim_bulk_operation,
    run_bulk_step,
    start_bulk_operation,
)
from nimburion.core.job import JobOptions
from nimburion.core.limits import LimitRule
from nimburion.core.queries import EVERY_JOB
from nimburion.core.runs import CLEANUP_STEP
from nimburion.core.schedules import ScheduleRecord, put_schedule
from nimburion.core.session import WorkerCommand
from nimburion.core.settlement import Completed, Failed, Released, Retried
from nimburion.testing.contract.changing import make_due, replay
from nimburion.testing.contract.flows.graphs import FLOW, member, store
from nimburion.testing.contract.harness import (
    DEADLINE,
    FAILURE,
    TTL,
    HandDrivenWorker,
    Harness,
    ids,
    wait_in_time,
)
from nimburion.testing.contract.runs.run_jobs import (
    PAID,
    RUN,
    flow_source,
    record,
    send,
    start,
    start_suspended,
    suspend,
)

Operation = Callable[[], Awaitable[object]]
Prepare = Callable[[Harness], Awaitable[Operation]]

FAR = 1_000.0
"""A timeout in seconds on the fake clock that never elapses unless the test advances the clock."""


async def _enqueue(harness: Harness) -> Operation:
    return harness.add


async def _replay(harness: Harness) -> Operation:
    await harness.add("a")
    worker = await harness.worker()
    await worker.settle(Failed((await worker.take_one()).lease, "permanent", FAILURE))
    return lambda: replay(harness.backend, EVERY_JOB, 10)


async def _make_due(harness: Harness) -> Operation:
    await harness.enqueue(harness.job("a", after=60.0))
    return lambda: make_due(harness.backend, ["a"])


async def _make_due_in_bulk(harness: Harness) -> Operation:
    await harness.enqueue(harness.job("a", after=60.0))
    return lambda: _run_step(harness, "op", BulkAction.RUN_NOW)


async def _resume(harness: Harness) -> Operation:
    await harness.add("a")
    await harness.backend.maintenance.pause_queue("default", paused=True)
    return lambda: harness.backend.maintenance.pause_queue("default", paused=False)


async def _retry(harness: Harness) -> Operation:
    await harness.add("a")
    worker = await harness.worker()
    lease = (await worker.take_one()).lease
    return lambda: worker.settle(Retried(lease, 0.0, FAILURE))


async def _release(harness: Harness) -> Operation:
    await harness.add("a")
    worker = await harness.worker()
    lease = (await worker.take_one()).lease
    return lambda: worker.settle(Released(lease))


async def _close(harness: Harness) -> Operation:
    await harness.add("a")
    worker = await harness.worker()
    await worker.take_one()
    return worker.close


async def _rescue(harness: Harness) -> Operation:
    await harness.add("a")
    worker = await harness.worker()
    await worker.take_one()
    harness.clock.advance(worker.session.ttl)
    return lambda: harness.backend.consuming.rescue(10, max_lost=3)


async def _promote(harness: Harness) -> Operation:
    await harness.put(harness.job("a", after=5.0))
    harness.clock.advance(5.0)
    return lambda: harness.backend.consuming.promote(10)


async def _free_limit(harness: Harness) -> Operation:
    await harness.add("a", "b")
    worker = await harness.worker(limits={"mail": 1})
    lease = (await worker.take_one()).lease
    return lambda: worker.settle(Completed(lease))


async def _raise_limit(harness: Harness) -> Operation:
    await harness.add("a", "b")
    await (await harness.worker(limits={"mail": 1})).take_one()
    return lambda: harness.worker(limits={"mail": 2})


async def _free_key(harness: Harness) -> Operation:
    await harness.put(harness.job("a", options=JobOptions(unique_key="k")))
    worker = await harness.worker()
    lease = (await worker.take_one()).lease
    return lambda: worker.settle(Completed(lease))


async def _send_signal(harness: Harness) -> Operation:
    await start_suspended(harness, await harness.worker(), PAID)
    return lambda: send(harness)


async def _end_flow(harness: Harness) -> Operation:
    worker = await harness.worker()
    held = await start(harness, worker)
    await store(harness, [member("child")])
    child = await worker.take_one()
    await suspend(worker, held, flow_source(FLOW))
    return lambda: worker.settle(Completed(child.lease))


async def _suspend_too_late(harness: Harness) -> Operation:
    """The signal for which it waits came before."""
    worker = await harness.worker()
    held = await start(harness, worker)
    await send(harness)
    return lambda: suspend(worker, held, PAID)


async def _end_sleep(harness: Harness) -> Operation:
    await start_suspended(harness, await harness.worker(), delay=5.0)
    harness.clock.advance(5.0)
    return lambda: harness.backend.consuming.promote(10)


async def _cancel_run(harness: Harness) -> Operation:
    worker = await harness.worker()
    held = await start(harness, worker)
    await record(worker, held, CLEANUP_STEP)
    await suspend(worker, held, PAID)
    return lambda: harness.backend.producing.cancel(RUN)


async def _run_step(harness: Harness, operation_id: str, action: BulkAction) -> None:
    """Start a bulk operation, and run one step of it, which changes the job `a`."""
    await start_bulk_operation(harness.backend, NewBulkOperation(id=operation_id, action=action))
    claimed = await claim_bulk_operation(harness.backend, TTL)
    await run_bulk_step(harness.backend, claimed, BulkStep(ids=("a",)))


async def _replay_in_bulk(harness: Harness) -> Operation:
    await harness.add("a")
    worker = await harness.worker()
    await worker.settle(Failed((await worker.take_one()).lease, "permanent", FAILURE))
    return lambda: _run_step(harness, "op", BulkAction.REPLAY)


NOTIFYING: dict[str, Prepare] = {
    "enqueue": _enqueue,
    "replay": _replay,
    "a replay in bulk": _replay_in_bulk,
    "a job made due": _make_due,
    "jobs made due in bulk": _make_due_in_bulk,
    "resume": _resume,
    "a retry without delay": _retry,
    "a release": _release,
    "a closed session": _close,
    "a rescue": _rescue,
    "a promotion": _promote,
    "a limit that was full": _free_limit,
    "a limit that was raised": _raise_limit,
    "a unique key that is free again": _free_key,
    "a signal to a run that waits for it": _send_signal,
    "the end of a flow for which a run waits": _end_flow,
    "a run that waits for a signal that has come": _suspend_too_late,
    "the end of the sleep of a run": _end_sleep,
    "a cancel of a run that needs cleanup": _cancel_run,
}


async def _cancel(harness: Harness) -> tuple[HandDrivenWorker, Operation]:
    await harness.add("a")
    worker = await harness.worker()
    await worker.take_one()
    return worker, lambda: harness.backend.producing.cancel("a")


async def _cancel_in_bulk(harness: Harness) -> tuple[HandDrivenWorker, Operation]:
    worker, _ = await _cancel(harness)
    ids = itertools.count()
    return worker, lambda: _run_step(harness, f"op{next(ids)}", BulkAction.CANCEL)


async def _command(harness: Harness) -> tuple[HandDrivenWorker, Operation]:
    worker = await harness.worker()
    return worker, lambda: harness.backend.maintenance.send_command(worker.id, WorkerCommand.QUIET)


async def _cancel_previous(harness: Harness) -> tuple[HandDrivenWorker, Operation]:
    """The schedule fires a tick while its last job runs; every tick cancels it again."""
    backend, ticks = harness.backend, itertools.count()

    async def fire(tick: float) -> None:
        last = tick - 1 if tick else None
        job = harness.job("a")
        assert (
            await backend.producing.fire("nightly", last, tick, job, "cancel_previous")
        ).job_id == "a"

    await put_schedule(backend, ScheduleRecord(name="nightly", spec=b"{}"))
    await fire(float(next(ticks)))
    worker = await harness.worker()
    await worker.take_one()
    return worker, lambda: fire(float(next(ticks)))


NOTIFYING_SESSIONS: dict[str, Callable[[Harness], Awaitable[tuple[HandDrivenWorker, Operation]]]]
NOTIFYING_SESSIONS = {
    "a cancel of a running job": _cancel,
    "a cancel in bulk": _cancel_in_bulk,
    "a command": _command,
    "a tick that cancels the previous job": _cancel_previous,
}


class Waiting:
    """Notifications."""

    async def test_wait_returns_after_its_timeout(self, harness: Harness) -> None:
        task = await listening(harness, 0, ("default",), 5.0)
        harness.clock.advance(5.0)
        await wait_in_time(task)
        assert task.done()

    async def test_a_timeout_of_zero_returns_at_once(self, harness: Harness) -> None:
        before = harness.clock.now()
        await wait_in_time(harness.backend.consuming.wait(("default",), 0.0))
        assert harness.clock.now() == before

    async def test_wait_can_be_cancelled(self, harness: Harness) -> None:
        task = await listening(harness, 0, ("default",), FAR)
        task.cancel()
        await wait_in_time(asyncio.wait({task}))
        assert task.cancelled()
        await harness.add()

    @pytest.mark.parametrize("what", NOTIFYING)
    async def test_wait_wakes_for(self, fleet: Harness, what: str) -> None:
        """The notification comes through another handle; the clock does not move."""
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        operation = await NOTIFYING[what](fleet)
        task = await listening(fleet, 1, ("other", "default"), FAR)
        await operation()
        await wait_in_time(task)
        assert task.done()

    @pytest.mark.parametrize("count", [1, 3])
    async def test_as_many_are_woken_as_there_are_jobs(self, fleet: Harness, count: int) -> None:
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        tasks = [await listening(fleet, n, ("default",), FAR) for n in range(8)]
        await fleet.add(*(f"job-{n}" for n in range(count)))
        await check_woken(fleet, tasks, count)

    async def test_each_job_wakes_another(self, fleet: Harness) -> None:
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        tasks = [await listening(fleet, n, ("default",), FAR) for n in range(4)]
        for count in range(1, 5):
            await fleet.add()
            await check_woken(fleet, tasks, count)

    async def test_more_jobs_than_waiters_wake_every_waiter(self, fleet: Harness) -> None:
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        tasks = [await listening(fleet, n, ("default",), FAR) for n in range(4)]
        await fleet.add(*(f"job-{n}" for n in range(20)))
        await check_woken(fleet, tasks, 4)

    async def test_resuming_a_queue_wakes_every_waiter(self, fleet: Harness) -> None:
        """The number of its jobs is not known."""
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        operation = await _resume(fleet)
        tasks = [await listening(fleet, n, ("default",), FAR) for n in range(4)]
        await operation()
        await check_woken(fleet, tasks, 4)

    async def test_a_freed_place_of_a_limit_wakes_one_waiter(self, fleet: Harness) -> None:
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        operation = await _free_limit(fleet)
        tasks = [await listening(fleet, n, ("default",), FAR) for n in range(1, 5)]
        other = [await listening(fleet, n, ("other",), FAR) for n in (5, 6)]
        await operation()
        await check_woken(fleet, tasks, 1)
        await check_woken(fleet, other, 0)

    async def test_only_waiters_of_the_queue_are_woken(self, fleet: Harness) -> None:
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        red = [await listening(fleet, n, ("red",), FAR) for n in range(2)]
        blue = [await listening(fleet, n, ("blue", "green"), FAR) for n in range(2, 4)]
        await fleet.add(queue="blue")
        await check_woken(fleet, [*red, *blue], 1)
        assert any(task.done() for task in blue)

    async def test_a_call_that_was_cancelled_is_not_woken_in_place_of_another(
        self, fleet: Harness
    ) -> None:
        """Its worker cannot start a job now."""
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        *left, stays = [await listening(fleet, n, ("default",), FAR) for n in range(4)]
        for task in left:
            task.cancel()
            await wait_in_time(asyncio.wait({task}))
        await fleet.add()
        await wait_in_time(stays)
        assert stays.done()

    @pytest.mark.parametrize("closes", [False, True], ids=["", "with its handle"])
    async def test_a_wakeup_of_a_call_that_is_cancelled_reaches_another(
        self, fleet: Harness, *, closes: bool
    ) -> None:
        """Its worker stops, so it makes no more exchange that would pass the wake-up on."""
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        leaves, stays = [await listening(fleet, n, ("default",), FAR) for n in (1, 2)]
        await fleet.add()
        leaves.cancel()
        await wait_in_time(asyncio.wait({leaves}))
        if closes:
            await fleet.handles[1].close()
        if leaves.cancelled():  # before or after it was woken
            await wait_in_time(stays)
            assert stays.done()

    async def test_a_closed_handle_is_not_woken_in_place_of_another(self, fleet: Harness) -> None:
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        leaves, stays = [await listening(fleet, n, ("default",), FAR) for n in (1, 2)]
        leaves.cancel()
        await wait_in_time(asyncio.wait({leaves}))
        await fleet.handles[1].close()
        await fleet.add()
        await wait_in_time(stays)
        assert stays.done()

    async def test_a_job_before_the_call_is_not_missed(self, fleet: Harness) -> None:
        """No call waits when the job arrives, and the exchange before it found nothing."""
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        worker = await fleet.worker(backend=fleet.handles[1])
        before = await listening(fleet, 1, ("default",), FAR)  # from now on the handle listens
        await fleet.add("a")
        await wait_in_time(before)
        assert ids(await worker.take(2)) == ["a"]
        assert await worker.take() == []
        await fleet.add("b")
        await wait_in_time(_wait(fleet, 1, ("default",), FAR))
        assert ids(await worker.take()) == ["b"]

    async def test_a_worker_that_finds_nothing_passes_the_wakeup_on_once(
        self, fleet: Harness
    ) -> None:
        """The job is for another name. The worker of that name may be the next, or polls."""
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        workers = [await fleet.worker(names=("post",), backend=fleet.handles[n]) for n in range(4)]
        tasks = [await listening(fleet, n, ("default",), FAR) for n in range(4)]
        await fleet.add(name="mail")
        (first,) = await check_woken(fleet, tasks, 1)
        assert await workers[first].take() == []
        (second,) = {*await check_woken(fleet, tasks, 2)} - {first}
        assert await workers[second].take() == []
        await check_woken(fleet, tasks, 2)

    async def test_a_worker_that_leaves_jobs_wakes_the_next(self, fleet: Harness) -> None:
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        workers = [await fleet.worker(backend=fleet.handles[n]) for n in range(4)]
        await fleet.backend.maintenance.pause_queue(
            "default", paused=True, until=fleet.clock.now() + 5.0
        )
        await fleet.add("a", "b", "c")
        polls = await listening(fleet, 0, ("default",), 5.0)
        tasks = [await listening(fleet, n, ("default",), FAR) for n in range(1, 4)]
        fleet.clock.advance(5.0)  # the pause ends without a notification
        await wait_in_time(polls)
        assert len(await workers[0].take()) == 1
        await check_woken(fleet, tasks, 1)

    async def test_as_many_are_woken_as_jobs_became_due_and_are_left(self, fleet: Harness) -> None:
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        worker = await fleet.worker(backend=fleet.handles[0])
        await fleet.enqueue(*(fleet.job(after=5.0) for _ in range(3)))
        await fleet.enqueue(fleet.job(after=5.0, queue="other"))
        tasks = [await listening(fleet, n, ("default",), FAR) for n in range(1, 6)]
        other = [await listening(fleet, n, ("other",), FAR) for n in (6, 7)]
        fleet.clock.advance(5.0)
        assert len(await worker.take()) == 1
        await check_woken(fleet, tasks, 2)
        await check_woken(fleet, other, 1)

    async def test_as_many_are_woken_as_limited_jobs_became_due_and_are_left(
        self, fleet: Harness
    ) -> None:
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        keyed = {"mail": {"customer": LimitRule(concurrency=9)}}
        names = ("mail", "page")
        worker = await fleet.worker(names=names, keyed=keyed, backend=fleet.handles[0])
        options = JobOptions(limit_keys={"customer": "c"})
        await fleet.enqueue(*(fleet.job(after=5.0, options=options) for _ in range(3)))
        await fleet.enqueue(fleet.job(name="page", after=5.0))
        tasks = [await listening(fleet, n, ("default",), FAR) for n in range(1, 6)]
        fleet.clock.advance(5.0)
        assert len(await worker.take(2)) == 2
        await check_woken(fleet, tasks, 2)

    async def test_an_exchange_that_requests_no_job_wakes_for_jobs_that_are_due(
        self, fleet: Harness
    ) -> None:
        """A worker whose slots are taken makes it for the others."""
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        worker = await fleet.worker(backend=fleet.handles[0])
        await fleet.enqueue(*(fleet.job(after=5.0) for _ in range(2)))
        tasks = [await listening(fleet, n, ("default",), FAR) for n in range(1, 5)]
        fleet.clock.advance(5.0)
        await worker.exchange()
        await check_woken(fleet, tasks, 2)

    async def test_a_worker_that_takes_the_last_job_wakes_no_other(self, fleet: Harness) -> None:
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        workers = [await fleet.worker(backend=fleet.handles[n]) for n in range(3)]
        tasks = [await listening(fleet, n, ("default",), FAR) for n in range(3)]
        await fleet.add("a")
        (woken,) = await check_woken(fleet, tasks, 1)
        assert ids(await workers[woken].take(5)) == ["a"]
        await check_woken(fleet, tasks, 1)

    async def test_a_wakeup_without_a_job_is_harmless(self, fleet: Harness) -> None:
        """Another worker may have reserved the job: the wake-up came late, or twice."""
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        task = await listening(fleet, 1, ("default",), FAR)
        await fleet.add("a")
        await wait_in_time(task)
        assert ids(await (await fleet.worker()).take()) == ["a"]
        worker = await fleet.worker(backend=fleet.handles[1])
        assert await worker.take() == []
        task = await listening(fleet, 1, ("default",), FAR)
        await fleet.add("b")
        await wait_in_time(task)
        assert ids(await worker.take()) == ["b"]

    async def test_a_session_that_changes_no_limit_wakes_no_worker(self, fleet: Harness) -> None:
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        await fleet.worker(limits={"mail": 2})
        tasks = [await listening(fleet, n, ("default",), FAR) for n in range(3)]
        await fleet.worker(limits={"mail": 2})
        await check_woken(fleet, tasks, 0)
        await fleet.worker(limits={"mail": 3})
        await check_woken(fleet, tasks, 3)

    async def test_two_may_wait_on_one_handle(self, fleet: Harness) -> None:
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        tasks = [await listening(fleet, 1, (queue,), FAR) for queue in ("red", "blue")]
        await fleet.add(queue="red")
        await fleet.add(queue="blue")
        await wait_in_time(asyncio.wait(tasks))
        assert all(task.done() for task in tasks)

    async def test_a_session_is_notified_by_a_request_for_stacks(self, fleet: Harness) -> None:
        """No heartbeat reports it: the worker then reads the requests."""
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        worker, command = await fleet.worker(), WorkerCommand.SHOW_STACKS
        waiting = asyncio.create_task(fleet.handles[1].consuming.wait_for_session(worker.id))
        ask = lambda: fleet.backend.maintenance.send_command(worker.id, command)  # noqa: E731
        await repeat_until_done(ask, waiting)
        assert waiting.done()

    @pytest.mark.parametrize("what", NOTIFYING_SESSIONS)
    async def test_a_session_is_notified_by(self, fleet: Harness, what: str) -> None:
        """The worker then learns it from a heartbeat at once; the clock does not move."""
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        worker, operation = await NOTIFYING_SESSIONS[what](fleet)
        waiting = asyncio.create_task(fleet.handles[1].consuming.wait_for_session(worker.id))
        await repeat_until_done(operation, waiting)
        reply = await worker.heartbeat()
        assert reply.cancel or reply.command

    async def test_only_the_session_that_holds_the_job_is_notified(self, fleet: Harness) -> None:
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        backend, other = fleet.handles[1], await fleet.worker()
        worker, cancel = await _cancel(fleet)
        wait_for = backend.consuming.wait_for_session
        # A call may end without cause when its handle begins to listen.
        await repeat_until_done(cancel, asyncio.create_task(wait_for(worker.id)))
        waiting = asyncio.create_task(wait_for(other.id))
        await repeat_until_done(cancel, asyncio.create_task(wait_for(worker.id)))
        assert not waiting.done()
        command = lambda: fleet.backend.maintenance.send_command(other.id, None)  # noqa: E731
        await repeat_until_done(command, waiting)

    async def test_a_poll_finds_what_a_missed_notification_left(self, harness: Harness) -> None:
        """Notifications may be lost without losing a job."""
        await harness.add("a")
        await harness.put(harness.job("b", after=1.0))
        harness.clock.advance(1.0)
        assert len(await (await harness.worker()).take(5)) == 2


async def check_woken(
    fleet: Harness, tasks: list[asyncio.Task[None]], count: int, *, further: int = 0
) -> list[int]:
    """Wait until `count` of the calls were woken, and check that no other was. Return which.

    `further`: at most this number more may be woken.
    """
    async with asyncio.timeout(DEADLINE):
        while sum(task.done() for task in tasks) < count:
            await asyncio.wait(
                [task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED
            )
    await receive_earlier(fleet, fleet.handles)
    woken = [n for n, task in enumerate(tasks) if task.done()]
    assert count <= len(woken) <= count + further
    return woken


async def receive_earlier(harness: Harness, handles: Iterable[Backend]) -> None:
    """Let handles receive all earlier notifications: they get one of another session after them.

    The first call of each may end without cause, when its handle begins to listen.
    """
    other = await harness.worker(names=())
    for handle in [one for one in handles for _ in range(2)]:
        command = lambda: harness.backend.maintenance.send_command(other.id, None)  # noqa: E731
        await repeat_until_done(
            command, asyncio.create_task(handle.consuming.wait_for_session(other.id))
        )


async def repeat_until_done(operation: Operation, waiting: asyncio.Task[None]) -> None:
    """Repeat the operation until `waiting` has ended: its handle may not listen yet."""
    async with asyncio.timeout(DEADLINE):
        while not waiting.done():
            await operation()
            await asyncio.wait({waiting}, timeout=0.02)
    await waiting


async def listening(
    harness: Harness, handle: int, queues: tuple[str, ...], timeout: float
) -> asyncio.Task[None]:
    """Return a task that waits, after notifications from earlier operations have been consumed."""
    if harness.backend.capabilities.notifies:
        await receive_earlier(harness, [harness.handles[handle]])
    async with asyncio.timeout(DEADLINE):
        while True:
            before = harness.clock.sleepers
            task = asyncio.create_task(_wait(harness, handle, queues, timeout))
            while not task.done() and harness.clock.sleepers == before:
                await asyncio.wait({task}, timeout=0.001)
            await asyncio.wait({task}, timeout=0.02)
            if not task.done():
                return task


async def _wait(harness: Harness, handle: int, queues: tuple[str, ...], timeout: float) -> None:
    await harness.handles[handle].consuming.wait(queues, timeout)
