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

_MAX_PATH_BYTES = 100
"""Bytes of a socket's path; systems allow 104 to 108."""
_MAX_MESSAGE_BYTES = 4096
"""Bytes of a message; more queues than fit are rung as all."""
_MTIME_SETTLED_NS = 50_000_000
"""Nanoseconds after which a folder's time tells of every change before."""


def find_socket_folder(path: Path) -> Path:
    """The folder of the sockets: beside the file, or a short path that stands for it."""
    place = path.resolve()
    beside = place.with_name(place.name + "-bells")
    if len(os.fsencode(beside)) + 20 <= _MAX_PATH_BYTES:
        return beside
    mark = hashlib.blake2b(os.fsencode(place), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"nimburion-{mark}"


class SocketNotifier:
    """Sends: rings the other processes. For one thread."""

    def __init__(self, folder: Path, own: str) -> None:
        self._folder = folder
        self._own = own
        self._others: list[str] = []
        self._folder_mtime = -1
        self._socket: socket.socket | None = None

    def notify(self, queues: Collection[str]) -> None:
        """Send the names of these queues to everybody else who waits."""
        self._refresh()
        if not self._others:
            return
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)  # noqa: FBT003 (the library's)
        message = encode_queues(queues)
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
            self._folder_mtime = -1
            with suppress(OSError):
                Path(other).unlink()
        except OSError:  # full: it is rung already; gone: the next look will miss it
            return

    def _refresh(self) -> None:
        """Read the folder again, unless its time says that nothing changed."""
        try:
            changed = os.stat(self._folder).st_mtime_ns  # noqa: PTH116 (five times as fast)
        except OSError:
            self._others, self._folder_mtime = [], -1
            return
        if changed == self._folder_mtime:
            return
        with suppress(OSError):
            self._others = [
                str(self._folder / name)
                for name in sorted(os.listdir(self._folder))  # noqa: PTH208
                if name != self._own
            ]
        self._folder_mtime = changed if time.time_ns() - changed > _MTIME_SETTLED_NS else -1


class SocketListener:
    """Hears: the socket of this handle, and its callers who wait. For the loop's thread."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / name
        self._socket: socket.socket | None = None
        self._waiters = Waiters()
        self.is_listening: bool = False

    def listen(self) -> None:
        """Bind the socket, once; without one, only this process's own rings are heard."""
        if self.is_listening:
            return
        self.is_listening = True
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
        self._read_messages()
        if self._waiters.take_missed(queues):
            return
        self._watch()
        try:
            with self._waiters.expect(queues) as notified:
                await wait_until(notified, sleep(timeout))
        finally:
            if not self._waiters:  # a busy worker is not to be disturbed
                self._stop_reading()

    def wake(self, queues: Collection[str]) -> None:
        """These queues were rung. What nobody waits for is kept for the next who does."""
        self._waiters.notify(queues)

    def discard(self) -> None:
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
            self._stop_reading()
            self._socket.close()
            self._socket = None
            with suppress(OSError):
                self._path.unlink()
            with suppress(OSError):
                self._path.parent.rmdir()
        self.is_listening = False

    def _watch(self) -> None:
        if not self._waiters and self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read_messages)

    def _stop_reading(self) -> None:
        if self._socket is not None:
            with suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._socket.fileno())

    def _read_messages(self) -> None:
        """Take every message that has come."""
        if self._socket is None:
            return
        with suppress(OSError):
            while True:
                self._waiters.notify(decode_queues(self._socket.recv(_MAX_MESSAGE_BYTES)))


class SQLiteNotifier:
    """Rings everybody, this process included. For the loop's thread."""

    def __init__(self, sender: SocketNotifier, listener: SocketListener) -> None:
        self._sender = sender
        self._listener = listener

    def notify(self, queues: Collection[str]) -> None:
        """Wake who waits for one of these queues."""
        if queues:
            self._sender.notify(queues)
            if self._listener.is_listening:
                self._listener.wake(queues)

    def close(self) -> None:
        """Let go of the socket."""
        self._sender.close()


def encode_queues(queues: Collection[str]) -> bytes:
    """A message: queue names by line; empty for all of them."""
    if EVERY_QUEUE in queues:
        return b""
    message = "\n".join(sorted(queues)).encode()
    return message if len(message) <= _MAX_MESSAGE_BYTES else b""


def decode_queues(message: bytes) -> set[str]:
    """The queues of a message."""
    if not message:
        return {EVERY_QUEUE}
    return set(message.decode(errors="replace").split("\n"))


_FIRST_INTERVAL = 0.001
_MAX_INTERVAL = 0.05
_COMMIT_TIMEOUT = 60.0
"""Seconds after which a transaction is taken for rolled back; its jobs are found by a poll then."""

FindCommitted = Callable[[list[str]], Awaitable[Collection[str]]]
"""Which of these job ids are to be seen by everybody."""
Notify = Callable[[Collection[str]], None]


class CommitPoller:
    """The jobs of open transactions, and the queues to ring for each. For the loop's thread."""

    def __init__(
        self,
        find_committed: FindCommitted,
        notify: Notify,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._find_committed = find_committed
        self._notify = notify
        self._sleep = sleep
        self._uncommitted: dict[str, tuple[float, Collection[str]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._interval = _FIRST_INTERVAL

    def add(self, job_id: str, queues: Collection[str]) -> None:
        """Ring these queues once this job is to be seen."""
        self._uncommitted[job_id] = (asyncio.get_running_loop().time() + _COMMIT_TIMEOUT, queues)
        self._interval = _FIRST_INTERVAL
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll_until_empty(), name="nimburion-commits")

    async def close(self) -> None:
        """Look a last time."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.poll()
            self._uncommitted.clear()

    async def poll(self) -> None:
        """Ring for what is committed by now. A look that fails is tried again."""
        if not self._uncommitted:
            return
        with suppress(NimburionError):
            for job_id in await self._find_committed(list(self._uncommitted)):
                _, queues = self._uncommitted.pop(job_id, (0.0, ()))
                self._notify(queues)

    async def _poll_until_empty(self) -> None:
        while self._uncommitted:
            await self._sleep(self._interval)
            self._interval = min(1.5 * self._interval, _MAX_INTERVAL)
            await self.poll()
            now = asyncio.get_running_loop().time()
            for job_id in [one for one, (until, _) in self._uncommitted.items() if until < now]:
                del self._uncommitted[job_id]
