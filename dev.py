#!/usr/bin/env python3
"""Everything a fresh clone can do, in one file that needs only Python 3.11 or newer.

It keeps its own virtual environment in .venv and makes or renews it when needed.
This file must parse and start on Python 3.6, so that an old `python3` can find a newer one.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO, Callable, Dict, List, Optional

OLDEST = (3, 11)
PYRIGHT = "pyright@1.1.414"
ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "dev-stamp.json")
SCRIPTS = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")
PYTHON = os.path.join(SCRIPTS, "python.exe" if os.name == "nt" else "python")
RUN_MARK = "DEV_PY_RUN"  # set in the environment of every test process, to find what a run left


def main(arguments: List[str]) -> int:
    """Run the verb that was asked for; without one, print the help."""
    if sys.version_info < OLDEST:
        return restart_on_newer_python(arguments)
    every = [demo, test, check, bench, deep, lock, clean]  # type: List[Callable[[List[str]], int]]
    verbs = {verb.__name__: verb for verb in every}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print_help(verbs)
        return 0
    if arguments[0] not in verbs:
        known = ", ".join(verbs)
        print(f"dev.py: no verb {arguments[0]!r}; there are {known}", file=sys.stderr)
        return 2
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return verbs[arguments[0]](arguments[1:])
    except Stopped as stopped:
        print(f"dev.py: {stopped}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


# --- the verbs: their docstrings are the help -----------------------------------------------------


def demo(arguments: List[str]) -> int:
    """Run real jobs on SQLite and watch them; arguments go to `nimburion demo`."""
    make_environment("demo")
    command = [os.path.join(SCRIPTS, "nimburion"), "demo"] + arguments
    if os.name == "nt":
        return call(command)
    sys.stdout.flush()
    os.execv(command[0], command)  # the demo is then the process that signals reach


def test(arguments: List[str]) -> int:
    """Check and test everything; with arguments: only pytest, with these arguments."""
    make_environment("dev")
    if arguments:
        return pytest(arguments)
    started = time.monotonic()
    failed = failed_checks()
    if pytest(["-n", str(min(8, 1 + (os.cpu_count() or 1)))]) != 0:  # some only wait
        failed.append("tests")
    return report(failed, started)


def check(arguments: List[str]) -> int:
    """Look at format, lint, floors and types; no tests. --pyright: its types too (needs Node)."""
    make_environment("dev")
    started = time.monotonic()
    return report(failed_checks(with_pyright="--pyright" in arguments), started)


def bench(arguments: List[str]) -> int:
    """Measure speed; arguments go to `python -m benchmarks`."""
    make_environment("dev")
    return call([PYTHON, "-m", "benchmarks"] + arguments)


def deep(arguments: List[str]) -> int:
    """Run every test, the long ones too; keep the output under benchmarks/results."""
    make_environment("dev")
    long_run = ["-m", "deep or not deep", "--hypothesis-profile=deep", "--timeout=3600"]
    kept = os.path.join("benchmarks", "results", time.strftime("deep-%Y%m%d-%H%M%S.txt"))
    os.makedirs(os.path.dirname(kept), exist_ok=True)
    with open(kept, "w", encoding="utf-8") as copy:
        copy.write(describe_machine() + "\n")
        code = pytest(["--no-header", "-n", "auto"] + long_run + arguments, copy=copy)
    print(f"dev.py: kept in {kept}")
    return code


def lock(arguments: List[str]) -> int:
    """Renew the locked requirements; arguments go to `uv pip compile` (--upgrade, …)."""
    with scratch_folder() as scratch:
        uv = shutil.which("uv") or install_uv(scratch)
        for level, extra in (("dev", []), ("demo", ["-c", "requirements/dev.txt"])):
            compile_requirements(uv, level, extra + arguments)
    return 0


def clean(_: List[str]) -> int:
    """Remove .venv, caches and build output."""
    for name in (
        ".venv", "build", "dist", "site", "htmlcov", ".hypothesis", ".import_linter_cache",
        ".mypy_cache", ".pytest_cache", ".ruff_cache",
    ):  # fmt: skip
        shutil.rmtree(os.path.join(ROOT, name), ignore_errors=True)
    for folder in ("src", "tests", "benchmarks", "docs", "examples"):
        for path, _, _ in os.walk(os.path.join(ROOT, folder)):
            if os.path.basename(path) == "__pycache__":
                shutil.rmtree(path, ignore_errors=True)
    return 0


def print_help(verbs: Dict[str, Callable[[List[str]], int]]) -> None:
    """Print the verbs, each with the first line of its docstring."""
    print("usage: python3 dev.py VERB [ARGUMENT ...]\n")
    for name, verb in verbs.items():
        print("  {:<7} {}".format(name, verb.__doc__))
    print("\nThe virtual environment in .venv is made and renewed when needed.")


# --- which Python ---------------------------------------------------------------------------------


def restart_on_newer_python(arguments: List[str]) -> int:
    """Hand over to the newest python3.x on PATH that is new enough."""
    for minor in range(30, OLDEST[1] - 1, -1):
        newer = shutil.which("python3.%d" % minor)
        if newer and runs(newer):
            os.execv(newer, [newer, os.path.abspath(__file__)] + arguments)
    print(
        "dev.py: Python 3.11 or newer is needed, this is %d.%d and PATH has no python3.11 to "
        "python3.30; install one and run this again" % sys.version_info[:2],
        file=sys.stderr,
    )
    return 1


def runs(python: str) -> bool:
    """Tell whether this interpreter starts (a version manager's shim may not)."""
    code = "import sys; sys.exit(sys.version_info < (3, 11))"
    return quietly([python, "-c", code])


def base_python() -> str:
    """Return the interpreter that .venv is made from, also when this one is .venv's own."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


# --- the virtual environment ----------------------------------------------------------------------


class Stopped(Exception):
    """The work cannot go on; the message says why and what to do."""


def make_environment(level: str) -> None:
    """Make sure that .venv holds requirements/<level>.txt and this checkout. Quick when it does."""
    with only_one_at_a_time():
        has = read_stamp()
        if has in (stamp(level), stamp("dev")):
            return
        if has.get("python") != stamp(level)["python"] or not os.path.exists(PYTHON):
            shutil.rmtree(VENV, ignore_errors=True)
            create_environment()
        elif os.path.exists(STAMP):
            os.remove(STAMP)  # half renewed is not usable
        install(["--require-hashes", "-r", os.path.join("requirements", level + ".txt")])
        install(["--no-deps", "--no-build-isolation", "-e", "."])
        with open(STAMP, "w", encoding="utf-8") as file:
            json.dump(stamp(level), file)


class only_one_at_a_time:  # noqa: N801 - reads as a statement
    """Hold a lock on this file, so that two calls do not build one .venv at once."""

    def __enter__(self) -> None:
        """Take the lock, or wait for it."""
        self.file = open(__file__, "rb")
        try:
            import fcntl
        except ImportError:
            return
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        """Closing the file gives the lock back."""
        self.file.close()


def stamp(level: str) -> Dict[str, str]:
    """Describe what .venv should hold."""
    digest = hashlib.sha256()
    for name in (os.path.join("requirements", level + ".txt"), "pyproject.toml"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read() + b"\0")
    python = "{} {}".format(base_python(), sys.version)
    return {"level": level, "digest": digest.hexdigest(), "python": python, "root": ROOT}


def read_stamp() -> Dict[str, str]:
    """Return what .venv was last filled with; empty when it is missing or half made."""
    try:
        with open(STAMP, encoding="utf-8") as file:
            return dict(json.load(file))
    except (OSError, ValueError):
        return {}


def create_environment() -> None:
    """Make an empty .venv: with uv if there is one, else venv, with pip in it if possible."""
    print("dev.py: making .venv with Python {}.{}.{}".format(*sys.version_info[:3]), flush=True)
    uv = shutil.which("uv")
    if uv:
        must([uv, "venv", "--quiet", "--python", base_python(), VENV])
    elif not quietly([base_python(), "-m", "venv", VENV]):
        # Debian and Ubuntu split ensurepip off: the system's pip can fill a .venv that has none.
        shutil.rmtree(VENV, ignore_errors=True)
        if not quietly([base_python(), "-m", "venv", "--without-pip", VENV]):
            raise Stopped("this Python has no venv; " + how_to_get_pip())


def install(arguments: List[str]) -> None:
    """Install into .venv, with uv or the pip at hand."""
    must(installer() + arguments, environment=dict(os.environ, UV_PYTHON_DOWNLOADS="never"))


def installer() -> List[str]:
    """Return the command that installs into .venv."""
    uv = shutil.which("uv")
    if uv:
        return [uv, "pip", "install", "--quiet", "--python", PYTHON]
    options = ["--quiet", "--disable-pip-version-check", "--no-input"]
    if quietly([PYTHON, "-m", "pip", "--version"]):
        return [PYTHON, "-m", "pip", "install"] + options
    for python in (base_python(), "python3"):
        if quietly([python, "-m", "pip", "--python", PYTHON, "--version"]):
            return [python, "-m", "pip", "--python", PYTHON, "install"] + options
    raise Stopped("no pip was found; " + how_to_get_pip())


def how_to_get_pip() -> str:
    """Name the package that distributions split off."""
    return "on Debian or Ubuntu: apt install python{}.{}-venv".format(*sys.version_info[:2])


# --- checks and tests -----------------------------------------------------------------------------


def failed_checks(*, with_pyright: bool = False) -> List[str]:
    """Run every check, whatever the others say; return the names of those that failed."""
    sources = [name for name in ("src", "tests", "benchmarks") if os.path.isdir(name)]
    checks = {
        "format": [PYTHON, "-m", "ruff", "format", "--check", "--quiet", "."],
        "lint": [PYTHON, "-m", "ruff", "check", "--quiet", "."],
        "floors": [os.path.join(SCRIPTS, "lint-imports"), "--no-logo"],
        "types": [PYTHON, "-m", "mypy", "dev.py"] + sources,
    }
    if with_pyright:
        npx = shutil.which("npx") or "npx"
        checks["pyright"] = [npx, "--yes", PYRIGHT]
        checks["public types"] = [npx, "--yes", PYRIGHT, "--verifytypes", "nimburion"]
        checks["public types"] += ["--ignoreexternal"]
    return [name for name, command in checks.items() if not passes(name, command)]


def passes(name: str, command: List[str]) -> bool:
    """Run one check and show its output only when it failed."""
    first = dict(os.environ, PATH=SCRIPTS + os.pathsep + os.environ.get("PATH", ""))
    result = subprocess.run(
        command,
        env=first,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    print("dev.py: {:<12} {}".format(name, "ok" if result.returncode == 0 else "FAILED"))
    if result.returncode != 0:
        print(result.stdout, flush=True)
    return result.returncode == 0


def pytest(arguments: List[str], copy: Optional[IO[str]] = None) -> int:
    """Run pytest in a temporary folder of its own; what outlives the run makes it fail."""
    with scratch_folder() as scratch:
        mark = os.path.basename(scratch)
        environment = dict(os.environ, TMPDIR=scratch)
        environment[RUN_MARK] = mark
        command = [PYTHON, "-m", "pytest", "--basetemp", os.path.join(scratch, "t")]
        try:
            code = call(command + arguments, environment=environment, copy=copy)
        finally:
            left = end_processes(mark) + left_files(scratch)
            for one in left:
                print("dev.py: left behind: " + one, file=sys.stderr)
    return code or int(bool(left))


def end_processes(mark: str, patience: float = 2.0) -> List[str]:
    """Wait for the processes of the run with this mark; end and name those that stay (Linux)."""
    until = time.monotonic() + patience
    while processes_of(mark) and time.monotonic() < until:
        time.sleep(0.05)
    left = processes_of(mark)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return ["process %d: %s" % one for one in left.items()]


def processes_of(mark: str) -> Dict[int, str]:
    """Return the commands of the processes that carry this mark, by process id."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else ()):
        try:
            with open("/proc/%s/environ" % pid, "rb") as file:
                if "{}={}".format(RUN_MARK, mark).encode() not in file.read().split(b"\0"):
                    continue
            with open("/proc/%s/cmdline" % pid, "rb") as file:
                found[int(pid)] = file.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # another user's, or already gone
    return found


def left_files(scratch: str) -> List[str]:
    """Name what the tests wrote to the temporary folder beside pytest's own."""
    return ["file " + name for name in sorted(os.listdir(scratch)) if name != "t"]


def report(failed: List[str], started: float) -> int:
    """Say what failed, in one line; nothing after a green run but its time."""
    seconds = time.monotonic() - started
    if failed:
        print("dev.py: FAILED: {} ({:.0f} s)".format(", ".join(failed), seconds), file=sys.stderr)
        return 1
    print("dev.py: all passed in {:.0f} s, {}".format(seconds, describe_versions()))
    return 0


def describe_versions() -> str:
    """Name the versions that a run used; the servers are those that NB_TEST_SERVERS names."""
    import platform
    import sqlite3

    own = "Python {}, SQLite {}".format(platform.python_version(), sqlite3.sqlite_version)
    asked = [PYTHON, "-m", "tests.servers"]
    servers = subprocess.run(asked, stdout=subprocess.PIPE, text=True).stdout.strip()
    return "{}, {}".format(own, servers or "no servers")


def describe_machine() -> str:
    """Name commit, machine and versions, for results that are kept."""
    import platform

    asked = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(asked, stdout=subprocess.PIPE, text=True).stdout.strip()
    machine = "{} {}, {} cores".format(platform.system(), platform.machine(), os.cpu_count())
    return "commit {}; {}; {}".format(commit or "unknown", machine, describe_versions())


# --- locked requirements --------------------------------------------------------------------------


def install_uv(scratch: str) -> str:
    """Install uv beside nothing else, for this one call."""
    must([base_python(), "-m", "venv", scratch])
    must([os.path.join(scratch, "bin", "python"), "-m", "pip", "install", "--quiet", "uv"])
    return os.path.join(scratch, "bin", "uv")


def compile_requirements(uv: str, level: str, extra: List[str]) -> None:
    """Write requirements/<level>.txt: every platform, hashed, and naming no host."""
    source, target = ("requirements/{}.{}".format(level, kind) for kind in ("in", "txt"))
    options = ["--quiet", "--universal", "--generate-hashes", "--no-header", "--no-annotate"]
    wanted = ["--python-version", "{}.{}".format(*OLDEST), "--output-file", target, source]
    must(
        [uv, "pip", "compile"] + options + wanted + extra,
        environment=dict(os.environ, UV_PYTHON_DOWNLOADS="never"),
    )
    with open(target, encoding="utf-8") as file:
        if "://" in file.read():
            raise Stopped(target + " names a host; it must not be committed")


# --- processes and folders ------------------------------------------------------------------------


def call(
    command: List[str], environment: Optional[Dict[str, str]] = None, copy: Optional[IO[str]] = None
) -> int:
    """Run a command to its end and return its exit code; it never outlives this process."""
    sys.stdout.flush()
    output = subprocess.PIPE if copy else None
    process = subprocess.Popen(command, env=environment, stdout=output, text=True)
    try:
        if copy and process.stdout:
            for line in process.stdout:
                print(line, end="", flush=True)
                copy.write(line)
        return process.wait()
    except KeyboardInterrupt:
        return process.wait()  # the terminal told it too
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def must(command: List[str], environment: Optional[Dict[str, str]] = None) -> None:
    """Run a command that has to succeed."""
    if call(command, environment=environment) != 0:
        raise Stopped("this did not work: " + " ".join(command))


def quietly(command: List[str]) -> bool:
    """Run a command without a word and tell whether it succeeded."""
    try:
        with open(os.devnull, "w") as nowhere:
            return subprocess.call(command, stdout=nowhere, stderr=nowhere) == 0
    except OSError:
        return False


class scratch_folder:  # noqa: N801 - reads as a statement
    """A temporary folder with a short path (Unix sockets below it allow about 100 characters)."""

    def __enter__(self) -> str:
        """Make it."""
        self.path = tempfile.mkdtemp(prefix="nb-")
        return self.path

    def __exit__(self, *_: object) -> None:
        """Remove it with all it holds."""
        shutil.rmtree(self.path, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
