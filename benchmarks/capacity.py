"""What a job and a worker take on each backend: memory, connections and disk.

    python -m benchmarks.capacity [--jobs N] [--backend NAME] [--save]

No-op async jobs with a payload of 250 bytes, default settings, and a server of its own for each
backend (Redis with an append-only file, PostgreSQL with its defaults). The parts:

- Jobs: N jobs are enqueued, then one worker completes them. The sizes with N waiting and with N
  completed jobs: used pages of the SQLite file; memory of Redis, and its append-only file after a
  rewrite; tables and indexes of PostgreSQL after a vacuum, and the log that was written.
- Worker: `nimburion worker`, idle after its start; then ten jobs at the same time enqueue further
  jobs. Its memory is the resident set; its connections are those that the server counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.payload import PAYLOAD
from benchmarks.redis.family import APPEND_ONLY
from benchmarks.redis.family import program as redis_program
from benchmarks.redis.family import serve as serve_redis
from benchmarks.report import table
from benchmarks.workload import noop
from nimburion import config
from nimburion.backends import open_backend
from nimburion.jobs import Processor, get_current_context, job
from tests.servers.postgres import PostgresServer
from tests.servers.postgres_programs import postgres_binary
from tests.servers.server import Server

RESULTS = Path(__file__).parent / "results"
KINDS = ("sqlite", "redis", "postgres")
BUSY_JOBS = 10
ENQUEUED_BY_EACH = 200
_MIB = 2**20

Figures = dict[str, float]


class Subject(ABC):
    """A backend, and how to look at its server."""

    name: str
    url: str

    @abstractmethod
    def measure_size(self) -> dict[str, float]:
        """Return the bytes of all data, by where they are."""

    @abstractmethod
    def count_connections(self) -> int:
        """Return the number of client connections, apart from the one that asks."""


class SQLiteSubject(Subject):
    """A file in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.name = f"SQLite {sqlite3.sqlite_version}"
        self.url = f"sqlite:///{folder / 'capacity.db'}"
        self._path = folder / "capacity.db"

    def measure_size(self) -> dict[str, float]:
        """The pages in use; the file may have free ones, which the next jobs fill."""
        with closing(sqlite3.connect(self._path)) as connection:
            pages, free, size = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        return {"disk": (pages - free) * size}

    def count_connections(self) -> int:
        return 0


class RedisSubject(Subject):
    """A server with an append-only file."""

    def __init__(self, server: Server) -> None:
        self.name = server.name
        self.url = server.url
        self._server = server

    def measure_size(self) -> dict[str, float]:
        """The memory, and the append-only file after a rewrite."""
        self._server.ask("BGREWRITEAOF")
        while (state := self._server.ask("INFO", "persistence"))["aof_rewrite_in_progress"] or (
            state["aof_rewrite_scheduled"]
        ):
            time.sleep(0.2)
        memory = self._server.ask("INFO", "memory")["used_memory"]
        return {"disk": measure_files(self._server.folder), "memory": memory}

    def count_connections(self) -> int:
        return int(self._server.ask("INFO", "clients")["connected_clients"]) - 1


class PostgresSubject(Subject):
    """A durable server with an empty database."""

    def __init__(self, server: PostgresServer) -> None:
        self.name = server.binary.name
        self.url = server.url
        self._server = server

    def measure_size(self) -> dict[str, float]:
        """The tables of nimburion with their indexes, those of finished jobs and the others; and
        all WAL so far, which is recycled. Jobs that are enqueued later use the space of others."""
        self._server.ask("VACUUM")
        [[finished, others, wal]] = self._server.ask(
            """SELECT
                coalesce(sum(size) FILTER (WHERE relname LIKE 'finished%'), 0)::float8,
                coalesce(sum(size) FILTER (WHERE relname NOT LIKE 'finished%'), 0)::float8,
                (pg_current_wal_lsn() - '0/0')::float8
            FROM (
                SELECT relname, pg_total_relation_size(oid) AS size FROM pg_class
                WHERE relnamespace = to_regnamespace('nimburion') AND relkind IN ('r', 'S')
            ) AS tables"""
        )
        return {"disk, finished jobs": finished, "disk, other tables": others, "wal": wal}

    def count_connections(self) -> int:
        [[count]] = self._server.ask(
            """SELECT count(*) FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"""
        )
        return int(count)


