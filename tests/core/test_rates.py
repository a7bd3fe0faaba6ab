"""Rates as declarations write them."""

from __future__ import annotations

import pytest

from nimburion.core.errors import DefinitionError
from nimburion.core.rate_limits import RateLimit, parse_rate
from nimburion.jobs import job


@pytest.mark.parametrize(
    ("rate", "burst", "interval", "expected_burst"),
    [
        ("100/min", None, 600_000, 1),
        ("1000/s", None, 1_000, 100),
        ("5 / second", None, 200_000, 1),
        ("1_000/2h", 50, 7_200_000, 50),
        ("7/m", None, 8_571_429, 1),  # rounded up: never above the rate
        ("10000/s", None, 100, 1_000),
        ("1/day", 3, 86_400_000_000, 3),
    ],
)
def test_a_rate_becomes_an_interval_and_a_burst(
    rate: str, burst: int | None, interval: int, expected_burst: int
) -> None:
    assert parse_rate(rate, burst) == RateLimit(rate, interval, expected_burst)


@pytest.mark.parametrize(
    ("rate", "burst", "cost", "text"),
    [
        ("fast", None, 1, "rate must be a number of jobs and a time, like '100/min'"),
        ("0/s", None, 1, "rate must be a number of jobs and a time"),
        ("5/fortnight", None, 1, "rate must be a number of jobs and a time"),
        (5, None, 1, "not 5"),
        ("5/2d", None, 1, "the time of a rate is at most one day, not '5/2d'"),
        ("5/0s", None, 1, "the time of a rate is at most one day"),
        ("10001/s", None, 1, "a rate is at most 10,000 a second, not '10001/s'"),
        ("5/s", 0, 1, "burst must be a whole number from 1 to 1,000,000, not 0"),
        ("5/s", None, 0, "cost must be a whole number from 1 to 1,000,000, not 0"),
        ("5/s", True, 1, "burst must be a whole number"),
        ("1/day", 400, 1, "burst 400 is more than the rate '1/day' allows in a year"),
        (None, 5, 1, "burst and cost need a `rate`"),
        (None, None, 5, "burst and cost need a `rate`"),
    ],
)
def test_a_wrong_rate_says_what_is_allowed(
    rate: str | None, burst: int | None, cost: int, text: str
) -> None:
    with pytest.raises(DefinitionError) as raised:
        parse_rate(rate, burst, cost)
    assert text in str(raised.value)


def test_a_declaration_names_the_job_whose_rate_is_wrong() -> None:
    with pytest.raises(DefinitionError, match=r"'send'.*rate must be"):

        @job(name="send", rate="wait_in_time")
        def send() -> None: ...
