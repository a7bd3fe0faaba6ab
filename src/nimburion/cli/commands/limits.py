"""`nimburion limits …`: list limits, show their keys, and change them at run time."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec

from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.operators import make_actions
from nimburion.cli.output import print_result, print_table
from nimburion.core.errors import LimitNotFound
from nimburion.core.keyed_limits import KeyedLimitInfo, KeyUse
from nimburion.core.limit_changes import LimitChange
from nimburion.core.rate_limits import RateInfo
from nimburion.core.session import LimitInfo
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from nimburion.core.backend import Backend

NO_LIMIT = "no worker declares a limit"
_SHOWN_KEYS = 50


@click.group(invoke_without_command=True)
@add_shared_options
@click.pass_context
def limits(ctx: click.Context) -> None:
    """List limits, and change them at run time. Without a command: list them."""
    if ctx.invoked_subcommand is None:
        show_all()


@limits.command("list")
@add_shared_options
def list_limits() -> None:
    """List concurrency limits and what holds them, rates, limits by key, and their changes."""
    show_all()


class Readings(NamedTuple):
    """All limits of a backend."""

    limits: list[LimitInfo]
    rates: list[RateInfo]
    keyed: list[KeyedLimitInfo]
    keys: list[KeyUse]
    changes: list[LimitChange]
    now: float


def show_all() -> None:
    """Read all limits and print them."""
    found = current_invocation().run(read_limits)
    data = {
        name: msgspec.to_builtins(value) for name, value in found._asdict().items() if name != "now"
    }
    print_result(data, lambda: print_limits(found))


async def read_limits(backend: Backend) -> Readings:
    """Return all limits, the keys in use, the changes, and the backend's time."""
    return Readings(
        await backend.reads.list_limits(),
        await backend.reads.list_rates(),
        await backend.reads.list_keyed_limits(),
        await backend.reads.list_key_uses(),
        await backend.reads.list_limit_changes(),
        await backend.now(),
    )


def print_limits(found: Readings) -> None:
    """Print one line per limit, then one per change."""
    if found.keyed:
        print_keyed_limits(found.keyed)
    if found.rates:
        print_rates(found.rates, found.now)
    if found.limits or not (found.rates or found.keyed):
        print_table(
            ("name", "in use", "limit", "held by"),
            [
                (
                    limit.name,
                    limit.in_use,
                    limit.limit,
                    ", ".join(holder.job_id for holder in limit.holders) or None,
                )
                for limit in found.limits
            ],
            NO_LIMIT,
        )
    if found.changes:
        print_changes(found.changes)


def print_keyed_limits(keyed: list[KeyedLimitInfo]) -> None:
    """Print one line per limit by key."""
    print_table(
        (
            *("limit by key", "maximum", "rate", "jobs", "keys", "in use", "waiting"),
            "fullest keys (in use+waiting)",
        ),
        [
            (
                limit.name,
                describe_maximum(limit),
                describe_rate(limit),
                ",".join(limit.jobs) or None,
                limit.keys,
                limit.in_use,
                limit.parked,
                ", ".join(describe_use(use) for use in limit.fullest[:3]) or None,
            )
            for limit in keyed
        ],
        "",
    )


def describe_maximum(limit: KeyedLimitInfo) -> str | None:
    """Return how many jobs of one key may run, of each job name if they differ."""
    return (
        "/".join(sorted({str(one.concurrency) for one in limit.jobs.values()} - {"None"})) or None
    )


def describe_rate(limit: KeyedLimitInfo) -> str | None:
    """Return the rate of one key, of each job name if they differ."""
    return "/".join(sorted({one.rate.rate for one in limit.jobs.values() if one.rate})) or None


def describe_use(use: KeyUse) -> str:
    """Return a key with its running and its waiting jobs."""
    return f"{use.key or '(none)'} {use.in_use}+{use.parked}"


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
    """Show the fullest keys of a limit by key: running and waiting jobs, and the next start."""
    limit, now = current_invocation().run(lambda backend: read_keyed_limit(backend, name))
    print_result(msgspec.to_builtins(limit), lambda: print_keyed_limit(limit, now))


async def read_keyed_limit(backend: Backend, name: str) -> tuple[KeyedLimitInfo, float]:
    """Return a limit by key and the backend's time. Raises `LimitNotFound`."""
    found = await backend.reads.list_keyed_limits(name=name, fullest=_SHOWN_KEYS)
    if not found:
        raise LimitNotFound(
            name,
            f"this backend knows no limit by key {name!r}; `nimburion limits` lists all limits",
        )
    return found[0], await backend.now()


def print_keyed_limit(limit: KeyedLimitInfo, now: float) -> None:
    """Print a limit by key, then one line per key."""
    print_keyed_limits([msgspec.structs.replace(limit, fullest=[])])
    print_table(
        ("key", "in use", "waiting", "next in"),
        [
            (
                use.key or None,
                use.in_use,
                use.parked,
                None if use.opens_at is None else f"{max(0.0, use.opens_at - now):.1f} s",
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
@click.option("--key", metavar="KEY", help="Change only this key of a limit by key.")
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

    NAME is a job, a limit by key as `limits list` shows it, or queue=QUEUE for a whole queue. The
    change wins over what workers declare, also after they restart. The next exchange of each worker
    follows it. Running jobs continue.
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
@click.option("--key", metavar="KEY", help="Reset only this key of a limit by key.")
@click.option("--reason", metavar="TEXT", default="", help="Why; kept in the audit record.")
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
