"""`nimburion limits …`: list limits, show their keys, and change them at run time."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click
import msgspec

from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.listing_groups import listing_group
from nimburion.cli.operators import make_actions
from nimburion.cli.output import print_result, print_table
from nimburion.cli.parameters import add_reason_option
from nimburion.core.errors import LimitNotFound
from nimburion.core.limits import (
    LimitChange,
    LimitInfo,
    closes_lane,
    make_job_limit_name,
    make_queue_limit_name,
)
from nimburion.core.text.escaping import escape_controls
from nimburion.core.text.suggestions import find_nearest

if TYPE_CHECKING:
    from nimburion.core.backend import Backend

NO_LIMIT = "no worker declares a limit"
_SHOWN_KEYS = 50


@listing_group
def limits() -> None:
    """List limits, and change them at run time."""


@limits.command("list")
@add_shared_options
def list_limits() -> None:
    """List limits: what they allow, what is in use and waits, and who changed them."""
    found, now = current_invocation().run(read_limits)
    print_result(msgspec.to_builtins(found), lambda: print_limits(found, now))


async def read_limits(backend: Backend) -> tuple[list[LimitInfo], float]:
    """Return all limits, and the backend's time."""
    return await backend.reads.list_limits(), await backend.now()


def print_limits(limits: list[LimitInfo], now: float) -> None:
    """Print one line per limit, then one per change."""
    print_table(
        (
            *("limit", "maximum", "rate", "jobs", "keys", "in use", "waiting", "next in"),
            "held by, or fullest keys (in use+waiting)",
        ),
        [
            (
                limit.name,
                describe_maximum(limit),
                describe_rate(limit),
                ",".join(limit.rules) or None,
                None if closes_lane(limit.name) else limit.keys,
                limit.in_use,
                None if closes_lane(limit.name) else limit.parked,
                describe_wait(limit.opens_at, now) if closes_lane(limit.name) else None,
                describe_use(limit),
            )
            for limit in limits
        ],
        NO_LIMIT,
    )
    changes = [change for limit in limits for change in limit.changes]
    if changes:
        print_changes(changes)


def describe_maximum(limit: LimitInfo) -> str | None:
    """Return how many jobs of one key may run, of each job name if they differ."""
    return (
        "/".join(sorted({str(one.concurrency) for one in limit.rules.values()} - {"None"})) or None
    )


def describe_rate(limit: LimitInfo) -> str | None:
    """Return the rate of one key with its burst and cost, of each job name if they differ."""
    rates = {one.rate for one in limit.rules.values() if one.rate is not None}
    texts = {
        f"{rate.rate} burst {rate.burst}" + ("" if rate.cost == 1 else f" cost {rate.cost}")
        for rate in rates
    }
    return "/".join(sorted(texts)) or None


def describe_wait(opens_at: float | None, now: float) -> str | None:
    """Return the time until a rate allows the next job; None: it allows one now."""
    return None if opens_at is None else f"{max(0.0, opens_at - now):.1f} s"


def describe_use(limit: LimitInfo) -> str | None:
    """Return the jobs that hold a limit, or its fullest keys with running and waiting jobs."""
    if closes_lane(limit.name):
        return ", ".join(holder.job_id for holder in limit.holders) or None
    keys = [f"{use.key or '(none)'} {use.in_use}+{use.parked}" for use in limit.fullest[:3]]
    return ", ".join(keys) or None


def print_changes(changes: list[LimitChange]) -> None:
    """Print one line per change."""
    print_table(
        ("changed limit", "key", "maximum", "rate", "burst", "by", "reason"),
        [
            (
                change.name,
                change.key,
                change.concurrency,
                change.rate.rate if change.rate else None,
                change.rate.burst if change.rate else None,
                change.by or None,
                change.reason or None,
            )
            for change in changes
        ],
        "",
    )


@limits.command("show")
@click.argument("name", metavar="NAME")
@add_shared_options
def show(name: str) -> None:
    """Show a limit with its fullest keys: running and waiting jobs, and the next start."""
    limit, now = current_invocation().run(lambda backend: read_limit(backend, name))
    print_result(msgspec.to_builtins(limit), lambda: print_limit(limit, now))


