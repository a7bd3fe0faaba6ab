"""`nimburion limits`: list concurrency limits with the jobs that hold them, and rate limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.output import print_result, print_table
from nimburion.core.rate_limits import RateInfo
from nimburion.core.session import LimitInfo

if TYPE_CHECKING:
    from nimburion.core.backend import Backend


@click.command()
@add_shared_options
def limits() -> None:
    """List concurrency limits with the jobs that have held them longest, and rate limits."""
    found, rates, now = current_invocation().run(read_limits)
    data = {"limits": msgspec.to_builtins(found), "rates": msgspec.to_builtins(rates)}
    print_result(data, lambda: print_limits(found, rates, now))


async def read_limits(backend: Backend) -> tuple[list[LimitInfo], list[RateInfo], float]:
    """Return the concurrency limits, the rate limits and the backend's time."""
    return await backend.list_limits(), await backend.list_rates(), await backend.now()


def print_limits(found: list[LimitInfo], rates: list[RateInfo], now: float) -> None:
    """Print one line per limit."""
    if rates:
        print_rates(rates, now)
        if not found:
            return
        click.echo()
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


def print_rates(rates: list[RateInfo], now: float) -> None:
    """Print one line per rate limit."""
    print_table(
        ("name", "rate", "burst", "cost", "may start now", "next in"),
        [
            (
                rate.name,
                rate.rate,
                rate.burst,
                rate.cost,
                rate.room,
                None if rate.opens_at is None else f"{max(0.0, rate.opens_at - now):.1f} s",
            )
            for rate in rates
        ],
        "",
    )
