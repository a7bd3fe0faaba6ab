"""Steps: stored once under a valid lease, kept with the record, and read in pages."""

from __future__ import annotations

import pytest

from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import InvalidJob, JobNotFound
from nimburion.core.maintenance import Retention
from nimburion.core.runs import CLEANUP_STEP, RUN_PAGE_BYTES
from nimburion.core.settlement import Completed, Failed, Recorded, Retried, Settled
from nimburion.testing.contract.harness import FAILURE, Harness
from nimburion.testing.contract.runs.run_jobs import (
    RUN,
    read,
    read_signals,
    read_steps,
    record,
    send,
    start,
)


class Recording:
    """A run stores its steps while it keeps its lease."""

    async def test_a_step_is_stored_and_the_lease_stays(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, 1, b'{"a":1}')
        (step,) = (await read(harness)).steps
        assert (step.number, step.body, step.at) == (1, b'{"a":1}', harness.clock.now())
        reply = await worker.exchange(Completed(held.lease))
        assert reply.results == [Settled.DONE]

    async def test_many_steps_of_several_runs_in_one_exchange(self, harness: Harness) -> None:
        worker = await harness.worker()
        await harness.add(RUN, "other")
        held = await worker.take(2)
        steps = [Recorded(one.lease, number, b"x") for number in (2, 1, 3) for one in held]
        assert (await worker.exchange(*steps)).results == [Settled.DONE] * 6
        assert await read_steps(harness) == [(1, b"x"), (2, b"x"), (3, b"x")]
        assert len((await harness.backend.reads.read_run("other")).steps) == 3

    async def test_a_step_and_the_end_of_its_run_in_one_exchange(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        reply = await worker.exchange(Recorded(held.lease, 1, b"x"), Completed(held.lease))
        assert reply.results == [Settled.DONE, Settled.DONE]
        assert await read_steps(harness) == [(1, b"x")]

    async def test_a_number_is_stored_once(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, 1, b"first")
        await record(worker, held, 1, b"second")
        assert await read_steps(harness) == [(1, b"first")]

    async def test_a_stale_token_writes_nothing(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await harness.lose(worker)
        other = await harness.worker()
        await other.take_one()
        reply = await other.exchange(Recorded(held.lease, 1, b"x"))
        assert reply.results == [Settled.STALE]
        assert await read_steps(harness) == []

    async def test_after_its_end_a_run_writes_nothing(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        reply = await worker.exchange(Completed(held.lease), Recorded(held.lease, 1, b"x"))
        assert reply.results == [Settled.DONE, Settled.ALREADY]
        assert await read_steps(harness) == []

    async def test_a_repeat_of_the_exchange_writes_nothing_more(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        steps = [Recorded(held.lease, 1, b"x"), Recorded(held.lease, 2, b"y")]
        first = await worker.exchange(*steps)
        again = await worker.repeat(*steps)
        assert first.results == again.results
        assert await read_steps(harness) == [(1, b"x"), (2, b"y")]

    async def test_the_next_attempt_finds_the_steps(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, 1, b"x")
        await worker.exchange(Retried(held.lease, 0.0, FAILURE))
        held = await worker.take_one()
        await record(worker, held, 2, b"y")
        assert await read_steps(harness) == [(1, b"x"), (2, b"y")]

    async def test_a_new_step_resets_failures_and_losses(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await worker.exchange(Retried(held.lease, 0.0, FAILURE))
        await worker.take_one()
        await harness.lose(worker)
        worker = await harness.worker()
        held = await worker.take_one()
        assert (held.failures, held.lost) == (1, 1)
        await record(worker, held, CLEANUP_STEP)
        await worker.exchange(Retried(held.lease, 0.0, FAILURE))
        held = await worker.take_one()
        assert (held.failures, held.lost) == (2, 1)
        await record(worker, held, 1)
        await worker.exchange(Retried(held.lease, 0.0, FAILURE))
        held = await worker.take_one()
        assert (held.failures, held.lost) == (1, 0)

    async def test_a_repeated_step_resets_nothing(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, 1)
        await worker.exchange(Retried(held.lease, 0.0, FAILURE))
        held = await worker.take_one()
        await record(worker, held, 1)
        await worker.exchange(Retried(held.lease, 0.0, FAILURE))
        assert (await worker.take_one()).failures == 2

    async def test_a_step_takes_a_signal(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await send(harness, payload=b"a")
        await send(harness, payload=b"b", key="s2")
        (first, _) = (await read(harness)).signals
        await record(worker, held, 1, takes=first.number)
        assert await read_signals(harness) == [("paid", b"b")]

    async def test_a_repeated_number_takes_no_signal(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, 1)
        await send(harness)
        (signal,) = (await read(harness)).signals
        await record(worker, held, 1, takes=signal.number)
        assert await read_signals(harness) == [("paid", b"1")]

    async def test_a_run_begins_anew(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        for number in (CLEANUP_STEP, 1, 2):
            await record(worker, held, number)
        await record(worker, held, 3, b"anew", forgets=True)
        assert await read_steps(harness) == [(3, b"anew")]

    async def test_a_body_of_any_bytes(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        body = bytes(range(256)) * 1_024
        await record(worker, held, 1, body)
        await record(worker, held, 2, b"")
        assert await read_steps(harness) == [(1, body), (2, b"")]


class KeepingSteps:
    """Steps and signals live as long as the record of their job."""

    async def test_a_finished_run_keeps_its_steps(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, 1)
        await worker.exchange(Completed(held.lease))
        assert await read_steps(harness) == [(1, b"1")]

    async def test_a_dead_letter_keeps_its_steps_for_a_replay(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, 1)
        await worker.exchange(Failed(held.lease, "permanent", FAILURE))
        await harness.backend.maintenance.change_jobs(BulkAction.REPLAY, [RUN])
        await worker.take_one()
        assert await read_steps(harness) == [(1, b"1")]

    @pytest.mark.parametrize("is_dead", [False, True])
    async def test_a_deleted_job_leaves_nothing(self, harness: Harness, *, is_dead: bool) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, 1)
        await send(harness)
        end = Failed(held.lease, "permanent", FAILURE) if is_dead else Completed(held.lease)
        await worker.exchange(end)
        await harness.backend.maintenance.change_jobs(BulkAction.DELETE, [RUN])
        with pytest.raises(JobNotFound):
            await read(harness)
        await start(harness, worker)
        page = await read(harness)
        assert (page.steps, page.signals) == ([], [])
        assert await send(harness) == "stored"

    async def test_a_pruned_job_leaves_nothing(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, 1)
        await send(harness)
        await worker.exchange(Completed(held.lease))
        harness.clock.advance(3 * 86_400.0)
        while await harness.backend.maintenance.prune(Retention(completed=60.0), 100):
            pass
        worker = await harness.worker()
        await start(harness, worker)
        page = await read(harness)
        assert (page.steps, page.signals) == ([], [])


class ReadingRuns:
    """Steps and unread signals are read in pages."""

    async def test_a_job_without_steps(self, harness: Harness) -> None:
        await harness.add(RUN)
        page = await read(harness)
        assert (page.steps, page.signals) == ([], [])

    async def test_an_unknown_job(self, harness: Harness) -> None:
        with pytest.raises(JobNotFound):
            await read(harness)

    @pytest.mark.parametrize(("limit", "expected"), [(1, [1] * 8), (3, [3, 3, 2])])
    async def test_a_page_begins_where_the_last_one_ended(
        self, harness: Harness, limit: int, expected: list[int]
    ) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await worker.exchange(*(Recorded(held.lease, number, b"x") for number in range(5)))
        for number in range(3):
            await send(harness, f"n{number}", key=f"s{number}")
        steps, names, sizes, after = [], [], [], None
        while True:
            page = await harness.backend.reads.read_run(RUN, limit=limit, after=after)
            steps += [step.number for step in page.steps]
            names += [signal.name for signal in page.signals]
            sizes.append(len(page.steps) + len(page.signals))
            after = page.next
            if after is None:
                break
        assert (steps, names) == ([0, 1, 2, 3, 4], ["n0", "n1", "n2"])
        assert sizes == expected

    async def test_a_page_is_bounded_in_bytes(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        body = bytes(RUN_PAGE_BYTES // 2 + 1)
        for number in (1, 2):
            await record(worker, held, number, body)
        page = await harness.backend.reads.read_run(RUN)
        assert [step.number for step in page.steps] == [1]
        page = await harness.backend.reads.read_run(RUN, after=page.next)
        assert ([step.number for step in page.steps], page.next) == ([2], None)

    @pytest.mark.parametrize("cursor", ["", "x", "1", "1:", ":1", "1:x", "--1:1", "²:1"])
    async def test_another_cursor(self, harness: Harness, cursor: str) -> None:
        await harness.add(RUN)
        with pytest.raises(InvalidJob, match="page of a run"):
            await harness.backend.reads.read_run(RUN, after=cursor)
