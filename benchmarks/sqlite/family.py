"""SQLite: a file, and the job system that can use one as well."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.beside.family import Family, Serving
from benchmarks.beside.subjects import Subject
from tests.servers.binaries import Binary


class BackendFile(NamedTuple):
    """A database file; no server belongs to it."""

    url: str
    pid: int = 0


def program() -> Binary:
    """Return the SQLite of this Python."""
    return Binary(Path(sys.executable), "SQLite", sqlite3.sqlite_version_info)


@contextmanager
def serve(_binary: Binary, _condition: str) -> Iterator[Serving]:
    """Yield the place of a new file in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="nimburion-bench-") as folder:
        yield BackendFile(f"sqlite:///{folder}/jobs.db")


FAMILY = Family(
    name="sqlite",
    title="SQLite",
    ours=Subject(
        "nimburion", "nimburion", "enqueue_many of 1,000", (60_000, 65_000), 100_000, one_jobs=3_000
    ),
    bare=Subject("bare_sqlite", "bare INSERT", "", (0, 0), one_jobs=3_000),
    peers={
        "huey": Subject(
            "huey",
            "Huey (at most once)",
            "one by one",
            (4_000, 4_000),
            3_000,
            best_producer=False,
            one_jobs=3_000,
        )
    },
    program=program,
    serve=serve,
    settings_text="a new file for each run, with each system's own settings",
    drivers=("msgspec",),
    drained=(),
    idle=(),
    idle_seconds=20,
)
