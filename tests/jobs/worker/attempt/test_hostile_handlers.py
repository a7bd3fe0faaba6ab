"""Whatever a handler raises or cancels, each run counts as one failure: no job is run for ever."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import Cancel, LeaseLost, Retry, Snooze
from nimburion.core.events import AttemptEnded, Event
from nimburion.core.job import State
from nimburion.jobs import Context, Processor
from nimburion.testing import FakeClock
from tests.waiting import wait_until, wait_until_finished


class BareRetry(Retry):
    """Does not call `super().__init__`."""

    def __init__(self, why: str) -> None:
        self.why = why


class BareSnooze(Snooze):
    """Likewise."""

    def __init__(self, why: str) -> None:
        self.why = why


class BareCancel(Cancel):
    """Likewise."""

    def __init__(self, why: str) -> None:
        self.why = why


class WrongSnooze(Snooze):
    """Its duration is no number."""

    def __init__(self) -> None:
        self.after = "soon"  # type: ignore[assignment]


class BrokenStr(Exception):
    """Its text raises."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


class OddStr(Exception):
    """Its text is a str that is none."""

    def __str__(self) -> str:
        class Text(str):
            __slots__ = ()

            def replace(self, *_: object) -> str:
                raise RuntimeError("no text")

        return Text("odd")


