"""`nimburion demo`: run real jobs on real worker processes and kill one of them."""

from __future__ import annotations

from pathlib import Path

import click

from nimburion.cli.exit_codes import FAILED, BadInput
from nimburion.cli.invocation import add_shared_options, current_invocation


@click.command()
@click.option(
    "--keep",
    "folder",
    metavar="DIR",
    help="Work in this folder, which must be empty or new, instead of a temporary one.",
)
@click.option("--dashboard", is_flag=True, help="Serve the dashboard of the demo, until Ctrl-C.")
@add_shared_options
@click.pass_context
def demo(ctx: click.Context, *, folder: str | None, dashboard: bool) -> None:
    """Watch real jobs run, fail, retry, become dead letters and be replayed.

    Needs nothing but this package: it starts workers on this machine, with a SQLite file of its
    own. It kills one worker, whose jobs are rescued. Exit code 1 unless every job that was enqueued
    is accounted for.
    """
    from nimburion.cli.commands.demo.run import run_demo

    if current_invocation().config or current_invocation().backend:
        raise BadInput("the demo has its own configuration and backend; see --keep")
    keep = None if folder is None else Path(folder)
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise BadInput(f"{keep} is not an empty folder")
    as_json = current_invocation().as_json
    if not run_demo(keep, as_json=as_json, dashboard=dashboard):
        ctx.exit(FAILED)
