"""Every backend against the memory backend. A new backend is one more test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.redis import RedisBackend
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.backend import Backend
from nimburion.testing.clock import FakeClock
from tests.backends.postgres.reset import truncate_all
from tests.model.machine import Twins
from tests.servers.server_kinds import BINARIES, RunningPostgres, RunningRedis

PARTS: list[Any] = [0, *(pytest.param(n, marks=pytest.mark.deep) for n in (1, 2))]
"""Each makes 30 examples of 50 steps, which takes 7 s of CPU time; deep, 2,000 of 100 steps."""
FEW = 30

_IN_MEMORY = Path("/dev/shm")


def check_same_answers(
    make: Callable[[FakeClock], Backend],
    remove: Callable[[], None],
    *,
    share: float = 1.0,
) -> None:
    """Let hypothesis look for calls that the backend which `make` makes anew each time answers
    otherwise than the memory backend does: in a few examples, or deep in that share of many."""

    class Pair(Twins):
        def make_subject(self, clock: FakeClock) -> Backend:
            return make(clock)

        def remove_subject(self) -> None:
            remove()

    usual = hypothesis.settings()
    count = round(share * usual.max_examples) if usual.max_examples > 100 else FEW
    examples = hypothesis.settings(usual, max_examples=count)
    try:
        run_state_machine_as_test(Pair, settings=examples)
    finally:
        remove()


pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Files:
    """A folder for each example, in memory where the system allows."""

    def __init__(self) -> None:
        self.folder: Path | None = None

    def new(self) -> Path:
        """Make an empty folder."""
        where = _IN_MEMORY if _IN_MEMORY.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="nb-model-", dir=where))
        return self.folder

    def remove(self) -> None:
        """Forget it."""
        if self.folder is not None:
            shutil.rmtree(self.folder)
            self.folder = None


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_sqlite_answers_as_the_memory_backend_does(part: int) -> None:
    files = Files()
    check_same_answers(
        lambda clock: SQLiteBackend(files.new() / "jobs.db", clock=clock), files.remove
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("redis_server", BINARIES, indirect=True)  # one server of each program
def test_redis_answers_as_the_memory_backend_does(redis_server: RunningRedis, part: int) -> None:
    check_same_answers(
        lambda clock: RedisBackend(redis_server.url, clock=clock, timeout=30.0), redis_server.empty
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_postgres_answers_as_the_memory_backend_does(
    postgres_server: RunningPostgres, part: int
) -> None:
    check_same_answers(
        lambda clock: PostgresBackend(postgres_server.url, clock=clock, timeout=30.0),
        lambda: truncate_all(postgres_server),
        share=0.4,
    )