class BrokenClass(Exception):
    """Its `__class__` raises, and so does `isinstance`."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError("no class")


class BrokenAttributes(Retry):
    """Each of its attributes raises."""

    def __getattribute__(self, name: str) -> object:
        raise SystemExit(name)


class BrokenMeta(type):
    """Its classes have no name that can be read, and the question what they are raises."""

    def __getattribute__(cls, name: str) -> Any:
        if name in {"__qualname__", "__name__", "__module__"}:
            raise RuntimeError("no name")
        return super().__getattribute__(name)

    def __subclasscheck__(cls, other: type) -> bool:
        raise RuntimeError("no question")

    def __instancecheck__(cls, other: object) -> bool:
        raise RuntimeError("no question")


class Nameless(Exception, metaclass=BrokenMeta):
    """See `BrokenMeta`."""


class Unanswerable(Exception, metaclass=BrokenMeta):
    """Named as permanent, which asks it whether what was raised is one of it."""


HOSTILE: dict[str, Callable[[], BaseException]] = {
    "retry": lambda: BareRetry("later"),
    "snooze": lambda: BareSnooze("later"),
    "snooze of no number": WrongSnooze,
    "snooze for ever": lambda: Snooze(float("inf")),
    "generator exit": GeneratorExit,
    "keyboard interrupt": KeyboardInterrupt,
    "system exit": lambda: SystemExit(3),
    "cancelled": asyncio.CancelledError,
    "stop iteration": StopIteration,
    "str": BrokenStr,
    "odd str": OddStr,
    "class": BrokenClass,
    "attributes": BrokenAttributes,
    "metaclass": Nameless,
}


async def raise_async(make: Callable[[], BaseException]) -> None:
    await asyncio.sleep(0)
    raise make()


def as_async(make: Callable[[], BaseException], processor: Processor) -> None:
    async def handler(_: Context, __: bytes) -> None:
        await raise_async(make)

    processor.register("odd", handler, max_retries=1, retry_backoff=0.001)


def as_thread(make: Callable[[], BaseException], processor: Processor) -> None:
    def handler(_: Context, __: bytes) -> None:
        raise make()

    processor.register("odd", handler, max_retries=1, retry_backoff=0.001)


def as_middleware(make: Callable[[], BaseException], processor: Processor) -> None:
    async def middleware(_: Context, __: Callable[[Context], Awaitable[Any]]) -> None:
        await raise_async(make)

    processor.use(middleware)
    processor.register("odd", lambda _, __: None, max_retries=1, retry_backoff=0.001)


def with_timeout(make: Callable[[], BaseException], processor: Processor) -> None:
    async def handler(_: Context, __: bytes) -> None:
        await raise_async(make)

    processor.register("odd", handler, max_retries=1, retry_backoff=0.001, timeout=60)


def with_permanent(make: Callable[[], BaseException], processor: Processor) -> None:
    async def handler(_: Context, __: bytes) -> None:
        await raise_async(make)

    permanent = (OSError, Unanswerable)
    processor.register("odd", handler, max_retries=1, retry_backoff=0.001, permanent=permanent)


def awaiting_a_thread(make: Callable[[], BaseException], processor: Processor) -> None:
    def work() -> None:
        error = make()
        if type(error) is StopIteration:  # asyncio itself would wait for ever (Python 3.11)
            raise RuntimeError
        raise error

    async def handler(_: Context, __: bytes) -> None:
        await asyncio.to_thread(work)

    processor.register("odd", handler, max_retries=1, retry_backoff=0.001)


Register = Callable[[Callable[[], BaseException], Processor], None]
FORMS = (as_async, as_thread, as_middleware, with_timeout, with_permanent, awaiting_a_thread)


@pytest.mark.parametrize("how", HOSTILE)
@pytest.mark.parametrize("register", FORMS)
async def test_each_run_in_a_worker_counts_as_a_failure(register: Register, how: str) -> None:
    processor = Processor(MemoryBackend())
    register(HOSTILE[how], processor)
    async with processor:
        await processor.start()
        record = await wait_until_finished(processor, await processor.enqueue_raw("odd", b"{}"))
    assert (record.state, record.reason) == (State.FAILED, "exhausted")
    assert (record.failures, record.lost, len(record.history)) == (2, 0, 2)
    assert {error.kind for error in record.history} == {"failure"}


@pytest.mark.parametrize("how", HOSTILE)
@pytest.mark.parametrize("register", FORMS)
async def test_each_run_in_drain_counts_as_a_failure(register: Register, how: str) -> None:
    clock = FakeClock()
    processor = Processor(MemoryBackend(clock=clock), clock=clock)
    register(HOSTILE[how], processor)
    async with processor:
        job_id = await processor.enqueue_raw("odd", b"{}")
        assert await processor.drain(advance=True) == 2
        record = await processor.backend.reads.get_job(job_id)
    assert (record.state, record.failures, record.lost) == (State.FAILED, 2, 0)


async def fail_here(_: Context, __: bytes) -> None:
    raise ValueError("as planned")


class Refusing(logging.Filter):
    """An application's own filter, with an error in it."""

    def filter(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("no record is right")


@pytest.fixture
def refusing() -> Iterator[None]:
    found, refusing = logging.getLogger("nimburion.worker"), Refusing()
    found.addFilter(refusing)
    yield
    found.removeFilter(refusing)


@pytest.mark.usefixtures("refusing")
async def test_an_error_in_a_log_filter_changes_nothing_about_an_attempt() -> None:
    clock = FakeClock()
    async with Processor(MemoryBackend(clock=clock), clock=clock, log_attempts="info") as processor:
        processor.register("odd", fail_here, max_retries=1)
        job_id = await processor.enqueue_raw("odd", b"{}")
        assert await processor.drain(advance=True) == 2
        record = await processor.backend.reads.get_job(job_id)
    assert (record.state, record.failures) == (State.FAILED, 2)
    assert [(error.kind, error.type) for error in record.history] == [
        ("failure", "ValueError"),
        ("failure", "ValueError"),
    ]


class FailsOnce(Random):
    """A source of jitter whose first number after `fail_next` is an error. Other services of the
    processor draw numbers too, before the handler begins."""

    fails = False

    def fail_next(self) -> None:
        self.fails = True

    def random(self) -> float:
        if self.fails:
            self.fails = False
            raise RuntimeError("no number")
        return 0.5


async def test_an_error_around_a_handler_that_has_begun_counts_as_an_internal_failure() -> None:
    clock = FakeClock()
    ended: list[AttemptEnded] = []
    random = FailsOnce()
    attempts = 0

    async def fail_armed(_: Context, __: bytes) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            random.fail_next()
        raise ValueError("as planned")

    processor = Processor(MemoryBackend(clock=clock), clock=clock, random=random)
    processor.events.subscribe(
        lambda event: ended.append(event) if isinstance(event, AttemptEnded) else None
    )
    async with processor:
        processor.register("odd", fail_armed, max_retries=1)
        job_id = await processor.enqueue_raw("odd", b"{}")
        assert await processor.drain(advance=True) == 2
        record = await processor.backend.reads.get_job(job_id)
        (lane,) = processor._statistics.jobs.list_lanes()
    assert (record.state, record.failures) == (State.FAILED, 2)
    assert [(error.kind, error.type) for error in record.history] == [
        ("internal", "RuntimeError"),
        ("failure", "ValueError"),
    ]
    assert [(event.outcome, event.error) for event in ended] == [
        ("retried", "RuntimeError"),
        ("failed", "ValueError"),
    ]
    assert (lane.retried, lane.failed, sum(lane.run_buckets)) == (1, 1, 2)


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, GeneratorExit, ValueError])
async def test_a_subscriber_that_raises_changes_no_outcome(raised: type[BaseException]) -> None:
    def refuse(_: Event) -> None:
        raise raised

    async def handler(_: Context, __: bytes) -> None: ...

    processor = Processor(MemoryBackend())
    processor.register("odd", handler)
    processor.events.subscribe(refuse)
    async with processor:
        await processor.start()
        record = await wait_until_finished(processor, await processor.enqueue_raw("odd", b"{}"))
    assert (record.state, record.failures) == (State.COMPLETED, 0)


async def test_lease_lost_raised_by_a_handler_itself_is_a_failure() -> None:
    async def handler(ctx: Context, _: bytes) -> None:
        raise LeaseLost(ctx.job_id)

    processor = Processor(MemoryBackend())
    processor.register("odd", handler, max_retries=0)
    async with processor:
        await processor.start()
        record = await wait_until_finished(processor, await processor.enqueue_raw("odd", b"{}"))
    assert (record.state, record.failures) == (State.FAILED, 1)


