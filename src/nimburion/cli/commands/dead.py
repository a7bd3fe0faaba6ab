"""`nimburion dead …`: failed jobs, kept complete until they are replayed, purged or pruned."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from nimburion.cli.background import (
    BackgroundOptions,
    add_background_options,
    start_in_background,
)
from nimburion.cli.filters import (
    Search,
    add_filter_options,
    choose_exit_code,
    count_matching,
    format_count,
    make_filter,
    make_progress_bar,
    require_confirmation,
)
from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.listing_groups import listing_group
from nimburion.cli.operators import make_actions
from nimburion.cli.output import format_time, print_result, print_table
from nimburion.cli.records import print_whole_record, record_to_data
from nimburion.core.bulk_operations import BulkAction
from nimburion.core.job import FAILED_ONLY, Reason
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from nimburion.actions.dead_letters import PurgeReport, ReplayReport
    from nimburion.core.backend import Backend
    from nimburion.core.diagnosis.failure_groups import FailureGroups
    from nimburion.core.queries import JobFilter

F = TypeVar("F", bound=Callable[..., object])


@listing_group
def dead() -> None:
    """List, show, replay and purge dead letters (failed jobs)."""


def add_dead_filters(command: F) -> F:
    """Add the options `--queue`, `--name` and `--reason` to a command."""
    reasons = [reason.value for reason in Reason]
    reason = click.option("--reason", type=click.Choice(reasons), help="Only with this reason.")
    return reason(add_filter_options(command))


@dead.command("list")
@add_dead_filters
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--after", metavar="CURSOR", help="Continue after this cursor of the previous page.")
@add_shared_options
def list_dead(
    queue: str | None, name: str | None, reason: str | None, limit: int, after: str | None
) -> None:
    """List dead letters, newest enqueue first."""
    from nimburion.cli.commands.jobs import print_page

    which = make_filter(FAILED_ONLY, queue=queue, name=name, reason=reason)
    page = current_invocation().run(
        lambda backend: backend.reads.list_jobs(which, limit=limit, after=after)
    )
    data = {"jobs": [record_to_data(record) for record in page.jobs], "next": page.next}
    print_result(data, lambda: print_page(page))


@dead.command("groups")
@add_dead_filters
@click.option("--since", metavar="TIME", help="Failed at or after: 1h, or a time.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@add_shared_options
def list_groups(
    queue: str | None, name: str | None, reason: str | None, since: str | None, limit: int
) -> None:
    """Group dead letters by their error, the largest group first.

    Errors are equal if type, place and message are, apart from numbers, ids and quoted values.
    `jobs list --fingerprint` lists the jobs of one group.
    """
    which = make_filter(FAILED_ONLY, queue=queue, name=name, reason=reason)
    search = Search(finished_since=since)

    async def group(backend: Backend) -> FailureGroups:
        narrowed = search.narrow(which, await backend.now())
        return await backend.reads.group_failures(narrowed, limit=limit)

    found = current_invocation().run(group)
    print_result(msgspec.to_builtins(found), lambda: print_groups(found))


def print_groups(found: FailureGroups) -> None:
    """Print one line per group, and whether all dead letters were examined."""
    print_table(
        ("fingerprint", "count", "first", "last", "names", "error"),
        [
            (
                group.fingerprint or None,
                group.count,
                format_time(group.first),
                format_time(group.last),
                ", ".join(group.names),
                f"{group.type}: {group.message}",
            )
            for group in found.groups
        ],
        "no such dead letters",
    )
    if not found.complete:
        click.echo(f"only the newest {found.examined} dead letters were examined")


@dead.command("show")
@click.argument("job_id", metavar="ID")
@add_shared_options
def show_dead(job_id: str) -> None:
    """Show a dead letter: payload byte for byte, reason, every error with its traceback."""
    record = current_invocation().run(lambda backend: make_actions(backend).dead.show(job_id))
    print_result(record_to_data(record), lambda: print_whole_record(record))


@dead.command("replay")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@add_dead_filters
@click.option("--all", "everything", is_flag=True, help="Every dead letter.")
@click.option("--yes", is_flag=True, help="Replay the jobs; without it, they are only counted.")
@add_background_options
@add_shared_options
@click.pass_context
def replay(
    ctx: click.Context,
    /,
    *,
    ids: tuple[str, ...] = (),
    queue: str | None = None,
    name: str | None = None,
    reason: str | None = None,
    everything: bool = False,
    yes: bool = False,
    **background: Any,
) -> None:
    """Make dead letters pending again, by id, or all that match (then --yes is needed).

    They keep id, payload and history; their counts start at 0 again.
    """
    narrowed = {"queue": queue, "name": name, "reason": reason}
    options = BackgroundOptions(**background)
    which = make_filter(
        FAILED_ONLY, ids, everything=everything, searched=options.searches, **narrowed
    )
    if options.are_for_background:
        start_in_background(BulkAction.REPLAY, which, options, yes=yes or bool(ids))
        return
    done = current_invocation().run(
        lambda backend: replay_all(backend, which, yes=yes or bool(ids))
    )
    data = {"replayed": done.replayed, "held": done.held, "not_replayed": done.not_replayed}
    print_result(data, lambda: print_replayed(done))
    if ids:
        all_done = len(done.replayed) == len(set(ids))
        ctx.exit(choose_exit_code(done.not_replayed.values(), all_done=all_done))


async def replay_all(backend: Backend, which: JobFilter, *, yes: bool) -> ReplayReport:
    """Replay all matching dead letters."""
    count = await count_matching(backend, which)
    require_confirmation(yes, count, "replayed")
    with make_progress_bar(count, "replaying") as bar:
        return await make_actions(backend).dead.replay_matching(which, report=bar.update)


def print_replayed(done: ReplayReport) -> None:
    """Print the counts, and the jobs that were not replayed with the reasons."""
    click.echo(f"{format_count(len(done.replayed))} replayed")
    why = dict.fromkeys(done.held, "another job holds its unique key") | done.not_replayed
    for job_id, reason in why.items():
        click.echo(f"{escape_controls(job_id)}  not replayed: {reason}")


@dead.command("purge")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@add_dead_filters
@click.option("--all", "everything", is_flag=True, help="Every dead letter.")
@click.option("--yes", is_flag=True, help="Do it; without, only count.")
@add_background_options
@add_shared_options
@click.pass_context
def purge(
    ctx: click.Context,
    /,
    *,
    ids: tuple[str, ...],
    queue: str | None,
    name: str | None,
    reason: str | None,
    everything: bool,
    yes: bool,
    **background: Any,
) -> None:
    """Delete dead letters permanently. Without --yes, it only counts them."""
    narrowed = {"queue": queue, "name": name, "reason": reason}
    options = BackgroundOptions(**background)
    which = make_filter(
        FAILED_ONLY, ids, everything=everything, searched=options.searches, **narrowed
    )
    if options.are_for_background:
        start_in_background(BulkAction.DELETE, which, options, yes=yes)
        return
    done = current_invocation().run(lambda backend: purge_all(backend, which, yes=yes))
    data = {"purged": len(done.purged), "not_purged": done.not_purged}
    print_result(data, lambda: print_purged(done))
    if ids:
        ctx.exit(choose_exit_code(done.not_purged.values(), all_done=not done.not_purged))


async def purge_all(backend: Backend, which: JobFilter, *, yes: bool) -> PurgeReport:
    """Delete all matching dead letters."""
    count = await count_matching(backend, which)
    require_confirmation(yes, count, "purged for good")
    with make_progress_bar(count, "purging") as bar:
        return await make_actions(backend).dead.purge_matching(which, report=bar.update)


def print_purged(done: PurgeReport) -> None:
    """Print the number of purged jobs, and the jobs that were not purged with the reasons."""
    click.echo(f"{format_count(len(done.purged))} purged")
    for job_id, reason in done.not_purged.items():
        click.echo(f"{escape_controls(job_id)}  not purged: {reason}")
