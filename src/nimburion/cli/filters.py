"""Select the jobs of a command, count them, and iterate over them in bounded steps."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec

from nimburion.cli.exit_codes import DONE, FAILED, NOT_FOUND, BadInput
from nimburion.cli.invocation import current_invocation
from nimburion.cli.parameters import parse_time_before
from nimburion.core.job import State
from nimburion.core.paging import iterate_jobs
from nimburion.core.queries import JobFilter
from nimburion.core.size_limits import check_name, check_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from click._termui_impl import ProgressBar

    from nimburion.core.backend import Backend
    from nimburion.core.job import JobRecord
    from nimburion.core.queries import Page

F = TypeVar("F", bound=Callable[..., object])
STEP = 500
NO_SUCH_JOB = "no such job"


def add_filter_options(command: F) -> F:
    """Add the options `--queue` and `--name` to a command."""
    command = click.option("--queue", metavar="QUEUE", help="Only of this queue.")(command)
    return click.option("--name", metavar="NAME", help="Only of this job name.")(command)


def add_search_options(command: F) -> F:
    """Add the options of `Search` to a command."""
    options = (
        click.option("--since", metavar="TIME", help="Created at or after: 2h, or a time."),
        click.option("--until", metavar="TIME", help="Created before: 30m, or a time."),
        click.option("--finished-since", metavar="TIME", help="Finished at or after."),
        click.option("--finished-until", metavar="TIME", help="Finished before."),
        click.option("--tenant", metavar="TENANT", help="Only of this tenant."),
        click.option("--correlation-id", metavar="ID", help="Only with this correlation id."),
        click.option("--tag", metavar="TAG", help="Only with this tag."),
        click.option("--flow", metavar="ID", help="Only members of this flow."),
        click.option("--fingerprint", metavar="HEX", help="Only dead letters of this group."),
        click.option(
            "--min-failures", type=click.IntRange(0), help="Only with at least this many failures."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """The options that search jobs without an index. Times are durations back from now, or
    times with a time zone. `InvalidJob` is raised for a tenant, a correlation id, a tag or a flow
    that no job can have.
    """

    since: str | None = None
    until: str | None = None
    finished_since: str | None = None
    finished_until: str | None = None
    tenant: str | None = None
    correlation_id: str | None = None
    tag: str | None = None
    flow: str | None = None
    fingerprint: str | None = None
    min_failures: int | None = None

    def __post_init__(self) -> None:
        for option, text in (("--tenant", self.tenant), ("--correlation-id", self.correlation_id)):
            if text is not None:
                check_text(option, text)
        if self.tag is not None:
            check_name("--tag", self.tag)
        if self.flow is not None:
            check_name("--flow", self.flow)

    @property
    def searches(self) -> bool:
        """Whether an option of the search is set."""
        return any(getattr(self, field) is not None for field in Search.__struct_fields__)

    def narrow(self, which: JobFilter, now: float) -> JobFilter:
        """Return the filter narrowed by these options, at the backend's time `now`."""
        return msgspec.structs.replace(
            which,
            created_from=parse_time_before(self.since, now),
            created_to=parse_time_before(self.until, now),
            finished_from=parse_time_before(self.finished_since, now),
            finished_to=parse_time_before(self.finished_until, now),
            tenant=self.tenant,
            correlation_id=self.correlation_id,
            tag=self.tag,
            flow=self.flow,
            fingerprint=self.fingerprint,
            min_failures=self.min_failures,
        )


async def list_page(
    backend: Backend, which: JobFilter, search: Search, limit: int, after: str | None
) -> Page:
    """Return a page of the jobs that match the filter and the search."""
    narrowed = search.narrow(which, await backend.now())
    return await backend.reads.list_jobs(narrowed, limit=limit, after=after)


def make_filter(
    states: Collection[State] | None,
    ids: Collection[str] = (),
    *,
    everything: bool = True,
    searched: bool = False,
    queue: str | None = None,
    name: str | None = None,
    reason: str | None = None,
) -> JobFilter:
    """Return the filter for the arguments: ids, or filters, or all jobs if `everything` is set.
    `searched`: a `Search` narrows the filter later. Raises `BadInput` for a combination of these
    or for none."""
    given = searched or any(value is not None for value in (queue, name, reason))
    if ids and (given or everything):
        raise BadInput(f"give either ids or {'filters' if given else '--all'}, not both")
    if not ids and not given and not everything:
        raise BadInput("give ids, a filter, or --all")
    return JobFilter(
        states=frozenset(states) if states else None,
        ids=tuple(dict.fromkeys(ids)) or None,
        queue=queue,
        name=name,
        reason=reason,
    )


def iterate_matching(backend: Backend, which: JobFilter) -> AsyncIterator[JobRecord]:
    """Iterate over all matching jobs, newest first, without their payloads."""
    return iterate_jobs(backend, which, step=STEP)


async def count_matching(backend: Backend, which: JobFilter) -> int:
    """Return the number of matching jobs."""
    return sum([1 async for _ in iterate_matching(backend, which)])


def choose_exit_code(misses: Collection[str], *, all_done: bool) -> int:
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
