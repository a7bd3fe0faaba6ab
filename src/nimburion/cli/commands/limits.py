"""`nimburion limits`: list concurrency limits with the jobs that hold them, and rate limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.output import print_result, print_table
from nimburion.core.keyed_limits import KeyUse
from nimburion.core.rate_limits import RateInfo
from nimburion.core.session import LimitInfo

if TYPE_CHECKING:
    from nimburion.core.backend import Backend


@click.command()
@add_shared_options
def limits() -> None:
    """List concurrency limits with the jobs that have held them longest, and rate limits."""
    found, rates, keys, now = current_invocation().run(read_limits)
    data = {
        "limits": msgspec.to_builtins(found),
        "rates": msgspec.to_builtins(rates),
        "keys": msgspec.to_builtins(keys),
    }
    print_result(data, lambda: print_limits(found, rates, keys, now))


Readings = tuple[list[LimitInfo], list[RateInfo], list[KeyUse], float]


async def read_limits(backend: Backend) -> Readings:
    """Return the concurrency limits, the rate limits, the keys in use and the backend's time."""
    return (
        await backend.list_limits(),
        await backend.list_rates(),
        await backend.list_key_uses(),
        await backend.now(),
    )


def print_limits(
    found: list[LimitInfo], rates: list[RateInfo], keys: list[KeyUse], now: float
) -> None:
    """Print one line per limit and per key."""
    if keys:
        print_keys(keys, now)
    if rates:
        print_rates(rates, now)
    if not found and (rates or keys):
        return
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


def print_keys(keys: list[KeyUse], now: float) -> None:
    """Print one line per key of a limit."""
    print_table(
        ("limit", "key", "in use", "waiting", "next in"),
        [
            (
                use.limit,
                use.key or None,
                use.in_use,
                use.parked,
                None if use.opens_at is None else f"{max(0.0, use.opens_at - now):.1f} s",
            )
            for use in keys
        ],
        "",
    )
