"""Find a job by its id, or by a prefix or suffix of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimburion.cli.exit_codes import BadInput
from nimburion.core.errors import JobNotFound
from nimburion.core.queries import EVERY_JOB, SCAN_BUDGET

if TYPE_CHECKING:
    from nimburion.core.backend import Backend
    from nimburion.core.job import JobRecord

_MIN_CHARACTERS = 4
_MAX_SHOWN = 5


async def get_job(backend: Backend, text: str) -> JobRecord:
    """Return the record of a job, given its id or a unique prefix or suffix of it."""
    return await backend.reads.get_job(await resolve_job_id(backend, text))


async def resolve_job_id(backend: Backend, text: str) -> str:
    """Return the id of a job, given the id or a unique prefix or suffix of it.

    Only the newest `SCAN_BUDGET` jobs are searched for a prefix or suffix.

    Raises:
        BadInput: several jobs match, or it is the id of a flow or of a group.
        JobNotFound: no job matches.
    """
    try:
        return (await backend.reads.get_job(text)).id
    except JobNotFound:
        if len(text) < _MIN_CHARACTERS:
            raise
    if flows := await backend.reads.get_flow(text):
        kind = "flow" if flows[0].parent is None else "group of a flow"
        raise BadInput(f"{text!r} is a {kind}, not a job: use `nimburion flows show {text}`")
    found: list[str] = []
    after: str | None = None
    examined = 0
    while examined < SCAN_BUDGET:
        page = await backend.reads.list_jobs(EVERY_JOB, limit=1_000, after=after)
        found += [job.id for job in page.jobs if job.id.startswith(text) or job.id.endswith(text)]
        examined += max(page.examined, len(page.jobs))
        after = page.next
        if after is None:
            break
    if len(found) > 1:
        shown = ", ".join(found[:_MAX_SHOWN])
        raise BadInput(f"{text!r} matches {len(found)} jobs: {shown}; give more characters")
    if not found:
        raise JobNotFound(text)
    return found[0]
