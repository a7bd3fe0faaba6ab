"""`python -m benchmarks monitoring [--phases 8] [--save]`: a live Prometheus beside a log.

Two workers and a program that only enqueues use all features on SQLite, and Prometheus scrapes
each. A phase is 20 seconds of load and 55 of rest. At the end of each rest, every expression of the
Grafana dashboard and of the alert rules is evaluated, and compared with what the log says. So is
each scraped count, also under load. After the end, the statistics in the backend are compared.

Ages, times, memory, loop lag and lease margin are compared with bounds, all else exactly. It needs
`prometheus` on PATH, a Debian package.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import yaml

import nimburion.telemetry
from benchmarks.conditions import describe_conditions, read_conditions, save
from benchmarks.monitoring.application import PAID, SCHEDULE, Log, declare_jobs
from benchmarks.monitoring.comparison import Comparison, Fleet, Prometheus
from benchmarks.report import table
from nimburion import Flow, Processor, config
from nimburion.errors import ScheduleNotFound

FILES = Path(nimburion.telemetry.__file__).parent / "files"
LOAD = 20.0
PHASE = 75
"""Seconds. Five and ten minutes are whole numbers of phases, so that all windows begin in a rest.
"""
EARLY = 11.0
"""Seconds before the end of a rest, so that a scrape of the same rest begins the next window."""
STEP = 3.0
"""Seconds between two helpings of load."""
SCRAPE = 10
"""Seconds, which are long enough for a page on a busy host."""
WORKERS = ("a", "b")
PRODUCER = "producer"
CUSTOMER = "megacorp"
"""Its jobs wait for their key during the rests."""


@contextmanager
def start(command: list[str], log: Path, **environment: str) -> Iterator[None]:
    """Run a process until the end of the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=output, stderr=output
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def find_ports(count: int) -> list[int]:
    """Return free ports."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def serve_metrics(processor: Processor, port: int) -> Iterator[None]:
    """Serve the metrics of a processor that only enqueues, on a page of one's own."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text, kind = processor.metrics.render(self.headers.get("accept", ""))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.shutdown()
    server.server_close()


class Load:
    """Enqueues jobs of all kinds, and logs them."""

    def __init__(self, processor: Processor, log: Log) -> None:
        self._processor = processor
        self._log = log
        self._jobs = declare_jobs(processor, log)
        self._number = 0
        self.fleet = Fleet()

    async def enqueue(self, name: str, queue: str, *arguments: object, **options: Any) -> str:
        """Enqueue a job."""
        job = self._jobs[name].job(*arguments)
        self._log.write("enqueued", queue, name)
        return str(await self._processor.enqueue(job, queue=queue, **options))

    async def add_helping(self) -> None:
        """Enqueue some jobs of each kind that end soon."""
        self._number += 1
        number = self._number
        for tenant in ("acme", "acme", "initech"):
            await self.enqueue("send", "mail", tenant=tenant)
        for name in ("print_letter", "flaky", "broken"):
            await self.enqueue(name, "mail")
        await self.enqueue("export", "exports", f"customer {number}", 0.0)
        await self.enqueue("report", "reports", 0.0)
        order = await self.enqueue("order", "runs")
        await self._processor.signal(order, PAID, 5)
        if number % 3 == 0:
            await self.add_flow(fails=False)
            await self.enqueue("spent", "mail")

    async def add_flow(self, *, fails: bool) -> None:
        """Enqueue a flow of four jobs. If it fails, one part is a dead letter."""
        flow = Flow("import")
        parts = flow.add_all(
            [self._jobs["part"].job(fails and n == 0) for n in range(3)], name="parts"
        )
        flow.add(self._jobs["gather"].job(parts.results), name="last")
        self._log.write("enqueued", "flows", "part", count=3)
        self._log.write("enqueued", "flows", "gather")
        await self._processor.enqueue_flow(flow)
        self.fleet.failed_flows += fails

    async def operate(self) -> None:
        """Do once in a phase what operators do: cancel, replay, run now."""
        processor, fleet = self._processor, self.fleet
        stopped = await self.enqueue("stopped", "mail")
        while (await processor.get_status(stopped)).state != "processing":
            await asyncio.sleep(0.1)
        await processor.cancel(stopped)
        await processor.bulk.start("replay", name="spent")
        for _ in range(2):
            await self.enqueue("send", "mail", after=7_200.0, tags=["unwanted"])
            await self.enqueue("send", "mail", after=7_200.0, tags=["wanted"])
        await processor.bulk.start("cancel", name="send", tag="unwanted")
        await processor.bulk.start("run_now", name="send", tag="wanted")
        await self.enqueue("send", "mail", after=7_200.0)
        fleet.scheduled += 1
        await self.add_flow(fails=True)

    async def leave_waiting(self, until: float) -> None:
        """Leave jobs that wait during the rest: for a key, for a limit, a pause, a worker."""
        fleet = self.fleet
        for one in (until, 0.0, 0.0):
            await self.enqueue("export", "exports", CUSTOMER, one)
            await self.enqueue("report", "reports", one)
        await self.enqueue("order", "runs")
        await self.enqueue("wait", "held")
        await self.enqueue("wait", "nowhere")
        await self.enqueue_unknown()
        fleet.note_left(time.time())

    async def enqueue_unknown(self) -> None:
        """Enqueue a job whose name no worker knows."""
        self._log.write("enqueued", "mail", "unknown")
        await self._processor.enqueue_raw("unknown", {}, queue="mail")


