"""Notifications between processes, over datagram sockets beside the database file.

A process that waits binds a socket. Each of its calls of `wait` also creates an empty file, whose
name has a mark for each queue of the call. It is the idle entry of the call, and is removed when
the call ends. A process that writes removes as many of these files as there are jobs, and sends a
message to the socket of each. If there are too few, it sends the names of the queues to every
socket. Delivery is not guaranteed: a full socket already holds a notification, and the socket of a
dead process is removed. Where no socket can be bound, waiters rely on their timeout.

A worker binds a second socket, named after its session. Cancels and commands for the session are
sent to this socket only. So a busy worker receives these messages, but none for new jobs.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from nimburion.backends.waiters import (
    ALL_WORKERS,
    EVERY_QUEUE,
    EVERY_SESSION,
    MAX_WAIT_WITHOUT_NOTIFICATIONS,
    LastWait,
    PassOn,
    Waiters,
    make_session_name,
    wait_until,
)
from nimburion.core.errors import NimburionError

_MAX_PATH_BYTES = 100
"""The most bytes of a socket's path. Systems allow 104 to 108."""
_MAX_MESSAGE_BYTES = 4096
"""The most bytes of a message. If the queue names do not fit, all queues are notified."""
_OPEN_FOLDERS = Path("/proc/self/fd")
"""Linux: a folder that is open in this process is also found here, by its file descriptor."""
_SESSION_PREFIX = "s"
"""The first character of the name of a session's socket. Other sockets have hexadecimal names."""
_ENTRY_PREFIX = "q"
"""The first character of the name of an idle entry: `q-SOCKET-NUMBER-MARK.MARK`."""
_MAX_ENTRY_QUEUES = 20
"""The most queues in an idle entry. A call for more has the mark `*`."""
_NO_QUEUE_SOCKETS = (_SESSION_PREFIX, _ENTRY_PREFIX)
"""The first characters of names that are not those of a process's socket."""
_WAKE, _PASSED = b"\x01", b"\x02"
"""The first byte of a message to one idle worker; the queue follows. A message with the second byte
is not passed on again.
"""
_MTIME_SETTLED_NS = 50_000_000
"""Nanoseconds after which a folder's modification time covers all earlier changes."""


def find_socket_folder(path: Path) -> Path:
    """Return the folder of the sockets: beside the file, or in the temporary folder.

    The temporary folder is used if the path beside the file is too long for the address of a
    socket, on systems without `/proc/self/fd`.
    """
    file = path.resolve()
    beside = file.with_name(file.name + "-sockets")
    if len(os.fsencode(beside)) + 20 <= _MAX_PATH_BYTES or _OPEN_FOLDERS.is_dir():
        return beside
    from tempfile import gettempdir  # only for a long path

    mark = hashlib.blake2b(os.fsencode(file), digest_size=8).hexdigest()
    return Path(gettempdir()) / f"nimburion-{mark}"


@contextmanager
def open_address(path: Path) -> Iterator[str]:
    """Yield the address of the socket at `path`. If the path is too long for one, the address
    names the folder by a file descriptor, which is open meanwhile.

    Raises `OSError` if the folder cannot be opened.
    """
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield str(_OPEN_FOLDERS / str(folder) / path.name)
    finally:
        os.close(folder)


def find_session_socket(folder: Path, session_name: str) -> Path:
    """Return the path of the socket of a session, given the name under which it is notified."""
    mark = hashlib.blake2b(session_name.encode(), digest_size=8).hexdigest()
    return folder / f"{_SESSION_PREFIX}{mark}"


def make_queue_mark(queue: str) -> str:
    """Return the mark of a queue in the name of an idle entry. Two queues may have the same mark.

    >>> len(make_queue_mark("mail"))
    8
    """
    return hashlib.blake2b(queue.encode(), digest_size=4).hexdigest()


