"""`nimburion jobs …`: list, show, cancel, signal, delete, retry and run jobs in any state."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
import msgspec

from nimburion.cli.background import (
    BackgroundOptions,
    add_background_options,
    add_bulk_options,
    start_in_background,
)
from nimburion.cli.exit_codes import FAILED, NOT_FOUND, BadInput
from nimburion.cli.filters import (
    Search,
    add_filter_options,
    add_search_options,
    count_matching,
    format_count,
    list_page,
    make_filter,
    make_progress_bar,
    require_confirmation,
)
from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.job_ids import get_job, resolve_job_id
from nimburion.cli.listing_groups import listing_group
from nimburion.cli.operators import make_actions
from nimburion.cli.output import format_counted, format_duration, print_result, print_table
from nimburion.cli.records import (
    format_progress,
    print_records,
    print_whole_record,
    record_to_data,
)
from nimburion.core.bulk_operations import BulkAction
from nimburion.core.job import FINISHED, UNFINISHED, State
from nimburion.core.text.escaping import escape_controls, escape_lines

if TYPE_CHECKING:
    from nimburion.actions.jobs import CancelOutcome, DueOutcome, SentSignal, StackAnswer
    from nimburion.core.backend import Backend
    from nimburion.core.diagnosis.running_jobs import RunningJob, RunningJobs
    from nimburion.core.job import JobRecord
    from nimburion.core.queries import JobFilter, Page
    from nimburion.core.runs import SignalOutcome
    from nimburion.jobs.durable.timeline import RunTimeline

F = TypeVar("F", bound=Callable[..., object])

_WORDS = MappingProxyType(
    {
        "requested": "running: its worker was asked to cancel it",
        "finished": "not cancelled: it had already ended",
        "not found": "not cancelled: no such job",
    }
)
"""Readable messages for the outcomes of `cancel`."""

_LINES = 20
"""The most jobs for which `cancel` prints a line each."""
_SHOWN_OF_SESSION = 8

_DUE_WORDS: MappingProxyType[DueOutcome, str] = MappingProxyType(
    {
        "due": "due now",
        "unchanged": "not changed: it is due already, runs or has ended",
        "not found": "not changed: no such job",
    }
)
"""Readable messages for the outcomes of `run-now`."""

_COUNTED_STEPS = 1_000


@listing_group
def jobs() -> None:
    """List, show, cancel, signal, delete, retry and run jobs."""


@jobs.command("list")
@click.option(
    "--state",
    "states",
    type=click.Choice(sorted(state.value for state in State)),
    multiple=True,
    help="Only in this state; may be repeated.",
)
@add_filter_options
@add_search_options
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--after", metavar="CURSOR", help="Continue after this cursor of the previous page.")
@add_shared_options
def list_jobs(
    *,
    states: tuple[str, ...],
    queue: str | None,
    name: str | None,
    limit: int,
    after: str | None,
    **search: Any,
) -> None:
    """List jobs, newest first.

    One call examines at most 10,000 jobs. If it stops there, it says how to continue.
    """
    which = make_filter([State(word) for word in states], queue=queue, name=name)
    wanted = Search(**search)
    page = current_invocation().run(lambda backend: list_page(backend, which, wanted, limit, after))
    data = {
        "jobs": [record_to_data(record) for record in page.jobs],
        "next": page.next,
        "examined": page.examined,
    }
    print_result(data, lambda: print_page(page))


def print_page(page: Page) -> None:
    """Print a table of jobs and the option that shows the next page."""
    print_records(page.jobs, "no such jobs")
    if page.next is not None:
        click.echo(f"examined {page.examined} jobs; more: add --after {escape_controls(page.next)}")


@jobs.command("show")
@click.argument("job_id", metavar="ID")
@add_shared_options
def show_job(job_id: str) -> None:
    """Show everything about a job, payload and error history included."""
    record, steps = current_invocation().run(lambda backend: read_job(backend, job_id))
    data = record_to_data(record) | ({} if steps is None else {"steps": steps})
    print_result(data, lambda: print_whole_record(record, steps))


async def read_job(backend: Backend, text: str) -> tuple[JobRecord, int | str | None]:
    """Return the record of a job and the number of its stored steps; None if it has none."""
    record = await get_job(backend, text)
    if record.started_at is None:
        return record, None
    from nimburion.core.runs import CLEANUP_STEP  # `jobs list` reads no runs

    page = await backend.reads.read_run(record.id, limit=_COUNTED_STEPS)
    count = sum(step.number != CLEANUP_STEP for step in page.steps)
    return record, format_counted(count, is_complete=page.next is None) if count else None


@jobs.command("steps")
@click.argument("job_id", metavar="ID")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=_COUNTED_STEPS,
    show_default=True,
    help="The most steps to read.",
)
@click.option("--no-values", is_flag=True, help="Print only the sizes of values, for support.")
@add_shared_options
def show_steps(job_id: str, limit: int, no_values: bool) -> None:  # noqa: FBT001 (the flag itself)
    """Show what a durable run did, what it waits for now, and its unread signals.

    A step begins after what was stored before it, so TOOK includes waits for a worker.
    """
    from nimburion.cli.run_output import print_timeline, timeline_to_data  # for this command only
    from nimburion.jobs.durable.timeline import read_run_timeline

    async def read(backend: Backend) -> RunTimeline:
        found = await resolve_job_id(backend, job_id)
        return await read_run_timeline(backend, found, limit=limit)

    found = current_invocation().run(read)
    print_result(
        timeline_to_data(found, with_values=not no_values),
        lambda: print_timeline(found, with_values=not no_values),
    )


@jobs.command("signal")
@click.argument("job_id", metavar="ID")
@click.argument("name")
@click.argument("payload", metavar="[JSON]", default="null")
@click.option(
    "--id",
    "signal_id",
    metavar="ID",
    help="The id of the signal; with it, you can repeat the command safely.",
)
@click.option("--reason", default="", help="Why, for the audit log.")
@add_shared_options
@click.pass_context
def send_signal(
    ctx: click.Context,
    /,
    *,
    job_id: str,
    name: str,
    payload: str,
    signal_id: str | None,
    reason: str,
) -> None:
    """Send a signal to a durable run.

    JSON is the value, by default null. The handler reads it in the type of its signal. The job gets
    each id once.
    """

    async def send(backend: Backend) -> tuple[str, SentSignal]:
        found = await resolve_job_id(backend, job_id)
        sent = await make_actions(backend).jobs.signal(
            found,
            name,
            payload.encode(errors="surrogateescape"),
            signal_id=signal_id,
            reason=reason,
        )
        return found, sent

    found, sent = current_invocation().run(send)
    print_result(
        {"job": found, "id": sent.id, "outcome": sent.outcome.value},
        lambda: click.echo(f"{escape_controls(found)}  {describe_signal(sent.outcome)}"),
    )
    if sent.outcome.value in {"finished", "full"}:
        ctx.exit(FAILED)


def describe_signal(outcome: SignalOutcome) -> str:
    """Return what became of a signal, for people."""
    from nimburion.core.runs import MAX_UNREAD_SIGNALS

    words = {
        "stored": "sent",
        "exists": "not sent again: the job has, or had, a signal with this id",
        "finished": "not sent: the job has ended",
        "full": f"not sent: the job has {MAX_UNREAD_SIGNALS:,} unread signals",
    }
    return words[outcome.value]


@jobs.command("running")
@add_filter_options
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@add_shared_options
def list_running(queue: str | None, name: str | None, limit: int) -> None:
    """List running jobs, the longest first.

    USUALLY is the time within which 95 % of the attempts of the name ended, in this hour and the
    one before. WORKER is the beginning of the session's id, as `workers stop` takes it.
    """
    from nimburion.core.diagnosis.running_jobs import list_running_jobs  # for this command only

    found = current_invocation().run(
        lambda backend: list_running_jobs(backend, queue=queue, name=name, limit=limit)
    )
    data = [
        {
            **record_to_data(one.job),
            "seconds": one.seconds,
            "usual": one.usual,
            "host": one.job.host,
            "pid": one.session.pid if one.session else None,
        }
        for one in found.jobs
    ]
    print_result(data, lambda: print_running(found))


def print_running(found: RunningJobs) -> None:
    """Print one line per running job, and whether more jobs run."""
    print_table(
        ("id", "name", "for", "usually", "progress", "host", "process", "worker", "note"),
        [
            (
                one.job.id,
                one.job.name,
                format_duration(one.seconds),
                None if one.usual is None else f"≤ {format_duration(one.usual)}",
                format_progress(one.job),
                one.job.host or None,
                one.session.pid if one.session else None,
                (one.job.session or "")[:_SHOWN_OF_SESSION],
                describe_running(one),
            )
            for one in found.jobs
        ],
        "no job is running",
    )
    if found.more:
        click.echo("more jobs run: add --queue or --name, or raise --limit")


def describe_running(running: RunningJob) -> str:
    """Return what an operator must know of a running job, in a few words."""
    if running.session is None or running.session.expires_in <= 0:
        return "its worker has stopped"
    if running.job.cancel_requested:
        return "cancel requested"
    is_slow = running.usual is not None and running.seconds > running.usual
    return "slow" if is_slow else ""


class JobSelection(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of a command that changes jobs: which ones, and whether to do it."""

    ids: tuple[str, ...]
    states: tuple[str, ...]
    queue: str | None
    name: str | None
    everything: bool
    yes: bool

    def make_filter(self, possible: Collection[State], *, searched: bool) -> JobFilter:
        """Return the filter for these arguments, among the jobs in `possible` states.

        Raises `BadInput` as the function `make_filter` does, and for ids together with states.
        """
        if self.ids and self.states:
            raise BadInput("give either ids or --state, not both")
        return make_filter(
            [State(word) for word in self.states] or possible,
            self.ids,
            everything=self.everything or bool(self.states),
            searched=searched,
            queue=self.queue,
            name=self.name,
        )


