"""A process dies around a commit that covers rows and jobs: both are there, or neither; and a job
that is completed in its handler's transaction has its effect exactly once."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from nimburion.core.job import State
from tests.crash.stage import Stage

pytestmark = pytest.mark.slow


@pytest.fixture
def stage(sqlite_stage: Stage, tmp_path: Path) -> Stage:
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection, connection:
        connection.execute("CREATE TABLE effect (job TEXT)")
    return sqlite_stage


def effects(stage: Stage) -> Counter[str]:
    """The rows that everybody can see, by job."""
    with closing(sqlite3.connect(stage.folder / "jobs.db")) as connection:
        return Counter(row[0] for row in connection.execute("SELECT job FROM effect"))


@pytest.mark.parametrize(
    ("point", "both"), [("rows", 0), ("statement ready_add_new", 0), ("bought", 1)]
)
async def test_a_caller_dies(stage: Stage, point: str, both: int) -> None:
    await stage.killed_itself(stage.buyer(point))
    assert sum((await stage.store.counts()).values()) == both
    assert effects(stage).total() == both


@pytest.mark.parametrize(
    "point", ["rows", "statement lease_drop", "statement job_finish", "committed", "settled"]
)
async def test_a_worker_dies_and_the_effect_happens_once(stage: Stage, point: str) -> None:
    ids = await stage.enqueue("paying", 3)
    await stage.killed_itself(stage.worker(point, concurrency=3))
    already = effects(stage)
    assert already.total() == (1 if point == "committed" else already.total())
    assert (await stage.store.counts())[State.COMPLETED] == already.total()
    stage.worker()
    await stage.until_finished()
    assert (await stage.store.counts())[State.COMPLETED] == len(ids)
    assert effects(stage) == Counter(ids)
