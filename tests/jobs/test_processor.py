"""A processor says what is wrong with how it is made, and tells the operator what happens."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import ConfigurationError, DefinitionError, InvalidJob
from nimburion.core.settings import Config, QueueSettings, Settings
from nimburion.core.size_limits import SizeLimits
from nimburion.jobs import Processor, job
from nimburion.jobs.handling.middleware import Enqueueing, Next
from nimburion.jobs.outbox.outbox import Outbox
from nimburion.testing import FakeClock


@job(max_retries=1, retry_backoff=5)
async def fail() -> None:
    raise ValueError("no luck\nat all")


async def test_a_url_is_opened_as_its_backend() -> None:
    async with Processor("memory://", concurrency=3) as processor:
        assert isinstance(processor.backend, MemoryBackend)
        assert processor.settings.concurrency == 3
        await processor.enqueue(fail.job(), id="a")
        assert await processor.pending_count() == 1


async def test_a_configuration_takes_an_outbox_an_import_path_and_a_clock() -> None:
    clock, outbox = FakeClock(), Outbox("sqlite:///app.db")
    loaded = Config(jobs=Settings(url="memory://", concurrency=3))
    processor = Processor.from_config(
        loaded, outbox=outbox, import_path="shop:processor", clock=clock
    )
    assert (processor.outbox, processor.import_path) == (outbox, "shop:processor")
    assert processor.settings.concurrency == 3
    processor = Processor.from_config(loaded, clock=clock)
    processor.register(fail)
    async with processor:
        await processor.enqueue(fail.job(), id="later", after="3 days")
        assert await processor.drain(advance=True) == 2
    assert clock.now() - FakeClock().now() > 3 * 86_400


def test_a_configuration_is_no_backend() -> None:
    loaded: Any = Config(jobs=Settings(url="memory://"))
    with pytest.raises(ConfigurationError, match=r"write `Processor.from_config\(…\)`"):
        Processor(loaded)


@pytest.mark.parametrize(
    "url", ["rediss3://app:s3cret@host/0", "redis://app:s3cret@host/0?db=x", "app:s3cret@host"]
)
def test_a_url_that_names_no_backend_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Processor(url)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concurency": 3}, "did you mean 'concurrency'"),
        ({"limits": SizeLimits()}, "there is no setting 'limits'; it is now 'sizes'"),
        ({"task_routes": {}}, "there is no setting 'task_routes'; write `queue=…` on each job"),
        ({"timezone": "Europe/Rome"}, r"write `Scheduler\(processor, timezone=…\)`"),
        ({"concurrency": "three"}, "concurrency"),
        ({"session_ttl": None}, "session_ttl"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Processor(MemoryBackend(), **settings)


def test_what_cannot_wrap_a_run_is_no_middleware() -> None:
    with pytest.raises(DefinitionError, match="middleware"):
        Processor(MemoryBackend()).use(1)  # type: ignore[arg-type]


def test_what_cannot_wrap_an_enqueue_is_no_middleware() -> None:
    with pytest.raises(DefinitionError, match="middleware"):
        Processor(MemoryBackend()).use_enqueue(None)  # type: ignore[arg-type]


async def test_a_payload_that_middleware_spoils_is_refused() -> None:
    async def spoil(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> str:
        enqueueing.payload = "text"  # type: ignore[assignment]
        return await call_next(enqueueing)  # type: ignore[no-any-return]

    processor = Processor(MemoryBackend())
    processor.use_enqueue(spoil)
    async with processor:
        with pytest.raises(InvalidJob, match="payload of type str"):
            await processor.enqueue(fail.job())


async def test_failures_and_dead_letters_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    async with Processor(MemoryBackend(clock=clock), clock=clock) as processor:
        processor.register(fail)
        job_id = await processor.enqueue(fail.job())
        await processor.drain(advance=True)
    lines = [(r.levelno, r.getMessage()) for r in caplog.records if r.levelno >= logging.WARNING]
    assert [level for level, _ in lines] == [logging.WARNING, logging.ERROR]
    assert lines[0][1].startswith(
        f"job fail {job_id}: attempt 1 failed (ValueError: no luck); retrying in"
    )
    assert lines[1][1].endswith("it is a dead letter now (exhausted)")


async def test_a_worker_logs_what_it_serves(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nimburion.worker")
    served = (QueueSettings("mail"),)
    async with Processor(MemoryBackend(), queues=served, concurrency=3) as processor:
        processor.register(fail)
        await processor.start()
        await processor.stop()
    message = "\n".join(caplog.messages)
    assert "ready: concurrency 3; queues mail; jobs fail" in message
    assert "job 'fail' goes to queue 'default', which this worker does not serve" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concurrency", 0),
        ("session_ttl", float("nan")),
        ("max_lost", 0),
        ("timeout", 0),
        ("grace", -1),
        ("max_retries", -1),
        ("keep_completed", -0.5),
    ],
)
async def test_a_setting_out_of_its_range_is_refused_by_name(name: str, value: Any) -> None:
    single: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=f"'{name}' must be .*not {value!r}"):
        Processor(MemoryBackend(), **single)


async def test_a_queue_with_no_concurrency_for_a_job_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="queue 'mail' must be from 1 to 10000, not 0"):
        Processor(MemoryBackend(), queues=(QueueSettings("mail", concurrency=0),))
