"""`nimburion why ID`: say why a job is not running."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.job_ids import resolve_job_id
from nimburion.cli.output import print_fields, print_result
from nimburion.core.diagnosis.explanations import Cause, Facts, find_causes
from nimburion.core.diagnosis.running_jobs import read_facts
from nimburion.core.errors import JobNotFound
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from nimburion.core.backend import Backend


@click.command()
@click.argument("job_id", metavar="ID")
@add_shared_options
def why(job_id: str) -> None:
    """Say why a job is not running, the decisive cause first.

    ID is the id of the job, or a unique prefix or suffix of at least four characters.
    """
    try:
        facts = current_invocation().run(lambda backend: find_facts(backend, job_id))
    except JobNotFound:
        if not is_in_configured_outbox(job_id):
            raise
        text = "a worker has not relayed it from the outbox to the backend yet"
        data = {"id": job_id, "state": "outbox", "causes": [{"kind": "outbox", "text": text}]}
        print_result(data, lambda: click.echo(f"why    {text}"))
        return
    causes = find_causes(facts)
    print_result(to_data(facts, causes), lambda: print_causes(facts, causes))


def is_in_configured_outbox(job_id: str) -> bool:
    """Return whether the job waits in the outbox that the configuration names."""
    import asyncio

    url = current_invocation().load().jobs.outbox_url
    if not url:
        return False
    from nimburion.jobs.outbox.checks import TIMEOUT, is_in_outbox

    return asyncio.run(is_in_outbox(url, job_id, TIMEOUT))


async def find_facts(backend: Backend, job_id: str) -> Facts:
    """Return the facts about the job that `job_id` names."""
    return await read_facts(backend, await resolve_job_id(backend, job_id))


def to_data(facts: Facts, causes: list[Cause]) -> dict[str, object]:
    """Return the causes and their facts as JSON data."""
    return {
        "id": facts.job.id,
        "state": facts.job.state.value,
        "unique_key": facts.job.options.unique_key,
        "unique_mode": facts.job.options.unique_mode,
        "causes": [{"kind": cause.kind.value, "text": cause.text} for cause in causes],
        "pause": msgspec.to_builtins(facts.pause),
        "limits": msgspec.to_builtins(facts.limits),
        "keys": msgspec.to_builtins(facts.keys),
        "parked_for": facts.parked_for,
        "key_holder": facts.key_holder,
        "usual": facts.usual,
        "cancel_requested_at": facts.cancel_requested_at,
        "now": facts.now,
    }


def print_causes(facts: Facts, causes: list[Cause]) -> None:
    """Print the job on a few lines, then one line for each cause."""
    job = facts.job
    fields = {"id": job.id, "name": job.name, "queue": job.queue, "state": job.state.value}
    print_fields({**fields, "unique key": job.options.described_key})
    for number, cause in enumerate(causes):
        click.echo(f"{'why' if number == 0 else 'also':<5}  {escape_controls(cause.text)}")
