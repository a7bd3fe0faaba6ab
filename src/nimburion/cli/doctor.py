"""`nimburion doctor`: check the backend, this host and the configuration, and suggest fixes."""

from __future__ import annotations

import os
import platform
from collections import Counter
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click
import msgspec

from nimburion.cli.exit_codes import FAILED, BackendNotUsable
from nimburion.cli.filters import format_count
from nimburion.cli.invocation import add_shared_options, current_invocation, require_existing_file
from nimburion.cli.output import escape_controls, print_result
from nimburion.core.checks import CheckResult, make_failed_check
from nimburion.core.errors import NimburionError
from nimburion.core.unserved import find_unserved, is_live

if TYPE_CHECKING:
    from nimburion.core.backend import Backend
    from nimburion.core.clock import Clock
    from nimburion.core.settings import Config

TIMEOUT = 20.0
"""Timeout in seconds after which a backend counts as unreachable."""
JUMP = 0.1
"""Seconds by which the wall clock may deviate from the monotonic clock during the checks."""
MOST_UNSERVED = 5
COLOURS = {"good": "green", "warning": "yellow", "error": "red"}


@click.command()
@click.option("--strict", is_flag=True, help="Exit with code 1 for a warning too.")
@add_shared_options
@click.pass_context
def doctor(ctx: click.Context, *, strict: bool) -> None:
    """Check the backend, this host and the configuration, and suggest fixes. Changes nothing.

    Exit code 1 where something is an error.
    """
    import asyncio

    from nimburion.core.clock import SystemClock

    found = asyncio.run(check_all(current_invocation().load(), SystemClock()))
    print_result(as_data(found), lambda: draw(found))
    if find_worst(found) == "error" or (strict and find_worst(found) == "warning"):
        ctx.exit(FAILED)


async def check_all(config: Config, clock: Clock) -> list[CheckResult]:
    """Run all checks of this host, the configuration and the backend, in this order."""
    from nimburion.backends import open_backend

    wall, monotonic = clock.now(), clock.monotonic()
    backend = open_backend(config.jobs.url)
    return [
        check_host(),
        check_settings(config),
        check_event_loop(),
        *check_redis_driver(config.jobs.url),
        CheckResult("backend", "good", backend.describe()),
        *await check_backend(backend),
        check_local_clock(clock, wall, monotonic),
    ]


def check_host() -> CheckResult:
    """Report the versions of nimburion, Python and the operating system."""
    from nimburion import __version__

    system = f"{platform.system()} {platform.machine()}"
    return CheckResult(
        "nimburion", "good", f"{__version__} on Python {platform.python_version()}, {system}"
    )


def check_settings(config: Config) -> CheckResult:
    """Report the source of the settings."""
    return CheckResult(
        "configuration", "good", config.source or "no file: defaults and environment"
    )


def check_event_loop() -> CheckResult:
    """Report the event loop of workers on this host."""
    if find_spec("uvloop") is None:
        text = "asyncio's own; uvloop is faster (pip install 'nimburion[fast]')"
        return CheckResult("event loop", "good", text)
    return CheckResult("event loop", "good", f"uvloop {find_version('uvloop')}")


def check_redis_driver(url: str) -> list[CheckResult]:
    """Check the Redis driver; return no result for other backends."""
    from nimburion.backends import FAMILIES

    if url.partition("://")[0].lower() not in FAMILIES["redis"]:
        return []
    if find_spec("hiredis") is None:
        advice = "pip install 'nimburion[redis]' brings it"
        return [
            CheckResult("driver", "warning", "without hiredis, answers are read slowly", advice)
        ]
    text = f"redis-py {find_version('redis')} with hiredis {find_version('hiredis')}"
    return [CheckResult("driver", "good", text)]


def find_version(package: str) -> str:
    """Return the version of an installed package."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(of unknown version)"


async def check_backend(backend: Backend) -> list[CheckResult]:
    """Run the checks of the backend, or report why it cannot be opened."""
    import asyncio

    try:
        await require_existing_file(backend)
        async with asyncio.timeout(TIMEOUT):
            await backend.open()
            return [*await backend.check(), *await waiting_jobs(backend)]
    except BackendNotUsable as missing:
        text, _, advice = missing.message.partition("; ")
        return [CheckResult("answer", "error", text, advice)]
    except TimeoutError:
        advice = "see that the address is right, and that nothing between here and there hangs"
        return [CheckResult("answer", "error", f"none within {TIMEOUT:.0f} s", advice)]
    except NimburionError as error:
        return [make_failed_check("answer", error)]
    finally:
        await backend.close()


async def waiting_jobs(backend: Backend) -> list[CheckResult]:
    """Check that each waiting job has a live worker that can reserve it."""
    sessions = await backend.sessions()
    found = find_unserved(await backend.queues(), sessions)
    if not found:
        live = sum(map(is_live, sessions))
        return [
            CheckResult(
                "workers",
                "good",
                f"{format_count(live, 'live worker')}; each waiting job has a live worker",
            )
        ]
    advice = (
        "start a worker that registers it and serves its queue, or cancel what nobody wants: "
        "nimburion jobs cancel --name NAME"
    )
    shown = [
        CheckResult("workers", "warning", jobs.describe(), advice) for jobs in found[:MOST_UNSERVED]
    ]
    if len(found) > MOST_UNSERVED:
        more = f"{len(found) - MOST_UNSERVED} more like this; nimburion queues list shows them"
        shown.append(CheckResult("workers", "warning", more, advice))
    return shown


def check_local_clock(clock: Clock, wall: float, monotonic: float) -> CheckResult:
    """Check that the wall clock of this host did not step during the checks."""
    passed = clock.monotonic() - monotonic
    jumped = clock.now() - wall - passed
    if abs(jumped) < JUMP:
        text = f"did not step in the {1000 * passed:.0f} ms of looking"
        return CheckResult("local clock", "good", text)
    advice = "see what sets it; let NTP slew it. Due times follow it where the backend has no clock"
    return CheckResult("local clock", "warning", f"stepped by {jumped:+.1f} s just now", advice)


def find_worst(found: list[CheckResult]) -> str:
    """Return the most severe verdict."""
    verdicts = {result.verdict for result in found}
    return next(verdict for verdict in ("error", "warning", "good") if verdict in verdicts)


def as_data(found: list[CheckResult]) -> dict[str, object]:
    """Return the results as JSON data."""
    return {"verdict": find_worst(found), "checks": msgspec.to_builtins(found)}


def draw(found: list[CheckResult]) -> None:
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
