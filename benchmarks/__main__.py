"""`python -m benchmarks [redis|postgres] [TABLE ...] [--repeat N] [--save]`: print tables.

`python -m benchmarks readings [--rows N] [--backend NAME] [--save]` times what operators read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.beside.family import Family
from benchmarks.beside.main import Tables
from benchmarks.beside.main import main as beside_others
from benchmarks.readings.main import main as measure_readings
from benchmarks.report import Rows, at, ratio, spread, table

RESULTS = Path(__file__).parent / "results"


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

    def huey(self, scene: str, **arguments: Any) -> dict[str, Any]:
        """Run one of Huey's scenes on a fresh file."""
        with fresh() as path:
            return self._run("benchmarks.huey_scenes", scene, path=path, **arguments)

    def rates(self, *runs: Callable[[], dict[str, Any]]) -> list[list[float]]:
        """Each scene's rates, the scenes in turn: A B A B ..., so that noise meets all alike."""
        rates: list[list[float]] = [[] for _ in runs]
        for _ in range(self.repeat):
            for values, run in zip(rates, runs, strict=True):
                values.append(run()["rate"])
        return rates

    def pickups(self, module: str, where: dict[str, str], jobs: int) -> list[float]:
        """The milliseconds of `jobs` pickups at 50 a second, worker and producer apart."""
        worker = subprocess.Popen(
            [sys.executable, "-m", module, "pickup_worker", json.dumps({**where, "jobs": jobs})],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert worker.stderr is not None
        while "ready" not in worker.stderr.readline():
            pass
        self._run(module, "pickup_producer", **where, jobs=jobs, every=0.02)
        printed, _ = worker.communicate(timeout=60)
        values: list[float] = json.loads(printed)["ms"]
        self.raw.append({"module": module, "scene": "pickup_worker", "printed": values})
        return values

    def _run(self, module: str, scene: str, **arguments: Any) -> dict[str, Any]:
        command = [sys.executable, "-m", module, scene, json.dumps(arguments)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        printed: dict[str, Any] = json.loads(done.stdout)
        shown = {k: v for k, v in arguments.items() if k not in {"url", "path"}}
        self.raw.append({"module": module, "scene": scene, **shown, "printed": printed})
        return printed


def enqueue(run: Run) -> tuple[str, Rows]:
    """Enqueue: one after another, a hundred producers, and in bulk."""
    one, peer = run.rates(
        lambda: run.ours("enqueue_one", jobs=3_000),
        lambda: run.huey("enqueue_one", jobs=3_000),
    )
    together, bulk = run.rates(
        lambda: run.ours("enqueue_together", jobs=20_000, producers=100),
        lambda: run.ours("enqueue_bulk", jobs=200_000),
    )
    return "SQLite, enqueue, jobs/s", [
        ["one call after another", spread(one), "Huey", spread(peer), ratio(one, peer)],
        ["100 producers in a process", spread(together), "", "", ""],
        ["enqueue_many, 1,000 a call", spread(bulk), "", "", ""],
    ]


def drain(run: Run) -> tuple[str, Rows]:
    """Drain: one worker process, default settings."""
    engine, many, single, peer = run.rates(
        lambda: run.ours("drain", url="memory://", jobs=200_000, fill_first=True, look_every=1.0),
        lambda: run.ours("drain", jobs=100_000, names=200, queues=5, fill_first=True),
        lambda: run.ours("drain", jobs=100_000, fill_first=True),
        lambda: run.huey("drain", jobs=20_000, workers=1),
    )
    return "Drain, 1 process, jobs/s", [
        ["memory (the engine alone)", spread(engine), "", "", ""],
        ["SQLite", spread(single), "Huey (at most once)", spread(peer), ratio(single, peer)],
        ["SQLite, 200 names over 5 queues", spread(many), "one name", "", ratio(many, single)],
    ]


def long(run: Run) -> tuple[str, Rows]:
    """Drain with a long table: a million waiting, then a million completed kept."""
    looks = {"look_every": 1.0}  # counting a million jobs is work too
    with fresh() as path:
        url = f"sqlite:///{path}"
        run.ours("fill", url=url, jobs=300_000)
        alone = run.ours("drain", url=url, jobs=300_000, **looks)["rate"]
        run.ours("fill", url=url, jobs=1_300_000)
        waiting = run.ours("drain", url=url, jobs=300_000, **looks)["rate"]
        # A drain overshoots a little: asking for all that is left would wait for ever.
        run.ours("drain", url=url, jobs=900_000, **looks)
        run.ours("fill", url=url, jobs=300_000)
        kept = run.ours("drain", url=url, jobs=300_000, **looks)["rate"]
    return "SQLite, drain of 300,000, jobs/s", [
        ["nothing else in the file", f"{alone:,.0f}", "", "", ""],
        ["1 M more waiting", f"{waiting:,.0f}", "nothing else", "", f"{waiting / alone:.2f}"],
        ["1.5 M completed kept", f"{kept:,.0f}", "nothing else", "", f"{kept / alone:.2f}"],
    ]


def pickup(run: Run) -> tuple[str, Rows]:
    """Pickup: another process enqueues 50 jobs a second; from before the call to the handler."""
    with fresh() as path:
        ours = run.pickups("benchmarks.scenes", {"url": f"sqlite:///{path}"}, 500)
    with fresh() as path:
        peer = run.pickups("benchmarks.huey_scenes", {"path": path}, 500)
    return "SQLite, pickup at 50 jobs/s, ms", [
        ["p50", f"{at(ours, 50):.2f}", "Huey", f"{at(peer, 50):.2f}", ""],
        ["p99", f"{at(ours, 99):.2f}", "Huey", f"{at(peer, 99):.2f}", ""],
    ]


def idle(run: Run) -> tuple[str, Rows]:
    """Idle: a worker with nothing to do, for 30 seconds."""
    ours = run.ours("idle", seconds=30)
    peer = run.huey("idle", seconds=30)
    cpu, calls = ours["cpu_percent"], ours["calls_per_second"]
    return "SQLite, an idle worker", [
        ["CPU, % of a core", f"{cpu:.2f}", "Huey", f"{peer['cpu_percent']:.2f}", ""],
        ["calls to the backend a second", f"{calls:.2f}", "", "", ""],
    ]


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

TABLES = {
    table.__name__: table for table in (enqueue, drain, long, pickup, idle, schedules, scrape)
}


@contextmanager
def fresh() -> Iterator[str]:
    """A path for a database in a folder of its own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="nimburion-bench-") as folder:
        yield str(Path(folder) / "bench.db")


def show(title: str, rows: Rows) -> str:
    """A table of ours beside another."""
    return table(title, ["", "nimburion", "beside", "", "ratio"], rows)


def heading() -> str:
    """What was measured, on what."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return (
        f"Commit {commit}, {time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, Huey {version('huey')}, "
        f"{platform.system()} {platform.machine()}. Median (minimum-maximum) of the repetitions; "
        "no-op async jobs, payload of about 250 bytes, default settings.\n"
    )


def chosen(name: str) -> tuple[Family, Tables]:
    """A kind of server, and its tables."""
    family: Family = import_module(f"benchmarks.{name}.family").FAMILY
    tables: Tables = import_module(f"benchmarks.{name}.tables").TABLES
    return family, tables


def main() -> None:
    """Run what was asked for."""
    if sys.argv[1:2] in (["redis"], ["postgres"]):
        sys.exit(beside_others(*chosen(sys.argv[1]), sys.argv[2:]))
    if sys.argv[1:2] == ["readings"]:
        sys.exit(measure_readings(sys.argv[2:]))
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="keep text and raw output in results/")
    options = parser.parse_args()
    unknown = set(options.tables) - set(TABLES)
    if unknown:
        parser.error(f"no such table: {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    run = Run(options.repeat)
    texts = [heading()]
    print(texts[0])
    for name in options.tables or TABLES:
        texts.append(show(*TABLES[name](run)))
        print(texts[-1], flush=True)
    if options.save:
        what = "-".join(options.tables) or "sqlite"
        stem = RESULTS / time.strftime(f"{what}-%Y%m%d")
        stem.with_suffix(".md").write_text("\n".join(texts))
        stem.with_suffix(".json").write_text(json.dumps(run.raw, indent=1) + "\n")


if __name__ == "__main__":
    main()
