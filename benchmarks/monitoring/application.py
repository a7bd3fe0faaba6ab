"""The application whose metrics are compared: handlers that log what they do.

nimburion worker benchmarks.monitoring.application:make_processor --server

The environment names the file of the log (MONITORING_LOG). With MONITORING_SCHEDULES, this worker
fires the schedule.
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from nimburion import (
    Context,
    DurableContext,
    Limit,
    PermanentError,
    Processor,
    Scheduler,
    Signal,
    config,
)

SCHEDULE = "tick"
PAID = Signal("paid", int)


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened to a job, in epoch seconds."""

    at: float
    what: str
    """`enqueued`, `started`, or how an attempt ended."""
    queue: str
    name: str
    reason: str = ""
    """Why the job is a dead letter."""
    seconds: float = 0.0
    """How long the attempt ran."""
    count: int = 1


class Log:
    """A file of lines. A line is one write, so a process that ends loses none."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, what: str, queue: str, name: str, **fields: Any) -> None:
        """Append a line about now."""
        line = Line(time.time(), what, queue, name, **fields)
        os.write(self._file, msgspec.json.encode(line) + b"\n")


def read_log(path: Path) -> list[Line]:
    """Return the lines of a file in their order."""
    return [msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines()]


class TryAgain(Exception):
    """An attempt fails."""


def make_processor() -> Processor:
    """Return the processor that `nimburion worker` runs."""
    log = Log(Path(os.environ["MONITORING_LOG"]))
    processor = Processor.from_config(config.load())
    jobs = declare_jobs(processor, log)
    if "MONITORING_SCHEDULES" in os.environ:
        Scheduler(processor).schedule(timedelta(seconds=5), jobs[SCHEDULE].job(), name=SCHEDULE)
    return processor


def declare_jobs(processor: Processor, log: Log) -> dict[str, Any]:
    """Declare all jobs; return them by their names."""

    @processor.job(queue="ticks")
    async def tick(ctx: Context) -> None:
        log.write("enqueued", ctx.queue, ctx.name)
        await run(ctx, log)

    @processor.job(queue="held")
    async def wait(ctx: Context) -> None:
        await run(ctx, log)

    found = {"tick": tick, "wait": wait}
    for add in (add_plain_jobs, add_limited_jobs, add_flow_jobs, add_runs):
        found |= add(processor, log)
    return found


async def run(
    ctx: Context,
    log: Log,
    error: Exception | None = None,
    until: float = 0.0,
    seconds: float = 0.02,
) -> None:
    """Log an attempt that takes some time and ends with an error, or well."""
    begin_attempt(ctx, log)
    started = time.monotonic()
    await asyncio.sleep(max(seconds, until - time.time()))
    end_attempt(ctx, log, error, time.monotonic() - started)
    if error is not None:
        raise error


def begin_attempt(ctx: Context, log: Log) -> None:
    """Log the start of an attempt."""
    log.write("started", ctx.queue, ctx.name)


def end_attempt(ctx: Context, log: Log, error: Exception | None, seconds: float) -> None:
    """Log how an attempt ends."""
    reason = ""
    if isinstance(error, PermanentError):
        reason = "permanent"
    elif error is not None and ctx.failures >= 1:
        reason = "exhausted"
    outcome = "completed" if error is None else "failed" if reason else "retried"
    log.write(outcome, ctx.queue, ctx.name, reason=reason, seconds=seconds)


def add_plain_jobs(processor: Processor, log: Log) -> dict[str, Any]:
    """Register jobs that complete, that fail once, that fail for good, and one in a thread."""

    @processor.job(queue="mail")
    async def send(ctx: Context) -> None:
        await run(ctx, log)

    @processor.job(queue="mail")
    def print_letter(ctx: Context) -> None:
        begin_attempt(ctx, log)
        time.sleep(0.01)
        end_attempt(ctx, log, None, 0.01)

    @processor.job(queue="mail", max_retries=1, retry_backoff=0.1)
    async def flaky(ctx: Context) -> None:
        await run(ctx, log, TryAgain("once") if ctx.failures == 0 else None)

    @processor.job(queue="mail", max_retries=1, retry_backoff=0.1)
    async def spent(ctx: Context) -> None:
        await run(ctx, log, TryAgain("twice"))

    @processor.job(queue="mail")
    async def broken(ctx: Context) -> None:
        await run(ctx, log, PermanentError("never"))

    @processor.job(queue="mail")
    async def stopped(ctx: Context) -> None:
        begin_attempt(ctx, log)
        started = time.monotonic()
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            seconds = time.monotonic() - started
            log.write("cancelled", ctx.queue, ctx.name, seconds=seconds)
            raise

    return {
        "send": send,
        "print_letter": print_letter,
        "flaky": flaky,
        "spent": spent,
        "broken": broken,
        "stopped": stopped,
    }


def add_limited_jobs(processor: Processor, log: Log) -> dict[str, Any]:
    """Register a job with a limit for each customer, and one with a limit for its name."""

    @processor.job(queue="exports", limits=[Limit(1, key="customer")])
    async def export(ctx: Context, customer: str, until: float) -> str:
        await run(ctx, log, until=until)
        return customer

    @processor.job(queue="reports", concurrency=1)
    async def report(ctx: Context, until: float) -> None:
        await run(ctx, log, until=until)

    return {"export": export, "report": report}


def add_flow_jobs(processor: Processor, log: Log) -> dict[str, Any]:
    """Register the members of flows."""

    @processor.job(queue="flows")
    async def part(ctx: Context, fails: bool) -> int:
        await run(ctx, log, PermanentError("no part") if fails else None)
        return 1

    @processor.job(queue="flows")
    async def gather(ctx: Context, parts: list[int]) -> int:
        await run(ctx, log)
        return sum(parts)

    return {"part": part, "gather": gather}


def add_runs(processor: Processor, log: Log) -> dict[str, Any]:
    """Register a durable run: a step, a child job, a sleep and a signal."""

    @processor.job(queue="runs")
    async def child(ctx: Context) -> int:
        await run(ctx, log)
        return 1

    def charge(queue: str) -> int:
        log.write("enqueued", queue, "child")
        return 1

    @processor.job(queue="runs")
    async def order(ctx: DurableContext) -> int:
        log.write("started", ctx.queue, ctx.name)
        started = time.monotonic()
        is_over = False
        try:
            cents = await ctx.step(charge, "runs")
            cents += await ctx.run(child.job())
            await ctx.sleep("pause", 1.0)
            cents += await ctx.wait_for(PAID) or 0
            is_over = True
        finally:
            seconds = time.monotonic() - started
            log.write("completed" if is_over else "released", ctx.queue, ctx.name, seconds=seconds)
        return cents

    return {"child": child, "order": order}
