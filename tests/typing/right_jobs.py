"""What users write and every type checker must accept."""

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type
from uuid import UUID

from nimburion import (
    Backoff,
    Batch,
    BatchContext,
    ChildProcess,
    Context,
    DurableContext,
    Flow,
    Job,
    JobId,
    Limit,
    Priority,
    Processor,
    Signal,
    Status,
    Unique,
    chain,
    job,
)
from nimburion.backends.memory import MemoryBackend
from nimburion.core.flows import On
from nimburion.integrations.flask import FlaskJobs
from nimburion.jobs.declaration.job import JobCall
from nimburion.jobs.durable import ChildJob
from nimburion.jobs.flows import Member, Members
from nimburion.types import Enqueueing, EnqueueOptions, Next, PolicyOptions


class SendEmail(Job, name="send_email", queue="default", max_retries=3, retry_backoff=1.0):
    to: str
    subject: str
    body: str = ""
    tags: list[str] = dataclasses.field(default_factory=list)

    async def process(self, ctx: Context) -> str:
        return self.to


class Resize(Job, timeout=timedelta(minutes=1), retry_backoff=[1, 5, 60], permanent=(ValueError,)):
    width: int

    def process(self, ctx: Context) -> None:
        ctx.progress(0.5, "half")


class Untyped(Job):
    word: str

    async def process(self, ctx):  # type: ignore[no-untyped-def]
        return self.word


@job(queue="reports", timeout=60, concurrency=2)
def generate_report(year: int, *, draft: bool = False) -> str:
    return f"{year} {draft}"


@job
async def count(ctx: Context, first: int, second: int = 2) -> int:
    return first + second


assert_type(generate_report(2026, draft=True), str)
assert_type(generate_report.job(2026, draft=True), JobCall[str])
assert_type(count.job(1, second=3), JobCall[int])


processor = Processor(MemoryBackend())


@processor.job(queue="images", timeout=30)
async def thumbnail(ctx: Context, path: str, width: int = 200) -> str:
    return path


@processor.job
def shrink(path: str, *, factor: float = 0.5) -> int:
    return 1


@processor.job(batch=Batch(100, wait=0.5))
async def index(paths: list[str]) -> list[int | Exception]:
    return [len(path) for path in paths]


@job(
    retry_backoff=Backoff([1, 60], max_delay=timedelta(hours=1), retry_for=86_400),
    limits=[Limit(2, key="customer"), Limit(name="cdn", rate="50/s", burst=5)],
    unique=Unique(("customer", "path"), on_duplicate="existing"),
    execution=ChildProcess(memory="512MB"),
    retry_on=(ConnectionError, OSError),
    tags=["media", "eu"],
    timeout="5m",
    expires=timedelta(hours=1),
)
def convert(customer: str, path: str) -> bytes:
    return b""


assert_type(convert.job("acme", path="cat.png"), JobCall[bytes])


@job(batch=10, queue="images")
def rotate(ctx: BatchContext, angles: list[float]) -> None:
    ctx.set_outcome(0, ctx.jobs[0].job_id)


async def enqueue_for_a_batch() -> None:
    assert_type(await index.enqueue("cat.png"), JobId[Any])
    assert_type(await index(["cat.png"]), list[int | Exception])
    assert_type(rotate.job(1.5), JobCall[Any])
    assert_type(
        await index.options(unique_key="k", unique=Unique(debounce=5)).enqueue("cat.png"),
        JobId[Any],
    )
    found = await processor.enqueue_or_get(
        rotate.job(2.0), unique_key="k", unique=Unique(throttle=60)
    )
    assert_type(found.created, bool)


async def enqueue_registered() -> None:
    assert_type(await thumbnail.enqueue("cat.png", width=100), JobId[str])
    assert_type(thumbnail.enqueue_sync("cat.png"), JobId[str])
    assert_type(
        await shrink.options(priority=7, after=30).enqueue("cat.png", factor=0.1), JobId[int]
    )
    assert_type(shrink.options(queue="slow").enqueue_sync("cat.png"), JobId[int])
    assert_type(shrink("cat.png"), int)
    assert_type(shrink.job("cat.png"), JobCall[int])


async def timing(ctx: Context, call_next: Callable[[Context], Awaitable[Any]]) -> Any:
    return await call_next(ctx)


processor.register(SendEmail, generate_report, count)
processor.use(timing)


