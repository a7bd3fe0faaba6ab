"""One word per thing, no sleeping tests, and nothing of one machine in what is committed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.tree import ROOT, committed_files, parse, python_files, relative

EMPTY_WORDS = {"util", "utils", "helper", "helpers", "manager", "managers", "common", "misc"}
CLASS = re.compile(r"^ *class (\w+)", re.MULTILINE)
SLEEP = re.compile(r"\b(?:time|asyncio|anyio)\.sleep\((?!0\))|from (?:time|asyncio) import .*sleep")
SLEEPS = (["await asyncio.sleep(0)"], ["await anyio.sleep(0)"], ["time.sleep(0)"])
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:root|work|home/\w+|Users/\w+|opt/\w+)/|[A-Z]:\\Users")
HOST = re.compile(r"https?://(?:[^\s/@\"'`]*@)?([^\s/:\"'`<>)\]]+)")
# Hosts that exist for examples, and the few pages that our texts may point readers to.
OPEN_HOSTS = re.compile(
    r"""
    localhost | 127\.0\.0\.1 | \[?::1\]? | 0\.0\.0\.0 | \{.* | …
    | (.+\.)?example(\.(com|org|net))? | .+\.(test|invalid|localhost|svc)
    | docs\.python\.org | peps\.python\.org | keepachangelog\.com | semver\.org | www\.sqlite\.org
    | github\.com | nimburion\.github\.io | www\.w3\.org | prometheus\.io | opentelemetry\.io
    """,
    re.VERBOSE,
)
# Spelled in halves, so that this file does not hold what it looks for.
REGISTRIES = re.compile(
    "|".join(["py" + r"pi\.org", "python" + "hosted", "npm" + r"js\.(org|com)"])
)


def named_things(path: Path) -> Iterator[str]:
    """Yield the names of a module and of its classes."""
    yield path.parent.name if path.name == "__init__.py" else path.stem
    yield from CLASS.findall(read(path))


def words_in(name: str) -> set[str]:
    """Split a name into lower-case words."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def machine_traces(text: str) -> list[str]:
    """Return what in a text belongs to one machine or names a host it has no business with."""
    hosts = [host for host in HOST.findall(text) if not OPEN_HOSTS.fullmatch(host)]
    return [*MACHINE_PATH.findall(text), *hosts, *REGISTRIES.findall(text)]


def read(path: Path) -> str:
    """Return the text of a file; nothing for what is not text."""
    content = path.read_bytes()
    return "" if b"\0" in content else content.decode("utf-8", errors="replace")


def test_no_module_or_class_has_an_empty_name() -> None:
    found = [
        f"{relative(path)}: {name}"
        for path in python_files("src", "tests", "benchmarks", "examples", "website")
        for name in named_things(path)
        if words_in(name) & EMPTY_WORDS
    ]
    assert found == []


def test_no_test_sleeps() -> None:
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in python_files("tests", "src/nimburion/testing")
        if path != Path(__file__)
        for number, line in enumerate(read(path).splitlines(), 1)
        if SLEEP.search(line)
    ]
    assert found == [], "wait for an event with a deadline instead"


def find_spinning(path: Path) -> Iterator[int]:
    """Yield the lines of loops that only sleep until something holds."""
    if "sleep(0)" not in read(path):  # parsing every file takes seconds
        return
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.While) and [ast.unparse(one) for one in node.body] in SLEEPS:
            yield node.lineno


def test_no_loop_spins() -> None:
    found = [
        f"{relative(path)}:{line}"
        for path in python_files("src", "tests", "benchmarks")
        for line in find_spinning(path)
    ]
    assert found == [], "call wait_until of tests/waiting.py, or wait for an event"


def test_a_loop_that_spins_is_found(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(
        "async def f(done, work):\n"
        "    while not done():\n        await asyncio.sleep(0)\n"
        "    while not done():\n        await work()\n        await asyncio.sleep(0)\n"
    )
    assert list(find_spinning(planted)) == [2]


def test_nothing_committed_names_a_machine_or_a_host() -> None:
    found = {
        relative(path): traces
        for path in committed_files()
        if path != Path(__file__) and (traces := machine_traces(read(path)))
    }
    assert found == {}


def test_the_files_of_the_tree_are_found() -> None:
    assert {"pyproject.toml", "dev.py"} <= {path.name for path in committed_files()}
    assert len(python_files("src")) > 10
    assert ROOT.joinpath("tests/house/test_words.py") in committed_files()


@pytest.mark.parametrize(
    "line",
    ["time.sleep(1)", "await asyncio.sleep(0.01)", "asyncio.sleep(0.0)", "from time import sleep"],
)
def test_a_sleep_is_seen(line: str) -> None:
    assert SLEEP.search(line)


def test_a_bare_yield_to_the_loop_is_no_sleep() -> None:
    assert not SLEEP.search("await asyncio.sleep(0)")


@pytest.mark.parametrize(
    "text",
    [
        "open('/root/x')",
        "cd /home/ann/src",
        r"C:\Users\ann",
        "see https://build.corp/x",
        "https://u:p@mirror.corp:8080/x",
    ],
)
def test_a_trace_is_seen(text: str) -> None:
    assert machine_traces(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://hooks.example.com/a",
        "http://127.0.0.1:8000",
        'f"http://{host}:{port}/"',
        "sqlite:///jobs.db",
        "src/work/item",
    ],
)
def test_examples_are_free(text: str) -> None:
    assert machine_traces(text) == []


@pytest.mark.parametrize("name", ["LeaseManager", "common", "job_utils", "HTTPHelper"])
def test_an_empty_name_is_seen(name: str) -> None:
    assert words_in(name) & EMPTY_WORDS
