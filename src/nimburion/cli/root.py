"""The command `nimburion`: finds its subcommands by name and imports only the one that runs."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from types import MappingProxyType

import click

from nimburion.cli.invocation import add_shared_options

COMMANDS = MappingProxyType(
    {
        "worker": ("worker:worker", "Run jobs: nimburion worker MODULE:NAME."),
        "server": ("server:server", "Run the management server: health and the JSON API."),
        "dashboard": ("dashboard:dashboard", "Serve the dashboard on this host."),
        "enqueue": ("enqueue:enqueue", "Store a job by the name of its handler."),
        "status": ("status:status", "Show the state of a job."),
        "jobs": ("jobs:jobs", "List, show, cancel, delete and retry jobs."),
        "queues": ("queues:queues", "List, pause and resume queues."),
        "workers": ("workers:workers", "List workers, and tell them to pause or stop."),
        "why": ("why:why", "Say why a job is not running."),
        "top": ("top:top", "Watch queues, workers and throughput."),
        "stats": ("stats:stats", "Show counts, wait and run times of the last hours or days."),
        "limits": ("limits:limits", "List limits, and change them at run time."),
        "tenants": ("tenants:tenants", "List tenants and their shares; set weights."),
        "audit": ("audit:audit", "List the changes that operators made."),
        "schedules": ("schedules:schedules", "List, add, pause schedules; explain expressions."),
        "dead": ("dead:dead", "List, show, replay and purge dead letters (failed jobs)."),
        "flows": ("flows:flows", "List, show, cancel and replay flows."),
        "operations": (
            "bulk_operations:operations",
            "List, show and cancel bulk operations (changes of many jobs).",
        ),
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

    target: str | None = None
    """MODULE:NAME of the processor, where a framework knows it; no command then takes one."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click names it
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown name is refused with the most similar one."""
        if args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            from nimburion.core.text.suggestions import describe_unknown  # not for a help text

            ctx.fail(str(describe_unknown("command", args[:1], self.list_commands(ctx))))
        return super().resolve_command(ctx, args)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click names it
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(f"nimburion.cli.commands.{module}"), name)
        if cmd_name in {"worker", "enqueue"} and self.target is not None:
            return _leave_out_target(command, self.target)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        summaries = {name: COMMANDS[name][1] for name in self.list_commands(ctx)}
        if self.target is not None:
            summaries["worker"] = "Run jobs."
        with formatter.section("Commands"):
            formatter.write_dl(list(summaries.items()))


_HELP_IN_APPLICATION = MappingProxyType(
    {
        "worker": (
            "Run the jobs of this application until SIGTERM or Ctrl-C; a second one ends at once."
        ),
        "enqueue": "Store a job of this application by the name of its handler and print its id.",
    }
)


def _leave_out_target(command: click.Command, target: str) -> click.Command:
    """Return a command without MODULE:NAME: the application has the processor."""
    assert command.callback is not None
    assert command.name is not None
    return click.Command(
        command.name,
        params=[one for one in command.params if one.name not in {"target", "traceback", "app"}],
        callback=partial(command.callback, target=target, traceback=False),
        help=_HELP_IN_APPLICATION[command.name],
    )


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
