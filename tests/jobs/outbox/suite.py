"""Rows and jobs in one commit, with the backend elsewhere: both or neither, with each driver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.errors import JobNotFound, UnusableConnection
from nimburion.jobs import Context, Job, Processor
from nimburion.jobs.outbox.outbox import Outbox
from tests.backends.caller_connections.applications import Application


class Greet(Job, name="greet"):
    whom: str

    async def process(self, ctx: Context) -> str:
        return f"hello {self.whom}"


class OutboxSuite:
    """The cases; a database is a subclass with the fixtures they ask for.

    `processor` has the outbox, and its backend is in another database than `application`.
    """

    @pytest.fixture
    async def processor(self, tmp_path: Path, outbox: Outbox) -> AsyncIterator[Processor]:
        made = Processor(SQLiteBackend(tmp_path / "jobs.db"), outbox=outbox)
        made.register(Greet)
        async with made:
            yield made

    async def test_the_job_runs_after_the_commit(
        self, application: Application, processor: Processor, accounts: Any
    ) -> None:
        await application.begin()
        await application.insert()
        job_id = await application.enqueue(processor, Greet(whom="Ada"))
        assert await processor.drain() == 0
        with pytest.raises(JobNotFound):
            await processor.wait(job_id, timeout=5)
        await application.commit()
        assert accounts() == 1
        assert await processor.drain() == 1
        assert await processor.wait(job_id, timeout=5) == "hello Ada"
        assert await count_rows(processor) == 0

    async def test_neither_is_there_after_a_rollback(
        self, application: Application, processor: Processor, accounts: Any
    ) -> None:
        await application.begin()
        await application.insert()
        await application.enqueue(processor, Greet(whom="Ada"))
        await application.rollback()
        assert (accounts(), await count_rows(processor)) == (0, 0)
        assert await processor.drain() == 0

    async def test_a_worker_relays_the_job(
        self, application: Application, processor: Processor, accounts: Any
    ) -> None:
        await application.begin()
        job_id = await application.enqueue(processor, Greet(whom="Ada"))
        await application.commit()
        await processor.start()
        assert await processor.wait(job_id, timeout=30) == "hello Ada"

    async def test_the_backend_of_the_same_database_needs_no_outbox(
        self, application: Application, sharing: Processor, accounts: Any
    ) -> None:
        await application.begin()
        job_id = await application.enqueue(sharing, Greet(whom="Ada"))
        await application.commit()
        assert (await sharing.get_status(job_id)).id == job_id
        assert await count_rows(sharing) == 0

    async def test_without_an_outbox_the_error_names_it(
        self, application: Application, processor: Processor, accounts: Any
    ) -> None:
        processor.outbox = None
        await application.begin()
        with pytest.raises(UnusableConnection, match="outbox"):
            await application.enqueue(processor, Greet(whom="Ada"))
        await application.rollback()


async def count_rows(processor: Processor) -> int:
    """How many committed jobs wait in the outbox."""
    assert isinstance(processor.outbox, Outbox)
    return (await processor.outbox.read_lag()).jobs
