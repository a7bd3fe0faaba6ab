"""The clock that tests move by hand."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from nimburion.testing import FakeClock


def test_both_clocks_advance_together_and_the_wall_may_step_alone() -> None:
    clock = FakeClock(start=1_000.0)
    booted = clock.monotonic()
    clock.advance_to(1_090.0)
    clock.step_wall(-30.0)
    assert (clock.now(), clock.monotonic() - booted) == (1_060.0, 90.0)


@pytest.mark.parametrize(
    "duration", [259_200, timedelta(days=3), "3d", "3 days", "71 hours 60 minutes"]
)
def test_it_advances_by_any_duration(duration: float | timedelta | str) -> None:
    clock = FakeClock(start=1_000.0)
    clock.advance(duration)
    assert clock.now() == 260_200.0


def test_a_text_that_is_no_duration_is_refused() -> None:
    with pytest.raises(ValueError, match="a text like '1h30m', not 'soon'"):
        FakeClock().advance("soon")


def test_time_does_not_go_backwards() -> None:
    with pytest.raises(ValueError, match="backwards"):
        FakeClock().advance(-1)


async def test_sleepers_wake_when_their_time_has_come() -> None:
    clock = FakeClock()
    task = asyncio.create_task(clock.sleep(5))
    await asyncio.sleep(0)
    clock.advance(4.9)
    await asyncio.sleep(0)
    early = task.done()
    clock.advance(0.1)
    await asyncio.wait_for(task, 10)
    assert (early, clock.sleepers) == (False, 0)
