"""`nimburion migrate …`: upgrade the tables of the backend to this version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nimburion.cli.exit_codes import FAILED, BadInput
from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.output import print_result
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from nimburion.core.backend import Backend


@click.group()
def migrate() -> None:
    """Show and run the migrations of the backend.

    A new version of nimburion may need migrations before its workers start. Older workers keep
    running meanwhile.
    """


@migrate.command("plan")
@add_shared_options
def plan() -> None:
    """Show what `up` would do. Changes nothing."""
    steps = current_invocation().run(list_steps, unopened=True)
    print_result(
        {"steps": steps}, lambda: print_steps(steps, "would do", "nothing to do: it is up to date")
    )


@migrate.command("up")
@click.option(
    "--grant", metavar="ROLE", help="Then grant this role the permissions of a worker (PostgreSQL)."
)
@add_shared_options
def up(grant: str | None) -> None:
    """Run the migrations of the backend. Safe while workers run, and safe to run concurrently."""
    steps = current_invocation().run(
        lambda backend: migrate_and_grant(backend, grant), may_create=True, unopened=True
    )
    print_result(
        {"steps": steps}, lambda: print_steps(steps, "done", "nothing to do: it was up to date")
    )


async def list_steps(backend: Backend) -> list[str]:
    """Return the steps that `up` would do, and change nothing."""
    return [*await backend.migrate(dry_run=True), *await migrate_configured_outbox(dry_run=True)]


async def migrate_configured_outbox(*, dry_run: bool = False) -> list[str]:
    """Create the table of the outbox that the configuration names; return the steps."""
    url = current_invocation().load().jobs.outbox_url
    if not url:
        return []
    from nimburion.jobs.outbox.checks import TIMEOUT, migrate_outbox

    return await migrate_outbox(url, TIMEOUT, dry_run=dry_run)


async def migrate_and_grant(backend: Backend, role: str | None) -> list[str]:
    """Migrate the backend, then grant rights to `role` if it is given; return the steps. Raises
    `BadInput` if the backend has no roles."""
    if role is not None and not backend.capabilities.roles:
        raise BadInput(f"{backend.describe()} has no roles; leave out --grant")
    of_outbox = await migrate_configured_outbox()  # first: its URL may be wrong
    steps = [*await backend.migrate(), *of_outbox]
    return steps if role is None else steps + await backend.grant(role)


@migrate.command("check")
@add_shared_options
@click.pass_context
def check(ctx: click.Context) -> None:
    """Exit with code 1 if `up` has something to do."""
    steps = current_invocation().run(list_steps, unopened=True)
    data = {"ok": not steps, "steps": steps}
    print_result(
        data, lambda: print_steps(steps, "to do: run nimburion migrate up for", "it is up to date")
    )
    if steps:
        ctx.exit(FAILED)


def print_steps(steps: list[str], done: str, nothing: str) -> None:
    """Print one line per step."""
    for step in steps:
        click.echo(f"{done} {escape_controls(step)}")
    if not steps:
        click.echo(nothing)
