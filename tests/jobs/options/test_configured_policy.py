"""Limits and batches of single jobs that the settings set."""

from __future__ import annotations

import pytest

from nimburion.backends import open_backend
from nimburion.core.errors import ConfigurationError, DefinitionError
from nimburion.core.limits import LimitRule
from nimburion.core.rate_limits import parse_rate
from nimburion.core.settings import (
    BatchSettings,
    JobSettings,
    KeyedLimitSettings,
    QueueLimitSettings,
    Recycle,
    Settings,
)
from nimburion.jobs import Batch, Limit, Processor, job


@job(concurrency=1, limits=[Limit(rate="10/s", burst=3, cost=2)])
def send(to: str) -> None: ...


@job(limits=[Limit(1, key="customer"), Limit(2, name="smtp")])
def sync(customer: str) -> None: ...


@job(batch=Batch(10, wait=1.0))
def digest(names: list[str]) -> None: ...


def make_processor(
    *overrides: JobSettings, keyed: tuple[KeyedLimitSettings, ...] = ()
) -> Processor:
    settings = Settings(overrides=overrides, keyed_limits=keyed)
    processor = Processor(open_backend("memory://"), settings)
    processor.register(send, sync, digest)
    return processor


def test_the_settings_win_over_the_declaration() -> None:
    registry = make_processor(
        JobSettings(name="send", concurrency=5, rate="100/min"),
        JobSettings(name="digest", batch=BatchSettings(50)),
        keyed=(
            KeyedLimitSettings(name="sync:customer", concurrency=3),
            KeyedLimitSettings(name="smtp", rate="5/s", burst=4),
        ),
    ).registry
    assert [each.policy.batch for each in registry.batch_handlers] == [50]
    assert registry.limits == {
        "send": {"job:send": LimitRule(5, parse_rate("100/min", None, cost=2))},
        "sync": {
            "sync:customer": LimitRule(concurrency=3),
            "smtp": LimitRule(concurrency=2, rate=parse_rate("5/s", 4)),
        },
    }
    handler = registry.get("digest")
    assert handler is not None
    assert handler.policy.batch_wait == 1.0


def test_a_burst_alone_changes_the_declared_rate() -> None:
    registry = make_processor(JobSettings(name="send", burst=7)).registry
    assert registry.limits["send"] == {"job:send": LimitRule(1, parse_rate("10/s", 7, cost=2))}


@pytest.mark.parametrize(
    ("own", "error"),
    [
        (JobSettings(name="sync", burst=2), "'sync': `burst` needs a `rate`"),
        (JobSettings(name="send", batch=BatchSettings(2)), "'send': its handler takes one job"),
    ],
)
def test_settings_that_do_not_fit_are_refused(own: JobSettings, error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        make_processor(own)


def test_numbers_out_of_bounds_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="concurrency of 'send' in 'overrides' must be"):
        Processor("memory://", overrides=(JobSettings(name="send", concurrency=0),))
    with pytest.raises(ConfigurationError, match="the size of the batch of 'send' must be"):
        Processor("memory://", overrides=(JobSettings(name="send", batch=BatchSettings(0)),))
    with pytest.raises(ConfigurationError, match="the jobs of 'child_recycle' must be"):
        Processor("memory://", child_recycle=Recycle(jobs=0))


def test_limits_of_queues_are_among_those_of_each_job() -> None:
    limits = (
        QueueLimitSettings("mail", 10, "100/min"),
        QueueLimitSettings("slow", concurrency=1),
    )
    processor = Processor("memory://", queue_limits=limits)
    processor.register(send, sync)
    mail, slow = LimitRule(10, parse_rate("100/min")), LimitRule(1)
    of_queues = {"queue:mail": mail, "queue:slow": slow}
    assert processor.registry.limits["send"] == of_queues | {
        "job:send": LimitRule(1, parse_rate("10/s", 3, cost=2))
    }
    assert processor.registry.limits["sync"] == of_queues | {
        "sync:customer": LimitRule(1),
        "smtp": LimitRule(2),
    }
    assert processor.registry.describe_limits()["queue:mail"] == "10 100/min"


@pytest.mark.parametrize(
    ("own", "error"),
    [
        (QueueLimitSettings("mail"), "jobs.queue_limits, 'mail': give the queue a `concurrency`"),
        (QueueLimitSettings("mail", burst=2), "`burst` needs a `rate`, like `rate: 100/min`"),
        (QueueLimitSettings("mail", rate="fast"), "'mail': rate must be a number"),
        (QueueLimitSettings("a b", 1), "the name of a queue"),
        (QueueLimitSettings("mail", 0), "concurrency of 'mail' in 'queue_limits' must be"),
    ],
)
def test_wrong_limits_of_queues_are_refused(own: QueueLimitSettings, error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        Processor("memory://", queue_limits=(own,))


def test_a_limit_may_have_the_name_of_a_job() -> None:
    processor = make_processor()
    processor.register("smtp", lambda ctx, data: None, concurrency=3)
    assert processor.registry.limits["smtp"] == {"job:smtp": LimitRule(3)}
    assert processor.registry.limits["sync"]["smtp"] == LimitRule(2)


@pytest.mark.parametrize("name", ["job:send", "queue:mail"])
def test_a_limit_cannot_have_the_name_of_the_limit_of_a_job_or_a_queue(name: str) -> None:
    with pytest.raises(DefinitionError, match="does not begin with `job:` or `queue:`"):
        Limit(1, name=name)
    processor = Processor("memory://")
    with pytest.raises(DefinitionError, match="job 'queue': give its Limit a `name`"):
        processor.register("queue", lambda ctx, data: None, limits=[Limit(1, key="tenant")])


def test_a_limit_without_a_key_and_a_name_is_that_of_the_job() -> None:
    processor = Processor("memory://")
    processor.register("hook", lambda ctx, data: None, limits=[Limit(5)], rate="10/s")
    rule = LimitRule(5, parse_rate("10/s"))
    assert processor.registry.limits == {"hook": {"job:hook": rule}}
    with pytest.raises(DefinitionError, match="two limits are for all jobs of the name"):
        processor.register(
            "call", lambda ctx, data: None, limits=[Limit(5, rate="1/s")], rate="10/s"
        )


async def test_names_of_no_job_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    processor = make_processor(
        JobSettings(name="sned", concurrency=1), keyed=(KeyedLimitSettings(name="sync:custmer"),)
    )
    async with processor:
        await processor.start()
    assert "there is no job 'sned'; did you mean 'send'?" in caplog.text
    assert "there is no limit by key 'sync:custmer'; did you mean 'sync:customer'?" in caplog.text


def test_a_misspelt_queue_is_named() -> None:
    processor = Processor("memory://", queue_limits=(QueueLimitSettings("defualt", 1),))
    processor.register(send)
    (message,) = processor.registry.find_unknown_names()
    assert message == "no job here declares the queue 'defualt'; did you mean 'default'?"
