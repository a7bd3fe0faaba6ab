"""`nimburion stats`: throughput, failures, wait and run times by queue and name."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

import click
import msgspec

from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.output import format_duration, print_result, print_table
from nimburion.cli.parameters import parse_duration
from nimburion.cli.readings import BackendReading, print_legend, print_readings, read_backends
from nimburion.core.backend import Backend
from nimburion.core.metrics.histogram import BUCKETS_PER_DECADE, Histogram
from nimburion.core.metrics.statistics import (
    MISSING_SECONDS,
    STEPS,
    WRITE_INTERVAL,
    Counters,
    Statistics,
    choose_step,
)

HEADERS = (
    *("enqueued", "completed", "retried", "failed"),
    *("wait p50", "wait p95", "run p50", "run p95"),
)


@click.command()
@click.option("--queue", metavar="QUEUE", help="Only of this queue.")
@click.option("--name", metavar="NAME", help="Only of this job name.")
@click.option(
    "--last",
    metavar="DURATION",
    default="1h",
    show_default=True,
    help="How far back, up to 30 days.",
)
@add_shared_options
def stats(queue: str | None, name: str | None, last: str) -> None:
    """Show what happened to jobs recently: counts, and percentiles of wait and run times.

    Workers store their counts about every ten seconds. WAIT is the time from due to started.
    --backend can be repeated: each backend has lines of its own, and the sum has one.
    """
    seconds = parse_duration(last)
    step = choose_kept_step(seconds)

    def read(backend: Backend) -> Awaitable[list[Statistics]]:
        return read_statistics(backend, seconds, step, queue, name)

    if current_invocation().has_several_backends:
        readings = read_backends(read)
        print_readings(
            readings,
            lambda rows: make_data(rows, step),
            lambda: print_statistics_of_each(readings, last),
        )
        return
    rows = current_invocation().run(read)
    print_result(make_data(rows, step), lambda: print_statistics(rows, last))


def choose_kept_step(seconds: float) -> int:
    """Return the shortest step that is kept for as long as `seconds`."""
    if seconds > max(STEPS.values()):
        raise click.BadParameter("statistics are kept for 30 days", param_hint="--last")
    return choose_step(0, seconds, seconds)


async def read_statistics(
    backend: Backend, seconds: float, step: int, queue: str | None, name: str | None
) -> list[Statistics]:
    """Return the statistics of the last `seconds`, whole intervals."""
    now = await backend.now()
    return await backend.reads.list_statistics(now - seconds, now, step, queue=queue, name=name)


def make_data(rows: list[Statistics], step: int) -> dict[str, object]:
    """Return the statistics of one backend as JSON data."""
    return {
        "step": step,
        "intervals": [msgspec.to_builtins(row) for row in rows],
        "buckets_per_decade": BUCKETS_PER_DECADE,
        "missing_seconds": MISSING_SECONDS,
    }


def print_statistics(rows: list[Statistics], last: str) -> None:
    """Print one line per queue and name, with the counters of all intervals added up."""
    lines = [(*key, *format_counters(counters)) for key, counters in sorted(add_up(rows).items())]
    print_table(("queue", "name", *HEADERS), lines, format_empty(last))
    print_missing(lines)


def print_statistics_of_each(readings: list[BackendReading[list[Statistics]]], last: str) -> None:
    """Print one line per queue, name and backend, and one with the sum of several backends."""
    sums = {reading.number: add_up(reading.value or []) for reading in readings}
    lines: list[tuple[object, ...]] = []
    for key in sorted({key for by_key in sums.values() for key in by_key}):
        total, found = Counters(), 0
        for number, by_key in sums.items():
            if key in by_key:
                total.add(by_key[key])
                found += 1
                lines.append((*key, number, *format_counters(by_key[key])))
        if found > 1:
            lines.append((*key, "all", *format_counters(total)))
    print_legend(readings)
    click.echo()
    print_table(("queue", "name", "backend", *HEADERS), lines, format_empty(last))
    print_missing(lines)


def add_up(rows: list[Statistics]) -> dict[tuple[str, str], Counters]:
    """Return the counters of each queue and name, all intervals added up."""
    sums: dict[tuple[str, str], Counters] = {}
    for row in rows:
        sums.setdefault((row.queue, row.name), Counters()).add(row.counters)
    return sums


def format_counters(counters: Counters) -> tuple[object, ...]:
    """Return the columns of `HEADERS`."""
    return (
        counters.enqueued,
        counters.completed,
        counters.retried,
        counters.failed,
        format_quantile(counters.wait, 0.5),
        format_quantile(counters.wait, 0.95),
        format_quantile(counters.run, 0.5),
        format_quantile(counters.run, 0.95),
    )


def print_missing(lines: Sequence[object]) -> None:
    """Say below a table which counts it may lack; an empty table says so itself."""
    if lines:
        click.echo(f"Counts of the last {MISSING_SECONDS} s may be missing.")


def format_empty(last: str) -> str:
    """Return what is printed instead of an empty table."""
    return (
        f"no job was counted in the last {last}. Counts of the last {MISSING_SECONDS} s may be "
        f"missing: each process stores its own about every {WRITE_INTERVAL:.0f} s"
    )


def format_quantile(histogram: Histogram, quantile: float) -> str | None:
    """Return an estimated quantile as a duration; None without observations."""
    seconds = histogram.estimate_quantile(quantile)
    if seconds is not None and 1.0 <= seconds < 9.95:
        return f"{seconds:.2g} s"  # rounded to a second, it would be up to a third away
    return None if seconds is None else format_duration(seconds)
