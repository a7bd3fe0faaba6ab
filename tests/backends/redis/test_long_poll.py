"""Exchanges that wait at the server: what ends the wait, and that no job is missed on the way."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import uuid4

import pytest

from nimburion.backends.redis import RedisBackend
from nimburion.backends.redis.connection.command_connection import CommandConnection, CommandPart
from nimburion.backends.redis.long_poll import StreamLongPoll
from nimburion.backends.waiters import LastWait
from nimburion.core.exchange import Lane, Reply
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from nimburion.core.settlement import Completed, Settled, Settlement
from nimburion.jobs import Processor
from nimburion.testing.contract.harness import HandDrivenWorker
from tests.servers import Proxy, RunningRedis, Server
from tests.waiting import read_busy_time, read_calm_clock, wait_until

LONG = 30.0
"""Seconds that no test waits for: a wait that lasts this long was not notified."""
SOON = 10.0


class PollingWorker(HandDrivenWorker):
    """A worker driven by the test, whose exchanges wait."""

    async def poll(
        self, *queues: str, settling: tuple[Settlement, ...] = (), long_poll: float = LONG
    ) -> Reply:
        lanes = tuple(Lane(queue, "mail") for queue in queues)
        return await self.exchange(*settling, want=self.want(5, lanes=lanes, long_poll=long_poll))

    async def prepare(self, *queues: str) -> None:
        """Found nothing and subscribed: the next exchange waits."""
        for _ in range(2):
            assert not (await self.poll(*queues, long_poll=0.001)).deliveries

    def interrupt(self) -> None:
        assert isinstance(self.backend, RedisBackend)
        self.backend.consuming.interrupt_long_poll()


@asynccontextmanager
async def open_redis_backend(url: str) -> AsyncIterator[RedisBackend]:
    backend = RedisBackend(url)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


@asynccontextmanager
async def open_idle_worker(url: str, *queues: str) -> AsyncIterator[PollingWorker]:
    async with open_redis_backend(url) as backend:
        session = Session(id=uuid4().hex, ttl=60.0, queues=queues, names=("mail",))
        worker = PollingWorker(backend, session)
        await worker.open()
        await worker.prepare(*queues)
        yield worker


def make_job(job_id: str, queue: str, after: float = 0.0) -> NewJob:
    return NewJob(job_id, "mail", queue, b"{}", 5, None, after)


def count_blocked(server: RunningRedis) -> int:
    return int(server.ask("INFO", "clients")["blocked_clients"])


async def start_waiting(
    server: RunningRedis, coroutine: Coroutine[Any, Any, Reply]
) -> asyncio.Task[Reply]:
    """The exchange, once the server says that somebody is blocked."""
    task = asyncio.create_task(coroutine)
    await wait_until(lambda: count_blocked(server) > 0, "the exchange waits", SOON)
    return task


async def get_ids(exchange: asyncio.Task[Reply]) -> list[str]:
    async with asyncio.timeout(SOON):
        return [one.lease.job_id for one in (await exchange).deliveries]


async def test_a_job_ends_the_wait_whatever_its_queue_is_called(redis_server: RunningRedis) -> None:
    names = ["queue", "é", "q" * 128, "A.b:c_d-9"]
    async with open_redis_backend(redis_server.url) as other:
        for name in names:
            async with open_idle_worker(redis_server.url, name) as worker:
                for which in (["alone"], ["first", "second"]):  # each has a script of its own
                    exchange = await start_waiting(redis_server, worker.poll(name))
                    ids = [f"{one} of {name}" for one in which]
                    await other.producing.enqueue([make_job(one, name) for one in ids])
                    assert await get_ids(exchange) == ids
                    await worker.prepare(name)


async def test_each_queue_of_several_ends_the_wait(redis_server: RunningRedis) -> None:
    queues = [f"queue-{n}" for n in range(5)]
    async with (
        open_redis_backend(redis_server.url) as other,
        open_idle_worker(redis_server.url, *queues) as worker,
    ):
        for n, queue in enumerate(queues):
            exchange = await start_waiting(redis_server, worker.poll(*queues))
            await other.producing.enqueue(
                [make_job(f"one-{n}", queue), make_job(f"two-{n}", queue)]
            )
            assert await get_ids(exchange) == [f"one-{n}", f"two-{n}"]
            assert not (await worker.poll(*queues, long_poll=0.001)).deliveries


async def test_a_job_that_came_between_two_exchanges_is_not_waited_for(
    redis_server: RunningRedis,
) -> None:
    async with (
        open_redis_backend(redis_server.url) as other,
        open_idle_worker(redis_server.url, "a") as worker,
    ):
        for n in range(5):
            await other.producing.enqueue([make_job(f"{n}", "a")])
            exchange = asyncio.create_task(worker.poll("a"))
            assert await get_ids(exchange) == [f"{n}"]
            await worker.prepare("a")


async def test_a_session_that_closes_is_not_woken_for_its_own_jobs(
    single_redis: RunningRedis,
) -> None:
    """It had room for more jobs, so it has an idle entry: another worker is woken in its place."""
    async with open_idle_worker(single_redis.url, "a") as worker:
        await worker.backend.producing.enqueue([make_job("1", "a")])
        assert await worker.take(5, lanes=(Lane("a", "mail"),))
        assert single_redis.ask("ZCARD", "{nimburion}:idle_worker") == 1
        single_redis.ask("CONFIG", "RESETSTAT")
        await worker.close()
        assert "cmdstat_publish" not in single_redis.ask("INFO", "commandstats")
        assert single_redis.ask("ZCARD", "{nimburion}:idle_worker") == 0


async def test_a_resumed_queue_ends_the_wait(redis_server: RunningRedis) -> None:
    async with (
        open_redis_backend(redis_server.url) as other,
        open_idle_worker(redis_server.url, "a") as worker,
    ):
        await other.maintenance.pause_queue("a", paused=True)
        await other.producing.enqueue([make_job("held up", "a")])
        await worker.prepare("a")
        exchange = await start_waiting(redis_server, worker.poll("a"))
        await other.maintenance.pause_queue("a", paused=False)
        assert await get_ids(exchange) == ["held up"]


async def test_what_is_settled_is_not_held_up(redis_server: RunningRedis) -> None:
    async with open_idle_worker(redis_server.url, "a") as worker:
        await worker.backend.producing.enqueue([make_job("1", "a")])
        (delivery,) = (await worker.poll("a")).deliveries
        async with asyncio.timeout(SOON):
            reply = await worker.poll("a", settling=(Completed(delivery.lease),))
        assert reply.results == [Settled.DONE]


async def test_an_exchange_answers_when_its_long_poll_ends(redis_server: RunningRedis) -> None:
    async with open_idle_worker(redis_server.url, "a") as worker:
        await assert_waits_once(worker)


async def test_a_notification_ends_one_wait(redis_server: RunningRedis) -> None:
    """Else an idle worker would ask as fast as it can."""
    async with open_idle_worker(redis_server.url, "a") as worker:
        await worker.backend.producing.enqueue([make_job("1", "a")])
        (delivery,) = (await worker.poll("a")).deliveries
        await worker.poll("a", settling=(Completed(delivery.lease),))
        await assert_waits_once(worker)
        await assert_waits_once(worker)


async def assert_waits_once(worker: PollingWorker) -> None:
    began = time.monotonic()
    assert not (await worker.poll("a", long_poll=0.2)).deliveries
    assert time.monotonic() - began >= 0.15


async def test_interrupt_ends_the_wait_even_before_it_begins(redis_server: RunningRedis) -> None:
    async with open_idle_worker(redis_server.url, "a") as worker:
        exchange = await start_waiting(redis_server, worker.poll("a"))
        worker.interrupt()
        assert await get_ids(exchange) == []
        exchange = asyncio.create_task(worker.poll("a"))
        await asyncio.sleep(0)
        worker.interrupt()
        assert await get_ids(exchange) == []
        worker.interrupt()  # nobody waits: it does nothing


async def test_as_many_exchanges_end_as_there_are_jobs(valkey: Server) -> None:
    valkey.empty()
    async with (
        open_redis_backend(valkey.url) as other,
        open_idle_worker(valkey.url, "a") as one,
        open_idle_worker(valkey.url, "a") as two,
        open_idle_worker(valkey.url, "a") as three,
    ):
        exchanges = {asyncio.create_task(worker.poll("a")) for worker in (one, two, three)}
        await wait_until(lambda: count_blocked(valkey) == 3, "the exchanges wait", SOON)
        for n in range(3):
            await other.producing.enqueue([make_job(f"{n}", "a")])
            done, exchanges = await asyncio.wait(
                exchanges, timeout=SOON, return_when=asyncio.FIRST_COMPLETED
            )
            assert [await get_ids(each) for each in done] == [[f"{n}"]]
            assert count_blocked(valkey) == 2 - n


async def test_a_worker_that_finds_nothing_wakes_another_once(valkey: Server) -> None:
    """The job is for another name."""
    valkey.empty()
    async with (
        open_redis_backend(valkey.url) as other,
        open_idle_worker(valkey.url, "a") as one,
        open_idle_worker(valkey.url, "a") as two,
        open_idle_worker(valkey.url, "a") as three,
    ):
        exchanges = {asyncio.create_task(worker.poll("a")) for worker in (one, two, three)}
        await wait_until(lambda: count_blocked(valkey) == 3, "the exchanges wait", SOON)
        await other.producing.enqueue([NewJob("1", "post", "a", b"{}")])
        async with asyncio.timeout(SOON):
            while len(exchanges) > 1:
                done, exchanges = await asyncio.wait(exchanges, return_when=asyncio.FIRST_COMPLETED)
                assert not any([await get_ids(each) for each in done])
        await other.ping()
        (last,) = exchanges
        assert not last.done()
        three.interrupt()
        two.interrupt()
        one.interrupt()
        await get_ids(last)


async def test_the_rescue_of_a_session_removes_its_idle_entries(valkey: Server) -> None:
    valkey.empty()
    async with open_redis_backend(valkey.url) as backend, open_redis_backend(valkey.url) as other:
        session = Session(id=uuid4().hex, ttl=0.1, queues=("a", "b"), names=("mail",))
        worker = PollingWorker(backend, session)
        await worker.open()
        await worker.poll("a", "b", long_poll=0.001)
        assert valkey.ask("ZCARD", "{nimburion}:idle_worker") == 2
        async with asyncio.timeout(SOON):
            while valkey.ask("ZCARD", "{nimburion}:idle_worker"):
                await other.consuming.rescue(10, max_lost=3)


async def test_a_busy_worker_has_no_idle_entry(valkey: Server) -> None:
    valkey.empty()
    async with open_idle_worker(valkey.url, "a", "b") as worker:
        assert valkey.ask("ZCARD", "{nimburion}:idle_worker") == 2
        await worker.backend.producing.enqueue([make_job("1", "a")])
        assert len((await worker.poll("a", "b")).deliveries) == 1
        assert valkey.ask("ZCARD", "{nimburion}:idle_worker") == 0


async def test_a_waiter_for_another_queue_is_not_woken(valkey: Server) -> None:
    valkey.empty()
    one, two = "one", "two"
    async with (
        open_redis_backend(valkey.url) as other,
        open_idle_worker(valkey.url, two),
        open_idle_worker(valkey.url, one) as worker,
    ):
        exchange = await start_waiting(valkey, worker.poll(one))
        await other.producing.enqueue([make_job("1", two)])
        await other.reads.count_jobs(budget=None)
        assert not exchange.done()
        await other.producing.enqueue([make_job("2", one)])
        assert await get_ids(exchange) == ["2"]


async def test_a_long_poll_that_is_cut_is_repeated(valkey: Server) -> None:
    """The same number: what it reserved before the cut, if it did, comes again."""
    valkey.empty()
    async with Proxy(valkey.port) as proxy, open_redis_backend(valkey.url) as other:
        processor = Processor(RedisBackend(proxy.url))
        done: list[str] = []

        async def note(ctx: Any, data: bytes) -> None:
            done.append(ctx.job_id)

        processor.register("mail", note, queue="a")
        async with processor:
            await processor.start()
            for n in range(5):
                await wait_until(lambda: count_blocked(valkey) == 1, "the exchange waits", SOON)
                proxy.cut()
                await other.producing.enqueue([make_job(f"{n}", "a")])
                await wait_until(lambda n=n: len(done) == n + 1, "the job runs", SOON)  # type: ignore[misc]
        assert done == [f"{n}" for n in range(5)]


async def test_a_worker_that_waits_stops_at_once(valkey: Server) -> None:
    valkey.empty()
    processor = Processor(RedisBackend(valkey.url))
    processor.register("mail", lambda ctx, data: None, queue="a")
    async with processor:
        for _ in range(3):
            await processor.start()
            await wait_until(lambda: count_blocked(valkey) == 1, "the exchange waits", SOON)
            began = read_calm_clock(valkey.pid)
            await processor.stop()
            assert read_calm_clock(valkey.pid) - began < 1.0


async def test_a_worker_takes_more_jobs_while_the_one_that_ended_its_wait_runs(
    valkey: Server,
) -> None:
    """Its next exchange does not wait at the server, so a notification must come some other way."""
    valkey.empty()
    processor = Processor(RedisBackend(valkey.url))
    running: list[int] = []
    proceed = asyncio.Event()

    @processor.job(name="mail", queue="a")
    async def mail(number: int) -> None:
        running.append(number)
        await proceed.wait()

    async with processor:
        await processor.start()
        await wait_until(lambda: count_blocked(valkey) == 1, "the exchange waits", SOON)
        for number in range(3):
            await mail.enqueue(number)
            await wait_until(lambda n=number: len(running) == n + 1, "it runs", SOON)  # type: ignore[misc]
        assert running == [0, 1, 2]
        proceed.set()


async def test_a_job_set_for_later_begins_when_it_is_due(valkey: Server) -> None:
    valkey.empty()
    processor = Processor(RedisBackend(valkey.url))
    processor.register("mail", lambda ctx, data: None, queue="a")
    async with processor:
        await processor.start()
        for _ in range(3):
            busy = read_busy_time(os.getpid(), valkey.pid)
            job_id = await processor.enqueue_raw("mail", {}, queue="a", after=0.3)
            await processor.wait(job_id, timeout=SOON)
            record = await processor.backend.reads.get_job(job_id)
            assert record.started_at is not None
            busy = read_busy_time(os.getpid(), valkey.pid) - busy
            assert 0.0 <= record.started_at - record.due < 1.0 + busy


@pytest.mark.parametrize("seconds", [0.0, 5.0])
async def test_without_lanes_there_is_nothing_to_wait_for(valkey: Server, seconds: float) -> None:
    valkey.empty()
    async with open_idle_worker(valkey.url, "a") as worker:
        async with asyncio.timeout(SOON):
            assert not (await worker.poll(long_poll=seconds)).deliveries
            await worker.exchange()


class SlowConnection:
    """A connection that has replied once and then replies no more."""

    connection_count = 1

    def __init__(self) -> None:
        self.sent = 0
        self.cancelled = 0

    async def execute(self, *command: CommandPart) -> None:
        self.sent += 1
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.cancelled += 1


async def test_closing_cancels_each_interruption_that_is_being_sent() -> None:
    connection = SlowConnection()
    both = cast("CommandConnection", connection)
    long_poll = StreamLongPoll(b"stream", LastWait(), both, both)
    first = long_poll.make_preceding_commands(LONG)
    long_poll.note_replies(first, [[]])
    long_poll.make_preceding_commands(LONG)
    long_poll.interrupt_long_poll()
    long_poll.interrupt_long_poll()
    await wait_until(lambda: connection.sent == 2, "both are being sent", SOON)
    await long_poll.close()
    assert connection.cancelled == 2
