"""Many connections and requests: probes and scrapes are answered, and silent connections closed."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from nimburion import config, server
from nimburion.server import request_limits
from nimburion.server.request_limits import RequestLimit
from tests.waiting import DEADLINE

PATHS = ("/health/live", "/health/ready", "/metrics", "/api/v1/queues")


async def connect(port: int, sent: bytes, stack: AsyncExitStack) -> asyncio.StreamReader:
    """Open a connection, and send some bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    stack.callback(writer.close)
    writer.write(sent)
    await writer.drain()
    return reader


async def test_silent_connections_neither_fail_probes_nor_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_limits, "ARRIVAL_TIMEOUT", 2.0)
    app = server.bootstrap(config.load(None, jobs={"url": "memory://"}, server={"port": 0}))
    async with app, AsyncExitStack() as stack:
        assert app.url is not None
        port = int(app.url.rpartition(":")[2])
        texts = [b"", b"GET /health/live HTTP/1.1\r\nHost: local"]
        readers = [await connect(port, texts[n % 2], stack) for n in range(210)]
        async with httpx.AsyncClient(base_url=app.url) as client:
            statuses = [(await client.get(path)).status_code for path in PATHS]
        assert statuses == [200] * len(PATHS)
        async with asyncio.timeout(DEADLINE):
            assert {await reader.read() for reader in readers} == {b""}


async def test_a_connection_that_sends_part_of_a_second_request_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_limits, "ARRIVAL_TIMEOUT", 0.5)
    app = server.bootstrap(config.load(None, jobs={"url": "memory://"}, server={"port": 0}))
    async with app, AsyncExitStack() as stack:
        assert app.url is not None
        request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
        port = int(app.url.rpartition(":")[2])
        reader = await connect(port, request + b"\r\n" + request, stack)
        async with asyncio.timeout(DEADLINE):
            answers = await reader.read()
        assert answers.count(b"HTTP/1.1 200") == 1


async def test_requests_beyond_the_limit_are_refused_and_probes_are_not() -> None:
    proceed = asyncio.Event()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await proceed.wait()
        await PlainTextResponse("ok")(scope, receive, send)

    limited = RequestLimit(answer, exempt={"/health/live"}, limit=2)
    transport = httpx.ASGITransport(limited)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        slow = [asyncio.create_task(client.get("/slow")) for _ in range(2)]
        await asyncio.sleep(0)
        refused = await client.get("/other")
        probe = await client.get("/health/live")
        proceed.set()
        answers = [await each for each in slow]
        again = await client.get("/other")
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:nimburion:problem:busy")
    assert [each.status_code for each in (probe, *answers, again)] == [200] * 4
