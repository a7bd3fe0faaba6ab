"""`nimburion limits`: list concurrency limits and the jobs that count against them."""

from __future__ import annotations

import click
import msgspec

from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.output import print_result, print_table
from nimburion.core.session import LimitInfo


@click.command()
@add_shared_options
def limits() -> None:
    """List concurrency limits, with the jobs that have held them longest."""
    found = current_invocation().run(lambda backend: backend.list_limits())
    print_result([msgspec.to_builtins(limit) for limit in found], lambda: print_limits(found))


def print_limits(found: list[LimitInfo]) -> None:
    """Print one line per limit."""
    print_table(
        ("name", "in use", "limit", "held by"),
        [
            (
                limit.name,
                limit.in_use,
                limit.limit,
                ", ".join(holder.job_id for holder in limit.holders) or None,
            )
            for limit in found
        ],
        "no worker declares a concurrency limit",
    )
