"""Completed jobs that keep their arguments."""

from __future__ import annotations

import msgspec
import pytest

from nimburion.core.errors import JobNotFound
from nimburion.core.job import Enqueued, State
from nimburion.core.maintenance import Retention
from nimburion.core.settlement import Completed, Settled
from nimburion.testing.contract.harness import Harness

BODIES = [
    b"",
    b"{}",
    b'{"text": "z\xc3\xbcrich \xe2\x9c\x93"}',
    b'{"pad": "' + 100_000 * b"x" + b'"}',
]
"""Payloads: no bytes, the least of JSON, other bytes than ASCII, a large one."""


async def complete(harness: Harness, job_id: str, *, keep: bool) -> None:
    """Let a worker complete the waiting job."""
    worker = await harness.worker()
    lease = (await worker.take_one()).lease
    assert lease.job_id == job_id
    completed = Completed(lease, b'"result"', keep_payload=keep)
    assert await worker.settle(completed) == [Settled.DONE]


class KeptArguments:
    """`Completed.keep_payload`."""

    @pytest.mark.parametrize("body", BODIES, ids=["empty", "least", "unicode", "large"])
    async def test_a_completed_job_keeps_its_payload_on_request(
        self, harness: Harness, body: bytes
    ) -> None:
        await harness.put(harness.job("a", payload=body))
        await complete(harness, "a", keep=True)
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.payload, record.result) == (
            State.COMPLETED,
            body,
            b'"result"',
        )
        assert (await harness.backend.reads.list_jobs(payloads=True)).jobs == [record]
        (listed,) = (await harness.backend.reads.list_jobs()).jobs
        assert listed == msgspec.structs.replace(record, payload=None)

    @pytest.mark.parametrize("body", BODIES, ids=["empty", "least", "unicode", "large"])
    async def test_without_it_the_payload_goes(self, harness: Harness, body: bytes) -> None:
        await harness.put(harness.job("a", payload=body))
        await complete(harness, "a", keep=False)
        assert (await harness.backend.reads.get_job("a")).payload is None

    async def test_one_exchange_keeps_some_and_drops_others(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        worker = await harness.worker()
        first, second, third = await worker.take(3)
        await worker.settle(
            Completed(first.lease, keep_payload=True),
            Completed(second.lease),
            Completed(third.lease, b"1", keep_payload=True),
        )
        kept = [(await harness.backend.reads.get_job(job_id)).payload for job_id in ("a", "b", "c")]
        assert kept == [b"{}", None, b"{}"]

    @pytest.mark.parametrize("keep", [True, False])
    async def test_an_id_stays_taken_by_its_body(self, harness: Harness, keep: bool) -> None:  # noqa: FBT001
        await harness.put(harness.job("a", payload=b'{"n": 1}'))
        await complete(harness, "a", keep=keep)
        same = await harness.enqueue(harness.job("a", payload=b'{"n": 1}'))
        assert same == [Enqueued("a", "exists")]
        other = await harness.enqueue(harness.job("a", payload=b'{"n": 2}'))
        assert other == [Enqueued("a", "conflict")]

    async def test_a_kept_payload_goes_with_its_record(self, harness: Harness) -> None:
        await harness.add("a", "b")
        await complete(harness, "a", keep=True)
        harness.clock.advance(10.0)
        await complete(harness, "b", keep=True)
        harness.clock.advance(5.0)
        await harness.backend.maintenance.prune(Retention(completed=10.0), 10)
        with pytest.raises(JobNotFound):
            await harness.backend.reads.get_job("a")
        assert (await harness.backend.reads.get_job("b")).payload == b"{}"

    async def test_a_kept_payload_outlives_the_result(self, harness: Harness) -> None:
        await harness.add("a")
        await complete(harness, "a", keep=True)
        harness.clock.advance(10.0)
        await harness.backend.maintenance.prune(Retention(results=5.0), 10)
        record = await harness.backend.reads.get_job("a")
        assert (record.payload, record.result) == (b"{}", None)

    async def test_a_repeated_exchange_keeps_the_payload_once(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        completed = Completed((await worker.take_one()).lease, keep_payload=True)
        for _ in range(2):
            reply = await harness.backend.consuming.exchange(
                worker.id, 2, [completed], worker.want(0)
            )
            assert reply.results == [Settled.DONE]
        assert (await harness.backend.reads.get_job("a")).payload == b"{}"
