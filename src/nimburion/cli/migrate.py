"""`nimburion migrate …`: the tables of the store, brought to what this version needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nimburion.cli.exit_codes import FAILED, BadInput
from nimburion.cli.invocation import current, shared_options
from nimburion.cli.output import clean, show

if TYPE_CHECKING:
    from nimburion.core.backend import Backend


@click.group()
def migrate() -> None:
    """See and bring up to date what the store keeps jobs in.

    A new version of nimburion may need it before its workers start. Older workers go on meanwhile.
    """


@migrate.command("plan")
@shared_options
def plan() -> None:
    """Say what `up` would do. Changes nothing."""
    steps = current().ask(lambda backend: backend.plan(), unopened=True)
    show({"steps": steps}, lambda: draw(steps, "would do", "nothing to do: it is up to date"))


@migrate.command("up")
@click.option("--grant", metavar="ROLE", help="Then let this role do what workers do (PostgreSQL).")
@shared_options
def up(grant: str | None) -> None:
    """Bring the store up to date. Safe while workers run, and to be run by several at once."""
    steps = current().ask(
        lambda backend: brought_up(backend, grant), may_create=True, unopened=True
    )
    show({"steps": steps}, lambda: draw(steps, "done", "nothing was to do: it was up to date"))


async def brought_up(backend: Backend, role: str | None) -> list[str]:
    """Migrate, then grant."""
    if role is not None and not backend.capabilities.roles:
        raise BadInput(f"{backend.describe()} knows no roles; leave --grant out")
    steps = await backend.migrate()
    return steps if role is None else steps + await backend.grant(role)


@migrate.command("check")
@shared_options
@click.pass_context
def check(ctx: click.Context) -> None:
    """Exit with code 1 when there is something to do, for deployments that want to know."""
    steps = current().ask(lambda backend: backend.plan(), unopened=True)
    told = {"ok": not steps, "steps": steps}
    show(told, lambda: draw(steps, "to do: run nimburion migrate up for", "it is up to date"))
    if steps:
        ctx.exit(FAILED)


def draw(steps: list[str], done: str, nothing: str) -> None:
    """One line a step."""
    for step in steps:
        click.echo(f"{done} {clean(step)}")
    if not steps:
        click.echo(nothing)
