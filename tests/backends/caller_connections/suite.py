"""Rows and jobs in one commit, with each driver: both or neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nimburion.core.errors import JobConflict, LeaseLost, UnusableConnection
from nimburion.core.job import State
from nimburion.jobs import Context, Job, Processor
from tests.backends.caller_connections.applications import Application

Count = Callable[[], int]


class Greet(Job, name="greet"):
    whom: str

    async def process(self, ctx: Context) -> None: ...


class CallerConnectionSuite:
    """The cases; a database is a subclass with the fixtures they ask for."""

    transactions: type
    """What the backend makes of a connection that a handler brings."""

    async def test_both_are_there_after_the_commit(
        self, application: Application, processor: Processor, accounts: Count
    ) -> None:
        await application.begin()
        await application.insert()
        job_id = await application.enqueue(processor, Greet(whom="Ada"))
        assert (accounts(), await processor.pending_count()) == (0, 0)
        await application.commit()
        assert (accounts(), await processor.pending_count()) == (1, 1)
        assert (await processor.get_status(job_id)).state is State.PENDING

    async def test_neither_is_there_after_a_rollback(
        self, application: Application, processor: Processor, accounts: Count
    ) -> None:
        await application.begin()
        await application.insert()
        await application.enqueue(processor, Greet(whom="Ada"))
        await application.rollback()
        assert (accounts(), await processor.pending_count()) == (0, 0)

    async def test_the_job_may_come_first(
        self, application: Application, processor: Processor, accounts: Count
    ) -> None:
        await application.begin()
        await application.enqueue(processor, Greet(whom="Ada"))
        await application.insert()
        await application.commit()
        assert (accounts(), await processor.pending_count()) == (1, 1)

    async def test_a_second_transaction_on_the_same_connection(
        self, application: Application, processor: Processor, accounts: Count
    ) -> None:
        for end in (application.rollback, application.commit, application.commit):
            await application.begin()
            await application.insert()
            await application.enqueue(processor, Greet(whom="Ada"))
            await end()
        assert (accounts(), await processor.pending_count()) == (2, 2)

    async def test_a_conflict_raises_and_the_rest_can_be_kept(
        self, application: Application, processor: Processor, accounts: Count
    ) -> None:
        await processor.enqueue(Greet(whom="Ada"), id="one")
        await application.begin()
        await application.insert()
        with pytest.raises(JobConflict):
            await application.enqueue(processor, Greet(whom="Bob"), id="one")
        await application.enqueue(processor, Greet(whom="Bob"), id="two")
        await application.commit()
        assert (accounts(), await processor.pending_count()) == (1, 2)

    async def test_another_file_is_refused(
        self, application: Application, processor: Processor, accounts: Count, elsewhere: Processor
    ) -> None:
        await application.begin()
        with pytest.raises(UnusableConnection, match=r"one commit cannot cover both"):
            await application.enqueue(elsewhere, Greet(whom="Ada"))
        await application.rollback()
        assert await elsewhere.pending_count() == 0

    async def test_a_worker_is_woken_by_the_commit(
        self, application: Application, processor: Processor, accounts: Count
    ) -> None:
        await processor.start()
        await application.begin()
        job_id = await application.enqueue(processor, Greet(whom="Ada"))
        await application.commit()
        assert await processor.wait(job_id, timeout=20) is None

    @pytest.mark.parametrize(("fail", "state"), [(False, State.COMPLETED), (True, State.FAILED)])
    async def test_a_handler_completes_its_job_with_its_rows(
        self,
        application: Application,
        processor: Processor,
        accounts: Count,
        fail: bool,
        state: State,
    ) -> None:
        job_id = await run_one(application, processor, fail=fail)
        status = await processor.get_status(job_id)
        assert status.state is state, status.error
        assert status.result == (None if fail else 7)
        assert accounts() == (0 if fail else 1)

    async def test_a_handler_that_lost_its_job_keeps_nothing(
        self,
        application: Application,
        processor: Processor,
        accounts: Count,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        async def lost(self: object, session_id: str, *_: object) -> None:
            raise LeaseLost("the job")

        monkeypatch.setattr(self.transactions, "settle", lost)
        job_id = await run_one(application, processor, fail=False)
        assert accounts() == 0
        assert (await processor.get_status(job_id)).state is not State.COMPLETED


async def run_one(application: Application, processor: Processor, *, fail: bool) -> str:
    """Run a job whose handler writes a row on a connection of the application."""

    def write(connection: Any) -> None:
        application.write_on(connection)
        if fail:
            raise ValueError("no money")

    async def pay(ctx: Context, _: bytes) -> None:
        async with ctx.transaction(application.connection) as connection:
            await application.write_on(connection)
            ctx.set_result(7)
            if fail:
                raise ValueError("no money")

    def pay_on_its_thread(ctx: Context, _: bytes) -> None:
        with application.connected() as connection, ctx.transaction(connection) as same:
            assert same is connection
            ctx.set_result(7)
            write(same)

    processor.register("pay", pay if application.is_async else pay_on_its_thread, max_retries=0)
    job_id = await processor.enqueue_raw("pay", b"{}")
    await processor.process_one()
    return job_id
