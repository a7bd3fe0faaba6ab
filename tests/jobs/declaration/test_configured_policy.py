"""Limits and batches of single jobs that the settings set."""

from __future__ import annotations

import pytest

from nimburion.backends import open_backend
from nimburion.core.errors import ConfigurationError, DefinitionError
from nimburion.core.keyed_limits import KeyedLimit
from nimburion.core.rates import parse_rate
from nimburion.core.settings import (
    JobSettings,
    KeyedLimitSettings,
    QueueLimitSettings,
    Settings,
)
from nimburion.jobs import Limit, Processor, job


@job(concurrency=1, rate="10/s", burst=3, cost=2)
def send(to: str) -> None: ...


@job(concurrency=[Limit(1, key="customer"), Limit(2, name="smtp")])
def sync(customer: str) -> None: ...


@job(batch=10, batch_wait=1.0)
def digest(names: list[str]) -> None: ...


def make_processor(*policies: JobSettings, keyed: tuple[KeyedLimitSettings, ...] = ()) -> Processor:
    settings = Settings(policies=policies, keyed_limits=keyed)
    processor = Processor(open_backend("memory://"), settings)
    processor.register(send, sync, digest)
    return processor


def test_the_settings_win_over_the_declaration() -> None:
    registry = make_processor(
        JobSettings(name="send", concurrency=5, rate="100/min"),
        JobSettings(name="digest", batch=50),
        keyed=(
            KeyedLimitSettings(name="sync:customer", concurrency=3),
            KeyedLimitSettings(name="smtp", rate="5/s", burst=4),
        ),
    ).registry
    assert registry.limits == {"send": 5}
    assert registry.rates == {"send": parse_rate("100/min", None, cost=2)}
    assert registry.batch_sizes == {"digest": 50}
    assert registry.keyed_limits == {
        "sync": {
            "sync:customer": KeyedLimit(concurrency=3),
            "smtp": KeyedLimit(concurrency=2, rate=parse_rate("5/s", 4)),
        }
    }
    handler = registry.get("digest")
    assert handler is not None
    assert handler.policy.batch_wait == 1.0


def test_a_burst_alone_changes_the_declared_rate() -> None:
    registry = make_processor(JobSettings(name="send", burst=7)).registry
    assert registry.rates == {"send": parse_rate("10/s", 7, cost=2)}


@pytest.mark.parametrize(
    ("own", "error"),
    [
        (JobSettings(name="sync", burst=2), "'sync': `burst` needs a `rate`"),
        (JobSettings(name="send", batch=2), "'send': its handler takes one job"),
    ],
)
def test_settings_that_do_not_fit_are_refused(own: JobSettings, error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        make_processor(own)


def test_numbers_out_of_bounds_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="concurrency of 'send' in 'policies' must be"):
        Processor("memory://", policies=(JobSettings(name="send", concurrency=0),))


def test_limits_of_queues_are_among_those_of_each_job() -> None:
    limits = (
        QueueLimitSettings("mail", 10, "100/min"),
        QueueLimitSettings("slow", concurrency=1),
    )
    processor = Processor("memory://", queue_limits=limits)
    processor.register(send, sync)
    mail, slow = KeyedLimit(10, parse_rate("100/min")), KeyedLimit(1)
    of_queues = {"queue=mail": mail, "queue=slow": slow}
    assert processor.registry.keyed_limits["send"] == of_queues
    assert processor.registry.keyed_limits["sync"] == of_queues | {
        "sync:customer": KeyedLimit(1),
        "smtp": KeyedLimit(2),
    }
    assert processor.registry.describe_limits()["queue=mail"] == "10 100/min"


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


def test_a_limit_cannot_have_the_name_of_another_job() -> None:
    """A change at run time names a job or a limit, so it would change both."""
    processor = make_processor()
    with pytest.raises(DefinitionError, match="its Limit has the name of the job 'smtp'"):
        processor.register("smtp", lambda ctx, data: None)


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
