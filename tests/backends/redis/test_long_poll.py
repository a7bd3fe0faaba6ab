"""Exchanges that wait at the server: what ends the wait, and that no job is missed on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from nimburion.backends.redis import RedisBackend
from nimburion.backends.redis.keys import RINGS
from nimburion.backends.redis.long_poll import ring_of
from nimburion.core.exchange import NOTHING, Lane, Reply, Want
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from nimburion.core.settlement import Completed, Settled, Settlement
from nimburion.jobs import Processor
from tests.servers import Proxy, Running, Server

LONG = 30.0
"""Seconds that nobody waits for here: what ends after them was not rung."""
SOON = 10.0


class Hand:
    """A worker played by hand, whose exchanges wait."""

    def __init__(self, store: RedisBackend, session_id: str) -> None:
        self.store = store
        self.session_id = session_id
        self.number = 0

    async def exchange(
        self, *queues: str, settling: tuple[Settlement, ...] = (), patience: float = LONG
    ) -> Reply:
        self.number += 1
        lanes = tuple(Lane(queue, "mail") for queue in queues)
        want = Want(total=5, lanes=lanes, patience=patience)
        return await self.store.exchange(self.session_id, self.number, settling, want)

    async def ready(self, *queues: str) -> None:
        """Found nothing, and told to ring: the next one waits."""
        for _ in range(2):
            assert not (await self.exchange(*queues, patience=0.001)).deliveries


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RedisBackend]:
    store = RedisBackend(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def idle(url: str, *queues: str) -> AsyncIterator[Hand]:
    async with opened(url) as store:
        session_id = uuid4().hex
        await store.open_session(
            Session(
                id=session_id,
                ttl=60.0,
                host="here",
                pid=7,
                owner="cases",
                queues=queues,
                names=("mail",),
                limits={},
            )
        )
        hand = Hand(store, session_id)
        await hand.ready(*queues)
        yield hand


def mail(job_id: str, queue: str, after: float = 0.0) -> NewJob:
    return NewJob(job_id, "mail", queue, b"{}", 5, None, after)


def blocked(server: Running) -> int:
    return int(server.ask("INFO", "clients")["blocked_clients"])


async def waiting(server: Running, coroutine: Coroutine[Any, Any, Reply]) -> asyncio.Task[Reply]:
    """The exchange, once the server says that somebody is blocked."""
    task = asyncio.create_task(coroutine)
    deadline = time.monotonic() + SOON
    while not blocked(server):
        assert time.monotonic() < deadline, "it does not wait"
        await asyncio.sleep(0)
    return task


async def ids_of(exchange: asyncio.Task[Reply]) -> list[str]:
    async with asyncio.timeout(SOON):
        return [one.lease.job_id for one in (await exchange).deliveries]


async def test_a_job_ends_the_wait_whatever_its_queue_is_called(redis_server: Running) -> None:
    """The script and we must agree on the stream of each queue."""
    names = [f"queue-{n}" for n in range(2 * RINGS)] + ["é", "q" * 128, "A.b:c_d-9"]
    assert len({ring_of(name) for name in names}) == RINGS
    async with opened(redis_server.url) as other:
        for name in names:
            async with idle(redis_server.url, name) as hand:
                for which in (["alone"], ["first", "second"]):  # each has a script of its own
                    exchange = await waiting(redis_server, hand.exchange(name))
                    ids = [f"{one} of {name}" for one in which]
                    await other.enqueue([mail(one, name) for one in ids])
                    assert await ids_of(exchange) == ids
                    await hand.ready(name)


async def test_each_queue_of_several_ends_the_wait(redis_server: Running) -> None:
    queues = [f"queue-{n}" for n in range(RINGS + 1)]
    async with opened(redis_server.url) as other, idle(redis_server.url, *queues) as hand:
        for n, queue in enumerate(queues):
            exchange = await waiting(redis_server, hand.exchange(*queues))
            await other.enqueue([mail(f"one-{n}", queue), mail(f"two-{n}", queue)])
            assert await ids_of(exchange) == [f"one-{n}", f"two-{n}"]
            assert not (await hand.exchange(*queues, patience=0.001)).deliveries


async def test_a_job_that_came_between_two_exchanges_is_not_waited_for(
    redis_server: Running,
) -> None:
    async with opened(redis_server.url) as other, idle(redis_server.url, "a") as hand:
        for n in range(5):
            await other.enqueue([mail(f"{n}", "a")])
            exchange = asyncio.create_task(hand.exchange("a"))
            assert await ids_of(exchange) == [f"{n}"]
            await hand.ready("a")


async def test_a_resumed_queue_ends_the_wait(redis_server: Running) -> None:
    async with opened(redis_server.url) as other, idle(redis_server.url, "a") as hand:
        await other.pause("a", paused=True)
        await other.enqueue([mail("held up", "a")])
        await hand.ready("a")
        exchange = await waiting(redis_server, hand.exchange("a"))
        await other.pause("a", paused=False)
        assert await ids_of(exchange) == ["held up"]


async def test_what_is_settled_is_not_held_up(redis_server: Running) -> None:
    async with idle(redis_server.url, "a") as hand:
        await hand.store.enqueue([mail("1", "a")])
        (delivery,) = (await hand.exchange("a")).deliveries
        async with asyncio.timeout(SOON):
            reply = await hand.exchange("a", settling=(Completed(delivery.lease),))
        assert reply.results == [Settled.DONE]


async def test_it_answers_when_its_patience_ends(redis_server: Running) -> None:
    async with idle(redis_server.url, "a") as hand:
        await waits(hand)


async def test_a_ring_ends_one_wait(redis_server: Running) -> None:
    """Else an idle worker would ask as fast as it can."""
    async with idle(redis_server.url, "a") as hand:
        await hand.store.enqueue([mail("1", "a")])
        (delivery,) = (await hand.exchange("a")).deliveries
        await hand.exchange("a", settling=(Completed(delivery.lease),))
        await waits(hand)
        await waits(hand)


async def waits(hand: Hand) -> None:
    began = time.monotonic()
    assert not (await hand.exchange("a", patience=0.2)).deliveries
    assert time.monotonic() - began >= 0.15


async def test_hurry_ends_the_wait_also_before_it_began(redis_server: Running) -> None:
    async with idle(redis_server.url, "a") as hand:
        exchange = await waiting(redis_server, hand.exchange("a"))
        hand.store.hurry()
        assert await ids_of(exchange) == []
        exchange = asyncio.create_task(hand.exchange("a"))
        await asyncio.sleep(0)
        hand.store.hurry()
        assert await ids_of(exchange) == []
        hand.store.hurry()  # nobody waits: it does nothing


async def test_one_who_waits_for_another_stream_is_left_alone(valkey: Server) -> None:
    valkey.empty()
    one = next(f"q{n}" for n in range(100) if ring_of(f"q{n}") == 0)
    two = next(f"q{n}" for n in range(100) if ring_of(f"q{n}") == 1)
    async with opened(valkey.url) as other, idle(valkey.url, two), idle(valkey.url, one) as hand:
        exchange = await waiting(valkey, hand.exchange(one))
        await other.enqueue([mail("1", two)])
        await other.counts()
        assert not exchange.done()
        await other.enqueue([mail("2", one)])
        assert await ids_of(exchange) == ["2"]


async def test_cut_while_it_waits_it_is_asked_again(valkey: Server) -> None:
    """The same number: what it reserved before the cut, if it did, comes again."""
    valkey.empty()
    async with Proxy(valkey.port) as proxy, opened(valkey.url) as other:
        processor = Processor(RedisBackend(proxy.url))
        done: list[str] = []

        async def note(ctx: Any, data: bytes) -> None:
            done.append(ctx.job_id)

        processor.register("mail", note, queue="a")
        async with processor:
            await processor.start()
            for n in range(5):
                await until(lambda: blocked(valkey) == 1)
                proxy.cut()
                await other.enqueue([mail(f"{n}", "a")])
                await until(lambda n=n: len(done) == n + 1)  # type: ignore[misc]
        assert done == [f"{n}" for n in range(5)]


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


async def test_a_worker_that_waits_stops_at_once(valkey: Server) -> None:
    valkey.empty()
    processor = Processor(RedisBackend(valkey.url))
    processor.register("mail", lambda ctx, data: None, queue="a")
    async with processor:
        for _ in range(3):
            await processor.start()
            await until(lambda: blocked(valkey) == 1)
            began = time.monotonic()
            await processor.stop()
            assert time.monotonic() - began < 1.0


async def test_a_job_set_for_later_begins_when_it_is_due(valkey: Server) -> None:
    valkey.empty()
    processor = Processor(RedisBackend(valkey.url))
    processor.register("mail", lambda ctx, data: None, queue="a")
    async with processor:
        await processor.start()
        for _ in range(3):
            job_id = await processor.enqueue_raw("mail", {}, queue="a", after=0.3)
            await processor.wait(job_id, timeout=SOON)
            record = await processor.backend.get(job_id)
            assert record.started_at is not None
            assert 0.0 <= record.started_at - record.due < 1.0


@pytest.mark.parametrize("patience", [0.0, 5.0])
async def test_without_lanes_there_is_nothing_to_wait_for(valkey: Server, patience: float) -> None:
    valkey.empty()
    async with idle(valkey.url, "a") as hand:
        async with asyncio.timeout(SOON):
            assert not (await hand.exchange(patience=patience)).deliveries
            hand.number += 1
            await hand.store.exchange(hand.session_id, hand.number, (), NOTHING)
