"""The fixtures of the pytest plugin, as an application's tests use them."""

from __future__ import annotations

from nimburion.core.job import State
from nimburion.jobs import Job
from nimburion.testing import FakeClock, assert_enqueued
from nimburion.testing.contract import harness
from nimburion.testing.plugin import MakeProcessor

sent: list[str] = []


class Greet(Job, name="greet", max_retries=1, retry_backoff=60):
    to: str

    async def process(self, ctx: object) -> None:
        sent.append(self.to)


async def test_a_processor_lives_by_the_clock(
    nimburion_processor: MakeProcessor, nimburion_clock: FakeClock
) -> None:
    sent.clear()
    async with nimburion_processor(Greet, concurrency=3) as processor:
        assert processor.settings.concurrency == 3
        job_id = await processor.enqueue_after(Greet(to="ann"), 60)
        assert (await processor.process_one(), sent) == (False, [])
        nimburion_clock.advance(60)
        assert (await processor.process_one(), sent) == (True, ["ann"])
        assert (await processor.get_status(job_id)).state is State.COMPLETED


async def test_processors_of_one_test_share_their_backend(
    nimburion_processor: MakeProcessor,
) -> None:
    sent.clear()
    async with nimburion_processor() as client, nimburion_processor(Greet) as worker:
        await client.enqueue(Greet(to="bob"))
        await assert_enqueued(worker, Greet(to="bob"))
        assert (await worker.drain(), sent) == (1, ["bob"])


async def test_each_test_begins_with_an_empty_backend(nimburion_processor: MakeProcessor) -> None:
    async with nimburion_processor(Greet) as processor:
        assert await processor.pending_count() == 0
        await processor.enqueue(Greet(to="cy"))


def test_the_clock_stands_still(nimburion_clock: FakeClock) -> None:
    assert nimburion_clock.now() == nimburion_clock.now() == FakeClock().now()


def test_failed_cases_of_the_contract_show_their_values() -> None:
    """Their modules are rewritten by pytest, though they are no test modules of this project."""
    assert type(harness.__loader__).__name__ == "AssertionRewritingHook"