def add_selection(possible: Collection[State], *, every: str, yes: str) -> Callable[[F], F]:
    """Add the arguments of `JobSelection`, which the command gets as `selection`.

    `every` and `yes` are the help of `--all` and `--yes`.
    """

    def add(command: F) -> F:
        @wraps(command)
        def select(*args: Any, **options: Any) -> object:
            selection = {name: options.pop(name) for name in JobSelection.__struct_fields__}
            return command(*args, selection=JobSelection(**selection), **options)

        state = click.option(
            "--state",
            "states",
            type=click.Choice(sorted(state.value for state in possible)),
            multiple=True,
            help="Only in this state.",
        )
        everything = click.option("--all", "everything", is_flag=True, help=every)
        confirmed = click.option("--yes", is_flag=True, help=yes)
        ids = click.argument("ids", metavar="[ID]...", nargs=-1)
        return cast("F", ids(state(add_filter_options(everything(confirmed(select))))))

    return add


@jobs.command("cancel")
@add_selection(
    UNFINISHED, every="Every unfinished job that matches.", yes="Do it; without, only count."
)
@add_background_options
@add_shared_options
@click.pass_context
def cancel_jobs(
    ctx: click.Context,
    /,
    *,
    selection: JobSelection,
    **background: Any,
) -> None:
    """Cancel jobs by id, or all that match (then --yes is needed).

    A waiting job is cancelled at once. A running job is cancelled through its worker.
    """
    options = BackgroundOptions(**background)
    which = selection.make_filter(UNFINISHED, searched=options.searches)
    if options.are_for_background:
        start_in_background(
            BulkAction.CANCEL, which, options, yes=selection.yes or bool(selection.ids)
        )
        return
    if selection.ids:
        which = msgspec.structs.replace(which, states=None)  # an ended job has an outcome too
    outcomes = current_invocation().run(
        lambda backend: cancel_all(backend, which, yes=selection.yes or bool(selection.ids))
    )
    print_result(outcomes, lambda: print_outcomes(outcomes))
    if "not found" in outcomes.values():
        ctx.exit(NOT_FOUND)
    if selection.ids and "finished" in outcomes.values():
        ctx.exit(FAILED)


