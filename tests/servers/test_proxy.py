"""What the proxy does to a connection is what a client then meets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.servers.proxy import Proxy

TIMEOUT = 5.0
"""Seconds in which what should come comes."""
BRIEF = 0.05
"""Seconds after which what should not come counts as not coming."""


class Echo:
    """A server that answers each chunk with itself, and remembers all it got."""

    port = 0
    got = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(1000):
                self.got += chunk
                writer.write(chunk)
        except ConnectionError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    async with Proxy(echo.port) as proxy:
        yield proxy


class Client:
    """A connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, words: bytes) -> None:
        self.writer.write(words)

    async def receive(self, count: int, timeout: float = TIMEOUT) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), timeout)


@asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    yield Client(reader, writer)
    writer.close()


async def test_it_passes_on_in_both_directions(proxy: Proxy) -> None:
    async with connected(proxy) as one, connected(proxy) as other:
        one.send(b"one")
        other.send(b"other")
        assert (await one.receive(3), await other.receive(5)) == (b"one", b"other")
    assert proxy.connections == 2


async def test_a_cut_connection_is_reset(proxy: Proxy) -> None:
    async with connected(proxy) as client:
        client.send(b"a")
        await client.receive(1)
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            await client.receive(1)
    async with connected(proxy) as client:
        client.send(b"b")
        assert await client.receive(1) == b"b"


async def test_a_held_up_connection_resumes(proxy: Proxy, echo: Echo) -> None:
    async with connected(proxy) as client:
        client.send(b"a")
        await client.receive(1)
        proxy.hold_up()
        client.send(b"late")
        with pytest.raises(TimeoutError):
            await client.receive(4, BRIEF)
        assert echo.got == b"a"
        proxy.heal()
        assert await client.receive(4) == b"late"


async def test_a_held_up_proxy_accepts_and_sends_nothing(proxy: Proxy) -> None:
    proxy.hold_up()
    async with connected(proxy) as client:
        client.send(b"a")
        with pytest.raises(TimeoutError):
            await client.receive(1, BRIEF)
        proxy.heal()
        assert await client.receive(1) == b"a"


async def test_a_held_up_connection_can_be_cut(proxy: Proxy, echo: Echo) -> None:
    async with connected(proxy) as client:
        client.send(b"a")
        await client.receive(1)
        proxy.hold_up()
        client.send(b"lost")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await client.receive(1)
        proxy.heal()
    async with connected(proxy) as client:
        client.send(b"b")
        await client.receive(1)
    assert echo.got == b"ab"


async def test_a_delay_holds_back_both_ways(proxy: Proxy) -> None:
    clock = asyncio.get_running_loop().time
    async with connected(proxy) as client:
        proxy.delay = BRIEF
        began = clock()
        client.send(b"a")
        await client.receive(1)
        assert 2 * BRIEF <= clock() - began < TIMEOUT
        proxy.delay = 0.0
        client.send(b"b")
        assert await client.receive(1, TIMEOUT) == b"b"


async def test_new_connections_are_refused_and_accepted_again(proxy: Proxy) -> None:
    port = proxy.port
    async with connected(proxy) as client:
        client.send(b"a")
        await client.receive(1)
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        client.send(b"b")
        assert await client.receive(1) == b"b"
        await proxy.accept()
        assert proxy.port == port
    async with connected(proxy) as client:
        client.send(b"c")
        assert await client.receive(1) == b"c"


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_the_reply_is_reset_after_so_many_bytes(proxy: Proxy, echo: Echo, count: int) -> None:
    proxy.reset_after(count, of="replies")
    async with connected(proxy) as client:
        client.send(b"asked")
        assert await client.receive(count) == b"asked"[:count]
        with pytest.raises(ConnectionResetError):
            await client.receive(1)
    assert echo.got == b"asked"
    async with connected(proxy) as client:
        client.send(b"again")
        assert await client.receive(5) == b"again"


async def test_bytes_are_counted_over_chunks(proxy: Proxy) -> None:
    proxy.reset_after(4, of="replies")
    async with connected(proxy) as client:
        client.send(b"abc")
        assert await client.receive(3) == b"abc"
        client.send(b"def")
        assert await client.receive(1) == b"d"
        with pytest.raises(ConnectionResetError):
            await client.receive(1)


async def test_a_request_can_be_lost_on_its_way(proxy: Proxy, echo: Echo) -> None:
    proxy.reset_after(0, of="requests")
    async with connected(proxy) as client:
        client.send(b"lost")
        with pytest.raises(ConnectionResetError):
            await client.receive(1)
    assert echo.got == b""


async def test_without_a_server_a_connection_is_reset(proxy: Proxy) -> None:
    async with Proxy(proxy.port) as second:
        proxy.refuse()
        async with connected(second) as client:
            with pytest.raises(ConnectionResetError):
                await client.receive(1)


async def test_an_end_is_passed_on(echo: Echo, proxy: Proxy) -> None:
    async with connected(proxy) as client:
        client.writer.write_eof()
        assert await asyncio.wait_for(client.reader.read(), TIMEOUT) == b""


async def test_leaving_it_closes_what_is_open(echo: Echo) -> None:
    async with Proxy(echo.port) as proxy, connected(proxy) as client:
        client.send(b"a")
        await client.receive(1)
        await proxy.__aexit__(None, None, None)
        with pytest.raises(ConnectionResetError):
            await client.receive(1)


async def test_a_slow_connection_takes_its_time(echo: Echo, proxy: Proxy) -> None:
    proxy.bytes_per_second["requests"] = 10_000
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    loop = asyncio.get_running_loop()
    began = loop.time()
    writer.write(b"x" * 3_000)
    await asyncio.wait_for(reader.readexactly(3_000), TIMEOUT)
    assert loop.time() - began >= 0.3
    proxy.bytes_per_second["requests"] = None
    writer.write(b"x" * 300_000)
    await asyncio.wait_for(reader.readexactly(300_000), TIMEOUT)
    writer.close()
