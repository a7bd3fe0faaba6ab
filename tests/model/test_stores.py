"""Every store against the memory store. A new store is one line in `STORES`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.backend import Backend
from nimburion.testing.clock import FakeClock
from tests.model.machine import Twins

PARTS = 3
"""Each makes as many examples as the profile says: 100 of 50 steps, deep 2,000 of 100."""

_IN_MEMORY = Path("/dev/shm")


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


def sqlite(files: Files, clock: FakeClock) -> Backend:
    return SQLiteBackend(files.new() / "jobs.db", clock=clock)


STORES: dict[str, Callable[[Files, FakeClock], Backend]] = {"sqlite": sqlite}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", STORES)
def test_it_answers_as_the_memory_store_does(name: str, part: int) -> None:
    files = Files()

    class Pair(Twins):
        def make_subject(self, clock: FakeClock) -> Backend:
            return STORES[name](files, clock)

        def remove_subject(self) -> None:
            files.remove()

    try:
        run_state_machine_as_test(Pair, settings=hypothesis.settings())
    finally:
        files.remove()
