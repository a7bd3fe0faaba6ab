"""Traces of jobs in OpenTelemetry, by its conventions for messaging.

Needs the extra `opentelemetry`. The application brings the SDK and the exporter.

```python
from nimburion.telemetry.tracing import instrument

instrument(processor)
```

A processor that is made from the configuration does so by itself with `telemetry.traces: nested`.

An enqueue is a span `send {queue}`, and each attempt a span `process {queue}` below it. The headers
`traceparent` and `tracestate` of the job carry the context of the first to the second.

The conventions: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/. They have
no names for background jobs, so what is not in them is named `nimburion.*`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Protocol

from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, attach, get_current
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from nimburion.core.errors import Cancel, ConfigurationError, RateLimitExceeded, Retry, Snooze
from nimburion.core.events import AttemptEnded, AttemptStarted, Event, Events, SessionOpened
from nimburion.core.text.shortening import shorten
from nimburion.core.timing.durations import to_seconds
from nimburion.core.version import __version__
from nimburion.telemetry.logs import LoggedAttempt
from nimburion.telemetry.registry import MetricsRegistry

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

_log = logging.getLogger("nimburion.telemetry")

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the conventions that the attribute names follow."""

SYSTEM = "messaging.system"
OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION_NAME = "messaging.destination.name"
DESTINATION_TEMPLATE = "messaging.destination.template"
MESSAGE_ID = "messaging.message.id"
CONVERSATION_ID = "messaging.message.conversation_id"
ERROR_TYPE = "error.type"

JOB_NAME = "nimburion.job.name"
JOB_PRIORITY = "nimburion.job.priority"
JOB_DELAY = "nimburion.job.delay"
JOB_ATTEMPT = "nimburion.job.attempt"
JOB_FAILURES = "nimburion.job.failures"
JOB_LOST = "nimburion.job.lost"
JOB_WAIT_TIME = "nimburion.job.wait_time"
JOB_OUTCOME = "nimburion.job.outcome"
FLOW_ID = "nimburion.flow.id"
SCHEDULE_NAME = "nimburion.schedule.name"
SESSION_ID = "nimburion.session.id"
TENANT = "nimburion.tenant"

MAX_RETRIES_REMEMBERED = 10_000
"""The maximum number of jobs whose last attempt is remembered, to link the next one to it."""

MAX_FLOWS_REMEMBERED = 1_000
"""The maximum number of flows whose first span is remembered, to make the others its children."""

_TRACEPARENT = "traceparent"
_SCHEDULE_HEADER = "nimburion-schedule"
_OTHER_ERROR = "_OTHER"
_MAX_MESSAGE = 500

_Attributes = dict[str, str | int | float]
_CallNext = Callable[[Any], Awaitable[Any]]
_Middleware = Callable[[Any, _CallNext], Awaitable[Any]]


class TracedAttempt(LoggedAttempt, Protocol):
    """The part of an attempt's context that is traced."""

    @property
    def failures(self) -> int:
        """The number of earlier attempts that failed."""
        ...

    @property
    def lost(self) -> int:
        """The number of earlier attempts that lost their worker."""
        ...

    @property
    def priority(self) -> int:
        """The job's priority."""
        ...

    @property
    def headers(self) -> dict[str, str]:
        """The headers that the job was enqueued with."""
        ...


class TracedOptions(Protocol):
    """The part of the options of a new job that is traced."""

    @property
    def flow(self) -> str | None:
        """The flow to which the job belongs."""
        ...

    @property
    def tenant(self) -> str | None:
        """The tenant of the job."""
        ...

    @property
    def correlation_id(self) -> str | None:
        """The correlation id of the job."""
        ...


class TracedEnqueue(Protocol):
    """The part of a job that is being enqueued that is traced."""

    @property
    def id(self) -> str:
        """The job's id."""
        ...

    @property
    def name(self) -> str:
        """The job's name."""
        ...

    @property
    def queue(self) -> str:
        """The job's queue."""
        ...

    @property
    def priority(self) -> int:
        """The job's priority."""
        ...

    @property
    def at(self) -> float | None:
        """The due time in epoch seconds."""
        ...

    @property
    def after(self) -> float:
        """The delay in seconds."""
        ...

    @property
    def options(self) -> TracedOptions:
        """The options of the job."""
        ...

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the job."""
        ...

    def add_headers(self, **headers: str) -> None:
        """Add headers to the job."""
        ...


_MAX_EXEMPLAR_ID = 80
"""Characters: the names and values of an exemplar's labels have at most 128 together."""


