"""What a handler can use is the same on the event loop, in a thread and in a child process."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator

import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from nimburion.core.job import State
from nimburion.jobs import Processor
from nimburion.telemetry.tracing import Tracing, instrument
from tests.jobs.worker.everywhere import make_processor
from tests.waiting import wait_until_finished


@pytest.fixture
async def processor() -> AsyncIterator[Processor]:
    processor = make_processor()
    yield processor
    await processor.stop(0.0)
    await processor.close()


@pytest.mark.parametrize(
    ("name", "in_worker", "on_main_thread"),
    [
        ("on_loop", True, True),
        ("in_thread", True, False),
        ("in_child", False, True),
        ("async_in_child", False, True),
    ],
)
async def test_traces_results_progress_logs_context_and_lifespan_work_where_a_handler_runs(
    name: str,
    in_worker: bool,
    on_main_thread: bool,
    processor: Processor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrument(processor, Tracing(provider))
    await processor.start()
    job_id = await processor.enqueue_raw(
        name, b"{}", tenant="acme", correlation_id="c1", headers={"own": "1"}, timeout=60
    )
    record = await wait_until_finished(processor, job_id)
    assert record.state is State.COMPLETED, record.error

    facts = msgspec.json.decode(record.result or b"null")
    follow_up = await wait_until_finished(processor, facts.pop("enqueued"))
    assert (follow_up.state, follow_up.result) == (State.COMPLETED, b'"acme"')
    process = facts.pop("process")
    assert (process == os.getpid()) is in_worker
    (attempt,) = [
        span
        for span in exporter.get_finished_spans()
        if span.name.startswith("process")
        and (span.attributes or {})["messaging.message.id"] == job_id
    ]
    assert attempt.context is not None
    assert facts == {
        "on_main_thread": on_main_thread,
        "lifespan_in": process,
        "hooked": True,
        "trace": format(attempt.context.trace_id, "032x"),
        "is_current": True,
        "job_id": job_id,
        "attempt": 1,
        "tenant": "acme",
        "correlation_id": "c1",
        "own_header": "1",
        "has_deadline": True,
        "cancelled": False,
        "variable": "",
    }
    assert record.progress is not None
    assert (record.progress.fraction, record.progress.message) == (0.5, "half")
    [logged] = [each for each in caplog.records if each.getMessage() == f"seen by {name}"]
    assert (logged.levelno, logged.name) == (logging.WARNING, "nimburion.job")
    assert (logged.__dict__["number"], logged.__dict__["job_id"]) == (17, job_id)


@pytest.mark.parametrize("name", ["on_loop", "in_thread", "in_child", "async_in_child"])
async def test_no_handler_sees_the_context_variables_of_another(name: str) -> None:
    """Also not the next job of a slot, which starts where the one before it has ended."""
    async with make_processor(concurrency=1) as processor:
        ids = [await processor.enqueue_raw(name, b"{}") for _ in range(4)]
        await processor.start()
        records = [await wait_until_finished(processor, job_id) for job_id in ids]
        await processor.stop(0.0)
    facts = [msgspec.json.decode(record.result or b"null") for record in records]
    assert [each["variable"] for each in facts] == [""] * 4
