"""Boundary values: unusual bytes, long names, large payloads, extreme numbers, and data that
cannot be stored."""

from __future__ import annotations

import string

import pytest
from msgspec.structs import replace

from nimburion.core.errors import Unstorable
from nimburion.core.exchange import Lane
from nimburion.core.job import AttemptError, JobOptions, State
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    Released,
    Retried,
    Settled,
    Settlement,
    Suspended,
)
from nimburion.core.size_limits import SizeLimits
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness, ids

LIMITS = SizeLimits()
LONGEST = "n" * 128
EVERY_CHARACTER = string.ascii_letters + string.digits + "_.:-"

PAYLOADS = {
    "empty": b"",
    "an empty object": b"{}",
    "NUL bytes": b'{"a": "\x00", "b": "\x00\x00"}\x00',
    "unicode": '{"ключ": "значение 🚂 e\u0301"}'.encode(),
    "no UTF-8": bytes(range(256)),
    "quotes and dollars": b"';-- $1 %s {0} \\ \" '' :name ?1",
    "the largest": b'"' + b"x" * (LIMITS.payload - 2) + b'"',
}
UNUSUAL_TEXT = {
    "a lone surrogate": "\ud800",
    "a NUL": "before\x00after",
    "outside the basic plane": "🚂𝄞",
    "every line end": "a\rb\nc\r\nd\u2028e",
    "quotes": "';-- $1 %s \\ \" ''",
}


