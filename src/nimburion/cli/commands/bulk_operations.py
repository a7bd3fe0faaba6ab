"""`nimburion operations …`: list, show and cancel bulk operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.listing_groups import listing_group
from nimburion.cli.operators import make_actions
from nimburion.cli.output import format_time, print_fields, print_result, print_table
from nimburion.core.bulk_operations import get_bulk_operation, list_bulk_operations
from nimburion.core.queries import describe_filter
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from nimburion.core.bulk_operations import BulkOperation, BulkOperationPage


@listing_group
def operations() -> None:
    """List, show and cancel bulk operations (changes of many jobs)."""


@operations.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--after", metavar="CURSOR", help="Continue after the previous page.")
@add_shared_options
def list_operations(limit: int, after: str | None) -> None:
    """List bulk operations, newest first."""
    page = current_invocation().run(
        lambda backend: list_bulk_operations(backend, limit=limit, after=after)
    )
    print_result(msgspec.to_builtins(page), lambda: print_operations(page))


def print_operations(page: BulkOperationPage) -> None:
    """Print one line per operation and the option that shows the next page."""
    print_table(
        ("id", "action", "state", "done", "skipped", "failed", "started", "by", "jobs"),
        [
            (
                operation.id,
                operation.action.value,
                operation.state.value,
                operation.done,
                operation.skipped,
                operation.failed,
                format_time(operation.started_at),
                operation.by or None,
                describe_selection(operation),
            )
            for operation in page.operations
        ],
        "no bulk operation was started",
    )
    if page.next is not None:
        click.echo(f"more: add --after {escape_controls(page.next)}")


def describe_selection(operation: BulkOperation) -> str:
    """Return the filter of an operation in one line."""
    fields = describe_filter(operation.which)
    return ", ".join(f"{name}={value}" for name, value in fields.items()) or "all"


@operations.command("show")
@click.argument("operation_id", metavar="ID")
@add_shared_options
def show_operation(operation_id: str) -> None:
    """Show a bulk operation: what it changes, its progress, its last error."""
    operation = current_invocation().run(lambda backend: get_bulk_operation(backend, operation_id))
    print_result(msgspec.to_builtins(operation), lambda: print_operation(operation))


def print_operation(operation: BulkOperation) -> None:
    """Print one line per field."""
    print_fields(
        {
            "id": operation.id,
            "action": operation.action.value,
            "state": operation.state.value,
            "jobs": describe_selection(operation),
            "rate": None if operation.rate is None else f"{operation.rate:g}/s",
            "limit": operation.limit,
            "by": operation.by or None,
            "origin": operation.origin or None,
            "started": format_time(operation.started_at),
            "ended": format_time(operation.ended_at),
            "done": operation.done,
            "skipped": operation.skipped,
            "failed": operation.failed,
            "error": operation.error or None,
        }
    )


@operations.command("cancel")
@click.argument("operation_id", metavar="ID")
@add_shared_options
def cancel_operation(operation_id: str) -> None:
    """End a bulk operation. What it has changed stays changed."""
    operation = current_invocation().run(
        lambda backend: make_actions(backend).bulk.cancel(operation_id)
    )
    print_result(
        msgspec.to_builtins(operation),
        lambda: click.echo(
            f"{escape_controls(operation.id)}  {operation.state}: {operation.done} done, "
            f"{operation.skipped} skipped, {operation.failed} failed"
        ),
    )
