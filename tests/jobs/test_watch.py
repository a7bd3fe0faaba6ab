"""A watch ends what takes too long, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from nimburion.core.watch import Watch

LONG = 60.0
SOON = 0.005


async def forever() -> None:
    await asyncio.Event().wait()


async def test_what_takes_too_long_is_ended() -> None:
    watch = Watch()
    for _ in range(2):
        with pytest.raises(TimeoutError), watch.within(SOON):
            await forever()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_short_wait_behind_a_long_one_is_ended_in_time() -> None:
    watch = Watch()
    with watch.within(LONG):
        pass
    async with asyncio.timeout(LONG / 2):
        with pytest.raises(TimeoutError), watch.within(SOON):
            await forever()


async def test_a_long_wait_behind_a_short_one_has_its_own_time() -> None:
    watch, rung = Watch(), asyncio.Event()
    with watch.within(SOON):
        pass
    with watch.within(LONG):
        asyncio.get_running_loop().call_later(3 * SOON, rung.set)
        await rung.wait()
    watch.stop()


async def test_after_a_wait_nothing_is_cancelled() -> None:
    watch, rung = Watch(), asyncio.Event()
    with watch.within(SOON):
        pass
    asyncio.get_running_loop().call_later(3 * SOON, rung.set)
    await rung.wait()


async def test_each_of_many_waits_has_its_own_time() -> None:
    watch, rung, ended = Watch(), asyncio.Event(), list[str]()

    async def waiting(name: str, seconds: float) -> None:
        try:
            with watch.within(seconds):
                await rung.wait()
            ended.append(f"{name} went on")
        except TimeoutError:
            ended.append(f"{name} took too long")
            if name == "second":
                rung.set()

    await asyncio.gather(waiting("long", LONG), waiting("second", 3 * SOON), waiting("first", SOON))
    assert ended == ["first took too long", "second took too long", "long went on"]
    watch.stop()


async def test_who_cancels_is_heard() -> None:
    watch = Watch()

    async def waiting() -> None:
        with watch.within(LONG):
            await forever()

    task = asyncio.create_task(waiting())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    watch.stop()


async def test_an_error_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="mine"), Watch().within(LONG):
        raise ValueError("mine")
