"""Policy: what a declaration may say, and the delays that follow from it."""

from __future__ import annotations

import logging
import re
from datetime import timedelta
from random import Random
from typing import Any, cast

import pytest

import nimburion
from nimburion.core.errors import DefinitionError, InvalidJob
from nimburion.core.rate_limits import parse_rate
from nimburion.core.settings import Settings
from nimburion.core.size_limits import SizeLimits
from nimburion.jobs import Backoff, Batch, ChildProcess, Limit, Unique
from nimburion.jobs.options.backoff import compute_delay, exponential, listed
from nimburion.jobs.options.enqueue_options import EnqueueOptions, parse_options
from nimburion.jobs.options.policy import (
    POLICY_OPTIONS,
    Policy,
    PolicyOptions,
    parse_policy,
    read_policy,
)
from nimburion.jobs.options.unknown_options import ADVICE_FOR_CALLS, ADVICE_FOR_JOBS


class NoJitter(Random):
    def random(self) -> float:
        return 0.0


class MostJitter(Random):
    def random(self) -> float:
        return 0.999_999


def delays(backoff: Any, count: int = 4, **more: Any) -> list[float]:
    policy = parse_policy(retry_backoff=backoff, **more).with_defaults(Settings())
    return [delay(policy, n) for n in range(1, count + 1)]


