"""Tags: names by which people find jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import DefinitionError, InvalidJob
from nimburion.core.job import NO_JOB_OPTIONS
from nimburion.core.queries import JobFilter
from nimburion.jobs import Context, Job, Processor, job
from nimburion.jobs.options.enqueue_options import MAX_TAGS
from nimburion.scheduler import Scheduler
from nimburion.testing import FakeClock


@job(tags=["media", "eu"])
async def resize(path: str) -> None: ...


@job
async def plain() -> None: ...


class Mail(Job, tags=("mail",)):
    async def process(self, ctx: Context) -> None: ...


class Newsletter(Mail):
    pass


@pytest.fixture
async def processor() -> AsyncIterator[Processor]:
    made = Processor("memory://")
    made.register(resize, plain, Mail)
    made.register("raw", lambda ctx, data: None, tags=["old"])
    async with made:
        yield made


async def read_tags(processor: Processor, job_id: str) -> tuple[str, ...]:
    return (await processor.get_status(job_id)).tags


async def test_a_job_has_the_tags_of_its_name_and_its_own(processor: Processor) -> None:
    job_id = await processor.enqueue(resize.job("a"), tags=["import-7", "eu"])
    assert await read_tags(processor, job_id) == ("media", "eu", "import-7")
    assert await read_tags(processor, await processor.enqueue(Newsletter())) == ("mail",)
    assert await read_tags(processor, await processor.enqueue_raw("raw", b"", tags=("new",))) == (
        "old",
        "new",
    )
    found = await processor.backend.reads.list_jobs(JobFilter(tag="media"))
    assert [record.id for record in found.jobs] == [job_id]


async def test_a_plain_job_is_stored_without_tags(processor: Processor) -> None:
    job_id = await processor.enqueue(plain.job())
    record = await processor.backend.reads.get_job(job_id)
    assert record.options is NO_JOB_OPTIONS
    assert await read_tags(processor, await processor.enqueue(plain.job(), tags=None)) == ()


async def test_each_job_of_a_call_has_its_tags(processor: Processor) -> None:
    ids = await processor.enqueue_many(
        [plain.job(), (resize.job("a"), {"tags": ["b"]})], tags=["a"]
    )
    assert [await read_tags(processor, job_id) for job_id in ids] == [("a",), ("media", "eu", "b")]


async def test_a_schedule_has_tags() -> None:
    clock = FakeClock()
    processor = Processor(MemoryBackend(clock=clock), clock=clock)
    processor.register(resize)
    scheduler = Scheduler(processor)
    scheduler.schedule(timedelta(minutes=1), resize.job("a"), name="often", tags=["nightly"])
    async with processor:
        await scheduler.fire_due()
        clock.advance(60)
        await scheduler.fire_due()
        (record,) = (await processor.backend.reads.list_jobs()).jobs
        assert record.options.tags == ("media", "eu", "nightly")


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ("media", r"tags must be a list of names, like \['media', 'eu'\], not 'media'"),
        ([5], "a tag must be"),
        (["two words"], "a tag must be"),
        ([f"t{n}" for n in range(MAX_TAGS + 1)], "21 tags, over the limit of 20"),
    ],
)
async def test_wrong_tags_are_refused(processor: Processor, tags: Any, message: str) -> None:
    with pytest.raises(InvalidJob, match=message):
        await processor.enqueue(plain.job(), tags=tags)
    with pytest.raises(DefinitionError, match=f"job 'wrong': {message}"):
        job(name="wrong", tags=tags)(lambda: None)
