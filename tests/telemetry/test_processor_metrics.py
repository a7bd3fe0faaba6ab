"""The metrics of a processor: what it counts of its jobs, its worker and its events."""

from __future__ import annotations

import pytest

from nimburion import job
from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import PermanentError
from nimburion.core.events import StaleSettlement, TickDecided
from nimburion.core.metrics.counters import MAX_LANES
from nimburion.jobs import Processor
from nimburion.telemetry.families import Family
from nimburion.testing import FakeClock


@job(name="send", queue="mail", max_retries=1)
def send(how: str) -> None:
    if how == "retry":
        raise ValueError(how)
    if how == "fail":
        raise PermanentError(how)


def read(processor: Processor, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a counter or gauge by the values of their labels."""
    return {
        tuple(sample.labels.values.values()): sample.value
        for sample in find(processor, name).samples
    }


def find(processor: Processor, name: str) -> Family:
    (family,) = [family for family in processor.metrics.collect() if family.name == name]
    return family


@pytest.fixture
def processor() -> Processor:
    processor = Processor(MemoryBackend(clock=FakeClock()), clock=FakeClock())
    processor.register(send)
    return processor


async def test_jobs_are_counted_by_queue_name_and_outcome(processor: Processor) -> None:
    async with processor:
        for how in ("ok", "ok", "retry", "fail"):
            await processor.enqueue(send.job(how))
        assert await processor.drain() == 4
        assert read(processor, "jobs_enqueued") == {("mail", "send"): 4}
        assert read(processor, "jobs_processed") == {
            ("mail", "send", "completed"): 2,
            ("mail", "send", "retried"): 1,
            ("mail", "send", "failed"): 1,
        }
        assert read(processor, "jobs_failed") == {
            ("mail", "send", "exhausted"): 0,
            ("mail", "send", "permanent"): 1,
        }
        assert read(processor, "jobs_retried") == {("mail", "send"): 1}
        (waits,) = find(processor, "jobs_wait_seconds").histograms
        assert (waits.labels.values, sum(waits.buckets)) == ({"queue": "mail"}, 4)
        (runs,) = find(processor, "jobs_duration_seconds").histograms
        assert (runs.labels.values, sum(runs.buckets)) == ({"name": "send"}, 4)


async def test_failures_have_series_before_the_first_one(processor: Processor) -> None:
    async with processor:
        await processor.enqueue(send.job("ok"))
        assert read(processor, "jobs_processed") == read(processor, "jobs_failed") == {}
        await processor.drain()
        assert read(processor, "jobs_processed") == {
            ("mail", "send", "completed"): 1,
            ("mail", "send", "retried"): 0,
            ("mail", "send", "failed"): 0,
        }
        assert set(read(processor, "jobs_failed").values()) == {0}


async def test_an_enqueue_of_an_existing_job_is_not_counted(processor: Processor) -> None:
    async with processor:
        for _ in range(2):
            await processor.enqueue(send.job("ok"), id="a")
        assert read(processor, "jobs_enqueued") == {("mail", "send"): 1}


async def test_the_sync_client_is_counted_too(processor: Processor) -> None:
    processor.sync.enqueue(send.job("ok"))
    assert read(processor, "jobs_enqueued") == {("mail", "send"): 1}
    processor.sync.close()


async def test_events_are_counted(processor: Processor) -> None:
    processor.metrics.collect()
    processor.events.emit(StaleSettlement("a"))
    processor.events.emit(TickDecided("nightly", 0.0, "fired", "a", 2.5))
    assert read(processor, "jobs_settlements_stale") == {(): 1}
    assert read(processor, "schedule_ticks") == {("nightly", "fired"): 1}
    assert read(processor, "schedule_late_seconds") == {("nightly",): 2.5}


async def test_labels_are_bounded(processor: Processor) -> None:
    for n in range(MAX_LANES + 5):
        processor._statistics.jobs.get_lane("q", f"n{n}").enqueued += 1
    samples = read(processor, "jobs_enqueued")
    assert len(samples) == MAX_LANES + 1
    assert samples["other", "other"] == 5
    assert read(processor, "metric_labels_folded") == {(): 5}


async def test_a_worker_shows_its_vitals() -> None:
    processor = Processor("memory://", concurrency=7, code_version="v8")
    processor.register(send)
    assert not [f for f in processor.metrics.collect() if f.name == "worker_slots"]
    async with processor:
        await processor.start()
        assert read(processor, "worker_slots") == {(): 7}
        assert read(processor, "worker_busy") == {(): 0}
        (versions,) = find(processor, "build").samples
        assert versions.labels.values["code_version"] == "v8"


def test_the_page_follows_the_accept_header(processor: Processor) -> None:
    text, kind = processor.metrics.render("text/plain")
    assert kind.startswith("text/plain; version=0.0.4")
    assert not text.endswith("# EOF\n")
    text, kind = processor.metrics.render(
        "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    )
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


async def test_calls_to_the_backend_are_counted() -> None:
    processor = Processor("memory://", session_ttl=1.0)
    processor.register(send)
    async with processor:
        await processor.start()
        job_id = await processor.enqueue(send.job("ok"))
        await processor.wait(job_id, timeout=20.0)
        calls = read(processor, "backend_calls")
        assert calls["enqueue", "answered"] == 1
        assert calls["exchange", "answered"] >= 2
        assert calls["exchange", "failed"] == 0
        times = {
            h.labels.values["op"]: h for h in find(processor, "backend_call_seconds").histograms
        }
        assert sum(times["enqueue"].buckets) == 1
        (jobs,) = find(processor, "exchange_jobs").histograms
        assert jobs.sum == 1
