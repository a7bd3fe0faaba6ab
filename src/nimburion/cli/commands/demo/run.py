"""Run the demo from start to end in a separate folder."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import click

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.cli.commands.demo.jobs import JOBS
from nimburion.cli.commands.demo.result import show_result
from nimburion.cli.commands.demo.scenario import Scenario
from nimburion.cli.commands.demo.snapshot import Snapshot, is_accounted_for
from nimburion.cli.commands.demo.workers import WorkerProcesses
from nimburion.cli.exit_codes import CommandFailed
from nimburion.core.settings import Config, ServerSettings, Settings
from nimburion.core.text.escaping import escape_controls
from nimburion.jobs import Processor

MAX_SECONDS = 60.0
TTL = 3
CONFIG = f"""\
# Written by `nimburion demo`; commands that run in this folder read it.
# The backend is the default: SQLite, in nimburion.db beside this file.
jobs:
  concurrency: 6
  session_ttl: {TTL}s   # 30s by default; short here, so that the rescue comes soon
  queues:
    - {{name: default, priority: 5}}
    - {{name: web, priority: 3}}
    - {{name: mail, priority: 2, concurrency: 3}}
"""


def run_demo(keep: Path | None, *, as_json: bool, dashboard: bool = False) -> bool:
    """Run the demo in a folder and show the result; return whether every job is accounted for."""

    async def run_and_show(folder: Path) -> bool:
        ids, snapshot = await run_scenario(folder, discard if as_json else make_printer())
        right = is_accounted_for(ids, snapshot)
        show_result(folder, ids, snapshot, right=right, as_json=as_json)
        return right

    async def run_with_dashboard(folder: Path) -> bool:
        async with serve_dashboard(folder) as address:
            click.echo(f"dashboard: {address}", err=True)
            right = await run_and_show(folder)
            click.echo(f"the dashboard stays at {address}; Ctrl-C ends it", err=True)
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return right

    run = run_with_dashboard if dashboard else run_and_show
    with open_folder(keep) as folder:
        return asyncio.run(stop_on_signals(run(folder)))


def make_printer() -> Callable[[str], None]:
    """Return a function that prints a line with the seconds since the start."""
    started = time.monotonic()
    return lambda line: click.echo(f"{time.monotonic() - started:5.1f} s {escape_controls(line)}")


def discard(line: str) -> None:
    """Print nothing: a program reads the result only."""


async def run_scenario(folder: Path, show: Callable[[str], None]) -> tuple[set[str], Snapshot]:
    """Run every step; return the ids of the enqueued jobs and the final state of the backend."""
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    processor = Processor(SQLiteBackend(folder / "nimburion.db"))
    processor.register(*JOBS)
    async with processor, WorkerProcesses(folder) as workers:
        scenario = Scenario(processor, workers, folder, show)
        try:
            async with asyncio.timeout(MAX_SECONDS):
                await scenario.run(TTL)
        except TimeoutError:
            left = [f"{one.name} {one.id}" for one in scenario.snapshot.list_unfinished()]
            message = f"not finished after {MAX_SECONDS:.0f} s: {', '.join(left[:3])}"
            raise CommandFailed(message) from None
        return scenario.ids, scenario.snapshot


@asynccontextmanager
async def serve_dashboard(folder: Path) -> AsyncIterator[str]:
    """Serve the dashboard of the demo's database until the block exits; yield its address."""
    from nimburion.server import bootstrap

    settings = Settings(url=f"sqlite:///{folder}/nimburion.db")
    async with bootstrap(Config(jobs=settings, server=ServerSettings(port=0))) as app:
        yield f"{app.url}/dashboard"


@contextmanager
def open_folder(keep: Path | None) -> Iterator[Path]:
    """Yield the working folder. A temporary folder is kept for inspection unless the demo is
    interrupted."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="nimburion-demo-"))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


async def stop_on_signals(running: Coroutine[None, None, bool]) -> bool:
    """Handle SIGTERM and SIGHUP like Ctrl-C, so that no worker process remains."""
    task = asyncio.ensure_future(running)
    loop = asyncio.get_running_loop()
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise KeyboardInterrupt from None
        raise