def delay(policy: Policy, failures: int, random: Random | None = None) -> float:
    """Return the delay after a failure; without jitter unless `random` adds some."""
    return compute_delay(policy.backoff, policy.backoff_max, failures, random or NoJitter())


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        (1.5, [1.5, 3.0, 6.0, 12.0]),
        (timedelta(seconds=2), [2.0, 4.0, 8.0, 16.0]),
        (exponential(1), [1.0, 2.0, 4.0, 8.0]),
        (listed(1, 60), [1.0, 60.0, 60.0, 60.0]),
        ([1, timedelta(minutes=1)], [1.0, 60.0, 60.0, 60.0]),
        ((5,), [5.0, 5.0, 5.0, 5.0]),
        (lambda n: n * n, [1.0, 4.0, 9.0, 16.0]),
        (0, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_each_backoff_grows_as_it_says(backoff: Any, expected: list[float]) -> None:
    assert delays(backoff) == expected


def test_the_cap_holds_however_many_failures_there_were() -> None:
    policy = parse_policy(retry_backoff=Backoff(1.0, max_delay=30)).with_defaults(Settings())
    assert [delay(policy, n, MostJitter()) for n in (5, 6, 5_000)] == [
        pytest.approx(19.2, abs=0.01),
        pytest.approx(30.0, abs=0.01),
        pytest.approx(30.0, abs=0.01),
    ]


def test_jitter_spreads_the_jobs_at_the_cap_too() -> None:
    policy = parse_policy(retry_backoff=Backoff(1.0, max_delay=30)).with_defaults(Settings())
    seen = [delay(policy, 20, Random(seed)) for seed in range(200)]
    assert min(seen) >= 25.0
    assert max(seen) <= 30.0
    assert max(seen) - min(seen) > 4.5
    assert len(set(seen)) > 100


def test_listed_delays_are_capped_by_the_declaration_only() -> None:
    assert delays([1, 3600], 2) == [1.0, 3600.0]
    capped = parse_policy(retry_backoff=Backoff([1, 3600], max_delay=60))
    assert delay(capped.with_defaults(Settings()), 2, MostJitter()) == pytest.approx(60, abs=0.1)


def test_jitter_only_adds_and_at_most_a_fifth() -> None:
    policy = parse_policy(retry_backoff=10.0).with_defaults(Settings())
    seen = [delay(policy, 1, Random(seed)) for seed in range(200)]
    assert min(seen) >= 10.0
    assert max(seen) <= 12.0
    assert len(set(seen)) > 100


def test_what_is_not_declared_is_taken_from_the_settings() -> None:
    settings = Settings(max_retries=7, retry_backoff=3.0, retry_backoff_max=5.0, timeout=9.0)
    policy = Policy().with_defaults(settings)
    assert (policy.max_retries, policy.timeout, policy.backoff_max) == (7, 9.0, 5.0)
    assert [delay(policy, n) for n in (1, 2)] == [3.0, pytest.approx(5.0 / 1.2)]


def test_what_is_declared_wins_over_the_settings() -> None:
    policy = parse_policy(max_retries=0, timeout=timedelta(minutes=1)).with_defaults(
        Settings(max_retries=7, timeout=9.0)
    )
    assert (policy.max_retries, policy.timeout) == (0, 60.0)


def raising(_: int) -> float:
    raise ZeroDivisionError


@pytest.mark.parametrize("backoff", [raising, lambda _: -1.0, lambda _: float("nan")])
def test_a_backoff_function_that_fails_is_logged_and_replaced(
    backoff: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "nimburion.jobs"):
        assert delays(backoff, 3) == [1.0, 2.0, 4.0]
    assert "backoff function" in caplog.text


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_retries": -1}, "max_retries must be a whole number, 0 or more, not -1"),
        ({"max_retries": True}, "max_retries"),
        ({"max_retries": 1.5}, "max_retries"),
        ({"retry_backoff": "soon"}, "retry_backoff must be a number of seconds, a timedelta or a"),
        ({"expires": 0}, "expires must be more than 0"),
        ({"retry_on": (OSError, "x")}, "retry_on must hold exception classes"),
        ({"retry_backoff": True}, "retry_backoff=True: leave it out; the delay doubles"),
        ({"retry_backoff": -1.0}, "retry_backoff must be 0 seconds or more, not -1.0"),
        ({"retry_backoff": []}, "list at least one delay"),
        ({"retry_backoff": float("nan")}, "retry_backoff"),
        ({"retry_backoff": Backoff(max_delay=0)}, "max_delay of Backoff must be more than 0"),
        ({"retry_backoff": Backoff(retry_for=-1)}, "retry_for of Backoff must be more than 0"),
        ({"concurrency": Limit(2)}, "write `limits=[Limit(2)]`"),
        (
            {"concurrency": Limit(rate="100/min", burst=10, cost="rows")},
            "write `limits=[Limit(rate='100/min', burst=10, cost='rows')]`",
        ),
        ({"limits": Limit(2)}, "limits must be a list of Limits, not Limit(2)"),
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"timeout": True}, "timeout must be a number of seconds"),
        ({"concurrency": 0}, "concurrency must be a whole number, 1 or more"),
        ({"priority": 10}, "priority must be a whole number, from 0 to 9, not 10"),
        ({"permanent": ValueError("x")}, "permanent must hold exception classes"),
        ({"permanent": (ValueError, "KeyError")}, "permanent must hold exception classes"),
    ],
)
def test_an_invalid_policy_is_refused_with_a_reason(options: PolicyOptions, complaint: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        parse_policy(**options)
    assert complaint in str(refused.value)


def test_with_retry_on_every_other_exception_is_permanent() -> None:
    policy = parse_policy(retry_on=(ConnectionError, TimeoutError))
    assert not policy.is_permanent(ConnectionResetError())
    assert policy.is_permanent(ValueError())
    with pytest.raises(DefinitionError, match="pass retry_on or permanent, not both"):
        parse_policy(retry_on=OSError, permanent=ValueError)
    assert not parse_policy().is_permanent(ValueError())


def test_a_duration_may_be_a_text() -> None:
    policy = parse_policy(
        timeout="1m30s", expires="2h", retry_backoff=Backoff("500ms", max_delay="1h")
    )
    assert (policy.timeout, policy.expires, policy.backoff_max) == (90.0, 7200.0, 3600.0)
    assert delay(policy, 1) == 0.5


def test_one_permanent_exception_needs_no_tuple() -> None:
    assert parse_policy(permanent=KeyError).permanent == (KeyError,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execution": "fork"}, "one of 'auto', 'thread', 'process' or a ChildProcess, not 'fork'"),
        ({"execution": ChildProcess(memory="1G")}, "bytes, or a text"),
        ({"execution": ChildProcess(memory=1000)}, "at least 32MiB"),
        ({"execution": ChildProcess(retry_over_memory=True)}, "needs `memory`"),
        ({"execution": ChildProcess(), "batch": 5}, "a batch handler runs in the worker"),
    ],
)
def test_a_wrong_place_of_execution_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        read_policy(options)


def test_a_memory_limit_may_be_a_text() -> None:
    policy = read_policy({"execution": ChildProcess(memory="512MB")})
    assert (policy.execution, policy.memory_limit) == ("process", 512_000_000)


