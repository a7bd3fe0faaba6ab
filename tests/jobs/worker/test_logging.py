"""What a worker logs of attempts, and of jobs that nobody would run."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from functools import partial
from random import Random
from typing import Any

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import Cancel, Retry, Snooze
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from nimburion.core.settings import QueueSettings
from nimburion.jobs import Context, Processor
from nimburion.jobs.worker.maintenance import UnservedWatch
from nimburion.testing import FakeClock

Records = list[logging.LogRecord]


class Broken(Exception):
    """What a handler raises here."""


async def logged(
    caplog: pytest.LogCaptureFixture, handler: Any, level: int = logging.INFO, **options: Any
) -> Records:
    """The records of one attempt.

    The test process may hold workers of other tests, which log as well; their records name no job.
    """
    caplog.set_level(level, "nimburion.worker")
    async with Processor(MemoryBackend()) as processor:
        processor.register("work", handler, **options)
        await processor.enqueue_raw("work", b"{}", id="a")
        caplog.clear()
        assert await processor.process_one()
    return [record for record in caplog.records if getattr(record, "job_id", None) == "a"]


async def raises(_: Context, __: bytes) -> None:
    raise Broken("no\x1bgood")


def raises_in_thread(_: Context, __: bytes) -> None:
    raise Broken("no good")


async def cancels_itself(_: Context, __: bytes) -> None:
    raise asyncio.CancelledError


async def asks_for_a_retry(_: Context, __: bytes) -> None:
    raise Retry("later")


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (raises, Broken),
        (raises_in_thread, Broken),
        (cancels_itself, asyncio.CancelledError),
        (asks_for_a_retry, Retry),
    ],
)
@pytest.mark.parametrize(
    ("retries", "level"), [(1, logging.WARNING), (0, logging.ERROR)], ids=["retry", "dead letter"]
)
async def test_a_failed_attempt_is_logged_once_with_its_exception(
    handler: Any,
    kind: type[BaseException],
    retries: int,
    level: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (record,) = await logged(caplog, handler, max_retries=retries)
    assert record.levelno == level
    assert record.exc_info is not None
    found, error, traceback = record.exc_info
    assert found is kind
    assert isinstance(error, kind)
    assert traceback is not None
    frames = [frame.f_code.co_name for frame in _frames(traceback)]
    assert handler.__name__ in frames
    extra = {name: getattr(record, name) for name in ("job_id", "job_name", "queue", "attempt")}
    assert extra == {"job_id": "a", "job_name": "work", "queue": "default", "attempt": 1}


def _frames(traceback: Any) -> list[Any]:
    frames = []
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return frames


async def test_a_timeout_is_logged_with_where_the_handler_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def hangs(_: Context, __: bytes) -> None:
        await asyncio.Event().wait()

    (record,) = await logged(caplog, hangs, timeout=0.01)
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], TimeoutError)
    assert "in hangs" in logging.Formatter().formatException(record.exc_info)


@pytest.mark.parametrize("signal", [Snooze(1.0), Cancel("no more")])
async def test_what_is_no_failure_is_not_logged_as_one(
    signal: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(_: Context, __: bytes) -> None:
        raise signal

    assert await logged(caplog, handler) == []


async def test_start_and_end_of_each_attempt_are_logged_at_debug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def works(_: Context, __: bytes) -> None: ...

    assert await logged(caplog, works) == []
    start, end = await logged(caplog, works, logging.DEBUG)
    for record in (start, end):
        extra = {name: getattr(record, name) for name in ("job_id", "job_name", "queue", "attempt")}
        assert extra == {"job_id": "a", "job_name": "work", "queue": "default", "attempt": 1}
    assert start.getMessage() == "job work a: attempt 1 starts"
    assert end.getMessage().startswith("job work a: attempt 1 ended after 0.")
    assert (end.__dict__["outcome"], end.__dict__["duration"] >= 0.0) == ("completed", True)
    failed = await logged(caplog, raises, logging.DEBUG)
    assert [record.levelno for record in failed] == [10, logging.WARNING, 10]


async def test_nothing_of_an_attempt_is_kept_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception holds the frames of its handler; the garbage collector must not be needed."""
    monkeypatch.setattr(logging.getLogger("nimburion.worker"), "disabled", True)
    raised: list[weakref.ref[BaseException]] = []

    async def handler(_: Context, __: bytes) -> None:
        error = Broken("large")
        raised.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    async with Processor(MemoryBackend()) as processor:
        processor.register("work", handler)
        await processor.enqueue_raw("work", b"{}")
        gc.collect()
        gc.disable()
        try:
            assert await processor.process_one()
            await asyncio.sleep(0)
            assert [one() for one in raised] == [None]
        finally:
            gc.enable()


# --- jobs that nobody would run -------------------------------------------------------------------


async def test_a_worker_with_nothing_registered_suggests_what_to_write(
    caplog: pytest.LogCaptureFixture,
) -> None:
    processor = Processor(MemoryBackend())
    async with processor:
        await processor.start()
    (warning,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert warning.startswith("no job is registered, so this worker runs none. ")
    assert "processor.register(" in warning


async def test_jobs_that_no_live_worker_would_take_are_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    watches = [
        UnservedWatch(backend, clock, Random(1), partial(str, session)) for session in ("s1", "s2")
    ]

    async def lines() -> list[str]:
        caplog.clear()
        for watch in watches:
            await watch.tick()
        return [record.getMessage().partition(". ")[0] for record in caplog.records]

    await backend.consuming.open_session(Session(id="s1", queues=("default",), names=("send",)))
    clock.advance(1.0)
    await backend.consuming.open_session(Session(id="s2", queues=("other",), names=("post",)))
    await backend.producing.enqueue(
        [
            NewJob("a", "send", "default", b"{}"),
            NewJob("b", "snd", "default", b"{}"),
            NewJob("c", "snd", "default", b"{}", after=60.0),
            NewJob("d", "send", "mial", b"{}"),
            NewJob("e", "post", "default", b"{}"),
        ]
    )
    other_queue = "no live worker that serves this queue has a handler of this name"
    assert await lines() == [
        f"1 job 'post' waits in queue 'default': {other_queue}",
        "2 jobs 'snd' wait in queue 'default': no live worker has a handler of this name",
        "1 job 'send' waits in queue 'mial': no live worker serves this queue",
    ]
    assert await lines() == []
    await backend.producing.enqueue([NewJob("f", "snd", "other", b"{}")])
    assert await lines() == [
        "1 job 'snd' waits in queue 'other': no live worker has a handler of this name"
    ]


async def test_a_worker_logs_which_queues_it_serves() -> None:
    """Not those that its jobs name by default: what it does not serve is shown as unserved."""
    backend = MemoryBackend()
    processor = Processor(backend, queues=(QueueSettings("mail"),))
    processor.register("send", raises, queue="default")
    async with processor:
        await processor.start()
        (session,) = await backend.reads.list_sessions()
    assert (session.queues, session.names) == (("mail",), ("send",))