def make_entry_name(socket_name: str, number: int, queues: Collection[str]) -> str:
    """Return the name of the idle entry of a call that waits for these queues."""
    marks = "*" if len(queues) > _MAX_ENTRY_QUEUES else ".".join(map(make_queue_mark, queues))
    return f"{_ENTRY_PREFIX}-{socket_name}-{number}-{marks}"


class SocketNotifier:
    """Wakes idle workers of all processes, and sends notifications to all. Use it from one thread
    only.

    Args:
        listener: receives the notifications of this process.
        wake: calls `listener.wake` on the thread of its event loop.
    """

    def __init__(self, listener: SocketListener, wake: Callable[[Collection[str]], object]) -> None:
        self._listener = listener
        self._wake = wake
        self._folder = listener.folder
        self._folder_name = str(listener.folder)
        self._own = own = listener.name
        self._others: list[str] = []
        self._entries: list[str] = []
        """The names of the idle entries of all processes."""
        self._turn = sum(own.encode())
        """Which entry is next. Each process begins with another."""
        self._folder_mtime = -1
        self._socket: socket.socket | None = None
        self._is_closed = False

    def notify(self, names: Mapping[str, int], *, passed: bool = False) -> Collection[str]:
        """Wake one idle worker for each job, and notify sessions. Send the names of queues with too
        few idle workers to every socket of the folder, and return them.

        `passed`: another worker found no job for itself after this wake-up. Then nothing is sent to
        all, and no queue is returned. Never blocks.
        """
        if not names:
            return ()
        self._refresh()
        queues = []
        for name, jobs in names.items():
            if name[:1] == EVERY_SESSION:  # the name of a queue may be empty
                self._send(b"", str(find_session_socket(self._folder, name)))
                continue
            is_for_all = name == EVERY_QUEUE or jobs >= ALL_WORKERS or not self._entries
            if is_for_all or self._wake_idle(name, jobs, passed=passed) < jobs:
                queues.append(name)
        if passed or not queues:
            return ()
        if self._others:
            message = encode_queues(queues)
            for other in self._others:
                self._send(message, other)
        if self._listener.is_listening:
            with suppress(RuntimeError):  # its event loop is closed
                self._wake(queues)
        return queues

    def close(self) -> None:
        """Close the socket. Nothing is sent after that."""
        self._is_closed = True
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _wake_idle(self, queue: str, jobs: int, *, passed: bool) -> int:
        """Remove up to `jobs` idle entries of a queue and wake their workers. Return their number.

        A process that has died does not count: its socket refuses the message.
        """
        mark, message = make_queue_mark(queue), (_PASSED if passed else _WAKE) + queue.encode()
        entries = [name for name in self._entries if mark in name or name.endswith("*")]
        count = 0
        for place in range(len(entries)):
            if count == jobs:
                break
            name = entries[(self._turn + place) % len(entries)]
            self._entries.remove(name)
            self._folder_mtime = -1
            try:
                (self._folder / name).unlink()
            except FileNotFoundError:  # another process has woken it
                continue
            except OSError:  # an entry of another user: its worker removes it
                pass
            if self._send(message, str(self._folder / name.split("-")[1])):
                count += 1
        self._turn += 1
        return count

    def _send(self, message: bytes, other: str) -> bool:
        """Send a message to a socket. Return False if it was not received."""
        if self._is_closed:
            return False
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)  # noqa: FBT003 (the library's)
        try:
            with open_address(Path(other)) as address:
                self._socket.sendto(message, address)
        except ConnectionRefusedError:  # its process died
            self._folder_mtime = -1
            with suppress(OSError):
                Path(other).unlink()
            return False
        except OSError:  # full: it has a notification already; removed: the next refresh drops it
            return False
        return True

    def _refresh(self) -> None:
        """List the folder again, unless its modification time shows that nothing changed."""
        try:
            changed = os.stat(self._folder_name).st_mtime_ns  # noqa: PTH116 (five times as fast)
        except OSError:
            self._others, self._entries, self._folder_mtime = [], [], -1
            return
        if changed == self._folder_mtime:
            return
        with suppress(OSError):
            names = sorted(os.listdir(self._folder))  # noqa: PTH208
            self._entries = [name for name in names if name.startswith(_ENTRY_PREFIX)]
            self._others = [
                str(self._folder / name)
                for name in names
                if name != self._own and name[0] not in _NO_QUEUE_SOCKETS
            ]
        self._folder_mtime = changed if time.time_ns() - changed > _MTIME_SETTLED_NS else -1


