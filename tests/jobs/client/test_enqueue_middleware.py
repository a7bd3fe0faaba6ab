"""What an enqueue middleware can set, and what jobs inherit from the job that enqueues them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from copy import copy
from datetime import UTC, datetime
from typing import Any

import pytest

from nimburion import Context, Limit, Processor, Unique, job
from nimburion.core.errors import InvalidJob
from nimburion.core.job import JobRecord
from nimburion.jobs.handling.middleware import Enqueueing, Next


@job(unique="number", limits=[Limit(1, key="tenant")])
async def count(number: int) -> None: ...


@job
async def plain(number: int) -> None: ...


@pytest.fixture
async def processor() -> AsyncIterator[Processor]:
    async with Processor("memory://") as one:
        one.register(count, plain)
        yield one


def set_in_middleware(processor: Processor, **options: Any) -> None:
    async def change(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> str:
        enqueueing.set(**options)
        return str(await call_next(enqueueing))

    processor.use_enqueue(change)


async def enqueue(processor: Processor, number: int = 1, **options: Any) -> JobRecord:
    job_id = await processor.enqueue(plain.job(number), **options)
    return await processor.backend.reads.get_job(job_id)


DAY = datetime(2099, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("option", "value", "stored"),
    [
        ("tenant", "acme", "acme"),
        ("correlation_id", "req-7", "req-7"),
        ("correlation_id", None, None),
        ("headers", {"a": "b"}, {"a": "b"}),
        ("max_retries", 7, 7),
        ("timeout", "5m", 300.0),
        ("expires", 60, 60.0),
        ("unique_key", "k", "k"),
    ],
)
async def test_a_middleware_sets_any_option(
    processor: Processor, option: str, value: object, stored: object
) -> None:
    set_in_middleware(processor, **{option: value})
    before: dict[str, Any] = {
        "correlation_id": "own",
        "tenant": "own",
        "headers": {"own": "1"},
        "timeout": 1,
    }
    record = await enqueue(processor, **before)
    assert getattr(record.options, option) == stored
    others = {name: one for name, one in before.items() if name != option}
    assert {name: getattr(record.options, name) for name in others} == others


async def test_a_middleware_sets_where_and_when_a_job_runs(processor: Processor) -> None:
    set_in_middleware(processor, id="mine", queue="slow", priority=9, at=DAY)
    record = await enqueue(processor, after=5)
    assert (record.id, record.queue, record.priority) == ("mine", "slow", 9)
    assert record.due == DAY.timestamp()
    kept = Processor("memory://")
    set_in_middleware(kept, queue=None, priority=None, tenant="acme")
    async with kept:
        record = await enqueue(kept, at=DAY, queue="q", priority=1)
    assert (record.queue, record.priority, record.due) == ("q", 1, DAY.timestamp())


async def test_a_middleware_says_how_long_a_key_is_held(processor: Processor) -> None:
    set_in_middleware(processor, unique=Unique(for_=60, on_duplicate="existing"))
    record = await enqueue(processor, unique_key="k")
    assert record.options.unique_mode == "existing, for 60 s"
    with pytest.raises(InvalidJob, match="unique needs a unique_key"):
        await processor.enqueue(plain.job(1))


@pytest.mark.parametrize(("given", "mode"), [("existing", "existing"), (None, "replace")])
async def test_a_middleware_changes_only_what_a_duplicate_does(
    processor: Processor, given: Any, mode: str
) -> None:
    set_in_middleware(processor, unique=Unique(on_duplicate=given))
    record = await enqueue(
        processor, unique_key="k", unique=Unique(for_=60, on_duplicate="replace")
    )
    assert (record.options.unique_key, record.options.unique_for) == ("k", 60)
    assert record.options.on_duplicate == mode


async def test_a_key_of_a_middleware_has_a_rule_of_its_own(processor: Processor) -> None:
    set_in_middleware(processor, unique_key="new", unique=Unique(on_duplicate="existing"))
    record = await enqueue(processor, unique_key="k", unique=Unique(for_=60))
    assert (record.options.unique_key, record.options.unique_for) == ("new", None)


@pytest.mark.parametrize(
    ("tags", "stored"),
    [(["new", "eu"], ("media", "eu", "own", "new")), ([], ("media", "eu", "own")), (None, ())],
)
async def test_tags_of_a_middleware_are_added(
    processor: Processor, tags: Any, stored: tuple[str, ...]
) -> None:
    @processor.job(tags=["media", "eu"])
    async def resize() -> None: ...

    set_in_middleware(processor, tags=tags)
    job_id = await processor.enqueue(resize.job(), tags=["own"])
    assert (await processor.get_status(job_id)).tags == stored


async def test_a_debounce_of_a_middleware_delays_the_job(processor: Processor) -> None:
    set_in_middleware(processor, unique_key="k", unique=Unique(debounce=60))
    first, second = await enqueue(processor, 1), await enqueue(processor, 2)
    assert first.id == second.id
    assert second.due - second.created_at == pytest.approx(60, abs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priority": 10}, "priority must be from 0 to 9"),
        ({"at": DAY, "after": 1}, "pass `at` or `after`, not both"),
        ({"timeout": -1}, "timeout must be more than 0"),
        ({"headers": {"a": 1}}, "headers must be a dict of str to str"),
        ({"headers": {"a": "b" * 70_000}}, "headers are 70001 bytes, over the limit"),
        ({"retries": 1}, "retries"),
        ({"connection": object()}, "a middleware cannot set `connection`"),
        ({"id": "not an id"}, "job id must be"),
    ],
)
async def test_what_a_middleware_sets_is_checked(
    processor: Processor, options: dict[str, Any], message: str
) -> None:
    set_in_middleware(processor, **options)
    with pytest.raises(InvalidJob, match=message):
        await processor.enqueue(plain.job(1))
    assert await processor.pending_count() == 0


async def test_a_tenant_that_a_middleware_sets_counts_for_limits(processor: Processor) -> None:
    set_in_middleware(processor, tenant="acme")
    typed = await processor.enqueue(count.job(1))
    raw = await processor.enqueue_raw("count", {"number": 2})
    for job_id in (typed, raw):
        record = await processor.backend.reads.get_job(job_id)
        assert record.options.limit_keys == {"count:tenant": "acme"}


@job(limits=[Limit(1, key="number")])
async def keyed(number: int) -> None: ...


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"payload": b'{"number":2}'}, {"keyed:number": "2"}),
        ({"payload": b"encrypted"}, {"keyed:number": "1"}),
        ({"name": "plain"}, {}),
        ({"name": "count"}, {"count:tenant": "acme"}),
    ],
)
async def test_limit_keys_follow_the_name_and_the_payload_of_a_middleware(
    processor: Processor, changes: dict[str, Any], keys: dict[str, str]
) -> None:
    async def change(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> str:
        for field, value in changes.items():
            setattr(enqueueing, field, value)
        return str(await call_next(enqueueing))

    processor.register(keyed)
    processor.use_enqueue(change)
    for job_id in (
        await processor.enqueue(keyed.job(1), tenant="acme"),
        await processor.enqueue_raw("keyed", {"number": 1}, tenant="acme"),
    ):
        record = await processor.backend.reads.get_job(job_id)
        assert record.options.limit_keys == keys


async def test_limit_keys_follow_a_copy_without_the_tenant(processor: Processor) -> None:
    async def change(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> str:
        changed = copy(enqueueing)
        changed.set(tenant=None)
        return str(await call_next(changed))

    processor.use_enqueue(change)
    job_id = await processor.enqueue(count.job(1), tenant="acme")
    record = await processor.backend.reads.get_job(job_id)
    assert record.options.limit_keys == {"count:tenant": ""}


@job(unique=True)
async def other(number: int) -> None: ...


@pytest.mark.parametrize(
    ("changes", "options", "key"),
    [
        ({"payload": b'{"number":2}'}, {}, "number=2"),
        ({"payload": b'{"number":2}'}, {"unique_key": "own"}, "own"),
        ({"payload": b"encrypted"}, {}, "number=1"),
        ({"payload": b'{"secret":"x"}'}, {}, "number=1"),
        ({"name": "other", "payload": b'{"number":3}'}, {}, "number=3"),
        ({"name": "plain", "payload": b'{"number":3}'}, {}, "number=1"),
    ],
)
@pytest.mark.parametrize(
    "declared", [Unique("number"), Unique(key=lambda made: f"number={made.number}")]
)
async def test_a_declared_unique_key_follows_the_payload_of_a_middleware(
    processor: Processor,
    declared: Unique,
    changes: dict[str, Any],
    options: dict[str, Any],
    key: str,
) -> None:
    @job(name="once", unique=declared)
    async def once(number: int) -> None: ...

    async def change(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> str:
        for field, value in changes.items():
            setattr(enqueueing, field, value)
        return str(await call_next(enqueueing))

    processor.register(once, other)
    processor.use_enqueue(change)
    job_id = await processor.enqueue(once.job(1), **options)
    assert (await processor.get_status(job_id)).unique_key == key


async def test_a_unique_key_that_a_middleware_sets_stays(processor: Processor) -> None:
    async def change(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> str:
        enqueueing.payload = b'{"number":2}'
        enqueueing.set(unique_key="set")
        return str(await call_next(enqueueing))

    processor.use_enqueue(change)
    job_id = await processor.enqueue(count.job(1))
    assert (await processor.get_status(job_id)).unique_key == "set"


async def run_chain(**settings: Any) -> dict[str, str]:
    """Return the headers of a job that a handler enqueued."""
    ids: list[str] = []
    processor = Processor("memory://", **settings)

    @processor.job
    async def first(ctx: Context) -> None:
        ids.append(await ctx.enqueue(plain.job(1), headers={"own": "2"}))

    processor.register(plain)
    async with processor:
        headers = {"lang": "it", "own": "1", "nimburion-schedule": "nightly"}
        await processor.enqueue(first.job(), headers=headers)
        await processor.drain()
        return (await processor.get_status(ids[0])).headers


async def test_headers_are_inherited_if_the_processor_says_so() -> None:
    assert await run_chain() == {"own": "2"}
    assert await run_chain(inherit_headers=True) == {"lang": "it", "own": "2"}
