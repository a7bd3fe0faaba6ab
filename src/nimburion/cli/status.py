"""`nimburion status ID`."""

from __future__ import annotations

import click

from nimburion.cli.invocation import current, shared_options
from nimburion.cli.output import show


@click.command()
@click.argument("job_id", metavar="ID")
@shared_options
def status(job_id: str) -> None:
    """Show where a job stands: state, attempts, times, progress, result, last error."""
    from nimburion.cli.records import draw_record, record_as_data

    record = current().ask(lambda backend: backend.get(job_id))
    show(record_as_data(record), lambda: draw_record(record))