async def main() -> None:
    async with processor:
        assert_type(
            await processor.enqueue(SendEmail(to="a@example.com", subject="Hi")), JobId[str]
        )
        await processor.enqueue(
            generate_report.job(2026, draft=True),
            id="report-2026",
            queue="slow",
            priority=Priority.HIGH,
            at=datetime.now(UTC),
            unique_key="report",
            unique=Unique(for_=timedelta(hours=1), on_duplicate="existing"),
            headers={"a": "b"},
            tenant="acme",
            correlation_id="c-1",
            max_retries=1,
            timeout=30,
            tags=("nightly",),
        )
        mixed: list[JobId[Any]] = await processor.enqueue_many(
            [count.job(1), Resize(width=1)], priority=7
        )
        assert len(mixed) == 2
        await processor.enqueue_with_id(count.job(1), "own-id")
        await processor.enqueue_with_priority(count.job(1), Priority.HIGH)
        await processor.enqueue_at(count.job(1), datetime.now(UTC))
        await processor.enqueue_after(count.job(1), 30, tenant="acme")
        await processor.enqueue_raw("hook", b"{}", queue="hooks")
        assert_type(await processor.get_status("x"), Status)


def script() -> None:
    assert_type(processor.sync.enqueue(SendEmail(to="a", subject="b"), priority=7), JobId[str])
    assert_type(processor.sync.get_status("x"), Status)
    processor.sync.wait("x", timeout=5)
    assert_type(processor.sync.drain(), int)
    assert_type(processor.sync.process_one(), bool)


# Jobs of a Flask application


flask_jobs = FlaskJobs()


@flask_jobs.job(queue="mail", max_retries=5)
def welcome(ctx: Context, address: str) -> str:
    return address


def view() -> None:
    assert_type(welcome.enqueue_sync("ann@example.com"), JobId[str])
    assert_type(welcome.options(priority=7).enqueue_sync(address="ann@example.com"), JobId[str])
    assert_type(flask_jobs.processor, Processor)


# The state of a worker: typed where the handler says which type it expects


@dataclasses.dataclass
class Resources:
    prefix: str


@processor.lifespan
async def resources() -> AsyncIterator[Resources]:
    yield Resources("Dear ")


class Greet(Job):
    name_of: str

    async def process(self, ctx: Context[Resources]) -> str:
        assert_type(ctx.state, Resources)
        return ctx.state.prefix + self.name_of


@processor.job(queue="greetings")
def greet(ctx: Context[Resources], who: str) -> str:
    return ctx.state.prefix + who


assert_type(greet.job("Ann"), JobCall[str])


@processor.around_handler
def connections(ctx: Context[Resources]) -> Iterator[None]:
    yield


@processor.around_handler
async def async_connections(ctx: Context) -> AsyncIterator[None]:
    yield


async def with_state(
    ctx: Context[Resources], call_next: Callable[[Context], Awaitable[Any]]
) -> Any:
    assert_type(ctx.state.prefix, str)
    return await call_next(ctx)


processor.use(with_state)


# The type of a result, from the handler to `wait`


class Nothing(Job):
    async def process(self, ctx: Context) -> None: ...


@dataclasses.dataclass
class Report:
    words: int


@processor.job
async def make_report(ctx: Context, title: str, parts: list[JobId[int]]) -> Report:
    return Report(len(title))


@processor.job
def import_file(path: str) -> dict[str, int] | None:
    return None


def take_number(number: int) -> None: ...