async def test_a_handler_that_cancels_its_caller_counts_a_failure() -> None:
    """Where no worker runs: `process_one` is one task among those that it cancels."""
    test = asyncio.current_task()

    async def cancel_all(_: Context, __: bytes) -> None:
        for task in asyncio.all_tasks():
            if task is not test:
                task.cancel()
        await asyncio.Event().wait()

    processor = Processor(MemoryBackend())
    processor.register("odd", cancel_all, retry_backoff=600)
    async with processor:
        job_id = await processor.enqueue_raw("odd", b"{}")
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(processor.process_one())
        record = await processor.backend.reads.get_job(job_id)
    assert (record.state, record.failures, record.lost) == (State.RETRYING, 1, 0)


class CancelledJobs:
    """The jobs of a worker, one of which cancels all tasks but its own and that of the test."""

    def __init__(self, spared: asyncio.Task[Any] | None, then: str) -> None:
        self._spared = spared
        self._then = then
        self._running = asyncio.Event()
        self._never = asyncio.Event()

    def register(self, processor: Processor) -> None:
        for handler in (self.culprit, self.waits, self.breaks, self.returns):
            processor.register(handler.__name__, handler, max_retries=0)

    async def culprit(self, _: Context, __: bytes) -> None:
        await self._running.wait()
        own = asyncio.current_task()
        assert own is not None
        others = asyncio.all_tasks() - {self._spared, own}
        for task in others:
            task.cancel()
        if self._then == "gather":
            await asyncio.gather(*others, return_exceptions=True)
        elif self._then == "raise":
            raise ValueError
        own.cancel()
        with suppress(asyncio.CancelledError if self._then == "return" else ValueError):
            await self._never.wait()

    async def waits(self, _: Context, __: bytes) -> None:
        await self._never.wait()

    async def breaks(self, _: Context, __: bytes) -> None:
        try:
            await self._never.wait()
        except asyncio.CancelledError:
            raise ConnectionError from None

    async def returns(self, _: Context, __: bytes) -> None:
        self._running.set()
        with suppress(asyncio.CancelledError):
            await self._never.wait()


LOST, COMPLETED = (State.PENDING, 0, 1), (State.COMPLETED, 0, 0)


@pytest.mark.parametrize(
    ("then", "end"),
    [("wait", LOST), ("gather", LOST), ("return", COMPLETED), ("raise", (State.FAILED, 1, 0))],
)
async def test_what_runs_while_a_handler_cancels_all_tasks_counts_a_loss(
    then: str, end: tuple[State, int, int], caplog: pytest.LogCaptureFixture
) -> None:
    """The worker leaves its session to expire: the culprit is not known, so all that it interrupts
    counts as lost, and no failure. What ends by itself counts as usual."""
    clock = FakeClock()
    processor = Processor(MemoryBackend(clock=clock), clock=clock, concurrency=5, grace=0.1)
    CancelledJobs(asyncio.current_task(), then).register(processor)
    names = ("culprit", "waits", "breaks", "returns")
    async with processor:
        for name in names:
            await processor.enqueue_raw(name, b"{}", id=name)
        await processor.start()
        await wait_until(lambda: processor.health().state == "stopped", "it has stopped")
        clock.advance(60)
        await processor.backend.consuming.rescue(10, max_lost=3)
        records = [await processor.backend.reads.get_job(name) for name in names]
    ends = {each.id: (each.state, each.failures, each.lost) for each in records}
    assert ends == {"culprit": end, "waits": LOST, "breaks": LOST, "returns": COMPLETED}
    assert "job waits (waits) was interrupted by the end of its worker" in caplog.text


@pytest.mark.parametrize("drained", [False, True])
def test_a_ctrl_c_inside_a_handler_stops_the_loop_once_it_is_counted(drained: bool) -> None:
    """On a loop whose owner leaves SIGINT to Python; `asyncio.run` cancels the main task."""
    backend = MemoryBackend()

    async def handler(_: Context, __: bytes) -> None:
        signal.raise_signal(signal.SIGINT)

    async def work() -> None:
        await processor.open()
        await processor.enqueue_raw("odd", b"{}", id="a")
        if drained:
            await processor.process_one()
        await processor.start()
        await asyncio.Event().wait()

    processor = Processor(backend)
    processor.register("odd", handler, retry_backoff=600)
    loop = asyncio.new_event_loop()
    try:
        main = loop.create_task(work())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(main)
        main.cancel()
        loop.run_until_complete(asyncio.gather(main, return_exceptions=True))
        loop.run_until_complete(processor.close())
        record = loop.run_until_complete(backend.reads.get_job("a"))
    finally:
        loop.close()
    assert (record.state, record.failures, record.lost) == (State.RETRYING, 1, 0)
    assert record.error is not None
    assert record.error.type == "KeyboardInterrupt"
