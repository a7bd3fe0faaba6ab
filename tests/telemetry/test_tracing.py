"""Spans of enqueues and attempts: names, kinds, attributes, links, and what the headers carry."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach, get_current
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from nimburion import Flow, config
from nimburion.core.errors import (
    Cancel,
    ConfigurationError,
    DuplicateJob,
    PermanentError,
    Retry,
    Snooze,
)
from nimburion.core.events import AttemptEnded, AttemptStarted
from nimburion.jobs import Context, Processor, Unique, job
from nimburion.telemetry import tracing as names
from nimburion.telemetry.tracing import Tracing, instrument
from nimburion.testing import FakeClock
from nimburion.testing.plugin import MakeProcessor

CONVENTIONS: dict[str, Any] = json.loads(
    Path(__file__).with_name("semantic_conventions.json").read_text(encoding="utf-8")
)


class Spans:
    """Collects the spans of a provider."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def named(self, prefix: str) -> list[ReadableSpan]:
        """The ended spans whose names begin so, in the order of their end."""
        return [span for span in self.all() if span.name.startswith(prefix)]

    def all(self) -> Sequence[ReadableSpan]:
        """All ended spans."""
        return self._exporter.get_finished_spans()


@pytest.fixture
def spans() -> Iterator[Spans]:
    """A provider, and the spans that it exported."""
    collected = Spans()
    yield collected
    collected.provider.shutdown()


