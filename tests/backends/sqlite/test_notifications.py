"""Rings between handles, and what stands behind them when there can be none."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.notifications import Bells, bells_of, read, written
from nimburion.core.exchange import NOTHING, Lane, Want
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from nimburion.core.settlement import Released
from nimburion.testing.clock import FakeClock

DEADLINE = 20.0


@pytest.fixture
async def other(store: SQLiteBackend) -> AsyncIterator[SQLiteBackend]:
    """A second handle on the same file, with threads and a socket of its own."""
    other = store.sibling()
    await other.open()
    yield other
    await other.close()


def waiting(store: SQLiteBackend, *queues: str) -> asyncio.Task[None]:
    """Somebody who waits, without a timeout of note."""
    return asyncio.create_task(store.wait(queues, 1e9))


async def soon(task: asyncio.Task[None]) -> None:
    await asyncio.wait_for(task, DEADLINE)


async def still(task: asyncio.Task[None]) -> None:
    """Nothing has woken it: a few turns of the loop go by."""
    for _ in range(50):
        await asyncio.sleep(0)
    assert not task.done()


@pytest.mark.parametrize("own", [True, False], ids=["same handle", "another handle"])
async def test_an_enqueue_rings(store: SQLiteBackend, other: SQLiteBackend, own: bool) -> None:
    task = waiting(store, "q")
    await still(task)
    ringing = store if own else other
    await ringing.enqueue([NewJob("a", "n", "elsewhere", b"")])
    await still(task)
    await ringing.enqueue([NewJob("b", "n", "q", b"")])
    await soon(task)


async def test_everything_that_makes_work_rings(
    store: SQLiteBackend, other: SQLiteBackend, clock: FakeClock
) -> None:
    await store.enqueue([NewJob("a", "n", "q", b""), NewJob("b", "n", "q", b"", after=5.0)])
    await store.pause("q", paused=True)
    task = waiting(other, "q")
    await still(task)
    await store.pause("q", paused=False)
    await soon(task)
    task = waiting(other, "q")
    clock.advance(5.0)
    await still(task)
    await store.promote(10)
    await soon(task)


async def test_a_ring_while_nobody_waits_is_heard_by_the_next_wait(
    store: SQLiteBackend, other: SQLiteBackend
) -> None:
    await store.open_session(Session(id="s"))
    await other.enqueue([NewJob("a", "n", "q", b"")])
    await soon(waiting(store, "q"))
    task = waiting(store, "q")
    await still(task)
    task.cancel()


async def test_the_timeout_ends_a_wait(store: SQLiteBackend, clock: FakeClock) -> None:
    task = asyncio.create_task(store.wait(["q"], 5.0))
    await still(task)
    clock.advance(5.0)
    await soon(task)


async def test_closing_ends_a_wait_and_removes_the_socket(path: Path, clock: FakeClock) -> None:
    store = SQLiteBackend(path, clock=clock)
    await store.open()
    task = waiting(store, "q")
    await still(task)
    assert bells_of(path).is_dir()
    await store.close()
    await soon(task)
    assert not bells_of(path).exists()


async def test_a_handle_that_hears_twice_wakes_all_who_wait(store: SQLiteBackend) -> None:
    tasks = [waiting(store, "q"), waiting(store, "q", "p"), waiting(store, "p")]
    await still(tasks[0])
    await store.enqueue([NewJob("a", "n", "q", b"")])
    await soon(tasks[0])
    await soon(tasks[1])
    await still(tasks[2])
    tasks[2].cancel()


async def test_full_sockets_and_many_rings_do_no_harm(
    store: SQLiteBackend, other: SQLiteBackend
) -> None:
    await store.open_session(Session(id="s"))
    for n in range(600):  # more than a socket holds
        await other.enqueue([NewJob(f"j-{n}", "n", f"q{n % 3}", b"")])
    await soon(waiting(store, "q1"))


async def test_without_sockets_own_rings_are_still_heard(store: SQLiteBackend, path: Path) -> None:
    bells_of(path).write_text("in the way")
    task = waiting(store, "q")
    await still(task)
    await store.enqueue([NewJob("a", "n", "q", b"")])
    await soon(task)
    bells_of(path).unlink()


def test_a_long_path_gets_a_short_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60) / ("y" * 60) / "jobs.db"
    assert len(os.fsencode(bells_of(deep))) < 80
    assert bells_of(deep) == bells_of(deep.parent / "." / "jobs.db")
    assert bells_of(deep) != bells_of(deep.with_name("other.db"))
    assert bells_of(tmp_path / "j.db").parent in {tmp_path, bells_of(deep).parent}


def test_a_dead_socket_is_removed_and_a_living_one_is_rung(tmp_path: Path) -> None:
    living = bound(tmp_path / "living")
    bound(tmp_path / "dead").close()
    bound(tmp_path / "own").close()
    bells = Bells(tmp_path, "own")
    bells.ring({"q"})
    assert living.recv(100) == b"q"
    bells.ring({"r"})
    assert living.recv(100) == b"r"
    assert {one.name for one in tmp_path.iterdir()} == {"living", "own"}
    bells.close()
    living.close()


def bound(path: Path) -> socket.socket:
    """A socket of this name."""
    bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bell.bind(str(path))
    return bell


def test_messages_say_which_queues() -> None:
    assert read(written({"b", "a"})) == {"a", "b"}
    assert read(written({"*", "a"})) == {"*"}
    assert read(written({f"queue-{n}" for n in range(1000)})) == {"*"}
    assert read(b"\xff") == {"\ufffd"}


async def test_a_freed_limit_rings(store: SQLiteBackend, other: SQLiteBackend) -> None:
    await store.enqueue([NewJob(one, "n", "q", b"") for one in "ab"])
    await store.open_session(Session(id="s", names=("n",), limits={"n": 1}))
    reply = await store.exchange("s", 1, [], Want(5, (Lane("q", "n"),)))
    (held,) = reply.deliveries
    task = waiting(other, "q")
    await still(task)
    await store.exchange("s", 2, [Released(held.lease, 60.0)], NOTHING)
    await soon(task)
