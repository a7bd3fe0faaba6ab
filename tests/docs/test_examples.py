"""Every Python block of README and docs runs, page by page, and prints what the page says.

The blocks of one page run in order in one namespace, on one event loop, in an empty folder.
`python file=NAME` is written to that folder and imported from there; `yaml file=NAME` is written.
`python add-to=NAME` is added to the end of a file there.
`sh run` is run by bash.
A `text output` block is compared with what the block before it printed; `...` stands for anything.
`python no-run` shows a signature and is counted. Where a page names a Redis server, the tests' own
one takes its place.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import logging
import os
import sys
import types
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import Block, Page, every_page, parse
from tests.house.tree import ROOT
from tests.servers import Server
from tests.servers.server_kinds import RunningPostgres

MOST_NOT_RUN = 2
PAGES = [page for page in every_page() if any(block.runs for block in page.blocks)]
REDIS = "redis://localhost:6379/0"
POSTGRES = "://localhost/app"
"""Behind the scheme, in which SQLAlchemy names the driver."""
LONG = frozenset(
    {
        "docs/how-to/common-mistakes.md",
        "docs/how-to/django.md",
        "docs/how-to/fastapi.md",
        "docs/how-to/flask.md",
        "docs/how-to/schedule-jobs.md",
        "docs/how-to/several-namespaces.md",
        "docs/how-to/test-your-jobs.md",
        "docs/tutorial/deploy.md",
    }
)
"""Pages whose examples start a dozen processes: `dev.py wide` runs them."""
_checker = doctest.OutputChecker()


@pytest.fixture
def folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """An empty working directory to import from; what was imported from it is forgotten."""
    # A short name: the sockets of a SQLite file then lie beside it, and go with the folder.
    tmp_path = tmp_path_factory.mktemp("page")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def logger_of_jobs() -> Iterator[logging.Logger]:
    """The logger that examples add handlers to, and what it was like is what it will be."""
    logger = logging.getLogger("nimburion.job")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield logger
    logger.handlers, logger.level, logger.propagate = before
    logger.setLevel(logger.level)  # forgets what it knew of its levels


def mark_long(pages: list[Page]) -> list[Any]:
    """Return the pages, those of `LONG` for `dev.py wide`."""
    assert {page.name for page in pages} >= LONG
    return [
        pytest.param(page, marks=pytest.mark.wide) if page.name in LONG else page for page in pages
    ]


@pytest.mark.usefixtures("logger_of_jobs")
@pytest.mark.parametrize("page", mark_long(PAGES), ids=lambda page: page.name)
async def test_the_examples_of_a_page_run(
    page: Page, folder: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    if any(block.runs and REDIS in block.text for block in page.blocks):
        server: Server = request.getfixturevalue("valkey")
        server.empty()
        page = with_server(page, server.url)
    if any(block.runs and POSTGRES in block.text for block in page.blocks):
        postgres: RunningPostgres = request.getfixturevalue("started_servers")["postgres"]
        postgres.empty()
        page = with_server(page, postgres.url.removeprefix("postgresql"), POSTGRES)
    await check_page(page, folder, capsys)


def with_server(page: Page, url: str, placeholder: str = REDIS) -> Page:
    """The page, with another server in its examples."""
    blocks = [block._replace(text=block.text.replace(placeholder, url)) for block in page.blocks]
    return page._replace(blocks=tuple(blocks))


async def check_page(page: Page, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the blocks of a page; an output that differs is an assertion error."""
    module = types.ModuleType("page_of_the_docs")
    sys.modules[module.__name__] = module  # annotations are looked up there
    try:
        for block, following in pairwise([*page.blocks, None]):
            assert block is not None
            await run_block(page, block, module, folder)
            printed = capsys.readouterr().out
            if following is not None and following.is_output:
                compare(page, following, printed)
    finally:
        del sys.modules[module.__name__]


async def run_block(page: Page, block: Block, module: types.ModuleType, folder: Path) -> None:
    """Write the block's file, or run the block."""
    if block.file is not None:
        (folder / block.file).parent.mkdir(exist_ok=True)
        (folder / block.file).write_text(block.text + "\n", encoding="utf-8")
    elif block.extended_file is not None:
        with (folder / block.extended_file).open("a", encoding="utf-8") as file:
            file.write(block.text + "\n")
    elif block.is_command:
        sys.stdout.write(await output_of(page, block, folder))
    elif block.runs:
        source = "\n" * (block.line - 1) + block.text
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(source, page.name, "exec", flags=flags, dont_inherit=True)
        result = eval(code, module.__dict__)
        if inspect.isawaitable(result):
            await result


async def output_of(page: Page, block: Block, folder: Path) -> str:
    """Run a block of shell commands, as a reader would, and return what they print."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", block.text),
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, errors = await process.communicate()
    assert process.returncode == 0, f"{page.name}:{block.line}: {errors.decode()}"
    return printed.decode()


def compare(page: Page, expected: Block, printed: str) -> None:
    """Fail where what was printed is not what the page says."""
    same = _checker.check_output(expected.text + "\n", printed, doctest.ELLIPSIS)
    assert same, (
        f"{page.name}:{expected.line} says\n{expected.text}\nbut this was printed:\n{printed}"
    )


def test_few_blocks_are_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = [(page, block) for page in every_page() for block in page.blocks]
    python = [(page, block) for page, block in blocks if block.info[:1] == ("python",)]
    skipped = [f"{page.name}:{block.line}" for page, block in python if not block.runs]
    with capsys.disabled():
        sys.stdout.write(f"\nPython blocks in the docs: {len(python)}, not run: {len(skipped)}\n")
    assert len(skipped) <= MOST_NOT_RUN, skipped
    assert len(python) > 50


def test_outputs_follow_what_prints_them() -> None:
    stray = [
        f"{page.name}:{after.line}"
        for page in every_page()
        for before, after in pairwise([None, *page.blocks])
        if after is not None
        and after.is_output
        and (before is None or not (before.runs or before.is_command))
    ]
    assert stray == []


UNKNOWN_NAME = """
```python
await nothing_there()
```
"""
OTHER_OUTPUT = """
```python
print(1 + 1)
```
```text output
3
```
"""
OTHER_FILE = """
```python file=planted.py
x = 1
```
```python
import planted
assert planted.x == 2
```
"""
FAILING_COMMAND = """
```sh run
nimburion no-such-command
```
"""
RIGHT = """
```python
import asyncio
await asyncio.sleep(0)
print("a", 1)
```
```text output
a ...
```
```sh run
echo b
```
```text output
b
```
"""


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (UNKNOWN_NAME, NameError),
        (OTHER_OUTPUT, AssertionError),
        (OTHER_FILE, AssertionError),
        (FAILING_COMMAND, AssertionError),
    ],
    ids=["name", "output", "file", "command"],
)
async def test_a_wrong_example_is_seen(
    text: str, error: type[Exception], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error):
        await check_page(parse(ROOT / "planted.md", text), folder, capsys)


async def test_a_right_example_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await check_page(parse(ROOT / "planted.md", RIGHT), folder, capsys)