def test_the_parts_of_a_folded_option_stand_in_the_policy() -> None:
    policy = read_policy(
        {
            "retry_backoff": Backoff([1, 5], max_delay=timedelta(minutes=1), retry_for=3600),
            "concurrency": 2,
            "rate": "10/s",
            "limits": [Limit(5, key="tenant")],
            "unique": Unique("order", for_=60),
            "batch": Batch(10, wait=0.5),
        }
    )
    assert (policy.backoff_max, policy.retry_for, policy.concurrency) == (60.0, 3600.0, 2)
    assert (policy.batch, policy.batch_wait) == (10, 0.5)
    assert policy.rate
    assert policy.unique
    assert (policy.rate.rate, policy.unique.fields, len(policy.limits)) == ("10/s", ("order",), 1)
    assert policy.unique.rule.unique_for == 60.0


def test_a_limit_of_all_jobs_of_the_name_completes_the_shorthands() -> None:
    one = parse_policy(concurrency=2, limits=[Limit(rate="10/s", burst=5, cost=2)])
    assert (one.concurrency, one.limits) == (2, ())
    assert one.rate == parse_rate("10/s", 5, 2)
    with pytest.raises(DefinitionError, match="two limits are for all jobs of the name"):
        parse_policy(rate="10/s", limits=[Limit(rate="1/s")])


@pytest.mark.parametrize(
    ("former", "instead"),
    [
        ({"retry_backoff_max": 60}, "retry_backoff=Backoff(max_delay=60)"),
        ({"burst": 5}, 'limits=[Limit(rate="100/min", burst=5)]'),
        ({"key": "customer"}, "limits=[Limit(rate=\"100/min\", key='customer')]"),
        ({"unique_for": 60}, "unique=Unique(for_=60)"),
        ({"unique_while": "waiting"}, "unique=Unique(while_='waiting')"),
        ({"on_duplicate": "existing"}, "unique=Unique(on_duplicate='existing')"),
        ({"debounce": 5}, "unique=Unique(debounce=5)"),
        ({"throttle": 60}, "unique=Unique(throttle=60)"),
        ({"memory_limit": "512MB"}, "execution=ChildProcess(memory='512MB')"),
        ({"batch_wait": 0.5}, "batch=Batch(100, wait=0.5)"),
    ],
)
def test_a_former_option_shows_the_present_one(former: dict[str, Any], instead: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        read_policy(former)
    (name,) = former
    assert str(refused.value) == f"there is no option {name!r}; write `{instead}`"


@pytest.mark.parametrize("name", ADVICE_FOR_JOBS)
def test_each_habit_of_another_system_names_an_option_of_ours(name: str) -> None:
    with pytest.raises(DefinitionError, match=f"there is no option '{name}'; ") as refused:
        read_policy({name: 5})
    allowed = {*POLICY_OPTIONS, "name", "queue", *EnqueueOptions.__annotations__}
    for outer, inner in re.findall(r"`[^`]*?(\w+)=(?:(\w+)\()?", str(refused.value)):
        assert outer in allowed, refused.value
        assert not inner or inner in nimburion.__all__
    for setting in re.findall(r"the setting `(\w+)`", str(refused.value)):
        assert setting in Settings.__struct_fields__


@pytest.mark.parametrize("name", ADVICE_FOR_CALLS)
def test_each_habit_of_a_call_names_an_option_of_ours(name: str) -> None:
    with pytest.raises(InvalidJob, match=f"there is no option '{name}'; ") as refused:
        parse_options(SizeLimits(), **cast("dict[str, Any]", {name: 5}))
    for option in re.findall(r"`(\w+)=", str(refused.value)):
        assert option in {*POLICY_OPTIONS, *EnqueueOptions.__annotations__}, refused.value


def test_an_option_that_belongs_elsewhere_says_where() -> None:
    with pytest.raises(DefinitionError, match=r"here; it is an option of a call: `.options\(after"):
        read_policy({"after": 5})
    with pytest.raises(InvalidJob, match=r"here; it is an option of the job: `@job\(retry_on=…\)`"):
        parse_options(SizeLimits(), retry_on=OSError)


def test_the_habits_are_many() -> None:
    assert len({*ADVICE_FOR_JOBS, *ADVICE_FOR_CALLS}) >= 40


def test_the_number_of_options_stays_small() -> None:
    assert len({"name", "queue", *POLICY_OPTIONS}) <= 20
    assert len(EnqueueOptions.__annotations__) <= 18
