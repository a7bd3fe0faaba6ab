"""The history of attempts: who ran them, when, and how they ended."""

from __future__ import annotations

import msgspec

from nimburion.core.job import AttemptInfo, State
from nimburion.core.queries import JobFilter
from nimburion.core.settlement import Cancelled, Completed, Failed, Released, Retried
from nimburion.core.text.fingerprints import LOST_FINGERPRINT
from nimburion.testing.contract.changing import replay
from nimburion.testing.contract.harness import FAILURE, Harness


class AttemptHistory:
    """`JobRecord.attempts`."""

    async def test_a_waiting_job_has_no_attempts(self, harness: Harness) -> None:
        await harness.add("a")
        assert (await harness.backend.reads.get_job("a")).attempts == []

    async def test_a_running_attempt_names_its_session_and_host(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        started = harness.clock.now()
        await worker.take_one()
        harness.clock.advance(2.0)
        record = await harness.backend.reads.get_job("a")
        assert record.attempts == [
            AttemptInfo(
                number=1,
                session=worker.id,
                host="here",
                started_at=started,
                ended_at=None,
                outcome="processing",
            )
        ]
        assert record.ended_by is None

    async def test_a_completed_attempt_names_its_session_and_host(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        started = harness.clock.now()
        harness.clock.advance(2.0)
        await worker.settle(Completed(lease))
        record = await harness.backend.reads.get_job("a")
        assert (record.ended_by, record.host) == (worker.id, "here")
        assert record.attempts == [
            AttemptInfo(
                number=1,
                session=worker.id,
                host="here",
                started_at=started,
                ended_at=started + 2.0,
                outcome="completed",
            )
        ]
        (listed,) = (await harness.backend.reads.list_jobs()).jobs
        assert listed.ended_by == worker.id

    async def test_a_completed_attempt_is_known_after_its_session_closed(
        self, harness: Harness
    ) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Completed((await worker.take_one()).lease))
        await worker.close()
        (attempt,) = (await harness.backend.reads.get_job("a")).attempts
        assert (attempt.session, attempt.host) == (worker.id, "here")

    async def test_every_failed_attempt_is_kept(self, harness: Harness) -> None:
        await harness.add("a")
        started = harness.clock.now()
        workers = [await harness.worker() for _ in range(3)]
        for number, worker in enumerate(workers, 1):
            lease = (await worker.take_one()).lease
            error = msgspec.structs.replace(
                FAILURE,
                attempt=number,
                session=worker.id,
                host=f"host-{number}",
                started_at=harness.clock.now(),
            )
            harness.clock.advance(1.0)
            if number < 3:
                await worker.settle(Retried(lease, 0.0, error))
            else:
                await worker.settle(Failed(lease, "exhausted", error))
        record = await harness.backend.reads.get_job("a")
        assert record.ended_by == workers[2].id
        assert record.attempts == [
            AttemptInfo(
                number=number,
                session=worker.id,
                host=f"host-{number}",
                started_at=started + number - 1,
                ended_at=started + number,
                outcome="failure",
            )
            for number, worker in enumerate(workers, 1)
        ]

    async def test_a_lost_attempt_names_its_session_and_host(self, harness: Harness) -> None:
        await harness.add("a")
        started = harness.clock.now()
        lost = await harness.worker()
        await lost.take_one()
        await harness.lose(lost)
        ended = harness.clock.now()
        worker = await harness.worker()
        await worker.settle(Completed((await worker.take_one()).lease))
        record = await harness.backend.reads.get_job("a")
        assert record.history[0].fingerprint == LOST_FINGERPRINT
        first, second = record.attempts
        assert first == AttemptInfo(
            number=1,
            session=lost.id,
            host="here",
            started_at=started,
            ended_at=ended,
            outcome="lost",
        )
        assert (second.number, second.session, second.outcome) == (2, worker.id, "completed")

    async def test_a_job_that_is_lost_for_good_names_the_lost_session(
        self, harness: Harness
    ) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.take_one()
        await harness.lose(worker, max_lost=1)
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.ended_by) == (State.FAILED, worker.id)
        assert [attempt.outcome for attempt in record.attempts] == ["lost"]

    async def test_a_cancelled_attempt_is_kept(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        worker = await harness.worker()
        first, second, third = await worker.take(3)
        await harness.backend.producing.cancel("b")
        await harness.backend.producing.cancel("c")
        await worker.settle(
            Cancelled(first.lease, "enough"),
            Released(second.lease),
            Retried(third.lease, 0.0, FAILURE),
        )
        for job_id in ("a", "b", "c"):
            record = await harness.backend.reads.get_job(job_id)
            assert (record.state, record.ended_by) == (State.CANCELLED, worker.id)
            assert record.attempts[-1].outcome == "cancelled"

    async def test_a_job_cancelled_while_it_waits_has_no_attempt(self, harness: Harness) -> None:
        await harness.add("a")
        await harness.backend.producing.cancel("a")
        record = await harness.backend.reads.get_job("a")
        assert (record.ended_by, record.attempts) == (None, [])

    async def test_a_released_job_has_no_attempt(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Released((await worker.take_one()).lease))
        record = await harness.backend.reads.get_job("a")
        assert (record.ended_by, record.attempts) == (None, [])

    async def test_a_replay_keeps_the_attempts_and_clears_the_end(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        error = msgspec.structs.replace(FAILURE, session=worker.id, host="here")
        await worker.settle(Failed((await worker.take_one()).lease, "permanent", error))
        await replay(harness.backend, JobFilter(ids=("a",)), 1)
        record = await harness.backend.reads.get_job("a")
        assert record.ended_by is None
        assert [attempt.outcome for attempt in record.attempts] == ["failure"]
        await worker.settle(Completed((await worker.take_one()).lease))
        outcomes = [
            attempt.outcome for attempt in (await harness.backend.reads.get_job("a")).attempts
        ]
        assert outcomes == ["failure", "completed"]