class SocketListener:
    """Receives notifications for the waiting callers of this handle. Use on the loop's thread."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder: Path = folder
        self.name: str = name
        self._path = folder / name
        self._socket: socket.socket | None = None
        self._waiters = Waiters(self._pass_wakeup_on)
        self.last_wait: LastWait = self._waiters.last_wait
        """How the last call of `wait` ended."""
        self._entries: set[Path] = set()
        """The idle entries of the calls that wait."""
        self._entry_count = 0
        self.is_listening: bool = False
        self.pass_on: PassOn = lambda _, __: None

    def listen(self) -> None:
        """Bind the socket once. If that fails, only notifications of this process arrive."""
        if self.is_listening:
            return
        self.is_listening = True
        self._socket = bind_socket(self._path)

    async def wait(
        self, queues: Collection[str], timeout: float, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        """Return when one of the queues is notified, or after `sleep(timeout)`, in seconds."""
        if not self.is_listening:
            self.listen()
        self._read_messages()
        if self._waiters.take_missed(queues):
            return
        if self._socket is None:
            timeout = min(timeout, MAX_WAIT_WITHOUT_NOTIFICATIONS)
        elif not self._waiters.calls:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read_messages)
        try:
            with self._waiters.expect(queues) as notified, self._add_entry(queues):
                await wait_until(notified, sleep(timeout))
        finally:
            if not self._waiters.calls:  # spare a busy worker the wake-ups of its event loop
                self._stop_reading()

    @contextmanager
    def _add_entry(self, queues: Collection[str]) -> Iterator[None]:
        """Have an idle entry for these queues inside the block."""
        if self._socket is None:
            yield
            return
        self._entry_count += 1
        entry = self.folder / make_entry_name(self.name, self._entry_count, queues)
        with suppress(OSError):
            os.close(os.open(entry, os.O_CREAT | os.O_WRONLY, 0o600))
        self._entries.add(entry)
        try:
            yield
        finally:
            self._entries.discard(entry)
            try:
                entry.unlink()
            except (
                FileNotFoundError
            ):  # a message is here or under way: pass it on if it is too late
                self._read_messages()
            except OSError:
                pass

    async def wait_for_session(self, session_id: str) -> None:
        """Return when the session is notified. Never returns if its socket cannot be bound."""
        path = find_session_socket(self.folder, make_session_name(session_id))
        session_socket = bind_socket(path)
        notified = asyncio.Event()
        if session_socket is None:
            await notified.wait()
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(session_socket.fileno(), notified.set)
        try:
            await notified.wait()
        finally:
            loop.remove_reader(session_socket.fileno())
            session_socket.close()
            with suppress(OSError):
                path.unlink()

    def wake(self, queues: Collection[str]) -> None:
        """Wake the waiters of these queues. Without a waiter, keep it for the next `wait`."""
        self._waiters.notify(queues)

    def discard(self) -> None:
        """Close and remove the socket after its event loop was closed."""
        self._waiters.discard_all()
        self._remove_entries()
        listening_socket, self._socket = self._socket, None
        if listening_socket is not None:
            listening_socket.close()
            with suppress(OSError):
                self._path.unlink()

    def close(self) -> None:
        """Close and remove the socket, and remove the folder if it is empty then."""
        self._waiters.end_all()
        self._remove_entries()
        if self._socket is not None:
            self._stop_reading()
            self._socket.close()
            self._socket = None
            with suppress(OSError):
                self._path.unlink()
            with suppress(OSError):
                self._path.parent.rmdir()
        self.is_listening = False

    def _remove_entries(self) -> None:
        while self._entries:
            with suppress(OSError):
                self._entries.pop().unlink()

    def _stop_reading(self) -> None:
        if self._socket is not None:
            with suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._socket.fileno())

    def _read_messages(self) -> None:
        """Receive all pending messages and wake their waiters."""
        if self._socket is None:
            return
        with suppress(OSError):
            while True:
                message = self._socket.recv(_MAX_MESSAGE_BYTES)
                if message[:1] in (_WAKE, _PASSED):
                    self._wake_one(message[1:].decode(), passed=message[:1] == _PASSED)
                else:
                    self._waiters.notify(decode_queues(message))

    def _pass_wakeup_on(self, queue: str, passed: bool) -> None:  # noqa: FBT001 - see `PassOn`
        # The notifier sets `pass_on` later.
        self.pass_on(queue, passed)

    def _wake_one(self, queue: str, *, passed: bool) -> None:
        """End a call that waits for the queue. If it has ended already, wake another worker."""
        if not self._waiters.wake(queue, 1, passed=passed):
            self._waiters.keep([queue])
            self.pass_on(queue, passed)


def bind_socket(path: Path) -> socket.socket | None:
    """Bind a datagram socket at `path`, and create its folder. Return None if that fails."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bound.setblocking(False)  # noqa: FBT003 (the library's)
    try:
        path.parent.mkdir(mode=0o777, parents=True, exist_ok=True)
        with open_address(path) as address:
            bound.bind(address)
        path.chmod(0o666)  # users of the file can send; messages hold only queue names
    except OSError:
        bound.close()
        return None
    return bound


