"""Select the jobs of a command, count them, and iterate over them in bounded steps."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, TypeVar

import click

from nimburion.cli.exit_codes import DONE, FAILED, NOT_FOUND, BadInput
from nimburion.cli.invocation import current_invocation
from nimburion.core.errors import JobNotFound
from nimburion.core.job import State
from nimburion.core.paging import iterate_jobs
from nimburion.core.queries import JobFilter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from click._termui_impl import ProgressBar

    from nimburion.core.backend import Backend
    from nimburion.core.job import JobRecord

F = TypeVar("F", bound=Callable[..., object])
STEP = 500
NO_SUCH_JOB = "no such job"


def add_filter_options(command: F) -> F:
    """Add the options `--queue` and `--name` to a command."""
    command = click.option("--queue", metavar="QUEUE", help="Only of this queue.")(command)
    return click.option("--name", metavar="NAME", help="Only of this job name.")(command)


def make_filter(
    states: Collection[State] | None,
    ids: Collection[str] = (),
    *,
    everything: bool = True,
    **narrowed: str | None,
) -> JobFilter:
    """Return the filter for the arguments: ids, or filters, or all jobs if `everything` is set.
    Raises `BadInput` for a combination of these or for none."""
    given = any(value is not None for value in narrowed.values())
    if ids and (given or everything):
        raise BadInput(f"give either ids or {'filters' if given else '--all'}, not both")
    if not ids and not given and not everything:
        raise BadInput("give ids, a filter, or --all")
    return JobFilter(
        states=frozenset(states) if states else None,
        ids=tuple(dict.fromkeys(ids)) or None,
        **narrowed,
    )


def iterate_matching(backend: Backend, which: JobFilter) -> AsyncIterator[JobRecord]:
    """Iterate over all matching jobs, newest first, without their payloads."""
    return iterate_jobs(backend, which, step=STEP)


async def count_matching(backend: Backend, which: JobFilter) -> int:
    """Return the number of matching jobs."""
    return sum([1 async for _ in iterate_matching(backend, which)])


async def explain_misses(backend: Backend, ids: Iterable[str], wanted: State) -> dict[str, str]:
    """Return the reason for each id that the command cannot process: the job does not exist, or
    is not in the state `wanted`."""
    misses: dict[str, str] = {}
    for job_id in dict.fromkeys(ids):
        try:
            record = await backend.get(job_id)
        except JobNotFound:
            misses[job_id] = NO_SUCH_JOB
        else:
            if record.state is not wanted:
                misses[job_id] = f"it is {record.state.value}, not {wanted.value}"
    return misses


def exit_for(misses: Collection[str], *, all_done: bool) -> int:
    """Return the exit code of a command that takes ids."""
    if NO_SUCH_JOB in misses:
        return NOT_FOUND
    return DONE if all_done else FAILED


def require_confirmation(yes: bool, count: int, action: str) -> None:  # noqa: FBT001 (the flag itself)
    """Raise `BadInput` with the number of affected jobs unless `--yes` was given."""
    if not yes:
        raise BadInput(
            f"{format_count(count)} would be {action}; nothing was done. Add --yes to confirm"
        )


def format_count(count: int, noun: str = "job") -> str:
    """Format a count with its noun: `1 job`, `12 jobs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def make_progress_bar(count: int, label: str) -> ProgressBar[int]:
    """Return a progress bar on standard error. It is hidden without a terminal, with `--json`,
    and for few jobs."""
    hidden = current_invocation().as_json or not sys.stderr.isatty() or count <= STEP
    file = io.StringIO() if hidden else sys.stderr
    return click.progressbar(length=count, label=label, file=file)
