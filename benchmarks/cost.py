"""The cost of a plain job, by CPU time: `python3 dev.py bench cost [--against CHECKOUT]`.

A cost survives a busy machine better than a rate. It is printed for each backend in microseconds,
and in bare asyncio tasks of the same process (`benchmarks/job_cost.py` defines both). With
`--against`, an older checkout is measured in turn with this one, and the ratios are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.beside.environments import make_python_environment
from benchmarks.beside.family import Serving
from benchmarks.conditions import ROOT, describe_commit, describe_conditions, read_conditions, save
from benchmarks.postgres.family import NO_PAGES
from benchmarks.postgres.family import serve as serve_postgres
from benchmarks.redis.family import serve as serve_redis
from benchmarks.report import Rows, rounded_spread, table
from benchmarks.sqlite.family import program as sqlite_program
from benchmarks.sqlite.family import serve as serve_sqlite
from tests.servers.binaries import valkey_binary
from tests.servers.postgres_programs import postgres_binary

Costs = dict[str, list[float]]
"""The figures of each round, by their names."""

BACKENDS = {
    "memory": "memory",
    "sqlite": "SQLite",
    "redis": "Redis (Valkey)",
    "postgres": "PostgreSQL",
}
COLUMNS = {
    "bare_tasks": "a job in bare asyncio tasks",
    "drain_cpu": "run, worker CPU, µs a job",
    "drain_server_cpu": "run, server CPU, µs a job",
    "enqueue_one_cpu": "single enqueue, CPU, µs",
    "enqueue_one_server_cpu": "single enqueue, server CPU, µs",
    "wal": "WAL bytes a job, enqueued one by one, run and kept",
    "bare_task": "a bare task, µs",
}
REQUIREMENTS = ("msgspec", "click", "redis", "hiredis", "asyncpg", "uvloop")
"""What another Python needs to run the measured program."""


@contextmanager
def serve(backend: str) -> Iterator[tuple[str, int]]:
    """Yield the URL of an empty backend, and the process of its server, 0 without one."""
    if backend == "memory":
        yield "memory://", 0
        return
    running: AbstractContextManager[Serving]
    if backend == "sqlite":
        running = serve_sqlite(sqlite_program(), "")
    elif backend == "redis":
        running = serve_redis(valkey_binary(), "")
    else:  # the pages that a checkpoint makes PostgreSQL write in full would hide a job's own log
        running = serve_postgres(postgres_binary(), NO_PAGES)
    with running as server:
        yield server.url, server.pid


def measure_cost(
    backend: str,
    checkout: Path = ROOT,
    *,
    python: str = sys.executable,
    uvloop: bool = False,
    forget: bool = False,
    rounds: int = 5,
    jobs: int = 20_000,
) -> Costs:
    """Run the measured program with the package of a checkout, on an empty backend."""
    package = checkout.resolve() / "src"
    with serve(backend) as (url, server):
        command = [python, "-m", "benchmarks.job_cost", url, "--server", str(server)]
        command += ["--rounds", str(rounds), "--jobs", str(jobs), *["--uvloop"] * uvloop]
        command += ["--forget"] * (forget and checkout == ROOT)
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(package)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout)
    if not Path(found["package"]).is_relative_to(package):
        raise RuntimeError(f"{found['package']} was measured, not {package}")
    costs: Costs = found["rounds"]
    costs["wal"] = [
        one + drain for one, drain in zip(costs["enqueue_one_wal"], costs["drain_wal"], strict=True)
    ]
    return costs


def measure_costs(rounds: int, **options: Any) -> dict[str, Costs]:
    """Measure this checkout on each backend."""
    return {backend: measure_cost(backend, rounds=rounds, **options) for backend in BACKENDS}


def show_costs(costs: Mapping[str, Costs]) -> str:
    """Return the table of costs: a row for each backend."""
    rows = [
        [BACKENDS[backend], *(show_figure(found[name]) for name in COLUMNS)]
        for backend, found in costs.items()
    ]
    return table("The cost of a plain job", ["", *COLUMNS.values()], rows) + (
        "\nMedian (minimum-maximum) of the rounds, all in one process that is client and worker. A "
        "bare task is created with a copied context and awaited by `gather` in groups of 100, in "
        "that process. PostgreSQL runs with full_page_writes off.\n"
    )


def show_figure(values: Sequence[float]) -> str:
    """Return a cell; empty for what a backend does not have."""
    return rounded_spread(values) if any(values) else ""


def compare(
    other: Path, backends: Sequence[str], repeat: int, **options: Any
) -> dict[str, dict[str, list[Costs]]]:
    """Measure this checkout and another one in turn: A B B A A B ..."""
    found: dict[str, dict[str, list[Costs]]] = {}
    for backend in backends:
        pairs = found[backend] = {"this": [], "other": []}
        for turn in range(repeat):
            order = [("this", ROOT), ("other", other)]
            for name, checkout in order if turn % 2 else order[::-1]:
                pairs[name].append(measure_cost(backend, checkout, **options))
                cost = statistics.median(pairs[name][-1]["drain_cpu"])
                print(f"{backend}, {turn + 1}/{repeat}, {name}: {cost:.1f} µs", file=sys.stderr)
    return found


def summarize(runs: Sequence[Costs], name: str) -> list[float]:
    """Return the median of each run."""
    return [statistics.median(run[name]) for run in runs]


def show_comparison(found: Mapping[str, Mapping[str, Sequence[Costs]]], other: str) -> str:
    """Return the table of ratios: a row for each backend."""
    rows: Rows = []
    for backend, pairs in found.items():
        for name, title in COLUMNS.items():
            ours, theirs = (summarize(pairs[side], name) for side in ("this", "other"))
            if not any(ours):
                continue
            ratio = statistics.median(ours) / statistics.median(theirs)
            spreads = [rounded_spread(ours), rounded_spread(theirs)]
            rows.append([BACKENDS[backend], title, *spreads, f"{ratio:.2f}"])
    return table(
        f"Against {other}, in turn",
        ["", "", "this checkout", other, "ratio of the medians"],
        rows,
    )


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and keep the figures if asked to."""
    parser = argparse.ArgumentParser(prog="benchmarks cost", description=__doc__)
    parser.add_argument("backends", nargs="*", metavar="BACKEND", help=f"of {', '.join(BACKENDS)}")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="measure it in turn")
    parser.add_argument("--repeat", type=int, default=5, help="processes of each side, or rounds")
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs of a round")
    parser.add_argument("--python", metavar="PROGRAM", help="another Python, such as python3.13")
    parser.add_argument("--uvloop", action="store_true", help="run on uvloop")
    parser.add_argument(
        "--forget", action="store_true", help="keep no arguments of completed jobs in this checkout"
    )
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.backends) - set(BACKENDS)
    if unknown:
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    backends = chosen.backends or [*BACKENDS]
    python = sys.executable
    if chosen.python:
        needed = [f"{name}=={version(name)}" for name in REQUIREMENTS]
        python = make_python_environment(chosen.python, needed)
    options = {
        "python": python,
        "uvloop": chosen.uvloop,
        "forget": chosen.forget,
        "jobs": chosen.jobs,
    }
    found: dict[str, Any] = {"conditions": read_conditions()}
    found["conditions"]["python"] = read_version(python) + " with uvloop" * chosen.uvloop
    other = describe_commit(chosen.against) if chosen.against else ""
    if other:
        found["against"] = other
        found["costs"] = compare(chosen.against, backends, chosen.repeat, rounds=3, **options)
        tables = show_comparison(found["costs"], other)
    else:
        found["costs"] = {
            backend: measure_cost(backend, rounds=chosen.repeat, **options) for backend in backends
        }
        tables = show_costs(found["costs"])
    flags = ["python" + ".".join(read_version(python).split(".")[:2])] * bool(chosen.python)
    flags += ["uvloop"] * chosen.uvloop
    flags += ["forget"] * chosen.forget
    command = "python3 dev.py bench cost" + " --forget" * chosen.forget
    text = f"# The cost of a job\n\n`{command}`\n\n"
    text += f"{describe_conditions(found['conditions'])}\n\n{tables}"
    print(text)
    if chosen.save:
        words = ["against" if other else "cost", *flags]
        print(save("-".join(words), found, text), file=sys.stderr)
    return 0


def read_version(python: str) -> str:
    """Return the version of a Python."""
    command = [python, "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