async def run_phases(load: Load, processor: Processor, comparison: Comparison, phases: int) -> None:
    """Load the fleet and let it rest; compare at the end of each rest."""
    await processor.queues.pause("held", reason="for a comparison")
    began = round(time.time(), 3)  # Prometheus knows milliseconds
    for number in range(phases):
        ends = began + (number + 1) * PHASE
        load_ends = ends - PHASE + LOAD
        await processor.schedules.resume(SCHEDULE)
        await load.operate()
        while time.time() < load_ends:
            next_helping = asyncio.create_task(asyncio.sleep(STEP))
            await load.add_helping()
            await next_helping
        await processor.schedules.pause(SCHEDULE)
        await load.leave_waiting(ends + 1.0)
        await asyncio.sleep(max(0.0, ends - time.time()))
        await asyncio.to_thread(comparison.compare_rest, ends - EARLY, load.fleet)
        print(comparison.describe(), file=sys.stderr, flush=True)


async def declare_schedule(processor: Processor) -> None:
    """Wait until a worker has declared the schedule."""
    for _ in range(300):
        try:
            await processor.schedules.get(SCHEDULE)
        except ScheduleNotFound:
            await asyncio.sleep(0.1)
        else:
            return
    raise RuntimeError("no worker has declared the schedule")


async def measure(folder: Path, phases: int) -> Comparison:
    """Run everything; return what was compared."""
    url = f"sqlite:///{folder / 'jobs.db'}"
    names = [*WORKERS, PRODUCER]
    logs = {name: folder / f"{name}.jsonl" for name in names}
    *ports, prometheus_port = find_ports(len(names) + 1)
    instances = {f"127.0.0.1:{port}": logs[name] for name, port in zip(names, ports, strict=True)}
    settings = {
        "global": {"scrape_interval": f"{SCRAPE}s", "evaluation_interval": "15s"},
        "rule_files": [str(FILES / "alerts.yaml")],
        "scrape_configs": [
            {"job_name": "nimburion", "static_configs": [{"targets": [*instances]}]},
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    prometheus = shutil.which("prometheus") or sys.exit("prometheus is not on PATH")
    command = [
        prometheus,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{prometheus_port}",
    ]
    cfg = config.load(jobs={"url": url})
    processor = Processor.from_config(cfg)
    load = Load(processor, Log(logs[PRODUCER]))
    since = time.time()
    comparison = Comparison(Prometheus(prometheus_port), instances, PHASE)
    worker = [sys.executable, "-m", "nimburion", "worker", "--backend", url, "--server"]
    worker.append("benchmarks.monitoring.application:make_processor")
    async with processor:
        with (
            serve_metrics(processor, ports[-1]),
            start(command, folder / "prometheus.log"),
            start_workers(worker, ports, logs, folder),
        ):
            await declare_schedule(processor)
            await run_phases(load, processor, comparison, phases)
            comparison.compare_scrapes()
    async with Processor.from_config(cfg) as reader:
        found = await reader.backend.reads.list_statistics(since - 120, time.time() + 60, 60)
    comparison.compare_statistics(found)
    return comparison


@contextmanager
def start_workers(
    command: list[str], ports: list[int], logs: dict[str, Path], folder: Path
) -> Iterator[None]:
    """Run the workers until the end of the block."""
    first, second = WORKERS
    with (
        start(
            [*command, "--server-port", str(ports[0])],
            folder / "a.log",
            MONITORING_LOG=str(logs[first]),
            MONITORING_SCHEDULES="1",
        ),
        start(
            [*command, "--server-port", str(ports[1])],
            folder / "b.log",
            MONITORING_LOG=str(logs[second]),
        ),
    ):
        yield


def main(arguments: list[str]) -> int:
    """Measure, print, and keep the result when asked to."""
    parser = argparse.ArgumentParser(prog="benchmarks monitoring", description=__doc__)
    parser.add_argument("--phases", type=int, default=8, help=f"of {PHASE} seconds each")
    parser.add_argument("--keep", type=Path, help="a folder for the logs and the data")
    parser.add_argument("--save", action="store_true", help="keep text and figures in results/")
    options = parser.parse_args(arguments)
    conditions = read_conditions()
    with tempfile.TemporaryDirectory(prefix="nimburion-monitoring-") as path:
        folder = options.keep or Path(path)
        folder.mkdir(exist_ok=True)
        comparison = asyncio.run(measure(folder, options.phases))
    head = ["compared with the log", "values", "wrong"]
    rows = [[kind, str(one.values), str(len(one.wrong))] for kind, one in comparison.kinds.items()]
    title = f"{options.phases} phases, {comparison.jobs} jobs enqueued"
    text = f"{describe_conditions(conditions)}\n{table(title, head, rows)}"
    wrong = [line for one in comparison.kinds.values() for line in one.wrong]
    print(text, *wrong, sep="\n")
    if options.save:
        kinds = {kind: msgspec.to_builtins(one) for kind, one in comparison.kinds.items()}
        save(
            "monitoring", {"conditions": conditions, "jobs": comparison.jobs, **kinds}, text + "\n"
        )
    return 1 if wrong else 0