async def read_limit(backend: Backend, name: str) -> tuple[LimitInfo, float]:
    """Return a limit and the backend's time. Raises `LimitNotFound`."""
    found = await backend.reads.list_limits(name=name, fullest=_SHOWN_KEYS)
    if not found:
        names = [limit.name for limit in await backend.reads.list_limits(fullest=0, holders=0)]
        raise LimitNotFound(name, _explain_unknown_limit(name, names))
    return found[0], await backend.now()


def _explain_unknown_limit(name: str, known: list[str]) -> str:
    """Say that the backend knows no limit of this name, and which one may be meant."""
    of_job_or_queue = (make_job_limit_name(name), make_queue_limit_name(name))
    near = next((full for full in of_job_or_queue if full in known), find_nearest(name, known))
    hint = f"did you mean {near!r}?" if near else "`nimburion limits` lists all limits"
    return f"this backend knows no limit {name!r}; {hint}"


def print_limit(limit: LimitInfo, now: float) -> None:
    """Print a limit, then one line per key."""
    print_limits([msgspec.structs.replace(limit, fullest=[])], now)
    print_table(
        ("key", "in use", "waiting", "next in"),
        [
            (
                use.key or None,
                use.in_use,
                use.parked if use.key else None,  # jobs without a key wait in their queue
                describe_wait(use.opens_at, now),
            )
            for use in limit.fullest
        ],
        "no key is in use",
    )
    if limit.keys > len(limit.fullest):
        click.echo(f"and {limit.keys - len(limit.fullest)} more keys")


@limits.command("set")
@click.argument("name", metavar="NAME")
@click.argument("concurrency", metavar="[MAXIMUM]", type=click.IntRange(0), required=False)
@click.option("--rate", metavar="RATE", help="How many units may start in a time: 100/min.")
@click.option(
    "--burst", metavar="N", type=click.IntRange(1), help="With --rate: how many may start at once."
)
@click.option("--key", metavar="KEY", help="Change only this key of a shared limit.")
@click.option("--reason", metavar="TEXT", required=True, help="Why; shown wherever the limit is.")
@add_shared_options
def set_limit(  # noqa: PLR0917 - the parameters of the command
    name: str,
    concurrency: int | None,
    rate: str | None,
    burst: int | None,
    key: str | None,
    reason: str,
) -> None:
    """Change a limit at run time, until `limits reset`. MAXIMUM 0 starts no more jobs.

    NAME is job:NAME, queue:NAME for a whole queue, or the name of a shared limit, as `limits list`
    shows it. The change wins over what workers declare, even after they restart. The next exchange
    of each worker follows it. Running jobs continue.
    """
    if burst is not None and rate is None:
        raise click.UsageError("--burst needs --rate, like --rate 100/min")
    if concurrency is None and rate is None:
        raise click.UsageError("give a MAXIMUM or --rate; `limits reset` ends a change")
    change = current_invocation().run(
        lambda backend: make_actions(backend).limits.change(
            name, concurrency, rate=rate, burst=burst, key=key, reason=reason
        )
    )
    print_result(
        msgspec.to_builtins(change), lambda: click.echo(escape_controls(describe_change(change)))
    )


def describe_change(change: LimitChange) -> str:
    """Return what a change does, for people."""
    what = [f"at most {change.concurrency} at once"] if change.concurrency is not None else []
    if change.rate is not None:
        what.append(f"{change.rate.rate} with a burst of {change.rate.burst}")
    key = "" if change.key is None else f" for the key {change.key}"
    return f"{change.name}{key}: {', '.join(what)}; `{make_reset_command(change)}` ends the change"


def make_reset_command(change: LimitChange) -> str:
    """Return the command that ends a change."""
    words = ["nimburion", "limits", "reset", change.name]
    return shlex.join(words if change.key is None else [*words, "--key", change.key])


@limits.command("reset")
@click.argument("name", metavar="NAME")
@click.option("--key", metavar="KEY", help="Reset only this key of a shared limit.")
@add_reason_option
@add_shared_options
def reset(name: str, key: str | None, reason: str) -> None:
    """End the change of a limit, so that what the workers declare applies again.

    Without --key, the changes of single keys stay.
    """
    current_invocation().run(
        lambda backend: make_actions(backend).limits.reset(name, key=key, reason=reason)
    )
    print_result(
        {"name": name, "key": key, "reset": True},
        lambda: click.echo(f"{escape_controls(name)}: what the workers declare applies again"),
    )
