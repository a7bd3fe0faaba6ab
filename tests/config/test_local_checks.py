"""Checks of this host: its clock and its drivers."""

from __future__ import annotations

from nimburion.config.local_checks import check_local_clock, check_redis_driver
from nimburion.testing import FakeClock


def test_a_clock_that_steps_while_we_look() -> None:
    clock = FakeClock()
    wall, monotonic = clock.now(), clock.monotonic()
    clock.advance(0.5)
    assert check_local_clock(clock, wall, monotonic).verdict == "good"
    clock.step_wall(-2)
    found = check_local_clock(clock, wall, monotonic)
    assert (found.verdict, found.text) == ("warning", "stepped by -2.0 s just now")


def test_drivers_are_named_where_they_matter() -> None:
    assert check_redis_driver("sqlite:///jobs.db") == []
    (found,) = check_redis_driver("redis+sentinel://a,b/main")
    assert "hiredis" in found.text