class Instrumentable(Protocol):
    """The part of a processor that `instrument` uses."""

    @property
    def events(self) -> Events:
        """The events of the processor."""
        ...

    @property
    def metrics(self) -> MetricsRegistry:
        """The metrics of the processor."""
        ...

    def use(self, middleware: _Middleware, /) -> None:
        """Add a middleware around every attempt."""
        ...

    def use_enqueue(self, middleware: _Middleware, /) -> None:
        """Add a middleware around every enqueue."""
        ...


class _Attempt:
    """The span of a running attempt, and what is known about its end."""

    __slots__ = ("ambient", "ending", "job_id", "span", "waited")

    def __init__(self, job_id: str, waited: float | None = None) -> None:
        self.job_id: str = job_id
        self.waited: float | None = waited
        self.span: Span | None = None
        self.ambient: Context | None = None
        """The OpenTelemetry context before the attempt."""
        self.ending: _Ending | None = None
        """How the handler raised; None if it returned."""


class _Ending:
    """How a handler raised. It does not keep the exception, whose traceback has many references."""

    __slots__ = ("delay", "error_type", "is_cancellation", "message", "outcome")

    def __init__(self, error: BaseException) -> None:
        self.error_type: str = _name_error(error)
        self.message: str = ""
        self.is_cancellation: bool = isinstance(error, asyncio.CancelledError)
        self.delay: float | None = None
        """Seconds until the next attempt, if the handler set them."""
        self.outcome: str | None = None
        """The outcome, if the exception alone decides it."""
        if isinstance(error, Snooze):
            self.outcome, self.delay = "released", _read_seconds(error, "after")
        elif isinstance(error, RateLimitExceeded):
            self.outcome, self.delay = "released", _read_seconds(error, "retry_after")
        elif isinstance(error, Cancel):
            self.outcome = "cancelled"
        elif isinstance(error, Retry):
            self.delay = _read_seconds(error, "after")

    @property
    def is_failure(self) -> bool:
        """Whether the exception is a failure, as far as it can tell."""
        return self.outcome is None and not self.is_cancellation


