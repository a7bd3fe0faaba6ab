"""The last page: the sums, the files, and what to try next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

import click
import msgspec

from nimburion.cli.demo.plan import Plan
from nimburion.cli.demo.reckoning import Line, reckon
from nimburion.cli.demo.watch import Snapshot
from nimburion.cli.output import clean, table, write_json
from nimburion.core.job import State


def show_ending(plan: Plan, snapshot: Snapshot, *, right: bool, as_json: bool) -> None:
    """Show it to people or machines."""
    lines = reckon(plan.ids, snapshot)
    if as_json:
        told = {"ok": right, "folder": str(plan.folder), "jobs": msgspec.to_builtins(lines)}
        write_json(told)
        return
    click.echo()
    table(Line.__struct_fields__, [msgspec.structs.astuple(line) for line in lines], "nothing")
    click.echo("\n" + verdict(lines[-1], right=right))
    draw_files(plan.folder)
    draw_next(plan.folder, snapshot)


def verdict(total: Line, *, right: bool) -> str:
    """The sum in words."""
    sum_ = f"{total.completed} completed + {total.failed} failed + {total.cancelled} cancelled"
    if right:
        return f"{total.enqueued} enqueued = {sum_}: every job is accounted for"
    return f"{total.enqueued} enqueued, but {sum_}: NOT EVERY JOB IS ACCOUNTED FOR"


def draw_files(folder: Path) -> None:
    """What the jobs left behind."""
    thumbnails = len(list((folder / "thumbnails").glob("*.png")))
    mails = len(list((folder / "mail").glob("*.eml")))
    click.echo(f"\nfiles in {clean(folder)}:")
    click.echo(f"  thumbnails/ ({thumbnails} pictures), report.csv, mail/ ({mails} messages)")
    click.echo("  notes.txt (in the order of priority), worker-1.log, worker-2.log, nimburion.db")


def draw_next(folder: Path, snapshot: Snapshot) -> None:
    """Three commands for the folder, and how to be rid of it."""
    failed = [record.id for record in snapshot.jobs.values() if record.state is State.FAILED]
    click.echo("\nwhat to try next:")
    click.echo(f"  cd {shlex.quote(os.fspath(folder))}")
    program = shlex.quote(_program())
    click.echo(f"  {program} dead list")
    click.echo(f"  {program} jobs show {failed[0] if failed else 'ID'}")
    click.echo(f"  {program} jobs list --state completed")
    click.echo(f"and when you have seen enough: rm -r {shlex.quote(os.fspath(folder))}")


def _program() -> str:
    """How to call `nimburion` from a shell that knows nothing of our environment."""
    return (
        "nimburion" if shutil.which("nimburion") else str(Path(sys.executable).parent / "nimburion")
    )
