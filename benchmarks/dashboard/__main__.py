"""Fill a backend, serve the dashboard, and time its pages, its reads and its live updates.

`python -m benchmarks.dashboard --backend sqlite [--scale 0.1] [--save]`. Scale 1 is 1,000,000
waiting jobs, 2,000,000 completed ones and 10,000 dead letters. The server and the client share this
process, so CPU times are those of both, and of the server of the backend.

Filling takes minutes. `--keep FILE` fills one backend and keeps its server until the process ends;
`--filled FILE` measures it, as often as you like. `--browser` opens each page in Chromium instead.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import Any

import httpx
import msgspec
import uvicorn

from benchmarks.dashboard.browser import BrowserFigures, drive_pages, show_browser
from benchmarks.readings.fill import FINGERPRINTS, Filled, Kind, fill, fill_statistics
from benchmarks.readings.main import KINDS, RESULTS, make_heading, read_cpu, serve
from benchmarks.report import table
from nimburion import config
from nimburion.backends import open_backend
from nimburion.core.job import NewJob
from nimburion.jobs.client.client import Client
from nimburion.server.access import AccessControl
from nimburion.server.dashboard.page import AnyPage
from nimburion.server.dashboard.site import PAGES
from nimburion.server.health import HealthChecks
from nimburion.server.management import bind
from nimburion.server.routes import make_management_app
from nimburion.server.services import ManagementServices

WAITING = 1_000_000
COMPLETED = 2_000_000
DEAD_LETTERS = 10_000
ROUNDS = 20
"""How often each page is loaded, at least a second apart."""
VIEWERS = 10
WATCHED = 30.0
"""Seconds for which the viewers watch a page."""
NOT_READ = 'data-pending="yes"'
"""In a page that came without its values; its script asks for them at once."""
SHOWN_QUEUE = "queue_2"
"""The queue whose page is timed."""
PAUSED = "queue_1"
"""The queue that is paused."""
PAUSES = 8
"""How many pauses and ends of pauses are timed."""
EVENTS = 12
"""How many events are timed."""
SLOWEST = 8
"""How many of the slowest reads are listed."""

END_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
"""They end a backend that is kept."""

Figures = dict[str, Any]


@asynccontextmanager
async def serve_dashboard(url: str) -> AsyncIterator[tuple[str, ManagementServices]]:
    """Serve the dashboard of a backend as `nimburion dashboard` does; yields its address and its
    services when the pages are prepared.
    """
    settings = config.load(jobs={"url": url}, server={"port": 0})
    client = Client(open_backend(url), settings=settings.jobs)
    await client.open()
    health = HealthChecks(client.backend, client.clock, lambda: "started", None)
    services = ManagementServices(settings, client, health)
    app = make_management_app(services, AccessControl(settings.server, ()))
    with bind(settings.server) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await fill_statistics(services.backend)  # the backend may have been filled hours ago
        await services.preparation.run()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/dashboard", services
        await services.stop_reads()
        server.should_exit = True
        await serving
    await client.close()


def find_path(page: AnyPage, filled: Filled) -> str:
    """Return the path of a page that shows something."""
    values = {
        "queue": SHOWN_QUEUE,
        "id": filled.waiting,
        "fingerprint": f"{1 % FINGERPRINTS:016x}",
        "name": "none",
    }
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], page.path)


def list_paths(filled: Filled) -> dict[str, str]:
    """Return the paths of the pages by their names. No flow is stored, so theirs are left out."""
    return {page.name: find_path(page, filled) for page in PAGES if "{flow}" not in page.path}


async def time_pages(
    client: httpx.AsyncClient, address: str, filled: Filled, pid: int | None
) -> Figures:
    """Return the milliseconds until the first byte of each page: of the first load, and of the
    others; until its values are there, for pages that came without them; and the CPU milliseconds
    of one load on average.
    """
    pages = list_paths(filled)
    figures: Figures = {name: {"ms": [], "filled_ms": [], "cpu_ms": 0.0} for name in pages}
    for _ in range(ROUNDS + 1):
        next_round = asyncio.create_task(asyncio.sleep(1.0))
        for name, path in pages.items():
            cpu, started = read_cpu(pid), time.perf_counter()
            async with client.stream("GET", address + path) as response:
                figures[name]["ms"].append(1000 * (time.perf_counter() - started))
                figures[name]["status"] = response.status_code
                content = await response.aread()
            if NOT_READ.encode() in content:
                (await client.get(address + path, params={"format": "fragment"})).raise_for_status()
                figures[name]["filled_ms"].append(1000 * (time.perf_counter() - started))
            figures[name]["cpu_ms"] += 1000 * (read_cpu(pid) - cpu) / (ROUNDS + 1)
        await next_round
    return figures


async def count_reads(
    client: httpx.AsyncClient, address: str, services: ManagementServices, pid: int | None
) -> Figures:
    """Return the reads and CPU seconds per second while several viewers watch pages, which they
    have loaded as browsers do.
    """
    figures = {}
    for title, paths in {
        "10 viewers of the overview": [""] * VIEWERS,
        "10 viewers of 10 pages": [page.path for page in PAGES if "{" not in page.path][:VIEWERS],
    }.items():
        for path in paths:
            await load_page(client, address + path)
        count, cpu = services.readings.count, read_cpu(pid)
        async with asyncio.TaskGroup() as viewers:
            for path in paths:
                viewers.create_task(watch(client, address + path))
        figures[title] = {
            "reads": (services.readings.count - count) / WATCHED,
            "cpu": (read_cpu(pid) - cpu) / WATCHED,
        }
    return figures


async def load_page(client: httpx.AsyncClient, url: str) -> None:
    """Load a page with its values, as a browser does."""
    answer = await client.get(url)
    if NOT_READ in answer.text:
        (await client.get(url, params={"format": "fragment"})).raise_for_status()


async def poll(client: httpx.AsyncClient, url: str) -> AsyncIterator[str]:
    """Yield the live part of a page as often as its script asks for it; empty if it is the same."""
    etag = ""
    while True:
        headers = {"If-None-Match": etag} if etag else {}
        separator = "&" if "?" in url else "?"
        answer = await client.get(f"{url}{separator}format=fragment", headers=headers)
        if answer.status_code != HTTPStatus.NOT_MODIFIED:
            answer.raise_for_status()
        etag = answer.headers["ETag"]
        yield answer.text
        await asyncio.sleep(float(answer.headers["Poll-After"]))


async def watch(client: httpx.AsyncClient, url: str) -> None:
    """Keep a page open for a while."""
    with suppress(TimeoutError):
        async with asyncio.timeout(WATCHED):
            async for _ in poll(client, url):
                pass


async def time_updates(
    client: httpx.AsyncClient, address: str, services: ManagementServices
) -> list[float]:
    """Return the seconds from each enqueue until the job is on an open page."""
    random, taken = Random(1), []
    queue = f"watched_{time.time_ns()}"
    shown: dict[str, float] = {}

    async def note_times() -> None:
        async for html in poll(client, f"{address}/jobs?q=queue:{queue}"):
            for job_id in re.findall(r'"job-([^"]+)"', html):
                shown.setdefault(job_id, time.perf_counter())

    viewer = asyncio.create_task(note_times())
    for number in range(EVENTS):
        job_id = f"{queue}-{number}"
        await asyncio.sleep(random.uniform(0.5, 2.5))
        await services.backend.producing.enqueue([NewJob(job_id, "send", queue, b"{}")])
        started = time.perf_counter()
        while job_id not in shown:
            await asyncio.sleep(0.005)
        taken.append(shown[job_id] - started)
    viewer.cancel()
    return taken


async def time_pauses(
    client: httpx.AsyncClient, address: str, services: ManagementServices
) -> dict[str, list[float]]:
    """Return the seconds from each pause or its end until an open page shows it, while it is open
    alone, and while ten different pages are.
    """
    watching = ["", "/queues", f"/queues/{PAUSED}"]
    others = [page.path for page in PAGES if "{" not in page.path and page.path not in watching]
    taken: dict[str, list[float]] = {}
    for title, opened in {
        "one page open": watching[2:],
        "ten different pages open": [*watching, *others[: VIEWERS - len(watching)]],
    }.items():
        for path in opened:
            await load_page(client, address + path)
        random, shown = Random(1), {path: asyncio.Queue[bool]() for path in watching}
        async with asyncio.TaskGroup() as viewers:
            tasks = [
                viewers.create_task(watch_pause(client, address + path, shown.get(path)))
                for path in opened
            ]
            for number in range(PAUSES):
                await asyncio.sleep(random.uniform(1.5, 4.5))
                paused = number % 2 == 0
                await services.backend.maintenance.pause_queue(PAUSED, paused=paused, by="somebody")
                started = time.perf_counter()
                for path in set(opened) & set(watching):
                    while await shown[path].get() != paused:
                        pass
                taken.setdefault(title, []).append(time.perf_counter() - started)
            for task in tasks:
                task.cancel()
    return taken


async def watch_pause(
    client: httpx.AsyncClient, url: str, shown: asyncio.Queue[bool] | None
) -> None:
    """Keep a page open, and put whether each of its live parts shows a pause."""
    async for html in poll(client, url):
        if shown is not None and html:
            shown.put_nowait('class="state paused"' in html)


class FilledBackend(msgspec.Struct):
    """A backend that is filled, and what was stored in it."""

    kind: Kind
    url: str
    name: str
    """What it is, with its version."""
    pid: int | None
    """The process of its server."""
    scale: float
    filled: Filled


@contextmanager
def serve_filled(kind: Kind, folder: str | None, scale: float) -> Iterator[FilledBackend]:
    """Start and fill a backend."""
    with serve(kind, folder) as (url, name, pid):
        started = time.perf_counter()
        rows, waiting = round(COMPLETED * scale), round(WAITING * scale)
        filling = fill(
            kind, url, rows, waiting_jobs=waiting, dead_letters=round(DEAD_LETTERS * scale)
        )
        filled = asyncio.run(filling)
        os.sync()  # so that the disk is idle when the measurements begin
        print(f"filled in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        yield FilledBackend(kind, url, name, pid, scale, filled)


async def measure(backend: FilledBackend) -> Figures:
    """Return all figures of a filled backend."""
    async with (
        serve_dashboard(backend.url) as (address, services),
        httpx.AsyncClient(timeout=60.0) as client,
    ):
        return {
            "pages": await time_pages(client, address, backend.filled, backend.pid),
            "slowest": dict(list_slowest(services)),
            "updates": await time_updates(client, address, services),
            "pauses": await time_pauses(client, address, services),
            "reads": await count_reads(client, address, services, backend.pid),
        }


def list_slowest(services: ManagementServices) -> list[tuple[str, float]]:
    """Return the reads whose latest run took longest, with their milliseconds."""
    taken = services.readings.durations.items()
    return [
        (key, 1000 * seconds) for key, seconds in sorted(taken, key=lambda one: -one[1])[:SLOWEST]
    ]


async def measure_in_browser(backend: FilledBackend) -> BrowserFigures:
    """Return what Chromium measured with each page."""
    async with serve_dashboard(backend.url) as (address, services):
        return await drive_pages(address, list_paths(backend.filled), services.backend)


def make_title(backend: FilledBackend) -> str:
    """Return what was stored in a backend."""
    scale = backend.scale
    return (
        f"{backend.kind}: {WAITING * scale:,.0f} waiting, {COMPLETED * scale:,.0f} completed, "
        f"{DEAD_LETTERS * scale:,.0f} dead letters"
    )


def show(backend: FilledBackend, figures: Figures) -> str:
    """Return the tables of a run."""
    lines = []
    for name, page in figures["pages"].items():
        first, *rest = page["ms"]
        title = name if page["status"] == 200 else f"{name} ({page['status']})"
        p95 = statistics.quantiles(rest, n=20)[-1]
        columns = (first, statistics.median(rest), p95, max(rest), page["cpu_ms"])
        filled = page["filled_ms"]
        later = f"{len(filled)}: {max(filled):,.0f}" if filled else ""
        lines.append([title, *(f"{value:,.0f}" for value in columns), later])
    head = ["first byte, ms", "first load", "p50", "p95", "worst", "CPU", "values later, worst"]
    rows = [
        [title, f"{one['reads']:.1f}", f"{one['cpu']:.2f}"]
        for title, one in figures["reads"].items()
    ]
    slowest = [[key, f"{taken:,.0f}"] for key, taken in figures["slowest"].items()]
    updates = {
        "from an enqueue until the job is on an open page": figures["updates"],
        **{
            f"from a pause or its end until it is on all that show it, {title}": taken
            for title, taken in figures["pauses"].items()
        },
    }
    delays = [
        [title, f"{statistics.median(taken):.2f}", f"{max(taken):.2f}"]
        for title, taken in updates.items()
    ]
    parts = [
        table(make_title(backend), head, lines),
        table("the slowest reads, the latest run of each", ["", "ms"], slowest),
        table("while pages are open", ["", "reads/s", "CPU s/s"], rows),
        table("live updates, s", ["", "median", "worst"], delays),
    ]
    return "\n".join(parts)


def report(backend: FilledBackend, *, in_browser: bool, save: bool) -> None:
    """Measure a backend, print the tables, and keep them if asked to."""
    if in_browser:
        seen = asyncio.run(measure_in_browser(backend))
        shown, raw = show_browser(make_title(backend), seen), msgspec.to_builtins(seen)
    else:
        raw = asyncio.run(measure(backend))
        shown = show(backend, raw)
    text = f"{make_heading(backend.name)}\n{shown}"
    print(text, flush=True)
    if save:
        stem = "dashboard-browser" if in_browser else "dashboard"
        path = Path(RESULTS) / time.strftime(f"{stem}-{backend.kind}-%Y%m%d.md")
        path.write_text(text + "\n", encoding="utf-8")
        path.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")


def main() -> int:
    """Measure one backend or all."""
    parser = argparse.ArgumentParser(prog="benchmarks.dashboard", description=__doc__)
    parser.add_argument("--backend", choices=KINDS, action="append", help="default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="1: three million jobs")
    parser.add_argument("--folder", help="where the SQLite file is made")
    parser.add_argument("--keep", type=Path, help="fill a backend and keep it; FILE describes it")
    parser.add_argument("--filled", type=Path, help="measure the backend that FILE describes")
    parser.add_argument("--browser", action="store_true", help="open the pages in Chromium")
    parser.add_argument("--save", action="store_true", help="keep text and raw output in results/")
    options = parser.parse_args()
    if options.filled is not None:
        backend = msgspec.json.decode(options.filled.read_bytes(), type=FilledBackend)
        report(backend, in_browser=options.browser, save=options.save)
        return 0
    if options.keep is not None:
        # A signal that is not blocked would end this process at once, and leave the server.
        signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    for kind in options.backend or KINDS:
        with serve_filled(kind, options.folder, options.scale) as backend:
            if options.keep is not None:
                options.keep.write_bytes(msgspec.json.encode(backend))
                signal.sigwait(END_SIGNALS)
                return 0
            report(backend, in_browser=options.browser, save=options.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
