"""The context of a handler, and middleware around it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import Cancel, NotOpen
from nimburion.core.job import JobOptions
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.settlement import Progressed, Spent
from nimburion.jobs import Context, Processor, job
from nimburion.jobs.handling.attempt_record import AttemptRecord, WorkerServices
from nimburion.jobs.handling.context import get_record
from nimburion.jobs.handling.middleware import Middleware, Next, compose
from nimburion.testing import make_context

LEASE = Lease("j1", Token(7, bytes(16)))
DELIVERY = Delivery(
    LEASE,
    "send_email",
    "mail",
    b"{}",
    priority=7,
    failures=2,
    lost=1,
    options=JobOptions(headers={"h": "1"}, tenant="acme", correlation_id="c1", unique_key="k"),
)


class Sink:
    def __init__(self) -> None:
        self.notes: list[tuple[Lease, float, str]] = []
        self.units: list[int] = []

    def __call__(self, report: Progressed | Spent) -> None:
        if isinstance(report, Progressed):
            self.notes.append((report.lease, report.fraction, report.message))
        else:
            self.units.append(report.units)


def context(deadline: float | None = None, now: float = 100.0, sink: Sink | None = None) -> Context:
    services = WorkerServices(lambda: now, sink or Sink())
    return Context(AttemptRecord(DELIVERY, "session"), services, deadline)


def test_a_context_describes_the_delivery() -> None:
    ctx = context()
    assert (ctx.job_id, ctx.name, ctx.queue, ctx.priority) == ("j1", "send_email", "mail", 7)
    assert (ctx.attempt, ctx.failures, ctx.lost, ctx.fence) == (4, 2, 1, 7)
    assert (ctx.tenant, ctx.correlation_id, ctx.unique_key) == ("acme", "c1", "k")
    assert ctx.headers == {"h": "1"}
    assert ctx.payload == b"{}"
    assert ctx.job is None


def test_remaining_counts_down_to_zero_and_is_none_without_a_timeout() -> None:
    assert context(deadline=130.0).remaining() == 30.0
    assert context(deadline=90.0).remaining() == 0.0
    assert context().remaining() is None


def test_progress_is_only_noted() -> None:
    sink = Sink()
    ctx = context(sink=sink)
    ctx.progress(0.5, "half")
    ctx.progress(1)
    assert sink.notes == [(LEASE, 0.5, "half"), (LEASE, 1.0, "")]


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan"), 50])
def test_progress_out_of_its_range_is_refused(fraction: float) -> None:
    sink = Sink()
    with pytest.raises(ValueError, match=r"from 0\.0 to 1\.0"):
        context(sink=sink).progress(fraction)
    assert sink.notes == []


def test_a_requested_cancel_can_be_polled_and_raised() -> None:
    ctx = context()
    ctx.raise_if_cancelled()
    before = ctx.cancelled
    get_record(ctx).cancel_requested = True
    assert (before, ctx.cancelled) == (False, True)
    with pytest.raises(Cancel):
        ctx.raise_if_cancelled()


def test_log_records_carry_the_job_and_what_the_call_adds(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "nimburion.job"):
        context().log.info("sent to %s", "a", extra={"size": 5, "tenant": "other"})
    [record] = caplog.records
    assert record.getMessage() == "sent to a"
    fields = {key: getattr(record, key) for key in ("job_id", "job_name", "queue", "attempt")}
    assert fields == {"job_id": "j1", "job_name": "send_email", "queue": "mail", "attempt": 4}
    assert (record.__dict__["correlation_id"], record.__dict__["size"]) == ("c1", 5)
    assert record.__dict__["tenant"] == "other"


async def test_a_context_without_a_processor_says_so() -> None:
    @job
    def nothing() -> None: ...

    with pytest.raises(NotOpen, match="no processor"):
        await context().enqueue(nothing.job())


# Middleware


async def test_the_first_middleware_is_outermost() -> None:
    seen: list[str] = []

    def named(name: str) -> Any:
        async def layer(ctx: Context, call_next: Next[Context]) -> object:
            seen.append(f"{name} in")
            result = await call_next(ctx)
            seen.append(f"{name} out")
            return f"{name}({result})"

        return layer

    async def innermost(ctx: Context) -> str:
        seen.append("handler")
        return ctx.job_id

    chain = compose([named("a"), named("b")], innermost)
    assert await chain(context()) == "a(b(j1))"
    assert await chain(context()) == "a(b(j1))"
    assert seen == ["a in", "b in", "handler", "b out", "a out"] * 2


def test_without_middleware_nothing_is_wrapped() -> None:
    async def innermost(ctx: Context) -> object: ...

    none: list[Middleware] = []
    assert compose(none, innermost) is innermost


async def test_middleware_may_replace_the_payload_and_see_the_arguments() -> None:
    seen: list[object] = []

    @job
    async def double(number: int) -> int:
        return 2 * number

    async def tamper(ctx: Context, call_next: Next[Context]) -> object:
        seen.append(ctx.job)
        ctx.payload = b'{"number":21}'
        result = await call_next(ctx)
        seen.append((ctx.job.number, result))
        return result

    processor = Processor(MemoryBackend())
    processor.register(double)
    processor.use(tamper)
    async with processor:
        job_id = await processor.enqueue(double.job(1))
        await processor.process_one()
        assert await processor.wait(job_id, timeout=0) == 42
    assert seen == [None, (21, 42)]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("retry", r"write `raise Retry\(after=…\)`"),
        ("request", "write `ctx.job_id`"),
        ("update_state", "write `ctx.progress"),
        ("attemp", "has no attribute 'attemp'"),
    ],
)
def test_a_name_of_another_job_system_is_explained(name: str, advice: str) -> None:
    ctx: Any = make_context()
    with pytest.raises(AttributeError, match=advice):
        getattr(ctx, name)


async def test_a_def_handler_that_enqueues_without_await_fails() -> None:
    """Its coroutine would never run: the job would be lost, and the handler completed."""
    processor = Processor("memory://")

    @processor.job
    def follow_up() -> None: ...

    @processor.job(max_retries=0)
    def first(ctx: Context) -> None:
        ctx.enqueue(follow_up.job())  # type: ignore[unused-coroutine]

    async with processor:
        job_id = await first.enqueue()
        await processor.drain()
        error = (await processor.get_status(job_id)).error
        assert error is not None
        assert "write `processor.sync.enqueue(…)`" in error.message
