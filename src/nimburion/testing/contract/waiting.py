"""`wait`: returns on a notification that jobs may be ready, or after a timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from nimburion.core.job import JobOptions
from nimburion.core.queries import EVERY_JOB
from nimburion.core.settlement import Completed, Failed, Released, Retried
from nimburion.testing.contract.harness import DEADLINE, OOPS, Harness, soon

Act = Callable[[], Awaitable[object]]
Prepare = Callable[[Harness], Awaitable[Act]]

FAR = 1_000.0
"""A timeout in seconds on the fake clock that never elapses unless the test advances the clock."""


async def _enqueue(stage: Harness) -> Act:
    return stage.add


async def _replay(stage: Harness) -> Act:
    await stage.add("a")
    worker = await stage.worker()
    await worker.settle(Failed((await worker.take_one()).lease, "permanent", OOPS))
    return lambda: stage.store.replay(EVERY_JOB, 10)


async def _resume(stage: Harness) -> Act:
    await stage.add("a")
    await stage.store.pause("default", paused=True)
    return lambda: stage.store.pause("default", paused=False)


async def _retry(stage: Harness) -> Act:
    await stage.add("a")
    worker = await stage.worker()
    lease = (await worker.take_one()).lease
    return lambda: worker.settle(Retried(lease, 0.0, OOPS))


async def _release(stage: Harness) -> Act:
    await stage.add("a")
    worker = await stage.worker()
    lease = (await worker.take_one()).lease
    return lambda: worker.settle(Released(lease))


async def _close(stage: Harness) -> Act:
    await stage.add("a")
    worker = await stage.worker()
    await worker.take_one()
    return worker.close


async def _rescue(stage: Harness) -> Act:
    await stage.add("a")
    worker = await stage.worker()
    await worker.take_one()
    stage.clock.advance(worker.session.ttl)
    return lambda: stage.store.rescue(10, max_lost=3)


async def _promote(stage: Harness) -> Act:
    await stage.put(stage.job("a", after=5.0))
    stage.clock.advance(5.0)
    return lambda: stage.store.promote(10)


async def _free_gate(stage: Harness) -> Act:
    await stage.add("a", "b")
    worker = await stage.worker(limits={"mail": 1})
    lease = (await worker.take_one()).lease
    return lambda: worker.settle(Completed(lease))


async def _raise_gate(stage: Harness) -> Act:
    await stage.add("a", "b")
    await (await stage.worker(limits={"mail": 1})).take_one()
    return lambda: stage.worker(limits={"mail": 2})


async def _free_key(stage: Harness) -> Act:
    await stage.put(stage.job("a", options=JobOptions(unique_key="k")))
    worker = await stage.worker()
    lease = (await worker.take_one()).lease
    return lambda: worker.settle(Completed(lease))


RINGING: dict[str, Prepare] = {
    "enqueue": _enqueue,
    "replay": _replay,
    "resume": _resume,
    "a retry without delay": _retry,
    "a release": _release,
    "a closed session": _close,
    "a rescue": _rescue,
    "a promotion": _promote,
    "a gate that was full": _free_gate,
    "a gate that was raised": _raise_gate,
    "a unique key that is free again": _free_key,
}


class Waiting:
    """Hints."""

    async def test_wait_returns_after_its_timeout(self, stage: Harness) -> None:
        task = await listening(stage, 0, ("default",), 5.0)
        stage.clock.advance(5.0)
        await soon(task)

    async def test_a_timeout_of_zero_returns_at_once(self, stage: Harness) -> None:
        await soon(stage.store.wait(("default",), 0.0))

    async def test_wait_can_be_cancelled(self, stage: Harness) -> None:
        task = await listening(stage, 0, ("default",), FAR)
        task.cancel()
        await soon(asyncio.wait({task}))
        assert task.cancelled()
        await stage.add()

    @pytest.mark.parametrize("what", RINGING)
    async def test_wait_wakes_for(self, fleet: Harness, what: str) -> None:
        """Through another handle, without the clock."""
        if not fleet.store.capabilities.notifies:
            pytest.skip("this backend does not notify")
        act = await RINGING[what](fleet)
        task = await listening(fleet, 1, ("other", "default"), FAR)
        await act()
        await soon(task)

    async def test_everybody_who_waits_is_woken(self, fleet: Harness) -> None:
        if not fleet.store.capabilities.notifies:
            pytest.skip("this backend does not notify")
        tasks = [await listening(fleet, n, ("default",), FAR) for n in range(8)]
        await fleet.add()
        await soon(asyncio.wait(tasks))
        assert all(task.done() for task in tasks)

    async def test_two_may_wait_on_one_handle(self, fleet: Harness) -> None:
        if not fleet.store.capabilities.notifies:
            pytest.skip("this backend does not notify")
        tasks = [await listening(fleet, 1, (queue,), FAR) for queue in ("red", "blue")]
        await fleet.add(queue="red")
        await fleet.add(queue="blue")
        await soon(asyncio.wait(tasks))
        assert all(task.done() for task in tasks)

    async def test_what_a_missed_hint_left_is_found_by_asking(self, stage: Harness) -> None:
        """Nothing depends on hints."""
        await stage.add("a")
        await stage.put(stage.job("b", after=1.0))
        stage.clock.advance(1.0)
        assert len(await (await stage.worker()).take(5)) == 2


async def listening(
    stage: Harness, handle: int, queues: tuple[str, ...], timeout: float
) -> asyncio.Task[None]:
    """Return a task that waits, after notifications from earlier operations have been consumed."""
    async with asyncio.timeout(DEADLINE):
        while True:
            before = stage.clock.sleepers
            task = asyncio.create_task(_wait(stage, handle, queues, timeout))
            while not task.done() and stage.clock.sleepers == before:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await asyncio.wait({task}, timeout=0.02)
            if not task.done():
                return task


async def _wait(stage: Harness, handle: int, queues: tuple[str, ...], timeout: float) -> None:
    await stage.handles[handle].wait(queues, timeout)