def encode_queues(queues: Collection[str]) -> bytes:
    """Encode a message: one queue name per line. An empty message stands for all queues."""
    if EVERY_QUEUE in queues:
        return b""
    message = "\n".join(sorted(queues)).encode()
    return message if len(message) <= _MAX_MESSAGE_BYTES else b""


def decode_queues(message: bytes) -> set[str]:
    """Return the queues of a message."""
    if not message:
        return {EVERY_QUEUE}
    return set(message.decode(errors="replace").split("\n"))


_FIRST_INTERVAL = 0.001
_MAX_INTERVAL = 0.05
_COMMIT_TIMEOUT = 60.0
"""Seconds after which a transaction counts as rolled back. A later commit is found by polling."""

FindCommitted = Callable[[list[str]], Awaitable[Collection[str]]]
"""Returns those of these job ids that are committed."""
Notify = Callable[[Mapping[str, int]], object]


class CommitPoller:
    """Notifies queues once jobs in callers' open transactions are committed.

    It polls for the jobs: after 1 ms at first, then at growing intervals up to 50 ms. Use it on the
    event loop's thread.
    """

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
        self._uncommitted: dict[str, tuple[float, Mapping[str, int]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._interval = _FIRST_INTERVAL

    def add(self, job_id: str, queues: Mapping[str, int]) -> None:
        """Notify these queues once this job is committed."""
        self._uncommitted[job_id] = (asyncio.get_running_loop().time() + _COMMIT_TIMEOUT, queues)
        self._interval = _FIRST_INTERVAL
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll_until_empty(), name="nimburion-commits")

    async def close(self) -> None:
        """Stop polling, after one last poll."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.poll()
            self._uncommitted.clear()

    async def poll(self) -> None:
        """Notify the queues of the jobs that are committed by now. Ignore a failed read."""
        if not self._uncommitted:
            return
        with suppress(NimburionError):
            for job_id in await self._find_committed(list(self._uncommitted)):
                _, queues = self._uncommitted.pop(job_id, (0.0, {}))
                self._notify(queues)

    async def _poll_until_empty(self) -> None:
        while self._uncommitted:
            await self._sleep(self._interval)
            self._interval = min(1.5 * self._interval, _MAX_INTERVAL)
            await self.poll()
            now = asyncio.get_running_loop().time()
            for job_id in [
                one for one, (deadline, _) in self._uncommitted.items() if deadline < now
            ]:
                del self._uncommitted[job_id]
