"""`nimburion server`: run the management server, without a worker."""

from __future__ import annotations

from typing import Any

import click

from nimburion.cli.commands.worker import LEVELS, start_logging
from nimburion.cli.exit_codes import BadInput
from nimburion.cli.invocation import add_shared_options, current_invocation


@click.command()
@click.option("--host", metavar="ADDRESS", help="Listen here; beyond loopback only with tokens.")
@click.option("--port", type=click.IntRange(0, 65_535), metavar="PORT", help="0: any free port.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
@add_shared_options
def server(*, host: str | None, port: int | None, log_level: str) -> None:
    """Run the management server until SIGTERM or Ctrl-C: health checks, metrics and JSON API.

    Workers run elsewhere; `nimburion worker --server` runs both in one process.
    """
    from nimburion.backends import open_backend
    from nimburion.core.text.redaction import redact_url
    from nimburion.server import bootstrap

    given: dict[str, Any] = {"host": host, "port": port}
    chosen = {name: value for name, value in given.items() if value is not None}
    config = current_invocation().load(server={**chosen, "enabled": True})
    if not open_backend(config.jobs.url).capabilities.shared:
        raise BadInput(
            f"{redact_url(config.jobs.url)} is a memory backend, which only its own process can "
            "read; choose another backend"
        )
    start_logging(log_level, config.telemetry.log_format)
    bootstrap(config).run()
