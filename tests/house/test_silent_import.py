"""Importing does nothing: no environment, no file, no socket, no thread, no surprise module."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import cast

import pytest

# Runs in a fresh interpreter. The module that is held responsible for an event is the one whose
# body is being executed: the outermost frame above the innermost import.
WATCH = textwrap.dedent("""
    import _thread, importlib, json, os, pkgutil, sys, threading

    seen, loaded_before = [], set(sys.modules)

    def importing(frame):
        return frame.f_code.co_filename.startswith("<frozen importlib")

    def responsible(frame):
        last = None
        while frame is not None and not importing(frame):
            last, frame = frame, frame.f_back
        return last.f_globals.get("__name__", "?") if last else None

    def watch(event, arguments):
        if event in FILES or event in NEVER:
            note(event, arguments, sys._getframe(1))

    def note(event, arguments, frame):
        module = responsible(frame)
        ours = module is not None and module.partition(".")[0] == "nimburion"
        if ours or (module and event in NEVER):
            seen.append(f"{module}: {event} {arguments!r:.200}")

    # They need the settings of a project, or Django 6.
    NEED_SETTINGS = ("django.admin", "django.models", "django.task_backend")
    FILES = {"open", "os.listdir", "os.scandir", "os.mkdir", "sqlite3.connect"}
    NEVER = {"socket.__new__", "socket.getaddrinfo", "thread", "subprocess.Popen", "os.fork",
             "os.posix_spawn", "os.system"}

    def watch_threads(module, name):  # no audit event tells of them on Python 3.11
        start = getattr(module, name)
        def watched(*arguments, **more):
            note("thread", arguments, sys._getframe(1))
            return start(*arguments, **more)
        setattr(module, name, watched)

    class Watched(type(os.environ)):
        def __getitem__(self, key):
            note("environment", (key,), sys._getframe(1))
            return super().__getitem__(key)
        def __iter__(self):
            note("environment", ("all",), sys._getframe(1))
            return super().__iter__()

    os.environ.__class__ = Watched
    sys.addaudithook(watch)
    for module in _thread, threading:
        for name in [name for name in vars(module) if name.lstrip("_").startswith("start_")]:
            watch_threads(module, name)

    def import_all(name):
        module = importlib.import_module(name)
        for child in pkgutil.iter_modules(getattr(module, "__path__", ()), name + "."):
            if not child.name.endswith(("__main__", *NEED_SETTINGS)):
                import_all(child.name)
""")

EVERYTHING = 'import_all("nimburion"); print(json.dumps(seen))'

# msgspec takes it along where it happens to be installed.
PERHAPS = {"typing_extensions"}

# What each package loads beyond the standard library, at most: the start time of every user.
LOADS = {
    "nimburion": {"msgspec"},
    "nimburion.core": {"msgspec"},
    "nimburion.backends": {"msgspec"},
    "nimburion.backends.sqlite": {"msgspec"},
    "nimburion.jobs": {"msgspec"},
    "nimburion.config": {"msgspec", "yaml", "_yaml"},
    "nimburion.server": {"msgspec", "cronsim"},
    "nimburion.cli": {"msgspec", "click", "yaml", "_yaml"},
}


def run(code: str) -> object:
    """Run code after WATCH in a fresh interpreter and return the JSON that it prints."""
    result = subprocess.run(
        [sys.executable, "-c", WATCH + code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_importing_every_module_does_nothing() -> None:
    assert run(EVERYTHING) == []


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("import os; os.environ.get('HOME')", "environment"),
        ("import os; dict(os.environ)", "environment"),
        ("import os; os.getenv('HOME')", "environment"),
        ("open('/dev/null').close()", "open"),
        ("from pathlib import Path; Path('/dev/null').read_bytes()", "open"),
        ("import socket; socket.socket().close()", "socket.__new__"),
        ("import threading; threading.Thread(target=int).start()", "thread"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
    ],
)
def test_an_import_with_a_side_effect_is_found(line: str, event: str, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(line)
    look = f"import nimburion; nimburion.__path__.append({str(tmp_path)!r}); del seen[:]\n"
    seen = cast("list[str]", run(f"{look}import nimburion.planted; print(json.dumps(seen))"))
    assert any(f"nimburion.planted: {event}" in entry for entry in seen), seen


@pytest.mark.parametrize("package", LOADS)
def test_a_package_loads_only_what_it_needs(package: str) -> None:
    listing = f"import {package}; print(json.dumps(sorted(set(sys.modules) - loaded_before)))"
    loaded = {name.partition(".")[0] for name in cast("list[str]", run(listing))}
    loaded = {name for name in loaded if not name.startswith("_sysconfigdata")}  # of zoneinfo
    assert loaded - sys.stdlib_module_names - PERHAPS - LOADS[package] == {"nimburion"}
