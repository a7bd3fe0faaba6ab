"""`nimburion dashboard`: serve the dashboard on this host."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import click

from nimburion.cli.invocation import (
    add_shared_options,
    current_invocation,
    open_shared_backend,
    require_existing_file,
)

if TYPE_CHECKING:
    from nimburion.core.settings import Config

LOOPBACK = "127.0.0.1"


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    metavar="PORT",
    help="Listen on this port; without it, on the configured one, or on a free one.",
)
@click.option("--open", "opens_browser", is_flag=True, help="Open it in the browser.")
@add_shared_options
def dashboard(*, port: int | None, opens_browser: bool) -> None:
    """Serve the dashboard on this host until SIGTERM or Ctrl-C, and print its address.

    Only this host can reach it. `nimburion server` serves other hosts too.
    """
    invocation = current_invocation()
    given: dict[str, Any] = {} if port is None else {"port": port}
    config = invocation.load(server={**given, "host": LOOPBACK, "enabled": True})
    backend = open_shared_backend(config.jobs.url)
    asyncio.run(require_existing_file(backend))
    if port is None and _is_in_use(config.server.port):
        config = invocation.load(server={"port": 0, "host": LOOPBACK, "enabled": True})
    asyncio.run(serve_dashboard(config, opens_browser=opens_browser))


async def serve_dashboard(config: Config, *, opens_browser: bool) -> None:
    """Serve the dashboard until a signal."""
    from nimburion.server import bootstrap
    from nimburion.server.application import wait_for_signal

    app = bootstrap(config)
    async with app:
        address = f"{app.url}/dashboard"
        click.echo(address)
        if opens_browser:
            await asyncio.to_thread(click.launch, address)
        await wait_for_signal()


def _is_in_use(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
    return False
