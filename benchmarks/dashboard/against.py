"""Time pages of the dashboard in turn with another checkout.

`python -m benchmarks.dashboard.against OTHER OURS.json THEIRS.json [--rounds 20]`. Both files are
what `--keep` of `benchmarks.dashboard` wrote, each with the code of its own checkout. The servers
are processes of their own: their CPU time is that of a page, with what its threads do.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from benchmarks.conditions import describe_conditions, read_conditions, save
from benchmarks.report import table

ROOT = Path(__file__).parents[2]
STATES = ("failed", "processing", "completed", "scheduled")
SERVE = f"""
import asyncio, json, os, sys
from pathlib import Path
import msgspec
from benchmarks.dashboard.__main__ import PAGES, FilledBackend, find_path, serve_dashboard
from nimburion.core.job import State
from nimburion.core.queries import JobFilter

async def main():
    filled = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=FilledBackend)
    async with serve_dashboard(filled.url) as (address, services):
        pages = [page for page in PAGES if "{{flow}}" not in page.path]
        paths = {{page.name: [find_path(page, filled.filled)] for page in pages}}
        reads = getattr(services.backend, "reads", services.backend)
        for state in {STATES}:
            found = await reads.list_jobs(JobFilter(states=frozenset({{State(state)}})), limit=2)
            if len(found.jobs) == 2:  # two jobs, so that no page finds what another one has read
                one, other = found.jobs
                parts = [page for page in PAGES if page.name in ("job", "job_contents")]
                paths[f"job, {{state}}"] = [f"/jobs/{{one.id}}"]
                paths[f"job, {{state}}, and its data"] = [
                    page.path.format(id=other.id) for page in parts
                ]
        known = {{"address": address, "paths": paths, "pid": os.getpid()}}
        print(json.dumps(known), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


class Load(msgspec.Struct, frozen=True):
    """What one load of a page took, in milliseconds."""

    cpu: float
    wall: float


class Server(msgspec.Struct, frozen=True):
    """A dashboard that is served by a process of its own."""

    address: str
    paths: dict[str, list[str]]
    """For each page, what is loaded: two pages where a checkout has the data of a job apart."""
    pid: int

    def read_cpu(self) -> float:
        """Return the CPU milliseconds of all threads so far."""
        spent = 0
        for file in Path(f"/proc/{self.pid}/task").glob("*/schedstat"):
            with suppress(OSError):  # a thread may end
                spent += int(file.read_text().split()[0])
        return spent / 1e6

    def load(self, connection: http.client.HTTPConnection, page: str) -> Load:
        """Load a page that exists."""
        prefix = urlsplit(self.address).path
        cpu, started = self.read_cpu(), time.perf_counter()
        for path in self.paths[page]:
            connection.request("GET", prefix + path, headers={"Accept": "text/html"})
            # A checkout may send head and body apart, and wait for the first to be acknowledged.
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            connection.getresponse().read()
        wall = 1000 * (time.perf_counter() - started)
        return Load(self.read_cpu() - cpu, wall)


@contextmanager
def serve(checkout: Path, filled: Path) -> Iterator[Server]:
    """Serve the dashboard of a filled backend with the code of a checkout."""
    environment = {**os.environ, "PYTHONPATH": f"{checkout / 'src'}:{checkout}"}
    command = [sys.executable, "-c", SERVE, str(filled.absolute())]
    with subprocess.Popen(
        command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield msgspec.convert(json.loads(process.stdout.readline()), Server)
        process.kill()


def measure(
    sides: dict[str, Server], rounds: int, only: list[str]
) -> dict[str, dict[str, list[Load]]]:
    """Load each page that both sides have, in turn; rounds are at least a second apart."""
    ours, theirs = sides.values()
    pages = [page for page in only or ours.paths if page in ours.paths and page in theirs.paths]
    taken: dict[str, dict[str, list[Load]]] = {page: {side: [] for side in sides} for page in pages}
    connections = {
        side: http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=60.0)
        for side, server in sides.items()
    }
    for number in range(rounds + 1):
        until = time.monotonic() + 1.05
        order = list(sides) if number % 2 else list(reversed(sides))
        for page in pages:
            for side in order:
                load = sides[side].load(connections[side], page)
                if number:  # the first one compiles templates and reads statistics
                    taken[page][side].append(load)
        time.sleep(max(0.0, until - time.monotonic()))
    return taken


def show(taken: dict[str, dict[str, list[Load]]]) -> str:
    """Return the ratios of ours to theirs."""
    rows = []
    for page, sides in taken.items():
        row = [page]
        for field in ("cpu", "wall"):
            values = [[getattr(load, field) for load in loads] for loads in sides.values()]
            for pick in (statistics.median, _pick_p95):
                ours, theirs = (pick(one) for one in values)
                row.append(f"{ours:.1f} / {theirs:.1f} = {ours / theirs:.2f}")
        rows.append(row)
    head = ["ours / theirs, ms", "CPU p50", "CPU p95", "wall p50", "wall p95"]
    return table("pages in turn", head, rows)


def list_loads(loads: list[Load]) -> dict[str, str]:
    """Return the milliseconds of each load, as two lines of numbers."""
    return {
        field: " ".join(f"{getattr(load, field):.2f}" for load in loads)
        for field in ("cpu", "wall")
    }


def _pick_p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.dashboard.against", description=__doc__)
    parser.add_argument("other", type=Path, help="another checkout")
    parser.add_argument("ours", type=Path, help="a backend that this checkout filled")
    parser.add_argument("theirs", type=Path, help="one that the other filled")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--save", action="store_true", help="keep text and raw output in results/")
    parser.add_argument("--page", action="append", default=[], help="default: all")
    options = parser.parse_args()
    with ExitStack() as servers:
        ours = servers.enter_context(serve(ROOT, options.ours))
        theirs = servers.enter_context(serve(options.other, options.theirs))
        conditions = read_conditions()
        taken = measure({"ours": ours, "theirs": theirs}, options.rounds, options.page)
    text = f"{describe_conditions(conditions)}\n{show(taken)}"
    print(text, flush=True)
    if options.save:
        figures = {
            page: {side: list_loads(loads) for side, loads in sides.items()}
            for page, sides in taken.items()
        }
        save("dashboard-against", {"conditions": conditions, **figures}, text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
