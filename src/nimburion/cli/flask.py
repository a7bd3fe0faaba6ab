"""`flask nimburion …`: the commands of nimburion, for the processor of a Flask application.

Flask finds the group by the entry point `flask.commands`, so an application declares nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click
from flask import Flask
from flask.cli import ScriptInfo

from nimburion.cli.exit_codes import report_error
from nimburion.cli.invocation import Invocation
from nimburion.cli.root import LazyGroup

if TYPE_CHECKING:
    from nimburion.core.settings import Config
    from nimburion.jobs import Processor

_LEFT_OUT = frozenset({"demo"})
_TARGET = "nimburion.cli.flask:load_processor"


class FlaskInvocation(Invocation):
    """The options of one call, for an application whose settings are in `app.config`."""

    reads_application: bool = True

    def __init__(self, app: Flask) -> None:
        super().__init__()
        self._app = app

    def load(self, **arguments: object) -> Config:
        """Load the configuration of the application; `--backend` and `--config` override it."""
        from nimburion.integrations.flask import load_configuration

        if self.backend is not None:
            arguments["jobs"] = {"url": self.backend}
        return load_configuration(self._app, self.config, **arguments)


class FlaskGroup(LazyGroup):
    """The commands of nimburion, without those that need no application."""

    target: str | None = _TARGET

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in super().list_commands(ctx) if name not in _LEFT_OUT]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return None if cmd_name in _LEFT_OUT else super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 (as the base)
        """Run a command; an error becomes one line, with the exit code of `nimburion`."""
        try:
            return super().invoke(ctx)
        except BaseException as error:  # noqa: BLE001 (every ending has its code; bugs are re-raised)
            ctx.exit(report_error(error))


@click.group("nimburion", cls=FlaskGroup)
@click.pass_context
def flask_group(ctx: click.Context) -> None:
    """Run, enqueue and manage the background jobs of this application."""
    info = ctx.ensure_object(ScriptInfo)
    if info.app_import_path is not None:
        os.environ["FLASK_APP"] = info.app_import_path  # for child processes
    ctx.obj = FlaskInvocation(info.load_app())


def load_processor() -> Processor:
    """Return the processor of the application that `flask` runs, or that FLASK_APP names.

    `worker` names this function, so that its child processes find the processor too.
    """
    from nimburion.integrations.flask import find_processor

    context = click.get_current_context(silent=True)
    info = None if context is None else context.find_object(ScriptInfo)
    if info is None:
        info = ScriptInfo(app_import_path=os.environ.get("FLASK_APP"))
    return find_processor(info.load_app())
