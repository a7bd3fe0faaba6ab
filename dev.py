#!/usr/bin/env python3
"""The commands of a fresh clone; needs Python 3.11 or newer and nothing else.

    python3 dev.py demo                  run real jobs on SQLite and watch them
    python3 dev.py test                  all checks, and all tests but the long ones on servers
    python3 dev.py test tests/jobs -x    only pytest, with these arguments
    python3 dev.py SESSION [ARGUMENT ...]

It keeps a virtual environment in .venv and renews it when requirements/ or pyproject.toml change.
Everything else is a session of noxfile.py. This file parses on Python 3.6, so that an old `python3`
can find a newer one.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from typing import Dict, Iterator, List

OLDEST = (3, 11)
ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "dev-stamp.json")
SCRIPTS = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")
PYTHON = os.path.join(SCRIPTS, "python.exe" if os.name == "nt" else "python")


class SetupError(Exception):
    """The environment cannot be made; the message says why and what to do."""


def main(arguments: List[str]) -> int:
    """Run `demo`, or sessions of noxfile.py, in an environment that is up to date."""
    if sys.version_info < OLDEST:
        return restart_on_newer_python(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__)
        print("Sessions: python3 dev.py --list")
        return 0
    os.chdir(ROOT)
    # Images of containers often set it. The tests start hundreds of processes: each would compile
    # the sources again, which is two fifths of its start. git ignores the byte code.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    command, rest = arguments[0], arguments[1:]
    try:
        make_environment("demo" if command == "demo" else "dev")
    except SetupError as error:
        print("dev.py: {}".format(error), file=sys.stderr)
        return 1
    if command == "demo":
        return replace_process([os.path.join(SCRIPTS, "nimburion"), "demo"] + rest)
    nox = [PYTHON, "-m", "nox"]
    if command == "--list":
        return replace_process(nox + ["--list"])
    if command == "test":
        command = "tests" if rest else "check_and_test"
    return replace_process(nox + ["--session", command, "--"] + rest)


def replace_process(command: List[str]) -> int:
    """Become this command, so that signals reach it; its exit code becomes ours."""
    sys.stdout.flush()
    if os.name == "nt":
        return subprocess.call(command)
    os.execv(command[0], command)


def restart_on_newer_python(arguments: List[str]) -> int:
    """Hand over to the newest python3.x on PATH that is new enough."""
    for minor in range(30, OLDEST[1] - 1, -1):
        newer = shutil.which("python3.%d" % minor)
        if newer and succeeds([newer, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]):
            os.execv(newer, [newer, os.path.abspath(__file__)] + arguments)
    print(
        "dev.py: Python 3.11 or newer is needed, this is %d.%d and PATH has no python3.11 to "
        "python3.30; install one and run this again" % sys.version_info[:2],
        file=sys.stderr,
    )
    return 1


def make_environment(level: str) -> None:
    """Make sure that .venv holds requirements/<level>.txt and this checkout. Quick when it does."""
    with lock_this_file():
        stamp = read_stamp()
        if stamp in (expected_stamp(level), expected_stamp("dev")):
            return
        if stamp.get("python") != expected_stamp(level)["python"] or not os.path.exists(PYTHON):
            shutil.rmtree(VENV, ignore_errors=True)
            create_environment()
        elif os.path.exists(STAMP):
            os.remove(STAMP)  # an environment that is half renewed must not look complete
        if level == "dev":
            install_uv()
        install(["--require-hashes", "-r", os.path.join("requirements", level + ".txt")])
        install(["--no-deps", "--no-build-isolation", "-e", "."])
        with open(STAMP, "w", encoding="utf-8") as file:
            json.dump(expected_stamp(level), file)


@contextlib.contextmanager
def lock_this_file() -> Iterator[None]:
    """Hold a lock on this file, so that two calls do not build one .venv at once."""
    with open(__file__, "rb") as file:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def expected_stamp(level: str) -> Dict[str, str]:
    """Describe what .venv should hold."""
    digest = hashlib.sha256()
    for name in (os.path.join("requirements", level + ".txt"), "pyproject.toml"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read() + b"\0")
    python = "{} {}".format(find_base_python(), sys.version)
    return {"level": level, "digest": digest.hexdigest(), "python": python, "root": ROOT}


def read_stamp() -> Dict[str, str]:
    """Return what .venv was last filled with; empty when it is missing or incomplete."""
    try:
        with open(STAMP, encoding="utf-8") as file:
            return dict(json.load(file))
    except (OSError, ValueError):
        return {}


def find_base_python() -> str:
    """Return the interpreter that .venv is made from, also when this one is .venv's own."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def create_environment() -> None:
    """Make an empty .venv; what fills it need not be in it."""
    print("dev.py: making .venv with Python {}.{}.{}".format(*sys.version_info[:3]), flush=True)
    if not succeeds([find_base_python(), "-m", "venv", "--without-pip", VENV]):
        raise SetupError("this Python has no venv; " + pip_advice())


def install_uv() -> None:
    """Install uv into .venv, unless it is on PATH: it takes a quarter of the time that pip takes.

    Nothing fails without it: on some platforms, and behind some mirrors, only pip can install.
    """
    if not shutil.which("uv"):
        succeeds([*find_pip(), "--require-hashes", "-r", os.path.join("requirements", "uv.txt")])


def install(arguments: List[str]) -> None:
    """Install into .venv, with uv if it is there and can, else with pip.

    uv compiles nothing: the tests import a quarter of the modules.
    """
    uv = shutil.which("uv") or shutil.which("uv", path=SCRIPTS)
    if uv:
        options = ["pip", "install", "--quiet", "--python", PYTHON]
        if call([uv, *options, *arguments]) == 0:
            return
        if os.path.dirname(uv) == SCRIPTS:
            os.remove(uv)  # so that the sessions of noxfile.py do not try it either
        print("dev.py: uv failed (it does not read the settings of pip); now pip", flush=True)
    require_success(find_pip() + arguments)


def find_pip() -> List[str]:
    """Return the command that installs into .venv with pip: with one at hand, or one in .venv."""
    options = ["install", "--quiet", "--disable-pip-version-check", "--no-input"]
    for python in (PYTHON, find_base_python(), "python3"):
        pip = [python, "-m", "pip", "--python", PYTHON]
        if succeeds([*pip, "--version"]):
            return pip + options
    if succeeds([PYTHON, "-m", "ensurepip"]):
        return [PYTHON, "-m", "pip", *options]
    raise SetupError("no pip was found; " + pip_advice())


def pip_advice() -> str:
    """Name the package that distributions split off."""
    return "on Debian or Ubuntu: apt install python{}.{}-venv".format(*sys.version_info[:2])


def require_success(command: List[str]) -> None:
    """Run a command that has to succeed."""
    if call(command) != 0:
        raise SetupError("this command failed: " + " ".join(command))


def call(command: List[str]) -> int:
    """Run a command that installs; its exit code."""
    return subprocess.call(command, env=dict(os.environ, UV_PYTHON_DOWNLOADS="never"))


def succeeds(command: List[str]) -> bool:
    """Run a command without output and tell whether it succeeded."""
    try:
        with open(os.devnull, "w") as nowhere:
            return subprocess.call(command, stdout=nowhere, stderr=nowhere) == 0
    except OSError:
        return False


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
