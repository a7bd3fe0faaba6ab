"""What a worker tells systemd, and when it stops telling."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.cli.systemd import (
    SystemdNotifier,
    has_progress,
    notify_systemd,
    read_watchdog_timeout,
)
from nimburion.core.errors import BackendUnavailable
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.session import Session
from nimburion.core.settlement import Settlement
from nimburion.jobs import Context, Health, Processor
from tests.overridden import OverridableBackend
from tests.waiting import DEADLINE, wait_until

WATCHDOG = 0.2
"""The watchdog timeout in seconds: a message comes every 0.05 s."""


class FakeSystemd:
    """The socket that receives the messages of one service."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self.environment: dict[str, str] = {
            "NOTIFY_SOCKET": address.replace("\0", "@"),
            "WATCHDOG_USEC": str(round(WATCHDOG * 1e6)),
        }

    def receive(self, timeout: float) -> list[str]:
        """Return the assignments of the next message; none if none arrives in time."""
        self._socket.settimeout(timeout)
        try:
            return self._socket.recv(4096).decode().split("\n")
        except (TimeoutError, BlockingIOError):
            return []

    def receive_until(self, wanted: str) -> list[list[str]]:
        """Return the messages up to the first that contains `wanted`."""
        messages: list[list[str]] = [[]]
        while wanted not in messages[-1]:
            messages.append(self.receive(DEADLINE))
            assert messages[-1], f"no message contains {wanted}: {messages}"
        return messages[1:]

    def clear(self) -> None:
        """Drop all messages that have arrived."""
        while self.receive(0.0):
            pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[FakeSystemd]:
    fake = FakeSystemd(str(tmp_path / "notify"))
    yield fake
    fake.close()


def make_processor(backend: MemoryBackend, environment: Mapping[str, str]) -> Processor:
    """Return a processor that reports to systemd."""
    processor = Processor(backend, concurrency=1, grace=5.0)
    notifier = SystemdNotifier(processor.clock, processor.health, 5.0, environment)
    processor.add_service(notifier)
    return processor


# Messages


