"""`nimburion doctor`: check the backend, this host and the configuration, and suggest fixes."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import click
import msgspec

from nimburion.cli.exit_codes import FAILED, BackendNotUsable
from nimburion.cli.filters import format_count
from nimburion.cli.invocation import add_shared_options, current_invocation, require_existing_file
from nimburion.cli.output import print_result
from nimburion.core.diagnosis.backend_checks import run_backend_checks
from nimburion.core.diagnosis.checks import CheckResult, find_worst
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from nimburion.core.backend import Backend
    from nimburion.core.settings import Config
    from nimburion.core.timing.clock import Clock

TIMEOUT = 20.0
"""Timeout in seconds after which a backend counts as unreachable."""
COLOURS = {"good": "green", "warning": "yellow", "error": "red"}


@click.command()
@click.option("--strict", is_flag=True, help="Exit with code 1 for a warning too.")
@add_shared_options
@click.pass_context
def doctor(ctx: click.Context, *, strict: bool) -> None:
    """Check the backend, this host and the configuration, and suggest fixes. Changes nothing.

    Exit code 1 if it finds an error.
    """
    import asyncio

    from nimburion.core.timing.clock import SystemClock

    found = asyncio.run(check_all(current_invocation().load(), SystemClock()))
    print_result(to_data(found), lambda: print_checks(found))
    if find_worst(found) == "error" or (strict and find_worst(found) == "warning"):
        ctx.exit(FAILED)


async def check_all(config: Config, clock: Clock) -> list[CheckResult]:
    """Run all checks of this host, the configuration and the backend, in this order."""
    from nimburion.backends import open_backend
    from nimburion.config.local_checks import check_local_clock, run_local_checks

    wall, monotonic = clock.now(), clock.monotonic()
    backend = open_backend(config.jobs.url)
    return [
        *run_local_checks(config),
        CheckResult("backend", "good", backend.describe()),
        *await check_backend(backend),
        *await check_configured_outbox(config),
        check_local_clock(clock, wall, monotonic),
    ]


async def check_backend(backend: Backend) -> list[CheckResult]:
    """Run the checks of the backend, or report why it cannot be opened."""
    try:
        await require_existing_file(backend)
        return await run_backend_checks(backend, TIMEOUT)
    except BackendNotUsable as missing:
        text, _, advice = missing.message.partition("; ")
        return [CheckResult("answer", "error", text, advice)]
    finally:
        await backend.close()


async def check_configured_outbox(config: Config) -> list[CheckResult]:
    """Check the outbox that the configuration names; return nothing if it names none."""
    if not config.jobs.outbox_url:
        return []
    from nimburion.jobs.outbox.checks import check_kept_records, check_outbox

    warning = check_kept_records(config.jobs)
    answer = await check_outbox(config.jobs.outbox_url, TIMEOUT)
    return [answer] if warning is None else [answer, warning]


def to_data(found: list[CheckResult]) -> dict[str, object]:
    """Return the results as JSON data."""
    return {"verdict": find_worst(found), "checks": msgspec.to_builtins(found)}


def print_checks(found: list[CheckResult]) -> None:
    """Print one line per result, its advice below it, and the numbers of errors and warnings."""
    width = max(len(result.subject) for result in found)
    colour = False if os.environ.get("NO_COLOR") else None
    for result in found:
        verdict = click.style(f"{result.verdict:<7}", fg=COLOURS[result.verdict])
        subject, text = escape_controls(result.subject), escape_controls(result.text)
        click.echo(f"{verdict}  {subject:<{width}}  {text}", color=colour)
        if result.advice:
            click.echo(f"{'':<{width + 13}}{escape_controls(result.advice)}")
    count = Counter(result.verdict for result in found)
    click.echo(
        f"{format_count(count['error'], 'error')}, {format_count(count['warning'], 'warning')}"
    )
