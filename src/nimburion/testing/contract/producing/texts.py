"""Unique keys, tenants and correlation ids: any text without control characters, of up to 512
characters."""

from __future__ import annotations

import pytest

from nimburion.core.errors import Unstorable
from nimburion.core.job import Enqueued, JobOptions, NewJob, State
from nimburion.core.queries import JobFilter
from nimburion.core.settlement import Completed, Failed, Settled
from nimburion.core.size_limits import MAX_TEXT, check_text
from nimburion.testing.contract.changing import delete, replay
from nimburion.testing.contract.harness import FAILURE, Harness

TEXTS = {
    "spaces": "  a  b ",
    "quotes": "';-- $1 %s {0} ?1 :name \\ \" ''",
    "separators": "a:b::c.d/e|f,g",
    "emoji": "🚂 e\u0301 ключ",
    "the longest": "🚂" * MAX_TEXT,
    "a JSON object": '{"tenant": "x", "unique_key": null}',
    "a JSON string": '"x"',
    "a number": "1.0",
    "null": "null",
    "a JSON escape": "\\u0000\\\\u0000\\ud800\\n\\",
    "a glob": "*?[!a-z]{b,c}",
    "SQL wildcards": "%_",
    "line separators": "a\u2028b\u2029\ufeff",
}
UNKNOWN = ["\ud800", "a\x00b", "", "x" * 10_000]
"""Texts that no job can have."""


def add_character(text: str) -> str:
    """Return another valid text that begins or ends like this one."""
    return text[:-1] if len(text) == MAX_TEXT else text + "%"


def make_job(job_id: str, key: str, **options: float) -> NewJob:
    """Return a job with this unique key."""
    return NewJob(job_id, "mail", "default", b"{}", options=JobOptions(unique_key=key, **options))  # type: ignore[arg-type]


async def list_ids(harness: Harness, which: JobFilter) -> list[str]:
    """Return the sorted ids of the jobs that match."""
    return sorted(job.id for job in (await harness.backend.reads.list_jobs(which)).jobs)


class Texts:
    """Unique keys, tenants and correlation ids."""

    async def test_any_text_may_be_a_unique_key(self, harness: Harness) -> None:
        worker = await harness.worker()
        for n, text in enumerate(TEXTS.values()):
            check_text("unique_key", text)
            await harness.put(make_job(f"a{n}", text))
            assert await harness.enqueue(make_job(f"b{n}", text)) == [Enqueued(f"a{n}", "taken")]
            other = make_job(f"other{n}", add_character(text))
            assert await harness.enqueue(other) == [Enqueued(f"other{n}", "created")]
            first, second = await worker.take(2)
            assert (first.options.unique_key, first.payload) == (text, b"{}")
            assert (second.options, second.payload) == (other.options, b"{}")
            assert await worker.settle(Completed(first.lease)) == [Settled.DONE]
            await harness.put(make_job(f"c{n}", text))
            await harness.backend.producing.cancel(f"c{n}")

    async def test_any_key_is_taken_again_at_a_replay(self, harness: Harness) -> None:
        worker = await harness.worker()
        for n, text in enumerate(TEXTS.values()):
            await harness.put(make_job(f"a{n}", text))
            await worker.settle(Failed((await worker.take_one()).lease, "permanent", FAILURE))
            await harness.put(make_job(f"b{n}", text))
            assert (await harness.backend.reads.explain_job(f"a{n}")).key_holder == f"b{n}"
            assert (await replay(harness.backend, JobFilter(ids=(f"a{n}",)), 10)).ids == []
            await harness.backend.producing.cancel(f"b{n}")
            assert (await replay(harness.backend, JobFilter(ids=(f"a{n}",)), 10)).ids == [f"a{n}"]
            assert await harness.enqueue(make_job(f"c{n}", text)) == [Enqueued(f"a{n}", "taken")]
            await harness.backend.producing.cancel(f"a{n}")

    async def test_any_key_may_be_held_for_a_time(self, harness: Harness) -> None:
        for n, text in enumerate(TEXTS.values()):
            await harness.put(make_job(f"a{n}", text, unique_for=60.0))
        harness.clock.advance(59.0)
        for n, text in enumerate(TEXTS.values()):
            assert await harness.enqueue(make_job(f"b{n}", text)) == [Enqueued(f"a{n}", "taken")]
        harness.clock.advance(1.0)
        for n, text in enumerate(TEXTS.values()):
            await harness.put(make_job(f"b{n}", text))

    async def test_many_odd_keys_in_one_call(self, harness: Harness) -> None:
        jobs = [make_job(f"{n}", text) for n, text in enumerate(TEXTS.values())]
        results = await harness.backend.producing.enqueue(jobs)
        assert {result.outcome for result in results} == {"created"}
        again = [make_job(f"again-{job.id}", job.options.unique_key or "") for job in jobs]
        results = await harness.backend.producing.enqueue(again)
        assert results == [Enqueued(job.id, "taken") for job in jobs]

    async def test_a_job_is_found_by_any_tenant_and_correlation_id(self, harness: Harness) -> None:
        for n, text in enumerate(TEXTS.values()):
            tenant, correlation = JobOptions(tenant=text), JobOptions(correlation_id=text)
            misleading = JobOptions(headers={"tenant": text, "correlation_id": text}, tenant="x")
            other = JobOptions(tenant=add_character(text))
            await harness.put(harness.job(f"a{n}", options=tenant))
            await harness.put(harness.job(f"b{n}", options=correlation))
            await harness.put(harness.job(f"c{n}", options=misleading))
            await harness.put(harness.job(f"d{n}", options=other))
            await harness.add(f"e{n}")
            assert await list_ids(harness, JobFilter(tenant=text)) == [f"a{n}"]
            assert await list_ids(harness, JobFilter(correlation_id=text)) == [f"b{n}"]
            assert await list_ids(harness, JobFilter(tenant=add_character(text))) == [f"d{n}"]
            assert (await harness.backend.reads.get_job(f"a{n}")).options == tenant
            assert (await harness.backend.reads.get_job(f"b{n}")).options == correlation

    @pytest.mark.parametrize("text", UNKNOWN, ids=["a lone surrogate", "a NUL", "empty", "long"])
    async def test_a_text_that_no_job_can_have_finds_no_job(
        self, harness: Harness, text: str
    ) -> None:
        await harness.put(harness.job("a", options=JobOptions(tenant="x", correlation_id="1")))
        await harness.add("b")
        assert await list_ids(harness, JobFilter(tenant=text)) == []
        assert await list_ids(harness, JobFilter(correlation_id=text)) == []
        assert (await harness.backend.reads.group_failures(JobFilter(tenant=text))).groups == []

    async def test_a_lone_surrogate_is_refused_or_kept(self, harness: Harness) -> None:
        """The client refuses it; a backend that cannot store it stores no job of the call."""
        for options in (
            JobOptions(unique_key="\ud800"),
            JobOptions(tenant="\ud800"),
            JobOptions(correlation_id="\ud800"),
        ):
            job = harness.job("odd", options=options)
            try:
                await harness.backend.producing.enqueue([harness.job("good"), job])
            except Unstorable:
                assert sum((await harness.backend.reads.count_jobs()).values()) == 0
                continue
            assert (await harness.backend.reads.get_job("odd")).options == options
            assert await harness.state("good") is State.PENDING
            await harness.backend.producing.cancel("odd")
            await harness.backend.producing.cancel("good")
            await delete(harness.backend, JobFilter(ids=("odd", "good")), 10)
