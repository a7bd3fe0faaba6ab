"""Groups of commands that list when they are given no command."""

from __future__ import annotations

from collections.abc import Callable

import click

from nimburion.cli.invocation import add_shared_options


def listing_group(function: Callable[[], None]) -> click.Group:
    """Make a group of commands that runs its command `list`, with its defaults, without a command.

    The name and the docstring of the function are those of the group.
    """

    @click.pass_context
    def list_by_default(ctx: click.Context) -> None:
        if ctx.invoked_subcommand is None:
            ctx.invoke(group.commands["list"])

    make_group = click.group(
        function.__name__,
        invoke_without_command=True,
        help=f"{function.__doc__} Without a command: list them.",
    )
    group = make_group(add_shared_options(list_by_default))
    return group
