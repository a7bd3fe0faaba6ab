"""A backend is opened once at a time, in one process, on one event loop."""

from __future__ import annotations

import asyncio
import os

import pytest

from nimburion.backends.server.handle import OpenHandle
from nimburion.core.errors import BackendUnavailable, NotOpen


class FakeConnections:
    """Counts its calls."""

    def __init__(self, *, fails: bool = False) -> None:
        self.started = self.closed = 0
        self._fails = fails

    async def start(self) -> None:
        self.started += 1
        await asyncio.sleep(0)
        if self._fails:
            raise BackendUnavailable("no answer")

    async def close(self) -> None:
        self.closed += 1


async def test_calls_at_the_same_time_open_once() -> None:
    made: list[FakeConnections] = []

    def make() -> FakeConnections:
        made.append(FakeConnections())
        return made[-1]

    handle = OpenHandle("redis://host", make)
    await asyncio.gather(handle.open(), handle.open())
    assert [one.started for one in made] == [1]
    assert handle.get() is made[0]
    await handle.close()
    await handle.close()
    assert made[0].closed == 1


async def test_connections_that_do_not_start_are_closed() -> None:
    connections = FakeConnections(fails=True)
    handle = OpenHandle("redis://host", lambda: connections)
    with pytest.raises(BackendUnavailable):
        await handle.open()
    assert connections.closed == 1
    with pytest.raises(NotOpen, match="redis://host is not open"):
        handle.get()


async def test_after_a_fork_connections_are_neither_used_nor_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = OpenHandle("redis://host", FakeConnections)
    await handle.open()
    parents = handle.get()
    pid = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: pid)
    with pytest.raises(NotOpen, match="was opened before a fork"):
        handle.get()
    await handle.open()
    assert handle.get() is not parents
    assert parents.closed == 0


def test_on_another_event_loop_it_opens_anew() -> None:
    handle = OpenHandle("redis://host", FakeConnections)
    asyncio.run(handle.open())
    first = handle.get()
    asyncio.run(handle.open())
    assert handle.get() is not first
    assert first.closed == 0