class Tracing:
    """Makes the spans of jobs. Use one for each processor; `instrument` installs it.

    Args:
        tracer_provider: where the spans go; None: the global provider.
        span_name: what stands behind `send` and `process` in the name of a span: the queue, as the
            conventions ask, or the name of the job.
        attempts: `nested` makes the span of the enqueue the parent of each attempt, so that all are
            one trace. `linked` begins a trace for each attempt. Both link to that span.
        link_retries: link an attempt to the previous one, if that ran in this process.
        baggage: carry the baggage from the enqueue to the attempts, in the header `baggage`.
        tenant: set the attribute `nimburion.tenant`.
        record_exceptions: add the exceptions of handlers to their spans, with their tracebacks.
        queue_template: returns the low-cardinality form of a queue's name, for queues whose names
            are made from customers or the like.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        *,
        span_name: Literal["queue", "job"] = "queue",
        attempts: Literal["nested", "linked"] = "nested",
        link_retries: bool = True,
        baggage: bool = False,
        tenant: bool = False,
        record_exceptions: bool = True,
        queue_template: Callable[[str], str] | None = None,
    ) -> None:
        if span_name not in {"queue", "job"}:
            raise ConfigurationError(f"span_name must be 'queue' or 'job', not {span_name!r}")
        if attempts not in {"nested", "linked"}:
            raise ConfigurationError(f"attempts must be 'nested' or 'linked', not {attempts!r}")
        self._tracer = trace.get_tracer(
            "nimburion", __version__, tracer_provider, schema_url=SCHEMA_URL
        )
        self._names_by_job = span_name == "job"
        self._nests_attempts = attempts == "nested"
        self._link_retries = link_retries
        self._baggage = W3CBaggagePropagator() if baggage else None
        self._shows_tenant = tenant
        self._records_exceptions = record_exceptions
        self._queue_template = queue_template
        self._trace_context = TraceContextTextMapPropagator()
        self._observed: dict[tuple[str, int], _Attempt] = {}
        """Attempts whose start was observed. Their spans end with the event of their end."""
        self._previous: OrderedDict[str, SpanContext] = OrderedDict()
        """By job id: the span of the last attempt here, if another one follows."""
        self._flows: OrderedDict[str, SpanContext] = OrderedDict()
        """By id: the span of the first job of a flow that was enqueued without a current span."""
        self._session_id: str | None = None

    # Enqueue

    async def enqueue(self, enqueueing: TracedEnqueue, call_next: _CallNext) -> Any:  # noqa: ANN401
        """Enqueue middleware: make the span `send {queue}` and add its context to the headers.

        Headers that already have a `traceparent` of another trace are not changed; the span then
        links to it. One of the same trace is that of the web request, and is replaced.
        """
        custom = self._extract_link(enqueueing.headers)
        here = trace.get_current_span().get_span_context()
        if custom is not None and here.is_valid and custom.context.trace_id == here.trace_id:
            custom = None
        flow = enqueueing.options.flow
        with self._tracer.start_as_current_span(
            self._name_span("send", enqueueing.queue, enqueueing.name),
            context=None if flow is None or here.is_valid else self._find_flow_context(flow),
            kind=SpanKind.PRODUCER if custom is None else SpanKind.CLIENT,
            attributes=self._describe_enqueue(enqueueing),
            links=() if custom is None else (custom,),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            if flow is not None:
                self._remember_flow(flow, span.get_span_context())
            if custom is None:
                enqueueing.add_headers(**self._inject())
            try:
                job_id = await call_next(enqueueing)
            except Exception as error:
                self._record_exception(span, error)
                _set_error(span, _name_error(error), _read_message(error))
                raise
            if job_id != enqueueing.id:  # a job with the unique key existed
                span.set_attribute(MESSAGE_ID, str(job_id))
            return job_id

    def _find_flow_context(self, flow: str) -> Context | None:
        """Return the context of the first job of a flow, so that a flow is one trace; None: the job
        is the first one.
        """
        first = self._flows.get(flow)
        return None if first is None else trace.set_span_in_context(NonRecordingSpan(first))

    def _remember_flow(self, flow: str, first: SpanContext) -> None:
        self._flows.setdefault(flow, first)
        if len(self._flows) > MAX_FLOWS_REMEMBERED:
            self._flows.popitem(last=False)

    def _inject(self) -> dict[str, str]:
        """Return the headers of the current context."""
        headers: dict[str, str] = {}
        self._trace_context.inject(headers)
        if self._baggage is not None:
            self._baggage.inject(headers)
        return headers

    def _describe_enqueue(self, enqueueing: TracedEnqueue) -> _Attributes:
        attributes = self._describe_message("send", enqueueing.queue, enqueueing.id)
        attributes[JOB_NAME] = enqueueing.name
        if enqueueing.options.flow is not None:
            attributes[FLOW_ID] = enqueueing.options.flow
        attributes[JOB_PRIORITY] = enqueueing.priority
        at = enqueueing.at
        delay = enqueueing.after if at is None else at - time.time()
        if delay > 0:
            attributes[JOB_DELAY] = delay
        self._add_origin(attributes, enqueueing.options, enqueueing.headers)
        return attributes

    # Attempts

    async def attempt(self, ctx: TracedAttempt, call_next: _CallNext) -> Any:  # noqa: ANN401
        """Attempt middleware: make the span `process {queue}` around the handler.

        With `instrument`, the span ends when the outcome is decided, and tells it. Otherwise it
        ends with the handler, and tells only what follows from its exception.
        """
        observed = self._observed.get((ctx.job_id, ctx.attempt))
        attempt = observed or _Attempt(ctx.job_id)
        attempt.ambient = get_current()
        parent = self._find_parent(ctx.headers)
        attempt.span = self._start_span(ctx, attempt, parent)
        attach(trace.set_span_in_context(attempt.span, parent))
        try:
            return await call_next(ctx)
        except BaseException as error:
            attempt.ending = _Ending(error)
            if isinstance(error, Exception) and attempt.ending.is_failure:
                attempt.ending.message = _read_message(error)
                self._record_exception(attempt.span, error)
            raise
        finally:
            if observed is None:
                self._end(attempt, _guess_outcome(attempt.ending), None)

    def observe(self, event: Event) -> None:
        """Take note of an event of the processor; `instrument` subscribes this method."""
        match event:
            case AttemptStarted(job_id=job_id, attempt=number, waited=waited):
                self._observed[job_id, number] = _Attempt(job_id, waited)
            case AttemptEnded(job_id=job_id, attempt=number, outcome=outcome, error=error):
                attempt = self._observed.pop((job_id, number), None)
                if attempt is not None:
                    self._end(attempt, outcome, error)
            case SessionOpened(session_id=session_id):
                self._session_id = session_id

    def read_exemplar(self, job_id: str, attempt: int) -> Mapping[str, str] | None:
        """Return the labels that link a metric to the trace of a running attempt.

        None if the attempt is not traced, or its span is not sampled.
        """
        observed = self._observed.get((job_id, attempt))
        span = None if observed is None else observed.span
        if span is None or not span.get_span_context().trace_flags.sampled:
            return None
        labels = {"trace_id": trace.format_trace_id(span.get_span_context().trace_id)}
        if len(job_id) <= _MAX_EXEMPLAR_ID:
            labels["job_id"] = job_id
        return labels

    def _find_parent(self, headers: Mapping[str, str]) -> Context:
        """Return the context in which an attempt starts: that of the enqueue, or an empty one. What
        is current in a worker is what was current when the worker was started."""
        context = Context()
        if self._nests_attempts:
            context = self._trace_context.extract(headers, context)
        if self._baggage is not None:
            context = self._baggage.extract(headers, context)
        return context

    def _start_span(self, ctx: TracedAttempt, attempt: _Attempt, parent: Context) -> Span:
        attributes = self._describe_message("process", ctx.queue, ctx.job_id)
        attributes[JOB_NAME] = ctx.name
        attributes[JOB_PRIORITY] = ctx.priority
        attributes[JOB_ATTEMPT] = ctx.attempt
        attributes[JOB_FAILURES] = ctx.failures
        attributes[JOB_LOST] = ctx.lost
        if attempt.waited is not None:
            attributes[JOB_WAIT_TIME] = attempt.waited
        if self._session_id is not None:
            attributes[SESSION_ID] = self._session_id
        self._add_origin(attributes, ctx, ctx.headers)
        return self._tracer.start_span(
            self._name_span("process", ctx.queue, ctx.name),
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=self._collect_links(ctx, attempt),
        )

    def _collect_links(self, ctx: TracedAttempt, attempt: _Attempt) -> list[Link]:
        """Return links to the enqueue, to the previous attempt, and to a span that is active around
        the worker, such as that of a test which runs one job."""
        links = []
        creation = self._extract_link(ctx.headers)
        if creation is not None:
            links.append(creation)
        previous = self._previous.get(ctx.job_id)
        if previous is not None:
            links.append(Link(previous, {JOB_ATTEMPT: max(1, ctx.attempt - 1)}))
        ambient = trace.get_current_span(attempt.ambient)
        if ambient.is_recording():
            links.append(Link(ambient.get_span_context()))
        return links

    def _end(self, attempt: _Attempt, outcome: str | None, error: str | None) -> None:
        """End the span of an attempt. `error` is the name of its error's class, from the event."""
        span, ending = attempt.span, attempt.ending
        if span is None:  # another middleware did not call the next one
            return
        if attempt.ambient is not None:
            attach(attempt.ambient)
        if outcome is not None:
            span.set_attribute(JOB_OUTCOME, outcome)
        if _is_failure(outcome, ending):
            _set_error(
                span, _choose_error_type(outcome, ending, error), ending.message if ending else ""
            )
        _add_outcome_event(span, outcome, ending)
        span.end()
        self._remember(attempt.job_id, span, outcome)

    def _remember(self, job_id: str, span: Span, outcome: str | None) -> None:
        if not self._link_retries:
            return
        self._previous.pop(job_id, None)
        if outcome in {"completed", "failed", "cancelled"}:
            return
        context = span.get_span_context()
        if context.is_valid:
            self._previous[job_id] = context
            if len(self._previous) > MAX_RETRIES_REMEMBERED:
                self._previous.popitem(last=False)

    # Both

    def _name_span(self, operation: str, queue: str, name: str) -> str:
        return f"{operation} {name if self._names_by_job else self._read_template(queue)}"

    def _read_template(self, queue: str) -> str:
        return queue if self._queue_template is None else self._queue_template(queue)

    def _describe_message(self, operation: str, queue: str, job_id: str) -> _Attributes:
        attributes: _Attributes = {
            SYSTEM: "nimburion",
            OPERATION_NAME: operation,
            OPERATION_TYPE: operation,
            DESTINATION_NAME: queue,
            MESSAGE_ID: job_id,
        }
        template = self._read_template(queue)
        if template != queue:
            attributes[DESTINATION_TEMPLATE] = template
        return attributes

    def _add_origin(
        self,
        attributes: _Attributes,
        options: TracedOptions | TracedAttempt,
        headers: Mapping[str, str],
    ) -> None:
        """Add the attributes that say where a job comes from."""
        if options.correlation_id is not None:
            attributes[CONVERSATION_ID] = options.correlation_id
        if self._shows_tenant and options.tenant is not None:
            attributes[TENANT] = options.tenant
        schedule = headers.get(_SCHEDULE_HEADER)
        if schedule is not None:
            attributes[SCHEDULE_NAME] = schedule

    def _extract_link(self, headers: Mapping[str, str]) -> Link | None:
        """Return a link to the context in the headers; None if there is none."""
        if _TRACEPARENT not in headers:
            return None
        context = self._trace_context.extract(headers, Context())
        linked = trace.get_current_span(context).get_span_context()
        return Link(linked) if linked.is_valid else None

    def _record_exception(self, span: Span, error: Exception) -> None:
        if not self._records_exceptions:
            return
        try:
            span.record_exception(error)
        except Exception:  # noqa: BLE001 (an exception that cannot be formatted)
            _log.debug("the exception of a job could not be added to its span")


