"""Notifications between handles, and the poll behind them where there can be none."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nimburion.backends.sqlite import SQLiteBackend, notifications
from nimburion.backends.sqlite.notifications import (
    SocketListener,
    SocketNotifier,
    decode_queues,
    encode_queues,
    find_socket_folder,
    make_entry_name,
)
from nimburion.backends.waiters import MAX_WAIT_WITHOUT_NOTIFICATIONS
from nimburion.core.exchange import RESERVE_NOTHING, Lane, ReserveRequest
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from nimburion.core.settlement import Released
from nimburion.testing.clock import FakeClock
from nimburion.testing.contract.harness import make_limits

DEADLINE = 20.0


@pytest.fixture
async def other(backend: SQLiteBackend) -> AsyncIterator[SQLiteBackend]:
    """A second handle on the same file, with threads and a socket of its own."""
    other = backend.new_handle()
    await other.open()
    yield other
    await other.close()


def start_wait(backend: SQLiteBackend, *queues: str) -> asyncio.Task[None]:
    """Somebody who waits, without a timeout of note."""
    return asyncio.create_task(backend.consuming.wait(queues, 1e9))


async def assert_wakes(task: asyncio.Task[None]) -> None:
    await asyncio.wait_for(task, DEADLINE)


async def assert_keeps_waiting(task: asyncio.Task[None]) -> None:
    """Nothing has woken it: a few turns of the loop go by."""
    for _ in range(50):
        await asyncio.sleep(0)
    assert not task.done()


@pytest.mark.parametrize("own", [True, False], ids=["same handle", "another handle"])
async def test_an_enqueue_notifies(backend: SQLiteBackend, other: SQLiteBackend, own: bool) -> None:
    task = start_wait(backend, "q")
    await assert_keeps_waiting(task)
    sender = backend if own else other
    await sender.producing.enqueue([NewJob("a", "n", "elsewhere", b"")])
    await assert_keeps_waiting(task)
    await sender.producing.enqueue([NewJob("b", "n", "q", b"")])
    await assert_wakes(task)


async def test_every_operation_that_makes_work_notifies(
    backend: SQLiteBackend, other: SQLiteBackend, clock: FakeClock
) -> None:
    await backend.producing.enqueue(
        [NewJob("a", "n", "q", b""), NewJob("b", "n", "q", b"", after=5.0)]
    )
    await backend.maintenance.pause_queue("q", paused=True)
    task = start_wait(other, "q")
    await assert_keeps_waiting(task)
    await backend.maintenance.pause_queue("q", paused=False)
    await assert_wakes(task)
    task = start_wait(other, "q")
    clock.advance(5.0)
    await assert_keeps_waiting(task)
    await backend.consuming.promote(10)
    await assert_wakes(task)


async def test_a_notification_before_the_wait_ends_the_next_wait(
    backend: SQLiteBackend, other: SQLiteBackend
) -> None:
    await backend.consuming.open_session(Session(id="s"))
    await other.producing.enqueue([NewJob("a", "n", "q", b"")])
    await assert_wakes(start_wait(backend, "q"))
    task = start_wait(backend, "q")
    await assert_keeps_waiting(task)
    task.cancel()


async def test_the_timeout_ends_a_wait(backend: SQLiteBackend, clock: FakeClock) -> None:
    task = asyncio.create_task(backend.consuming.wait(["q"], 5.0))
    await assert_keeps_waiting(task)
    clock.advance(5.0)
    await assert_wakes(task)


async def test_closing_ends_a_wait_and_removes_the_socket(path: Path, clock: FakeClock) -> None:
    backend = SQLiteBackend(path, clock=clock)
    await backend.open()
    task = start_wait(backend, "q")
    await assert_keeps_waiting(task)
    assert find_socket_folder(path).is_dir()
    await backend.close()
    await assert_wakes(task)
    assert not find_socket_folder(path).exists()


async def test_two_jobs_wake_both_waiters_of_their_queue(backend: SQLiteBackend) -> None:
    tasks = [start_wait(backend, "q"), start_wait(backend, "q", "p"), start_wait(backend, "p")]
    await assert_keeps_waiting(tasks[0])
    await backend.producing.enqueue([NewJob(each, "n", "q", b"") for each in "ab"])
    await assert_wakes(tasks[0])
    await assert_wakes(tasks[1])
    await assert_keeps_waiting(tasks[2])
    tasks[2].cancel()


async def test_full_sockets_and_many_notifications_are_tolerated(
    backend: SQLiteBackend, other: SQLiteBackend
) -> None:
    await backend.consuming.open_session(Session(id="s"))
    for n in range(600):  # more than a socket holds
        await other.producing.enqueue([NewJob(f"j-{n}", "n", f"q{n % 3}", b"")])
    await assert_wakes(start_wait(backend, "q1"))


async def test_without_sockets_own_notifications_still_arrive(
    backend: SQLiteBackend, path: Path
) -> None:
    find_socket_folder(path).write_text("in the way")
    task = start_wait(backend, "q")
    await assert_keeps_waiting(task)
    await backend.producing.enqueue([NewJob("a", "n", "q", b"")])
    await assert_wakes(task)
    find_socket_folder(path).unlink()


async def test_without_sockets_a_long_wait_ends_early(
    backend: SQLiteBackend, path: Path, clock: FakeClock
) -> None:
    """A worker of a large fleet waits for long, because it relies on notifications."""
    find_socket_folder(path).write_text("in the way")
    task = asyncio.create_task(backend.consuming.wait(("q",), 15.0))
    await assert_keeps_waiting(task)
    clock.advance(MAX_WAIT_WITHOUT_NOTIFICATIONS)
    await assert_wakes(task)
    find_socket_folder(path).unlink()


async def test_a_long_path_needs_no_folder_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends without closing the backend would leave it behind."""
    (scratch := tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    (folder := tmp_path / ("x" * 60) / ("y" * 60)).mkdir(parents=True)
    backend = SQLiteBackend(folder / "jobs.db")
    other = SQLiteBackend(folder / "jobs.db")
    for each in (backend, other):
        await each.open()
    task = start_wait(backend, "q")
    await assert_keeps_waiting(task)
    await other.producing.enqueue([NewJob("a", "n", "q", b"")])
    await assert_wakes(task)
    assert (folder / "jobs.db-sockets").is_dir()
    assert list(scratch.iterdir()) == []
    for each in (backend, other):
        await each.close()
    assert [each.name for each in folder.iterdir()] == ["jobs.db"]


def test_a_long_path_gets_a_short_folder_where_descriptors_are_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "_OPEN_FOLDERS", tmp_path / "none")
    deep = tmp_path / ("x" * 60) / ("y" * 60) / "jobs.db"
    assert len(os.fsencode(find_socket_folder(deep))) < 80
    assert find_socket_folder(deep) == find_socket_folder(deep.parent / "." / "jobs.db")
    assert find_socket_folder(deep) != find_socket_folder(deep.with_name("other.db"))
    assert find_socket_folder(tmp_path / "j.db").parent in {
        tmp_path,
        find_socket_folder(deep).parent,
    }


