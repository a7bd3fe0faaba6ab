"""`nimburion tenants …`: list the tenants that have jobs, and set weights."""

from __future__ import annotations

import math

import click
import msgspec

from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.listing_groups import listing_group
from nimburion.cli.operators import make_actions
from nimburion.cli.output import print_result, print_table
from nimburion.core.fairness import (
    MAX_WEIGHT,
    MIN_WEIGHT,
    TenantUses,
    compute_shares,
)
from nimburion.core.text.escaping import escape_controls


@listing_group
def tenants() -> None:
    """List the tenants that have jobs, and set their weights."""


@tenants.command("list")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="At most this many tenants.",
)
@add_shared_options
def list_tenants(limit: int) -> None:
    """List tenants with waiting or running jobs: queue, weight, share, and who is next.

    The tenant with the least virtual time ahead is next, inside one queue and priority.
    """
    found = current_invocation().run(lambda backend: backend.reads.list_tenants(limit))
    print_result(msgspec.to_builtins(found), lambda: print_tenants(found))


def print_tenants(found: TenantUses) -> None:
    """Print one line per tenant, queue and priority; then the weights of tenants without jobs."""
    shares = compute_shares(found.tenants)
    print_table(
        ("tenant", "queue", "priority", "waiting", "running", "weight", "share", "ahead"),
        [
            (
                use.tenant,
                use.queue,
                use.priority,
                use.waiting,
                use.running,
                f"{use.weight:g}",
                f"{share:.0%}",
                f"{use.ahead:.1f} s",
            )
            for use, share in zip(found.tenants, shares, strict=True)
        ],
        "no tenant has a job that waits for its turn or runs",
    )
    shown = {use.tenant for use in found.tenants}
    for tenant, weight in found.weights.items():
        if tenant not in shown:
            click.echo(f"{escape_controls(tenant)} has the weight {weight:g}")


def refuse_nan(
    ctx: click.Context, parameter: click.Parameter, weight: float | None
) -> float | None:
    """Return the weight. A range of click contains `nan`, which is no weight."""
    if weight is not None and math.isnan(weight):
        message = f"nan is not in the range {MIN_WEIGHT}<=x<={MAX_WEIGHT}."
        raise click.BadParameter(message, ctx, parameter)
    return weight


@tenants.command("weight")
@click.argument("tenant", metavar="TENANT")
@click.argument(
    "weight",
    metavar="[WEIGHT]",
    required=False,
    type=click.FloatRange(MIN_WEIGHT, MAX_WEIGHT),
    callback=refuse_nan,
)
@add_shared_options
def set_weight(tenant: str, weight: float | None) -> None:
    """Set the weight of a tenant in all queues; without WEIGHT, set it to 1.

    A tenant of weight 2 with enough jobs gets twice the run time of a tenant of weight 1. A worker
    whose configuration names the tenant stores the weight of the configuration when it starts.
    """
    stored = current_invocation().run(
        lambda backend: make_actions(backend).tenants.set_weight(tenant, weight)
    )
    print_result(
        {"tenant": tenant, "weight": stored},
        lambda: click.echo(f"{escape_controls(tenant)} has the weight {stored:g}"),
    )