class Payloads:
    """Bytes come back as they went in."""

    @pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
    async def test_a_payload_comes_back_byte_for_byte(
        self, harness: Harness, payload: bytes
    ) -> None:
        """This holds for the worker, for readers and for dead letters."""
        await harness.put(harness.job("a", payload=payload))
        worker = await harness.worker()
        delivery = await worker.take_one()
        assert delivery.payload == payload
        await worker.settle(Failed(delivery.lease, "unreadable", FAILURE))
        assert (await harness.backend.reads.get_job("a")).payload == payload
        assert (await harness.backend.reads.list_jobs(payloads=True)).jobs[0].payload == payload

    @pytest.mark.parametrize(
        "result",
        [b"null", b'"\\u0000"', '"ß🚂"'.encode(), b'"' + b"r" * (LIMITS.result - 2) + b'"'],
    )
    async def test_a_result_comes_back_byte_for_byte(self, harness: Harness, result: bytes) -> None:
        await harness.add("a", "b", "c")
        worker = await harness.worker()
        one, two, three = [delivery.lease for delivery in await worker.take(3)]
        await worker.settle(Completed(one, b"1"), Completed(two, result), Completed(three))
        found = [(await harness.backend.reads.get_job(job_id)).result for job_id in ("a", "b", "c")]
        assert found == [b"1", result, None]

    async def test_the_longest_error_text_is_kept(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        error = AttemptError(1, "failure", "E" * 200, "m" * 1_000, "t" * LIMITS.error)
        await worker.settle(Retried((await worker.take_one()).lease, 0.0, error))
        (kept,) = (await harness.backend.reads.get_job("a")).history
        assert kept == replace(error, at=harness.clock.now())

    async def test_all_large_jobs_are_reserved_in_the_end(self, harness: Harness) -> None:
        """A backend may return fewer jobs than requested, but at least one, and lists the lanes
        that still have jobs."""
        large = b"x" * LIMITS.payload
        await harness.backend.producing.enqueue(
            [harness.job(f"{n}", payload=large) for n in range(20)]
        )
        worker = await harness.worker()
        taken: list[str] = []
        while len(taken) < 20:
            reply = await worker.exchange(want=worker.want(20))
            assert reply.deliveries
            taken += ids(reply.deliveries)
            assert bool(reply.waiting) is (len(taken) < 20)
        assert taken == [f"{n}" for n in range(20)]


class Names:
    """Names, ids and numbers at their bounds."""

    async def test_the_longest_names(self, harness: Harness) -> None:
        options = JobOptions(unique_key=LONGEST, tenant=LONGEST, correlation_id=LONGEST)
        job = harness.job(LONGEST, name=LONGEST, queue=LONGEST, options=options)
        await harness.put(job)
        worker = await harness.worker(names=(LONGEST,), queues=(LONGEST,), limits={LONGEST: 1})
        delivery = await worker.take_one()
        assert (delivery.lease.job_id, delivery.name, delivery.queue) == (LONGEST,) * 3
        assert delivery.options == options
        assert await worker.settle(Completed(delivery.lease)) == [Settled.DONE]

    async def test_every_character_that_a_name_may_have(self, harness: Harness) -> None:
        name = EVERY_CHARACTER
        await harness.put(
            harness.job(name, name=name, queue=name, options=JobOptions(unique_key=name))
        )
        worker = await harness.worker(names=(name,), queues=(name,))
        assert (await worker.take_one()).lease.job_id == name
        await harness.backend.maintenance.pause_queue(name, paused=True)
        assert [queue.name for queue in await harness.backend.reads.list_queues()] == [name]

    async def test_upper_and_lower_case_are_two(self, harness: Harness) -> None:
        await harness.put(
            harness.job("a", name="mail", queue="q", options=JobOptions(unique_key="k"))
        )
        await harness.put(
            harness.job("A", name="mail", queue="Q", options=JobOptions(unique_key="K"))
        )
        await harness.put(
            harness.job("b", name="Mail", queue="q", options=JobOptions(unique_key="k"))
        )
        worker = await harness.worker(names=("Mail",), queues=("q",))
        assert ids(await worker.take(5)) == ["b"]
        assert [queue.name for queue in await harness.backend.reads.list_queues()] == ["Q", "q"]

    async def test_a_queue_and_a_name_do_not_run_into_each_other(self, harness: Harness) -> None:
        """Names may contain the character with which a backend joins them."""
        await harness.put(harness.job("1", queue="a:b", name="c"))
        await harness.put(harness.job("2", queue="a", name="b:c"))
        await harness.put(harness.job("3", queue="a.b", name="c"))
        worker = await harness.worker()
        assert ids(await worker.take(5, lanes=(Lane("a", "b:c"),))) == ["2"]
        assert ids(await worker.take(5, lanes=(Lane("a:b", "c"),))) == ["1"]
        assert ids(await worker.take(5, lanes=(Lane("a.b", "c"),))) == ["3"]

    async def test_a_name_and_a_key_do_not_run_into_each_other(self, harness: Harness) -> None:
        await harness.put(harness.job(name="a:b", options=JobOptions(unique_key="c")))
        await harness.put(harness.job(name="a", options=JobOptions(unique_key="b:c")))
        await harness.put(harness.job(name="a.b", options=JobOptions(unique_key="c")))
        assert (await harness.backend.reads.count_jobs())[State.PENDING] == 3

    async def test_every_priority_is_kept(self, harness: Harness) -> None:
        worker = await harness.worker()
        for priority in (-127, -1, *range(10), 127):
            job_id = await harness.put(harness.job(priority=priority))
            assert (await harness.backend.reads.get_job(job_id)).priority == priority
            assert (await worker.take_one()).priority == priority

    async def test_epoch_zero_is_a_time(self, harness: Harness) -> None:
        await harness.put(harness.job("a", at=0.0))
        await harness.add("b")
        assert (await harness.backend.reads.get_job("a")).due == 0.0
        taken = await (await harness.worker()).take(5, ageing=60.0)
        assert [(delivery.lease.job_id, delivery.due) for delivery in taken] == [
            ("a", 0.0),
            ("b", harness.clock.now()),
        ]

    async def test_times_that_differ_by_a_microsecond_are_in_order(self, harness: Harness) -> None:
        now = harness.clock.now()
        await harness.put(harness.job("later", at=now - 0.000_010))
        await harness.put(harness.job("sooner", at=now - 0.000_012))
        assert ids(await (await harness.worker()).take(5)) == ["sooner", "later"]

    async def test_options_of_every_kind_of_value(self, harness: Harness) -> None:
        options = JobOptions(
            headers={"": "", "a b": "c\td", "ключ": "🚂", "q'\"": "\\"},
            max_retries=0,
            timeout=0.001,
            unique_key="k",
            unique_for=0.5,
        )
        await harness.put(harness.job("a", options=options))
        assert (await harness.backend.reads.get_job("a")).options == options
        assert (await (await harness.worker()).take_one()).options == options


class Sizes:
    """Large calls."""

    async def test_ten_thousand_jobs_in_one_call(self, harness: Harness) -> None:
        jobs = [harness.job(f"{n}", name=("mail", "post")[n % 2]) for n in range(LIMITS.batch)]
        results = await harness.backend.producing.enqueue(jobs)
        assert [result.id for result in results] == [job.id for job in jobs]
        assert {result.outcome for result in results} == {"created"}
        counts = await harness.backend.reads.count_jobs(budget=None)
        assert counts[State.PENDING] == LIMITS.batch
        assert {result.outcome for result in await harness.backend.producing.enqueue(jobs)} == {
            "exists"
        }

    async def test_one_bad_job_among_ten_thousand_refuses_them_all(self, harness: Harness) -> None:
        """A call is stored as a whole or not at all; with `atomic_batch`, this holds for each batch
        of that size."""
        count = harness.backend.capabilities.atomic_batch or LIMITS.batch
        await harness.add("bad")
        jobs = [harness.job(f"{n}") for n in range(count - 1)]
        results = await harness.backend.producing.enqueue(
            [*jobs, harness.job("bad", payload=b"[]")]
        )
        assert {result.outcome for result in results[:-1]} == {"refused"}
        assert results[-1].outcome == "conflict"
        assert sum((await harness.backend.reads.count_jobs()).values()) == 1

    async def test_two_hundred_lanes_in_one_request(self, harness: Harness) -> None:
        names = tuple(f"name-{n}" for n in range(40))
        queues = tuple(f"queue-{n}" for n in range(5))
        jobs = [harness.job(name=name, queue=queue) for name in names for queue in queues]
        await harness.backend.producing.enqueue(jobs)
        worker = await harness.worker(names=names, queues=queues)
        assert ids(await worker.take(500)) == [job.id for job in jobs]

    async def test_five_hundred_jobs_in_one_reply(self, harness: Harness) -> None:
        jobs = [harness.job() for _ in range(700)]
        await harness.backend.producing.enqueue(jobs)
        worker = await harness.worker()
        assert ids(await worker.take(500)) == [job.id for job in jobs[:500]]
        assert len(await worker.take(500)) == 200

    async def test_ten_thousand_jobs_in_one_reply(self, harness: Harness) -> None:
        jobs = [harness.job() for _ in range(10_000)]
        await harness.backend.producing.enqueue(jobs)
        worker = await harness.worker()
        for settlement in (Released, Completed):
            taken = await worker.take(10_000)
            assert ids(taken) == [job.id for job in jobs]
            done = await worker.settle(*(settlement(delivery.lease) for delivery in taken))
            assert done == [Settled.DONE] * len(jobs)

    async def test_a_long_history_is_kept_whole(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        reply = await worker.exchange(want=worker.want(1))
        for n in range(1, 101):
            error = AttemptError(n, "failure", "ValueError", f"try {n}")
            reply = await worker.exchange(
                Retried(reply.deliveries[0].lease, 0.0, error), want=worker.want(1)
            )
        record = await harness.backend.reads.get_job("a")
        assert [error.message for error in record.history] == [f"try {n}" for n in range(1, 101)]


class Unstorables:
    """What cannot be stored is refused whole; what is accepted comes back as it was."""

    @pytest.mark.parametrize("text", UNUSUAL_TEXT.values(), ids=UNUSUAL_TEXT.keys())
    @pytest.mark.parametrize("where", ["message", "traceback", "reason", "progress", "cancelled"])
    async def test_text_is_kept_or_refused(self, harness: Harness, where: str, text: str) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        good, odd = [delivery.lease for delivery in await worker.take(2)]
        settlements: dict[str, Settlement] = {
            "message": Retried(odd, 0.0, replace(FAILURE, message=text)),
            "traceback": Failed(odd, "permanent", replace(FAILURE, traceback=text)),
            "reason": Failed(odd, text, FAILURE),
            "progress": Progressed(odd, 0.5, text),
            "cancelled": Cancelled(odd, text),
        }
        if await self._refused(harness, worker, Completed(good), settlements[where]):
            return
        record = await harness.backend.reads.get_job("b")
        errors = [(error.message, error.traceback) for error in record.history]
        stored = {
            "message": errors == [(text, FAILURE.traceback)],
            "traceback": errors == [(FAILURE.message, text)],
            "reason": record.reason == text,
            "progress": record.progress is not None and record.progress.message == text,
            "cancelled": record.reason == text,
        }
        assert stored[where]

    @pytest.mark.parametrize("delay", [float("inf"), float("nan"), 1e300], ids=repr)
    @pytest.mark.parametrize("how", ["retried", "snoozed", "suspended"])
    async def test_a_delay_that_is_no_time_is_refused(
        self, harness: Harness, how: str, delay: float
    ) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        good, odd = [delivery.lease for delivery in await worker.take(2)]
        settlements: dict[str, Settlement] = {
            "retried": Retried(odd, delay, FAILURE),
            "snoozed": Released(odd, delay),
            "suspended": Suspended(odd, (), delay),
        }
        assert await self._refused(harness, worker, Completed(good), settlements[how])

    async def _refused(
        self, harness: Harness, worker: HandDrivenWorker, *batch: Settlement
    ) -> bool:
        """Return whether the backend rejects the call. A rejected call applies nothing and does
        not use its exchange number."""
        before = (await harness.backend.reads.list_jobs(payloads=True)).jobs
        number = worker.number + 1
        try:
            reply = await harness.backend.consuming.exchange(
                worker.id, number, batch, worker.want(0)
            )
        except Unstorable:
            assert (await harness.backend.reads.list_jobs(payloads=True)).jobs == before
            assert await worker.settle(batch[0]) == [Settled.DONE]
            return True
        assert reply.results == [Settled.DONE] * len(batch)
        return False

    @pytest.mark.parametrize("text", UNUSUAL_TEXT.values(), ids=UNUSUAL_TEXT.keys())
    async def test_a_job_is_kept_or_refused(self, harness: Harness, text: str) -> None:
        job = harness.job("odd", options=JobOptions(headers={"a": text}))
        try:
            await harness.backend.producing.enqueue([harness.job("good"), job])
        except Unstorable:
            assert sum((await harness.backend.reads.count_jobs()).values()) == 0
            return
        assert (await harness.backend.reads.get_job("odd")).options == job.options
        assert await harness.state("good") is State.PENDING

    @pytest.mark.parametrize("at", [float("inf"), float("nan"), 1e300], ids=repr)
    async def test_a_due_time_that_is_no_time_is_refused(self, harness: Harness, at: float) -> None:
        for job in (harness.job("odd", at=at), harness.job("odd", after=at)):
            with pytest.raises(Unstorable):
                await harness.backend.producing.enqueue([harness.job("good"), job])
            assert sum((await harness.backend.reads.count_jobs()).values()) == 0