async def results() -> None:
    words = await processor.enqueue(count.job(1))
    assert_type(words, JobId[int])
    assert_type(await processor.wait(words), int)
    assert_type(await processor.wait(words, 5, missing_ok=True), int)
    number: int = await processor.wait(words)
    perhaps: int | None = await processor.wait(words)
    take_number(number + (perhaps or 0))
    take_number(await processor.wait(words))
    take_number(await processor.wait(await processor.enqueue(count.job(1))))
    text: str = words
    assert_type(await processor.get_status(text), Status)
    assert_type(await processor.cancel(words) == "cancelled", bool)

    assert_type(await processor.wait(await processor.enqueue(SendEmail(to="a", subject="b"))), str)
    assert_type(await processor.enqueue(Resize(width=1)), JobId[None])
    assert_type(await processor.enqueue(Nothing()), JobId[None])
    assert_type(await processor.wait(await make_report.enqueue("Sales", [words])), Report)
    assert_type(await processor.wait(await import_file.enqueue("a.csv")), dict[str, int] | None)
    assert_type(await processor.enqueue_with_id(count.job(1), "own"), JobId[int])
    assert_type(await processor.enqueue_with_priority(count.job(1), 7), JobId[int])
    assert_type(await processor.enqueue_at(count.job(1), datetime.now(UTC)), JobId[int])
    assert_type(await processor.enqueue_after(count.job(1), "5m"), JobId[int])
    assert_type((await processor.enqueue_or_get(count.job(1))).id, JobId[int])
    job_id, _ = await processor.enqueue_or_get(make_report.job("Sales", []))
    assert_type(await processor.wait(job_id), Report)

    # An id from elsewhere: a request, a table, another program
    assert_type(await processor.wait("own"), Any)
    assert_type(await processor.wait(UUID(int=1)), Any)
    assert_type(await processor.wait(JobId[int]("own")), int)
    assert_type(await processor.wait(JobId[Report](UUID(int=1))), Report)
    assert_type(await processor.enqueue_raw("hook", b"{}"), JobId[Any])
    take_number(await processor.wait("own"))


async def several() -> None:
    ids = await processor.enqueue_many([count.job(1), count.job(2)])
    assert_type(ids, list[JobId[int]])
    assert_type(await processor.enqueue_many(shrink.job(p) for p in "ab"), list[JobId[int]])
    assert_type(
        await processor.enqueue_many([count.job(1), (count.job(2), {"priority": 7, "id": "b"})]),
        list[JobId[Any]],
    )
    assert_type(await processor.wait_all(ids), list[int])
    assert_type(await processor.wait_all(ids, 60, missing_ok=True), list[int])
    assert_type(await processor.wait_all(ids, return_exceptions=True), list[int | Exception])
    assert_type(await processor.wait_all(["a", "b"]), list[Any])
    numbers: list[int] = await processor.wait_all(ids)
    first, second = await processor.wait_all(ids)
    take_number(first + second + sum(numbers))
    assert_type(await processor.get_statuses(ids), dict[str, Status | None])


class Parent(Job):
    async def process(self, ctx: Context) -> JobId[int]:
        child = await ctx.enqueue(count.job(1), priority=7)
        assert_type(child, JobId[int])
        return child


async def follow() -> None:
    child = await processor.wait(await processor.enqueue(Parent()))
    assert_type(await processor.wait(child), int)


NETWORK: PolicyOptions = {"retry_on": (ConnectionError,), "max_retries": 5}
LATER: EnqueueOptions = {"after": 30, "queue": "slow"}


@processor.job(queue="images", **NETWORK)
async def download(url: str) -> int:
    return len(url)


@processor.use
async def around(ctx: Context, call_next: Next[Context]) -> object:
    return await call_next(ctx)


