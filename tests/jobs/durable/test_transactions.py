"""A step in a transaction of the backend: its rows and its record in one commit."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from nimburion import DurableContext, Processor, State
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.transactions import SQLiteOwnTransaction
from nimburion.errors import BackendUnavailable, NotSupported
from nimburion.testing import FakeClock
from tests.jobs.durable.runs import finish, make_processor


@pytest.fixture
def processor(tmp_path: Path) -> Processor:
    return Processor(f"sqlite:///{tmp_path / 'jobs.db'}", max_retries=0)


def debit(connection: sqlite3.Connection, cents: int) -> int:
    connection.execute("CREATE TABLE IF NOT EXISTS debit (cents integer)")
    connection.execute("INSERT INTO debit VALUES (?)", (cents,))
    return cents


async def read_debits(processor: Processor, tmp_path: Path) -> list[Any]:
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        rows = connection.execute("SELECT cents FROM debit").fetchall()
    connection.close()
    return [cents for (cents,) in rows]


async def test_the_rows_of_a_step_are_written_once(processor: Processor, tmp_path: Path) -> None:
    @processor.job
    async def run(ctx: DurableContext, cents: int) -> int:
        one = await ctx.transact(debit, cents)
        await ctx.sleep("pause", 0.01)
        return one + await ctx.options(key="more").transact(debit, 2 * cents)

    async with processor:
        await processor.start()
        assert await processor.wait(await run.enqueue(5), timeout=20) == 15
        await processor.stop()
        assert await read_debits(processor, tmp_path) == [5, 10]


async def test_an_error_rolls_the_rows_back(processor: Processor, tmp_path: Path) -> None:
    tries: list[int] = []

    def debit_twice(connection: sqlite3.Connection) -> None:
        debit(connection, 7)
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("no")

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.options(max_retries=1, retry_backoff=0.01).transact(debit_twice)

    async with processor:
        await processor.start()
        await processor.wait(await run.enqueue(), timeout=20)
        await processor.stop()
        assert await read_debits(processor, tmp_path) == [7]


async def test_a_timeout_rolls_the_rows_back(processor: Processor, tmp_path: Path) -> None:
    tries: list[int] = []

    async def debit_slowly(connection: sqlite3.Connection) -> int:
        debit(connection, 7)
        tries.append(1)
        if len(tries) == 1:
            await asyncio.Event().wait()
        return len(tries)

    @processor.job
    async def run(ctx: DurableContext) -> list[object]:
        options = ctx.options(max_retries=1, retry_backoff=0.01, timeout=0.05)
        tried = await options.transact(debit_slowly)
        tries.clear()
        try:
            await ctx.options(key="again", timeout=0.05).transact(debit_slowly)
        except TimeoutError as error:
            return [tried, str(error)]
        return [tried]

    async with processor:
        await processor.start()
        result = await processor.wait(await run.enqueue(), timeout=20)
        await processor.stop()
        assert result == [2, "step 'again' did not end within 0.05 s"]
        assert await read_debits(processor, tmp_path) == [7]


async def test_a_timeout_cannot_end_a_blocking_function(processor: Processor) -> None:
    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.options(timeout=5).transact(debit, 7)

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        status = await processor.get_status(job_id)
        assert status.error is not None
        assert status.error.type == "InvalidStep"
        assert "test_transactions.py:" in status.error.message
        assert "write `async def`, or leave the timeout out" in status.error.message


@pytest.mark.parametrize("max_retries", [0, 3])
async def test_a_step_whose_commit_is_not_answered_is_not_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_retries: int
) -> None:
    clock = FakeClock()
    backend = SQLiteBackend(tmp_path / "jobs.db", clock=clock)
    processor = Processor(backend, clock=clock, max_retries=0)
    lose_answer_of_commit(monkeypatch)

    @processor.job
    async def run(ctx: DurableContext) -> int:
        try:
            options = ctx.options(max_retries=max_retries, retry_backoff=0)
            return await options.transact(debit, 5)
        except BackendUnavailable:
            return 0

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == 5
        assert await read_debits(processor, tmp_path) == [5]


def lose_answer_of_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first commit raise after it has been applied."""
    commit, lost = SQLiteOwnTransaction.commit, list[bool]()

    async def commit_without_answer(transaction: SQLiteOwnTransaction) -> None:
        await commit(transaction)
        if not lost:
            lost.append(True)
            raise BackendUnavailable("no answer")

    monkeypatch.setattr(SQLiteOwnTransaction, "commit", commit_without_answer)


async def test_an_error_that_was_caught_before_a_transaction_is_stored_before_it(
    tmp_path: Path,
) -> None:
    clock = FakeClock()
    backend = SQLiteBackend(tmp_path / "jobs.db", clock=clock)
    processor = Processor(backend, clock=clock, max_retries=1)
    calls: list[str] = []

    async def charge() -> int:
        calls.append("charge")
        raise ValueError("declined")

    @processor.job
    async def run(ctx: DurableContext) -> str:
        is_charged = True
        try:
            await ctx.step(charge)
        except ValueError:
            is_charged = False
        if is_charged:
            return "charged"
        await ctx.transact(debit, 5)
        if ctx.failures == 0:
            raise OSError("an error that ends the attempt")
        return "declined"

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == "declined"
        assert calls == ["charge"]


async def test_a_backend_without_transactions() -> None:
    processor = make_processor()

    @processor.job
    async def run(ctx: DurableContext) -> None:
        with pytest.raises(NotSupported, match="transaction"):
            await ctx.transact(debit, 1)

    async with processor:
        assert (await finish(processor, await run.enqueue())).state is State.COMPLETED
