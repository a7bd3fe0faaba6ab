"""Backends on files of their own, and other processes that use them."""

from __future__ import annotations

import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.testing.clock import FakeClock
from tests.house.tree import ROOT

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the backend's file will be."""
    return tmp_path / "jobs.db"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def backend(path: Path, clock: FakeClock) -> AsyncIterator[SQLiteBackend]:
    """An open, empty backend that lives by `clock`."""
    backend = SQLiteBackend(path, clock=clock)
    await backend.open()
    yield backend
    await backend.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Start an actor; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(verb: str, *more: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "tests.backends.sqlite.actor",
                verb,
                *map(str, more),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def let_others_in(folder: Path) -> None:
    """Let every user enter this folder of a test."""
    for above in (folder, *folder.parents):
        is_shared = above.stat().st_mode & stat.S_ISVTX
        if above.is_relative_to(tempfile.gettempdir()) and not is_shared:
            above.chmod(0o755)


def read_output(process: subprocess.Popen[str]) -> list[str]:
    """Everything that an actor says until it ends, by line."""
    output, _ = process.communicate(timeout=50)
    return output.splitlines()


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line that an actor says."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def assert_sound(path: Path) -> None:
    """The file is whole, and each unfinished job stands in exactly one place."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        astray = connection.execute(
            """
            SELECT id, (SELECT count(*) FROM ready WHERE seq = job.seq)
                + (SELECT count(*) FROM scheduled WHERE seq = job.seq)
                + (SELECT count(*) FROM lease WHERE seq = job.seq) AS places
            FROM job WHERE places <> (state = 0)
            """
        ).fetchall()
        assert astray == []
        limits = connection.execute(
            """
            SELECT r.limit_name, u.in_use
            FROM limit_rule AS r JOIN limit_use AS u ON u.limit_name = r.limit_name
            WHERE r.closes_lane = 1 AND u.in_use <> (
                SELECT count(*) FROM lease JOIN lane ON lane.id = lease.lane
                JOIN limit_rule AS o ON o.job_name = lane.name AND o.limit_name = r.limit_name
                WHERE r.limit_name IN ('job:' || lane.name, 'queue:' || lane.queue)
            )
            """
        ).fetchall()
        assert limits == []