def instrument(processor: Instrumentable, tracing: Tracing | None = None) -> Tracing:
    """Trace the jobs that a processor enqueues and runs. Call it once, before the worker starts.

    Add it before other middleware, so that their time belongs to the span. Returns the `Tracing`.
    """
    tracing = tracing or Tracing()
    processor.use_enqueue(tracing.enqueue)
    processor.use(tracing.attempt)
    processor.metrics.exemplar_source = tracing.read_exemplar
    processor.events.subscribe(tracing.observe, kinds=(AttemptStarted, AttemptEnded, SessionOpened))
    return tracing


def _guess_outcome(ending: _Ending | None) -> str | None:
    """Return the outcome as far as the handler's end decides it; None if it does not."""
    return "completed" if ending is None else ending.outcome


def _is_failure(outcome: str | None, ending: _Ending | None) -> bool:
    if outcome is None:
        return ending is not None and ending.is_failure
    return outcome in {"retried", "failed", "lost"}


def _choose_error_type(outcome: str | None, ending: _Ending | None, error: str | None) -> str:
    if outcome == "lost":
        return "lease_lost"
    if ending is None:
        return error or _OTHER_ERROR
    if ending.is_cancellation and error == "Timeout":
        return "timeout"
    return ending.error_type


def _add_outcome_event(span: Span, outcome: str | None, ending: _Ending | None) -> None:
    if outcome == "retried":
        event = "retry"
    elif ending is not None and ending.outcome == "released":
        event = "snooze"
    else:
        return
    delay = None if ending is None else ending.delay
    span.add_event(event, {} if delay is None else {JOB_DELAY: delay})


def _set_error(span: Span, error_type: str, message: str) -> None:
    span.set_attribute(ERROR_TYPE, error_type)
    span.set_status(Status(StatusCode.ERROR, message or None))


def _name_error(error: BaseException) -> str:
    """Return the full name of an exception's class, whatever that class does."""
    kind = type(error)
    try:
        module, name = str(kind.__module__), str(kind.__qualname__)
    except BaseException:  # noqa: BLE001 (a metaclass that raises)
        return _OTHER_ERROR
    return name if module == "builtins" else f"{module}.{name}"


def _read_message(error: Exception) -> str:
    with suppress(Exception):
        return shorten(str(error), _MAX_MESSAGE)
    return ""


def _read_seconds(error: BaseException, attribute: str) -> float | None:
    with suppress(Exception):
        value = getattr(error, attribute)
        return None if value is None else to_seconds(value)
    return None
