"""What a worker reports and does while it cannot reach its server, and how notifications resume."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import pytest

from nimburion.backends.redis import RedisBackend, notifications
from nimburion.backends.redis.url import parse_url
from nimburion.backends.server import notifications as server_notifications
from nimburion.core.errors import BackendUnavailable
from nimburion.core.job import NewJob, State
from nimburion.jobs import Context, Processor
from nimburion.jobs.worker.health import Condition, Health
from tests.servers import Binary, Proxy, Server
from tests.servers.server import HOUSEKEEPER
from tests.waiting import DEADLINE, read_calm_clock, wait_until

TTL = 2.0
ADMIN_LOGIN = (HOUSEKEEPER, HOUSEKEEPER)


class LongJob:
    """A handler that does not end before the test lets it, and notes when it is interrupted."""

    def __init__(self) -> None:
        self.begun = 0
        self.interrupted: list[float] = []
        self.may_end = asyncio.Event()

    async def run(self, _: Context, __: bytes) -> None:
        self.begun += 1
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.interrupted.append(time.monotonic())
            raise


class ServerOutage:
    """Two ways for a server not to be there."""

    def __init__(self, server: Server, how: str) -> None:
        self.go = {"hangs": server.pause, "is dead": server.kill}[how]
        self.come_back = {"hangs": server.resume, "is dead": server.start}[how]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hangs", "is dead"])
async def test_an_outage_is_logged_and_running_jobs_stop_when_leases_expire(
    how: str, redis_binary: Binary
) -> None:
    long, states = LongJob(), list[Condition]()
    with Server(redis_binary, appendonly=True) as server:
        away = ServerOutage(server, how)
        processor = Processor(RedisBackend(server.url, timeout=0.4), session_ttl=TTL)
        processor.register("long", long.run)

        def health() -> Health:
            seen = processor.health()
            if states[-1:] != [seen.state]:
                states.append(seen.state)
            return seen

        async with processor:
            await processor.start()
            await processor.enqueue_raw("long", b"{}", id="long")
            await wait_until(lambda: health().running == 1, "the job runs")
            await wait_until(lambda: health().state == "ready", "the worker is ready")

            gone = time.monotonic()
            await asyncio.to_thread(away.go)
            await wait_until(lambda: health().state == "unreachable", "the worker says so")
            seen = health()
            assert (seen.running, seen.session is None, long.interrupted) == (1, False, [])
            assert seen.error
            assert server.address in seen.error
            assert 0 < seen.lease_seconds_left < TTL

            await wait_until(lambda: bool(long.interrupted), "the job is interrupted")
            assert long.interrupted[0] - gone < TTL, "the server would have given it to others"
            assert health().session is None

            await asyncio.to_thread(away.come_back)
            back = read_calm_clock(server.pid)
            await wait_until(lambda: long.begun == 2 and health().state == "ready", "it goes on")
            assert read_calm_clock(server.pid) - back < 5.0
            long.may_end.set()
            assert await processor.wait("long", timeout=10) is None
            record = await processor.backend.reads.get_job("long")
        health()
    assert (record.state, record.failures, record.lost) == (State.COMPLETED, 0, 0)
    before = states[: states.index("unreachable")]
    assert before[0] == "ready"
    assert set(before[1:]) <= {"degraded"}, "the notifications may fail before the first exchange"
    assert states[-2] == "ready"


# --- notifications --------------------------------------------------------------------------------


@asynccontextmanager
async def open_listening_backend(url: str) -> AsyncIterator[RedisBackend]:
    """A backend whose listener is subscribed."""
    backend = RedisBackend(url, timeout=0.5)
    await backend.open()
    try:
        await backend.consuming.wait(["default"], 0.01)
        yield backend
    finally:
        await backend.close()


async def measure_wake_up(backend: RedisBackend, other: RedisBackend, job_id: str) -> float:
    """Seconds from an enqueue until one who waits hears of it."""
    while True:  # what rang before is heard first
        began = time.monotonic()
        await backend.consuming.wait(["default"], 0.05)
        if time.monotonic() - began > 0.05:
            break
    waiting = asyncio.create_task(backend.consuming.wait(["default"], 5.0))
    receiver = backend._server.get_connections().notifications
    await wait_until(
        lambda: receiver.has_entries(["default"]) and bool(receiver._waiters), "it listens"
    )
    began = time.monotonic()
    await other.producing.enqueue([NewJob(job_id, "quick", "default", b"{}")])
    await waiting
    return time.monotonic() - began


async def test_notifications_resume_after_each_cut(valkey: Server) -> None:
    async with Proxy(valkey.port) as proxy:
        url, direct = f"{proxy.url}?namespace=cuts", f"{valkey.url}?namespace=cuts"
        async with open_listening_backend(url) as backend, open_listening_backend(direct) as other:
            for n in range(5):
                assert await measure_wake_up(backend, other, f"a-{n}") < 1.0
                assert proxy.cut()


async def test_a_listener_that_wants_fewer_channels_keeps_its_connection(valkey: Server) -> None:
    """A process that shares the listener of a supervisor has ended."""
    reports: asyncio.Queue[Collection[str]] = asyncio.Queue()
    listener = notifications.RedisListener(
        parse_url(valkey.url), reports.put_nowait, lambda channel, text: None
    )
    async with asyncio.timeout(DEADLINE):
        listener.listen(["a", "b"])
        assert await reports.get() == {"a", "b"}
        listener.listen(["a"])
        assert await reports.get() == {"a"}
        listener.listen(["a", "c"])
        assert await reports.get() == {"a", "c"}
        await listener.close()


async def test_a_silent_connection_is_replaced(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half open: no reset comes, and no notification either."""
    monkeypatch.setattr(server_notifications, "_PING_INTERVAL", 0.1)
    monkeypatch.setattr(notifications, "_REPLY_TIMEOUT", 0.2)
    async with Proxy(valkey.port) as proxy:
        url, direct = f"{proxy.url}?namespace=silence", f"{valkey.url}?namespace=silence"
        async with open_listening_backend(url) as backend, open_listening_backend(direct) as other:
            receiver = backend._server.get_connections().notifications
            proxy.hold_up()
            await wait_until(
                lambda: not receiver._is_connected.is_set(),
                "it notices that the connection is gone",
            )
            proxy.heal()
            assert await measure_wake_up(backend, other, "a") < 1.0


