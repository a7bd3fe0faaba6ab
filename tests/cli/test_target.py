"""MODULE:NAME of the worker: one clear line for what is no processor, or cannot be imported."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Iterator

import pytest

from nimburion.telemetry.logs import TextFormatter
from tests.cli.conftest import CommandLine, Ended

Try = Callable[..., Ended]
NUMBERS = itertools.count()

APPLICATION = """
from functools import partial

from nimburion.backends.memory import MemoryBackend
from nimburion.jobs import Processor, job

@job
def wipe() -> None:
    print("WIPED")

def needs(argument):
    print("CALLED")

def fails():
    return {}["key"]

async def later():
    print("CALLED")
"""


@pytest.fixture
def attempt(nimburion: CommandLine) -> Iterator[Try]:
    """Starts a worker of a module that holds this text."""
    before = set(sys.modules)

    def start(text: str, name: str = "processor", *options: str, module: str = "") -> Ended:
        module = module or f"app{next(NUMBERS)}"
        (nimburion.folder / f"{module}.py").write_text(text)
        ended = nimburion("worker", f"{module}:{name}", *options)
        return Ended(ended.code, ended.out, ended.err.replace(module, "app"))

    yield start
    for module in set(sys.modules) - before:
        del sys.modules[module]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("wipe", "app:wipe is the job 'wipe'; name the Processor that it is registered with"),
        ("needs", "app:needs takes arguments; a Processor is needed, or a function without"),
        ("later", "app:later is an async function; one that is called, with def, is needed"),
        ("Processor", "app:Processor is a type; a Processor is needed, or a function that"),
        ("partial", "app:partial is a type; a Processor is needed"),
        (".x", "'app:.x' is not of the form MODULE:NAME"),
    ],
)
def test_what_makes_no_processor_is_not_called(attempt: Try, name: str, line: str) -> None:
    ended = attempt(APPLICATION, name)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"nimburion: {line}")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("..:x", "'..:x' is not of the form MODULE:NAME"),
        (".app:x", "'.app:x' is not of the form MODULE:NAME"),
        ("a..b:x", "'a..b:x' is not of the form MODULE:NAME"),
        ("os.path:join", "os.path:join takes arguments; "),
        ("os:getpid", "os:getpid is a builtin_function_or_method; a Processor is needed"),
        ("redis://u:hunter2@h", "redis://u:***@h is a URL; give MODULE:NAME, and the URL as"),
    ],
)
def test_a_target_that_cannot_be(nimburion: CommandLine, target: str, line: str) -> None:
    ended = nimburion("worker", target)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"nimburion: {line}")
    assert ended.err.count("\n") == 1


def test_a_syntax_error_is_bad_input_with_file_and_line(attempt: Try) -> None:
    ended = attempt("x = 1\ndef broken(:\n")
    assert (ended.code, ended.err) == (
        2,
        "nimburion: app cannot be imported: SyntaxError: invalid syntax (app.py, line 2)\n",
    )


def test_a_circular_import_is_bad_input(nimburion: CommandLine, attempt: Try) -> None:
    (nimburion.folder / "other_side.py").write_text("from ringapp import processor\n")
    ended = attempt("from other_side import thing\n", module="ringapp")
    assert ended.code == 2
    circle = "nimburion: app cannot be imported: its modules import each other in a circle: "
    texts = ("partially initialized module 'app'", "'app' (consider renaming")  # before 3.13, since
    starts = tuple(f"{circle}cannot import name 'processor' from {text}" for text in texts)
    assert ended.err.startswith(starts)
    assert "(other_side.py, line 1)" in ended.err
    assert ended.err.count("\n") == 1


def test_an_error_in_the_module_is_one_line_and_its_own_traceback_if_asked(attempt: Try) -> None:
    text = "import json\n\njson.loads('{')\n"
    ended = attempt(text)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.startswith("nimburion: app cannot be imported: JSONDecodeError: Expecting")
    assert ended.err.endswith("(app.py, line 3); --traceback shows more\n")

    with_traceback = attempt(text, "processor", "--traceback")
    assert with_traceback.code == 1
    first, second, *_, last = with_traceback.err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert "app.py" in second
    assert last.endswith("(app.py, line 3)")
    assert "importlib" not in with_traceback.err
    assert "nimburion/cli" not in with_traceback.err


def test_a_factory_that_fails_is_one_line(attempt: Try) -> None:
    ended = attempt(APPLICATION, "fails")
    assert ended.code == 1
    assert ended.err == (
        "nimburion: app:fails failed: KeyError: 'key' (app.py, line 15); --traceback shows more\n"
    )


def test_an_error_of_our_own_keeps_its_message_and_its_code(attempt: Try) -> None:
    ended = attempt("from nimburion.backends import open_backend\nopen_backend('sqlit:///x')\n")
    assert ended.code == 2
    assert ended.err.startswith("nimburion: no backend 'sqlit'; did you mean sqlite?")


def test_nothing_in_a_traceback_can_steer_the_terminal() -> None:
    try:
        raise ValueError("\x1b[31mred\x07\rgone\nsecond line")
    except ValueError:
        record = logging.LogRecord("n", 40, "f", 1, "failed\n\x1b[0m", None, sys.exc_info())
    logging.Formatter().format(record)  # another handler leaves its formatted traceback there
    record.stack_info = "Stack\n  \x1b[1mline"
    text = TextFormatter("%(message)s").format(record)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[0] == r"failed\n\x1b[0m"
    assert r"  ValueError: \x1b[31mred\x07\rgone" in lines
    assert "  second line" in lines, "it could look like a record"
    assert lines[-1] == r"    \x1b[1mline"
