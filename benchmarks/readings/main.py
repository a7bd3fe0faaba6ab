"""Fill a backend, time the readings of operators, print a table, and keep it when asked to."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.postgres.family import FAMILY as POSTGRES
from benchmarks.readings.fill import LIMITED_NAME, RARE_NAME, Filled, Kind, fill
from benchmarks.redis.family import FAMILY as REDIS
from benchmarks.report import table
from nimburion.backends import open_backend
from nimburion.core.audit import list_audit
from nimburion.core.backend import Backend
from nimburion.core.job import State
from nimburion.core.queries import JobFilter

RESULTS = Path(__file__).parents[1] / "results"
KINDS: tuple[Kind, ...] = ("sqlite", "postgres", "redis")
CALLS = 20
"""How often each reading is timed."""

Reading = Callable[[], Awaitable[Any]]
Figures = dict[str, Any]
"""`ms`: of each call. `cpu_ms`: of this process and the server, a call."""


def list_readings(backend: Backend, filled: Filled) -> dict[str, Reading]:
    """Return the calls to time, by what the table says of them."""

    def page(which: JobFilter, after: str | None = None) -> Reading:
        return lambda: backend.reads.list_jobs(which, after=after)

    def state(one: State) -> JobFilter:
        return JobFilter(states=frozenset({one}))

    now = time.time()
    hour = JobFilter(finished_from=filled.since + 3600.0, finished_to=filled.since + 7200.0)
    return {
        "`count_jobs()`": backend.reads.count_jobs,
        "`counts(queue)`": lambda: backend.reads.count_jobs("queue_0"),
        "`list_queues()`": backend.reads.list_queues,
        "`list_jobs`: first page": page(JobFilter()),
        "a page in the middle": page(JobFilter(), filled.middle),
        "completed": page(state(State.COMPLETED)),
        "failed": page(state(State.FAILED)),
        "pending": page(state(State.PENDING)),
        "processing": page(state(State.PROCESSING)),
        "cancelled (none)": page(state(State.CANCELLED)),
        "one queue": page(JobFilter(queue="queue_0")),
        "one name of 20, completed": page(
            JobFilter(name=LIMITED_NAME, states=frozenset({State.COMPLETED}))
        ),
        "a rare name": page(JobFilter(name=RARE_NAME)),
        "a rare name, completed, from the middle": page(
            JobFilter(name=RARE_NAME, states=frozenset({State.COMPLETED})), filled.middle
        ),
        "one tenant of 50": page(JobFilter(tenant="tenant_07")),
        "one tenant of 50, completed, from the middle": page(
            JobFilter(tenant="tenant_07", states=frozenset({State.COMPLETED})), filled.middle
        ),
        "a correlation id without a match": page(JobFilter(correlation_id="none")),
        "the same, from the middle": page(JobFilter(correlation_id="none"), filled.middle),
        "an hour of `finished_at`, 18 hours ago": page(hour),
        "`group_failures()`": backend.reads.group_failures,
        "`get_job` of a completed job": lambda: backend.reads.get_job(filled.completed),
        "`explain_job` of a waiting job": lambda: backend.reads.explain_job(filled.waiting),
        "`list_limits()`": backend.reads.list_limits,
        "`list_sessions()`": backend.reads.list_sessions,
        "`list_statistics`: 3 h of minutes, 200 names": lambda: backend.reads.list_statistics(
            now - 3 * 3600.0, now, 60
        ),
        "`list_audit()`": lambda: list_audit(backend),
    }


async def measure(kind: Kind, url: str, rows: int, pid: int | None) -> dict[str, Figures]:
    """Fill the backend and return the figures of each reading. `pid`: the server's process."""
    started = time.perf_counter()
    filled = await fill(kind, url, rows)
    os.sync()  # so that the disk is idle when the calls begin
    print(f"filled in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    backend = open_backend(url)
    await backend.open()
    try:
        return {
            title: await time_calls(reading, pid)
            for title, reading in list_readings(backend, filled).items()
        }
    finally:
        await backend.close()


async def time_calls(reading: Reading, pid: int | None) -> Figures:
    """Return the milliseconds of each of `CALLS` calls, and the CPU time of one on average."""
    cpu = read_cpu(pid)
    taken = []
    for _ in range(CALLS):
        started = time.perf_counter()
        await reading()
        taken.append(1000 * (time.perf_counter() - started))
    return {"ms": taken, "cpu_ms": 1000 * (read_cpu(pid) - cpu) / CALLS}


def read_cpu(pid: int | None) -> float:
    """Return the CPU seconds of this process, and of a server and its children so far.

    Autovacuum, which follows the filling, is left out.
    """
    seconds = time.process_time()
    if pid is not None:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (str(pid), *children):
            with suppress(OSError):  # a child may end in between
                if b"autovacuum" in Path(f"/proc/{one}/cmdline").read_bytes():
                    continue
                seconds += int(Path(f"/proc/{one}/schedstat").read_text().split()[0]) / 1e9
    return seconds


@contextmanager
def serve(kind: Kind, folder: str | None) -> Iterator[tuple[str, str, int | None]]:
    """An empty backend: its URL, what it is, and the process of its server."""
    if kind == "sqlite":
        with tempfile.TemporaryDirectory(prefix="nimburion-bench-", dir=folder) as path:
            yield f"sqlite:///{path}/bench.db", f"SQLite {sqlite3.sqlite_version}", None
        return
    family = POSTGRES if kind == "postgres" else REDIS
    binary = family.program()
    with family.serve(binary, "max_wal_size=16GB" if kind == "postgres" else "") as server:
        yield server.url, binary.name, server.pid


def main(arguments: list[str]) -> int:
    """Measure one backend or all."""
    parser = argparse.ArgumentParser(prog="benchmarks readings", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000, help="completed jobs that are kept")
    parser.add_argument("--backend", choices=KINDS, action="append", help="default: all")
    parser.add_argument("--folder", help="where the SQLite file is made")
    parser.add_argument("--save", action="store_true", help="keep text and raw output in results/")
    options = parser.parse_args(arguments)
    for kind in options.backend or KINDS:
        with serve(kind, options.folder) as (url, name, pid):
            taken = asyncio.run(measure(kind, url, options.rows, pid))
        run = {"heading": make_heading(name), "rows": options.rows, "readings": taken}
        print(run["heading"])
        print(show(kind, [run]), flush=True)
        if options.save:
            keep(kind, run)
    return 0


def make_heading(name: str) -> str:
    """Return what was measured, on what."""
    options = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(options, capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"Commit {commit}, {time.strftime('%Y-%m-%d %H:%M')}, {name}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores."
    )


def show(kind: Kind, runs: list[dict[str, Any]]) -> str:
    """Return a table with a column for each number of completed jobs."""
    titles = runs[-1]["readings"]
    lines = [
        [title, *(format_figures(run["readings"].get(title)) for run in runs)] for title in titles
    ]
    head = ["ms: median (least-worst), CPU", *(f"{run['rows']:,} kept" for run in runs)]
    return table(f"{kind}: readings with many completed jobs kept", head, lines)


def format_figures(figures: Figures | None) -> str:
    """Return the median, the least and the worst of the milliseconds, and the CPU time."""
    if figures is None:
        return ""
    times = figures["ms"]
    spread = f"{statistics.median(times):,.1f} ({min(times):,.1f}-{max(times):,.1f})"
    return f"{spread}, {figures['cpu_ms']:,.1f}"


def keep(kind: Kind, run: dict[str, Any]) -> None:
    """Add a run to the day's results; one of the same backend and size is replaced."""
    stem = RESULTS / time.strftime("readings-%Y%m%d")
    path = stem.with_suffix(".json")
    kept: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    kept.setdefault(kind, {})[str(run["rows"])] = run
    path.write_text(json.dumps(kept, indent=1) + "\n")
    shown = []
    for one in KINDS:
        runs = sorted(kept.get(one, {}).values(), key=lambda run: int(run["rows"]))
        if runs:
            shown += [*dict.fromkeys(str(run["heading"]) for run in runs), "", show(one, runs)]
    stem.with_suffix(".md").write_text("\n".join(shown))