def measure_files(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def serve(kind: str) -> Iterator[Subject]:
    """An empty backend."""
    if kind == "sqlite":
        with tempfile.TemporaryDirectory(prefix="nimburion-bench-") as folder:
            yield SQLiteSubject(Path(folder))
    elif kind == "redis":
        with serve_redis(redis_program(), APPEND_ONLY) as server:
            assert isinstance(server, Server)
            yield RedisSubject(server)
    else:
        with PostgresServer(postgres_binary(), "shared_buffers=128MB", durable=True) as postgres:
            postgres.empty()
            yield PostgresSubject(postgres)


# --- in processes of their own --------------------------------------------------------------------


@job(name="enqueue_more", queue="busy")
async def enqueue_more() -> None:
    """Enqueue jobs one after another, as handlers do."""
    context = get_current_context()
    assert context is not None
    for _ in range(ENQUEUED_BY_EACH):
        await context.enqueue(noop.job(**PAYLOAD), queue="elsewhere")


def make_worker() -> Processor:
    """Return the processor of `nimburion worker`."""
    processor = Processor.from_config(config.load())
    processor.register(noop, enqueue_more)
    return processor


def run_scene(scene: str, **arguments: Any) -> Figures:
    """Run one of `benchmarks.scenes` in a process of its own and return what it prints."""
    command = [sys.executable, "-m", "benchmarks.scenes", scene, json.dumps(arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: Figures = json.loads(done.stdout)
    return figures


# --- parts ----------------------------------------------------------------------------------------


def measure_jobs(subject: Subject, jobs: int) -> Figures:
    """Enqueue and complete jobs; return the bytes a job."""
    asyncio.run(create_tables(subject.url))
    empty = subject.measure_size()
    run_scene("enqueue_bulk", url=subject.url, jobs=jobs)
    waiting = subject.measure_size()
    run_scene("drain", url=subject.url, jobs=jobs, look_every=1.0)
    completed = subject.measure_size()
    return {
        f"{where}: bytes a {state} job": (size[where] - empty[where]) / jobs
        for where in empty
        for state, size in (("waiting", waiting), ("completed", completed))
    }


async def create_tables(url: str) -> None:
    """Open the backend once, so that what it creates is there."""
    backend = open_backend(url)
    await backend.open()
    await backend.close()


def measure_worker(subject: Subject) -> Figures:
    """Return memory and connections of a worker that is idle, and of one whose handlers enqueue."""
    before = subject.count_connections()
    environment = {**os.environ, "NIMBURION_JOBS__URL": subject.url}
    command = [sys.executable, "-m", "nimburion", "worker", "benchmarks.capacity:make_worker"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stderr is not None
            next(line for line in worker.stderr if "ready:" in line)
            time.sleep(3)
            idle, connections = read_memory(worker.pid), subject.count_connections() - before
            asyncio.run(enqueue_busy_jobs(subject.url))
            most = 0
            while asyncio.run(count_unfinished(subject.url, "busy")):
                most = max(most, subject.count_connections() - before)
            busy = read_memory(worker.pid)
        finally:
            worker.terminate()
            worker.communicate(timeout=60)
    return {
        "worker: MiB when idle": idle,
        "worker: MiB after work": busy,
        "worker: connections when idle": connections,
        "worker: connections when handlers enqueue": most,
    }


async def enqueue_busy_jobs(url: str) -> None:
    """Enqueue the jobs that enqueue others."""
    async with Processor(open_backend(url)) as processor:
        await processor.enqueue_many([enqueue_more.job() for _ in range(BUSY_JOBS)])


async def count_unfinished(url: str, queue: str) -> int:
    """Return how many jobs of a queue are unfinished."""
    async with Processor(open_backend(url)) as processor:
        found = {one.name: one for one in await processor.backend.reads.list_queues()}
        return found[queue].size + found[queue].processing if queue in found else 0


def read_memory(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (resident,) = [line.split()[1] for line in lines if line.startswith("VmRSS")]
    return int(resident) * 1024 / _MIB


# --- report ---------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Measure one backend or all."""
    parser = argparse.ArgumentParser(prog="benchmarks.capacity", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--backend", choices=KINDS, action="append", help="default: all")
    parser.add_argument("--save", action="store_true", help="keep text and raw output in results/")
    options = parser.parse_args(arguments)
    results: dict[str, Figures] = {}
    heading = make_heading(options.jobs)
    for kind in options.backend or KINDS:
        with serve(kind) as subject:
            worker = measure_worker(subject)
        with serve(kind) as subject:
            results[subject.name] = {**measure_jobs(subject, options.jobs), **worker}
        print(json.dumps({subject.name: results[subject.name]}), file=sys.stderr, flush=True)
    text = f"{heading}\n{show(results)}"
    print(text)
    if options.save:
        stem = RESULTS / time.strftime("capacity-%Y%m%d")
        stem.with_suffix(".md").write_text(text)
        raw = {"heading": heading, "jobs": options.jobs, "results": results}
        stem.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
    return 0


def show(results: dict[str, Figures]) -> str:
    """Return a table with a column for each backend."""
    titles = list(dict.fromkeys(title for figures in results.values() for title in figures))
    rows = [
        [title, *(format_figure(figures.get(title)) for figures in results.values())]
        for title in titles
    ]
    return table("What a job and a worker take", ["", *results], rows)


def format_figure(figure: float | None) -> str:
    """Return a figure with a decimal if it is small."""
    if figure is None:
        return ""
    return f"{figure:,.1f}" if figure < 100 else f"{figure:,.0f}"


def make_heading(jobs: int) -> str:
    """Return what was measured, on what, and how busy the machine was."""
    options = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(options, capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"Commit {commit}, {time.strftime('%Y-%m-%d %H:%M')}, {jobs:,} jobs, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores, load before: {os.getloadavg()[0]:.1f}. One run.\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
