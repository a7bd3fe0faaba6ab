"""Deadlines end what takes too long, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from nimburion.core.timing.timers import SharedTimer

LONG = 60.0
SOON = 0.005


async def forever() -> None:
    await asyncio.Event().wait()


async def test_what_takes_too_long_is_ended() -> None:
    deadlines = SharedTimer()
    for _ in range(2):
        with pytest.raises(TimeoutError), deadlines.timeout(SOON):
            await forever()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_short_wait_behind_a_long_one_is_ended_in_time() -> None:
    deadlines = SharedTimer()
    with deadlines.timeout(LONG):
        pass
    async with asyncio.timeout(LONG / 2):
        with pytest.raises(TimeoutError), deadlines.timeout(SOON):
            await forever()


async def test_a_long_wait_behind_a_short_one_has_its_own_time() -> None:
    deadlines, woken = SharedTimer(), asyncio.Event()
    with deadlines.timeout(SOON):
        pass
    with deadlines.timeout(LONG):
        asyncio.get_running_loop().call_later(3 * SOON, woken.set)
        await woken.wait()
    assert woken.is_set()
    deadlines.stop()


async def test_after_a_wait_nothing_is_cancelled() -> None:
    deadlines, woken = SharedTimer(), asyncio.Event()
    with deadlines.timeout(SOON):
        pass
    asyncio.get_running_loop().call_later(3 * SOON, woken.set)
    await woken.wait()
    assert woken.is_set()


async def test_each_of_many_waits_has_its_own_time() -> None:
    deadlines, woken, ended = SharedTimer(), asyncio.Event(), list[str]()

    async def waiting(name: str, seconds: float) -> None:
        try:
            with deadlines.timeout(seconds):
                await woken.wait()
            ended.append(f"{name} went on")
        except TimeoutError:
            ended.append(f"{name} took too long")
            if name == "second":
                woken.set()

    await asyncio.gather(waiting("long", LONG), waiting("second", 3 * SOON), waiting("first", SOON))
    *expired, last = ended  # on a busy machine, both have expired when the timer fires
    assert sorted(expired) == ["first took too long", "second took too long"]
    assert last == "long went on"
    deadlines.stop()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_ends_that_lie_close_together(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """A loop may have another kind of timer for what is due at once."""
    deadlines, ended = SharedTimer(), list[int]()

    async def waiting(number: int) -> None:
        with pytest.raises(TimeoutError), deadlines.timeout(SOON + number * 2e-5):
            await forever()
        ended.append(number)

    async def all_of_them() -> None:
        await asyncio.gather(*map(waiting, range(300)))
        with deadlines.timeout(SOON):
            pass

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(all_of_them())
    assert sorted(ended) == [*range(300)]


async def test_one_wait_inside_another() -> None:
    deadlines = SharedTimer()
    with deadlines.timeout(LONG), pytest.raises(TimeoutError), deadlines.timeout(SOON):
        await forever()
    with pytest.raises(TimeoutError), deadlines.timeout(SOON), deadlines.timeout(LONG):
        await forever()
    deadlines.stop()


async def test_cancelling_the_wait_cancels_the_caller() -> None:
    deadlines = SharedTimer()

    async def waiting() -> None:
        with deadlines.timeout(LONG):
            await forever()

    task = asyncio.create_task(waiting())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadlines.stop()


async def test_an_error_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="mine"), SharedTimer().timeout(LONG):
        raise ValueError("mine")
