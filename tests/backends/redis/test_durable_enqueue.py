"""What a server that is killed has of the jobs it acknowledged, while its disk hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from nimburion.backends.redis import RedisBackend
from nimburion.core.errors import BackendUnavailable
from nimburion.core.job import NewJob
from nimburion.core.queries import JobFilter
from tests.backends.redis.stuck_disk import StuckDisk
from tests.servers import Binary, Server
from tests.waiting import block_until

pytestmark = pytest.mark.slow

MAX_SECONDS = 2.0
"""Seconds: a server puts a write off no longer than that while it waits for its disk."""
HELD = 1.2
"""Seconds from there to the kill, which may come later by the rest on a busy machine."""


@pytest.fixture
def binary(redis_binary: Binary) -> Binary:
    if redis_binary.version < (7, 2):
        pytest.skip("durable_enqueue needs WAITAOF, and says so (test_server_check.py)")
    return redis_binary


@asynccontextmanager
async def open_backend_on(server: Server, **options: object) -> AsyncIterator[RedisBackend]:
    backend = RedisBackend.from_url(server.url, **options)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


def make_append_only_server(binary: Binary) -> Server:
    return Server(binary, "appendfsync everysec", appendonly=True)


def wait_for_a_sync_that_hangs(server: Server) -> None:
    """From then on, what is written stays in the server's memory for two seconds."""
    server.ask("SET", "any", "thing")

    def hangs() -> bool:
        with server.client() as client:
            return bool(client.info("persistence")["aof_pending_bio_fsync"])

    block_until(hangs, "a sync is under way")


def job(job_id: str) -> NewJob:
    return NewJob(job_id, "quick", "default", b"{}")


async def until_killed(backend: RedisBackend, disk: StuckDisk, seconds: float) -> dict[str, float]:
    """Enqueue one after another for so long, kill the server; when each was acknowledged."""
    acknowledged: dict[str, float] = {}
    until_then = time.monotonic() + seconds
    while time.monotonic() < until_then:
        job_id = f"job-{len(acknowledged)}"
        try:
            async with asyncio.timeout(max(0.01, until_then - time.monotonic())):
                await backend.producing.enqueue([job(job_id)])
        except (TimeoutError, BackendUnavailable):
            continue
        acknowledged[job_id] = time.monotonic()
    disk.kill_server()
    return acknowledged


async def find_stored(backend: RedisBackend, ids: list[str]) -> set[str]:
    found: set[str] = set()
    for at in range(0, len(ids), 500):
        page = await backend.reads.list_jobs(JobFilter(ids=tuple(ids[at : at + 500])), limit=500)
        found |= {record.id for record in page.jobs}
    return found


async def test_without_durable_enqueue_a_kill_may_lose_two_seconds(
    binary: Binary, record_property: Callable[[str, object], None]
) -> None:
    """The control: so it is the wait that makes the difference below."""
    ages, lost = await kill_while_the_disk_hangs(binary, durable_enqueue=False)
    oldest = max((ages[job_id] for job_id in lost), default=0.0)
    what = f"{binary.name}, killed while its disk hung:"
    record_property(f"{what} lost of {len(ages)} acknowledged, in total", len(lost))
    record_property(f"{what} the oldest, in total ms before", round(1000 * oldest))
    assert lost
    assert oldest < MAX_SECONDS


async def test_durable_enqueue_survives_a_kill(binary: Binary) -> None:
    ages, lost = await kill_while_the_disk_hangs(binary, durable_enqueue=True)
    assert len(ages) >= 3
    assert not lost


async def kill_while_the_disk_hangs(
    binary: Binary, *, durable_enqueue: bool
) -> tuple[dict[str, float], set[str]]:
    """How long before the kill each job was acknowledged; which of them the server has lost."""
    with make_append_only_server(binary) as server:
        async with open_backend_on(server, durable_enqueue=durable_enqueue) as backend:
            acknowledged = {}
            for n in range(3):
                await backend.producing.enqueue([job(f"earlier-{n}")])
                acknowledged[f"earlier-{n}"] = time.monotonic()
            with StuckDisk(server) as disk:
                wait_for_a_sync_that_hangs(server)
                acknowledged |= await until_killed(backend, disk, HELD)
                killed = time.monotonic()
            await asyncio.to_thread(server.start)
            ages = {job_id: killed - at for job_id, at in acknowledged.items()}
            return ages, ages.keys() - await find_stored(backend, list(ages))


async def test_a_repeat_over_another_connection_waits_as_well(binary: Binary) -> None:
    """The job is there already, so that the second call writes nothing; its answer would still say
    that it is on the disk."""
    with make_append_only_server(binary) as server:
        async with open_backend_on(server, durable_enqueue=True, timeout=0.8) as backend:
            with suppress(BackendUnavailable):  # a sync takes a second
                await backend.producing.enqueue([job("first")])
            outcomes = []
            with StuckDisk(server):
                wait_for_a_sync_that_hangs(server)
                for _ in range(2):
                    with pytest.raises(BackendUnavailable) as caught:
                        await backend.producing.enqueue([job("a")])
                    outcomes.append(caught.value.outcome)
                    await backend._server.get_connections().enqueues.close()
            assert outcomes == ["applied", "applied"]


async def test_many_slices_share_one_wait(binary: Binary) -> None:
    with make_append_only_server(binary) as server:
        async with open_backend_on(server, durable_enqueue=True) as backend:
            results = await backend.producing.enqueue([job(f"job-{n}") for n in range(5_000)])
            assert {one.outcome for one in results} == {"created"}
            assert server.ask("INFO", "commandstats")["cmdstat_waitaof"]["calls"] == 1
