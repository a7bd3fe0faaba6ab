"""A worker is a scheduler too, unless an option says otherwise."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.cli.invocation import Invocation
from nimburion.core.errors import DefinitionError
from nimburion.core.job import State
from nimburion.jobs import Processor
from nimburion.scheduler import Scheduler
from tests.cli.test_processes import APPLICATION, DEADLINE, worker
from tests.scheduler.conftest import Report
from tests.waiting import block_until

TASKS = """
scheduler:
  enabled: {enabled}
  tasks:
    - {{name: sum, cron: "@every 1s", job_name: add, queue: sums, payload: {{a: 1, b: 2}}}}
"""


def configured(folder: Path, enabled: str) -> Invocation:
    """What the command line reads in this folder."""
    file = folder / "config.yaml"
    file.write_text(TASKS.format(enabled=enabled))
    invocation = Invocation()
    invocation.config = str(file)
    return invocation


def schedulers(processor: Processor) -> list[Scheduler]:
    """What runs beside its worker."""
    return [one for one in processor.services if isinstance(one, Scheduler)]


def test_a_worker_fires_what_is_configured(tmp_path: Path) -> None:
    configured(tmp_path, "true")
    (tmp_path / "app.py").write_text(APPLICATION)

    with worker(tmp_path, "app:processor", "--queues", "sums") as process:
        try:
            block_until(lambda: completed(tmp_path) >= 2, "two jobs of the schedule", DEADLINE)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=DEADLINE)
    assert process.returncode == 0


def completed(folder: Path) -> int:
    """How many jobs are done in the backend of this folder."""

    async def counted() -> int:
        backend = SQLiteBackend(folder / "nimburion.db")
        await backend.open()
        try:
            return (await backend.reads.count_jobs())[State.COMPLETED]
        finally:
            await backend.close()

    return asyncio.run(counted())


def test_one_scheduler_is_added_for_what_is_configured(tmp_path: Path) -> None:
    processor = Processor(MemoryBackend())
    Scheduler.configure(processor, configured(tmp_path, "true").load().scheduler)
    (one,) = schedulers(processor)
    assert one.names == ["sum"]


def test_the_applications_own_takes_the_configured_tasks_too(tmp_path: Path) -> None:
    processor = Processor(MemoryBackend())
    own = Scheduler(processor)
    own.schedule("@daily", lambda _: Report(), name="own")
    Scheduler.configure(processor, configured(tmp_path, "true").load().scheduler)
    assert schedulers(processor) == [own]
    assert own.names == ["own", "sum"]


def test_none_runs_where_it_is_switched_off(tmp_path: Path) -> None:
    processor = Processor(MemoryBackend())
    Scheduler(processor).schedule("@daily", lambda _: Report(), name="own")
    Scheduler.configure(processor, configured(tmp_path, "false").load().scheduler)
    assert schedulers(processor) == []


def test_a_wrong_task_ends_the_worker_before_it_begins(tmp_path: Path) -> None:
    invocation = configured(tmp_path, "true")
    file = tmp_path / "config.yaml"
    file.write_text(file.read_text().replace("@every 1s", "* 25 * * *"))
    with pytest.raises(DefinitionError, match="scheduler task 'sum'"):
        Scheduler.configure(Processor(MemoryBackend()), invocation.load().scheduler)
