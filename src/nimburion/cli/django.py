"""`manage.py nimburion …`: the commands of nimburion, for the processor of a Django project.

Django finds them through `nimburion.integrations.django.management`. This module needs no Django.
"""

from __future__ import annotations

from functools import partial

import click

from nimburion.cli.root import LazyGroup, root

AUTORELOAD = "--autoreload"
"""The option of `worker` that the command of Django handles itself, with Django's reloader."""


class DjangoGroup(LazyGroup):
    """The commands of nimburion for a project, which has one processor."""

    target: str | None = "nimburion.integrations.django:load_processor"

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is not None and cmd_name == "worker":
            assert command.callback is not None
            kept = [parameter for parameter in command.params if parameter.name != "reload"]
            command.params = [*kept, _make_autoreload_option()]
            command.callback = partial(command.callback, reload=False)
        return command


def _make_autoreload_option() -> click.Option:
    text = "For development: restart when a file of the project changes."
    return click.Option([AUTORELOAD], is_flag=True, expose_value=False, help=text)


project_group: DjangoGroup = DjangoGroup(
    "nimburion",
    help="Run, enqueue and manage the background jobs of this project.",
    params=root.params,
    callback=root.callback,
    context_settings=root.context_settings,
)
