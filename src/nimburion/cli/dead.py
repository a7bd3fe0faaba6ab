"""`nimburion dead …`: failed jobs, kept whole until replayed, purged or pruned."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from nimburion.cli.endings import FAILED
from nimburion.cli.invocation import current, shared_options
from nimburion.cli.output import clean, show
from nimburion.cli.records import draw_whole_record, record_as_data
from nimburion.cli.selection import (
    STEP,
    count_matching,
    counted,
    filter_options,
    progress,
    refuse_without,
    selected,
)
from nimburion.core.errors import JobNotFound
from nimburion.core.job import JobRecord, Reason, State

if TYPE_CHECKING:
    from nimburion.core.backend import Backend
    from nimburion.core.reading import JobFilter

F = TypeVar("F", bound=Callable[..., object])
FAILED_ONLY = (State.FAILED,)


@click.group()
def dead() -> None:
    """List, show, replay and purge dead letters (failed jobs)."""


def dead_filters(command: F) -> F:
    """Add `--queue`, `--name` and `--reason`."""
    reasons = [reason.value for reason in Reason]
    reason = click.option("--reason", type=click.Choice(reasons), help="Only with this reason.")
    return reason(filter_options(command))


@dead.command("list")
@dead_filters
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--after", metavar="CURSOR", help="Go on where the page before ended.")
@shared_options
def list_dead(
    queue: str | None, name: str | None, reason: str | None, limit: int, after: str | None
) -> None:
    """List dead letters, newest enqueue first."""
    from nimburion.cli.jobs import draw_page

    which = selected(FAILED_ONLY, queue=queue, name=name, reason=reason)
    page = current().ask(lambda backend: backend.list_jobs(which, limit=limit, after=after))
    data = {"jobs": [record_as_data(record) for record in page.jobs], "next": page.next}
    show(data, lambda: draw_page(page))


@dead.command("show")
@click.argument("job_id", metavar="ID")
@shared_options
def show_dead(job_id: str) -> None:
    """Show a dead letter: payload byte for byte, reason, every error with its traceback."""
    record = current().ask(lambda backend: dead_letter(backend, job_id))
    show(record_as_data(record), lambda: draw_whole_record(record))


async def dead_letter(backend: Backend, job_id: str) -> JobRecord:
    """The record, if it is a dead letter."""
    record = await backend.get(job_id)
    if record.state is not State.FAILED:
        raise JobNotFound(job_id)
    return record


@dead.command("replay")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@dead_filters
@click.option("--all", "everything", is_flag=True, help="Every dead letter.")
@click.option("--yes", is_flag=True, help="Do it; without, several are only counted.")
@shared_options
@click.pass_context
def replay(
    ctx: click.Context,
    *,
    ids: tuple[str, ...] = (),
    queue: str | None = None,
    name: str | None = None,
    reason: str | None = None,
    everything: bool = False,
    yes: bool = False,
) -> None:
    """Make dead letters pending again, by id, or all that match (then --yes is needed).

    They keep id, payload and history; their counts begin anew.
    """
    narrowed = {"queue": queue, "name": name, "reason": reason}
    which = selected(FAILED_ONLY, ids, everything=everything, **narrowed)
    done = current().ask(lambda backend: replay_all(backend, which, yes=yes or bool(ids)))
    show(done, lambda: draw_replayed(done))
    if ids and len(done["replayed"]) < len(set(ids)):
        ctx.exit(FAILED)


async def replay_all(backend: Backend, which: JobFilter, *, yes: bool) -> dict[str, list[str]]:
    """Replay in bounded steps; the ids replayed, and those whose unique key is held."""
    count = await count_matching(backend, which)
    refuse_without(yes, count, "replayed")
    done: dict[str, list[str]] = {"replayed": [], "held": []}
    after: str | None = None
    with progress(count, "replaying") as bar:
        while True:
            step = await backend.replay(which, STEP, after)
            done["replayed"] += step.ids
            done["held"] += step.held
            bar.update(len(step.ids) + len(step.held))
            after = step.next
            if after is None:
                return done


def draw_replayed(done: dict[str, list[str]]) -> None:
    """Counts, and which could not be."""
    click.echo(f"{counted(len(done['replayed']))} replayed")
    for job_id in done["held"]:
        click.echo(f"{clean(job_id)}  not replayed: another job holds its unique key")


@dead.command("purge")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@dead_filters
@click.option("--all", "everything", is_flag=True, help="Every dead letter.")
@click.option("--yes", is_flag=True, help="Do it; without, only count.")
@shared_options
def purge(
    *,
    ids: tuple[str, ...],
    queue: str | None,
    name: str | None,
    reason: str | None,
    everything: bool,
    yes: bool,
) -> None:
    """Forget dead letters for good. Needs --yes; without, it only counts them."""
    narrowed = {"queue": queue, "name": name, "reason": reason}
    which = selected(FAILED_ONLY, ids, everything=everything, **narrowed)
    purged = current().ask(lambda backend: purge_all(backend, which, yes=yes))
    show({"purged": purged}, lambda: click.echo(f"{counted(purged)} purged"))


async def purge_all(backend: Backend, which: JobFilter, *, yes: bool) -> int:
    """Delete in bounded steps; how many."""
    count = await count_matching(backend, which)
    refuse_without(yes, count, "purged for good")
    purged = 0
    with progress(count, "purging") as bar:
        while ids := await backend.delete(which, STEP):
            purged += len(ids)
            bar.update(len(ids))
    return purged
