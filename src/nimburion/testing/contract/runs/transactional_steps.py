"""Steps inside a caller's transaction: they commit or roll back with the writes of the step."""

from __future__ import annotations

import pytest

from nimburion.core.errors import LeaseLost
from nimburion.core.job import State
from nimburion.core.runs import CANCEL_SIGNAL, CLEANUP_STEP
from nimburion.core.settlement import Completed, Recorded, Retried, Settled
from nimburion.testing.contract.harness import FAILURE, Harness
from nimburion.testing.contract.runs.run_jobs import (
    RUN,
    read,
    read_signals,
    read_steps,
    record,
    send,
)
from nimburion.testing.contract.transactions import get_transactional, opened, processing


class TransactionalSteps:
    """`Transaction.settle` with `Recorded`."""

    async def test_a_step_is_stored_with_the_commit(self, harness: Harness) -> None:
        get_transactional(harness)
        _, worker, held = await processing(harness, RUN)
        await send(harness)
        (signal,) = (await read(harness)).signals
        transaction = await opened(harness)
        await transaction.enqueue(harness.job("effect"))
        await transaction.settle(worker, Recorded(held.lease, 1, b"x", signal.number))
        assert await read_steps(harness) == []
        await transaction.commit()
        assert await read_steps(harness) == [(1, b"x")]
        assert await read_signals(harness) == []
        assert await harness.state("effect") is State.PENDING
        assert await harness.state(RUN) is State.PROCESSING
        assert await worker.settle(Completed(held.lease)) == [Settled.DONE]

    async def test_a_rollback_leaves_no_step(self, harness: Harness) -> None:
        get_transactional(harness)
        _, worker, held = await processing(harness, RUN)
        transaction = await opened(harness)
        await transaction.settle(worker, Recorded(held.lease, 1, b"x"))
        await transaction.rollback()
        assert await read_steps(harness) == []
        await record(worker, held, 1, b"again")
        assert await read_steps(harness) == [(1, b"again")]

    async def test_a_rescued_worker_writes_no_step(self, harness: Harness) -> None:
        get_transactional(harness)
        _, worker, held = await processing(harness, RUN)
        await harness.lose(worker)
        transaction = await opened(harness)
        with pytest.raises(LeaseLost):
            await transaction.settle(worker, Recorded(held.lease, 1, b"x"))
        await transaction.rollback()
        assert await read_steps(harness) == []

    async def test_several_steps_in_transactions_of_their_own(self, harness: Harness) -> None:
        get_transactional(harness)
        _, worker, held = await processing(harness, RUN)
        for number in (1, 2):
            transaction = await opened(harness)
            await transaction.settle(worker, Recorded(held.lease, number, b"x"))
            await transaction.commit()
        assert await read_steps(harness) == [(1, b"x"), (2, b"x")]

    async def test_a_repeated_step_in_a_transaction_changes_nothing(self, harness: Harness) -> None:
        get_transactional(harness)
        _, worker, held = await processing(harness, RUN)
        await record(worker, held, 1, b"first")
        transaction = await opened(harness)
        await transaction.settle(worker, Recorded(held.lease, 1, b"second"))
        await transaction.commit()
        assert await read_steps(harness) == [(1, b"first")]

    async def test_a_step_resets_the_failures(self, harness: Harness) -> None:
        get_transactional(harness)
        _, worker, held = await processing(harness, RUN)
        await worker.exchange(Retried(held.lease, 0.0, FAILURE))
        held = await worker.take_one()
        transaction = await opened(harness)
        await transaction.settle(worker, Recorded(held.lease, 1, b"x"))
        await transaction.commit()
        assert (await harness.backend.reads.get_job(RUN)).failures == 0

    async def test_a_run_begins_anew_with_the_commit(self, harness: Harness) -> None:
        get_transactional(harness)
        _, worker, held = await processing(harness, RUN)
        for number in (CLEANUP_STEP, 1):
            await record(worker, held, number)
        transaction = await opened(harness)
        await transaction.settle(worker, Recorded(held.lease, 2, b"anew", forgets=True))
        await transaction.commit()
        assert await read_steps(harness) == [(2, b"anew")]

    async def test_an_older_token_of_the_worker_writes_no_step(self, harness: Harness) -> None:
        get_transactional(harness)
        _, worker, old = await processing(harness, RUN)
        await worker.exchange(Retried(old.lease, 0.0, FAILURE))
        await worker.take_one()
        transaction = await opened(harness)
        with pytest.raises(LeaseLost):
            await transaction.settle(worker, Recorded(old.lease, 1, b"x"))
        await transaction.rollback()
        assert await read_steps(harness) == []

    async def test_a_retry_leaves_a_run_waiting_that_needs_cleanup(self, harness: Harness) -> None:
        get_transactional(harness)
        _, worker, held = await processing(harness, RUN)
        await record(worker, held, CLEANUP_STEP)
        await harness.backend.producing.cancel(RUN)
        transaction = await opened(harness)
        await transaction.settle(worker, Retried(held.lease, 60.0, FAILURE))
        await transaction.commit()
        job = await harness.backend.reads.get_job(RUN)
        assert (job.state, job.failures, job.due) == (State.RETRYING, 1, held.due)
        assert await read_signals(harness) == [(CANCEL_SIGNAL, b"")]
