"""What public values show in a shell, a log line or a debugger."""

from __future__ import annotations

from pathlib import Path

from nimburion import Processor, Scheduler, job, open_backend
from nimburion.actions import Operator


@job(queue="mail")
async def send(to: str) -> None: ...


async def test_a_processor_says_where_it_is_and_what_it_has(tmp_path: Path) -> None:
    processor = Processor(f"sqlite:///{tmp_path}/jobs.db")
    assert repr(processor) == f"<Processor on SQLite {tmp_path}/jobs.db: 0 jobs, closed>"
    processor.register(send)
    async with processor:
        assert repr(processor) == f"<Processor on SQLite {tmp_path}/jobs.db: 1 job, open>"


def test_what_a_processor_offers_names_it() -> None:
    processor = Processor("memory://")
    processor.operator = Operator("ann")
    memory = "memory of this process (not durable)"
    shown = f"<Processor on {memory}: 0 jobs, closed>"
    assert repr(processor.sync) == f"<sync of {shown}>"
    assert repr(processor.queues) == f"<QueueActions on {memory} by ann>"
    assert repr(processor.dead) == f"<DeadLetters on {memory} by ann>"
    assert repr(processor.schedules) == f"<Schedules on {memory} by ann>"
    assert repr(processor.sync.queues) == f"<SyncQueues of <sync of {shown}>>"
    assert repr(processor.sync.schedules) == f"<SyncSchedules of <sync of {shown}>>"
    assert repr(Scheduler(processor)) == f"<Scheduler of {shown}: 0 declared>"


def test_a_backend_shows_its_url_without_secrets() -> None:
    assert repr(open_backend("memory://")) == "<MemoryBackend memory of this process (not durable)>"
    url = "postgresql://ann:secret@localhost/app"
    assert repr(open_backend(url)) == "<PostgresBackend PostgreSQL localhost:5432/app>"
    assert (
        repr(open_backend("redis://:secret@localhost/3")) == "<RedisBackend Redis localhost:6379/3>"
    )


def test_jobs_show_their_arguments() -> None:
    assert repr(send) == "<job send in mail>"
    assert repr(send.job("ann")) == "send(to='ann')"