async def cancel_all(backend: Backend, which: JobFilter, *, yes: bool) -> dict[str, CancelOutcome]:
    """Cancel the given jobs, or all that match, and return the outcome by id."""
    count = await count_matching(backend, which) if which.ids is None else len(which.ids)
    require_confirmation(yes, count, "cancelled")
    with make_progress_bar(count, "cancelling") as bar:
        done = await make_actions(backend).jobs.cancel(which, report=bar.update)
    return done.outcomes


def print_outcomes(outcomes: dict[str, CancelOutcome]) -> None:
    """Print one line per job for a few jobs, or counts for many."""
    if 0 < len(outcomes) <= _LINES:
        for job_id, outcome in outcomes.items():
            click.echo(f"{escape_controls(job_id)}  {_WORDS.get(outcome, outcome)}")
        return
    words = [_WORDS.get(outcome, outcome) for outcome in outcomes.values()]
    for word in sorted(set(words)):
        click.echo(f"{format_count(words.count(word))} {word}")
    if not outcomes:
        click.echo("no such jobs")


@jobs.command("delete")
@add_selection(
    FINISHED, every="Every finished job that matches.", yes="Start it; without, only count."
)
@add_bulk_options
@add_shared_options
def delete_jobs(
    *,
    selection: JobSelection,
    **options: Any,
) -> None:
    """Delete finished jobs for good, in the background. Without --yes, it only counts them."""
    wanted = BackgroundOptions(**options)
    which = selection.make_filter(FINISHED, searched=wanted.searches)
    start_in_background(BulkAction.DELETE, which, wanted, yes=selection.yes)


