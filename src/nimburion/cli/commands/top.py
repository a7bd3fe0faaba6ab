"""`nimburion top`: a live view of queues, workers and throughput."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from nimburion.cli.commands.workers import describe_slots, describe_state
from nimburion.cli.filters import format_count
from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.output import format_counted, format_duration, format_table, print_result
from nimburion.cli.readings import (
    BackendReader,
    BackendReading,
    close_each,
    format_legend,
    make_readers,
    print_readings,
    read_backends,
    read_each,
)
from nimburion.core.diagnosis.unserved import find_unserved
from nimburion.core.errors import BackendUnavailable
from nimburion.core.metrics.statistics import Counters, Statistics
from nimburion.core.queries import QueueInfo
from nimburion.core.session import SessionInfo
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from nimburion.core.backend import Backend

_RATE_SECONDS = 300
"""The view covers at least the last five minutes, from the start of a minute."""
QUEUE_HEADERS = (
    *("queue", "due", "oldest", "running", "later"),
    *("rate/s", "wait p95", "run p95", "failed", ""),
)
WORKER_HEADERS = ("worker", "process", "state", "busy", "held", "queues")
NO_QUEUE = "no queue holds an unfinished job"
NO_WORKER = "no worker is running"
_CLEAR = "\x1b[H\x1b[2J"


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """What one refresh of the view shows."""

    backend: str
    now: float
    queues: list[QueueInfo]
    workers: list[SessionInfo]
    statistics: list[Statistics]


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(0.5, 60),
    default=2.0,
    show_default=True,
    help="Seconds between two refreshes.",
)
@click.option("--once", is_flag=True, help="Print the view once and end.")
@add_shared_options
def top(*, interval: float, once: bool) -> None:
    """Watch queues, workers and throughput; Ctrl-C ends it.

    RATE is jobs completed per second in the last five minutes. Without a terminal, or with --json,
    the view is printed once. --backend can be repeated: the view then shows all backends.
    """
    single = once or current_invocation().as_json or not sys.stdout.isatty()
    if not current_invocation().has_several_backends:
        current_invocation().run(lambda backend: show(backend, None if single else interval))
    elif single:
        readings = read_backends(read_overview)
        print_readings(readings, msgspec.to_builtins, lambda: click.echo(format_views(readings)))
    else:
        asyncio.run(show_each(make_readers(), interval))


async def show(backend: Backend, interval: float | None) -> None:
    """Print the view, again after each `interval` seconds; once if it is None."""
    if interval is None:
        overview = await read_overview(backend)
        print_result(msgspec.to_builtins(overview), lambda: click.echo(format_view(overview)))
        return
    while True:
        try:
            view = format_view(await read_overview(backend))
        except BackendUnavailable as error:
            view = escape_controls(f"the backend does not answer ({error}); retrying")
        click.echo(_CLEAR + view)
        await asyncio.sleep(interval)


async def show_each(readers: Sequence[BackendReader], interval: float) -> None:
    """Print the view of several backends, again after each `interval` seconds."""
    try:
        while True:
            view = format_views(await read_each(readers, read_overview))
            click.echo(_CLEAR + view)
            await asyncio.sleep(interval)
    finally:
        await close_each(readers)


async def read_overview(backend: Backend) -> Overview:
    """Read everything that the view shows: three reads and the time."""
    now = await backend.now()
    return Overview(
        backend=backend.describe(),
        now=now,
        queues=await backend.reads.list_queues(),
        workers=await backend.reads.list_sessions(),
        statistics=await backend.reads.list_statistics(find_window_start(now), now, 60),
    )


def find_window_start(now: float) -> float:
    """Return the time from which rates, waiting times, running times and failures count."""
    return (now - _RATE_SECONDS) // 60 * 60


def format_view(overview: Overview) -> str:
    """Return the view as text."""
    unserved = find_unserved(overview.queues, overview.workers)
    return "\n".join(
        [
            format_headline(overview),
            "",
            format_queues(overview),
            *[f"! {escape_controls(jobs.describe())}" for jobs in unserved],
            "",
            format_workers(overview.workers),
        ]
    )


def format_views(readings: Sequence[BackendReading[Overview]]) -> str:
    """Return the view of several backends as text: a line for each, then their sum and tables."""
    answered = [(reading.number, reading.value) for reading in readings if reading.value]
    queues = [(number, *line) for number, one in answered for line in list_queues(one)]
    workers = [(number, *line) for number, one in answered for line in list_workers(one.workers)]
    return "\n".join(
        [
            *format_legend(readings, lambda overview: describe_load([overview])),
            f"{len(answered)} of {len(readings)}: {describe_load([one for _, one in answered])}",
            "",
            format_table(("backend", *QUEUE_HEADERS), queues, NO_QUEUE),
            *[
                f"! {number}: {escape_controls(jobs.describe())}"
                for number, one in answered
                for jobs in find_unserved(one.queues, one.workers)
            ],
            "",
            format_table(("backend", *WORKER_HEADERS), workers, NO_WORKER),
        ]
    )


def format_headline(overview: Overview) -> str:
    """Return one line about the backend, its workers and all queues."""
    return escape_controls(f"{overview.backend}: {describe_load([overview])}")


def describe_load(overviews: Sequence[Overview]) -> str:
    """Return the numbers of workers and jobs of some backends, and their rate, in a few words."""
    workers = sum(len(overview.workers) for overview in overviews)
    queues = [queue for overview in overviews for queue in overview.queues]
    rate = sum(sum(compute_rates(overview).values()) for overview in overviews)
    return (
        f"{format_count(workers, 'worker')}, {sum(queue.size for queue in queues)} due, "
        f"{sum(queue.processing for queue in queues)} processing, {rate:.1f} completed/s"
    )


def compute_rates(overview: Overview) -> dict[str, float]:
    """Return the completed jobs per second by queue, over the whole window."""
    seconds = overview.now - find_window_start(overview.now)
    rates: dict[str, float] = {}
    for row in overview.statistics:
        rates[row.queue] = rates.get(row.queue, 0.0) + row.counters.completed / seconds
    return rates


def format_queues(overview: Overview) -> str:
    """Return the table of queues, the one with the oldest waiting job first."""
    return format_table(QUEUE_HEADERS, list_queues(overview), NO_QUEUE)


def list_queues(overview: Overview) -> list[tuple[object, ...]]:
    """Return a line of the table for each queue, the one with the oldest waiting job first."""
    rates = compute_rates(overview)
    sums: dict[str, Counters] = {}
    for row in overview.statistics:
        sums.setdefault(row.queue, Counters()).add(row.counters)
    by_name = {queue.name: queue for queue in overview.queues}
    names = sorted({*by_name, *rates}, key=lambda name: (-_get_age(by_name.get(name)), name))
    return [_format_queue(name, by_name.get(name), rates, sums) for name in names]


def _get_age(queue: QueueInfo | None) -> float:
    return queue.oldest_age if queue is not None else 0.0


def _format_queue(
    name: str, queue: QueueInfo | None, rates: dict[str, float], sums: dict[str, Counters]
) -> tuple[object, ...]:
    counters = sums.get(name, Counters())
    wait = counters.wait.estimate_quantile(0.95)
    run = counters.run.estimate_quantile(0.95)
    return (
        name,
        format_counted(queue.size, is_complete=queue.size_complete) if queue else 0,
        format_duration(queue.oldest_age) if queue and queue.size else None,
        queue.processing if queue else 0,
        format_counted(queue.scheduled, is_complete=queue.scheduled_complete) if queue else 0,
        f"{rates.get(name, 0.0):.1f}",
        None if wait is None else format_duration(wait),
        None if run is None else format_duration(run),
        counters.failed,
        "paused" if queue and queue.paused else "",
    )


def format_workers(workers: list[SessionInfo]) -> str:
    """Return the table of workers."""
    return format_table(WORKER_HEADERS, list_workers(workers), NO_WORKER)


def list_workers(workers: list[SessionInfo]) -> list[tuple[object, ...]]:
    """Return a line of the table for each worker."""
    return [
        (
            session.host,
            session.pid,
            describe_state(session),
            describe_slots(session),
            session.running,
            ",".join(session.queues),
        )
        for session in workers
    ]
