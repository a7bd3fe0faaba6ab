"""The current trace, carried to another process."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from nimburion.telemetry.trace_headers import attach_trace, detach_trace, read_trace

SPAN = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))


def test_without_a_span_nothing_is_carried() -> None:
    assert read_trace() == {}
    assert attach_trace({}) is None


def test_the_span_of_one_process_is_current_in_the_other() -> None:
    with trace.use_span(NonRecordingSpan(SPAN)):
        headers = read_trace()
    token = attach_trace(headers)
    try:
        arrived = trace.get_current_span().get_span_context()
        assert (arrived.trace_id, arrived.span_id) == (0xABC, 0xDEF)
    finally:
        detach_trace(token)
    assert not trace.get_current_span().get_span_context().is_valid
