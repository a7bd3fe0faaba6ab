"""A network that drops packets: each call that promises a time ends in it, however many wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial

import pytest

from nimburion.backends import open_backend
from nimburion.core.errors import BackendUnavailable, WaitTimeout
from nimburion.core.settings import Settings
from nimburion.jobs import Processor
from tests.servers import Server
from tests.servers.proxy import Proxy
from tests.servers.server_kinds import RunningPostgres
from tests.waiting import read_calm_clock

TIMEOUT = 1.0
MAX_SECONDS = 1.5 * TIMEOUT + 3.0
"""Generous, for a busy machine."""


async def measure_seconds(call: Awaitable[object], error: type[Exception]) -> float:
    """How long a call takes that must fail."""
    began = read_calm_clock()
    with pytest.raises(error):
        await call
    return read_calm_clock() - began


async def check_deadlines(url: str, proxy: Proxy) -> None:
    processor = Processor(open_backend(url), Settings(enqueue_timeout=TIMEOUT))
    async with processor:
        job_id = await processor.enqueue_raw("n", b"{}")
        proxy.hold_up()
        took = await asyncio.gather(
            *(
                measure_seconds(processor.enqueue_raw("n", b"{}"), BackendUnavailable)
                for _ in range(40)
            ),
            *(
                measure_seconds(processor.wait(job_id, timeout=TIMEOUT), WaitTimeout)
                for _ in range(40)
            ),
            *(measure_seconds(processor.get_status(job_id), BackendUnavailable) for _ in range(4)),
            *(measure_seconds(processor.queue_size(), BackendUnavailable) for _ in range(4)),
            measure_seconds(processor.pending_count(), BackendUnavailable),
        )
        other = Processor(open_backend(url), Settings(enqueue_timeout=TIMEOUT))
        with other.sync as sync:
            for call in (partial(sync.enqueue_raw, "n", b"{}"), partial(sync.get_status, job_id)):
                calls = (
                    measure_seconds(asyncio.to_thread(call), BackendUnavailable)
                    for _ in range(4)  # no more than there are threads
                )
                took += await asyncio.gather(*calls)
        proxy.heal()
        assert (await processor.get_status(job_id)).state == "pending"
    assert max(took) <= MAX_SECONDS


async def test_valkey(valkey: Server) -> None:
    async with Proxy(valkey.port) as proxy:
        await check_deadlines(f"{proxy.url}?namespace=hole", proxy)


async def test_postgres(postgres_server: RunningPostgres) -> None:
    url = postgres_server.url
    port = int(url.rpartition(":")[2].partition("/")[0])
    async with Proxy(port) as proxy:
        await check_deadlines(url.replace(str(port), str(proxy.port)), proxy)