async def test_a_permission_error_does_not_stop_listening(
    redis_binary: Binary, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected error must not end a loop in the background; it is logged, once."""
    caplog.set_level(logging.WARNING, "nimburion.backends.redis")
    rights = "worker on >pw ~* +@all"
    with Server(redis_binary, users=[f"{rights} &*"]) as server:
        url = server.url_for("worker", "pw")
        async with (
            open_listening_backend(url) as backend,
            open_listening_backend(server.url_for(*ADMIN_LOGIN)) as other,
        ):
            receiver = backend._server.get_connections().notifications
            server.ask("ACL", "SETUSER", "worker", "resetchannels")
            server.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await wait_until(
                lambda: "notifications are not received" in caplog.text, "it is logged"
            )
            await backend.consuming.wait(["default"], 0.2)
            server.ask("ACL", "SETUSER", "worker", "&*")
            await wait_until(receiver._is_connected.is_set, "it listens again")
            assert await measure_wake_up(backend, other, "a") < 1.0
    assert caplog.text.count("notifications are not received") == 1


async def test_a_password_that_is_changed_is_an_outage(redis_binary: Binary) -> None:
    """Nothing that runs is given up for it."""
    long = LongJob()
    with Server(redis_binary, password="one") as server:
        processor = Processor(RedisBackend(server.url, timeout=0.5), session_ttl=20.0)
        processor.register("long", long.run)
        async with processor:
            await processor.start()
            await processor.enqueue_raw("long", b"{}", id="long")
            await wait_until(lambda: processor.health().running == 1, "the job runs")
            server.ask("CONFIG", "SET", "requirepass", "two")
            server.password = "two"
            for kind in ("normal", "pubsub"):
                server.ask("CLIENT", "KILL", "TYPE", kind)
            refused = "refuses this user or password"
            await wait_until(lambda: refused in (processor.health().error or ""), "it says so")
            assert processor.health().state == "unreachable"
            with pytest.raises(BackendUnavailable) as caught:
                await processor.backend.producing.enqueue([NewJob("b", "long", "default", b"{}")])
            assert caught.value.outcome == "not applied"
            server.ask("CONFIG", "SET", "requirepass", "one")
            server.password = "one"
            await wait_until(lambda: processor.health().state == "ready", "it goes on")
            long.may_end.set()
            await processor.wait("long", timeout=10)
    assert (long.begun, long.interrupted) == (1, [])