def test_a_message_arrives_as_one_datagram(systemd: FakeSystemd) -> None:
    notify_systemd("READY=1", "STATUS=ready", environment=systemd.environment)
    assert systemd.receive(DEADLINE) == ["READY=1", "STATUS=ready"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets")
def test_an_address_in_the_abstract_namespace() -> None:
    fake = FakeSystemd(f"\0nimburion-test-{os.getpid()}")
    notify_systemd("READY=1", environment=fake.environment)
    assert fake.receive(DEADLINE) == ["READY=1"]
    fake.close()


def test_without_systemd_nothing_happens(systemd: FakeSystemd, tmp_path: Path) -> None:
    notify_systemd("READY=1", environment={})
    notify_systemd("READY=1", environment={"NOTIFY_SOCKET": str(tmp_path / "gone")})
    assert systemd.receive(0.0) == []


@pytest.mark.parametrize(
    ("environment", "timeout"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_the_watchdog_timeout(environment: dict[str, str], timeout: float | None) -> None:
    assert read_watchdog_timeout(environment) == timeout


# Progress


@pytest.mark.parametrize(
    ("health", "expected"),
    [
        (Health(state="ready", seconds_since_exchange=2.0), True),
        (Health(state="ready", seconds_since_exchange=61.0), False),
        (Health(state="ready", seconds_since_exchange=None), True),  # every slot is busy
        (Health(state="starting", seconds_since_exchange=61.0), False),
        (Health(state="unreachable", seconds_since_exchange=61.0, error="no route"), True),
        (Health(state="degraded", seconds_since_exchange=61.0, error="refused"), True),
        (Health(state="stopping", seconds_since_exchange=61.0), True),
        (Health(state="stopped"), False),
    ],
)
def test_which_workers_make_progress(health: Health, *, expected: bool) -> None:
    assert has_progress(health, 60.0) is expected


async def test_a_worker_reports_from_ready_to_stopping(systemd: FakeSystemd) -> None:
    async with make_processor(MemoryBackend(), systemd.environment) as processor:
        await processor.start()
        await wait_until(lambda: processor.health().state == "ready", "the worker is ready")
        first, *_, fed = await asyncio.to_thread(systemd.receive_until, "WATCHDOG=1")
        assert first == ["READY=1"]
        assert fed == ["STATUS=ready; 0 running, 0 prefetched", "WATCHDOG=1"]
        await processor.stop()
        last = (await asyncio.to_thread(systemd.receive_until, "STOPPING=1"))[-1]
        assert last == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=15000000", "STATUS=stopping"]


async def test_a_worker_without_a_session_is_not_ready(systemd: FakeSystemd) -> None:
    class Down(OverridableBackend):
        async def open_session(self, session: Session) -> None:
            raise BackendUnavailable("no route")

    processor = make_processor(Down(), systemd.environment)
    async with processor:
        starting = asyncio.create_task(processor.start())
        await wait_until(lambda: processor.health().error is not None, "a call has failed")
        assert systemd.receive(0.0) == []
        starting.cancel()
        await asyncio.wait({starting})


async def test_a_blocked_event_loop_sends_nothing(systemd: FakeSystemd) -> None:
    """No other thread may send: it would prove that threads run, not that jobs do."""
    processor = make_processor(MemoryBackend(), systemd.environment)
    messages: list[list[str]] = []

    async def block(_: Context, __: bytes) -> None:
        systemd.clear()
        messages.append(systemd.receive(5 * WATCHDOG))

    processor.register("block", block)
    async with processor:
        await processor.enqueue_raw("block", b"{}")
        await processor.start()
        await wait_until(lambda: bool(messages), "the handler has blocked the loop")
        assert messages == [[]]
        received = await asyncio.to_thread(systemd.receive_until, "WATCHDOG=1")
        assert received[-1][1] == "WATCHDOG=1"


async def test_a_worker_whose_exchanges_hang_sends_its_status_only(systemd: FakeSystemd) -> None:
    """Its loop turns and its heartbeats are answered, but it would never run a job."""

    class Hanging(OverridableBackend):
        async def exchange(
            self,
            session_id: str,
            number: int,
            settlements: Sequence[Settlement],
            request: ReserveRequest,
        ) -> Reply:
            await asyncio.Event().wait()
            raise AssertionError

    processor = make_processor(Hanging(), systemd.environment)
    async with processor:
        await processor.start()

        def receives_status_only() -> bool:
            message = systemd.receive(0.0)
            return any("STATUS" in each for each in message) and "WATCHDOG=1" not in message

        await wait_until(receives_status_only, "the watchdog is not fed")
        assert processor.health().error is None


async def test_a_worker_whose_slots_are_busy_makes_progress(systemd: FakeSystemd) -> None:
    processor = make_processor(MemoryBackend(), systemd.environment)
    started, release = asyncio.Event(), asyncio.Event()

    async def take_long(_: Context, __: bytes) -> None:
        started.set()
        await release.wait()

    processor.register("long", take_long)
    async with processor:
        await processor.enqueue_raw("long", b"{}")
        await processor.start()
        await asyncio.wait_for(started.wait(), DEADLINE)
        health = processor.health
        await wait_until(lambda: health().seconds_since_exchange is None, "no exchange is due")
        systemd.clear()
        received = await asyncio.to_thread(systemd.receive_until, "WATCHDOG=1")
        assert received[-1][1] == "WATCHDOG=1"
        release.set()


def test_the_command_reports_to_systemd(systemd: FakeSystemd, tmp_path: Path) -> None:
    (tmp_path / "myapp.py").write_text(
        "from nimburion import config\n"
        "from nimburion.jobs import Processor\n"
        "processor = Processor.from_config(config.load())\n"
        "processor.register('noop', lambda ctx, data: None)\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "nimburion", "worker", "myapp:processor"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | systemd.environment, stderr=subprocess.PIPE
    )
    systemd.receive_until("WATCHDOG=1")
    process.send_signal(signal.SIGTERM)
    assert systemd.receive_until("STOPPING=1")[-1][1] == "EXTEND_TIMEOUT_USEC=35000000"
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