def read(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def linked(span: ReadableSpan) -> list[int]:
    """The ids of the spans that a span links to."""
    return [link.context.span_id for link in span.links]


def span_id(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def trace_id(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id


@job(queue="mail", max_retries=2)
async def send(fault: str = "") -> str:
    """Fail as asked."""
    match fault:
        case "":
            return "sent"
        case "error":
            raise OSError("no route")
        case "permanent":
            raise PermanentError("no such address")
        case "retry":
            raise Retry("busy", after=7)
        case "snooze":
            raise Snooze(9)
        case "cancel":
            raise Cancel("not wanted")
        case "hostile":
            raise Hostile
        case _:
            await asyncio.Event().wait()
    return ""


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot be shown")


async def run(processor: Processor, fault: str = "", **options: Any) -> str:
    """Enqueue a job and run one attempt of it."""
    async with processor:
        job_id = await processor.enqueue(send.job(fault), **options)
        await processor.process_one()
    return job_id


async def test_an_enqueue_and_its_attempt_are_two_linked_spans(
    nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    processor = nimburion_processor(send)
    instrument(processor, Tracing(spans.provider))
    job_id = await run(processor, priority=7, correlation_id="request-1", tenant="acme")
    enqueue, attempt = spans.all()
    assert (enqueue.name, enqueue.kind) == ("send mail", SpanKind.PRODUCER)
    assert read(enqueue) == {
        "messaging.system": "nimburion",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "mail",
        "messaging.message.id": job_id,
        "messaging.message.conversation_id": "request-1",
        "nimburion.job.name": "send",
        "nimburion.job.priority": 7,
    }
    assert (attempt.name, attempt.kind) == ("process mail", SpanKind.CONSUMER)
    assert read(attempt) == {
        "messaging.system": "nimburion",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "mail",
        "messaging.message.id": job_id,
        "messaging.message.conversation_id": "request-1",
        "nimburion.job.name": "send",
        "nimburion.job.priority": 7,
        "nimburion.job.attempt": 1,
        "nimburion.job.failures": 0,
        "nimburion.job.lost": 0,
        "nimburion.job.wait_time": 0.0,
        "nimburion.job.outcome": "completed",
    }
    assert attempt.parent is not None
    assert attempt.parent.span_id == span_id(enqueue)
    assert linked(attempt) == [span_id(enqueue)]
    assert trace_id(attempt) == trace_id(enqueue)
    assert attempt.status.status_code is StatusCode.UNSET


async def test_an_attempt_can_be_a_trace_of_its_own(
    nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    processor = nimburion_processor(send)
    instrument(processor, Tracing(spans.provider, attempts="linked"))
    await run(processor)
    enqueue, attempt = spans.all()
    assert attempt.parent is None
    assert linked(attempt) == [span_id(enqueue)]
    assert trace_id(attempt) != trace_id(enqueue)


@pytest.mark.parametrize("traces", ["none", "nested", "linked"])
async def test_the_configuration_says_whether_and_how_jobs_are_traced(
    traces: str, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: spans.provider)
    telemetry = {"traces": traces, "span_name": "job", "trace_tenant": True}
    loaded = config.load(jobs={"url": "memory://"}, telemetry=telemetry)
    processor = Processor.from_config(loaded)
    processor.register(send)
    async with processor:
        await processor.enqueue(send.job(), tenant="acme")
        await processor.drain()
    if traces == "none":
        assert not spans.all()
        return
    enqueue, attempt = spans.all()
    assert (enqueue.name, attempt.name) == ("send send", "process send")
    assert read(attempt)["nimburion.tenant"] == "acme"
    assert (attempt.parent is not None) == (traces == "nested")


def test_traces_without_opentelemetry_are_a_wrong_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nimburion.telemetry.tracing", None)
    loaded = config.load(jobs={"url": "memory://"}, telemetry={"traces": "nested"})
    with pytest.raises(ConfigurationError, match=r"pip install 'nimburion\[opentelemetry\]'"):
        Processor.from_config(loaded)


@pytest.mark.parametrize(
    ("fault", "outcome", "error", "event"),
    [
        ("", "completed", None, None),
        ("error", "retried", "OSError", ("retry", {})),
        ("permanent", "failed", "nimburion.core.errors.PermanentError", None),
        (
            "retry",
            "retried",
            "nimburion.core.errors.Retry",
            ("retry", {"nimburion.job.delay": 7.0}),
        ),
        ("snooze", "released", None, ("snooze", {"nimburion.job.delay": 9.0})),
        ("cancel", "cancelled", None, None),
        ("hostile", "retried", f"{__name__}.Hostile", ("retry", {})),
    ],
)
async def test_the_outcome_is_on_the_span_and_the_error_type_only_on_a_failure(
    fault: str,
    outcome: str,
    error: str | None,
    event: tuple[str, dict[str, float]] | None,
    *,
    nimburion_processor: MakeProcessor,
    spans: Spans,
) -> None:
    processor = nimburion_processor(send)
    instrument(processor, Tracing(spans.provider))
    await run(processor, fault)
    (attempt,) = spans.named("process")
    assert read(attempt)["nimburion.job.outcome"] == outcome
    assert read(attempt).get("error.type") == error
    expected = StatusCode.UNSET if error is None else StatusCode.ERROR
    assert attempt.status.status_code is expected
    events = [(one.name, dict(one.attributes or {})) for one in attempt.events]
    assert [one for one in events if one[0] != "exception"] == ([event] if event else [])
    has_exception = error is not None and fault != "hostile"
    assert ("exception" in dict(events)) == has_exception


async def test_a_timeout_has_a_short_error_type(
    nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    processor = nimburion_processor(send)
    instrument(processor, Tracing(spans.provider))
    await run(processor, "endless", timeout=0.01)
    (attempt,) = spans.named("process")
    assert read(attempt)["error.type"] == "timeout"
    assert read(attempt)["nimburion.job.outcome"] == "retried"


@pytest.mark.parametrize(
    ("fault", "outcome", "error"),
    [
        ("", "completed", None),
        ("error", None, "OSError"),
        ("snooze", "released", None),
        ("cancel", "cancelled", None),
    ],
)
async def test_the_middleware_alone_tells_what_the_exception_decides(
    fault: str,
    outcome: str | None,
    error: str | None,
    nimburion_processor: MakeProcessor,
    spans: Spans,
) -> None:
    processor = nimburion_processor(send)
    tracing = Tracing(spans.provider)
    processor.use(tracing.attempt)
    processor.use_enqueue(tracing.enqueue)
    await run(processor, fault)
    (attempt,) = spans.named("process")
    assert read(attempt).get("nimburion.job.outcome") == outcome
    assert read(attempt).get("error.type") == error
    assert attempt.status.is_ok == (error is None)


async def test_retries_in_one_process_link_to_the_previous_attempt(
    nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    processor = nimburion_processor(send)
    tracing = instrument(processor, Tracing(spans.provider))
    async with processor:
        await processor.enqueue(send.job("error"))
        assert await processor.drain(advance=True) == 3
    (enqueue,) = spans.named("send")
    first, second, third = spans.named("process")
    assert linked(first) == [span_id(enqueue)]
    assert linked(second) == [span_id(enqueue), span_id(first)]
    assert linked(third) == [span_id(enqueue), span_id(second)]
    assert len({trace_id(span) for span in (enqueue, first, second, third)}) == 1
    assert [read(span)["nimburion.job.attempt"] for span in (first, second, third)] == [1, 2, 3]
    assert read(third)["nimburion.job.outcome"] == "failed"
    assert not tracing._previous
    assert not tracing._observed


async def test_links_between_retries_can_be_off_and_are_bounded(
    nimburion_processor: MakeProcessor, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = nimburion_processor(send)
    tracing = instrument(processor, Tracing(spans.provider, link_retries=False))
    async with processor:
        await processor.enqueue(send.job("error"))
        await processor.drain(advance=True)
    assert [len(span.links) for span in spans.named("process")] == [1, 1, 1]
    monkeypatch.setattr(names, "MAX_RETRIES_REMEMBERED", 5)
    processor = nimburion_processor(send)
    tracing = instrument(processor, Tracing(spans.provider))
    async with processor:
        for _ in range(8):
            await processor.enqueue(send.job("error"))
        await processor.drain()
    assert len(tracing._previous) == 5


async def test_what_is_opted_into_appears(nimburion_processor: MakeProcessor, spans: Spans) -> None:
    seen: list[object] = []

    @job(queue="tenant-17")
    async def look() -> None:
        seen.append(baggage.get_baggage("plan"))

    processor = nimburion_processor(look)
    tracing = Tracing(
        spans.provider,
        baggage=True,
        tenant=True,
        queue_template=lambda queue: "tenant-{id}" if queue.startswith("tenant-") else queue,
    )
    instrument(processor, tracing)
    token = attach(baggage.set_baggage("plan", "gold"))
    async with processor:
        job_id = await processor.enqueue(look.job(), tenant="17", after=3)
        headers = (await processor.get_status(job_id)).headers
        detach(token)
        await processor.drain(advance=True)
    assert headers["baggage"] == "plan=gold"
    assert seen == ["gold"]
    enqueue, attempt = spans.all()
    assert (enqueue.name, attempt.name) == ("send tenant-{id}", "process tenant-{id}")
    for span in (enqueue, attempt):
        assert read(span)["messaging.destination.name"] == "tenant-17"
        assert read(span)["messaging.destination.template"] == "tenant-{id}"
        assert read(span)["nimburion.tenant"] == "17"
    assert read(enqueue)["nimburion.job.delay"] == 3


async def test_a_span_can_be_named_after_the_job(
    nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    processor = nimburion_processor(send)
    instrument(processor, Tracing(spans.provider, span_name="job"))
    await run(processor)
    assert [span.name for span in spans.all()] == ["send send", "process send"]
    with pytest.raises(ConfigurationError, match="span_name"):
        Tracing(span_name="queues")  # type: ignore[arg-type]


async def test_a_context_in_the_headers_is_not_changed(
    nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    own = "00-11111111111111111111111111111111-2222222222222222-03"
    processor = nimburion_processor(send)
    instrument(processor, Tracing(spans.provider))
    async with processor:
        job_id = await processor.enqueue(send.job(), headers={"traceparent": own})
        assert (await processor.get_status(job_id)).headers == {"traceparent": own}
        await processor.drain()
    enqueue, attempt = spans.all()
    assert enqueue.kind is SpanKind.CLIENT
    assert linked(enqueue) == linked(attempt) == [0x2222222222222222]


async def test_the_trace_of_the_web_request_goes_on_with_the_span_of_the_enqueue(
    nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    """An integration adds the `traceparent` of the request, of which an instrumented application
    has a span."""
    processor = nimburion_processor(send)
    instrument(processor, Tracing(spans.provider))
    async with processor:
        with spans.provider.get_tracer("web").start_as_current_span("GET /") as request:
            trace = f"{request.get_span_context().trace_id:032x}"
            parent = f"00-{trace}-2222222222222222-01"
            await processor.enqueue(send.job(), headers={"traceparent": parent})
        await processor.drain()
    enqueue, _, attempt = spans.all()
    assert enqueue.kind is SpanKind.PRODUCER
    assert linked(enqueue) == []
    assert linked(attempt) == [span_id(enqueue)]


@pytest.mark.parametrize("wrong", ["", "no trace", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
async def test_a_header_that_is_no_context_is_ignored(
    wrong: str, nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    processor = nimburion_processor(send)
    instrument(processor, Tracing(spans.provider))
    await run(processor, headers={"traceparent": wrong})
    enqueue, attempt = spans.all()
    assert enqueue.kind is SpanKind.PRODUCER
    assert linked(attempt) == [span_id(enqueue)]


async def test_an_enqueue_that_fails_says_why(
    nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    processor = nimburion_processor(send)
    instrument(processor, Tracing(spans.provider))
    async with processor:
        first = await processor.enqueue(send.job(), unique_key="a")
        with pytest.raises(DuplicateJob):
            await processor.enqueue(send.job(), unique_key="a")
        await processor.enqueue(send.job(), unique_key="a", unique=Unique(on_duplicate="existing"))
    stored, refused, existing = spans.named("send")
    assert read(refused)["error.type"] == "nimburion.core.errors.DuplicateJob"
    assert refused.status.status_code is StatusCode.ERROR
    assert read(existing)["messaging.message.id"] == read(stored)["messaging.message.id"] == first


async def test_each_job_of_a_batch_has_its_own_context(
    nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    processor = nimburion_processor(send)
    instrument(processor, Tracing(spans.provider))
    async with processor:
        ids = await processor.enqueue_many([send.job(), send.job(), send.job()])
        await processor.drain()
    created = {read(span)["messaging.message.id"]: span_id(span) for span in spans.named("send")}
    assert list(created) == ids
    for attempt in spans.named("process"):
        assert linked(attempt) == [created[read(attempt)["messaging.message.id"]]]


async def test_what_handlers_do_is_below_the_span_of_the_attempt(
    nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    tracer = spans.provider.get_tracer("application")

    @job
    def in_a_thread() -> None:
        with tracer.start_as_current_span("inner"):
            pass

    @job
    async def outer() -> None:
        await processor.enqueue(in_a_thread.job())

    processor = nimburion_processor(in_a_thread, outer)
    instrument(processor, Tracing(spans.provider))
    before = get_current()
    async with processor:
        await processor.enqueue(outer.job())
        await processor.drain()
    assert get_current() == before
    parent_of_inner = spans.named("inner")[0].parent
    parent_of_enqueue = spans.named("send")[1].parent
    assert parent_of_inner is not None
    assert parent_of_enqueue is not None
    outer_attempt, thread_attempt = spans.named("process")
    assert parent_of_enqueue.span_id == span_id(outer_attempt)
    assert parent_of_inner.span_id == span_id(thread_attempt)


async def test_a_span_around_the_worker_is_a_link_and_no_parent(
    nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    processor = nimburion_processor(send)
    instrument(processor, Tracing(spans.provider))
    async with processor:
        await processor.enqueue(send.job())
        with spans.provider.get_tracer("test").start_as_current_span("around"):
            await processor.drain()
    (around,), (attempt,) = spans.named("around"), spans.named("process")
    assert attempt.parent is not None
    assert attempt.parent.span_id == span_id(spans.named("send")[0])
    assert linked(attempt)[-1] == span_id(around)


async def test_a_middleware_that_skips_the_attempt_leaves_nothing_behind(
    nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    async def skip(_ctx: object, _call_next: object) -> None:
        return None

    processor = nimburion_processor(send)
    processor.use(skip)
    tracing = instrument(processor, Tracing(spans.provider))
    await run(processor)
    assert spans.named("process") == []
    assert not tracing._observed


async def test_an_attempt_that_lost_its_lease_says_so(
    nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    processor = nimburion_processor(send)
    tracing = Tracing(spans.provider)

    async def lose(ctx: Context, call_next: Any) -> None:
        tracing.observe(AttemptStarted(ctx.job_id, ctx.name, ctx.queue, ctx.attempt, 2.5))
        await tracing.attempt(ctx, call_next)
        assert spans.named("process") == []  # the outcome is not decided yet
        tracing.observe(AttemptEnded(ctx.job_id, ctx.name, ctx.queue, ctx.attempt, "lost", 0.1))

    processor.use(lose)
    await run(processor)
    (attempt,) = spans.named("process")
    assert read(attempt)["nimburion.job.outcome"] == "lost"
    assert read(attempt)["error.type"] == "lease_lost"
    assert read(attempt)["nimburion.job.wait_time"] == 2.5


async def test_a_worker_names_its_session(spans: Spans) -> None:
    processor = Processor("memory://")
    processor.register(send)
    instrument(processor, Tracing(spans.provider))
    async with processor:
        job_id = await processor.enqueue(send.job())
        await processor.start()
        await processor.wait(job_id, 20)
        (session,) = await processor.backend.reads.list_sessions()
    (attempt,) = spans.named("process")
    assert read(attempt)["nimburion.session.id"] == session.id


async def test_without_an_sdk_nothing_is_recorded(
    nimburion_processor: MakeProcessor, nimburion_clock: FakeClock
) -> None:
    processor = nimburion_processor(send)
    instrument(processor, Tracing(trace.NoOpTracerProvider()))
    async with processor:
        job_id = await processor.enqueue(send.job("error"))
        assert (await processor.get_status(job_id)).headers == {}
        assert await processor.drain(advance=True) == 3


# The conventions

TYPES = {"string": str, "int": int}
OURS = {
    value
    for name, value in vars(names).items()
    if name.isupper() and isinstance(value, str) and value.startswith("nimburion.")
}


async def test_attributes_are_those_of_the_conventions(
    nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    processor = nimburion_processor(send)
    instrument(processor, Tracing(spans.provider, tenant=True, queue_template=lambda _queue: "any"))
    async with processor:
        for fault in ("", "error", "cancel"):
            await processor.enqueue(send.job(fault), tenant="a", correlation_id="b", after=1)
        own = {"traceparent": "00-11111111111111111111111111111111-2222222222222222-01"}
        await processor.enqueue(send.job(), headers=own)
        await processor.drain(advance=True)
    used: set[str] = set()
    for span in spans.all():
        operation = read(span)["messaging.operation.type"]
        kind = span.kind.name.lower()
        convention = CONVENTIONS["spans"][f"messaging.{operation}.{kind}"]
        assert convention["kind"] == kind
        assert operation in CONVENTIONS["operation_types"]
        assert set(convention["required"]) <= read(span).keys()
        for name, value in read(span).items():
            if name in OURS:
                continue
            assert name in convention["attributes"]
            assert isinstance(value, TYPES[CONVENTIONS["attributes"][name]])
            used.add(name)
    assert used == set(CONVENTIONS["attributes"])
    assert names.SCHEMA_URL.endswith(CONVENTIONS["version"].removeprefix("v"))
    assert {
        span.instrumentation_scope.schema_url for span in spans.all() if span.instrumentation_scope
    } == {names.SCHEMA_URL}


# Across processes

WORKER = """
import asyncio, sys
from pathlib import Path
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from nimburion.jobs import Processor, job
from nimburion.telemetry.tracing import Tracing, instrument

database, target, parent = sys.argv[1:]
provider = TracerProvider()
spans = open(target, "a")
provider.add_span_processor(SimpleSpanProcessor(
    ConsoleSpanExporter(out=spans, formatter=lambda span: span.to_json(indent=None) + "\\n")
))

@job(queue="mail", retry_backoff=0)
async def deliver(to: str) -> None:
    if not Path(target).exists() or Path(target).stat().st_size == 0:
        raise ConnectionError("refused")

async def main():
    processor = Processor(database)
    processor.register(deliver)
    instrument(processor, Tracing(provider, attempts=parent))
    async with processor:
        assert await processor.process_one()

asyncio.run(main())
"""


def run_worker(*arguments: str) -> None:
    """Run one attempt in another process."""
    result = subprocess.run(
        [sys.executable, "-c", WORKER, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("parent", ["nested", "linked"])
async def test_one_trace_from_a_request_through_a_failed_attempt_to_the_retry_in_another_process(
    parent: str, tmp_path: Path, spans: Spans
) -> None:
    database, target = f"sqlite:///{tmp_path}/jobs.db", str(tmp_path / "spans.jsonl")
    processor = Processor(database)
    instrument(processor, Tracing(spans.provider))
    server = spans.provider.get_tracer("server")
    async with processor:
        with server.start_as_current_span("POST /orders", kind=SpanKind.SERVER):
            job_id = await processor.enqueue_raw("deliver", {"to": "ann"}, queue="mail")
    for _attempt in range(2):
        await asyncio.to_thread(run_worker, database, target, parent)
    async with processor:
        assert (await processor.get_status(job_id)).state == "completed"

    enqueue, request = spans.all()
    assert enqueue.parent is not None
    assert enqueue.parent.span_id == span_id(request)
    attempts = read_lines(Path(target))
    assert [one["attributes"]["nimburion.job.outcome"] for one in attempts] == [
        "retried",
        "completed",
    ]
    creation = {"trace_id": f"0x{trace_id(enqueue):032x}", "span_id": f"0x{span_id(enqueue):016x}"}
    for number, attempt in enumerate(attempts, 1):
        assert attempt["name"] == "process mail"
        assert attempt["attributes"]["nimburion.job.attempt"] == number
        assert creation.items() <= attempt["links"][0]["context"].items()
        if parent == "nested":
            assert attempt["parent_id"] == creation["span_id"]
            assert attempt["context"]["trace_id"] == creation["trace_id"]
        else:
            assert attempt["parent_id"] is None


# Not used, not paid

PROBE = """
import sys, nimburion
from nimburion.jobs import Processor, job
import nimburion.cli, nimburion.cli.commands.worker, nimburion.scheduler, nimburion.telemetry
import nimburion.telemetry.logs, nimburion.telemetry.registry
Processor("memory://")
print([name for name in sys.modules if name.partition(".")[0] == "opentelemetry"])
"""


def test_opentelemetry_is_not_imported_until_it_is_used() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


async def test_a_sampled_attempt_is_the_exemplar_of_its_bucket(
    nimburion_processor: MakeProcessor, spans: Spans
) -> None:
    processor = nimburion_processor(send)
    instrument(processor, Tracing(spans.provider))
    job_id = await run(processor)
    attempt = spans.all()[-1]
    text, _ = processor.metrics.render("application/openmetrics-text")
    (line,) = [one for one in text.splitlines() if "} 1 # {" in one]
    assert line.startswith('nimburion_jobs_duration_seconds_bucket{name="send"')
    assert f'trace_id="{trace_id(attempt):032x}",job_id="{job_id}"' in line
    assert " # " not in processor.metrics.render()[0]


async def test_an_attempt_that_is_not_sampled_is_no_exemplar(
    nimburion_processor: MakeProcessor,
) -> None:
    processor = nimburion_processor(send)
    instrument(processor, Tracing(TracerProvider(sampler=ALWAYS_OFF)))
    await run(processor)
    text, _ = processor.metrics.render("application/openmetrics-text")
    assert 'nimburion_jobs_duration_seconds_bucket{name="send"' in text
    assert " # " not in text


@pytest.mark.parametrize("is_in_request", [False, True])
async def test_a_flow_is_one_trace(
    spans: Spans, nimburion_processor: MakeProcessor, is_in_request: bool
) -> None:
    processor = nimburion_processor(send)
    instrument(processor, Tracing(spans.provider))
    flow = Flow("mails", on_success=send.job())
    flow.add(send.job(), depends_on=flow.add_all([send.job() for _ in range(3)], name="parts"))
    tracer = spans.provider.get_tracer("test")
    async with processor:
        with tracer.start_as_current_span("request") if is_in_request else nullcontext():
            await processor.enqueue_flow(flow, id="f")
        await processor.drain()
    sent, ran = spans.named("send"), spans.named("process")
    assert (len(sent), len(ran)) == (5, 5)
    assert len({trace_id(span) for span in spans.all()}) == 1
    assert {read(span)[names.FLOW_ID] for span in sent} == {"f"}


async def test_another_flow_is_another_trace(
    spans: Spans, nimburion_processor: MakeProcessor
) -> None:
    processor = nimburion_processor(send)
    instrument(processor, Tracing(spans.provider))
    async with processor:
        for flow_id in ("f", "g"):
            flow = Flow("mails")
            flow.add_all([send.job(), send.job()], name="parts")
            await processor.enqueue_flow(flow, id=flow_id)
    traces = {read(span)[names.FLOW_ID]: trace_id(span) for span in spans.named("send")}
    assert len(set(traces.values())) == 2
    assert len({trace_id(span) for span in spans.all()}) == 2
