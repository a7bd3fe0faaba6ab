"""The pages on Redis say what servers take, what URLs mean and what the keys are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest

from nimburion.backends.redis import url as address
from nimburion.backends.redis.keys import KEYS
from nimburion.backends.redis.url import SCHEMES, parse_url
from nimburion.core.errors import ConfigurationError
from tests.docs.pages import Page, every_page, read
from tests.house.tree import PACKAGE, ROOT
from tests.servers import Binary, Server
from tests.waiting import block_until

PRODUCTION = read(ROOT / "docs" / "how-to" / "redis-in-production.md")
REFERENCE = read(ROOT / "docs" / "reference" / "redis-keys.md")
LAYOUT = PACKAGE / "backends" / "redis" / "lua" / "formats" / "record_format.lua"


# --- commands -------------------------------------------------------------------------------------


def commands_of(page: Page) -> Iterator[list[str]]:
    """The arguments of each `redis-cli …` in the blocks of a page, as a shell reads them.

    Those for a cluster (`-c`) are left out: the server of these tests is alone.
    """
    for block in page.blocks:
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.startswith("redis-cli "):
                arguments = shlex.split(line, comments=True)[1:]
                if arguments[0] != "-c":
                    yield arguments


def test_a_server_takes_the_commands_of_the_pages(redis_binary: Binary) -> None:
    commands = [command for page in every_page() for command in commands_of(page)]
    assert len(commands) > 20
    with Server(redis_binary) as server:
        for command in commands:
            server.ask(*command)  # it raises what the server refuses
            block_until(lambda: writes_nothing(server), f"{command} is done")


def writes_nothing(server: Server) -> bool:
    """Whether no child of it writes a file, which would outlive it."""
    with server.client() as client:
        persistence = client.info("persistence")
    return not (persistence["rdb_bgsave_in_progress"] or persistence["aof_rewrite_in_progress"])


# --- URLs -----------------------------------------------------------------------------------------


def first_cells(page: Page, head: str) -> list[str]:
    """The code words in the first column of the table that begins with this line."""
    table = page.path.read_text(encoding="utf-8").split(f"| {head} |", 1)[1].split("\n\n", 1)[0]
    cells = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    return [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]


def test_each_url_of_the_page_is_one() -> None:
    shown = first_cells(PRODUCTION, "URL")
    assert {parse_url(url).kind for url in shown} == {"single", "unix", "sentinel", "cluster"}
    text = PRODUCTION.path.read_text(encoding="utf-8")
    assert [scheme for scheme in SCHEMES if f"`{scheme}://" not in text] == []


def test_the_page_lists_every_option() -> None:
    known: set[str] = set()
    for url in ("redis://a", "rediss://a", "redis+sentinel://a/b", "redis+cluster://a"):
        with pytest.raises(ConfigurationError) as caught:
            parse_url(f"{url}?no_such_option=1")
        known |= set(str(caught.value).rpartition("Known: ")[2].split(", "))
    assert set(first_cells(PRODUCTION, "option")) == known
    assert f"| `timeout` | `{address.DEFAULT_TIMEOUT:g}` |" in PRODUCTION.path.read_text(
        encoding="utf-8"
    )
    assert f"| `namespace` | `{address.DEFAULT_NAMESPACE}` |" in PRODUCTION.path.read_text(
        encoding="utf-8"
    )


# --- keys -----------------------------------------------------------------------------------------


def test_the_reference_has_every_key() -> None:
    text = REFERENCE.path.read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)) == KEYS


def test_the_reference_has_the_layout() -> None:
    (shown,) = [block.text for block in REFERENCE.blocks if block.info == ("text",)]
    header = LAYOUT.read_text(encoding="utf-8").partition("\nlocal ")[0]
    lines = [line.removeprefix("--").removeprefix(" ") for line in header.splitlines()]
    assert shown.splitlines() == lines[lines.index("") + 1 :]
