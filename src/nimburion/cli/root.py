"""The command `nimburion`: finds its subcommands by name and imports only the one that runs."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType

import click

from nimburion.cli.invocation import add_shared_options

COMMANDS = MappingProxyType(
    {
        "worker": ("worker:worker", "Run jobs: nimburion worker MODULE:NAME."),
        "server": ("server:server", "Run the management server: health and the JSON API."),
        "enqueue": ("enqueue:enqueue", "Store a job by the name of its handler."),
        "status": ("status:status", "Show the state of a job."),
        "jobs": ("jobs:jobs", "List, show, cancel and retry jobs."),
        "queues": ("queues:queues", "List, pause and resume queues."),
        "workers": ("workers:workers", "List workers, and tell them to pause or stop."),
        "why": ("why:why", "Say why a job is not running."),
        "top": ("top:top", "Watch queues, workers and throughput."),
        "stats": ("stats:stats", "Show counts, wait and run times of the last hours or days."),
        "limits": ("limits:limits", "List concurrency limits and what holds them."),
        "audit": ("audit:audit", "List the changes that operators made."),
        "schedules": ("schedules:schedules", "List, add, pause schedules; explain expressions."),
        "dead": ("dead:dead", "List, show, replay and purge dead letters (failed jobs)."),
        "config": ("configuration:configuration", "Check and show the configuration."),
        "migrate": (
            "migrate:migrate",
            "Run the migrations of the backend; show what is missing.",
        ),
        "doctor": ("doctor:doctor", "Check the backend, this host and the configuration."),
        "demo": ("demo:demo", "Watch real jobs run, fail, retry and be rescued."),
    }
)


class LazyGroup(click.Group):
    """A group of commands; each command is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click names it
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click names it
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(f"nimburion.cli.commands.{module}"), name)
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click names it
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


def _print_version(ctx: click.Context, _: click.Parameter, wanted: object) -> None:
    if wanted:
        from nimburion import __version__

        click.echo(f"nimburion {__version__}")
        ctx.exit()


@click.group(
    name="nimburion",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
@add_shared_options
def root() -> None:
    """Run, enqueue and manage background jobs.

    The backend is --backend, else what the configuration says, else SQLite in ./nimburion.db.
    Every command takes --config, --backend and --json.
    """
