"""The result of the demo: totals, files, and commands to try next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

import click

from nimburion.cli.commands.demo.snapshot import COLUMNS, Snapshot, count_totals
from nimburion.cli.output import print_table, write_json
from nimburion.core.job import State
from nimburion.core.text.escaping import escape_controls


def show_result(
    folder: Path, ids: set[str], snapshot: Snapshot, *, right: bool, as_json: bool
) -> None:
    """Show the totals, the files and the next commands to try."""
    rows = count_totals(ids, snapshot)
    if as_json:
        jobs = [{"name": name} | {key: row[key] for key in COLUMNS} for name, row in rows.items()]
        write_json({"ok": right, "folder": str(folder), "jobs": jobs})
        return
    click.echo()
    print_table(
        ("name", *COLUMNS),
        [(name, *(row[key] for key in COLUMNS)) for name, row in rows.items()],
        "nothing",
    )
    enqueued, completed, failed, cancelled = (rows["total"][key] for key in COLUMNS[:4])
    sum_ = f"{completed} completed + {failed} failed + {cancelled} cancelled"
    if right:
        click.echo(f"\n{enqueued} enqueued = {sum_}: every job is accounted for")
    else:
        click.echo(f"\n{enqueued} enqueued, but {sum_}: NOT EVERY JOB IS ACCOUNTED FOR")
    failed_ids = [record.id for record in snapshot.jobs.values() if record.state is State.FAILED]
    # A shell outside of this environment may not find the command.
    program = (
        "nimburion" if shutil.which("nimburion") else Path(sys.executable).parent / "nimburion"
    )
    name, quoted = escape_controls(folder), shlex.quote(os.fspath(folder))
    click.echo(
        f"""
files in {name}:
  mail/, worker-1.log, worker-2.log, nimburion.db

what to try next:
  cd {quoted}
  {shlex.quote(str(program))} dead list
  {shlex.quote(str(program))} jobs show {failed_ids[0] if failed_ids else "ID"}
  {shlex.quote(str(program))} jobs list --state completed
remove it all with: rm -r {quoted}"""
    )
