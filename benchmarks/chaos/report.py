"""The record of runs: a table, and the results that are kept."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.chaos.durable import DurableFigures
from benchmarks.chaos.fault_plan import Size
from benchmarks.chaos.flows import FlowFigures
from benchmarks.chaos.reconcile import Reconciliation
from benchmarks.chaos.run import RunOutcome
from benchmarks.report import Rows, at, table

RESULTS = Path(__file__).parents[1] / "results"
SWEEP = 1.1 / 6
"""The longest time between two sweeps of a worker, as a share of the TTL."""
LIMITS = """\
Limits of this record: one machine, on which workers, producer, harness and server share the cores;
all connections are loopback; what is on disk is what this disk has synced, and no power was cut.
The faults and their order follow from the seed, the moments at which they hit do not. Jobs are
rescued when the backend takes them back; for their next delivery, a worker needs a free slot.
Undisturbed: no other pause, black hole or restart until then. Whatever ran on this machine besides
is part of the figures.
"""


def make_heading() -> str:
    """Return what was measured, on what."""
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"Commit {commit}, {time.strftime('%Y-%m-%d %H:%M')}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores."
    )


def show(run: RunOutcome) -> str:
    """Return the two tables of a run."""
    found, size = run.reconciliation, run.size
    title = (
        f"{run.target}: {found.acknowledged:,} jobs"
        f"{f' of {size.names:,} names' if size.names else ''}, "
        f"{size.workers * size.sessions} workers"
        f"{f' of {size.processes} processes' if size.processes > 1 else ''}"
        f"{f' in {size.workers} processes' if size.sessions > 1 else ''}, "
        f"session TTL {size.ttl:g} s, seed {run.seed}, {run.seconds:.0f} s"
    )
    tables = [table(title, ["", "jobs"], list_counts(found)), show_faults(found, size.ttl)]
    if run.flows is not None:
        tables.insert(1, table("Flows", ["", "number"], list_flow_counts(run.flows)))
    if run.durable is not None:
        tables.insert(1, table("Durable runs", ["", "number"], list_run_counts(run.durable)))
    return "\n".join(tables)


def list_flow_counts(found: FlowFigures) -> Rows:
    """Return the rows of the table of flows."""
    rows = {
        "flows": found.flows,
        "members": found.members,
        "jobs that waited for others": found.joins,
        "of these, run": found.joins_run,
        "of these, cancelled because of others": found.joins_cancelled,
        "joins whose results were compared": found.results_compared,
        "**flows that did not end with the counts of their members**": len(found.running),
        "**joins missing**": len(found.missing),
        "**joins that ran without their conditions**": len(found.needless),
        "**joins with wrong results**": len(found.wrong),
    }
    return [[name, f"{count:,}"] for name, count in rows.items()]


def list_run_counts(found: DurableFigures) -> Rows:
    """Return the rows of the table of durable runs."""
    rows = {
        "runs": found.runs,
        "completed": found.completed,
        "failed and undone": found.failed,
        "cancelled and undone": found.cancelled,
        "of the failed ones, lost their worker `max_lost` times, and undo nothing": found.lost,
        "executions": found.executions,
        "steps and undos recorded": found.recorded,
        "calls of steps and undos": found.calls,
        "of these, again because a worker was lost before the record": found.calls_again,
        "**runs stuck**": len(found.stuck),
        "**runs that ended otherwise than planned**": len(found.ended_otherwise),
        "**steps recorded twice**": len(found.recorded_twice),
        "**steps called after their record, or twice in one execution**": len(found.called_again),
        "**records without a call, or undos missing**": len(found.not_called),
        "**results wrong**": len(found.wrong),
    }
    return [[name, f"{count:,}"] for name, count in rows.items()]


def list_counts(found: Reconciliation) -> Rows:
    """Return the rows of the first table."""
    rows = {
        "acknowledged by `enqueue`": found.acknowledged,
        "completed": found.completed,
        "failed (dead letters)": found.failed,
        "of these, lost their worker `max_lost` times": found.failed_as_lost,
        "cancelled": found.cancelled,
        "**lost** (acknowledged, and not ended)": len(found.lost),
        "**ended twice**": len(found.ended_twice),
        "**stale settlements accepted**": len(found.stale_accepted),
        "stale settlements refused": found.refused,
        "outcomes that a worker dropped, because it knew that it was too late": found.dropped,
        "deliveries": found.deliveries,
        "runs": found.runs,
        "runs again": found.extra_runs,
        "**runs again that no fault explains**": len(found.unexplained),
        "runs again of sessions that expired without a fault of their worker": (
            found.expired_without_fault
        ),
        "endings that the server answered and forgot in a restart": found.forgotten,
        "sum of `lost`": found.losses,
    }
    return [[name, f"{count:,}"] for name, count in rows.items()]


def show_faults(found: Reconciliation, ttl: float) -> str:
    """Return the table of the faults."""
    bound = ttl * (1 + SWEEP)
    head = [
        *("fault", "times", "deliveries held (the bound)", "runs again"),
        *("jobs rescued after: median, p99, max", "the same, undisturbed", "delivered again after"),
    ]
    rows = [
        [
            *(kind, f"{one.count:,}", f"{one.held:,}", f"{one.runs_again:,}"),
            *map(format_seconds, (one.rescued, one.rescued_undisturbed, one.delivered)),
        ]
        for kind, one in found.faults.items()
    ]
    return table(f"Faults; TTL and one sweep are {bound:.2f} s", head, rows)


def format_seconds(values: Sequence[float]) -> str:
    """Return median, 99th percentile and maximum, and of how many."""
    if len(values) < 2:
        return "-" if not values else f"{values[0]:.2f} s (of 1)"
    ordered = list(values)
    return (
        f"{statistics.median(ordered):.2f}, {at(ordered, 99):.2f}, {max(ordered):.2f} s "
        f"(of {len(ordered)})"
    )


def describe_violations(run: RunOutcome) -> str:
    """Return a line for each violation, with the first jobs."""
    return "\n".join(
        f"VIOLATION on {run.target}: {name}: {len(jobs)} jobs, {', '.join(jobs[:10])}"
        for name, jobs in run.violations.items()
    )


def describe_kind(size: Size) -> str:
    """Return what distinguishes the fleet and the faults of a run from the usual ones."""
    kinds = {
        "-processes": size.processes > 1,
        "-sessions": size.sessions > 1,
        "-rolling": size.rolling_restarts > 0,
        "-names": size.names > 0,
        "-flows": size.flows > 0,
        "-durable": size.durable > 0,
    }
    return "".join(kind for kind, is_this in kinds.items() if is_this)


def keep(name: str, heading: str, run: RunOutcome, results: Path = RESULTS) -> None:
    """Add a run to the day's results; one of the same backend, kind and seed is replaced.

    What was written by hand between the runs of the page stays.
    """
    stem = results / time.strftime("chaos-%Y%m%d")
    path, page = stem.with_suffix(".json"), stem.with_suffix(".md")
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    key = f"{name}{describe_kind(run.size)}" + (f"-{run.seed:02}" if run.seed > 1 else "")
    new = {"heading": heading, "run": msgspec.to_builtins(run)}
    old = kept.get(key)
    kept[key] = new
    path.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    text = page.read_text() if page.exists() else LIMITS
    replaced = None if old is None else show_kept(old)
    page.write_text(write_into(text, replaced, show_kept(new)))


def show_kept(kept: dict[str, Any]) -> str:
    """Return the heading and the tables of a run that was kept."""
    return f"{kept['heading']}\n\n{show(msgspec.convert(kept['run'], RunOutcome))}"


def write_into(page: str, old: str | None, new: str) -> str:
    """Return the page with the text of a run, in the place of the run that it replaces. Without
    one, the run stands before the limits, or at the end of a page that does not have them.
    """
    if old is not None and old in page:
        return page.replace(old, new)
    before, limits, after = page.partition(LIMITS)
    return f"{before.rstrip()}\n\n{new}\n{limits}{after}".lstrip()
