"""`python -m benchmarks schedules|scrape`: what schedules cost, and a scrape of metrics."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.conditions import describe_conditions, read_conditions, save
from benchmarks.report import Rows, spread, table


class Run:
    """One run: how often each scene is repeated, and everything that the scenes printed."""

    def __init__(self, repeat: int) -> None:
        self.repeat = repeat
        self.raw: list[dict[str, Any]] = []

    def ours(self, scene: str, url: str | None = None, **arguments: Any) -> dict[str, Any]:
        """Run one of our scenes in a process of its own, by default on a fresh SQLite file."""
        if url is not None:
            return self._run("benchmarks.scenes", scene, url=url, **arguments)
        with fresh() as path:
            return self._run("benchmarks.scenes", scene, url=f"sqlite:///{path}", **arguments)

    def _run(self, module: str, scene: str, **arguments: Any) -> dict[str, Any]:
        command = [sys.executable, "-m", module, scene, json.dumps(arguments)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        printed: dict[str, Any] = json.loads(done.stdout)
        shown = {k: v for k, v in arguments.items() if k not in {"url", "path"}}
        self.raw.append({"module": module, "scene": scene, **shown, "printed": printed})
        return printed


EXPRESSIONS = ("* * * * *", "*/5 9-17 * * MON-FRI", "0 2 * * *", "30 9 * * MON-FRI", "0 0 L * *")


def schedules(run: Run) -> tuple[str, Rows]:
    """Schedules: what 10,000 cost one scheduler, and what the next tick of one does."""
    many = [run.ours("schedules", count=10_000, seconds=60) for _ in range(run.repeat)]
    each = [
        [f"next tick of `{one}`, µs", spread([took["microseconds"]], 1), "", "", ""]
        for one in EXPRESSIONS
        for took in [run.ours("next_tick", expression=one, zone="Europe/Rome")]
    ]
    return "SQLite, one scheduler, 10,000 schedules each once an hour", [
        ["CPU, % of a core", spread([one["cpu_percent"] for one in many], 2), "", "", ""],
        ["ticks in a minute", spread([one["ticks"] for one in many]), "", "", ""],
        ["a tick is late, median, ms", spread([one["median_ms"] for one in many], 1), "", "", ""],
        ["a tick is late, at most, ms", spread([one["worst_ms"] for one in many], 1), "", "", ""],
        ["declaring them all, s", spread([one["declaring_s"] for one in many], 1), "", "", ""],
        *each,
    ]


def scrape(run: Run) -> tuple[str, Rows]:
    """Scrape: `/metrics` with 1,000 queues and 200 names, jobs waiting in each."""
    rows = []
    urls = {"SQLite": None, **{name: os.environ.get(f"SCRAPE_{name.upper()}") for name in SERVERS}}
    for name, url in urls.items():
        if url is None and name != "SQLite":
            continue
        for counted, what in ((False, "backend only"), (True, "with 1,000 queues run here")):
            found = run.ours(
                "scrape", url=url, queues=1_000, names=200, scrapes=15, counted=counted
            )
            reads = ", ".join(f"{kind} {count}" for kind, count in sorted(found["reads"].items()))
            size = f"{found['bytes'] / 1024:.0f} KiB"
            rows += [
                [f"{name}, {what}, ms", spread(found["ms"], 1), size, reads, ""],
                [
                    f"{name}, {what}, ms of CPU, client included",
                    spread(found["cpu_ms"], 1),
                    "",
                    "",
                    "",
                ],
            ]
    return "A scrape of 1,000 queues and 200 names, a new connection for each", rows


SERVERS = ("Redis", "PostgreSQL")
"""Measured too, if `SCRAPE_REDIS` or `SCRAPE_POSTGRESQL` is the URL of an empty one."""


@contextmanager
def fresh() -> Iterator[str]:
    """A path for a database in a folder of its own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="nimburion-bench-") as folder:
        yield str(Path(folder) / "bench.db")


def main_schedules(arguments: Sequence[str]) -> int:
    """Print what schedules cost."""
    return print_table("schedules", schedules, arguments)


def main_scrape(arguments: Sequence[str]) -> int:
    """Print what a scrape of metrics does."""
    return print_table("scrape", scrape, arguments)


def print_table(
    name: str, measure: Callable[[Run], tuple[str, Rows]], arguments: Sequence[str]
) -> int:
    """Measure, print, and keep the figures if asked to."""
    parser = argparse.ArgumentParser(prog=f"benchmarks {name}", description=measure.__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="keep text and raw output in results/")
    chosen = parser.parse_args(arguments)
    run = Run(chosen.repeat)
    conditions = read_conditions()
    title, rows = measure(run)
    text = f"{describe_conditions(conditions)}\n\n"
    text += table(title, ["", "nimburion", "beside", "", "ratio"], rows)
    print(text)
    if chosen.save:
        save(name, {"conditions": conditions, "runs": run.raw}, text)
    return 0
