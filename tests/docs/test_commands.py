"""Every `nimburion …` that the docs tell people to type exists, with its options."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from nimburion.cli.root import root
from tests.docs.pages import Page, every_page

TYPED = re.compile(r"(?:`|^    |^)(?:\$ )?(nimburion(?: [^`\n]*)?)(?:`|$)", re.MULTILINE)


def commands_of(page: Page) -> list[str]:
    """Return the command lines in the code spans and code blocks of a page."""
    return [found for found in TYPED.findall(page.path.read_text(encoding="utf-8")) if found]


def what_is_wrong(command: str) -> str | None:
    """Say which word of a command line does not exist; None when all do."""
    words = shlex.split(command.rstrip("."))[1:]
    found: click.Command = root
    context = click.Context(root)
    for word in words:
        if word.startswith("-"):
            known = {option for one in found.params for option in one.opts}
            if word.partition("=")[0] not in known | {"--help"}:
                return f"{found.name} has no option {word}"
        elif isinstance(found, click.Group):
            following = found.get_command(context, word)
            if following is None:
                return f"{found.name} has no command {word}"
            found = following
    return None


def test_the_commands_of_all_pages_exist() -> None:
    typed = [(page.name, command) for page in every_page() for command in commands_of(page)]
    assert [(*one, problem) for one in typed if (problem := what_is_wrong(one[1]))] == []


def test_there_are_commands_to_look_at() -> None:
    assert len({one for page in every_page() for one in commands_of(page)}) >= 15


@pytest.mark.parametrize("command", ["nimburion wroker a:b", "nimburion dead list --nam x"])
def test_a_wrong_command_is_seen(command: str) -> None:
    assert what_is_wrong(command)
