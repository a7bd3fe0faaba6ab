"""How processes wake each other: whoever waits binds a datagram socket beside the file, whoever
wrote something for others sends the names of the queues to each of them.

A hint and no more: a full socket is rung already, a dead one is removed, and where sockets cannot
be bound at all the waiter's timeout is what is left.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from pathlib import Path

from nimburion.backends.waiters import EVERY_QUEUE, Waiters, wait_until
from nimburion.core.errors import NimburionError

_LONGEST = 100
"""Bytes of a socket's path; systems allow 104 to 108."""
_LARGEST = 4096
"""Bytes of a message; more queues than fit are rung as all."""
_SETTLED = 50_000_000
"""Nanoseconds after which a folder's time tells of every change before."""


def bells_of(path: Path) -> Path:
    """The folder of the sockets: beside the file, or a short path that stands for it."""
    place = path.resolve()
    beside = place.with_name(place.name + "-bells")
    if len(os.fsencode(beside)) + 20 <= _LONGEST:
        return beside
    mark = hashlib.blake2b(os.fsencode(place), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"nimburion-{mark}"


class Bells:
    """Sends: rings the other processes. For one thread."""

    def __init__(self, folder: Path, own: str) -> None:
        self._folder = folder
        self._own = own
        self._others: list[str] = []
        self._seen = -1
        self._socket: socket.socket | None = None

    def ring(self, queues: Collection[str]) -> None:
        """Send the names of these queues to everybody else who waits."""
        self._look()
        if not self._others:
            return
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)  # noqa: FBT003 (the library's)
        message = written(queues)
        for other in self._others:
            self._send(self._socket, message, other)

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, sender: socket.socket, message: bytes, other: str) -> None:
        try:
            sender.sendto(message, other)
        except ConnectionRefusedError:  # its process died
            self._seen = -1
            with suppress(OSError):
                Path(other).unlink()
        except OSError:  # full: it is rung already; gone: the next look will miss it
            return

    def _look(self) -> None:
        """Read the folder again, unless its time says that nothing changed."""
        try:
            changed = os.stat(self._folder).st_mtime_ns  # noqa: PTH116 (five times as fast)
        except OSError:
            self._others, self._seen = [], -1
            return
        if changed == self._seen:
            return
        with suppress(OSError):
            self._others = [
                str(self._folder / name)
                for name in sorted(os.listdir(self._folder))  # noqa: PTH208
                if name != self._own
            ]
        self._seen = changed if time.time_ns() - changed > _SETTLED else -1


class Doorbell:
    """Hears: the socket of this handle, and its callers who wait. For the loop's thread."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / name
        self._socket: socket.socket | None = None
        self._waiters = Waiters()
        self.listening: bool = False

    def listen(self) -> None:
        """Bind the socket, once; without one, only this process's own rings are heard."""
        if self.listening:
            return
        self.listening = True
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        bell.setblocking(False)  # noqa: FBT003 (the library's)
        try:
            self._path.parent.mkdir(mode=0o777, parents=True, exist_ok=True)
            bell.bind(str(self._path))
            self._path.chmod(0o666)  # who may write the file may ring; nothing is read from it
        except OSError:
            bell.close()
        else:
            self._socket = bell

    async def wait(
        self, queues: Collection[str], timeout: float, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        """Return when one of the queues is rung, or after `timeout` seconds as `sleep` has them."""
        self.listen()
        self._drain()
        if self._waiters.take_missed(queues):
            return
        self._watch()
        try:
            with self._waiters.expect(queues) as notified:
                await wait_until(notified, sleep(timeout))
        finally:
            if not self._waiters:  # a busy worker is not to be disturbed
                self._unwatch()

    def wake(self, queues: Collection[str]) -> None:
        """These queues were rung. What nobody waits for is kept for the next who does."""
        self._waiters.notify(queues)

    def abandon(self) -> None:
        """Let go of the socket where the loop that watched it is gone."""
        self._waiters.discard_all()
        bell, self._socket = self._socket, None
        if bell is not None:
            bell.close()
            with suppress(OSError):
                self._path.unlink()

    def close(self) -> None:
        """Remove the socket, and the folder when it was the last."""
        self._waiters.end_all()
        if self._socket is not None:
            self._unwatch()
            self._socket.close()
            self._socket = None
            with suppress(OSError):
                self._path.unlink()
            with suppress(OSError):
                self._path.parent.rmdir()
        self.listening = False

    def _watch(self) -> None:
        if not self._waiters and self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._drain)

    def _unwatch(self) -> None:
        if self._socket is not None:
            with suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._socket.fileno())

    def _drain(self) -> None:
        """Take every message that has come."""
        if self._socket is None:
            return
        with suppress(OSError):
            while True:
                self._waiters.notify(read(self._socket.recv(_LARGEST)))


class Chime:
    """Rings everybody, this process included. For the loop's thread."""

    def __init__(self, bells: Bells, doorbell: Doorbell) -> None:
        self._bells = bells
        self._doorbell = doorbell

    def ring(self, queues: Collection[str]) -> None:
        """Wake who waits for one of these queues."""
        if queues:
            self._bells.ring(queues)
            if self._doorbell.listening:
                self._doorbell.wake(queues)

    def close(self) -> None:
        """Let go of the socket."""
        self._bells.close()


def written(queues: Collection[str]) -> bytes:
    """A message: queue names by line; empty for all of them."""
    if EVERY_QUEUE in queues:
        return b""
    message = "\n".join(sorted(queues)).encode()
    return message if len(message) <= _LARGEST else b""


def read(message: bytes) -> set[str]:
    """The queues of a message."""
    if not message:
        return {EVERY_QUEUE}
    return set(message.decode(errors="replace").split("\n"))


_FIRST = 0.001
_MAX_INTERVAL = 0.05
_PATIENCE = 60.0
"""Seconds after which a transaction is taken for rolled back; its jobs are found by a poll then."""

Look = Callable[[list[str]], Awaitable[Collection[str]]]
"""Which of these job ids are to be seen by everybody."""
Ring = Callable[[Collection[str]], None]


class Watch:
    """The jobs of open transactions, and the queues to ring for each. For the loop's thread."""

    def __init__(
        self,
        look: Look,
        ring: Ring,
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._look = look
        self._ring = ring
        self._pause = pause
        self._open: dict[str, tuple[float, Collection[str]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._interval = _FIRST

    def add(self, job_id: str, queues: Collection[str]) -> None:
        """Ring these queues once this job is to be seen."""
        self._open[job_id] = (asyncio.get_running_loop().time() + _PATIENCE, queues)
        self._interval = _FIRST
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="nimburion-commits")

    async def close(self) -> None:
        """Look a last time."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.look()
            self._open.clear()

    async def look(self) -> None:
        """Ring for what is committed by now. A look that fails is tried again."""
        if not self._open:
            return
        with suppress(NimburionError):
            for job_id in await self._look(list(self._open)):
                _, queues = self._open.pop(job_id, (0.0, ()))
                self._ring(queues)

    async def _watch(self) -> None:
        while self._open:
            await self._pause(self._interval)
            self._interval = min(1.5 * self._interval, _MAX_INTERVAL)
            await self.look()
            now = asyncio.get_running_loop().time()
            for job_id in [one for one, (until, _) in self._open.items() if until < now]:
                del self._open[job_id]