def test_a_dead_socket_is_removed_and_a_live_one_is_notified(tmp_path: Path) -> None:
    living = bind_socket(tmp_path / "living")
    bind_socket(tmp_path / "dead").close()
    bind_socket(tmp_path / "own").close()
    listener = SocketListener(tmp_path, "own")
    notifier = SocketNotifier(listener, listener.wake)
    notifier.notify({"q": 1})
    assert living.recv(100) == b"q"
    notifier.notify({"r": 1})
    assert living.recv(100) == b"r"
    assert {one.name for one in tmp_path.iterdir()} == {"living", "own"}
    notifier.close()
    living.close()


def test_an_idle_entry_of_a_dead_process_wakes_another(tmp_path: Path) -> None:
    """And an entry is used once: it is removed by the process that wakes its worker."""
    living = bind_socket(tmp_path / "beef")
    bind_socket(tmp_path / "dead").close()
    for name in ("beef", "dead"):
        (tmp_path / make_entry_name(name, 1, ["q"])).touch()
    listener = SocketListener(tmp_path, "own")
    notifier = SocketNotifier(listener, listener.wake)
    assert notifier.notify({"p": 1}) == ["p"]  # nobody waits for it: all are told
    assert living.recv(100) == b"p"
    assert not notifier.notify({"q": 1})
    assert living.recv(100).endswith(b"q")
    assert not notifier.notify({"q": 1}, passed=True)
    assert notifier.notify({"q": 1}) == ["q"]
    assert living.recv(100) == b"q"
    assert [one.name for one in tmp_path.iterdir()] == ["beef"]
    notifier.close()
    living.close()


def bind_socket(path: Path) -> socket.socket:
    """A socket of this name."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(path))
    return listener


def test_messages_carry_queue_names() -> None:
    assert decode_queues(encode_queues({"b", "a"})) == {"a", "b"}
    assert decode_queues(encode_queues({"*", "a"})) == {"*"}
    assert decode_queues(encode_queues({f"queue-{n}" for n in range(1000)})) == {"*"}
    assert decode_queues(b"\xff") == {"\ufffd"}


async def test_a_freed_limit_notifies(backend: SQLiteBackend, other: SQLiteBackend) -> None:
    await backend.producing.enqueue([NewJob(one, "n", "q", b"") for one in "ab"])
    await backend.consuming.open_session(
        Session(id="s", names=("n",), limits=make_limits({"n": 1}))
    )
    reply = await backend.consuming.exchange("s", 1, [], ReserveRequest(5, (Lane("q", "n"),)))
    (held,) = reply.deliveries
    task = start_wait(other, "q")
    await assert_keeps_waiting(task)
    await backend.consuming.exchange("s", 2, [Released(held.lease, 60.0)], RESERVE_NOTHING)
    await assert_wakes(task)
