"""A line whose connections are cut, held up, left half open, or given up in flight."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest

from nimburion.backends.redis.connection.command_connection import CommandConnection
from nimburion.backends.redis.connection.topology import ServerLocator
from nimburion.backends.redis.url import parse_url
from nimburion.core.errors import BackendError, BackendUnavailable
from tests.servers import Binary, Proxy, Server
from tests.waiting import wait_until

Record = Callable[[str, object], None]
BOTH_WAYS: tuple[Literal["requests", "replies"], ...] = ("requests", "replies")


@asynccontextmanager
async def open_command_connection(
    url: str, timeout: float = 5.0
) -> AsyncIterator[CommandConnection]:
    settings = parse_url(url).replace(timeout=timeout)
    connection = CommandConnection(ServerLocator(settings), settings.describe(), timeout)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def proxy(valkey: Server) -> AsyncIterator[Proxy]:
    async with Proxy(valkey.port) as proxy:
        yield proxy


# --- replies belong to their requests -------------------------------------------------------------


class Caller:
    """Asks for its own words back, and is often cancelled."""

    def __init__(self, connection: CommandConnection, luck: random.Random) -> None:
        self._connection = connection
        self._luck = luck
        self.cancelled = 0
        self.answered = 0

    async def ask(self, text: str) -> None:
        """One call. It is given up after a moment in which it may wait for its turn, connect, be on
        its way, or be answered."""
        calling = asyncio.create_task(self._connection.execute("ECHO", text))
        for _ in range(self._luck.randrange(16)):
            await asyncio.sleep(0)
        calling.cancel()
        try:
            assert await calling == text.encode(), "the reply to another request"
            self.answered += 1
        except asyncio.CancelledError:
            self.cancelled += 1


@pytest.mark.slow
async def test_cancelled_calls_never_mix_up_replies(
    valkey: Server, record_property: Record
) -> None:
    luck = random.Random(7)
    async with open_command_connection(f"unix://{valkey.socket}") as connection:
        callers = [Caller(connection, luck) for _ in range(2)]

        async def ask_on(caller: Caller, number: int) -> None:
            while sum(one.cancelled for one in callers) < 2_000:
                await caller.ask(f"{number}-{caller.cancelled}-{caller.answered}")

        await asyncio.gather(*(ask_on(caller, n) for n, caller in enumerate(callers)))
        dropped = connection.connection_count - 1
        assert await connection.execute("ECHO", "still here") == b"still here"
    cancelled, answered = (
        sum(getattr(one, of) for one in callers) for of in ("cancelled", "answered")
    )
    record_property("Redis calls cancelled, in total", cancelled)
    record_property("of them in flight, their connections dropped, in total", dropped)
    assert cancelled >= 2_000
    assert answered > 0
    assert 0 < dropped < cancelled, "only what is in flight costs its connection"


async def test_a_late_reply_is_discarded(proxy: Proxy) -> None:
    async with open_command_connection(proxy.url, timeout=0.2) as connection:
        assert await connection.execute("ECHO", "1") == b"1"
        proxy.hold_up()
        with pytest.raises(BackendUnavailable) as caught:
            await connection.execute("ECHO", "2")
        assert caught.value.outcome == "unknown"
        proxy.heal()
        assert await connection.execute("ECHO", "3") == b"3"
        assert proxy.connections == 2


# --- what broke is made anew ----------------------------------------------------------------------


async def test_cut_while_idle_it_costs_nothing(proxy: Proxy) -> None:
    async with open_command_connection(proxy.url) as connection:
        for n in range(20):
            assert await connection.execute("ECHO", f"{n}") == f"{n}".encode()
            assert proxy.cut() == 1
            await wait_until_closed(connection)
        assert connection.connection_count == 20


async def wait_until_closed(connection: CommandConnection) -> None:
    """The news of it has come to our loop."""
    assert connection._protocol is not None
    async with asyncio.timeout(5):
        await connection._protocol.lost


async def test_a_reset_after_any_number_of_bytes_reports_the_right_outcome(
    valkey: Server, proxy: Proxy, record_property: Record
) -> None:
    """Of the request, or of the reply. Never a wrong reply, never a wrong conclusion; and the next
    call works."""
    valkey.ask("SET", "resets", 0)
    applied = resets = 0
    async with open_command_connection(proxy.url) as connection:
        for of in BOTH_WAYS:
            for count in range(60):
                before = int(valkey.ask("GET", "resets"))
                proxy.reset_after(count, of)
                try:
                    value = await connection.execute("INCR", "resets")
                except BackendUnavailable as error:
                    value, outcome = None, error.outcome
                else:
                    outcome = "applied"
                risen = int(valkey.ask("GET", "resets")) - before
                assert value in {None, before + 1}
                assert risen in {"applied": {1}, "unknown": {0, 1}, "not applied": {0}}[outcome]
                resets += value is None
                applied += value is None and risen
        assert await connection.execute("PING") == b"PONG"
    record_property("Redis connections reset in mid-request, in total", resets)
    record_property("requests applied though unanswered, in total", applied)
    assert resets > 20
    assert 0 < applied < resets


async def test_a_server_that_hangs_is_left_and_found_again(redis_binary: Binary) -> None:
    """A kernel goes on accepting connections for a process that stands still."""
    with Server(redis_binary) as server:
        async with open_command_connection(server.url, timeout=0.3) as connection:
            assert await connection.execute("PING") == b"PONG"
            server.pause()
            outcomes = []
            for _ in range(3):
                with pytest.raises(BackendUnavailable) as caught:
                    await connection.execute("INCR", "a")
                outcomes.append(caught.value.outcome)
            assert outcomes == ["unknown", "not applied", "not applied"]
            server.resume()
            answers: list[object] = []

            async def is_found_again() -> bool:
                with suppress(BackendUnavailable):  # it may need more than 0.3 s to go on
                    answers.append(await connection.execute("GET", "a"))
                return bool(answers)

            await wait_until(is_found_again, "the server answers again")
            assert answers == [b"1"], "what was unknown was applied, and once"


@pytest.mark.parametrize("spoil", [("SUBSCRIBE", "news"), ("RESET",)])
async def test_a_connection_that_lost_its_state_is_replaced(
    spoil: tuple[str, ...], redis_binary: Binary
) -> None:
    """It is subscribed, or logged out, as a proxy in between may leave it: for as long as it lives,
    the server refuses each call."""
    with Server(redis_binary, password="pw") as server:
        async with open_command_connection(server.url) as connection:
            assert await connection.execute("PING") == b"PONG"
            connection.is_verified = True
            await connection.execute(*spoil)
            with pytest.raises(BackendError) as refused:
                await connection.execute("GET", "a")
            assert await connection.execute("SET", "a", "1") == b"OK"
            assert connection.connection_count == 2
    if spoil == ("RESET",):
        assert isinstance(refused.value, BackendUnavailable)
        assert refused.value.outcome == "not applied"


async def test_what_a_server_did_not_take_does_not_pile_up(redis_binary: Binary) -> None:
    """A request too large for the kernel's buffers waits in ours. Given up, it must go, with its
    connection: else each try would keep a socket, and send its request after all."""
    load = b"x" * (16 << 20)
    with Server(redis_binary) as server:
        async with open_command_connection(server.url, timeout=0.2) as connection:
            assert await connection.execute("PING") == b"PONG"
            before = count_descriptors()
            for n in range(4):
                server.pause()
                with pytest.raises(BackendUnavailable):
                    await connection.execute("SET", f"big-{n}", load)
                assert count_descriptors() <= before
                server.resume()
                assert await connection.execute("PING") == b"PONG"
        assert server.ask("DBSIZE") == 0


def count_descriptors() -> int:
    return len(list(Path(f"/proc/{os.getpid()}/fd").iterdir()))
