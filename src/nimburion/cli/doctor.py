"""`nimburion doctor`: what is wrong with the store or on this side of it, and what to do."""

from __future__ import annotations

import os
import platform
from collections import Counter
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click
import msgspec

from nimburion.cli.exit_codes import FAILED, NoStore
from nimburion.cli.filters import counted
from nimburion.cli.invocation import current, refuse_missing, shared_options
from nimburion.cli.output import clean, show
from nimburion.core.checks import Finding, finding_of
from nimburion.core.errors import NimburionError
from nimburion.core.unserved import find_unserved, is_live

if TYPE_CHECKING:
    from nimburion.core.backend import Backend
    from nimburion.core.clock import Clock
    from nimburion.core.settings import Config

PATIENCE = 20.0
"""Seconds after which a store that says nothing, not even no, counts as not answering."""
JUMP = 0.1
"""Seconds by which the wall clock may leave the monotonic one while we look."""
MOST_UNSERVED = 5
COLOURS = {"good": "green", "warning": "yellow", "error": "red"}


@click.command()
@click.option("--strict", is_flag=True, help="Exit with code 1 for a warning too.")
@shared_options
@click.pass_context
def doctor(ctx: click.Context, *, strict: bool) -> None:
    """Examine the store and this side of it, and say what to do. Changes nothing.

    Exit code 1 where something is an error.
    """
    import asyncio

    from nimburion.core.clock import SystemClock

    found = asyncio.run(examined(current().load(), SystemClock()))
    show(as_data(found), lambda: draw(found))
    if worst(found) == "error" or (strict and worst(found) == "warning"):
        ctx.exit(FAILED)


async def examined(config: Config, clock: Clock) -> list[Finding]:
    """Everything there is to say, from here to the store."""
    from nimburion.backends import open_backend

    wall, monotonic = clock.now(), clock.monotonic()
    backend = open_backend(config.jobs.url)
    return [
        this_side(),
        settings(config),
        event_loop(),
        *redis_driver(config.jobs.url),
        Finding("store", "good", backend.describe()),
        *await answers(backend),
        local_clock(clock, wall, monotonic),
    ]


def this_side() -> Finding:
    """What runs here."""
    from nimburion import __version__

    system = f"{platform.system()} {platform.machine()}"
    return Finding(
        "nimburion", "good", f"{__version__} on Python {platform.python_version()}, {system}"
    )


def settings(config: Config) -> Finding:
    """Where the settings come from."""
    return Finding("configuration", "good", config.source or "no file: defaults and environment")


def event_loop() -> Finding:
    """What workers that are started here run on."""
    if find_spec("uvloop") is None:
        text = "asyncio's own; uvloop is faster (pip install 'nimburion[fast]')"
        return Finding("event loop", "good", text)
    return Finding("event loop", "good", f"uvloop {version_of('uvloop')}")


def redis_driver(url: str) -> list[Finding]:
    """What reads the answers of a Redis server; nothing to say of other stores."""
    from nimburion.backends import FAMILIES

    if url.partition("://")[0].lower() not in FAMILIES["redis"]:
        return []
    if find_spec("hiredis") is None:
        advice = "pip install 'nimburion[redis]' brings it"
        return [Finding("driver", "warning", "without hiredis, answers are read slowly", advice)]
    text = f"redis-py {version_of('redis')} with hiredis {version_of('hiredis')}"
    return [Finding("driver", "good", text)]


def version_of(package: str) -> str:
    """The version of an installed package."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(of unknown version)"


async def answers(backend: Backend) -> list[Finding]:
    """What the store says of itself, or that it says nothing."""
    import asyncio

    try:
        await refuse_missing(backend)
        async with asyncio.timeout(PATIENCE):
            await backend.open()
            return [*await backend.examine(), *await waiting_jobs(backend)]
    except NoStore as missing:
        text, _, advice = missing.message.partition("; ")
        return [Finding("answer", "error", text, advice)]
    except TimeoutError:
        advice = "see that the address is right, and that nothing between here and there hangs"
        return [Finding("answer", "error", f"none within {PATIENCE:.0f} s", advice)]
    except NimburionError as error:
        return [finding_of("answer", error)]
    finally:
        await backend.close()


async def waiting_jobs(backend: Backend) -> list[Finding]:
    """Whether each waiting job has a live worker that would take it."""
    sessions = await backend.sessions()
    found = find_unserved(await backend.queues(), sessions)
    if not found:
        live = sum(map(is_live, sessions))
        return [Finding("workers", "good", f"{counted(live, 'live worker')}; no job waits in vain")]
    advice = (
        "start a worker that registers it and serves its queue, or cancel what nobody wants: "
        "nimburion jobs cancel --name NAME"
    )
    shown = [Finding("workers", "warning", one.describe(), advice) for one in found[:MOST_UNSERVED]]
    if len(found) > MOST_UNSERVED:
        more = f"{len(found) - MOST_UNSERVED} more like this; nimburion queues list shows them"
        shown.append(Finding("workers", "warning", more, advice))
    return shown


def local_clock(clock: Clock, wall: float, monotonic: float) -> Finding:
    """Whether the clock of this host stepped since we began to look."""
    passed = clock.monotonic() - monotonic
    jumped = clock.now() - wall - passed
    if abs(jumped) < JUMP:
        text = f"did not step in the {1000 * passed:.0f} ms of looking"
        return Finding("local clock", "good", text)
    advice = "see what sets it; let NTP slew it. Due times follow it where the store has no clock"
    return Finding("local clock", "warning", f"stepped by {jumped:+.1f} s just now", advice)


def worst(found: list[Finding]) -> str:
    """The gravest verdict."""
    verdicts = {one.verdict for one in found}
    return next(one for one in ("error", "warning", "good") if one in verdicts)


def as_data(found: list[Finding]) -> dict[str, object]:
    """For machines."""
    return {"verdict": worst(found), "findings": msgspec.to_builtins(found)}


def draw(found: list[Finding]) -> None:
    """One line a finding, what to do below it, and how many are not good."""
    width = max(len(one.subject) for one in found)
    colour = False if os.environ.get("NO_COLOR") else None
    for one in found:
        verdict = click.style(f"{one.verdict:<7}", fg=COLOURS[one.verdict])
        click.echo(f"{verdict}  {clean(one.subject):<{width}}  {clean(one.text)}", color=colour)
        if one.advice:
            click.echo(f"{'':<{width + 13}}{clean(one.advice)}")
    count = Counter(one.verdict for one in found)
    click.echo(f"{counted(count['error'], 'error')}, {counted(count['warning'], 'warning')}")
