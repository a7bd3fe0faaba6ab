"""`@processor.job`: a function that is declared, registered and enqueued under one name."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import pytest

from nimburion.core.errors import DefinitionError, DuplicateJob, InvalidJob, UseAwait
from nimburion.core.job import State
from nimburion.core.maintenance import Cancellation
from nimburion.jobs import Context, Job, Processor, Unique, job
from nimburion.jobs.handling.middleware import Enqueueing, Next
from nimburion.testing import FakeClock


class SendEmail(Job):
    to: str

    async def process(self, ctx: Context) -> None: ...


class Postpone(Job):
    delay: int
    """A field may have the name of a method of other job systems."""

    async def process(self, ctx: Context) -> None: ...


@job
async def count(number: int) -> int:
    return number + 1


@pytest.fixture
async def processor() -> AsyncIterator[Processor]:
    made = Processor("memory://")
    async with made:
        yield made


async def test_a_registered_job_is_enqueued_by_itself(processor: Processor) -> None:
    @processor.job(queue="images", priority=2)
    async def thumbnail(path: str, width: int = 200) -> str:
        return f"{path} {width}"

    job_id = await thumbnail.enqueue("cat.png", width=100)
    status = await processor.get_status(job_id)
    assert (status.name, status.queue, status.priority) == ("thumbnail", "images", 2)
    assert await processor.process_one()
    assert await processor.wait(job_id) == "cat.png 100"


async def test_without_options_the_name_is_that_of_the_function(processor: Processor) -> None:
    @processor.job
    def shrink(ctx: Context, path: str) -> str:
        return path

    job_id = await shrink.enqueue("a")
    assert (await processor.get_status(job_id)).name == "shrink"
    assert processor.registry.names == ("shrink",)


async def test_options_apply_to_one_enqueue(processor: Processor) -> None:
    @processor.job
    async def thumbnail(path: str) -> None: ...

    urgent = thumbnail.options(priority=9, queue="urgent", tenant="acme", id="thumb-1")
    status = await processor.get_status(await urgent.enqueue("a"))
    assert (status.id, status.priority, status.queue) == ("thumb-1", 9, "urgent")
    assert status.tenant == "acme"
    plain = await processor.get_status(await thumbnail.enqueue("b"))
    assert (plain.priority, plain.queue, plain.tenant) == (5, "default", None)
    again = await processor.get_status(await urgent.enqueue("a"))
    assert again.id == "thumb-1"  # the options still hold their id


async def test_it_is_enqueued_from_code_that_is_not_async(processor: Processor) -> None:
    @processor.job
    async def thumbnail(path: str) -> None: ...

    first = await asyncio.to_thread(thumbnail.enqueue_sync, "a")
    second = await asyncio.to_thread(thumbnail.options(priority=8).enqueue_sync, "b")
    assert (await processor.get_status(first)).args == {"path": "a"}
    assert (await processor.get_status(second)).priority == 8


async def test_the_function_is_still_called_directly(processor: Processor) -> None:
    @processor.job
    def double(number: int) -> int:
        return 2 * number

    assert double(4) == 8


async def test_two_functions_of_one_name_are_refused(processor: Processor) -> None:
    processor.register(count)
    with pytest.raises(DefinitionError, match="the name 'count' is taken"):

        @processor.job(name="count")
        async def other(number: int) -> int:
            return number


async def test_a_job_class_is_registered_instead(processor: Processor) -> None:
    with pytest.raises(DefinitionError, match=r"write `processor\.register\(SendEmail\)`"):
        processor.job(SendEmail)


async def test_a_wrong_option_is_named(processor: Processor) -> None:
    @processor.job
    async def thumbnail(path: str) -> None: ...

    wrong: dict[str, Any] = {"priorty": 1}
    with pytest.raises(InvalidJob, match="priority"):
        await thumbnail.options(**wrong).enqueue("a")


@pytest.mark.parametrize("name", ["delay", "apply_async", "send", "perform_async", "enqueue"])
def test_methods_of_other_job_systems_say_what_to_write(name: str) -> None:
    with pytest.raises(AttributeError, match=r"await processor\.enqueue\(count\.job\("):
        getattr(count, name)
    with pytest.raises(AttributeError, match=r"await processor\.enqueue\(SendEmail\("):
        getattr(SendEmail(to="a"), name)
    with pytest.raises(AttributeError, match=r"await processor\.enqueue\(SendEmail\("):
        getattr(SendEmail, name)


@pytest.mark.parametrize("name", ["perform_in", "perform_at"])
def test_methods_for_later_name_the_delay(processor: Processor, name: str) -> None:
    for declared, written in (
        (count, r"await processor\.enqueue\(count\.job\(…\), after=…\)"),
        (processor.job(queue="images")(shrink), r"await shrink\.options\(after=…\)\.enqueue\("),
        (SendEmail, r"await processor\.enqueue\(SendEmail\(…\), after=…\)"),
    ):
        with pytest.raises(AttributeError, match=written):
            getattr(declared, name)


@pytest.mark.parametrize("name", ["kiq", "delay", "perform_async", "send"])
def test_a_registered_job_answers_methods_of_other_systems(processor: Processor, name: str) -> None:
    registered = processor.job(queue="images")(shrink)
    with pytest.raises(AttributeError, match=r"write `await shrink\.enqueue\(…\)`"):
        getattr(registered, name)


async def test_a_registered_job_says_how_it_is_enqueued(processor: Processor) -> None:
    registered: Any = processor.job(queue="images")(shrink)
    with pytest.raises(
        AttributeError, match=r"write `await shrink\.enqueue\(…\)`, or `shrink\.enq"
    ):
        registered.delay("a")


@pytest.mark.parametrize(
    ("method", "registered_text", "plain_text"),
    [
        (
            "apply_async",
            "write `await shrink.options(after=…).enqueue(…)`",
            "write `await processor.enqueue(count.job(…), after=…)`",
        ),
        ("s", "`shrink.job(…)` is a job to enqueue later", "`count.job(…)` is a job to enqueue"),
    ],
)
async def test_a_method_of_another_system_names_the_form_with_the_same_use(
    processor: Processor, method: str, registered_text: str, plain_text: str
) -> None:
    for function, text in ((processor.job(shrink), registered_text), (count, plain_text)):
        with pytest.raises(AttributeError, match=re.escape(text)):
            getattr(function, method)(1)


async def test_an_unknown_option_is_refused_before_the_job_is_enqueued(
    processor: Processor,
) -> None:
    registered: Any = processor.job(shrink)
    with pytest.raises(InvalidJob, match=r"no option 'countdown'; write `after=…`"):
        registered.options(id="a", countdown=3)
    assert registered.options(id="a", connection=None)


def shrink(path: str, width: int = 1) -> None: ...


async def test_a_wrong_argument_is_named(processor: Processor) -> None:
    registered: Any = processor.job(shrink)
    with pytest.raises(TypeError, match=r"'shrink': missing required argument 'path'$"):
        await registered.enqueue()
    with pytest.raises(TypeError, match=r"'widht'; did you mean 'width'\?"):
        await registered.enqueue("a", widht=1)
    with pytest.raises(TypeError, match=r"write `await shrink\.options\(priority=…\)\.enqueue"):
        await registered.enqueue("a", priority=7)
    with pytest.raises(TypeError, match=r"write `await processor\.enqueue\(count\.job\(…\), queue"):
        count.job(1, queue="a")  # type: ignore[call-arg]


async def test_arguments_beside_the_job_are_no_options(processor: Processor) -> None:
    function: Any = count
    arguments: dict[str, Any] = {"number": 1}
    with pytest.raises(InvalidJob, match=r"is not a job: pass count\.job\("):
        await processor.enqueue(function, **arguments)


@pytest.mark.parametrize(
    ("name", "own"), [("countdown", "after"), ("eta", "at"), ("task_id", "id")]
)
async def test_options_of_other_job_systems_say_what_to_write(
    processor: Processor, name: str, own: str
) -> None:
    foreign: dict[str, Any] = {name: 1}
    with pytest.raises(InvalidJob, match=f"no option '{name}'; write `{own}=…`"):
        await processor.enqueue(count.job(1), **foreign)


def test_other_missing_attributes_are_missing() -> None:
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        getattr(count, "colour")  # noqa: B009
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        getattr(SendEmail(to="a"), "colour")  # noqa: B009
    assert Postpone(delay=3).delay == 3


async def test_a_coroutine_is_not_a_job(processor: Processor) -> None:
    called: Any = count(1)
    with pytest.raises(InvalidJob, match=r"the function was called; pass count\.job\("):
        await processor.enqueue(called)


async def test_a_missing_await_is_named(processor: Processor) -> None:
    missing: Any = processor.enqueue(count.job(1))
    with pytest.raises(InvalidJob, match="job id is a coroutine: an `await` is missing"):
        await processor.get_status(missing)


async def test_a_status_has_arguments_and_a_json_form() -> None:
    clock = FakeClock()
    async with Processor("memory://", clock=clock) as processor:
        processor.register(count)
        job_id = await processor.enqueue(count.job(4), headers={"source": "form"})
        status = await processor.get_status(job_id)
        assert status.args == {"number": 4}
        raw = await processor.enqueue_raw("unknown", b"\xff")
        assert (await processor.get_status(raw)).args is None
        await processor.cancel(raw)
        await processor.drain()
        plain = (await processor.get_status(job_id)).to_dict()
        assert plain["state"] == State.COMPLETED
        assert plain["result"] == 5
        assert plain["headers"] == {"source": "form"}
        assert plain["created_at"].endswith("Z")
        assert "payload" not in plain
        assert processor.health().to_dict()["state"] == "open"


async def test_a_path_is_an_argument_and_a_result(processor: Processor) -> None:
    @processor.job
    def thumbnail(source: Path, *, target: PurePosixPath | None = None) -> Path:
        assert type(source) is type(Path())
        return source.with_suffix(".png")

    job_id = await thumbnail.enqueue(Path("a/b.jpg"), target=PurePosixPath("c"))
    assert (await processor.get_status(job_id)).args == {"source": "a/b.jpg", "target": "c"}
    await processor.drain()
    assert await processor.wait(job_id) == Path("a/b.png")
    assert (await processor.get_status(job_id)).to_dict()["result"] == "a/b.png"
    wrong: Any = 5
    with pytest.raises(InvalidJob, match="expected a path as `str`, got `int`"):
        await thumbnail.enqueue(wrong)


async def test_enqueue_can_say_whether_it_created_the_job(processor: Processor) -> None:
    first = await processor.enqueue_or_get(count.job(1), unique_key="one")
    again = await processor.enqueue_or_get(count.job(2), unique_key="one")
    assert first.created
    assert again == (first.id, "existing")
    same_id = await processor.enqueue_or_get(count.job(3), id="c-3")
    assert (same_id.id, same_id.created) == ("c-3", True)
    assert not (await processor.enqueue_or_get(count.job(3), id="c-3")).created
    with pytest.raises(DuplicateJob):
        await processor.enqueue_or_get(
            count.job(2), unique_key="one", unique=Unique(on_duplicate="reject")
        )


async def test_enqueue_or_get_refuses_a_wrong_option_as_enqueue_does(processor: Processor) -> None:
    with pytest.raises(InvalidJob, match="unique"):
        await processor.enqueue_or_get(count.job(1), unique="x")  # type: ignore[arg-type]


async def test_enqueue_middleware_may_skip_an_enqueue_or_get(processor: Processor) -> None:
    async def skip(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> Any:
        return "skipped" if enqueueing.options.tenant == "none" else await call_next(enqueueing)

    processor.use_enqueue(skip)
    assert (await processor.enqueue_or_get(count.job(1))).created
    skipped = await processor.enqueue_or_get(count.job(1), tenant="none")
    assert skipped == ("skipped", "existing")


async def test_an_id_may_be_a_uuid(processor: Processor) -> None:
    own = UUID("12345678-1234-5678-1234-567812345678")
    assert await processor.enqueue(count.job(1), id=own) == str(own)
    assert await processor.enqueue_with_id(count.job(1), own) == str(own)
    processor.register(count)
    await processor.drain()
    assert await processor.wait(own) == 2
    assert (await processor.get_status(own)).state is State.COMPLETED
    assert await processor.cancel(own) is Cancellation.FINISHED


async def test_enqueue_sync_on_the_event_loop_names_the_call_to_write() -> None:
    processor = Processor("memory://")

    @processor.job
    async def mail(order: int) -> None: ...

    async with processor:
        with pytest.raises(UseAwait, match=r"write `await mail.enqueue\(…\)`"):
            mail.enqueue_sync(1)
        with pytest.raises(UseAwait, match=r"write `await mail.options\(…\).enqueue\(…\)`"):
            mail.options(after=1).enqueue_sync(1)


def test_an_option_of_another_system_among_the_arguments_names_ours() -> None:
    foreign: dict[str, Any] = {"countdown": 3}
    with pytest.raises(TypeError, match=r"write `await processor.enqueue\(count.job\(…\), after=…"):
        count.job(1, **foreign)
