"""Uniqueness declared on a job: which jobs are equal, and what a second enqueue does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.settings import Settings
from nimburion.core.size_limits import MAX_TEXT
from nimburion.jobs import Job, Processor, job
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.errors import DefinitionError, DuplicateJob
from nimburion.testing import FakeClock


@job(unique=("user_id",), on_duplicate="existing")
async def sync_user(user_id: int, reason: str = "") -> None: ...


@job(unique=True)
async def export(year: int, *, draft: bool = False) -> None: ...


@job(unique="address", unique_for=60)
async def greet(address: str) -> None: ...


class Charge(Job, unique=("order",)):
    order: str
    amount: int

    async def process(self, ctx: object) -> None: ...


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def processor(clock: FakeClock) -> AsyncIterator[Processor]:
    made = Processor(MemoryBackend(clock=clock), clock=clock)
    made.register(sync_user, export, greet, Charge)
    async with made:
        yield made


async def test_jobs_with_the_same_values_are_equal(processor: Processor) -> None:
    first = await processor.enqueue(sync_user.job(5, "signup"))
    assert await processor.enqueue(sync_user.job(5, "login")) == first
    assert await processor.enqueue(sync_user.job(6)) != first
    assert (await processor.get_status(first)).unique_key == "user_id=5"


async def test_true_compares_all_arguments(processor: Processor) -> None:
    first = await processor.enqueue(export.job(2026))
    with pytest.raises(DuplicateJob):
        await processor.enqueue(export.job(2026, draft=False))
    await processor.enqueue(export.job(2026, draft=True))
    assert (await processor.get_status(first)).unique_key == "year=2026,draft=false"


async def test_the_key_is_free_again_when_the_job_is_finished(processor: Processor) -> None:
    await processor.enqueue(Charge(order="a", amount=1))
    with pytest.raises(DuplicateJob):
        await processor.enqueue(Charge(order="a", amount=2))
    await processor.drain()
    await processor.enqueue(Charge(order="a", amount=2))


async def test_the_key_is_held_for_a_time(processor: Processor, clock: FakeClock) -> None:
    await processor.enqueue(greet.job("ann@example.com"))
    await processor.drain()
    with pytest.raises(DuplicateJob):
        await processor.enqueue(greet.job("ann@example.com"))
    clock.advance(61)
    await processor.enqueue(greet.job("ann@example.com"))


async def test_a_call_takes_precedence(processor: Processor) -> None:
    first = await processor.enqueue(sync_user.job(5))
    assert await processor.enqueue(sync_user.job(5), unique_key="other") != first
    with pytest.raises(DuplicateJob):
        await processor.enqueue(sync_user.job(5), on_duplicate="reject")
    assert await processor.enqueue_or_get(sync_user.job(5)) == (first, False)


async def test_each_job_of_a_batch_has_its_own_key(processor: Processor) -> None:
    ids = await processor.enqueue_many([sync_user.job(number) for number in (1, 2, 1)])
    assert ids[0] == ids[2] != ids[1]


async def test_a_long_key_is_shortened_to_a_sum(processor: Processor) -> None:
    long, longer = "x" * MAX_TEXT, "x" * MAX_TEXT + "y"
    first = await processor.enqueue(greet.job(long))
    second = await processor.enqueue(greet.job(longer))
    keys = [(await processor.get_status(each)).unique_key or "" for each in (first, second)]
    assert keys[0] != keys[1]
    assert all(key.startswith("sha256:") for key in keys)
    control = await processor.enqueue(greet.job("\x80"))
    assert ((await processor.get_status(control)).unique_key or "").startswith("sha256:")


def test_a_field_that_does_not_exist_is_refused_at_registration() -> None:
    @job(unique=("user",))
    async def wrong(user_id: int) -> None: ...

    with pytest.raises(DefinitionError, match="unique names 'user', which is not an argument"):
        Registry(Settings()).add(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unique": 5}, "unique must be True or names of arguments"),
        ({"unique": ()}, "unique must be True or names of arguments"),
        ({"unique": ("a", 1)}, "unique must be True or names of arguments"),
        ({"unique_for": 5}, "need `unique`"),
        ({"on_duplicate": "existing"}, "need `unique`"),
        ({"unique": True, "on_duplicate": "replace"}, "must be 'reject' or 'existing'"),
        ({"unique": True, "unique_for": 0}, "unique_for must be more than 0"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        job(name="wrong", **options)(lambda a: None)


def test_a_raw_handler_has_no_arguments_to_compare() -> None:
    with pytest.raises(DefinitionError, match="unique_key when you enqueue"):
        Registry(Settings()).add_raw("raw", lambda ctx, data: None, unique=True)
