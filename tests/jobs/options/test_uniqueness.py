"""Uniqueness declared on a job: which jobs are equal, and what a second enqueue does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import DefinitionError, DuplicateJob, InvalidJob
from nimburion.core.job import UNFINISHED, JobOptions, OnDuplicate, State, sort_states
from nimburion.core.settings import Settings
from nimburion.core.size_limits import MAX_TEXT
from nimburion.jobs import Job, Limit, Processor, Unique, job
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.options.limits import JobLimits
from nimburion.jobs.options.uniqueness import parse_uniqueness
from nimburion.testing import FakeClock

WAITING_STATES = (State.PENDING, State.SCHEDULED, State.RETRYING)


@job(unique=Unique("user_id", on_duplicate="existing"))
async def sync_user(user_id: int, reason: str = "") -> None: ...


@job(unique=True)
async def export(year: int, *, draft: bool = False) -> None: ...


@job(unique=Unique("address", for_=60))
async def greet(address: str) -> None: ...


async def declared_handler(a: int) -> None: ...


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
        await processor.enqueue(sync_user.job(5), unique=Unique(on_duplicate="reject"))
    assert await processor.enqueue_or_get(sync_user.job(5)) == (first, "existing")


@pytest.mark.parametrize(
    ("unique", "stored"),
    [
        (Unique(), JobOptions(unique_key="k")),
        (Unique(while_="unfinished"), JobOptions(unique_key="k")),
        (
            Unique(while_="waiting"),
            JobOptions(unique_key="k", unique_while=(*WAITING_STATES, State.SUSPENDED)),
        ),
        (
            Unique(while_={State.COMPLETED, State.PENDING}, for_=9),
            JobOptions(
                unique_key="k", unique_for=9.0, unique_while=(State.PENDING, State.COMPLETED)
            ),
        ),
        (
            Unique(while_="unfinished", for_=9),
            JobOptions(
                unique_key="k",
                unique_for=9.0,
                unique_while=sort_states(UNFINISHED),
            ),
        ),
        (
            Unique(throttle=60),
            JobOptions(unique_key="k", unique_for=60.0, on_duplicate="existing"),
        ),
        (
            Unique(debounce=5, max_wait=timedelta(minutes=1), on_duplicate="replace"),
            JobOptions(
                unique_key="k",
                unique_while=WAITING_STATES,
                on_duplicate="replace",
                max_wait=60.0,
            ),
        ),
    ],
)
async def test_the_options_of_a_key(
    processor: Processor, unique: Unique, stored: JobOptions
) -> None:
    job_id = await processor.enqueue(Charge(order="a", amount=1), unique_key="k", unique=unique)
    assert (await processor.backend.reads.get_job(job_id)).options == stored
    declared = job(name="declared", unique=unique)(declared_handler)
    processor.register(declared)
    job_id = await processor.enqueue(declared.job(1))
    found = (await processor.backend.reads.get_job(job_id)).options
    assert found == msgspec.structs.replace(stored, unique_key="a=1")


async def test_a_call_replaces_what_the_job_declares(processor: Processor) -> None:
    first = await processor.enqueue(sync_user.job(5), unique=Unique(throttle=60))
    options = (await processor.backend.reads.get_job(first)).options
    assert (options.unique_key, options.unique_for) == ("user_id=5", 60.0)
    again = await processor.enqueue_or_get(
        sync_user.job(5, "late"), unique=Unique(on_duplicate="replace")
    )
    assert again == (first, "replaced")
    assert (await processor.get_status(first)).args == {"user_id": 5, "reason": "late"}


@pytest.mark.parametrize(
    ("declared", "on_duplicate", "refused"),
    [
        (Unique("a", debounce=5), "reject", "debounce or on_duplicate"),
        (Unique("a", debounce=5), "existing", "debounce or on_duplicate"),
        (Unique("a", debounce=5), "replace", None),
        (Unique("a", throttle=5), "reject", "throttle or on_duplicate"),
        (Unique("a", throttle=5), "replace", "throttle or on_duplicate"),
        (Unique("a", throttle=5), "existing", None),
        (Unique("a", for_=5, on_duplicate="existing"), "existing", None),
    ],
)
async def test_a_call_does_not_undo_a_declared_debounce_or_throttle(
    processor: Processor, declared: Unique, on_duplicate: OnDuplicate, refused: str | None
) -> None:
    declaration = job(name="declared", unique=declared)(declared_handler)
    processor.register(declaration)
    first = await processor.enqueue(declaration.job(1))
    call = Unique(on_duplicate=on_duplicate)
    if refused is None:
        assert await processor.enqueue(declaration.job(1), unique=call) == first
    else:
        with pytest.raises(InvalidJob, match=f"pass {refused}, not both"):
            await processor.enqueue(declaration.job(1), unique=call)


async def test_debounce_runs_once_with_the_latest_arguments(
    processor: Processor, clock: FakeClock
) -> None:
    job_id = ""
    for n in range(4):
        job_id = await processor.enqueue(
            Charge(order="a", amount=n), unique_key="a", unique=Unique(debounce=10, max_wait=25)
        )
        clock.advance(8)
    assert await processor.process_one()
    status = await processor.get_status(job_id)
    assert (status.state, (status.started_at or status.due) - status.created_at) == (
        "completed",
        timedelta(seconds=32),
    )
    assert (status.due - status.created_at, await processor.pending_count()) == (
        timedelta(seconds=25),
        0,
    )


async def test_what_needs_a_key_says_so(processor: Processor) -> None:
    other = job(name="other")(declared_handler)
    processor.register(other)
    for enqueue in (
        processor.enqueue(other.job(1), unique=Unique(debounce=5)),
        processor.enqueue_many([other.job(1)], unique=Unique(while_="waiting")),
        processor.enqueue_raw("raw", {}, unique=Unique(throttle=5)),
        processor.enqueue(other.job(1), unique=Unique(on_duplicate="existing")),
        processor.enqueue_or_get(other.job(1), unique=Unique(on_duplicate="existing")),
    ):
        with pytest.raises(InvalidJob, match="needs a unique_key, or `unique` in the declaration"):
            await enqueue
    assert (await processor.enqueue_or_get(other.job(1))).outcome == "created"
    with pytest.raises(InvalidJob, match="leave out `at` and `after`"):
        await processor.enqueue(other.job(1), unique_key="k", unique=Unique(debounce=5), after=3)


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


@pytest.mark.parametrize("key", ["a\x00b", "a\nb", "a\x80b", "a\ud800b"])
def test_a_key_that_cannot_be_stored_becomes_a_sum(key: str) -> None:
    unique = parse_uniqueness(Unique(key=lambda _: key))
    limits = JobLimits("one", [Limit(1, key=lambda _: key, name="shared")])
    assert unique is not None
    limited = limits.apply(JobOptions(), b"{}", None)
    keys = [unique.make_key(b"{}", None), limited.limit_keys["shared"]]
    assert [one[:7] for one in keys] == ["sha256:"] * 2


def test_a_field_that_does_not_exist_is_refused_at_registration() -> None:
    @job(unique=("user",))
    async def wrong(user_id: int) -> None: ...

    with pytest.raises(DefinitionError, match="unique names 'user', which is not an argument"):
        Registry(Settings()).add(wrong)


@pytest.mark.parametrize(
    ("unique", "message"),
    [
        (5, "unique must be True, names of arguments or a Unique, not 5"),
        ((), "unique must be True, names of arguments or a Unique"),
        (("a", 1), "unique must be True, names of arguments or a Unique"),
        (Unique(5), "unique must be True, names of arguments or a Unique"),  # type: ignore[arg-type]
        (Unique("a", key=str), "Unique takes fields or a key, not both"),
        (Unique(key="a"), "the key of Unique is a function"),  # type: ignore[arg-type]
        (Unique(while_="running"), "'waiting', 'unfinished' or a set of"),  # type: ignore[arg-type]
        (Unique(while_=()), "'waiting', 'unfinished' or a set of"),
        (Unique(while_={State.COMPLETED}), "names completed, so it needs for_"),
        (Unique(max_wait=5), "max_wait needs debounce"),
        (Unique(debounce=5, max_wait=4), "max_wait must be at least debounce, 5"),
        (Unique(debounce=5, for_=4), "debounce or for_, not both"),
        (Unique(debounce=5, on_duplicate="reject"), "debounce or on_duplicate"),
        (Unique(debounce=5, while_={State.FAILED}), "names unfinished states"),
        (Unique(throttle=5, debounce=4), "throttle or debounce, not both"),
        (Unique(throttle=5, on_duplicate="reject"), "throttle or on_duplicate, not both"),
        (Unique(on_duplicate="drop"), "one of 'reject', 'existing', 'replace'"),  # type: ignore[arg-type]
        (Unique(for_=0), "for_ must be more than 0"),
    ],
)
def test_a_wrong_option_is_refused(unique: Any, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        job(name="wrong", unique=unique)(lambda a: None)


async def test_a_function_makes_the_key(processor: Processor) -> None:
    @job(unique=Unique(key=lambda job: job.address.lower(), on_duplicate="existing"))
    async def confirm(address: str) -> None: ...

    processor.register(confirm)
    first = await processor.enqueue(confirm.job("Ann@Example.com"))
    assert await processor.enqueue(confirm.job("ann@example.com")) == first
    assert (await processor.get_status(first)).unique_key == "ann@example.com"
    with pytest.raises(InvalidJob, match="the function of the unique key returned an empty text"):
        await processor.enqueue(confirm.job(""))


@pytest.mark.parametrize(
    ("unique", "message"),
    [
        (True, "unique must be a Unique"),
        (Unique("user_id"), "in a call, the key is the option unique_key"),
        (Unique(key=str), "in a call, the key is the option unique_key"),
        (Unique(for_=-1), "for_ must be more than 0 seconds"),
    ],
)
async def test_a_wrong_option_of_a_call_is_refused(
    processor: Processor, unique: Any, message: str
) -> None:
    with pytest.raises(InvalidJob, match=message):
        await processor.enqueue(sync_user.job(1), unique=unique)


def test_a_unique_shows_what_it_says() -> None:
    assert repr(Unique("order", for_=60)) == "Unique('order', for_=60)"


def test_a_raw_handler_has_no_arguments_to_compare() -> None:
    with pytest.raises(DefinitionError, match="unique_key when you enqueue"):
        Registry(Settings()).add_raw("raw", lambda ctx, data: None, unique=True)