@jobs.command("run-now")
@add_selection(
    BulkAction.RUN_NOW.states,
    every="Every job that waits and matches.",
    yes="Start it; without, only count.",
)
@add_bulk_options
@add_shared_options
@click.pass_context
def run_jobs_now(
    ctx: click.Context,
    /,
    *,
    selection: JobSelection,
    **options: Any,
) -> None:
    """Make jobs due now that are scheduled or wait for a retry.

    Jobs by id are due when the command ends. All others are changed in the background, and need
    --yes. A worker then starts them in the order of their queue.
    """
    wanted = BackgroundOptions(**options)
    which = selection.make_filter(BulkAction.RUN_NOW.states, searched=wanted.searches)
    by_id = bool(selection.ids)
    if not by_id or wanted.are_for_background:
        start_in_background(BulkAction.RUN_NOW, which, wanted, yes=selection.yes or by_id)
        return
    outcomes = current_invocation().run(
        lambda backend: make_actions(backend).jobs.run_now(*selection.ids)
    )
    print_result(outcomes, lambda: print_due(outcomes))
    if "not found" in outcomes.values():
        ctx.exit(NOT_FOUND)
    if "unchanged" in outcomes.values():
        ctx.exit(FAILED)


def print_due(outcomes: dict[str, DueOutcome]) -> None:
    """Print one line per job."""
    for job_id, outcome in outcomes.items():
        click.echo(f"{escape_controls(job_id)}  {_DUE_WORDS[outcome]}")


@jobs.command("stack")
@click.argument("job_id", metavar="ID")
@add_shared_options
@click.pass_context
def show_stack(ctx: click.Context, /, *, job_id: str) -> None:
    """Show where the handler of a running job is: lines of code, no values.

    The worker answers from the thread, the event loop or the child process of the handler. The job
    continues.
    """
    job, answer = current_invocation().run(lambda backend: find_stack(backend, job_id))
    print_result(
        {"id": job, "outcome": answer.outcome, "stack": msgspec.to_builtins(answer.stack)},
        lambda: print_stack(job, answer),
    )
    if answer.stack is None:
        ctx.exit(FAILED)


async def find_stack(backend: Backend, text: str) -> tuple[str, StackAnswer]:
    """Return the id of the job that `text` names, and the answer of its worker."""
    job_id = (await get_job(backend, text)).id
    return job_id, await make_actions(backend).jobs.show_stack(job_id)


def print_stack(job_id: str, answer: StackAnswer) -> None:
    """Print the stack, or why there is none."""
    if answer.stack is None:
        runs = answer.outcome == "no answer"
        words = "runs, but its worker did not answer" if runs else "does not run"
        click.echo(f"{escape_controls(job_id)} {words}")
        return
    click.echo(f"{escape_controls(job_id)} in its {answer.stack.place}:")
    click.echo(escape_lines(answer.stack.text) or "no frame now: the handler starts or ends")


@jobs.command("retry")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@add_shared_options
@click.pass_context
def retry_jobs(ctx: click.Context, ids: tuple[str, ...]) -> None:
    """Make failed jobs pending again: the same as `dead replay ID...`."""
    from nimburion.cli.commands.dead import replay

    ctx.invoke(replay, ids=ids)
