"""A pytest plugin: a run whose processes or temporary files outlive it fails.

Every process of a run carries RUN_MARK in its environment. The run has a temporary folder of its
own, with a short path: Unix sockets below it allow about 100 characters.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

RUN_MARK = "NB_TEST_RUN"
_GRACE = 2.0
"""Seconds in which what a run has started may end by itself."""
_MEMORY_NEEDED = 4 * 2**30
"""Bytes that must be free in memory; a run with all kinds of servers takes up to 2 GiB."""
_BASE = "t"
"""pytest's own folder inside the temporary folder."""
KEPT = "kept"
"""The folder inside the temporary folder for what a run makes once, for all its tests."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Mark this run and give it a temporary folder, before pytest chooses its own."""
    if is_outer_run(config):
        folder = Path(tempfile.mkdtemp(prefix="nb-", dir=find_memory_folder()))
        os.environ[RUN_MARK] = folder.name
        os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None  # read TMPDIR again
        config.option.basetemp = config.option.basetemp or str(folder / _BASE)
        config.stash[_FOLDER] = folder


_FOLDER = pytest.StashKey[Path]()


def find_memory_folder() -> Path | None:
    """Return a folder in memory with room for a run, or None: then files lie where TMPDIR says.

    Most tests open an empty SQLite file; on a disk each waits about 30 ms for it.
    """
    folder = Path("/dev/shm")  # noqa: S108: mkdtemp makes the folder in it
    if "TMPDIR" in os.environ or not os.access(folder, os.W_OK | os.X_OK):
        return None
    return folder if shutil.disk_usage(folder).free >= _MEMORY_NEEDED else None


def is_outer_run(config: pytest.Config) -> bool:
    """Whether this is the process that the user started: no xdist worker, no run inside a test."""
    return not hasattr(config, "workerinput") and RUN_MARK not in os.environ


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Fail the run when anything of it is left."""
    yield
    folder = session.config.stash.get(_FOLDER, None)
    if folder is None:
        return
    left = end_processes(folder.name) + left_files(folder)
    for one in left:
        session.config.get_terminal_writer().line(f"\nleft behind: {one}", red=True)
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the temporary folder and take the mark back."""
    folder = config.stash.get(_FOLDER, None)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop(RUN_MARK, None)


def end_processes(mark: str, grace: float = _GRACE) -> list[str]:
    """Wait for the processes of the run with this mark; kill and name those that stay (Linux)."""
    deadline = time.monotonic() + grace
    for pid in find_processes(mark):
        wait_for_exit(pid, max(0.0, deadline - time.monotonic()))
    left = find_processes(mark)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [f"process {pid}: {command}" for pid, command in left.items()]


def wait_for_exit(pid: int, seconds: float) -> None:
    """Return when the process has ended, or after these seconds."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            select.select([descriptor], [], [], seconds)
        finally:
            os.close(descriptor)


def find_processes(mark: str) -> dict[int, str]:
    """Return the commands of the other processes that carry this mark, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or gone by now
            environment = (folder / "environ").read_bytes().split(b"\0")
            if f"{RUN_MARK}={mark}".encode() in environment and int(folder.name) != os.getpid():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = command.decode(errors="replace")
    return found


def left_files(folder: Path) -> list[str]:
    """Name what the tests wrote to the temporary folder beside pytest's own and what they keep."""
    names = sorted({path.name for path in folder.iterdir()} - {_BASE, KEPT})
    return [f"file {name}" for name in names]
