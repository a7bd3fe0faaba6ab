"""docs/reference/cli.md tells of every command, option and exit code, and of no other."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from nimburion.cli import exit_codes
from nimburion.cli.root import COMMANDS, root
from tests.house.tree import ROOT

PAGE = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
SHARED = {"--config", "--backend", "--json"}


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its words."""
    context = click.Context(root)
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            if command.invoke_without_command:
                yield name, command
            yield from ((f"{name} {inner}", one) for inner, one in command.commands.items())
        else:
            yield name, command


def options(command: click.Command) -> set[str]:
    """The options that the help of a command shows, in their long form."""
    found = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    return {option.opts[-1] for option in found}


def test_every_command_is_on_the_page() -> None:
    documented = re.findall(r"^\| `nimburion ([a-z -]+?)(?: [A-Z].*?)?` \|", PAGE, re.MULTILINE)
    assert documented == [name for name, _ in commands()]


def test_every_option_is_on_the_page() -> None:
    documented = re.findall(r"^\| `([a-z -]+)` \| `(--[a-z-]+)", PAGE, re.MULTILINE)
    real = [(name, option) for name, one in commands() for option in options(one) - SHARED]
    assert sorted(documented) == sorted(real)


def test_every_command_takes_the_shared_options() -> None:
    assert [name for name, one in commands() if not options(one) >= SHARED] == []


def test_every_exit_code_is_on_the_page() -> None:
    documented = re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)
    names = ("DONE", "FAILED", "BAD_INPUT", "BACKEND", "NOT_FOUND", "INTERRUPTED")
    assert documented == [str(getattr(exit_codes, name)) for name in names]


def test_the_summaries_are_those_of_the_commands() -> None:
    context = click.Context(root)
    for name, (_, summary) in COMMANDS.items():
        command = root.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert summary