async def stamp(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> object:
    enqueueing.set(tenant="acme")
    return await call_next(enqueueing)


async def shared_options() -> None:
    processor.use_enqueue(stamp)
    assert_type(await download.options(**LATER).enqueue("a"), JobId[int])


def blocking() -> None:
    sync = processor.sync
    words = sync.enqueue(count.job(1), after="1h")
    assert_type(words, JobId[int])
    assert_type(sync.wait(words, timeout=5), int)
    assert_type(sync.wait("own"), Any)
    number: int = sync.wait(words)
    take_number(number)
    assert_type(sync.enqueue_many([count.job(1)]), list[JobId[int]])
    assert_type(sync.enqueue_with_id(shrink.job("a"), "own"), JobId[int])
    assert_type(sync.wait_all([words, words], return_exceptions=True), list[int | Exception])
    assert_type(sync.wait_all([words, words]), list[int])
    assert_type(sync.get_statuses([words]), dict[str, Status | None])
    assert_type(sync.enqueue_or_get(count.job(1)).id, JobId[int])
    assert_type(sync.wait(thumbnail.enqueue_sync("cat.png")), str)


@job
async def add_up(numbers: list[int], title: str = "") -> str:
    return title


async def combine() -> None:
    flow = Flow("import", on_failure=Resize(width=1), on_success=count.job(1), max_failed="5%")
    first = flow.add(count.job(1))
    assert_type(first, Member[int])
    assert_type(first.result, int)
    assert_type(flow.add(SendEmail(to="a", subject="b")), Member[str])
    group = flow.add_all((count.job(first.result, n) for n in range(9)), max_failed=1)
    assert_type(group, Members[int])
    assert_type(group.results, list[int])
    total = flow.add(add_up.job(group.results), name="total", depends_on=[first, group])
    assert_type(total.result, str)
    flow.add(SendEmail(to=total.result, subject="x"), depends_on=first, on="finished")
    flow.add(Resize(width=first.result), depends_on=(first, total), on=On.FAILURE)
    assert_type(await processor.enqueue_flow(flow, id="own"), str)
    await processor.enqueue_flow(chain(count.job(1), [count.job(2)], Resize(width=1), name="c"))
    tree = await processor.flows.wait("own", timeout="1h")
    take_number(tree.groups[0].unfinished)
    assert_type([one.id async for one in processor.flows.list(running=True)], list[str])
    assert_type(await processor.flows.replay("own"), list[str])
    assert_type(processor.sync.flows.cancel("own"), list[str])
    assert_type(processor.sync.enqueue_flow(flow), str)


@dataclasses.dataclass
class Confirmed:
    by: str


confirmed = Signal("confirmed", Confirmed)
maybe = Signal("maybe", int | None)


async def create_account(email: str, *, admin: bool = False) -> int:
    return len(email)


def refund(payment: int) -> None: ...


def debit(connection: Any, account: int) -> str:
    return f"{connection} {account}"


@job
async def onboard(ctx: DurableContext, email: str) -> str:
    assert_type(await ctx.step(create_account, email, admin=True), int)
    assert_type(await ctx.step(len, email), int)
    assert_type(await ctx.step(generate_report, 2024), str)
    assert_type(await ctx.options(max_retries=5, timeout="30s").step(create_account, email), int)
    assert_type(await ctx.transact(debit, 7), str)
    await ctx.sleep("trial", timedelta(days=3))
    assert_type(await ctx.wait_for(confirmed), Confirmed)
    assert_type(await ctx.wait_for(confirmed, timeout="7d"), Confirmed | None)
    optional: Confirmed | None = await ctx.options(key="again").wait_for(confirmed)
    assert_type(await ctx.run(count.job(1)), int)
    assert_type(await ctx.run(SendEmail(to="a", subject="b")), str)
    assert_type(await ctx.run_all(count.job(n) for n in range(9)), list[int])
    child = await ctx.start(count.job(1))
    assert_type(child, ChildJob[int])
    assert_type(await child.result(), int)
    assert_type(await ctx.options(key="own").start(count.job(1), detached=True), ChildJob[int])
    assert_type(await ctx.run_all([count.job(1)], detached=True), list[int])
    assert_type(await ctx.wait_any(child), ChildJob[int])
    assert_type(await ctx.wait_any(*[child], timeout="1d"), ChildJob[int] | None)
    first = await ctx.wait_any(confirmed, maybe, child, timeout=timedelta(days=7))
    if first is confirmed:
        assert_type(await ctx.wait_for(confirmed), Confirmed)
    elif first is not None:
        assert_type(await child.result(), int)
    ctx.undo(refund, 7)
    assert_type(ctx.changed("new-mail"), bool)
    assert_type(ctx.now(), datetime)
    if optional is None:
        await ctx.restart(email)
    return email


@processor.job(max_retries=3)
async def onboard_fast(ctx: DurableContext[Resources], email: str) -> int:
    assert_type(ctx.state, Resources)
    return len(email)


class Onboard(Job, max_retries=3):
    email: str

    async def process(self, ctx: DurableContext[Resources]) -> int:
        assert_type(ctx.state, Resources)
        assert_type(await ctx.run(SendEmail(to=self.email, subject="b")), str)
        return await ctx.step(create_account, self.email)


async def use_durable() -> None:
    assert_type(await processor.enqueue(Onboard(email="ann")), JobId[int])
    job_id = await processor.enqueue(onboard.job("ann"))
    assert_type(job_id, JobId[str])
    assert_type(await onboard_fast.enqueue("ann"), JobId[int])
    assert_type(await processor.signal(job_id, confirmed, Confirmed("ann"), id="mail-1"), bool)
    await processor.signal(job_id, maybe, None)
    assert_type(processor.sync.signal(job_id, confirmed, Confirmed("ann")), bool)
