"""`nimburion stats`: throughput, failures, wait and run times by queue and name."""

from __future__ import annotations

import click
import msgspec

from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.output import format_duration, print_result, print_table
from nimburion.cli.parameters import parse_duration
from nimburion.core.backend import Backend
from nimburion.core.metrics.statistics import (
    MAX_INTERVALS,
    RUN_BOUNDS,
    STEPS,
    WAIT_BOUNDS,
    Counters,
    Histogram,
    Statistics,
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
    """Show what happened to jobs lately: counts, and percentiles of wait and run times.

    Workers store their counts about every ten seconds. WAIT is the time from due to started.
    """
    seconds = parse_duration(last)
    step = choose_step(seconds)
    rows = current_invocation().run(
        lambda backend: read_statistics(backend, seconds, step, queue, name)
    )
    data = {
        "step": step,
        "intervals": [msgspec.to_builtins(row) for row in rows],
        "wait_bounds": WAIT_BOUNDS,
        "run_bounds": RUN_BOUNDS,
    }
    print_result(data, lambda: draw(rows, last))


def choose_step(seconds: float) -> int:
    """Return the shortest step that is kept for as long as `seconds`."""
    for step, kept in STEPS.items():
        if seconds <= kept and seconds / step <= MAX_INTERVALS:
            return step
    raise click.BadParameter("statistics are kept for 30 days", param_hint="--last")


async def read_statistics(
    backend: Backend, seconds: float, step: int, queue: str | None, name: str | None
) -> list[Statistics]:
    """Return the statistics of the last `seconds`, whole intervals."""
    now = await backend.now()
    return await backend.list_statistics(now - seconds, now, step, queue=queue, name=name)


def draw(rows: list[Statistics], last: str) -> None:
    """Print one line per queue and name, with the counters of all intervals added up."""
    sums: dict[tuple[str, str], Counters] = {}
    for row in rows:
        sums.setdefault((row.queue, row.name), Counters()).add(row.counters)
    print_table(
        (
            "queue",
            "name",
            "enqueued",
            "completed",
            "retried",
            "failed",
            "wait p50",
            "wait p95",
            "run p50",
            "run p95",
        ),
        [
            (
                queue,
                name,
                counters.enqueued,
                counters.completed,
                counters.retried,
                counters.failed,
                format_quantile(counters.wait, 0.5, WAIT_BOUNDS),
                format_quantile(counters.wait, 0.95, WAIT_BOUNDS),
                format_quantile(counters.run, 0.5, RUN_BOUNDS),
                format_quantile(counters.run, 0.95, RUN_BOUNDS),
            )
            for (queue, name), counters in sorted(sums.items())
        ],
        f"no job was enqueued or run in the last {last}",
    )


def format_quantile(histogram: Histogram, quantile: float, bounds: tuple[float, ...]) -> str | None:
    """Return an estimated quantile as a duration; None without observations."""
    seconds = histogram.estimate_quantile(quantile, bounds)
    return None if seconds is None else format_duration(seconds)
