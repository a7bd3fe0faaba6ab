"""The demo from its first moment to its last."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.cli.demo.acts import Demo
from nimburion.cli.demo.crew import crew_in
from nimburion.cli.demo.ending import show_ending
from nimburion.cli.demo.plan import Plan, prepare_files
from nimburion.cli.demo.reckoning import accounted
from nimburion.cli.demo.services import MailServer, WebService
from nimburion.cli.demo.view import View, view_for
from nimburion.cli.demo.watch import Snapshot
from nimburion.cli.demo.work import JOBS
from nimburion.cli.endings import Failed
from nimburion.jobs import Processor

LONGEST = 60.0
TTL = 3
CONFIG = f"""\
# Written by `nimburion demo`; commands that run in this folder read it.
# The store is the default: SQLite, in nimburion.db beside this file.
jobs:
  concurrency: 6
  session_ttl: {TTL}s   # 30s by default; short here, so that the rescue comes soon
  queues:
    - {{name: notes, priority: 9}}
    - {{name: default, priority: 5}}
    - {{name: web, priority: 3}}
    - {{name: mail, priority: 2}}
    - {{name: reports, priority: 1}}
    - {{name: images, priority: 0, concurrency: 3}}
"""


def run_demo(keep: Path | None, seed: int, *, plain: bool, as_json: bool) -> bool:
    """Run it in a folder and show how it ended; whether every job is accounted for."""
    with folder_for(keep) as folder:
        view = view_for(plain=plain, as_json=as_json)
        plan, snapshot = asyncio.run(broken_off_by_signals(play(folder, seed, view)))
        right = accounted(plan.ids, snapshot)
        show_ending(plan, snapshot, right=right, as_json=as_json)
        return right


async def play(folder: Path, seed: int, view: View) -> tuple[Plan, Snapshot]:
    """Everything that is played; what was enqueued, and what the store says at the end."""
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    prepare_files(folder, Random(seed))  # noqa: S311 (made-up data, the same for the same seed)
    web, mail = WebService(seed), MailServer(folder / "mail")
    processor = Processor(SQLiteBackend(folder / "nimburion.db"))
    processor.register(*JOBS)
    async with web.serve(), mail.serve(), processor, crew_in(folder) as crew:
        plan = Plan(folder, web.port, mail.port)
        demo = Demo(processor, crew, web, plan, view, ttl=TTL)
        with view:
            try:
                async with asyncio.timeout(LONGEST):
                    await demo.play()
            except TimeoutError:
                raise Failed(f"not finished after {LONGEST:.0f} s: {demo.unfinished()}") from None
        return plan, demo.snapshot


@contextmanager
def folder_for(keep: Path | None) -> Iterator[Path]:
    """The folder to work in; a temporary one stays for looking at, unless we are broken off."""
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


async def broken_off_by_signals(
    playing: Coroutine[None, None, tuple[Plan, Snapshot]],
) -> tuple[Plan, Snapshot]:
    """Let SIGTERM and SIGHUP end it as Ctrl-C does, so that no worker is left behind."""
    task = asyncio.ensure_future(playing)
    loop = asyncio.get_running_loop()
    told: list[int] = []

    def break_off(number: int) -> None:
        told.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, break_off, number)
    try:
        return await task
    except asyncio.CancelledError:
        if told:
            raise KeyboardInterrupt from None
        raise
