"""Run the demo from start to end in a separate folder."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import click

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.cli.commands.demo.jobs import JOBS
from nimburion.cli.commands.demo.scenario import Plan, Scenario, write_files
from nimburion.cli.commands.demo.snapshot import Snapshot, is_accounted_for
from nimburion.cli.commands.demo.views import View, choose_view, show_result
from nimburion.cli.commands.demo.web_service import WebService
from nimburion.cli.commands.demo.workers import start_workers_in
from nimburion.cli.exit_codes import CommandFailed
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
    - {{name: notes, priority: 9}}
    - {{name: default, priority: 5}}
    - {{name: web, priority: 3}}
    - {{name: mail, priority: 2}}
    - {{name: reports, priority: 1}}
    - {{name: files, priority: 0, concurrency: 3}}
"""


def run_demo(
    keep: Path | None, seed: int, *, plain: bool, as_json: bool, dashboard: bool = False
) -> bool:
    """Run the demo in a folder and show the result; return whether every job is accounted for."""
    with open_folder(keep) as folder, offer_dashboard(folder, enabled=dashboard):
        view = choose_view(plain=plain, as_json=as_json)
        plan, snapshot = asyncio.run(stop_on_signals(run_scenario(folder, seed, view)))
        right = is_accounted_for(plan.ids, snapshot)
        show_result(plan.folder, plan.ids, snapshot, right=right, as_json=as_json)
        return right


@contextmanager
def offer_dashboard(folder: Path, *, enabled: bool) -> Iterator[None]:
    """Serve the dashboard while the demo runs, and then until Ctrl-C."""
    if not enabled:
        yield
        return
    from nimburion.cli.commands.demo.dashboard_thread import serve_dashboard

    with serve_dashboard(folder) as address:
        click.echo(f"dashboard: {address}", err=True)
        yield
        click.echo(f"the dashboard stays at {address}; Ctrl-C ends it", err=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


async def run_scenario(folder: Path, seed: int, view: View) -> tuple[Plan, Snapshot]:
    """Run every step; return the enqueued jobs and the final state of the backend."""
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    write_files(folder, Random(seed))  # noqa: S311 (made-up data, the same for the same seed)
    web = WebService(seed)
    processor = Processor(SQLiteBackend(folder / "nimburion.db"))
    processor.register(*JOBS)
    with web.serve():
        async with processor, start_workers_in(folder) as workers:
            plan = Plan(folder, web.port)
            scenario = Scenario(processor, workers, web, plan, view, ttl=TTL)
            with view:
                try:
                    async with asyncio.timeout(MAX_SECONDS):
                        await scenario.run()
                except TimeoutError:
                    unfinished = scenario.describe_unfinished()
                    message = f"not finished after {MAX_SECONDS:.0f} s: {unfinished}"
                    raise CommandFailed(message) from None
            return plan, scenario.snapshot


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


async def stop_on_signals(
    running: Coroutine[None, None, tuple[Plan, Snapshot]],
) -> tuple[Plan, Snapshot]:
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
