"""Carry the current trace from one process to another, as the headers `traceparent` and
`tracestate`.

Does nothing in a process that has not imported OpenTelemetry.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def read_trace() -> dict[str, str]:
    """Return the headers of the current span; empty without one."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not trace.get_current_span().get_span_context().is_valid:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers


def attach_trace(headers: Mapping[str, str]) -> Any:  # noqa: ANN401 (a token of OpenTelemetry)
    """Make the span of these headers the current one; returns what `detach_trace` needs."""
    if not headers:
        return None
    from opentelemetry.context import attach
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return attach(TraceContextTextMapPropagator().extract(headers))


def detach_trace(token: Any) -> None:  # noqa: ANN401
    """Restore the span that was current before `attach_trace`."""
    if token is not None:
        from opentelemetry.context import detach

        detach(token)
