"""Start bulk operations from commands: the options, the preview, the start."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec

from nimburion.cli.exit_codes import BadInput
from nimburion.cli.filters import Search, add_search_options, format_count
from nimburion.cli.invocation import current_invocation
from nimburion.cli.operators import make_actions
from nimburion.cli.output import print_result
from nimburion.cli.records import print_records
from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import InvalidJob

if TYPE_CHECKING:
    from nimburion.actions.bulk import BulkPreview
    from nimburion.core.backend import Backend
    from nimburion.core.bulk_operations import BulkOperation
    from nimburion.core.queries import JobFilter

F = TypeVar("F", bound=Callable[..., object])

_PAST = {
    BulkAction.REPLAY: "replayed",
    BulkAction.RUN_NOW: "made due",
    BulkAction.CANCEL: "cancelled",
    BulkAction.DELETE: "deleted for good",
}


class BackgroundOptions(Search, frozen=True, kw_only=True):
    """The options of a command that can start a bulk operation, and those of a search."""

    in_background: bool = False
    rate: str | None = None
    limit: int | None = None
    why: str = ""

    @property
    def are_for_background(self) -> bool:
        """Whether `--in-background` was given, or another option that only a bulk operation has."""
        return self != BackgroundOptions()


def add_background_options(command: F) -> F:
    """Add `--in-background` and the options that only a bulk operation has."""
    flag = click.option(
        "--in-background",
        is_flag=True,
        help="Only start it; a worker or management server does it. A rate, a limit, a search or "
        "--why implies it.",
    )
    return flag(add_bulk_options(command))


def add_bulk_options(command: F) -> F:
    """Add the options of a bulk operation."""
    rate = click.option(
        "--rate", metavar="RATE", help="At most this many jobs in a time: 10/s, 90/min, 500/h."
    )
    limit = click.option("--limit", type=click.IntRange(1), help="Change at most N jobs.")
    why = click.option("--why", metavar="TEXT", default="", help="Why, for the audit log.")
    return add_search_options(rate(limit(why(command))))


def _parse_rate(text: str) -> float:
    """Return the jobs per second of `--rate`. Raises `BadInput` if the text is no rate."""
    # Imported for an operation only.
    from nimburion.actions.bulk import parse_bulk_rate

    try:
        return parse_bulk_rate(text)
    except InvalidJob as error:
        raise BadInput(f"--{error}") from None


def start_in_background(
    action: BulkAction, which: JobFilter, options: BackgroundOptions, *, yes: bool
) -> None:
    """Preview a bulk operation, start it if `yes` is set, and print it.

    Raises:
        BadInput: it was not confirmed. The message has the number of jobs that would be changed,
            and a table shows the first of them.
    """
    rate = None if options.rate is None else _parse_rate(options.rate)
    operation, preview = current_invocation().run(
        lambda backend: _preview_and_start(backend, action, which, options, rate, yes=yes)
    )
    print_result(msgspec.to_builtins(operation), lambda: _print_started(operation, preview))


async def _preview_and_start(
    backend: Backend,
    action: BulkAction,
    which: JobFilter,
    options: BackgroundOptions,
    rate: float | None,
    *,
    yes: bool,
) -> tuple[BulkOperation, BulkPreview]:
    narrowed = options.narrow(which, await backend.now())
    bulk = make_actions(backend).bulk
    preview = await bulk.preview(action, narrowed)
    if not yes:
        if not current_invocation().as_json:
            print_records(preview.first, "no such jobs")
        raise BadInput(
            f"{format_preview(preview)} would be {_PAST[action]}; nothing was started. "
            "Add --yes to confirm"
        )
    started = await bulk.start(action, narrowed, rate=rate, limit=options.limit, why=options.why)
    return started, preview


def format_preview(preview: BulkPreview) -> str:
    """Return the number of jobs of a preview: `12 jobs`, or `at least 1000 jobs`."""
    return f"{'' if preview.complete else 'at least '}{format_count(preview.count)}"


def _print_started(operation: BulkOperation, preview: BulkPreview) -> None:
    """Print the id of a started operation, and how to follow it."""
    click.echo(
        f"{operation.id}  {operation.action.replace('_', ' ')} of {format_preview(preview)} started"
    )
    click.echo(
        f"a worker or management server does it; progress: nimburion operations show {operation.id}"
    )
