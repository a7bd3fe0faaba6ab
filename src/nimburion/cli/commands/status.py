"""`nimburion status ID`: show the state of a job."""

from __future__ import annotations

import click

from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.output import print_result


@click.command()
@click.argument("job_id", metavar="ID")
@add_shared_options
def status(job_id: str) -> None:
    """Show the state of a job: attempts, times, progress, result, last error."""
    from nimburion.cli.job_ids import get_job
    from nimburion.cli.records import print_record, record_to_data

    record = current_invocation().run(lambda backend: get_job(backend, job_id))
    print_result(record_to_data(record), lambda: print_record(record))
