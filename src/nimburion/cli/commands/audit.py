"""`nimburion audit`: list the changes that operators made."""

from __future__ import annotations

import click
import msgspec

from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.output import format_time, print_result, print_table
from nimburion.core.audit import AuditPage, list_audit
from nimburion.core.text.escaping import escape_controls


@click.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--after", metavar="CURSOR", help="Continue after the previous page.")
@add_shared_options
def audit(limit: int, after: str | None) -> None:
    """List the changes that operators made, newest first: who, what, when, with which result."""
    page = current_invocation().run(lambda backend: list_audit(backend, limit=limit, after=after))
    print_result(msgspec.to_builtins(page), lambda: print_audit(page))


def print_audit(page: AuditPage) -> None:
    """Print one line per record and the option that shows the next page."""
    print_table(
        ("time", "by", "origin", "action", "target", "outcome", "changed", "details"),
        [
            (
                format_time(record.at),
                record.by,
                record.origin,
                record.action,
                record.target or None,
                record.error or record.outcome,
                record.changed,
                ", ".join(f"{name}={value}" for name, value in record.details.items()) or None,
            )
            for record in page.records
        ],
        "no change was recorded",
    )
    if page.next is not None:
        click.echo(f"more: add --after {escape_controls(page.next)}")
